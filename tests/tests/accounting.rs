//! How much was sent for each policy and by each domain: as captured, over the agent's death, and never less.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use steer_tests::report::{DISCARD_PORT, ECHO_PORT};
use steer_tests::{Direction, Family, Kind, Lab, LabCgroup, Packet, Probe, User, wait};

/// Bytes of Ethernet and IP headers of UDP and its own.
fn headers(packet: &Packet) -> u64 {
    match packet.destination {
        Some(ip) if ip.is_ipv4() => 14 + 20 + 8,
        _ => 14 + 40 + 8,
    }
}

/// What `steer policy show` says was sent by a domain.
fn of_policy(lab: &Lab, policy: &str, domain: &str) -> Result<Value> {
    let shown = lab.steer(&["policy", "show", policy, "--json"])?.json()?;
    let traffic = shown["traffic"].as_array().context("traffic")?;
    let mut by = traffic.iter().filter(|traffic| traffic["domain"] == domain);
    Ok(by.next().cloned().unwrap_or_default())
}

fn of_domain(lab: &Lab, domain: &str) -> Result<Value> {
    let shown = lab.steer(&["domain", "show", domain, "--json"])?.json()?;
    Ok(shown["traffic"].clone())
}

/// Datagrams of all families to new destinations; packets and bytes that were captured of them.
fn send(lab: &Lab, cgroup: &LabCgroup) -> Result<(u64, u64)> {
    let (mut count, mut bytes) = (0, 0);
    for family in Family::ALL {
        let target = family.target(lab);
        let to = SocketAddr::new(target, ECHO_PORT);
        let mut session = Probe::new(Kind::UdpUnconnected, family).start(lab, cgroup)?;
        for length in [10, 700] {
            session.succeed(&format!("send {} {to}", "x".repeat(length)))?;
        }
        lab.drain()?;
        let sent =
            |packet: &Packet| packet.is_about(target) && packet.direction == Direction::FromHost;
        for packet in lab.capture().packets(sent) {
            count += 1;
            bytes += headers(&packet) + packet.payload.len() as u64;
        }
    }
    ensure!(count == 6, "captured {count}");
    Ok((count, bytes))
}

#[test]
fn what_was_sent_is_told_as_captured_and_never_less() -> Result<()> {
    let lab = Lab::builder().rp_filter(1).build()?;
    let mut agent = lab.start_agent()?;
    let (web, mail) = (lab.cgroup().child("web")?, lab.cgroup().child("mail")?);
    lab.set_policy("web", &web, "wlan0", &[])?;
    lab.set_policy("mail", &mail, "wlan0", &["--strict"])?;
    // A domain stays as long as a policy can choose it.
    lab.set_policy("other", &lab.cgroup().child("other")?, "wlan0", &[])?;
    let mut expected = [(0, 0); 2];
    let mut since = Value::Null;
    for round in 0..2 {
        for (at, (policy, cgroup)) in [("web", &web), ("mail", &mail)].into_iter().enumerate() {
            let (packets, bytes) = send(&lab, cgroup)?;
            expected[at].0 += packets;
            expected[at].1 += bytes;
            let told = of_policy(&lab, policy, "wlan0")?;
            ensure!(
                (&told["packets"], &told["bytes"])
                    == (&expected[at].0.into(), &expected[at].1.into()),
                "{policy}, round {round}: {told}, not {:?}",
                expected[at]
            );
            ensure!(told["wrong"] == 0 && told["dropped"] == 0, "{told}");
            since = told["since"].clone();
            ensure!(since.is_string(), "{told}");
        }
        let all = of_domain(&lab, "wlan0")?;
        let bytes = expected[0].1 + expected[1].1;
        ensure!(all["bytes"] == bytes, "{all}, not {bytes}");
        let status = lab.steer(&["status"])?;
        let status = status.success()?;
        ensure!(
            status.contains("sent since") && status.contains("(all)"),
            "{status}"
        );
        // What is counted is the kernel's.
        agent.restart_after_kill()?;
    }
    // A policy that is gone takes nothing from its domain, not even for the next agent.
    let before = of_domain(&lab, "wlan0")?;
    lab.steer(&["policy", "unset", "web"])?.success()?;
    for _ in 0..2 {
        let after = of_domain(&lab, "wlan0")?;
        ensure!(after == before, "{after}, not {before}");
        agent.restart_after_kill()?;
    }
    ensure!(of_domain(&lab, "wlan0")?["since"] == since);
    Ok(())
}

#[test]
fn wrong_and_dropped_packets_are_told() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    for (policy, more, field) in [
        ("others", &[][..], "wrong"),
        ("strict", &["--strict"], "dropped"),
    ] {
        let cgroup = lab.cgroup().child(policy)?;
        let target = Family::V4.target(&lab);
        let to = SocketAddr::new(target, DISCARD_PORT);
        // Older than the policy, with eth0's source: a strict one would end it, so there a message names eth0.
        let mut sender = if field == "wrong" {
            Probe::new(Kind::UdpConnected, Family::V4)
                .then(&format!("connect {to}"))
                .start(&lab, &cgroup)?
        } else {
            Probe::named("udp", Family::V4).start(&lab, &cgroup)?
        };
        lab.set_policy(policy, &cgroup, "wlan0", more)?;
        sender.perform(&match field {
            "wrong" => "post token".to_owned(),
            _ => format!("post token {to} pktinfo=eth0"),
        })?;
        let told = wait::until("the count", || {
            let told = of_policy(&lab, policy, "wlan0")?;
            Ok((told[field] == 1).then_some(told))
        })?;
        let left = if field == "wrong" { 1 } else { 0 };
        ensure!(told["packets"] == left, "{told}");
        let shown = lab.steer(&["policy", "show", policy])?;
        ensure!(
            shown.unwrapped().contains(&format!("1 {field}")),
            "{shown:?}"
        );
        lab.drain()?;
        let captured = lab.capture().about(target).len();
        ensure!(captured as u64 == left, "{captured} captured");
    }
    Ok(())
}

#[test]
fn a_plain_user_is_not_told_what_others_send() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    let app = lab.cgroup().child("app")?;
    lab.set_policy("app", &app, "wlan0", &[])?;
    send(&lab, &app)?;
    let alice = User::new(4711);
    // It holds where she is, so that she sees it.
    for (args, path) in [
        (&["policy", "show", "app", "--json"][..], "/traffic"),
        (&["domain", "show", "wlan0", "--json"], "/traffic"),
        (&["status", "--json"], "/policies/0/traffic"),
    ] {
        let shown = lab.steer_as(&alice, &app, args)?.json()?;
        ensure!(
            shown.pointer(path) == Some(&Value::Null),
            "{args:?}: {shown}"
        );
        ensure!(
            lab.steer(args)?.json()?.pointer(path) != Some(&Value::Null),
            "{args:?}"
        );
    }
    Ok(())
}
