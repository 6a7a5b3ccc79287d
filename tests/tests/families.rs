//! Which family of addresses programs take where a domain has both.

use std::fs;
use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use steer_tests::report::ECHO_PORT;
use steer_tests::{Direction, Family, Kind, Lab, LabCgroup, conformance};

/// Connects to a port of a host that `hosts` names, as a shell does: by the C library's order of addresses.
fn connect(lab: &Lab, cgroup: &LabCgroup, hosts: &str, name: &str) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("hosts");
    fs::write(&file, hosts)?;
    let script = format!(
        "mount --bind {} /etc/hosts && exec bash -c 'exec 3<>/dev/tcp/{name}/{ECHO_PORT}'",
        file.display()
    );
    let mut command = lab.command("unshare", cgroup)?;
    let output = command.args(["--mount", "sh", "-c", &script]).output()?;
    ensure!(output.status.success(), "{output:?}");
    Ok(())
}

/// The addresses that the host sent TCP to since `position`.
fn contacted(lab: &Lab, position: usize, addresses: [IpAddr; 2]) -> Result<Vec<IpAddr>> {
    lab.drain()?;
    let sent = lab.capture().since(position, |p| {
        p.direction == Direction::FromHost && p.protocol == Some(6)
    });
    let mut contacted: Vec<IpAddr> = sent
        .iter()
        .filter_map(|packet| packet.destination)
        .filter(|address| addresses.contains(address))
        .collect();
    contacted.dedup();
    Ok(contacted)
}

#[test]
fn programs_prefer_the_family_that_the_policy_prefers_and_still_reach_the_other() -> Result<()> {
    let lab = Lab::new()?;
    let app = lab.cgroup().child("app")?;
    let file = |lines: &str| {
        let cgroup = app.name();
        format!("[policy.app]\nmatch.cgroup = \"{cgroup}\"\nuse = [\"wlan0\"]\n{lines}\n")
    };
    lab.configure(&file(""))?;
    let _agent = lab.start_agent()?;
    let only6 = lab.target6();
    for (lines, first) in [
        ("", Family::V6),
        ("prefer-family = \"ipv4\"", Family::V4),
        ("prefer-family = \"ipv6\"", Family::V6),
    ] {
        lab.configure(&file(lines))?;
        lab.steer(&["reload"])?.success()?;
        // Again and again: it is no matter of what was asked before.
        for _ in 0..3 {
            let (v4, v6) = (lab.target4(), lab.target6());
            let hosts = format!("{v4} both.example\n{v6} both.example\n{only6} only6.example\n");
            let position = lab.position()?;
            connect(&lab, &app, &hosts, "both.example").context(lines)?;
            let expected = if first == Family::V4 { v4 } else { v6 };
            let contacted = contacted(&lab, position, [v4, v6])?;
            ensure!(contacted == [expected], "{lines}: {contacted:?}");
            connect(&lab, &app, &hosts, "only6.example").context(lines)?;
        }
        lab.flow_leaves_by(&app, "wlan0", Kind::Tcp, Family::V6)?;
        lab.flow_leaves_by(&app, "wlan0", Kind::UdpUnconnected, Family::V6)?;
        let datagrams = if lines.contains("ipv6") {
            Family::V6
        } else {
            Family::V4
        };
        lab.flow_leaves_by(&app, "wlan0", Kind::UdpConnected, datagrams)?;
        let v6 = lab.target6();
        for (protocol, port, outcome) in [
            ("udp", 9, lines.contains("ipv4").then_some("refused")),
            ("udp", 53, None),
            ("tcp", 9, None),
        ] {
            let to = format!("[{v6}]:{port}");
            let asked = [
                "--json",
                "--cgroup",
                app.name(),
                "--protocol",
                protocol,
                &to,
            ];
            let answer = lab.steer(&[&["explain"], &asked[..]].concat())?.json()?;
            let outcome = outcome.unwrap_or("steered");
            ensure!(answer["flow"]["outcome"] == outcome, "{lines}: {answer:#}");
        }
    }
    conformance::row(
        "S60-8",
        "on a domain with both families programs take IPv4 first where the policy prefers it, and still reach IPv6",
    )
}
