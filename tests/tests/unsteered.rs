//! What no policy matches behaves as if steer were not installed: its packets are the same with and
//! without an agent, policies, strict policies and repair.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use steer_tests::load::{Load, Way};
use steer_tests::{Direction, Family, Kind, Lab, LabCgroup, Packet, Probe, conformance, matrix};

/// What of a packet the network sees: uplink, protocol, source, port, TOS, TTL and TCP flags.
type Look = (
    String,
    Option<u8>,
    Option<IpAddr>,
    Option<u16>,
    Option<u8>,
    Option<u8>,
    u8,
);

fn look(packet: &Packet) -> Look {
    (
        packet.uplink.clone(),
        packet.protocol,
        packet.source,
        packet.destination_port,
        packet.tos,
        packet.ttl,
        packet.tcp_flags,
    )
}

/// What an application does with its socket first; addresses by family.
const WAYS: [(&str, Option<&str>, Option<&str>); 7] = [
    ("as it comes", None, None),
    ("with a TOS", Some("set tos=0x28"), Some("set tos=0x28")),
    (
        "with a device",
        Some("set device=wlan0"),
        Some("set device=wlan0"),
    ),
    (
        "with an interface",
        Some("set unicast-if=wlan0"),
        Some("set unicast-if=wlan0"),
    ),
    (
        "with a mark that a rule of the host's looks for",
        Some("set mark=0x5"),
        Some("set mark=0x5"),
    ),
    (
        "with the address of the default interface",
        Some("bind 10.1.0.2"),
        Some("bind 2001:db8:1::2"),
    ),
    ("with any address", Some("bind 0.0.0.0"), Some("bind ::")),
];

/// How packets of every kind look that `cgroup` sends in every way, and what its sockets report.
fn looks(lab: &Lab, cgroup: &LabCgroup) -> Result<Vec<(String, BTreeSet<Look>)>> {
    let position = lab.position()?;
    let mut flows = Vec::new();
    for (way, v4, v6) in WAYS {
        for (kind, family) in matrix() {
            let target = family.target(lab);
            let mut probe = Probe::flow(kind, family, target);
            let first = if family == Family::V6 { v6 } else { v4 };
            if let Some(first) = first {
                probe = probe.first(first);
            }
            let reports = probe.first("set timeout=500").run(lab, cgroup)?;
            let said: Vec<_> = reports
                .iter()
                .map(|report| (report.errno_name.as_str(), report.mark))
                .collect();
            flows.push((target, format!("{way} {kind:?} {family:?} {said:?}")));
        }
    }
    lab.drain()?;
    // How many acknowledgements there are is a matter of time.
    let sent = lab.capture().since(position, |p| {
        p.is_ip()
            && p.direction == Direction::FromHost
            && (p.protocol != Some(6) || p.tcp_flags & 2 != 0 || !p.payload.is_empty())
    });
    let mut by_target: BTreeMap<IpAddr, BTreeSet<Look>> = BTreeMap::new();
    for packet in &sent {
        if let Some(to) = packet.destination {
            by_target.entry(to).or_default().insert(look(packet));
        }
    }
    let of = |(target, name)| (name, by_target.get(&target).cloned().unwrap_or_default());
    Ok(flows.into_iter().map(of).collect())
}

fn policy(lab: &Lab, name: &str, via: &str, more: &str) -> Result<String> {
    let cgroup = lab.cgroup().child(name)?;
    Ok(format!(
        "[policy.{name}]\nmatch.cgroup = \"{}\"\nuse = [\"{via}\"]\n{more}\n",
        cgroup.name()
    ))
}

#[test]
fn what_no_policy_matches_is_sent_as_without_steer() -> Result<()> {
    let lab = Lab::builder().rp_filter(2).build()?;
    for (family, via) in [("-4", "10.3.0.1"), ("-6", "2001:db8:3::1")] {
        lab.ip(&[
            family, "route", "add", "default", "via", via, "dev", "wwan0", "table", "100",
        ])?;
        lab.ip(&[
            family, "rule", "add", "fwmark", "0x5", "lookup", "100", "priority", "5000",
        ])?;
    }
    let free = lab.cgroup().child("free")?;
    let without = looks(&lab, &free)?;
    ensure!(
        without.iter().filter(|(_, sent)| !sent.is_empty()).count() > without.len() / 2,
        "little was sent: {without:#?}"
    );
    let steady = lab.cgroup().child("steady")?;
    let load = Load::start(
        &lab,
        &steady,
        &[Way::Connection, Way::Connected, Way::Unconnected, Way::Raw],
    )?;
    let same = |what: &str| -> Result<()> {
        let now = looks(&lab, &free)?;
        for (before, now) in without.iter().zip(&now) {
            ensure!(
                before == now,
                "{what}: {now:#?}\nnot as without steer: {before:#?}"
            );
        }
        Ok(())
    };

    lab.configure("")?;
    let mut agent = lab.start_agent()?;
    same("an agent, and no policy")?;
    let mut policies = String::new();
    for (name, via, more) in [
        ("first", "eth0", ""),
        ("second", "wlan0", ""),
        ("strict", "wwan0", "strict = true"),
        ("closed", "wlan0", "strict = true"),
        ("repaired", "wlan0", "repair = true"),
    ] {
        policies += &policy(&lab, name, via, more)?;
    }
    lab.configure(&policies)?;
    lab.steer(&["reload"])?.success()?;
    for (name, uplink) in [
        ("first", "eth0"),
        ("second", "wlan0"),
        ("strict", "wwan0"),
        ("closed", "wlan0"),
        ("repaired", "wlan0"),
    ] {
        let cgroup = lab.cgroup().child(name)?;
        lab.flow_leaves_by(&cgroup, uplink, Kind::Tcp, Family::V4)
            .context("others are steered")?;
    }
    same("others are steered, strict and repaired")?;
    agent.kill()?;
    same("the agent is dead")?;
    agent.start()?;
    same("the agent is back")?;
    agent.stop()?;
    lab.steer(&["detach"])?.success()?;
    same("detached")?;
    load.finish_complete(&lab, "eth0")
        .context("what ran all the time")?;
    conformance::row(
        "INVARIANT-3",
        "what no policy matches is sent as without steer (uplink, source, TOS, TTL, marks, errors), by every kind \
         of socket and option, beside policies, strict ones and repair, and nothing of it is lost",
    )
}

#[test]
fn only_what_is_bound_to_a_domains_address_leaves_by_that_domain_while_a_policy_needs_it()
-> Result<()> {
    let lab = Lab::new()?;
    let free = lab.cgroup().child("free")?;
    let leaves_by = |what: &str, uplink: &str| -> Result<()> {
        for (family, address) in [(Family::V4, "10.2.0.2"), (Family::V6, "2001:db8:2::2")] {
            let target = family.target(&lab);
            Probe::flow(Kind::UdpConnected, family, target)
                .first(&format!("bind {address}"))
                .first("set timeout=200")
                .run(&lab, &free)?;
            lab.assert_only_by_from(uplink, target, &[address.parse()?])
                .with_context(|| what.to_owned())?;
        }
        Ok(())
    };
    leaves_by("without steer", "eth0")?;
    lab.configure("")?;
    let _agent = lab.start_agent()?;
    leaves_by("no policy needs it", "eth0")?;
    lab.set_policy("other", &lab.cgroup().child("other")?, "wlan0", &[])?;
    leaves_by("a policy needs it", "wlan0")?;
    lab.steer(&["policy", "unset", "other"])?.success()?;
    leaves_by("no policy needs it any more", "eth0")?;
    conformance::row(
        "INVARIANT-3",
        "the one change made on purpose: what is bound to a domain's address leaves by it, only while a policy \
         needs that domain",
    )
}
