//! `steer explain`: what happens to a flow, and why.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::str::FromStr;

use super::args::ExplainArgs;
use super::call;
use super::explain_name;
use super::output::{Cell, Look, Page, print_json};
use crate::api::explain::{
    AddressFamily, ContenderView, Explain, ExplanationView, FamilyPathView, FlowOutcome, FlowView,
    KernelView, MapEntriesView, Standing,
};
use crate::api::types::Verdict;

/// Where a flow goes, as it is written: `ADDRESS`, `ADDRESS:PORT`, `[V6]:PORT`, each IPv6 address perhaps
/// with `%INTERFACE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Destination {
    pub(super) address: String,
    pub(super) port: Option<u16>,
}

/// Why a text is no destination.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoDestination {
    /// A name means different addresses by different domains.
    #[error(
        "this is no address: say `--name {0}` to have it looked up over the domain that is chosen"
    )]
    Name(String),
    /// Its port is none.
    #[error("{NO_PORT}")]
    Port,
    /// What stands in brackets is none.
    #[error("no IPv6 address stands between the brackets")]
    Brackets,
}

impl FromStr for Destination {
    type Err = NoDestination;

    fn from_str(text: &str) -> Result<Self, NoDestination> {
        if is_address(text) {
            return Ok(Self {
                address: text.to_owned(),
                port: None,
            });
        }
        let inner = text.strip_prefix('[').and_then(|rest| rest.split_once(']'));
        let (address, port) = match inner {
            Some((address, "")) if is_v6(address) => {
                return Ok(Self {
                    address: address.to_owned(),
                    port: None,
                });
            }
            Some((address, port)) if is_v6(address) => (address, port.strip_prefix(':')),
            Some(_) => return Err(NoDestination::Brackets),
            None => match text.rsplit_once(':') {
                Some((address, port)) if is_address(address) && !is_v6(address) => {
                    (address, Some(port))
                }
                _ => return Err(NoDestination::Name(text.to_owned())),
            },
        };
        let port = port.and_then(|port| port.parse().ok());
        Ok(Self {
            address: address.to_owned(),
            port: Some(port.ok_or(NoDestination::Port)?),
        })
    }
}

/// What is said of a port that is none.
pub(super) const NO_PORT: &str = "a port is a number up to 65535, behind a colon";

fn is_address(text: &str) -> bool {
    text.parse::<IpAddr>().is_ok() || is_v6(text)
}

fn is_v6(text: &str) -> bool {
    let (address, zone) = match text.split_once('%') {
        Some((address, zone)) => (address, Some(zone)),
        None => (text, None),
    };
    zone != Some("") && address.parse::<Ipv6Addr>().is_ok()
}

pub(super) fn explain(socket: &Path, args: ExplainArgs, json: bool) -> anyhow::Result<()> {
    let family = match (args.ipv4, args.ipv6) {
        (true, _) => Some(AddressFamily::Ipv4),
        (_, true) => Some(AddressFamily::Ipv6),
        _ => None,
    };
    let (destination, port) = match args.destination {
        Some(Destination { address, port }) => (Some(address), port),
        None => (None, None),
    };
    let asked = Explain {
        pid: args.pid,
        cgroup: args.cgroup,
        unit: args.unit,
        destination,
        port: port.map(u32::from),
        protocol: args.protocol,
        dscp: args.dscp,
        family,
        without: args.without,
    };
    if let Some(target) = args.name {
        return explain_name::explain(socket, &target, &asked, json);
    }
    let explanation = call(socket, &asked)?.explanation;
    if json {
        return print_json(&explanation);
    }
    let mut page = Page::new();
    write(&mut page, &explanation);
    page.print()
}

/// All of an explanation.
pub(super) fn write(page: &mut Page, explanation: &ExplanationView) {
    page.line(&explanation.summary, look(explanation));
    if !explanation.warnings.is_empty() {
        page.gap();
        let warnings = explanation.warnings.iter();
        page.facts(
            warnings
                .map(|words| ("warning", Cell::new(words, Look::Warning)))
                .collect(),
        );
    }
    page.gap();
    general(page, explanation);
    contenders(page, &explanation.contenders);
    candidates(page, explanation);
    paths(page, explanation);
    if let Some(flow) = &explanation.flow {
        page.gap();
        write_flow(page, flow);
    }
    if !explanation.forbids.is_empty() {
        page.gap();
        page.line("strict: a program may not", Look::Heading);
        for words in &explanation.forbids {
            page.facts(vec![("  -", words.as_str().into())]);
        }
    }
    if !explanation.notes.is_empty() {
        page.gap();
        let notes = explanation.notes.iter();
        page.facts(notes.map(|words| ("note", words.as_str().into())).collect());
    }
}

/// Whether a rule decides about the flow: what is chosen in general is not for it then.
fn by_rule(explanation: &ExplanationView) -> bool {
    let flow = explanation.flow.as_ref();
    flow.is_some_and(|flow| !flow.decided_by.is_empty())
}

fn look(explanation: &ExplanationView) -> Look {
    if !explanation.warnings.is_empty() {
        return Look::Warning;
    }
    match explanation.flow.as_ref().map(|flow| flow.outcome) {
        Some(FlowOutcome::Refused | FlowOutcome::Dropped) => Look::Bad,
        Some(FlowOutcome::Steered) => Look::Good,
        _ => Look::Plain,
    }
}

fn general(page: &mut Page, explanation: &ExplanationView) {
    let ExplanationView {
        subject,
        cgroup,
        cgroup_id,
        policy,
        chain,
        domain,
        strict,
        maps,
        ..
    } = explanation;
    let process = match (subject.pid, &subject.command) {
        (Some(pid), Some(command)) => format!("{command} (pid {pid})"),
        (Some(pid), None) => format!("pid {pid}"),
        (None, _) => String::new(),
    };
    let cgroup = match cgroup_id {
        Some(id) => format!("{cgroup} (id {id})"),
        None => format!("{cgroup} (not there now)"),
    };
    let policy = match (policy, strict) {
        (Some(policy), true) => format!("{policy} (strict)"),
        (Some(policy), false) => policy.clone(),
        (None, _) => "none".to_owned(),
    };
    let behind = chain.get(1..).unwrap_or_default().join(", then ");
    let domain = domain.as_ref().map_or_else(String::new, |domain| {
        let mut words = domain.name.clone();
        if let Some(interface) = domain.interface.as_ref().filter(|i| **i != domain.name) {
            words.push_str(&format!(" ({interface})"));
        }
        for (what, value) in [
            ("mark", domain.mark.clone()),
            ("table", domain.table.map(|table| table.to_string())),
        ] {
            words.extend(value.map(|value| format!(", {what} {value}")));
        }
        words
    });
    let held = maps.as_ref().map(map_words);
    page.facts(vec![
        ("process", process.into()),
        ("unit", subject.unit.clone().unwrap_or_default().into()),
        ("cgroup", cgroup.into()),
        ("policy", policy.into()),
        ("behind it", behind.into()),
        (
            if by_rule(explanation) {
                "if no rule fits"
            } else {
                "decision"
            },
            explanation
                .decision
                .as_ref()
                .map_or("", |decision| decision.reason.as_str())
                .into(),
        ),
        ("domain", domain.into()),
        (
            "kernel maps",
            held.map_or_else(|| "".into(), |(words, look)| Cell::new(&words, look)),
        ),
    ]);
}

fn map_words(maps: &MapEntriesView) -> (String, Look) {
    let (before, look) = if maps.agrees {
        ("as planned", Look::Plain)
    } else {
        ("not as planned", Look::Warning)
    };
    let mut words = if maps.entry {
        format!("{before}: policy {}, choice {}", maps.policy, maps.choice)
    } else {
        format!("{before}: no entry for this cgroup")
    };
    if let Some(verdict) = maps.verdict {
        words.push_str(&format!(", {}", format!("{verdict:?}").to_lowercase()));
    }
    if maps.domain != 0 {
        words.push_str(&format!(", domain {}", maps.domain));
        let interface = maps.interface.as_ref();
        words.extend(interface.map(|interface| format!(" ({interface})")));
    }
    words.extend(maps.flags.iter().map(|flag| format!(", {flag}")));
    (words, look)
}

fn contenders(page: &mut Page, contenders: &[ContenderView]) {
    if contenders.is_empty() {
        return;
    }
    page.gap();
    let rows = contenders.iter().map(|contender| {
        let standing = match contender.standing {
            Standing::InForce => Cell::new("in force", Look::Good),
            Standing::Next => "next".into(),
            Standing::Behind => "behind".into(),
            Standing::Equal => Cell::new("refused", Look::Bad),
            Standing::ShutOut => "shut out".into(),
        };
        let mut why = contender.reason.clone();
        if let Some(cgroup) = &contender.cgroup {
            why.push_str(&format!(" (matches {cgroup}"));
            // What names the cgroup itself need not be said twice.
            let itself = |text: &String| text.strip_prefix("cgroup ") == cgroup.strip_prefix('/');
            if !contender.matches.iter().any(itself) {
                why.push_str(&format!(" by {}", contender.matches.join(", ")));
            }
            why.push(')');
        }
        vec![
            Cell::name(&contender.policy),
            format!("{:?}", contender.origin).to_lowercase().into(),
            contender.priority.to_string().into(),
            standing,
            why.into(),
        ]
    });
    page.table(
        &["POLICY", "ORIGIN", "PRIORITY", "STANDING", "WHY"],
        rows.collect(),
    );
}

fn candidates(page: &mut Page, explanation: &ExplanationView) {
    let candidates = explanation.decision.as_ref().map(|d| d.candidates.iter());
    let rows: Vec<_> = candidates
        .into_iter()
        .flatten()
        .map(|candidate| {
            let taken = if candidate.taken {
                Cell::new("taken", Look::Good)
            } else {
                "not taken".into()
            };
            vec![
                Cell::name(&candidate.domain),
                taken,
                candidate.reason.as_str().into(),
            ]
        })
        .collect();
    if !rows.is_empty() {
        page.gap();
        let title = if by_rule(explanation) {
            "IF NO RULE FITS"
        } else {
            "CANDIDATE"
        };
        page.table(&[title, "", "REASON"], rows);
    }
    if let Some(without) = &explanation.without {
        let decision = &without.decision;
        let then = match (&decision.domain, decision.verdict) {
            (Some(domain), _) => format!("flows would leave by {domain}"),
            (None, Verdict::Block) => "flows would be blocked".to_owned(),
            (None, _) => "flows would be left to the host's routing".to_owned(),
        };
        page.gap();
        page.line(
            &format!("without {}: {then}: {}", without.domain, decision.reason),
            Look::Plain,
        );
    }
}

fn paths(page: &mut Page, explanation: &ExplanationView) {
    // A flow's own is shown with it.
    if explanation.paths.is_empty() || explanation.flow.is_some() {
        return;
    }
    page.gap();
    let rows = explanation.paths.iter().map(|path| {
        let FamilyPathView {
            family,
            source,
            rule,
        } = path;
        let family = match family {
            AddressFamily::Ipv4 => "IPv4",
            AddressFamily::Ipv6 => "IPv6",
        };
        vec![
            family.into(),
            source
                .as_deref()
                .unwrap_or("none: flows are refused")
                .into(),
            rule.as_ref()
                .map_or_else(String::new, |rule| {
                    format!("{}: {}", rule.priority, rule.text)
                })
                .into(),
        ]
    });
    page.table(&["FAMILY", "SOURCE", "RULE"], rows.collect());
}

fn write_flow(page: &mut Page, flow: &FlowView) {
    let text = |value: &Option<String>| Cell::from(value.clone().unwrap_or_default());
    let outcome = format!("{:?}", flow.outcome).to_lowercase();
    let outcome = match &flow.error {
        Some(error) => format!("{outcome} with {error}"),
        None => outcome,
    };
    let rule = flow.rule.as_ref();
    let rule = rule.map(|rule| format!("{}: {}", rule.priority, rule.text));
    let table = flow.table.map(|table| table.to_string());
    let (kernel, look) = flow
        .kernel
        .as_ref()
        .map_or((String::new(), Look::Plain), kernel_words);
    let asked = flow.kernel.as_ref().map(|kernel| kernel.asked.clone());
    page.facts(vec![
        ("flow to", address(flow).into()),
        (
            "protocol",
            if flow.protocol == "tcp" {
                ""
            } else {
                &flow.protocol
            }
            .into(),
        ),
        ("outcome", outcome.into()),
        ("by", flow.decided_by.join("; then ").into()),
        ("domain", text(&flow.domain)),
        ("interface", text(&flow.interface)),
        ("source", text(&flow.source)),
        ("gateway", text(&flow.gateway)),
        ("table", text(&table)),
        ("mark", text(&flow.mark)),
        ("rule", text(&rule)),
        ("asked", text(&asked)),
        ("the kernel", Cell::new(&kernel, look)),
    ]);
}

fn address(flow: &FlowView) -> String {
    let address: Option<IpAddr> = flow.destination.parse().ok();
    let port = flow.port.and_then(|port| u16::try_from(port).ok());
    match (address, port) {
        (Some(address), Some(port)) => SocketAddr::new(address, port).to_string(),
        _ => flow.destination.clone(),
    }
}

fn kernel_words(kernel: &KernelView) -> (String, Look) {
    let mut words = match &kernel.error {
        Some(error) => format!("refuses: {error}"),
        None => format!("by {}", kernel.interface.as_deref().unwrap_or("nothing")),
    };
    for (what, value) in [
        ("from", kernel.source.clone()),
        ("via", kernel.gateway.clone()),
        ("table", kernel.table.map(|table| table.to_string())),
    ] {
        words.extend(value.map(|value| format!(" {what} {value}")));
    }
    match kernel.agrees {
        Some(true) => (format!("{words}, as planned"), Look::Good),
        Some(false) => (format!("{words}, not as planned"), Look::Warning),
        None => (words, Look::Plain),
    }
}

#[cfg(test)]
mod tests {
    use super::Destination;

    fn parsed(text: &str) -> (String, Option<u16>) {
        let Destination { address, port } = text.parse().unwrap();
        (address, port)
    }

    #[test]
    fn a_destination_is_an_address_and_perhaps_a_port() {
        let some = |address: &str, port| (address.to_owned(), port);
        assert_eq!(parsed("192.0.2.1"), some("192.0.2.1", None));
        assert_eq!(parsed("192.0.2.1:80"), some("192.0.2.1", Some(80)));
        assert_eq!(parsed("2001:db8::1"), some("2001:db8::1", None));
        assert_eq!(parsed("[2001:db8::1]"), some("2001:db8::1", None));
        assert_eq!(parsed("[2001:db8::1]:443"), some("2001:db8::1", Some(443)));
        assert_eq!(parsed("fe80::1%wlan0"), some("fe80::1%wlan0", None));
        assert_eq!(parsed("[fe80::1%wlan0]:1"), some("fe80::1%wlan0", Some(1)));
    }

    #[test]
    fn a_name_is_refused_with_what_to_do() {
        for text in ["example.org", "example.org:80", "localhost"] {
            let words = text.parse::<Destination>().unwrap_err().to_string();
            assert!(words.contains(&format!("`--name {text}`")), "{words}");
        }
        for text in [
            "192.0.2.1:http",
            "[2001:db8::1]:70000",
            "[192.0.2.1]:80",
            "192.0.2.1%eth0",
            "",
        ] {
            assert!(text.parse::<Destination>().is_err(), "{text}");
        }
    }
}
