//! Routing around steered flows: what is never steered, awkward addressing, changes of interfaces,
//! addresses and rules, and hosts that others have arranged.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use steer_tests::report::ECHO_PORT;
use steer_tests::{Direction, Family, Kind, Lab, Probe, Snapshot, Uplink, conformance, wait};

#[test]
fn link_local_multicast_broadcast_and_dhcp_go_where_the_program_sends_them() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    let app = lab.cgroup().child("app")?;
    lab.set_policy("app", &app, "wlan0", &[])?;
    let seen = |token: &str| -> Result<()> {
        lab.drain()?;
        let packets = lab
            .capture()
            .packets(|p| p.carries(token) && p.direction == Direction::FromHost);
        ensure!(
            !packets.is_empty() && packets.iter().all(|p| p.uplink == "eth0"),
            "{token} should leave by eth0 alone: {packets:?}"
        );
        Ok(())
    };
    for (token, family, operations) in [
        (
            "dhcp4",
            Family::V4,
            vec![
                "set broadcast=1",
                "set device=eth0",
                "bind 0.0.0.0:68",
                "post dhcp4 255.255.255.255:67",
            ],
        ),
        (
            "broadcast",
            Family::V4,
            vec!["set broadcast=1", "post broadcast 10.1.0.255:9"],
        ),
        (
            "multicast4",
            Family::V4,
            vec!["set multicast-if=eth0", "post multicast4 224.0.0.251:5353"],
        ),
        (
            "multicast6",
            Family::V6,
            vec!["post multicast6 [ff02::fb%eth0]:5353"],
        ),
        (
            "dhcp6",
            Family::V6,
            vec!["bind [::]:546", "post dhcp6 [ff02::1:2%eth0]:547"],
        ),
    ] {
        let probe = operations
            .iter()
            .fold(Probe::new(Kind::UdpUnconnected, family), |p, op| p.then(op));
        probe.succeed(&lab, &app).with_context(|| token)?;
        seen(token)?;
    }
    let neighbour = lab.peer_link_local("eth0")?;
    let report = Probe::new(Kind::UdpUnconnected, Family::V6)
        .then(&format!("send link-local [{neighbour}%eth0]:{ECHO_PORT}"))
        .succeed(&lab, &app)?;
    ensure!(report.uplink.as_deref() == Some("eth0"), "{report:?}");
    let report = Probe::new(Kind::Tcp, Family::V6)
        .then(&format!("connect [{neighbour}%eth0]:{ECHO_PORT}"))
        .then("send link-local")
        .succeed(&lab, &app)?;
    ensure!(report.uplink.as_deref() == Some("eth0"), "{report:?}");
    Ok(())
}

#[test]
fn the_host_itself_is_reached_by_loopback() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    let app = lab.cgroup().child("app")?;
    for more in [&[][..], &["--strict"]] {
        lab.set_policy("app", &app, "wlan0", more)?;
        for (family, any, addresses) in [
            (Family::V4, "0.0.0.0", ["127.0.0.1", "10.1.0.2", "10.2.0.2"]),
            (Family::V6, "::", ["::1", "2001:db8:1::2", "2001:db8:2::2"]),
        ] {
            for address in addresses {
                let mut server =
                    Probe::new(Kind::UdpConnected, family).start(&lab, lab.cgroup())?;
                let bound = server.succeed(&format!("bind [{any}]:0"))?;
                let port = bound.local.context("a port")?.port();
                server.ask("serve")?;
                let to = SocketAddr::new(address.parse()?, port);
                let mut client = Probe::new(Kind::UdpConnected, family).start(&lab, &app)?;
                client
                    .succeed(&format!("connect {to}"))
                    .with_context(|| format!("{more:?} {to}"))?;
                client
                    .succeed("send hello")
                    .with_context(|| format!("{more:?} {to}"))?;
            }
        }
    }
    Ok(())
}

#[test]
fn overlapping_prefixes_on_two_uplinks_are_kept_apart() -> Result<()> {
    let overlapping = |name: &str, number: u8| {
        Uplink::new(name, number)
            .ipv4([10, number, 0, 2], 8, [10, number, 0, 1])
            .serves("10.77.0.0/16")
    };
    let lab = Lab::builder()
        .rp_filter(1)
        .uplinks([
            overlapping("eth0", 1),
            overlapping("wlan0", 2),
            Uplink::new("wwan0", 3),
        ])
        .build()?;
    let _agent = lab.start_agent()?;
    let target: IpAddr = "10.77.0.10".parse()?;
    for uplink in ["wlan0", "eth0"] {
        let app = lab.cgroup().child(uplink)?;
        lab.set_policy(uplink, &app, uplink, &[])?;
        for kind in [
            Kind::Tcp,
            Kind::UdpConnected,
            Kind::UdpUnconnected,
            Kind::Ping,
            Kind::Raw,
        ] {
            let start = lab.position()?;
            Probe::flow(kind, Family::V4, target)
                .succeed(&lab, &app)
                .with_context(|| format!("{kind:?} via {uplink}"))?;
            lab.drain()?;
            let strays = lab
                .capture()
                .since(start, |p| p.is_about(target) && p.uplink != uplink);
            ensure!(strays.is_empty(), "{kind:?} via {uplink}: {strays:?}");
        }
    }
    conformance::row(
        "P-4.2-3",
        "10.0.0.0/8 on-link at two interfaces: each application reaches the host behind its own",
    )
}

#[test]
fn the_same_ipv4_address_on_two_uplinks_is_told_apart_and_settings_come_back() -> Result<()> {
    let lab = Lab::builder()
        .uplinks([
            Uplink::new("eth0", 1),
            Uplink::new("wlan0", 2).ipv4([10, 9, 0, 2], 24, [10, 9, 0, 1]),
            Uplink::new("wwan0", 3).ipv4([10, 9, 0, 2], 24, [10, 9, 0, 1]),
        ])
        .build()?;
    let before = Snapshot::take(&lab)?;
    let mut agent = lab.start_agent()?;
    for uplink in ["wlan0", "wwan0"] {
        let app = lab.cgroup().child(uplink)?;
        lab.set_policy(uplink, &app, uplink, &[])?;
    }
    for uplink in ["wlan0", "wwan0"] {
        let app = lab.cgroup().child(uplink)?;
        for kind in Kind::ALL {
            lab.flow_leaves_by(&app, uplink, kind, Family::V4)?;
        }
    }
    agent.stop()?;
    lab.steer(&["detach"])?.success()?;
    before.assert_same(&Snapshot::take(&lab)?)
}

#[test]
fn a_domain_with_only_a_link_local_ipv6_address_has_no_ipv6() -> Result<()> {
    let lab = Lab::builder()
        .uplinks([
            Uplink::new("eth0", 1),
            Uplink::new("wlan0", 2).without_ipv6(),
        ])
        .build()?;
    let _agent = lab.start_agent()?;
    let app = lab.cgroup().child("app")?;
    lab.set_policy("app", &app, "wlan0", &["--otherwise", "block"])?;
    lab.flow_leaves_by(&app, "wlan0", Kind::Tcp, Family::V4)?;
    for kind in Kind::ALL {
        let target = lab.target6();
        let reports = Probe::flow(kind, Family::V6, target)
            .first("set timeout=300")
            .run(&lab, &app)?;
        let refused = reports.iter().find(|r| !r.ok);
        ensure!(
            refused.is_some_and(|r| r.errno_name == "ENETUNREACH"),
            "{kind:?}: {reports:?}"
        );
        lab.assert_silent(target)
            .with_context(|| format!("{kind:?}"))?;
    }
    Ok(())
}

#[test]
fn an_address_removed_under_live_flows_leaves_no_packet_with_a_foreign_source() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    let app = lab.cgroup().child("app")?;
    lab.set_policy("app", &app, "wlan0", &[])?;
    let start = lab.position()?;
    for (family, address) in [
        (Family::V4, "10.2.0.2/24"),
        (Family::V6, "2001:db8:2::2/64"),
    ] {
        let mut sessions = Vec::new();
        for kind in [Kind::Tcp, Kind::UdpConnected] {
            let target = family.target(&lab);
            let mut session = Probe::new(kind, family).start(&lab, &app)?;
            session.succeed("set timeout=300")?;
            session.succeed(&format!("connect {}", SocketAddr::new(target, ECHO_PORT)))?;
            session.succeed("send before")?;
            sessions.push(session);
        }
        lab.remove_address("wlan0", address)?;
        for session in &mut sessions {
            for number in 0..3 {
                session.perform(&format!("send during-{number}"))?;
            }
        }
        lab.assert_sources_match(start)
            .with_context(|| format!("{family:?}"))?;
        lab.link_up("wlan0")?;
        lab.wait_decision("app", "domain", "wlan0")?;
    }
    Ok(())
}

#[test]
fn a_changed_address_is_used_by_the_next_flow() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    let app = lab.cgroup().child("app")?;
    lab.set_policy("app", &app, "wlan0", &[])?;
    lab.flow_leaves_by(&app, "wlan0", Kind::Tcp, Family::V4)?;
    lab.remove_address("wlan0", "10.2.0.2/24")?;
    lab.add_address("wlan0", "10.2.0.77/24")?;
    lab.ip(&[
        "route", "replace", "default", "via", "10.2.0.1", "dev", "wlan0", "metric", "200",
    ])?;
    lab.wait_decision("app", "source4", "10.2.0.77")?;
    for kind in Kind::ALL {
        let target = lab.target4();
        Probe::flow(kind, Family::V4, target).succeed(&lab, &app)?;
        lab.assert_only_by_from("wlan0", target, &["10.2.0.77".parse()?])?;
    }
    Ok(())
}

#[test]
fn an_interface_deleted_made_again_and_renamed_is_followed() -> Result<()> {
    let mut lab = Lab::new()?;
    lab.configure("[domain.wifi]\nmatch = { mac = \"02:5e:00:00:02:02\" }\n")?;
    let app = lab.cgroup().child("app")?;
    {
        let _agent = lab.start_agent()?;
        lab.set_policy("app", &app, "wifi", &[])?;
        lab.matrix_leaves_by(&app, "wlan0")?;
        lab.delete_link("wlan0")?;
        wait::until("the domain to be gone", || {
            let shown = lab.steer(&["domain", "show", "wifi", "--json"])?.json()?;
            Ok((shown.get("state").and_then(Value::as_str) != Some("up")).then_some(()))
        })?;
        lab.create_link("wlan0")?;
        lab.wait_decision("app", "domain", "wifi")?;
        lab.wait_decision("app", "source6", "2001:db8:2::2")?;
        lab.matrix_leaves_by(&app, "wlan0")?;
    }
    lab.rename_link("wlan0", "wlp3s0")?;
    let _agent = lab.start_agent()?;
    lab.wait_decision("app", "interface", "wlp3s0")?;
    lab.matrix_leaves_by(&app, "wlan0")
}

#[test]
fn rules_that_a_third_party_flushed_are_back_within_a_second() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    let app = lab.cgroup().child("app")?;
    lab.set_policy("app", &app, "wlan0", &[])?;
    let ours = Snapshot::take(&lab)?;
    for _ in 0..3 {
        lab.flush_rules()?;
        wait::until_within(
            std::time::Duration::from_secs(1),
            "the rules to be back",
            || {
                Ok(ours
                    .assert_same(&Snapshot::take(&lab)?)
                    .is_ok()
                    .then_some(()))
            },
        )?;
        lab.matrix_leaves_by(&app, "wlan0")?;
    }
    Ok(())
}

#[test]
fn routes_that_a_third_party_flushed_from_our_table_are_back_within_a_second() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    let app = lab.cgroup().child("app")?;
    lab.set_policy("app", &app, "wlan0", &[])?;
    let shown = lab.steer(&["domain", "show", "wlan0", "--json"])?.json()?;
    let table = shown
        .get("table")
        .and_then(Value::as_u64)
        .context("a table")?
        .to_string();
    let ours = Snapshot::take(&lab)?;
    for family in ["-4", "-6"] {
        lab.ip(&[family, "route", "flush", "table", &table])?;
    }
    wait::until_within(
        std::time::Duration::from_secs(1),
        "the routes to be back",
        || {
            Ok(ours
                .assert_same(&Snapshot::take(&lab)?)
                .is_ok()
                .then_some(()))
        },
    )?;
    lab.matrix_leaves_by(&app, "wlan0")
}

#[test]
fn nothing_is_installed_before_a_policy_needs_it() -> Result<()> {
    let lab = Lab::new()?;
    let before = Snapshot::take(&lab)?;
    let _agent = lab.start_agent()?;
    let idle = Snapshot::take(&lab)?;
    before.assert_same_but(&idle, &["pins"])?;
    let app = lab.cgroup().child("app")?;
    lab.set_policy("app", &app, "wlan0", &[])?;
    ensure!(
        before
            .assert_same_but(&Snapshot::take(&lab)?, &["pins"])
            .is_err(),
        "nothing was installed"
    );
    lab.steer(&["policy", "unset", "app"])?.success()?;
    wait::until("all to be as before", || {
        Ok(before
            .assert_same_but(&Snapshot::take(&lab)?, &["pins"])
            .is_ok()
            .then_some(()))
    })
}

/// The host answers a container from the address that the container asked, by its bridge: without
/// steer, and with a policy that needs that address's domain.
#[test]
fn a_host_with_a_container_bridge_is_unchanged() -> Result<()> {
    let lab = Lab::builder().container().build()?;
    let (app, other) = (lab.cgroup().child("app")?, lab.cgroup().child("other")?);
    let mut port = 5000;
    let mut container_is_answered = || -> Result<()> {
        for cgroup in [&other, &app] {
            for kind in [Kind::Tcp, Kind::UdpConnected] {
                port += 1;
                let mut server = Probe::new(kind, Family::V4).start(&lab, cgroup)?;
                server.succeed(&format!("bind 10.2.0.2:{port}"))?;
                if kind == Kind::Tcp {
                    server.succeed("listen")?;
                }
                server.ask("serve")?;
                let start = lab.position()?;
                let mut client = Probe::new(kind, Family::V4).start_in(lab.peer("docker0")?)?;
                client.succeed(&format!("connect 10.2.0.2:{port}"))?;
                client
                    .succeed("send hello")
                    .with_context(|| format!("{kind:?} to {}", cgroup.name()))?;
                lab.drain()?;
                let container: IpAddr = "172.17.0.2".parse()?;
                let strays = lab
                    .capture()
                    .since(start, |p| p.is_about(container) && p.uplink != "docker0");
                ensure!(strays.is_empty(), "{strays:?}");
            }
        }
        Ok(())
    };
    container_is_answered().context("without steer")?;
    let _agent = lab.start_agent()?;
    lab.set_policy("app", &app, "wlan0", &[])?;
    container_is_answered().context("with a policy")
}

#[test]
fn a_host_with_a_wg_quick_tunnel_is_unchanged() -> Result<()> {
    let lab = Lab::builder().wg_quick().build()?;
    let (app, other) = (lab.cgroup().child("app")?, lab.cgroup().child("other")?);
    let tunnel_catches = |bound: Option<&str>| -> Result<()> {
        for kind in [Kind::Tcp, Kind::UdpConnected, Kind::UdpUnconnected] {
            let target = lab.target4();
            let mut probe = Probe::flow(kind, Family::V4, target).first("set timeout=300");
            if let Some(address) = bound {
                probe = probe.first(&format!("bind {address}"));
            }
            probe.run(&lab, &other)?;
            lab.drain()?;
            let packets = lab.capture().about(target);
            ensure!(
                !packets.is_empty() && packets.iter().all(|p| p.uplink == "wg0"),
                "{kind:?} bound to {bound:?} slipped out of the tunnel: {packets:?}"
            );
        }
        Ok(())
    };
    tunnel_catches(None).context("without steer")?;
    tunnel_catches(Some("10.2.0.2")).context("without steer")?;
    let _agent = lab.start_agent()?;
    lab.set_policy("app", &app, "wlan0", &[])?;
    tunnel_catches(None).context("with a policy")?;
    tunnel_catches(Some("10.2.0.2")).context("with a policy")?;
    lab.flow_leaves_by(&app, "wlan0", Kind::Tcp, Family::V4)?;
    Ok(())
}

#[test]
fn a_route_with_its_own_source_is_not_passed_by() -> Result<()> {
    let lab = Lab::builder()
        .uplinks([
            Uplink::new("eth0", 1).serves("192.0.2.0/24"),
            Uplink::new("wlan0", 2),
        ])
        .build()?;
    // An overlay's route that uses wlan0's address as its source (as 10.66/24 dev wgx src A).
    lab.ip(&[
        "route",
        "add",
        "192.0.2.0/24",
        "via",
        "10.1.0.1",
        "dev",
        "eth0",
        "src",
        "10.2.0.2",
    ])?;
    let _agent = lab.start_agent()?;
    let (app, other) = (lab.cgroup().child("app")?, lab.cgroup().child("other")?);
    lab.set_policy("app", &app, "wlan0", &[])?;
    let target: IpAddr = "192.0.2.9".parse()?;
    Probe::flow(Kind::UdpConnected, Family::V4, target)
        .first("set timeout=300")
        .run(&lab, &other)?;
    lab.assert_only_by_from("eth0", target, &["10.2.0.2".parse()?])?;
    Ok(())
}
