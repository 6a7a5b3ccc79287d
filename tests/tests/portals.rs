//! Captive portals: a domain behind one is not chosen, users are told and can log in by that domain alone, and
//! then it is like any other.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use steer_tests::checks::{Dns, HOST4, Http, LOGIN, PORTAL4};
use steer_tests::health::{by_http, checked};
use steer_tests::{Agent, Direction, Lab, LabCgroup, conformance};

/// An agent that checks by HTTP, and a policy for `wlan0`, else `wwan0`.
fn start<'lab>(lab: &'lab Lab, agent: &str, more: &str) -> Result<(Agent<'lab>, LabCgroup)> {
    let app = lab.cgroup().child("app")?;
    let cgroup = app.name();
    let text = format!(
        "[policy.app]\nmatch.cgroup = \"{cgroup}\"\nuse = [\"wlan0\", \"wwan0\"]\n{more}\n\
         [domain.wlan0]\nkind = \"wlan\"\ndns.servers = [\"10.2.0.1\"]\n\
         [domain.wwan0]\nkind = \"cellular\"\ndns.servers = [\"10.3.0.1\"]\n"
    );
    lab.configure_agent(agent, &text)?;
    Ok((lab.start_agent()?, app))
}

/// Nothing about `address` crossed another uplink than `wlan0` since `position`, and something that one.
fn only_by_wlan0(lab: &Lab, position: usize, address: IpAddr) -> Result<()> {
    lab.drain()?;
    let about = lab.capture().since(position, |p| p.is_about(address));
    ensure!(!about.is_empty(), "nothing about {address}");
    let strays: Vec<_> = about.iter().filter(|p| p.uplink != "wlan0").collect();
    ensure!(strays.is_empty(), "{strays:#?}");
    lab.assert_sources_match(position)
}

#[test]
fn a_domain_behind_a_web_login_is_told_and_chosen_after_the_login() -> Result<()> {
    let lab = Lab::new()?;
    lab.serve_http("wlan0", Http::Login)?;
    let (_agent, app) = start(&lab, &by_http(), "")?;
    let shown = lab.wait_state("wlan0", "portal")?;
    ensure!(shown["portal"] == LOGIN, "{shown:#}");
    let beside = lab.wait_state("wwan0", "validated")?;
    ensure!(beside["portal"] == Value::Null, "{beside:#}");
    lab.chooses("app", &app, "wwan0")?;
    let reason = lab.candidate("app", "wlan0", false)?;
    ensure!(reason.contains("portal"), "{reason}");
    for command in [
        &["domain", "show", "wlan0"][..],
        &["domain", "list"],
        &["status"],
    ] {
        let said = lab.steer(command)?;
        ensure!(said.success()?.contains("portal"), "{said:?}");
    }

    let position = lab.position()?;
    let login = [
        "domain",
        "login",
        "wlan0",
        "--",
        "curl",
        "-sm5",
        "--data",
        "name=guest",
    ];
    let output = lab.steer(&login)?;
    ensure!(output.success()?.contains("Welcome"), "{output:?}");
    only_by_wlan0(&lab, position, PORTAL4)?;
    let shown = lab.wait_state("wlan0", "validated")?;
    ensure!(shown["portal"] == Value::Null, "{shown:#}");
    lab.chooses("app", &app, "wlan0")?;
    conformance::row(
        "P-4.4-1",
        "a domain behind a web login is not chosen and shown with the portal's address; a login by that domain alone makes it validated and chosen",
    )
}

#[test]
fn a_portal_is_told_to_who_watches() -> Result<()> {
    let lab = Lab::new()?;
    let (_agent, app) = start(&lab, &by_http(), "")?;
    lab.wait_state("wlan0", "validated")?;
    lab.wait_state("wwan0", "validated")?;
    lab.chooses("app", &app, "wlan0")?;
    let watch = lab.watch()?;
    let position = watch.position();
    lab.serve_http("wlan0", Http::Login)?;
    let told = watch.wait_for(position, "the portal to be told", |line| {
        line["domain"] == "wlan0" && line["state"] == "portal"
    })?;
    ensure!(told["was"] == "validated", "{told}");
    // A login that has run out is as good as none.
    lab.chooses("app", &app, "wwan0")?;
    lab.serve_http("wlan0", Http::Right)?;
    lab.wait_state("wlan0", "validated")?;
    lab.chooses("app", &app, "wlan0")
}

#[test]
fn a_page_in_place_of_the_answer_is_a_portal() -> Result<()> {
    let lab = Lab::new()?;
    lab.serve_http("wlan0", Http::Page)?;
    let (_agent, app) = start(&lab, &by_http(), "")?;
    lab.wait_state("wlan0", "portal")?;
    lab.chooses("app", &app, "wwan0")?;
    lab.serve_http("wlan0", Http::Right)?;
    lab.wait_state("wlan0", "validated")?;
    lab.chooses("app", &app, "wlan0")
}

#[test]
fn an_answer_that_is_no_http_proves_nothing() -> Result<()> {
    let lab = Lab::new()?;
    let (_agent, app) = start(&lab, &by_http(), "")?;
    lab.wait_state("wlan0", "validated")?;
    lab.wait_state("wwan0", "validated")?;
    lab.serve_http("wlan0", Http::Garbage)?;
    lab.wait_domain("wlan0", "be doubted", |d| d["state"] != "validated")?;
    lab.chooses("app", &app, "wwan0")
}

#[test]
fn an_answer_of_a_portals_dns_is_not_taken_for_the_destinations() -> Result<()> {
    for check in [
        "dns = \"host.example=192.0.2.80\"",
        "http = \"http://host.example/generate_204\"",
    ] {
        let lab = Lab::new()?;
        lab.serve_dns("wlan0", Dns::Portal)?;
        let (_agent, app) = start(&lab, &checked(check), "")?;
        lab.wait_state("wlan0", "portal").context(check)?;
        lab.wait_state("wwan0", "validated").context(check)?;
        lab.chooses("app", &app, "wwan0")?;
        lab.candidate("app", "wlan0", false)?;
        // Whoever asks for it by name may use it all the same, to log in.
        let position = lab.position()?;
        let login = [
            "run",
            "--via",
            "wlan0",
            "--",
            "curl",
            "-sm5",
            "--data",
            "name=guest",
            LOGIN,
        ];
        lab.steer(&login)?.success()?;
        only_by_wlan0(&lab, position, PORTAL4)?;
        lab.wait_state("wlan0", "validated").context(check)?;
        lab.chooses("app", &app, "wlan0")?;
        // What the portal said of the name is not believed any more.
        lab.drain()?;
        let asked = lab
            .capture()
            .since(lab.position()?, |p| p.destination == Some(PORTAL4));
        ensure!(asked.is_empty(), "{asked:?}");
    }
    conformance::row(
        "P-4.1-8",
        "a portal that answers DNS in place of others is seen, its domain not chosen until the right answers come",
    )
}

#[test]
fn names_are_asked_for_by_the_domain_that_is_checked() -> Result<()> {
    let lab = Lab::new()?;
    let position = lab.position()?;
    let check = checked("dns = \"host.example=192.0.2.80\"");
    let (_agent, _app) = start(&lab, &check, "")?;
    lab.wait_state("wlan0", "validated")?;
    lab.wait_state("wwan0", "validated")?;
    lab.drain()?;
    for (uplink, server) in [("wlan0", "10.2.0.1"), ("wwan0", "10.3.0.1")] {
        let server: IpAddr = server.parse()?;
        let asked = lab.capture().since(position, |p| {
            p.direction == Direction::FromHost && p.destination == Some(server)
        });
        ensure!(
            asked.iter().any(|p| p.destination_port == Some(53))
                && asked.iter().all(|p| p.uplink == uplink),
            "{asked:?}"
        );
    }
    Ok(())
}

#[test]
fn a_portal_alone_is_no_domain_for_a_policy() -> Result<()> {
    let lab = Lab::new()?;
    for uplink in ["wlan0", "wwan0"] {
        lab.serve_http(uplink, Http::Login)?;
    }
    let (_agent, app) = start(&lab, &by_http(), "strict = true")?;
    lab.wait_state("wlan0", "portal")?;
    lab.wait_state("wwan0", "portal")?;
    lab.wait_decision("app", "verdict", "block")?;
    lab.matrix_is_refused(&app, None)?;
    // What leads nowhere is better than what leads to a portal.
    lab.serve_http("wwan0", Http::Silent)?;
    lab.wait_state("wwan0", "limited")?;
    lab.chooses("app", &app, "wwan0")
}

#[test]
fn a_login_is_refused_where_there_is_nothing_to_log_in_to() -> Result<()> {
    let lab = Lab::new()?;
    let (_agent, _app) = start(&lab, &by_http(), "")?;
    lab.wait_state("wlan0", "validated")?;
    let output = lab.steer(&["domain", "login", "wlan0", "--", "echo", "started"])?;
    ensure!(output.code != 0 && output.stdout.is_empty(), "{output:?}");
    let output = lab.steer(&["domain", "login", "nowhere", "--", "echo", "started"])?;
    ensure!(
        output.code != 0 && output.stderr.contains("nowhere"),
        "{output:?}"
    );
    Ok(())
}

#[test]
fn a_portal_does_not_see_flows_that_are_not_told_to_go_there() -> Result<()> {
    let lab = Lab::new()?;
    lab.serve_http("wlan0", Http::Login)?;
    let (_agent, app) = start(&lab, &by_http(), "")?;
    lab.wait_state("wlan0", "portal")?;
    lab.wait_state("wwan0", "validated")?;
    lab.wait_decision("app", "domain", "wwan0")?;
    lab.matrix_leaves_by(&app, "wwan0")?;
    // Nothing of a portal's domain but its check.
    let position = lab.position()?;
    lab.capture().wait_for("another check", |p| {
        p.uplink == "wlan0" && p.destination == Some(HOST4)
    })?;
    lab.drain()?;
    let strays = lab.capture().since(position, |p| {
        p.uplink == "wlan0"
            && p.direction == Direction::FromHost
            && p.protocol == Some(6)
            && p.destination != Some(HOST4)
    });
    ensure!(strays.is_empty(), "{strays:?}");
    Ok(())
}
