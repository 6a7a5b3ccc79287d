//! Very many domains at once, each with its mark, its table and its flows; and one too many.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use steer_tests::report::ECHO_PORT;
use steer_tests::{Direction, Family, Kind, Lab, Probe, Snapshot, Uplink, conformance, matrix};

/// A host with `count` uplinks beside its default one.
fn crowd(count: u16) -> Result<Lab> {
    Lab::builder()
        .uplinks([Uplink::new("eth0", 1)])
        .crowd(count)
        .build()
}

/// A policy for a cgroup of its own for each of the first `count` domains; every fourth is strict.
fn policies(lab: &Lab, count: u16) -> Result<String> {
    let mut text = String::new();
    for number in 0..count {
        let cgroup = lab.cgroup().child(&format!("app{number}"))?;
        let (name, strict) = (cgroup.name(), number % 4 == 0);
        write!(
            text,
            "[policy.app{number}]\nmatch.cgroup = \"{name}\"\nuse = [\"d{number}\"]\nstrict = {strict}\n"
        )?;
    }
    Ok(text)
}

/// All applications have a flow at the same time, and each leaves by its own domain alone.
fn all_flow(lab: &Lab, count: u16) -> Result<()> {
    let kinds: Vec<(Kind, Family)> = matrix().collect();
    let mut flows = Vec::new();
    for (number, (kind, family)) in (0..count).zip(kinds.iter().cycle()) {
        let cgroup = lab.cgroup().child(&format!("app{number}"))?;
        let target = family.target(lab);
        let to = SocketAddr::new(target, ECHO_PORT);
        let mut session = Probe::new(*kind, *family).start(lab, &cgroup)?;
        let connects = matches!(kind, Kind::Tcp | Kind::UdpConnected);
        if connects {
            session
                .succeed(&format!("connect {to}"))
                .with_context(|| format!("d{number} {kind:?} {family:?}"))?;
        }
        flows.push((number, target, connects, session));
    }
    for (number, target, connects, session) in &mut flows {
        let to = SocketAddr::new(*target, ECHO_PORT);
        let to = if *connects {
            String::new()
        } else {
            to.to_string()
        };
        session.ask(&format!("send token-{number} {to}"))?;
    }
    for (number, .., session) in &mut flows {
        let report = session.read()?;
        ensure!(report.ok, "d{number}: {report:?}");
    }
    lab.drain()?;
    let mut about: BTreeMap<IpAddr, Vec<_>> = BTreeMap::new();
    let targets: BTreeSet<IpAddr> = flows.iter().map(|(_, target, ..)| *target).collect();
    for packet in lab.capture().packets(|p| p.is_ip()) {
        for end in [packet.source, packet.destination].into_iter().flatten() {
            if targets.contains(&end) {
                about.entry(end).or_default().push(packet.clone());
            }
        }
    }
    for (number, target, ..) in &flows {
        let uplink = format!("d{number}");
        let own = lab.uplink(&uplink)?.addresses();
        let packets = about.get(target).context("nothing was sent")?;
        let is_right = |p: &&steer_tests::Packet| {
            p.uplink == uplink
                && (p.direction == Direction::ToHost || p.source.is_some_and(|s| own.contains(&s)))
        };
        let strays: Vec<_> = packets.iter().filter(|p| !is_right(p)).collect();
        ensure!(strays.is_empty(), "{uplink}: {strays:?}");
        let sent = |p: &steer_tests::Packet| p.direction == Direction::FromHost;
        ensure!(packets.iter().any(sent), "{uplink}: only answers");
    }
    Ok(())
}

/// Each domain has a rule for its mark, and a table with its own default route, in both families.
fn tables_are_there(lab: &Lab, count: u16) -> Result<()> {
    for family in ["-4", "-6"] {
        let rules = lab.ip_json(&[family, "rule", "show"])?;
        let rules = rules.as_array().context("a list of rules")?;
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let marked: BTreeMap<String, String> = rules
            .iter()
            .filter_map(|rule| Some((text(&rule["table"])?, text(&rule["fwmark"])?)))
            .collect();
        let marks: BTreeSet<&String> = marked.values().collect();
        let routes = lab.ip_json(&[family, "route", "show", "table", "all"])?;
        let routes = routes.as_array().context("a list of routes")?;
        for number in 0..count {
            let name = format!("d{number}");
            let has_mark = routes.iter().any(|route| {
                let table = text(&route["table"]);
                route["dst"] == "default"
                    && route["dev"] == name.as_str()
                    && table.is_some_and(|table| marked.contains_key(&table))
            });
            ensure!(has_mark, "{name} {family}: no table with a mark");
        }
        ensure!(
            marks.len() >= usize::from(count),
            "{family}: only {} marks",
            marks.len()
        );
    }
    Ok(())
}

/// A policy for `d{number}`, set by command.
fn set(lab: &Lab, number: u16) -> Result<Value> {
    let cgroup = lab.cgroup().child(&format!("app{number}"))?;
    lab.set_policy(&format!("app{number}"), &cgroup, &format!("d{number}"), &[])
}

/// One flow of the application of `d{number}` leaves by it.
fn flows_by(lab: &Lab, number: u16, kind: Kind, family: Family) -> Result<()> {
    let cgroup = lab.cgroup().child(&format!("app{number}"))?;
    let target = family.target(lab);
    Probe::flow(kind, family, target).succeed(lab, &cgroup)?;
    lab.assert_only_by(&format!("d{number}"), target).map(drop)
}

/// There is no mark for `d{number}`: that is said, its application has no way, and all others go on.
fn is_too_many(lab: &Lab, number: u16) -> Result<()> {
    let shown = set(lab, number)?;
    let words = shown.to_string();
    ensure!(words.contains("mark-mask"), "{shown:#}");
    let status = lab.steer(&["status", "--json"])?;
    ensure!(
        status.success()?.contains("mark-mask"),
        "status does not say it: {status:#?}"
    );
    flows_by(lab, number - 1, Kind::Tcp, Family::V4)?;
    let cgroup = lab.cgroup().child(&format!("app{number}"))?;
    for kind in [Kind::Tcp, Kind::UdpConnected, Kind::UdpUnconnected] {
        let target = lab.target4();
        let refused = Probe::flow(kind, Family::V4, target).run(lab, &cgroup)?;
        ensure!(
            refused
                .iter()
                .any(|report| report.errno_name == "ENETUNREACH"),
            "{kind:?}: {refused:?}"
        );
        lab.assert_silent(target)?;
    }
    Ok(())
}

#[test]
fn two_hundred_and_fifty_two_domains_at_once_with_a_wider_mask_and_one_too_many() -> Result<()> {
    const MANY: u16 = 252;
    let lab = crowd(256)?;
    for cgroup in ["agent", "cli"] {
        lab.cgroup().child(cgroup)?;
    }
    let before = Snapshot::take(&lab)?;
    lab.configure_agent("mark-mask = \"0xff000000\"", &policies(&lab, MANY)?)?;
    let mut agent = lab.start_agent()?;
    all_flow(&lab, MANY)?;
    tables_are_there(&lab, MANY)?;
    for number in MANY..255 {
        set(&lab, number)?;
        for (kind, family) in [(Kind::Tcp, Family::V6), (Kind::UdpUnconnected, Family::V4)] {
            flows_by(&lab, number, kind, family)?;
        }
    }
    is_too_many(&lab, 255)?;
    agent.stop()?;
    lab.steer(&["detach"])?.success()?;
    before.assert_same(&Snapshot::take(&lab)?)?;
    conformance::row(
        "LIN-1",
        "252 domains at once, each with its mark, table and flow, by every kind of socket; 255 with a mask of \
         eight bits, and the next is refused",
    )
}

#[test]
fn the_default_mask_has_room_for_sixty_three_domains() -> Result<()> {
    const MANY: u16 = 63;
    let lab = crowd(MANY + 1)?;
    lab.configure(&policies(&lab, MANY)?)?;
    let _agent = lab.start_agent()?;
    all_flow(&lab, MANY)?;
    is_too_many(&lab, MANY)
}
