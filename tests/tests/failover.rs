//! A domain that leads nowhere any more, whatever its interface says, is left; and trusted again when it has
//! proved itself.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use steer_tests::checks::{Dns, HOST4, Http};
use steer_tests::health::{FALL, RISE, by_http, checked};
use steer_tests::report::DISCARD_PORT;
use steer_tests::{
    Agent, Capture, Direction, Family, Kind, Lab, LabCgroup, Packet, Probe, Way, conformance,
};

/// An agent that checks by HTTP, and a policy for `wlan0`, else `wwan0`.
fn start<'lab>(lab: &'lab Lab, more: &str) -> Result<(Agent<'lab>, LabCgroup)> {
    start_checked(lab, &by_http(), more)
}

fn start_checked<'lab>(
    lab: &'lab Lab,
    agent: &str,
    more: &str,
) -> Result<(Agent<'lab>, LabCgroup)> {
    let app = lab.cgroup().child("app")?;
    let cgroup = app.name();
    let policy = format!(
        "[policy.app]\nmatch.cgroup = \"{cgroup}\"\nuse = [\"wlan0\", \"wwan0\"]\n{more}\n"
    );
    lab.configure_agent(agent, &policy)?;
    Ok((lab.start_agent()?, app))
}

/// Beginnings of checks by HTTP that the host sent by `uplink` since `position`.
fn checks(capture: &Capture, position: usize, uplink: &str) -> Vec<Packet> {
    const SYN: u8 = 2;
    let mut ports = Vec::new();
    let mut begun = capture.since(position, |p| {
        p.uplink == uplink
            && p.direction == Direction::FromHost
            && p.destination == Some(HOST4)
            && p.tcp_flags & SYN != 0
    });
    // The same connection may be tried more than once.
    begun.retain(|p| {
        let is_new = !ports.contains(&p.source_port);
        ports.push(p.source_port);
        is_new
    });
    begun
}

/// Checks by HTTP that were answered as they should by `uplink` since `position`.
fn passed(capture: &Capture, position: usize, uplink: &str) -> usize {
    let answers = capture.since(position, |p| {
        p.uplink == uplink
            && p.direction == Direction::ToHost
            && p.source == Some(HOST4)
            && p.carries("204 No Content")
    });
    answers.len()
}

#[test]
fn a_domain_without_carrier_is_down_and_trusted_again_when_it_has_proved_itself() -> Result<()> {
    let lab = Lab::new()?;
    let (_agent, app) = start(&lab, "[domain.wlan0]\nkind = \"wlan\"")?;
    for _ in 0..2 {
        lab.wait_state("wlan0", "validated")?;
        lab.chooses("app", &app, "wlan0")?;
        lab.carrier_down("wlan0")?;
        lab.wait_state("wlan0", "down")?;
        lab.chooses("app", &app, "wwan0")?;
        let position = lab.position()?;
        lab.carrier_up("wlan0")?;
        lab.wait_state("wlan0", "validated")?;
        lab.drain()?;
        ensure!(
            passed(lab.capture(), position, "wlan0") > 0,
            "it was trusted without a check"
        );
    }
    lab.delete_link("wlan0")?;
    lab.wait_state("wlan0", "absent")?;
    lab.chooses("app", &app, "wwan0")?;
    lab.create_link("wlan0")?;
    lab.wait_state("wlan0", "validated")?;
    lab.chooses("app", &app, "wlan0")?;
    conformance::row(
        "AND-4",
        "the carrier of the chosen domain is lost: new flows leave by the next one, and by the first again when it has passed its checks",
    )
}

/// A silent loss behind `wlan0`: it is left, and chosen again when it is over.
fn survives(way: Way) -> Result<()> {
    let lab = Lab::new()?;
    let (_agent, app) = start(&lab, "")?;
    lab.wait_state("wlan0", "validated")?;
    lab.wait_state("wwan0", "validated")?;
    lab.chooses("app", &app, "wlan0")?;

    let position = lab.position()?;
    lab.blackhole("wlan0", way)?;
    lab.wait_state("wlan0", "limited")?;
    lab.drain()?;
    let failed = checks(lab.capture(), position, "wlan0");
    ensure!(failed.len() >= FALL, "given up after {failed:?}");
    lab.chooses("app", &app, "wwan0")?;
    lab.candidate("app", "wlan0", false)?;
    lab.candidate("app", "wwan0", true)?;
    lab.assert_sources_match(position)?;

    let position = lab.position()?;
    lab.heal("wlan0")?;
    lab.wait_state("wlan0", "validated")?;
    lab.drain()?;
    let answered = passed(lab.capture(), position, "wlan0");
    ensure!(answered >= RISE, "trusted again after {answered} answers");
    lab.chooses("app", &app, "wlan0")?;
    lab.assert_sources_match(position)
}

#[test]
fn a_domain_that_loses_everything_is_left_and_chosen_again() -> Result<()> {
    survives(Way::Both)?;
    conformance::row(
        "AND-4",
        "carrier up, everything lost: left after the failures the file says, chosen again after the successes it says",
    )
}

#[test]
fn a_domain_that_loses_only_answers_is_left_and_chosen_again() -> Result<()> {
    survives(Way::ToHost)?;
    conformance::row("AND-4", "carrier up, answers lost: the next domain")
}

#[test]
fn a_domain_that_loses_only_what_is_sent_is_left_and_chosen_again() -> Result<()> {
    survives(Way::FromHost)?;
    conformance::row("AND-4", "carrier up, requests lost: the next domain")
}

#[test]
fn a_domain_whose_gateway_lives_before_a_dead_upstream_is_left_and_chosen_again() -> Result<()> {
    survives(Way::Upstream)?;
    conformance::row(
        "AND-4",
        "the gateway answers, and nothing behind it does: the next domain",
    )
}

#[test]
fn a_domain_that_leads_nowhere_is_used_when_no_other_is_better() -> Result<()> {
    let lab = Lab::new()?;
    let (_agent, app) = start(&lab, "otherwise = \"block\"")?;
    for uplink in ["wlan0", "wwan0"] {
        lab.wait_state(uplink, "validated")?;
        lab.blackhole(uplink, Way::Both)?;
    }
    for uplink in ["wlan0", "wwan0"] {
        lab.wait_state(uplink, "limited")?;
    }
    lab.wait_decision("app", "domain", "wlan0")?;
    let target = lab.target4();
    Probe::new(Kind::UdpUnconnected, Family::V4)
        .then(&format!(
            "post hope {}",
            SocketAddr::new(target, DISCARD_PORT)
        ))
        .succeed(&lab, &app)?;
    lab.assert_only_by("wlan0", target)?;
    // Whichever is well again first is better than both.
    lab.heal("wwan0")?;
    lab.chooses("app", &app, "wwan0")
}

#[test]
fn a_strict_policy_does_not_leave_its_domain_when_that_leads_nowhere() -> Result<()> {
    let lab = Lab::new()?;
    let app = lab.cgroup().child("app")?;
    let cgroup = app.name();
    lab.configure_agent(
        &by_http(),
        &format!("[policy.app]\nmatch.cgroup = \"{cgroup}\"\nuse = \"wlan0\"\nstrict = true\n"),
    )?;
    let _agent = lab.start_agent()?;
    lab.wait_state("wlan0", "validated")?;
    lab.blackhole("wlan0", Way::Both)?;
    lab.wait_state("wlan0", "limited")?;
    for family in [Family::V4, Family::V6] {
        let target = family.target(&lab);
        for kind in Kind::ALL {
            Probe::flow(kind, family, target)
                .first("set timeout=300")
                .run(&lab, &app)?;
        }
        lab.assert_at_most_by("wlan0", target)?;
    }
    Ok(())
}

#[test]
fn a_domain_that_is_not_checked_is_never_doubted() -> Result<()> {
    let lab = Lab::new()?;
    let (_agent, app) = start(&lab, "[domain.wlan0]\ncheck = \"none\"")?;
    lab.wait_state("wwan0", "validated")?;
    let position = lab.position()?;
    lab.wait_state("wlan0", "up")?;
    lab.chooses("app", &app, "wlan0")?;
    // What happens to another domain shows that checks go on.
    lab.blackhole("wlan0", Way::Upstream)?;
    lab.blackhole("wwan0", Way::Upstream)?;
    lab.wait_state("wwan0", "limited")?;
    lab.wait_state("wlan0", "up")?;
    lab.wait_decision("app", "domain", "wlan0")?;
    lab.drain()?;
    let asked = checks(lab.capture(), position, "wlan0");
    ensure!(asked.is_empty(), "it is checked: {asked:?}");
    Ok(())
}

#[test]
fn a_domain_that_may_be_chosen_is_checked_while_nothing_uses_it_and_by_itself_alone() -> Result<()>
{
    let lab = Lab::builder().rp_filter(1).build()?;
    let position = lab.position()?;
    let (_agent, _app) = start(&lab, "")?;
    for uplink in ["wwan0", "wlan0", "wwan0"] {
        lab.wait_state(uplink, "validated")?;
        lab.blackhole(uplink, Way::ToHost)?;
        lab.wait_state(uplink, "limited")?;
        lab.heal(uplink)?;
        lab.wait_state(uplink, "validated")?;
    }
    lab.drain()?;
    ensure!(!checks(lab.capture(), position, "wwan0").is_empty());
    // No policy could choose it: it is not bothered.
    let needless = checks(lab.capture(), position, "eth0");
    ensure!(needless.is_empty(), "{needless:?}");
    lab.assert_sources_match(position)
}

/// Checks `wlan0` by `kind` alone, which must notice `fault`, and be content again after `mend`.
fn notices(
    kind: &str,
    fault: impl FnOnce(&Lab) -> Result<()>,
    mend: impl FnOnce(&Lab) -> Result<()>,
) -> Result<()> {
    let lab = Lab::new()?;
    let servers = "[domain.wlan0]\ndns.servers = [\"10.2.0.1\"]\n\
                   [domain.wwan0]\ndns.servers = [\"10.3.0.1\"]\n";
    let (_agent, app) = start_checked(&lab, &checked(kind), servers)?;
    let noticed = || {
        lab.wait_state("wlan0", "validated")?;
        lab.wait_state("wwan0", "validated")?;
        fault(&lab)?;
        lab.wait_state("wlan0", "limited")?;
        lab.chooses("app", &app, "wwan0")?;
        mend(&lab)?;
        lab.wait_state("wlan0", "validated")?;
        lab.chooses("app", &app, "wlan0")
    };
    noticed().with_context(|| kind.to_owned())
}

#[test]
fn each_kind_of_check_notices_what_it_is_for() -> Result<()> {
    let upstream = |lab: &Lab| lab.blackhole("wlan0", Way::Upstream);
    let heal = |lab: &Lab| lab.heal("wlan0");
    notices("tcp = \"192.0.2.80:80\"", upstream, heal)?;
    notices("icmp = \"192.0.2.80\"", upstream, heal)?;
    notices(
        "icmp = \"gateway\"",
        |lab| lab.blackhole("wlan0", Way::Both),
        heal,
    )?;
    notices(
        "http = \"http://192.0.2.80/\"",
        |lab| lab.serve_http("wlan0", Http::Silent),
        |lab| lab.serve_http("wlan0", Http::Right),
    )?;
    notices(
        "http = \"http://host.example/\"",
        |lab| lab.serve_dns("wlan0", Dns::NoName),
        |lab| lab.serve_dns("wlan0", Dns::Right),
    )?;
    for wrong in [Dns::Silent, Dns::NoName] {
        notices(
            "dns = \"host.example=192.0.2.80\"",
            |lab| lab.serve_dns("wlan0", wrong),
            |lab| lab.serve_dns("wlan0", Dns::Right),
        )?;
    }
    Ok(())
}

#[test]
fn a_check_of_the_gateway_does_not_look_behind_it() -> Result<()> {
    let lab = Lab::new()?;
    let (_agent, app) = start_checked(&lab, &checked("icmp = \"gateway\""), "")?;
    lab.wait_state("wlan0", "validated")?;
    lab.wait_state("wwan0", "validated")?;
    lab.blackhole("wlan0", Way::Upstream)?;
    // As long as it takes to give up another domain.
    lab.blackhole("wwan0", Way::Both)?;
    lab.wait_state("wwan0", "limited")?;
    lab.wait_state("wlan0", "validated")?;
    lab.wait_decision("app", "domain", "wlan0")?;
    lab.heal("wlan0")?;
    lab.chooses("app", &app, "wlan0")
}

#[test]
fn every_kind_of_a_check_must_pass_and_one_target_of_each() -> Result<()> {
    let lab = Lab::new()?;
    // Nobody has the first address of each: behind a living gateway nothing answers there.
    let both = "http = [\"http://10.99.0.9/\", \"http://192.0.2.80/\"], icmp = [\"10.99.0.9\", \"gateway\"]";
    let (_agent, app) = start_checked(&lab, &checked(both), "")?;
    lab.wait_state("wlan0", "validated")?;
    lab.wait_state("wwan0", "validated")?;
    lab.chooses("app", &app, "wlan0")?;
    lab.serve_http("wlan0", Http::Silent)?;
    lab.wait_state("wlan0", "limited")?;
    lab.chooses("app", &app, "wwan0")
}

#[test]
fn watching_tells_each_state_and_decision_with_its_reason() -> Result<()> {
    let lab = Lab::new()?;
    let rule = "[[policy.app.rule]]\nprotocol = \"udp\"\nuse = [\"wlan0\", \"eth0\"]\n";
    let (_agent, app) = start(&lab, rule)?;
    lab.wait_state("wlan0", "validated")?;
    lab.wait_state("wwan0", "validated")?;
    lab.chooses("app", &app, "wlan0")?;
    let watch = lab.watch()?;
    let position = watch.position();
    lab.blackhole("wlan0", Way::Both)?;
    let state = watch.wait_for(position, "the state to be told", |line| {
        line["domain"] == "wlan0" && line["state"] == "limited"
    })?;
    ensure!(
        state["was"] == "validated" && state["reason"].as_str().is_some_and(|r| !r.is_empty()),
        "{state}"
    );
    for (domain, rule) in [("wwan0", json!(null)), ("eth0", json!(1))] {
        let decision = watch.wait_for(position, "the decision to be told", |line| {
            line["policy"] == "app" && line["domain"] == domain
        })?;
        ensure!(
            decision["was"] == "wlan0" && decision["rule"] == rule,
            "{decision}"
        );
        let reason = decision["reason"].as_str();
        ensure!(reason.is_some_and(|r| !r.is_empty()), "{decision}");
    }
    let nothing_else = watch.since(position, |line| line["policy"] == "app");
    ensure!(nothing_else.len() == 2, "{nothing_else:#?}");
    let other = lab.cgroup().child("other")?;
    lab.set_policy("other", &other, "eth0", &[])?;
    lab.steer(&["policy", "unset", "other"])?.success()?;
    let ended = watch.wait_for(position, "the end to be told", |line| {
        line["policy"] == "other" && line["state"] == "ended"
    })?;
    ensure!(ended["was"] == "eth0", "{ended}");
    let bad = format!(
        "[policy.app]\nmatch.cgroup = \"{}\"\nuse = [\"wlan0\"]\nuses = 1\n",
        app.name()
    );
    lab.configure_agent(&by_http(), &bad)?;
    lab.steer(&["reload"])?.success()?;
    let quarantined = watch.wait_for(position, "the quarantine to be told", |line| {
        line["policy"] == "app" && line["state"] == "quarantined"
    })?;
    ensure!(
        quarantined["was"] == "wwan0" && quarantined["reason"].to_string().contains("uses"),
        "{quarantined}"
    );
    Ok(())
}
