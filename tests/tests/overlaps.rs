//! The same IPv4 address on two uplinks, and the same server address behind both: every flow stays with
//! its domain, servers answer by the way they were asked, and a strict policy finds no way out.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use steer_tests::foreign::nft;
use steer_tests::report::{DISCARD_PORT, ECHO_PORT};
use steer_tests::{
    Agent, Direction, Family, Kind, Lab, Probe, Session, Snapshot, Uplink, conformance,
};

/// The address that `wlan0` and `wwan0` share.
const SHARED: &str = "10.9.0.2";

const DOMAINS: &str = "
    [domain.one]
    match.interface = \"wlan0\"
    sources = [\"10.9.0.2\"]
    [domain.two]
    match.interface = \"wwan0\"
    sources = [\"10.9.0.2\"]
";

/// The domains that share the address, and their uplinks.
const BOTH: [(&str, &str); 2] = [("one", "wlan0"), ("two", "wwan0")];

/// Two uplinks with one address, one gateway's address and one set of servers, and a third one that the
/// host prefers.
fn shared(rp_filter: u8) -> Result<Lab> {
    let same = |name: &str, number: u8| {
        Uplink::new(name, number)
            .ipv4([10, 9, 0, 2], 16, [10, 9, 0, 1])
            .serves("10.77.0.0/16")
            .serves("10.9.77.0/24")
    };
    Lab::builder()
        .rp_filter(rp_filter)
        .uplinks([Uplink::new("eth0", 1), same("wlan0", 2), same("wwan0", 3)])
        .build()
}

/// An agent with a policy of its own for an application on each of the two.
fn steered<'lab>(lab: &'lab Lab, more: &[&str]) -> Result<Agent<'lab>> {
    lab.configure(DOMAINS)?;
    let agent = lab.start_agent()?;
    for (domain, uplink) in BOTH {
        lab.set_policy(uplink, &lab.cgroup().child(uplink)?, domain, more)?;
    }
    Ok(agent)
}

/// Everything that was sent or answered with `token` crossed `uplink` alone, from the shared address.
fn crossed_only(lab: &Lab, uplink: &str, token: &str) -> Result<()> {
    lab.drain()?;
    let packets = lab.capture().packets(|p| p.carries(token));
    let list = || packets.iter().map(|p| format!("{p}\n")).collect::<String>();
    let from: IpAddr = SHARED.parse()?;
    ensure!(
        packets.iter().any(|p| p.direction == Direction::FromHost),
        "{token} was not sent"
    );
    for packet in &packets {
        let right = packet.uplink == uplink
            && (packet.direction == Direction::ToHost || packet.source == Some(from));
        ensure!(right, "{token} should cross {uplink} alone:\n{}", list());
    }
    Ok(())
}

#[test]
fn flows_of_two_applications_to_one_server_address_and_port_stay_apart() -> Result<()> {
    for (rp_filter, more) in [(0, &[][..]), (1, &[]), (1, &["--strict"])] {
        let lab = shared(rp_filter)?;
        let _agent = steered(&lab, more)?;
        // Far away, of a private range that both networks use, and on-link at both.
        for target in [lab.target4(), "10.77.0.10".parse()?, "10.9.77.10".parse()?] {
            let to = SocketAddr::new(target, ECHO_PORT);
            for kind in Kind::ALL {
                let what = format!("{kind:?} to {to}, rp_filter {rp_filter}, {more:?}");
                let connects = matches!(kind, Kind::Tcp | Kind::UdpConnected);
                let mut sessions: Vec<(&str, Session)> = Vec::new();
                for (_, uplink) in BOTH {
                    let app = lab.cgroup().child(uplink)?;
                    sessions.push((uplink, Probe::new(kind, Family::V4).start(&lab, &app)?));
                }
                if connects {
                    for (uplink, session) in &mut sessions {
                        session
                            .succeed(&format!("connect {to}"))
                            .with_context(|| format!("{what} via {uplink}"))?;
                    }
                }
                for turn in 0..3 {
                    for (uplink, session) in &mut sessions {
                        let token = format!("{uplink}-{turn}-{kind:?}-{target};");
                        let send = if connects {
                            format!("send {token}")
                        } else {
                            format!("send {token} {to}")
                        };
                        let report = session
                            .succeed(&send)
                            .with_context(|| format!("{what} via {uplink}"))?;
                        ensure!(
                            !kind.is_answered_by_server()
                                || report.uplink.as_deref() == Some(*uplink),
                            "{what} via {uplink}: another answered: {report:?}"
                        );
                        crossed_only(&lab, uplink, &token).with_context(|| what.clone())?;
                    }
                }
            }
        }
    }
    for row in ["S60-6", "BB-2", "AMSS-4"] {
        conformance::row(
            row,
            "the same IPv4 address on two uplinks: flows of every kind to the same server address and port \
             at the same time, each with its own server behind it",
        )?;
    }
    Ok(())
}

/// A client behind each uplink asks the shared address; both have the same address, too.
fn asked_on_both(lab: &Lab, from: &str, bound: &str, cgroup: &str) -> Result<()> {
    let what = format!("from {from}, bound to {bound}, in {cgroup}");
    let mut server = Probe::new(Kind::Tcp, Family::V4).start(lab, &lab.cgroup().child(cgroup)?)?;
    let port = server
        .succeed(&format!("bind {bound}:0"))?
        .local
        .context("a port")?
        .port();
    server.succeed("listen")?;
    let mut clients = Vec::new();
    for (_, uplink) in BOTH {
        let mut client = Probe::new(Kind::Tcp, Family::V4).start_in(lab.peer(uplink)?)?;
        client.succeed(&format!("bind {from}"))?;
        client
            .succeed(&format!("connect {SHARED}:{port}"))
            .with_context(|| format!("{what} by {uplink}"))?;
        clients.push((uplink, client));
    }
    for (uplink, client) in &mut clients {
        let token = format!("{uplink}-{port}-{cgroup};");
        server.ask("serve")?;
        client
            .succeed(&format!("send {token}"))
            .with_context(|| format!("{what} by {uplink}"))?;
        ensure!(server.read()?.ok, "{what}: the server failed");
        crossed_only(lab, uplink, &token).with_context(|| what.clone())?;
    }
    Ok(())
}

#[test]
fn servers_on_a_shared_address_answer_by_the_way_they_were_asked() -> Result<()> {
    for rp_filter in [0, 1] {
        let lab = shared(rp_filter)?;
        let _agent = steered(&lab, &[])?;
        for (cgroup, bound) in [
            ("other", "0.0.0.0"),
            ("other", SHARED),
            ("wlan0", "0.0.0.0"),
            ("wlan0", SHARED),
            ("wwan0", SHARED),
        ] {
            let client = lab.target4().to_string();
            asked_on_both(&lab, &client, bound, cgroup)
                .with_context(|| format!("rp_filter {rp_filter}"))?;
        }
    }
    Ok(())
}

#[test]
fn marks_of_others_on_what_arrives_lead_no_answer_astray() -> Result<()> {
    let lab = shared(1)?;
    nft(
        &lab,
        "table inet others {
            chain pre {
                type filter hook prerouting priority raw; policy accept;
                meta mark set meta mark | 0x1
            }
            chain in {
                type filter hook input priority filter; policy accept;
                meta mark & 0x77000000 != 0 meta mark & 0x1 == 0x1 counter
            }
        }\n",
    )?;
    let _agent = steered(&lab, &[])?;
    for (cgroup, bound) in [("other", "0.0.0.0"), ("wlan0", SHARED)] {
        let client = lab.target4().to_string();
        asked_on_both(&lab, &client, bound, cgroup)?;
    }
    let counted = nft(&lab, "list table inet others\n")?;
    ensure!(
        !counted.contains("packets 0 "),
        "both kinds of bits should be on what arrives: {counted}"
    );
    Ok(())
}

#[test]
fn the_kernels_own_answers_from_a_shared_address_go_home() -> Result<()> {
    let lab = shared(1)?;
    let _agent = steered(&lab, &[])?;
    for (_, uplink) in BOTH {
        let client = lab.target4();
        let token = format!("ping-{uplink}");
        let mut ping = Probe::new(Kind::Raw, Family::V4).start_in(lab.peer(uplink)?)?;
        ping.succeed(&format!("bind {client}"))?;
        ping.succeed(&format!("send {token} {SHARED}"))?;
        crossed_only(&lab, uplink, &token)?;
        let mut refused = Probe::new(Kind::Tcp, Family::V4)
            .then(&format!("bind {client}"))
            .start_in(lab.peer(uplink)?)?;
        let report = refused.perform(&format!("connect {SHARED}:1"))?;
        ensure!(report.errno_name == "ECONNREFUSED", "{uplink}: {report:?}");
    }
    Ok(())
}

#[test]
fn a_strict_policy_does_not_leak_by_the_other_holder_of_its_address() -> Result<()> {
    let lab = shared(0)?;
    let mut agent = steered(&lab, &["--strict"])?;
    let app = lab.cgroup().child("wlan0")?;
    let silent_elsewhere = |what: &str, target: IpAddr| -> Result<()> {
        lab.drain()?;
        let strays = lab
            .capture()
            .packets(|p| p.is_about(target) && p.is_ip() && p.uplink != "wlan0");
        ensure!(strays.is_empty(), "{what}: left elsewhere: {strays:?}");
        Ok(())
    };
    for extra in [
        "pktinfo=wwan0",
        "pktinfo=10.9.0.2",
        "mark=0",
        "mark=0x2000000",
    ] {
        let target = lab.target4();
        let to = SocketAddr::new(target, DISCARD_PORT);
        Probe::new(Kind::UdpUnconnected, Family::V4)
            .then(&format!("post token {to} {extra}"))
            .then(&format!("post token {to} {extra}"))
            .run(&lab, &app)?;
        silent_elsewhere(extra, target)?;
    }
    for kind in ["header", "packet"] {
        let target = lab.target4();
        Probe::named(kind, Family::V4)
            .then(&format!("set source={SHARED}"))
            .then("set device=wwan0")
            .then(&format!("post token {target}:{DISCARD_PORT}"))
            .run(&lab, &app)?;
        silent_elsewhere(kind, target)?;
    }
    // Bound to the shared address, which is its own domain's too.
    for kind in [Kind::Tcp, Kind::UdpConnected, Kind::UdpUnconnected] {
        let target = lab.target4();
        Probe::flow(kind, Family::V4, target)
            .first(&format!("bind {SHARED}"))
            .succeed(&lab, &app)?;
        silent_elsewhere(&format!("{kind:?} bound"), target)?;
    }
    // Its domain goes, and with it the only way.
    let mut live = Vec::new();
    for kind in [Kind::Tcp, Kind::UdpConnected] {
        let target = lab.target4();
        let mut session = Probe::new(kind, Family::V4).start(&lab, &app)?;
        session.succeed(&format!("connect {}", SocketAddr::new(target, ECHO_PORT)))?;
        session.succeed("send before")?;
        session.succeed("set timeout=300")?;
        live.push((target, session));
    }
    lab.carrier_down("wlan0")?;
    for dead in [false, true] {
        if dead {
            agent.kill()?;
        }
        for (target, session) in &mut live {
            session.perform("send after")?;
            silent_elsewhere("a flow of a lost domain", *target)?;
        }
        for kind in Kind::ALL {
            let target = lab.target4();
            Probe::flow(kind, Family::V4, target)
                .first("set timeout=300")
                .run(&lab, &app)?;
            silent_elsewhere(&format!("{kind:?} after the loss"), target)?;
        }
    }
    conformance::row(
        "AMSS-4",
        "strict policies on two uplinks with the same address: no packet by the other one",
    )
}

#[test]
fn settings_for_a_shared_address_are_made_on_request_and_come_back() -> Result<()> {
    let lab = shared(0)?;
    let before = Snapshot::take(&lab)?;
    let read = |name: &str| -> Result<String> {
        let path = format!("/proc/sys/net/ipv4/{name}");
        lab.host()
            .run(|| Ok(std::fs::read_to_string(&path)?.trim().to_owned()))
    };
    let names = [
        "conf/wlan0/src_valid_mark",
        "conf/wwan0/src_valid_mark",
        "tcp_fwmark_accept",
        "fwmark_reflect",
    ];
    let mut agent = steered(&lab, &[])?;
    for name in names {
        ensure!(read(name)? == "1", "{name} is not set");
    }
    ensure!(
        read("conf/eth0/src_valid_mark")? == "0" && read("conf/all/src_valid_mark")? == "0",
        "more than was asked for"
    );
    agent.stop()?;
    lab.steer(&["detach"])?.success()?;
    before.assert_same(&Snapshot::take(&lab)?)
}
