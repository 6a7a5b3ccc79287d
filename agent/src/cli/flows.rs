//! `steer flows`: which flows there are, whose they are and where they leave; once, or again each second.

mod changes;

use std::io::{self, IsTerminal};
use std::net::IpAddr;
use std::path::Path;
use std::str::FromStr;

use anyhow::Context;
use ipnet::IpNet;
use terminal_size::terminal_size_of;

use self::changes::Changes;
use super::args::FlowsArgs;
use super::explain::{Destination, NoDestination};
use super::output::stream::{ended, write_out};
use super::output::units::{age, bytes};
use super::output::{Cell, Look, Page, print_json};
use super::{PERSISTENCE, call};
use crate::api::client::{Client, PATIENCE};
use crate::api::explain::AddressFamily;
use crate::api::flows::{FlowOrder, FlowsReply, ListFlows, LiveFlowView, Whereabouts};

/// Lines of a terminal that does not tell how many it has.
const LINES: usize = 24;

/// Where flows go, as it is written: [`Destination`], or `ADDRESS/LENGTH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    address: String,
    port: Option<u16>,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains('/') {
            let prefix: IpNet = text
                .parse()
                .map_err(|_| "a prefix is an address and a length, as 192.0.2.0/24".to_owned())?;
            return Ok(Self {
                address: prefix.to_string(),
                port: None,
            });
        }
        let found = text.parse::<Destination>();
        let Destination { address, port } = found.map_err(|wrong| match wrong {
            NoDestination::Name(_) => {
                let host = text.rsplit_once(':').map_or(text, |(host, _)| host);
                format!(
                    "this is no address: resolve the name first (`getent ahosts {host}`) and name one of its \
                     addresses"
                )
            }
            wrong => wrong.to_string(),
        })?;
        Ok(Self { address, port })
    }
}

pub(super) fn flows(socket: &Path, args: FlowsArgs, json: bool) -> anyhow::Result<()> {
    let watch = args.watch;
    let asked = request(args);
    if watch {
        return self::watch(socket, &asked, json);
    }
    let reply = call(socket, &asked)?;
    if json {
        return print_json(&reply);
    }
    let mut page = Page::new();
    write(&mut page, &asked, &reply, None);
    page.print()
}

fn request(args: FlowsArgs) -> ListFlows {
    let family = match (args.ipv4, args.ipv6) {
        (true, _) => Some(AddressFamily::Ipv4),
        (_, true) => Some(AddressFamily::Ipv6),
        _ => None,
    };
    let (destination, port) = match args.destination {
        Some(Target { address, port }) => (Some(address), port),
        None => (None, None),
    };
    ListFlows {
        policy: args.policy,
        domain: args.domain,
        cgroup: args.cgroup,
        pid: args.pid,
        destination,
        port: port.map(u32::from),
        family,
        all: args.all.then_some(true),
        order: args.sort.map(FlowOrder::from),
        limit: args.limit,
    }
}

/// Shows what comes until the agent or the reader goes.
fn watch(socket: &Path, asked: &ListFlows, json: bool) -> anyhow::Result<()> {
    let terminal = io::stdout().is_terminal();
    let mut changes = Changes::default();
    let watched = Client::persist(socket, PERSISTENCE, |client| {
        let mut parts = client.parts(asked, Some(PATIENCE))?;
        loop {
            let (reply, continues) = parts.receive()?;
            let shown = if json {
                one_line(&reply)
            } else if terminal {
                redraw(asked, &reply)
            } else {
                write_out(&changes.since(&reply))
            };
            match shown {
                Ok(()) if continues => {}
                other => return Ok(other),
            }
        }
    });
    ended(watched)
}

fn one_line(reply: &FlowsReply) -> anyhow::Result<()> {
    let value = serde_json::to_value(reply).context("put the answer into JSON")?;
    write_out(&format!("{value}\n"))
}

/// Draws over what was there, as far as there are lines.
fn redraw(asked: &ListFlows, reply: &FlowsReply) -> anyhow::Result<()> {
    let lines = terminal_size_of(io::stdout()).map_or(LINES, |(_, height)| height.0.into());
    let mut page = Page::new();
    write(&mut page, asked, reply, Some(lines.saturating_sub(1)));
    // From the top left corner; each line is cleared to its end, and what is below.
    let mut text = "\x1b[H".to_owned();
    for line in page.text().lines() {
        text.push_str(line);
        text.push_str("\x1b[K\n");
    }
    text.push_str("\x1b[J");
    write_out(&text)
}

/// Writes a table. `lines`: how many there may be.
fn write(page: &mut Page, asked: &ListFlows, reply: &FlowsReply, lines: Option<usize>) {
    for note in &reply.notes {
        page.line(&format!("note: {note}"), Look::Warning);
    }
    if reply.flows.is_empty() {
        return page.line(none(asked), Look::Plain);
    }
    let before = page.text().len();
    let mut shown = reply.flows.len();
    loop {
        table(page, reply.flows.get(..shown).unwrap_or_default());
        let omitted = reply.omitted + (reply.flows.len() - shown) as u64;
        if omitted > 0 {
            page.line(
                &format!("and {omitted} more (--limit, --sort)"),
                Look::Plain,
            );
        }
        let taken = page.text().lines().count();
        match lines {
            Some(lines) if taken > lines && shown > 1 => {
                page.cut(before);
                // Rows take a line at least.
                shown = shown.saturating_sub((taken - lines).div_ceil(4)).max(1);
            }
            _ => return,
        }
    }
}

fn none(asked: &ListFlows) -> &'static str {
    let filtered = ListFlows {
        order: None,
        limit: None,
        ..asked.clone()
    };
    if filtered == ListFlows::default() {
        if nix::unistd::geteuid().is_root() {
            "no live flow of a policy (--all shows those of no policy, too)"
        } else {
            "no live flow of yours that a policy has (--all shows those of no policy, too)"
        }
    } else {
        "no live flow is like that"
    }
}

fn table(page: &mut Page, flows: &[LiveFlowView]) {
    let rows = flows.iter().map(|flow| {
        vec![
            flow.policy.as_deref().unwrap_or("-").into(),
            processes(flow).into(),
            Cell::name(&by(flow)).look(look(flow)),
            Cell::name(&count(flow.sent_bytes)),
            Cell::name(&count(flow.received_bytes)),
            Cell::name(&since(flow)),
            words(flow).into(),
        ]
    });
    page.table(
        &[
            "POLICY", "PROCESS", "DOMAIN", "SENT", "RECEIVED", "AGE", "FLOW",
        ],
        rows.collect(),
    );
}

fn look(flow: &LiveFlowView) -> Look {
    match flow.whereabouts {
        Whereabouts::Steered => Look::Good,
        Whereabouts::Host => Look::Plain,
        Whereabouts::Wrong => Look::Bad,
    }
}

/// Where it leaves, in one word.
fn by(flow: &LiveFlowView) -> String {
    match (flow.whereabouts, &flow.domain) {
        (Whereabouts::Steered, Some(domain)) => domain.clone(),
        (Whereabouts::Wrong, _) => "wrong".to_owned(),
        _ => "host".to_owned(),
    }
}

/// The first of the processes; numbers take as many columns as they may have digits.
fn processes(flow: &LiveFlowView) -> String {
    match flow.processes.as_slice() {
        [] => "-".to_owned(),
        [one] => format!("{:7} {}", one.pid, one.command),
        [first, more @ ..] => format!("{:7} {} +{}", first.pid, first.command, more.len()),
    }
}

fn count(number: Option<u64>) -> String {
    number.map_or_else(|| "-".to_owned(), bytes)
}

fn since(flow: &LiveFlowView) -> String {
    let older = if flow.age_exact { "" } else { ">" };
    format!("{older}{}", age(flow.age))
}

/// Protocol and ends, what is wrong, and the cgroup.
fn words(flow: &LiveFlowView) -> String {
    let end = |address: &Option<String>, port: Option<u32>| {
        let address = address.as_deref().unwrap_or("*");
        match port {
            Some(port) if address.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6()) => {
                format!("[{address}]:{port}")
            }
            Some(port) => format!("{address}:{port}"),
            None => address.to_owned(),
        }
    };
    let mut text = format!(
        "{} {} from {}",
        flow.protocol,
        end(&flow.destination, flow.destination_port),
        end(&flow.source, flow.source_port)
    );
    if let Some(wrong) = &flow.wrong {
        text.push_str(&format!(" ({wrong})"));
    }
    if let Some(cgroup) = &flow.cgroup {
        text.push(' ');
        text.push_str(cgroup);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::Target;

    #[test]
    fn a_target_is_an_address_a_prefix_or_an_address_and_a_port() {
        for (text, read) in [
            ("192.0.2.1", Some(("192.0.2.1", None))),
            ("192.0.2.1:443", Some(("192.0.2.1", Some(443)))),
            ("[2001:db8::1]:443", Some(("2001:db8::1", Some(443)))),
            ("192.0.2.0/24", Some(("192.0.2.0/24", None))),
            ("2001:db8::/32", Some(("2001:db8::/32", None))),
            ("192.0.2.0/33", None),
            ("example.org/24", None),
            ("example.org", None),
        ] {
            let target = text.parse::<Target>().ok();
            let target = target.as_ref().map(|t| (t.address.as_str(), t.port));
            assert_eq!(target, read, "{text}");
        }
    }
}
