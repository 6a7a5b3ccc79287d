//! The main job: an application's flows leave by the chosen interface, with its address, from the first
//! packet, whatever kind of socket they use and however strict the host's reverse path filter is.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use steer_tests::report::{DISCARD_PORT, HTTP_PORT};
use steer_tests::{Family, Kind, Lab, Probe, SERVER4, SERVER6, Uplink, conformance, wait};

fn steered_matrix(rp_filter: u8) -> Result<()> {
    let lab = Lab::builder().rp_filter(rp_filter).build()?;
    let _agent = lab.start_agent()?;
    let app = lab.cgroup().child("app")?;
    let other = lab.cgroup().child("other")?;
    for uplink in ["wlan0", "wwan0"] {
        lab.set_policy("app", &app, uplink, &[])?;
        lab.matrix_leaves_by(&app, uplink)
            .with_context(|| format!("via {uplink}"))?;
    }
    lab.matrix_leaves_by(&other, "eth0").context("unsteered")?;
    conformance::row(
        "AMSS-2",
        &format!(
            "every kind of socket, both families, rp_filter {rp_filter}: each packet leaves by the chosen interface with its address"
        ),
    )?;
    conformance::row(
        "P-4.2-4",
        &format!(
            "no packet of a steered flow bears another interface's address, rp_filter {rp_filter}"
        ),
    )
}

#[test]
fn every_kind_of_flow_is_steered_without_reverse_path_filter() -> Result<()> {
    steered_matrix(0)
}

#[test]
fn every_kind_of_flow_is_steered_under_a_strict_reverse_path_filter() -> Result<()> {
    steered_matrix(1)
}

#[test]
fn every_kind_of_flow_is_steered_under_a_loose_reverse_path_filter() -> Result<()> {
    steered_matrix(2)
}

#[test]
fn strict_policies_steer_every_kind_of_flow_too() -> Result<()> {
    let lab = Lab::builder().rp_filter(1).build()?;
    let _agent = lab.start_agent()?;
    let app = lab.cgroup().child("app")?;
    lab.set_policy("app", &app, "wlan0", &["--strict"])?;
    lab.matrix_leaves_by(&app, "wlan0")
}

#[test]
fn a_datagram_with_a_header_made_by_hand_leaves_by_the_chosen_interface() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    let app = lab.cgroup().child("app")?;
    lab.set_policy("app", &app, "wlan0", &[])?;
    for family in [Family::V4, Family::V6] {
        let target = family.target(&lab);
        Probe::named("raw-udp", family)
            .then(&format!(
                "post by-hand {}",
                SocketAddr::new(target, DISCARD_PORT)
            ))
            .succeed(&lab, &app)?;
        lab.assert_only_by("wlan0", target)
            .with_context(|| format!("{family:?}"))?;
    }
    Ok(())
}

#[test]
fn applications_with_other_policies_use_other_tables_at_the_same_time() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    let mut apps = Vec::new();
    for (number, uplink) in ["eth0", "wlan0", "wwan0", "wlan0"].into_iter().enumerate() {
        let app = lab.cgroup().child(&format!("app{number}"))?;
        lab.set_policy(&format!("app{number}"), &app, uplink, &[])?;
        apps.push((app, uplink));
    }
    let mut sessions = Vec::new();
    for (app, uplink) in &apps {
        for (family, server) in [(Family::V4, SERVER4), (Family::V6, SERVER6)] {
            let mut session = Probe::new(Kind::Tcp, family).start(&lab, app)?;
            session.succeed(&format!("connect {}", SocketAddr::new(server, 7)))?;
            sessions.push((session, uplink));
        }
    }
    for (session, uplink) in &mut sessions {
        let report = session.succeed("send together")?;
        ensure!(report.uplink.as_deref() == Some(**uplink), "{report:?}");
    }
    conformance::row(
        "AND-1",
        "four applications, three tables chosen by mark, the same server address at the same time",
    )?;
    conformance::row(
        "S60-7",
        "two applications share one domain at the same time",
    )?;
    conformance::row(
        "P-4.2-1",
        "the server that only the policy's network leads to is reached although the default route leads elsewhere",
    )
}

#[test]
fn a_domain_named_in_the_file_is_steered_to_by_name_and_by_alias() -> Result<()> {
    let lab = Lab::new()?;
    lab.configure(
        "[domain.wifi]\nmatch = { interface = \"wlan0\" }\n[group.both]\ndomains = [\"wifi\", \"eth0\"]\n",
    )?;
    let _agent = lab.start_agent()?;
    let app = lab.cgroup().child("app")?;
    for via in ["wifi", "wlan0", "both"] {
        let policy = lab.set_policy("app", &app, via, &[])?;
        let domain = policy.pointer("/decision/domain").and_then(Value::as_str);
        ensure!(domain == Some("wifi"), "via {via}: {policy}");
        lab.flow_leaves_by(&app, "wlan0", Kind::UdpConnected, Family::V4)?;
    }
    conformance::row(
        "S60-1",
        "a domain is named in the file and holds interface, addresses, routes of both families",
    )
}

#[test]
fn a_virtual_interface_is_a_domain_like_any_other() -> Result<()> {
    let lab = Lab::builder().wg_quick().build()?;
    lab.configure("[domain.corp]\nmatch = { interface = \"wg0\" }\ngateways = [\"10.66.0.1\"]\n")?;
    let _agent = lab.start_agent()?;
    let app = lab.cgroup().child("app")?;
    lab.set_policy("app", &app, "corp", &[])?;
    lab.flow_leaves_by(&app, "wg0", Kind::Tcp, Family::V4)?;
    lab.set_policy("app", &app, "wlan0", &[])?;
    lab.flow_leaves_by(&app, "wlan0", Kind::Tcp, Family::V4)?;
    conformance::row(
        "S60-1",
        "a virtual interface (a tunnel) is a domain like any other",
    )
}

#[test]
fn a_more_specific_route_of_another_interface_does_not_capture_a_steered_flow() -> Result<()> {
    let lab = Lab::builder()
        .uplinks([
            Uplink::new("eth0", 1).serves("192.0.2.0/24"),
            Uplink::new("wlan0", 2).serves("192.0.2.0/24"),
        ])
        .build()?;
    lab.ip(&[
        "route",
        "add",
        "192.0.2.0/24",
        "via",
        "10.1.0.1",
        "dev",
        "eth0",
    ])?;
    let _agent = lab.start_agent()?;
    let app = lab.cgroup().child("app")?;
    lab.set_policy("app", &app, "wlan0", &[])?;
    let target = "192.0.2.7".parse()?;
    for kind in Kind::ALL {
        Probe::flow(kind, Family::V4, target).succeed(&lab, &app)?;
    }
    lab.assert_only_by("wlan0", target)?;
    conformance::row(
        "P-4.2-3",
        "a more specific route by another interface does not capture the steered flow's destination",
    )
}

#[test]
fn run_steers_curl_in_both_families_and_status_says_so() -> Result<()> {
    let lab = Lab::builder().rp_filter(1).build()?;
    let _agent = lab.start_agent()?;
    for (server, wanted) in [(SERVER4, "10.2.0.2:"), (SERVER6, "[2001:db8:2::2]:")] {
        let url = format!("http://{}/", SocketAddr::new(server, HTTP_PORT));
        let output = lab.steer(&["run", "--via", "wlan0", "--", "curl", "-gsm5", &url])?;
        let answer: Value = output.json()?;
        let seen = answer
            .get("seen")
            .and_then(Value::as_str)
            .unwrap_or_default();
        ensure!(seen.starts_with(wanted), "{output:?}");
        lab.assert_only_by("wlan0", server)?;
    }
    let status = lab.steer(&["status", "--json"])?.json()?;
    ensure!(
        status.get("agent_running") == Some(&Value::Bool(true)),
        "{status}"
    );
    Ok(())
}

#[test]
fn run_does_not_start_a_command_that_no_domain_fits() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    lab.carrier_down("wlan0")?;
    wait::until("the agent to notice", || {
        let output = lab.steer(&["domain", "show", "wlan0", "--json"])?.json()?;
        Ok((output.get("state").and_then(Value::as_str) != Some("up")).then_some(()))
    })?;
    let output = lab.steer(&["run", "--via", "wlan0", "--", "echo", "started"])?;
    output.failure(4)?;
    ensure!(output.stdout.is_empty(), "it was started: {output:?}");

    let output = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            lab.steer(&[
                "run",
                "--via",
                "wlan0",
                "--wait=20s",
                "--",
                "echo",
                "started",
            ])
        });
        // Its cgroup shows that the agent has taken the call and lets it wait.
        lab.carrier_up("wlan0")?;
        waiting
            .join()
            .map_err(|_| anyhow::anyhow!("the thread panicked"))?
    })?;
    ensure!(output.success()?.trim() == "started", "{output:?}");
    conformance::row(
        "P-3.7-1",
        "an application restricted to one domain is not started without it, with an exit code of its own, and waits when told to",
    )
}

#[test]
fn a_command_that_run_started_keeps_its_code_and_its_domain() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    lab.steer(&["run", "--via", "wlan0", "--", "sh", "-c", "exit 17"])?
        .failure(17)?;
    lab.steer(&["run", "--via", "wlan0", "--", "sh", "-c", "kill -TERM $$"])?
        .failure(143)?;
    Ok(())
}

#[test]
fn run_refuses_a_domain_that_nobody_knows_and_names_it() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    let output = lab.steer(&["run", "--via", "nowhere", "--", "echo", "started"])?;
    ensure!(
        output.code != 0 && output.stdout.is_empty(),
        "it was started: {output:?}"
    );
    ensure!(
        output.stderr.contains("nowhere"),
        "the message does not name it: {output:?}"
    );
    Ok(())
}

#[test]
fn new_flows_leave_by_the_next_domain_when_the_first_loses_its_carrier() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    let app = lab.cgroup().child("app")?;
    lab.set_policy("app", &app, "wlan0,wwan0", &[])?;
    let goes_by = |uplink: &str| -> Result<()> {
        lab.wait_decision("app", "domain", uplink)?;
        lab.matrix_leaves_by(&app, uplink)
    };
    goes_by("wlan0")?;
    lab.carrier_down("wlan0")?;
    goes_by("wwan0")?;
    lab.carrier_up("wlan0")?;
    goes_by("wlan0")
}

#[test]
fn a_flow_that_no_domain_fits_is_refused_with_one_documented_errno() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    let app = lab.cgroup().child("app")?;
    lab.set_policy("app", &app, "wlan0", &["--otherwise", "block"])?;
    lab.carrier_down("wlan0")?;
    lab.wait_decision("app", "verdict", "block")?;
    lab.matrix_is_refused(&app, Some("ENETUNREACH"))
}

#[test]
fn the_policy_set_command_says_what_was_decided_and_unset_ends_it() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    let app = lab.cgroup().child("app")?;
    let policy = lab.set_policy("app", &app, "wlan0", &[])?;
    for (pointer, wanted) in [
        ("/name", "app"),
        ("/decision/verdict", "steer"),
        ("/decision/domain", "wlan0"),
        ("/decision/interface", "wlan0"),
        ("/decision/source4", "10.2.0.2"),
        ("/decision/source6", "2001:db8:2::2"),
    ] {
        let said = policy.pointer(pointer).and_then(Value::as_str);
        ensure!(
            said == Some(wanted),
            "{pointer} is {said:?}, not {wanted}: {policy}"
        );
    }
    lab.flow_leaves_by(&app, "wlan0", Kind::Tcp, Family::V4)?;
    lab.steer(&["policy", "unset", "app"])?.success()?;
    lab.matrix_leaves_by(&app, "eth0")
}
