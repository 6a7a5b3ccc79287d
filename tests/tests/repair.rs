//! `repair = true`: what no socket program could decide leaves by the policy's domain with its source, seen
//! at the peers' end.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use steer_tests::report::ECHO_PORT;
use steer_tests::{Family, Kind, Lab, LabCgroup, Probe, Session, ip, ip_json, wait};

/// Gives `app` a policy by `wlan0` that repairs.
fn repair(lab: &Lab, app: &LabCgroup) -> Result<()> {
    let cgroup = app.name();
    lab.configure(&format!(
        "[policy.app]\nmatch.cgroup = \"{cgroup}\"\nuse = [\"wlan0\"]\nrepair = true\n"
    ))?;
    lab.steer(&["reload"])?.success()?;
    lab.wait_decision("app", "domain", "wlan0")
}

/// Takes it away again.
fn unset(lab: &Lab) -> Result<()> {
    lab.configure("")?;
    lab.steer(&["reload"])?.success().map(drop)
}

#[test]
fn connected_datagram_sockets_older_than_their_policy_are_repaired() -> Result<()> {
    for rp_filter in 0..=2 {
        let lab = Lab::builder().rp_filter(rp_filter).build()?;
        let app = lab.cgroup().child("app")?;
        let _agent = lab.start_agent()?;
        let mut flows = Vec::new();
        // The kernel sends a mapped socket's datagrams as if it were not connected.
        for family in [Family::V4, Family::V6] {
            let mut session = Probe::new(Kind::UdpConnected, family).start(&lab, &app)?;
            let target = SocketAddr::new(family.target(&lab), ECHO_PORT);
            session.succeed(&format!("connect {target}"))?;
            let report = session.succeed("send before")?;
            ensure!(report.uplink.as_deref() == Some("eth0"), "{report:?}");
            flows.push((family, session));
        }
        repair(&lab, &app)?;
        for (family, session) in &mut flows {
            let report = session.succeed("send repaired")?;
            ensure!(
                report.uplink.as_deref() == Some("wlan0"),
                "rp_filter {rp_filter} {family:?}: {report:?}"
            );
        }
        let status = lab.steer(&["status", "--json"])?.json()?;
        ensure!(status["counters"]["repaired"] == 2, "{status:#}");
        // Without its policy a flow is the host's again.
        unset(&lab)?;
        for (family, session) in &mut flows {
            wait::until("the flow to be the host's again", || {
                let report = session.succeed("send unset")?;
                Ok((report.uplink.as_deref() == Some("eth0")).then_some(()))
            })
            .with_context(|| format!("rp_filter {rp_filter} {family:?}"))?;
        }
    }
    Ok(())
}

/// A server behind `wlan0`, which takes one flow at `at`.
fn server(lab: &Lab, kind: Kind, family: Family, at: SocketAddr) -> Result<Session> {
    let mut server = Probe::new(kind, family).start_in(lab.peer("wlan0")?)?;
    server.succeed(&format!("bind {at}"))?;
    if kind == Kind::Tcp {
        server.succeed("listen")?;
    }
    server.succeed("set timeout=20000")?;
    Ok(server)
}

/// A flow of `app` that no socket program decided, and its server: a datagram socket that was connected
/// before the policy came, or a connection whose SYN was lost before, and sent again afterwards.
fn repaired_flow(
    lab: &Lab,
    app: &LabCgroup,
    kind: Kind,
    family: Family,
) -> Result<(Session, Session)> {
    unset(lab)?;
    let at = SocketAddr::new(family.target(lab), 5000);
    let mut server = server(lab, kind, family, at)?;
    let eth0 = lab.uplink("eth0")?;
    let own = if at.is_ipv4() {
        eth0.address4()
    } else {
        eth0.address6()
    };
    let own = own.context("an address of eth0")?.to_string();
    let hole = ["route", "add", "blackhole", &own];
    ip(lab.peer("eth0")?, &hole)?;
    let mut client = Probe::new(kind, family).start(lab, app)?;
    client.succeed("set timeout=20000")?;
    client.ask(&format!("connect {at}"))?;
    if kind == Kind::Tcp {
        wait::until("the SYN to be sent", || {
            Ok(has_begun(lab, family)?.then_some(()))
        })?;
        repair(lab, app)?;
        ensure!(client.read()?.ok, "not connected");
    } else {
        ensure!(client.read()?.ok, "not connected");
        repair(lab, app)?;
        client.succeed("post hello")?;
    }
    ip(lab.peer("eth0")?, &["route", "delete", "blackhole", &own])?;
    let seen = server.succeed("accept")?.peer.context("a client")?;
    let wlan0 = lab.uplink("wlan0")?.addresses();
    let seen: IpAddr = seen.ip().to_canonical();
    ensure!(wlan0.contains(&seen), "the server sees {seen}");
    server.succeed("set timeout=20000")?;
    Ok((client, server))
}

/// Whether a connection at the host waits for its SYN's answer (`TCP_SYN_SENT`).
fn has_begun(lab: &Lab, family: Family) -> Result<bool> {
    let file = match family {
        Family::V4 => "/proc/thread-self/net/tcp",
        _ => "/proc/thread-self/net/tcp6",
    };
    let table = lab.host().run(|| Ok(std::fs::read_to_string(file)?))?;
    let state = |line: &str| line.split_whitespace().nth(3).map(str::to_owned);
    Ok(table
        .lines()
        .any(|line| state(line).as_deref() == Some("02")))
}

/// Frames and bytes that the peer behind `uplink` has received.
fn received(lab: &Lab, uplink: &str) -> Result<(u64, u64)> {
    let shown = ip_json(
        lab.peer(uplink)?,
        &["-stats", "link", "show", "dev", "peer"],
    )?;
    let count = |what: &str| shown.pointer(&format!("/0/stats64/rx/{what}"))?.as_u64();
    let counts = count("packets").zip(count("bytes"));
    counts.with_context(|| format!("no counts: {shown}"))
}

/// Sends `bytes` from one to the other, which compares each of them.
fn transfer(from: &mut Session, to: &mut Session, bytes: u64) -> Result<()> {
    to.ask(&format!("gulp {bytes}"))?;
    let sent = from.perform(&format!("pump {bytes}"))?;
    let got = to.read()?;
    ensure!(
        sent.ok && got.ok && (got.tried, got.failed) == (bytes, 0),
        "{bytes} bytes: {sent:?} {got:?}"
    );
    Ok(())
}

#[test]
fn large_transfers_by_repaired_flows_arrive_byte_by_byte_both_ways() -> Result<()> {
    // A packet socket could not keep up: which way it goes is told by the interfaces' counts.
    let lab = Lab::builder().rp_filter(1).unobserved().build()?;
    let app = lab.cgroup().child("app")?;
    let _agent = lab.start_agent()?;
    for (kind, family, bytes) in [
        (Kind::Tcp, Family::V4, 1 << 30),
        (Kind::Tcp, Family::V6, 1 << 28),
        (Kind::UdpConnected, Family::V4, 1 << 26),
        (Kind::UdpConnected, Family::V6, 1 << 24),
    ] {
        let what = || format!("{kind:?} {family:?}");
        let (mut client, mut server) =
            repaired_flow(&lab, &app, kind, family).with_context(what)?;
        if kind == Kind::UdpConnected {
            for end in [&mut client, &mut server] {
                end.succeed("set segment=1400")?;
            }
        }
        let before = (received(&lab, "wlan0")?, received(&lab, "eth0")?);
        transfer(&mut client, &mut server, bytes).with_context(what)?;
        let after = (received(&lab, "wlan0")?, received(&lab, "eth0")?);
        let frames = after.0.0 - before.0.0;
        ensure!(after.0.1 - before.0.1 >= bytes, "{}: not by wlan0", what());
        ensure!(after.1.1 - before.1.1 < 1 << 20, "{}: by eth0", what());
        ensure!(
            bytes / frames > 4_000,
            "{}: {frames} frames are not large ones that the receiver's side cuts",
            what()
        );
        transfer(&mut server, &mut client, bytes).with_context(what)?;
        let repaired = lab.steer(&["status", "--json"])?.json()?["counters"]["repaired"].clone();
        ensure!(
            repaired.as_u64().is_some_and(|count| count > 100),
            "{}: {repaired}",
            what()
        );
    }
    Ok(())
}
