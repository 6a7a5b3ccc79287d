//! What applications do with their sockets, and what steer makes of it: several destinations, several
//! connects, their own binds, devices and marks.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use steer_tests::report::{DISCARD_PORT, ECHO_PORT};
use steer_tests::{Family, Kind, Lab, Probe, conformance};

/// Bits of a mark that are steer's by default.
const MASK: u32 = 0x7700_0000;

#[test]
fn one_unconnected_socket_alternates_between_two_destinations() -> Result<()> {
    let lab = Lab::builder().rp_filter(1).build()?;
    let _agent = lab.start_agent()?;
    let app = lab.cgroup().child("app")?;
    lab.set_policy("app", &app, "wlan0", &[])?;
    for family in Family::ALL {
        let targets = [family.target(&lab), family.target(&lab)];
        let mut session = Probe::new(Kind::UdpUnconnected, family).start(&lab, &app)?;
        for round in 0..6 {
            let to = SocketAddr::new(targets[round % 2], ECHO_PORT);
            let report = session.succeed(&format!("send round-{round} {to}"))?;
            ensure!(
                report.uplink.as_deref() == Some("wlan0"),
                "{family:?} {round}: {report:?}"
            );
        }
        for target in targets {
            lab.assert_only_by("wlan0", target)
                .with_context(|| format!("{family:?}"))?;
        }
    }
    Ok(())
}

#[test]
fn one_udp_socket_connects_twice() -> Result<()> {
    let lab = Lab::builder().rp_filter(1).build()?;
    let _agent = lab.start_agent()?;
    let app = lab.cgroup().child("app")?;
    lab.set_policy("app", &app, "wlan0", &[])?;
    for family in Family::ALL {
        let mut session = Probe::new(Kind::UdpConnected, family).start(&lab, &app)?;
        for number in 0..2 {
            let target = family.target(&lab);
            session.succeed(&format!("connect {}", SocketAddr::new(target, ECHO_PORT)))?;
            session.succeed(&format!("send connect-{number}"))?;
            lab.assert_only_by("wlan0", target)
                .with_context(|| format!("{family:?} {number}"))?;
        }
    }
    Ok(())
}

#[test]
fn an_address_that_the_application_bound_is_respected() -> Result<()> {
    let lab = Lab::builder().rp_filter(1).build()?;
    let _agent = lab.start_agent()?;
    let app = lab.cgroup().child("app")?;
    lab.set_policy("app", &app, "wlan0", &[])?;
    // wwan0's domain must have its table, or nothing is known about its address.
    let other = lab.cgroup().child("other")?;
    lab.set_policy("other", &other, "wwan0", &[])?;
    for (own, foreign, family) in [
        ("10.2.0.2", "10.3.0.2", Family::V4),
        ("2001:db8:2::2", "2001:db8:3::2", Family::V6),
        ("10.2.0.2", "10.3.0.2", Family::Mapped),
    ] {
        for kind in [Kind::Tcp, Kind::UdpConnected, Kind::UdpUnconnected] {
            for (address, uplink) in [(own, "wlan0"), (foreign, "wwan0")] {
                let target = family.target(&lab);
                Probe::flow(kind, family, target)
                    .first(&format!("bind {address}"))
                    .succeed(&lab, &app)
                    .with_context(|| format!("{kind:?} {family:?} bound to {address}"))?;
                lab.assert_only_by(uplink, target)
                    .with_context(|| format!("{kind:?} {family:?} bound to {address}"))?;
            }
        }
    }
    conformance::row(
        "LIN-3",
        "an address that the application bound is kept, and leads to its interface",
    )
}

#[test]
fn a_device_that_the_application_bound_is_respected() -> Result<()> {
    let lab = Lab::builder().rp_filter(1).build()?;
    let _agent = lab.start_agent()?;
    let app = lab.cgroup().child("app")?;
    lab.set_policy("app", &app, "wlan0", &[])?;
    // Without a table of its own the host's strict reverse path filter drops what comes back by wwan0,
    // with steer or without.
    lab.set_policy("other", &lab.cgroup().child("other")?, "wwan0", &[])?;
    for (option, uplink) in [
        ("device=wlan0", "wlan0"),
        ("device=eth0", "eth0"),
        ("ifindex=wwan0", "wwan0"),
    ] {
        for kind in [Kind::Tcp, Kind::UdpConnected, Kind::UdpUnconnected] {
            for family in Family::ALL {
                let target = family.target(&lab);
                let report = Probe::flow(kind, family, target)
                    .first(&format!("set {option}"))
                    .last(&lab, &app)?;
                lab.assert_only_by(uplink, target)
                    .with_context(|| format!("{kind:?} {family:?} {option}: {report:?}"))?;
                ensure!(report.ok, "{kind:?} {family:?} {option}: {report:?}");
            }
        }
    }
    conformance::row(
        "LIN-3",
        "a device that the application bound is kept (SO_BINDTODEVICE, SO_BINDTOIFINDEX)",
    )
}

#[test]
fn an_interface_that_the_application_chose_is_respected() -> Result<()> {
    let lab = Lab::builder().rp_filter(1).build()?;
    let _agent = lab.start_agent()?;
    let app = lab.cgroup().child("app")?;
    lab.set_policy("app", &app, "wlan0", &[])?;
    lab.set_policy("other", &lab.cgroup().child("other")?, "wwan0", &[])?;
    // For TCP the kernel itself makes nothing of the option.
    let datagrams = [
        Kind::UdpConnected,
        Kind::UdpUnconnected,
        Kind::Ping,
        Kind::Raw,
    ];
    let flows = datagrams
        .into_iter()
        .flat_map(|kind| [(kind, Family::V4), (kind, Family::V6)]);
    for (kind, family) in flows {
        for uplink in ["wwan0", "wlan0"] {
            let target = family.target(&lab);
            Probe::flow(kind, family, target)
                .first(&format!("set unicast-if={uplink}"))
                .succeed(&lab, &app)
                .with_context(|| format!("{kind:?} {family:?} by {uplink}"))?;
            lab.assert_only_by(uplink, target)
                .with_context(|| format!("{kind:?} {family:?} by {uplink}"))?;
        }
    }
    conformance::row(
        "LIN-3",
        "an interface that the application chose is kept (IP_UNICAST_IF, IPV6_UNICAST_IF), by UDP, ping and raw \
         sockets",
    )
}

#[test]
fn whatever_kind_of_address_the_application_prefers_it_is_its_domains() -> Result<()> {
    let lab = Lab::new()?;
    // Every uplink has a permanent and a temporary address (RFC 8981).
    for (uplink, number) in [("eth0", 1), ("wlan0", 2), ("wwan0", 3)] {
        let path = format!("/proc/sys/net/ipv6/conf/{uplink}/use_tempaddr");
        lab.host().run(|| Ok(std::fs::write(&path, "1")?))?;
        let address = format!("2001:db8:{number}::beef/64");
        lab.ip(&[
            "address",
            "add",
            &address,
            "dev",
            uplink,
            "nodad",
            "mngtmpaddr",
        ])?;
    }
    let temporary = lab.ip_json(&["-6", "address", "show", "dev", "wlan0", "temporary"])?;
    let temporary = temporary
        .pointer("/0/addr_info/0/local")
        .and_then(serde_json::Value::as_str);
    let temporary: IpAddr = temporary.context("no temporary address")?.parse()?;
    let [public, other] = ["2001:db8:2::2", "2001:db8:2::beef"].map(|ip| ip.parse::<IpAddr>());
    // Of several that are as good, steer takes the lowest.
    let public = public?;
    let own = [public, other?, temporary];
    let _agent = lab.start_agent()?;
    let app = lab.cgroup().child("app")?;
    for strict in [&[][..], &["--strict"]] {
        lab.set_policy("app", &app, "wlan0", strict)?;
        for prefer in ["public", "temporary"] {
            for kind in Kind::ALL {
                let target = lab.target6();
                let what = || format!("{kind:?} that prefers {prefer}, {strict:?}");
                Probe::flow(kind, Family::V6, target)
                    .first(&format!("set prefer={prefer}"))
                    .succeed(&lab, &app)
                    .with_context(what)?;
                // Routes give raw and ping sockets their source, and the kernel then looks at no preference.
                let sources = match (kind, prefer) {
                    (Kind::Ping | Kind::Raw, _) => &own[..],
                    (_, "public") => &[public],
                    _ => &[temporary],
                };
                lab.assert_only_by_from("wlan0", target, sources)
                    .with_context(what)?;
            }
        }
    }
    conformance::row(
        "LIN-3",
        "the kind of address that the application prefers (RFC 5014) is taken from its domain, by TCP and UDP",
    )?;
    conformance::row(
        "INVARIANT-2",
        "an application that prefers temporary or public addresses (RFC 5014) gets none of another domain",
    )
}

#[test]
fn foreign_bits_of_a_mark_are_kept() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    let app = lab.cgroup().child("app")?;
    lab.set_policy("app", &app, "wlan0", &[])?;
    for family in [Family::V4, Family::V6] {
        let target = family.target(&lab);
        let mut session = Probe::new(Kind::UdpConnected, family).start(&lab, &app)?;
        let opened = session
            .reports()
            .first()
            .and_then(|r| r.mark)
            .context("a mark")?;
        ensure!(
            opened & MASK != 0 && opened & !MASK == 0,
            "a new socket has mark {opened:#x}"
        );
        // The application overwrites all bits, as programs do that know of no one else.
        session.succeed("set mark=0x1234")?;
        let report = session.succeed(&format!("connect {}", SocketAddr::new(target, ECHO_PORT)))?;
        let mark = report.mark.context("a mark")?;
        ensure!(mark & !MASK == 0x1234, "foreign bits are gone: {mark:#x}");
        ensure!(
            mark & MASK == opened & MASK,
            "the domain's bits are not there: {mark:#x}"
        );
        session.succeed("send marked")?;
        lab.assert_only_by("wlan0", target)?;
    }
    Ok(())
}

#[test]
fn sockets_without_a_policy_have_no_mark() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    let (app, other) = (lab.cgroup().child("app")?, lab.cgroup().child("other")?);
    lab.set_policy("app", &app, "wlan0", &[])?;
    for kind in Kind::ALL {
        let target = lab.target4();
        let report = Probe::flow(kind, Family::V4, target).succeed(&lab, &other)?;
        ensure!(report.mark == Some(0), "{kind:?}: {report:?}");
    }
    let report = Probe::flow(Kind::Tcp, Family::V4, lab.target4())
        .first("set mark=0x77")
        .succeed(&lab, &other)?;
    ensure!(
        report.mark == Some(0x77),
        "another's mark was touched: {report:?}"
    );
    Ok(())
}

#[test]
fn the_source_is_set_without_using_up_ports() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    let app = lab.cgroup().child("app")?;
    lab.set_policy("app", &app, "wlan0", &[])?;
    // Two ports in all: with one taken by bind, only connections to different destinations fit.
    lab.host().run(|| {
        Ok(std::fs::write(
            "/proc/sys/net/ipv4/ip_local_port_range",
            "40000 40001",
        )?)
    })?;
    let mut sessions = Vec::new();
    for number in 0..8 {
        let mut session = Probe::new(Kind::Tcp, Family::V4).start(&lab, &app)?;
        let to = SocketAddr::new(lab.target4(), ECHO_PORT);
        session
            .succeed(&format!("connect {to}"))
            .with_context(|| format!("connection {number}"))?;
        sessions.push(session);
    }
    Ok(())
}

#[test]
fn a_datagram_with_an_interface_in_its_control_message_goes_there() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    let app = lab.cgroup().child("app")?;
    lab.set_policy("app", &app, "wlan0", &[])?;
    let other = lab.cgroup().child("other")?;
    lab.set_policy("other", &other, "wwan0", &[])?;
    for (family, source) in [(Family::V4, "10.3.0.2"), (Family::V6, "2001:db8:3::2")] {
        let target = family.target(&lab);
        Probe::new(Kind::UdpUnconnected, family)
            .then(&format!(
                "post chosen {} pktinfo={source}",
                SocketAddr::new(target, DISCARD_PORT)
            ))
            .succeed(&lab, &app)?;
        lab.assert_only_by("wwan0", target)
            .with_context(|| format!("{family:?}"))?;
    }
    conformance::row(
        "LIN-3",
        "a source chosen by IP_PKTINFO or IPV6_PKTINFO is kept, and leads to its interface",
    )
}
