//! `repair = true` with rules: what no socket program could decide leaves by the domain of its rule.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use steer_tests::report::ECHO_PORT;
use steer_tests::{Family, Kind, Lab, LabCgroup, Probe};

use super::bed::{self, Flow, Place, policy, to};

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// A policy by `eth0` that repairs, with a rule for each of two places.
fn repairing(app: &LabCgroup) -> String {
    let rules = [to(Place(1), "wwan0", ""), to(Place(2), "wlan0", "")];
    policy("app", app, "use = \"eth0\"\nrepair = true", &rules)
}

/// Destinations of a family, and the uplinks that are right.
fn ways(lab: &Lab, family: Family, number: u8) -> [(IpAddr, &'static str); 3] {
    [
        (Place(1).at(family, number), "wwan0"),
        (Place(2).at(family, number), "wlan0"),
        (family.target(lab), "eth0"),
    ]
}

#[test]
fn older_connected_datagram_sockets_are_repaired_to_the_domain_of_their_rule() -> Result<()> {
    for rp_filter in 0..=2 {
        let lab = Lab::builder().rp_filter(rp_filter).build()?;
        let app = lab.cgroup().child("app")?;
        let _agent = lab.start_agent()?;
        let mut flows = Vec::new();
        for family in FAMILIES {
            for (to, uplink) in ways(&lab, family, 1) {
                let mut session = Probe::new(Kind::UdpConnected, family).start(&lab, &app)?;
                session.succeed(&format!("connect {}", SocketAddr::new(to, ECHO_PORT)))?;
                let report = session.succeed("send before")?;
                ensure!(report.uplink.as_deref() == Some("eth0"), "{report:?}");
                flows.push((family, to, uplink, session));
            }
        }
        bed::reload(&lab, &repairing(&app))?;
        for (family, to, uplink, session) in &mut flows {
            lab.drain()?;
            let position = lab.position()?;
            let report = session.succeed("send repaired")?;
            let told = || format!("rp_filter {rp_filter}: to {to}: {report:?}");
            ensure!(report.uplink.as_deref() == Some(*uplink), "{}", told());
            Flow::new(Kind::UdpConnected, *family, *to)
                .only_by(&lab, uplink, position)
                .with_context(told)?;
        }
        let status = lab.steer(&["status", "--json"])?.json()?;
        ensure!(status["counters"]["repaired"] == 4, "{status:#}");
    }
    Ok(())
}

#[test]
fn one_socket_pings_destinations_of_different_rules_by_their_domains() -> Result<()> {
    let lab = Lab::builder().rp_filter(1).build()?;
    let app = lab.cgroup().child("app")?;
    lab.configure(&repairing(&app))?;
    let _agent = lab.start_agent()?;
    for (number, kind) in [(1, Kind::Ping), (2, Kind::Raw)] {
        for family in FAMILIES {
            lab.drain()?;
            let position = lab.position()?;
            let mut session = Probe::new(kind, family).start(&lab, &app)?;
            let ways = ways(&lab, family, number);
            for round in 0..3 {
                for (to, _) in ways {
                    let to = SocketAddr::new(to, ECHO_PORT);
                    session
                        .succeed(&format!("send token-{round} {to}"))
                        .with_context(|| format!("{kind:?} {family:?} to {to}"))?;
                }
            }
            for (to, uplink) in ways {
                Flow::new(kind, family, to).only_by(&lab, uplink, position)?;
            }
        }
    }
    Ok(())
}
