//! `repair = true`: what no socket program could decide leaves by the policy's domain with its source, seen
//! at the peers' end.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use steer_tests::report::ECHO_PORT;
use steer_tests::{Family, Kind, Lab, Probe, wait};

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
        let cgroup = app.name();
        lab.configure(&format!(
            "[policy.app]\nmatch.cgroup = \"{cgroup}\"\nuse = [\"wlan0\"]\nrepair = true\n"
        ))?;
        lab.steer(&["reload"])?.success()?;
        lab.wait_decision("app", "domain", "wlan0")?;
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
        lab.configure("")?;
        lab.steer(&["reload"])?.success()?;
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
