//! Servers under a policy answer every client by the way it came.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use steer_tests::{Direction, Family, Kind, Lab, Probe, conformance};

/// A client beyond each uplink's router asks the host's address on that uplink.
///
/// Other applications' policies need the other domains: one that no policy needs has no table, and the
/// host answers by its own routes, as without steer.
fn clients_on_every_uplink_are_answered(kind: Kind, rp_filter: u8, strict: bool) -> Result<()> {
    let lab = Lab::builder().rp_filter(rp_filter).build()?;
    let _agent = lab.start_agent()?;
    let app = lab.cgroup().child("app")?;
    for uplink in ["eth0", "wwan0"] {
        lab.set_policy(uplink, &lab.cgroup().child(uplink)?, uplink, &[])?;
    }
    let mut port = 5000;
    let more: &[&str] = if strict { &["--strict"] } else { &[] };
    lab.set_policy("app", &app, "wlan0", more)?;
    for uplink in lab.uplink_names() {
        for (family, any) in [(Family::V4, "0.0.0.0"), (Family::V6, "::")] {
            let address = match family {
                Family::V4 => lab.uplink(uplink)?.address4(),
                _ => lab.uplink(uplink)?.address6(),
            }
            .context("an address")?;
            // UDP answers from the wildcard would leave as the host's routes say, steer or not.
            let bound = if kind == Kind::Tcp {
                any.to_owned()
            } else {
                address.to_string()
            };
            port += 1;
            let mut server = Probe::new(kind, family).start(&lab, &app)?;
            server.succeed(&format!("bind [{bound}]:{port}"))?;
            if kind == Kind::Tcp {
                server.succeed("listen")?;
            }
            server.ask("serve")?;
            let client = family.target(&lab);
            let mut session = Probe::new(kind, family).start_in(lab.peer(uplink)?)?;
            session.succeed("set timeout=700")?;
            session.succeed(&format!("bind {client}"))?;
            let connected =
                session.perform(&format!("connect {}", SocketAddr::new(address, port)))?;
            if strict && uplink != "wlan0" {
                // Strict: no packet by another domain, not even an answer.
                lab.drain()?;
                let strays = lab.capture().packets(|p| {
                    p.is_about(client)
                        && p.direction == Direction::FromHost
                        && p.is_ip()
                        && p.tcp_flags & 4 == 0
                });
                ensure!(
                    strays.is_empty(),
                    "{kind:?} {family:?} by {uplink}: {strays:?}"
                );
                continue;
            }
            let answered = connected.ok && session.perform("send hello")?.ok;
            lab.drain()?;
            ensure!(
                answered,
                "{kind:?} {family:?} by {uplink} is not answered:\n{}",
                lab.capture()
                    .about(client)
                    .iter()
                    .map(|p| format!("{p}\n"))
                    .collect::<String>()
            );
            ensure!(server.read()?.ok, "the server failed");
            lab.assert_only_by(uplink, client)
                .with_context(|| format!("{kind:?} {family:?} by {uplink}"))?;
        }
    }
    Ok(())
}

#[test]
fn a_tcp_server_under_a_policy_answers_clients_on_every_uplink() -> Result<()> {
    for mode in [0, 1] {
        clients_on_every_uplink_are_answered(Kind::Tcp, mode, false)?;
    }
    conformance::row(
        "P-4.2-4",
        "a server under a policy answers clients on every uplink by the way they asked, with the address they asked",
    )
}

#[test]
fn a_udp_server_under_a_policy_answers_clients_on_every_uplink() -> Result<()> {
    for mode in [0, 1] {
        clients_on_every_uplink_are_answered(Kind::UdpConnected, mode, false)?;
    }
    Ok(())
}

#[test]
fn a_server_without_a_policy_answers_as_it_was_asked_while_others_are_steered() -> Result<()> {
    let lab = Lab::builder().rp_filter(1).build()?;
    let _agent = lab.start_agent()?;
    let (app, other) = (lab.cgroup().child("app")?, lab.cgroup().child("other")?);
    lab.set_policy("app", &app, "wlan0", &[])?;
    let mut server = Probe::new(Kind::Tcp, Family::V4)
        .then("bind 0.0.0.0:5000")
        .then("listen")
        .start(&lab, &other)?;
    server.ask("serve")?;
    let client = lab.target4();
    let mut session = Probe::new(Kind::Tcp, Family::V4)
        .then(&format!("bind {client}"))
        .then("connect 10.2.0.2:5000")
        .start_in(lab.peer("wlan0")?)?;
    session.succeed("send hello")?;
    lab.assert_only_by("wlan0", client).map(drop)
}

#[test]
fn a_strict_server_answers_by_its_own_domain_only() -> Result<()> {
    clients_on_every_uplink_are_answered(Kind::Tcp, 0, true)
}
