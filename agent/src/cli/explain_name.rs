//! `steer explain --name`: what a name means by the domain that is chosen, and what happens to flows there.

use std::net::IpAddr;
use std::path::Path;
use std::str::FromStr;

use anyhow::bail;
use schemars::JsonSchema;
use serde::Serialize;

use super::call;
use super::explain::write;
use super::output::{Look, Page, print_json};
use crate::api::client;
use crate::api::error::ApiError;
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
        if text.contains('/') {
            return Err("give the name alone, perhaps with a port: www.example.org:443".to_owned());
        }
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
    /// Why it has none, or none of a family, as sentences.
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
    let found = look_up(socket, &target.name, domain.as_deref())?;
    let is_wanted = |address: &String| {
        let v6 = address.contains(':');
        match asked.family {
            Some(AddressFamily::Ipv4) => !v6,
            Some(AddressFamily::Ipv6) => v6,
            None => true,
        }
    };
    let mut failures = found.failures;
    let (addresses, others): (Vec<String>, Vec<String>) =
        found.addresses.into_iter().partition(is_wanted);
    if addresses.is_empty() && failures.is_empty() && !others.is_empty() {
        failures.push(format!(
            "it has addresses of the other family: {}",
            others.join(", ")
        ));
    }
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
        failures,
        explanations,
    })
}

/// What the name servers of a domain say. That they cannot be asked is an answer, too.
fn look_up(socket: &Path, name: &str, domain: Option<&str>) -> anyhow::Result<ResolveReply> {
    let nothing = |why: String| ResolveReply {
        name: name.to_owned(),
        domain: domain.unwrap_or_default().to_owned(),
        addresses: Vec::new(),
        failures: vec![why],
    };
    let Some(domain) = domain else {
        let why = "it is not looked up, since no domain is chosen: what programs find is up to the host's resolver";
        return Ok(nothing(why.to_owned()));
    };
    let asked = Resolve {
        name: name.to_owned(),
        domain: domain.to_owned(),
    };
    match call(socket, &asked) {
        Err(client::Error::Api(ApiError::Failed { reason })) => Ok(nothing(reason)),
        Err(client::Error::Api(ApiError::InvalidArgument { reason, .. })) => {
            bail!("--name: {reason}")
        }
        found => Ok(found?),
    }
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
