//! The host model: what an interface takes and sends for the host with addresses of other interfaces.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use steer_tests::report::{DISCARD_PORT, ECHO_PORT};
use steer_tests::{ARP, Direction, Family, Kind, Lab, Probe, conformance, ip, wait};

/// The peer's own addresses at `wlan0`, and the host's at `eth0`.
const FAMILIES: [(Family, &str, &str); 2] = [
    (Family::V4, "10.2.0.1", "10.1.0.2"),
    (Family::V6, "2001:db8:2::1", "2001:db8:1::2"),
];

/// A laboratory whose peer at `wlan0` knows the host's addresses at `eth0` behind it.
fn lab() -> Result<Lab> {
    let lab = Lab::new()?;
    let peer = lab.peer("wlan0")?;
    ip(peer, &["route", "add", "10.1.0.2/32", "via", "10.2.0.2"])?;
    let (to, via) = ("2001:db8:1::2/128", "2001:db8:2::2");
    ip(peer, &["-6", "route", "add", to, "via", via])?;
    Ok(lab)
}

/// Whether the host answers a ping that comes by the wire of `uplink`.
fn answers(lab: &Lab, uplink: &str, family: Family, from: &str, to: &str) -> Result<bool> {
    let mut ping = Probe::new(Kind::Raw, family).start_in(lab.peer(uplink)?)?;
    ping.succeed("set timeout=300")?;
    ping.succeed(&format!("bind {from}"))?;
    Ok(ping.perform(&format!("send echo {to}"))?.ok)
}

/// Whether a datagram of the host from an address of `eth0` leaves by `wlan0`.
fn sends(lab: &Lab, family: Family, from: &str, to: &str) -> Result<bool> {
    let start = lab.position()?;
    let to = SocketAddr::new(to.parse()?, DISCARD_PORT);
    Probe::new(Kind::UdpUnconnected, family)
        .then(&format!("bind {from}"))
        .then(&format!("post token {to}"))
        .run(lab, &lab.cgroup().child("nobody")?)?;
    lab.drain()?;
    let from: IpAddr = from.parse()?;
    let left = lab.capture().since(start, |p| {
        p.uplink == "wlan0" && p.direction == Direction::FromHost && p.source == Some(from)
    });
    Ok(!left.is_empty())
}

/// Whether the host answers at `wlan0` who has the address of `eth0`.
fn tells(lab: &Lab) -> Result<bool> {
    let peer = lab.peer("wlan0")?;
    let asked: IpAddr = "10.1.0.2".parse()?;
    let start = lab.position()?;
    ip(peer, &["route", "replace", "10.1.0.2/32", "dev", "peer"])?;
    Probe::new(Kind::UdpUnconnected, Family::V4)
        .then("post who-has 10.1.0.2:9")
        .start_in(peer)?;
    let is_request = |p: &steer_tests::Packet| p.ethertype == ARP && p.destination == Some(asked);
    wait::until("the peer to ask", || {
        let requests = lab
            .capture()
            .since(start, |p| is_request(p) && p.direction == Direction::ToHost);
        Ok((!requests.is_empty()).then_some(()))
    })?;
    // The peer asks three times, and gives up then.
    let end = || {
        let neighbours = ip(peer, &["neighbour", "show", "10.1.0.2"])?;
        Ok((!neighbours.contains("INCOMPLETE")).then_some(neighbours))
    };
    let neighbours = wait::until("the peer to know", end)?;
    ip(peer, &["neighbour", "flush", "to", "10.1.0.2"])?;
    ip(
        peer,
        &["route", "replace", "10.1.0.2/32", "via", "10.2.0.2"],
    )?;
    Ok(neighbours.contains("lladdr"))
}

/// What `steer domain show --json` says of the host model.
fn shown(lab: &Lab, domain: &str) -> Result<(String, [u64; 3])> {
    let shown = lab.steer(&["domain", "show", domain, "--json"])?.json()?;
    let model = shown.get("host_model").context("a host model")?;
    let count = |key: &str| model.get(key).and_then(serde_json::Value::as_u64);
    let counts = ["received", "asked", "sent"].map(|key| count(key).unwrap_or(u64::MAX));
    let word = model.get("model").and_then(serde_json::Value::as_str);
    Ok((word.context("a word")?.to_owned(), counts))
}

/// Programs of the host model that are attached, by their pins.
fn attached(lab: &Lab) -> Result<Vec<String>> {
    lab.host().run(|| {
        let mut found = Vec::new();
        for layout in std::fs::read_dir("/sys/fs/bpf/steer").context("list pins")? {
            let Ok(links) = std::fs::read_dir(layout?.path().join("links")) else {
                continue;
            };
            for link in links {
                let name = link?.file_name().to_string_lossy().into_owned();
                if name.starts_with("ingress-") || name.starts_with("host-egress-") {
                    found.push(name);
                }
            }
        }
        Ok(found)
    })
}

/// All ways in and out at `wlan0` with addresses of `eth0` are as `open` says.
fn all_are(lab: &Lab, open: bool, what: &str) -> Result<()> {
    for (family, near, far) in FAMILIES {
        ensure!(
            answers(lab, "wlan0", family, near, far)? == open,
            "{what}: {family:?} arrivals"
        );
        ensure!(
            sends(lab, family, far, near)? == open,
            "{what}: {family:?} departures"
        );
    }
    ensure!(tells(lab)? == open, "{what}: ARP");
    Ok(())
}

/// What has to go on under every host model.
fn the_rest_goes_on(lab: &Lab, what: &str) -> Result<()> {
    let nobody = lab.cgroup().child("nobody")?;
    for (uplink, number) in [("eth0", 1), ("wlan0", 2)] {
        for (family, near, own) in [
            (
                Family::V4,
                format!("10.{number}.0.1"),
                format!("10.{number}.0.2"),
            ),
            (
                Family::V6,
                format!("2001:db8:{number}::1"),
                format!("2001:db8:{number}::2"),
            ),
        ] {
            ensure!(
                answers(lab, uplink, family, &near, &own)?,
                "{what}: {uplink}'s own {own} should be answered"
            );
        }
    }
    for kind in Kind::ALL {
        for family in [Family::V4, Family::V6] {
            let target = family.target(lab);
            Probe::flow(kind, family, target)
                .succeed(lab, &nobody)
                .with_context(|| format!("{what}: {kind:?} {family:?}"))?;
        }
    }
    let neighbour = lab.peer_link_local("wlan0")?;
    Probe::new(Kind::UdpUnconnected, Family::V6)
        .then(&format!("send link-local [{neighbour}%wlan0]:{ECHO_PORT}"))
        .succeed(lab, &nobody)
        .with_context(|| format!("{what}: link-local"))?;
    let start = lab.position()?;
    for operation in [
        "post multicast 224.0.0.251:5353",
        "post broadcast 255.255.255.255:9",
    ] {
        Probe::new(Kind::UdpUnconnected, Family::V4)
            .then("set broadcast=1")
            .then("set device=wlan0")
            .then(operation)
            .succeed(lab, &nobody)?;
    }
    lab.drain()?;
    let left = lab.capture().since(start, |p| {
        p.uplink == "wlan0" && (p.carries("multicast") || p.carries("broadcast"))
    });
    ensure!(left.len() == 2, "{what}: multicast and broadcast: {left:?}");
    Ok(())
}

#[test]
fn without_a_host_model_nothing_is_attached_and_the_kernel_decides() -> Result<()> {
    let lab = lab()?;
    let _agent = lab.start_agent()?;
    ensure!(attached(&lab)?.is_empty(), "{:?}", attached(&lab)?);
    all_are(&lab, true, "kernel")?;
    ensure!(shown(&lab, "wlan0")? == ("kernel".to_owned(), [0; 3]));
    Ok(())
}

#[test]
fn a_strong_host_neither_takes_nor_sends_with_another_interfaces_address() -> Result<()> {
    let lab = lab()?;
    all_are(&lab, true, "before")?;
    lab.configure_agent("host-model = \"strong\"", "")?;
    let mut agent = lab.start_agent()?;
    all_are(&lab, false, "strong")?;
    the_rest_goes_on(&lab, "strong")?;
    let (model, counts) = shown(&lab, "wlan0")?;
    ensure!(
        model == "strong" && counts.iter().all(|count| (1..u64::MAX).contains(count)),
        "{model} {counts:?}"
    );
    ensure!(shown(&lab, "eth0")?.1 == [0; 3], "nothing came to eth0");

    // While the agent is dead, too.
    agent.kill()?;
    all_are(&lab, false, "strong, and the agent dead")?;
    agent.start()?;
    all_are(&lab, false, "strong, and the agent back")?;
    agent.stop()?;
    lab.steer(&["detach"])?.success()?;
    all_are(&lab, true, "detached")?;
    for row in ["AND-2", "WIN-4"] {
        conformance::row(
            row,
            "strong host model by configuration: arrivals, ARP and departures with another interface's \
             address, both families, also while the agent is dead",
        )?;
    }
    Ok(())
}

#[test]
fn a_domain_has_its_own_host_model() -> Result<()> {
    let lab = lab()?;
    let weak = "[domain.wlan0]\nhost-model = \"weak\"\n";
    lab.configure_agent("host-model = \"strong\"", weak)?;
    let _agent = lab.start_agent()?;
    all_are(&lab, true, "weak, where the others are strong")?;
    ensure!(shown(&lab, "wlan0")?.0 == "weak" && shown(&lab, "eth0")?.0 == "strong");
    // The other way round, by a reload.
    lab.configure("[domain.wlan0]\nhost-model = \"strong\"\n")?;
    lab.steer(&["reload"])?.success()?;
    all_are(&lab, false, "strong, where the others are the kernel's")?;
    ensure!(attached(&lab)?.len() == 2, "{:?}", attached(&lab)?);
    lab.configure("[domain.wlan0]\nhost-model = \"count\"\n")?;
    lab.steer(&["reload"])?.success()?;
    let (_, before) = shown(&lab, "wlan0")?;
    all_are(&lab, true, "count")?;
    let (model, after) = shown(&lab, "wlan0")?;
    ensure!(
        model == "count"
            && before
                .iter()
                .zip(after)
                .all(|(before, after)| after > *before),
        "{model}: {before:?} {after:?}"
    );
    lab.configure("")?;
    lab.steer(&["reload"])?.success()?;
    ensure!(attached(&lab)?.is_empty(), "{:?}", attached(&lab)?);
    for row in ["AND-2", "WIN-4"] {
        conformance::row(
            row,
            "weak or strong host model for each interface by itself, other than the host's",
        )?;
    }
    Ok(())
}

#[test]
fn a_strong_host_follows_its_addresses_and_interfaces() -> Result<()> {
    let lab = lab()?;
    lab.configure_agent("host-model = \"strong\"", "")?;
    let _agent = lab.start_agent()?;
    ip(
        lab.peer("wlan0")?,
        &["route", "add", "10.1.0.77/32", "via", "10.2.0.2"],
    )?;
    let from_wlan0 = |to: &str| answers(&lab, "wlan0", Family::V4, "10.2.0.1", to);
    lab.add_address("eth0", "10.1.0.77/24")?;
    wait::until("the new address to be eth0's alone", || {
        Ok((!from_wlan0("10.1.0.77")?).then_some(()))
    })?;
    lab.remove_address("eth0", "10.1.0.77/24")?;
    lab.add_address("wlan0", "10.1.0.77/32")?;
    wait::until("the address to be wlan0's", || {
        Ok(from_wlan0("10.1.0.77")?.then_some(()))
    })?;

    lab.delete_link("wlan0")?;
    lab.create_link("wlan0")?;
    ip(
        lab.peer("wlan0")?,
        &["route", "replace", "10.1.0.2/32", "via", "10.2.0.2"],
    )?;
    wait::until("the new interface to be strong", || {
        Ok((!from_wlan0("10.1.0.2")?).then_some(()))
    })?;
    ensure!(
        from_wlan0("10.2.0.2")?,
        "the new interface's own address should be answered"
    );
    Ok(())
}

#[test]
fn a_strong_host_forwards_and_knows_bridges_and_stacked_interfaces() -> Result<()> {
    let lab = Lab::builder().container().build()?;
    lab.configure_agent("host-model = \"strong\"", "")?;
    let _agent = lab.start_agent()?;
    let peer = lab.peer("eth0")?;
    ip(peer, &["route", "add", "172.17.0.0/16", "via", "10.1.0.2"])?;
    let from_eth0 = |to: &str| answers(&lab, "eth0", Family::V4, "10.1.0.1", to);
    ensure!(from_eth0("172.17.0.2")?, "the container behind the host");
    // A bridge's address, like one of the loopback interface, is another interface's.
    ensure!(!from_eth0("172.17.0.1")?, "the bridge's address");
    lab.ip(&["address", "add", "203.0.113.7/32", "dev", "lo"])?;
    ip(peer, &["route", "add", "203.0.113.7/32", "via", "10.1.0.2"])?;
    wait::until("the loopback interface's address to be closed", || {
        Ok((!from_eth0("203.0.113.7")?).then_some(()))
    })?;
    // Nobody said anything of the bridge, which is no domain.
    ensure!(
        answers(&lab, "docker0", Family::V4, "172.17.0.2", "10.1.0.2")?,
        "the container asks the host's address"
    );

    // What is stacked on an interface is reached through it, and has a host model of its own.
    let stack = [
        "link", "add", "mv0", "link", "eth0", "type", "macvlan", "mode", "bridge",
    ];
    lab.ip(&stack)?;
    lab.ip(&["link", "set", "mv0", "up"])?;
    lab.ip(&["address", "add", "10.1.0.99/24", "dev", "mv0"])?;
    wait::until("mv0 to be a domain", || {
        Ok((lab.steer(&["domain", "show", "mv0"])?.code == 0).then_some(()))
    })?;
    ensure!(shown(&lab, "mv0")?.0 == "strong");
    ip(peer, &["neighbour", "flush", "to", "10.1.0.99"])?;
    ensure!(from_eth0("10.1.0.99")?, "the macvlan's address");
    Ok(())
}
