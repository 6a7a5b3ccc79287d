//! `steer explain --name`: what a name means by the domain that is chosen, and what happens to flows there.

use std::net::IpAddr;
use std::path::Path;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::Serialize;

use super::call;
use super::explain::write;
use super::output::{Look, Page, print_json};
use crate::api::explain::{AddressFamily, Explain, ExplanationView};
use crate::api::methods::{Resolve, ResolveReply};

/// Addresses of a name that flows are explained to.
const MOST: usize = 8;

/// A name where a flow goes, and perhaps a port: `NAME`, `NAME:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NameAndPort {
    name: String,
    port: Option<u16>,
}

impl FromStr for NameAndPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, port) = match text.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (text, None),
        };
        if name.parse::<IpAddr>().is_ok() || text.parse::<IpAddr>().is_ok() || text.starts_with('[')
        {
            return Err("this is an address: give it without --name".to_owned());
        }
        let port = port.map(|port| port.parse().map_err(|_| super::explain::NO_PORT.to_owned()));
        Ok(Self {
            name: name.to_owned(),
            port: port.transpose()?,
        })
    }
}

/// What happens to flows that go where a name leads.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct NameExplanation {
    /// The name.
    name: String,
    /// The domain that it is looked up over. Absent: none is chosen, and it is not looked up.
    domain: Option<String>,
    /// Its addresses there, in the order in which they are to be tried.
    addresses: Vec<String>,
    /// Why it has none, as sentences.
    failures: Vec<String>,
    /// A flow to each of the first eight, in the same order; without any, what happens to flows in general.
    explanations: Vec<ExplanationView>,
}

pub(super) fn explain(
    socket: &Path,
    target: &NameAndPort,
    asked: &Explain,
    json: bool,
) -> anyhow::Result<()> {
    let explanation = explain_name(socket, target, asked)?;
    if json {
        return print_json(&explanation);
    }
    let mut page = Page::new();
    write_name(&mut page, &explanation);
    page.print()
}

fn explain_name(
    socket: &Path,
    target: &NameAndPort,
    asked: &Explain,
) -> anyhow::Result<NameExplanation> {
    let general = Explain {
        protocol: None,
        dscp: None,
        ..asked.clone()
    };
    let general = call(socket, &general)?.explanation;
    let domain = general.domain.as_ref().map(|domain| domain.name.clone());
    let found = match &domain {
        Some(domain) => call(
            socket,
            &Resolve {
                name: target.name.clone(),
                domain: domain.clone(),
            },
        )?,
        None => ResolveReply {
            name: target.name.clone(),
            domain: String::new(),
            addresses: Vec::new(),
            failures: vec![
                "no domain is chosen, so it is not known whose name servers would be asked"
                    .to_owned(),
            ],
        },
    };
    let is_wanted = |address: &String| {
        let v6 = address.contains(':');
        match asked.family {
            Some(AddressFamily::Ipv4) => !v6,
            Some(AddressFamily::Ipv6) => v6,
            None => true,
        }
    };
    let addresses: Vec<String> = found.addresses.into_iter().filter(is_wanted).collect();
    let mut explanations = Vec::new();
    for address in addresses.iter().take(MOST) {
        let flow = Explain {
            destination: Some(address.clone()),
            port: target.port.map(u32::from),
            ..asked.clone()
        };
        explanations.push(call(socket, &flow)?.explanation);
    }
    if explanations.is_empty() {
        explanations.push(general);
    }
    Ok(NameExplanation {
        name: found.name,
        domain,
        addresses,
        failures: found.failures,
        explanations,
    })
}

fn write_name(page: &mut Page, explained: &NameExplanation) {
    let NameExplanation {
        name,
        domain,
        addresses,
        failures,
        explanations,
    } = explained;
    let by = domain
        .as_ref()
        .map_or_else(String::new, |domain| format!(" by {domain}"));
    let found = match addresses.is_empty() {
        true => "no address".to_owned(),
        false => addresses.join(", "),
    };
    let look = if addresses.is_empty() {
        Look::Warning
    } else {
        Look::Plain
    };
    page.line(&format!("{name}{by}: {found}"), look);
    for why in failures {
        page.facts(vec![("  -", why.as_str().into())]);
    }
    let more = addresses.len().saturating_sub(explanations.len());
    for explanation in explanations {
        page.gap();
        write(page, explanation);
    }
    if more > 0 && !addresses.is_empty() {
        page.gap();
        page.line(
            &format!("and {more} addresses more: name one to see what happens there"),
            Look::Plain,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::NameAndPort;

    #[test]
    fn a_target_is_a_name_and_perhaps_a_port() {
        let of = |text: &str| {
            text.parse::<NameAndPort>()
                .map(|target| (target.name, target.port))
        };
        let name = "example.org".to_owned();
        assert_eq!(of("example.org"), Ok((name.clone(), None)));
        assert_eq!(of("example.org:443"), Ok((name, Some(443))));
        for wrong in [
            "192.0.2.1",
            "2001:db8::1",
            "[2001:db8::1]:80",
            "192.0.2.1:80",
        ] {
            let why = of(wrong).unwrap_err();
            assert!(why.contains("without --name"), "{wrong}: {why}");
        }
        for wrong in ["example.org:http", "example.org:70000", "example.org:"] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }
}
