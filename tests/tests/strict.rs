//! Strict policies: by their domains or not at all, whatever the program tries and whatever happens to
//! domain and agent. Every absence is asserted on every uplink.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use steer_tests::report::{DISCARD_PORT, ECHO_PORT, Report};
use steer_tests::{Agent, Family, Kind, Lab, LabCgroup, Probe, conformance, matrix};

fn strict(lab: &Lab) -> Result<(Agent<'_>, LabCgroup)> {
    let agent = lab.start_agent()?;
    let app = lab.cgroup().child("app")?;
    // The other domains have tables, too: the hardest case.
    for uplink in ["eth0", "wwan0"] {
        lab.set_policy(uplink, &lab.cgroup().child(uplink)?, uplink, &[])?;
    }
    lab.set_policy("app", &app, "wlan0", &["--strict"])?;
    Ok((agent, app))
}

/// No IP packet from or to `target` on any uplink but `wlan0`, where it may be. (An ARP request is the
/// kernel's own, without a socket; it precedes the packet that the guard then drops.)
fn nothing_elsewhere(lab: &Lab, target: IpAddr, what: &str, reports: &[Report]) -> Result<()> {
    lab.drain()?;
    let strays: Vec<_> = lab
        .capture()
        .packets(|p| p.is_about(target) && p.is_ip() && p.target.is_none() && p.uplink != "wlan0")
        .iter()
        .map(ToString::to_string)
        .collect();
    ensure!(
        strays.is_empty(),
        "{what}: left elsewhere:\n{}\n{reports:#?}",
        strays.join("\n")
    );
    Ok(())
}

#[test]
fn socket_options_that_lead_elsewhere_are_refused() -> Result<()> {
    let lab = Lab::new()?;
    let (_agent, app) = strict(&lab)?;
    for option in [
        "mark=0x1",
        "mark=0",
        "device=eth0",
        "ifindex=eth0",
        "unicast-if=eth0",
    ] {
        for (kind, family) in matrix() {
            let target = family.target(&lab);
            let reports = Probe::flow(kind, family, target)
                .first(&format!("set {option}"))
                .first("set timeout=300")
                .run(&lab, &app)?;
            let what = format!("{option} {kind:?} {family:?}");
            ensure!(
                reports.get(2).is_some_and(|r| r.errno_name == "EPERM"),
                "{what} should be refused with EPERM: {reports:#?}"
            );
            nothing_elsewhere(&lab, target, &what, &reports)?;
        }
    }
    for family in [Family::V6, Family::Mapped] {
        let target = family.target(&lab);
        let reports = Probe::flow(Kind::UdpUnconnected, family, target)
            .first("set pktinfo6=eth0")
            .first("set timeout=300")
            .run(&lab, &app)?;
        ensure!(
            reports.get(2).is_some_and(|r| r.errno_name == "EPERM"),
            "{reports:#?}"
        );
        nothing_elsewhere(&lab, target, "sticky IPV6_PKTINFO", &reports)?;
    }
    Ok(())
}

#[test]
fn another_domains_address_cannot_be_bound() -> Result<()> {
    let lab = Lab::new()?;
    let (_agent, app) = strict(&lab)?;
    for (family, address) in [
        (Family::V4, "10.1.0.2"),
        (Family::V6, "2001:db8:1::2"),
        (Family::Mapped, "10.1.0.2"),
    ] {
        for kind in [Kind::Tcp, Kind::UdpConnected, Kind::UdpUnconnected] {
            let target = family.target(&lab);
            let reports = Probe::flow(kind, family, target)
                .first(&format!("bind {address}"))
                .first("set timeout=300")
                .run(&lab, &app)?;
            ensure!(
                reports.get(2).is_some_and(|r| r.errno_name == "EPERM"),
                "{kind:?} {family:?}: {reports:#?}"
            );
            nothing_elsewhere(&lab, target, &format!("{kind:?} {family:?}"), &reports)?;
        }
    }
    conformance::row(
        "LIN-3",
        "a strict policy refuses to bind another domain's address",
    )
}

#[test]
fn its_own_address_can_be_bound() -> Result<()> {
    let lab = Lab::new()?;
    let (_agent, app) = strict(&lab)?;
    for (family, address) in [(Family::V4, "10.2.0.2"), (Family::V6, "2001:db8:2::2")] {
        for kind in [Kind::Tcp, Kind::UdpConnected, Kind::UdpUnconnected] {
            let target = family.target(&lab);
            Probe::flow(kind, family, target)
                .first(&format!("bind {address}"))
                .succeed(&lab, &app)?;
            lab.assert_only_by("wlan0", target)?;
        }
    }
    Ok(())
}

#[test]
fn control_messages_and_hand_made_packets_reach_no_other_uplink() -> Result<()> {
    let lab = Lab::new()?;
    let (_agent, app) = strict(&lab)?;
    for (family, eth0, wlan0) in [
        (Family::V4, "10.1.0.2", "10.2.0.2"),
        (Family::V6, "2001:db8:1::2", "2001:db8:2::2"),
    ] {
        let extras = [
            "pktinfo=eth0".to_owned(),
            format!("pktinfo={eth0}"),
            "mark=0x1".to_owned(),
            "mark=0".to_owned(),
        ];
        for extra in &extras {
            let target = family.target(&lab);
            let to = SocketAddr::new(target, DISCARD_PORT);
            let reports = Probe::new(Kind::UdpUnconnected, family)
                .then(&format!("post token {to} {extra}"))
                .then(&format!("post token {to} {extra}"))
                .run(&lab, &app)?;
            nothing_elsewhere(&lab, target, &format!("{family:?} {extra}"), &reports)?;
        }
        for kind in ["header", "packet"] {
            for (source, device) in [(eth0, "eth0"), (wlan0, "eth0"), (eth0, "wwan0")] {
                let target = family.target(&lab);
                let to = SocketAddr::new(target, DISCARD_PORT);
                let reports = Probe::named(kind, family)
                    .then(&format!("set source={source}"))
                    .then(&format!("set device={device}"))
                    .then(&format!("post token {to}"))
                    .run(&lab, &app)?;
                let what = format!("{kind} {family:?} {source} by {device}");
                nothing_elsewhere(&lab, target, &what, &reports)?;
            }
        }
        // By its own domain, but with a foreign source.
        let target = family.target(&lab);
        let to = SocketAddr::new(target, DISCARD_PORT);
        let reports = Probe::named("packet", family)
            .then(&format!("set source={eth0}"))
            .then("set device=wlan0")
            .then(&format!("post token {to}"))
            .run(&lab, &app)?;
        lab.assert_silent(target)
            .with_context(|| format!("a foreign source: {reports:#?}"))?;
    }
    Ok(())
}

#[test]
fn a_packet_socket_cannot_go_round_the_queue() -> Result<()> {
    let lab = Lab::new()?;
    let (_agent, app) = strict(&lab)?;
    let target = lab.target4();
    let reports = Probe::named("packet", Family::V4)
        .then("set qdisc-bypass=1")
        .then("set source=10.1.0.2")
        .then("set device=eth0")
        .then(&format!(
            "post token {}",
            SocketAddr::new(target, DISCARD_PORT)
        ))
        .run(&lab, &app)?;
    ensure!(
        reports.get(1).is_some_and(|r| r.errno_name == "EPERM"),
        "{reports:#?}"
    );
    nothing_elsewhere(&lab, target, "PACKET_QDISC_BYPASS", &reports)
}

#[test]
fn sockets_made_before_the_policy_reach_no_other_uplink() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    let app = lab.cgroup().child("app")?;
    for (kind, family) in matrix() {
        let word = match kind {
            Kind::Tcp => "tcp",
            Kind::UdpConnected | Kind::UdpUnconnected => "udp",
            Kind::Ping => "ping",
            Kind::Raw => "raw",
        };
        let start = lab.position()?;
        let target = family.target(&lab);
        let to = SocketAddr::new(target, ECHO_PORT);
        lab.steer(&["policy", "unset", "app"])?;
        let mut session = Probe::new(kind, family).start(&lab, &app)?;
        session.succeed("set device=eth0").with_context(|| word)?;
        lab.set_policy("app", &app, "wlan0", &["--strict"])?;
        session.succeed("set timeout=300")?;
        if matches!(kind, Kind::Tcp | Kind::UdpConnected) {
            session.perform(&format!("connect {to}"))?;
            session.perform("send stray")?;
        } else {
            session.perform(&format!("send stray {to}"))?;
        }
        lab.drain()?;
        let strays = lab.capture().since(start, |p| {
            p.is_about(target) && p.uplink != "wlan0" && p.is_ip()
        });
        ensure!(strays.is_empty(), "{kind:?} {family:?}: {strays:?}");
    }
    Ok(())
}

#[test]
fn strict_policy_stays_silent_when_its_domain_is_gone() -> Result<()> {
    let lab = Lab::new()?;
    let (_agent, app) = strict(&lab)?;
    lab.matrix_leaves_by(&app, "wlan0")?;
    lab.carrier_down("wlan0")?;
    lab.wait_decision("app", "verdict", "block")?;
    lab.matrix_is_refused(&app, None)?;
    lab.delete_link("wlan0")?;
    lab.matrix_is_refused(&app, None)?;
    lab.create_link("wlan0")?;
    lab.wait_decision("app", "domain", "wlan0")?;
    lab.matrix_leaves_by(&app, "wlan0")
}

#[test]
fn a_live_flow_reaches_no_other_uplink_when_its_domain_goes() -> Result<()> {
    let lab = Lab::new()?;
    let (_agent, app) = strict(&lab)?;
    for (kind, family) in [
        (Kind::Tcp, Family::V4),
        (Kind::Tcp, Family::V6),
        (Kind::UdpConnected, Family::V4),
        (Kind::UdpConnected, Family::V6),
    ] {
        let target = family.target(&lab);
        let mut session = Probe::new(kind, family).start(&lab, &app)?;
        session.succeed("set timeout=300")?;
        session.succeed(&format!("connect {}", SocketAddr::new(target, ECHO_PORT)))?;
        session.succeed("send before")?;
        lab.link_down("wlan0")?;
        for number in 0..3 {
            session.perform(&format!("send during-{number}"))?;
        }
        nothing_elsewhere(&lab, target, &format!("{kind:?} {family:?}"), &[])?;
        lab.link_up("wlan0")?;
        lab.wait_decision("app", "domain", "wlan0")?;
    }
    Ok(())
}

#[test]
fn strict_policy_holds_while_the_agent_is_dead() -> Result<()> {
    let lab = Lab::new()?;
    let (mut agent, app) = strict(&lab)?;
    agent.kill()?;
    lab.matrix_leaves_by(&app, "wlan0")
        .context("the last decision")?;
    let child = app.child("born-later")?;
    lab.matrix_leaves_by(&child, "wlan0")
        .context("a cgroup born meanwhile")?;
    let reports = Probe::new(Kind::Tcp, Family::V4)
        .then("set device=eth0")
        .run(&lab, &app)?;
    ensure!(
        reports.get(1).is_some_and(|r| r.errno_name == "EPERM"),
        "{reports:#?}"
    );
    lab.link_down("wlan0")?;
    lab.matrix_is_refused(&app, None)
        .context("the domain gone, no agent")?;
    lab.delete_link("wlan0")?;
    lab.matrix_is_refused(&app, None)
        .context("the interface deleted, no agent")?;
    lab.create_link("wlan0")?;
    agent.start()?;
    lab.wait_decision("app", "domain", "wlan0")?;
    lab.matrix_leaves_by(&app, "wlan0")
}

#[test]
fn a_strict_policys_on_link_destinations_of_other_uplinks_are_not_reached_directly() -> Result<()> {
    let lab = Lab::new()?;
    let (_agent, app) = strict(&lab)?;
    let gateway: IpAddr = "10.1.0.1".parse()?;
    let start = lab.position()?;
    Probe::flow(Kind::UdpUnconnected, Family::V4, gateway)
        .first("set timeout=300")
        .run(&lab, &app)?;
    lab.drain()?;
    let strays = lab.capture().since(start, |p| {
        p.destination == Some(gateway) && p.uplink != "wlan0" && p.is_ip()
    });
    ensure!(strays.is_empty(), "{strays:?}");
    Ok(())
}
