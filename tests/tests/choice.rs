//! Which of several domains that lead somewhere is chosen: by what was measured, by what they cost and carry, by
//! where they lead, and as the host and its user prefer.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use steer_tests::health::{by_http, checked};
use steer_tests::{
    Agent, Family, Impairment, Kind, Lab, LabCgroup, Probe, Uplink, Way, conformance, wait,
};

/// Checks whose answers may take a while: they are late on purpose.
const UNHURRIED: &str =
    "check = { icmp = \"gateway\", interval = \"400ms\", fall = 3, rise = 2 }\n";

/// A laboratory whose domains can be made bad.
fn relayed() -> Result<Lab> {
    Lab::builder()
        .uplinks([
            Uplink::new("eth0", 1),
            Uplink::new("wlan0", 2).relayed(),
            Uplink::new("wwan0", 3).relayed(),
        ])
        .build()
}

/// The text of a policy `app` for `wlan0` and `wwan0` that says this too.
fn policy(app: &LabCgroup, lines: &str) -> String {
    let cgroup = app.name();
    format!("[policy.app]\nmatch.cgroup = \"{cgroup}\"\nuse = [\"wlan0\", \"wwan0\"]\n{lines}\n")
}

fn start<'lab>(lab: &'lab Lab, agent: &str, lines: &str) -> Result<(Agent<'lab>, LabCgroup)> {
    let app = lab.cgroup().child("app")?;
    lab.configure_agent(agent, &policy(&app, lines))?;
    let running = lab.start_agent()?;
    for uplink in ["wlan0", "wwan0"] {
        lab.wait_state(uplink, "validated")?;
    }
    Ok((running, app))
}

/// Waits until the latency of `domain` is known to be between these.
fn wait_latency(lab: &Lab, domain: &str, least: f64, most: f64) -> Result<()> {
    let what = format!("have a latency between {least} and {most} ms");
    lab.wait_domain(domain, &what, |shown| {
        let latency = shown.pointer("/measured/latency_us");
        let latency = latency.and_then(serde_json::Value::as_f64);
        latency.is_some_and(|us| (least * 1e3..most * 1e3).contains(&us))
    })
    .map(drop)
}

#[test]
fn the_domain_with_the_shorter_way_is_chosen_and_chosen_again_when_that_changes() -> Result<()> {
    let lab = relayed()?;
    let late = Impairment::late(Duration::from_millis(20));
    lab.impair("wlan0", late)?;
    let (_agent, app) = start(&lab, UNHURRIED, "prefer = [\"latency\"]")?;
    // It is the first of `use`, and both lead where they should.
    wait_latency(&lab, "wlan0", 40.0, 200.0)?;
    lab.chooses("app", &app, "wwan0")?;
    let reason = lab.candidate("app", "wlan0", false)?;
    ensure!(reason.contains("wwan0"), "{reason}");
    lab.candidate("app", "wwan0", true)?;

    lab.impair("wlan0", Impairment::default())?;
    lab.impair("wwan0", Impairment::late(Duration::from_millis(50)))?;
    lab.chooses("app", &app, "wlan0")?;
    conformance::row(
        "P-4.2-2",
        "two domains reach the destination: the one with the shorter round trip, as measured, is taken, and the other one when that changes",
    )?;
    conformance::row(
        "WM-1",
        "choice by measured latency, which is measured again and again",
    )
}

#[test]
fn a_little_better_is_no_reason_for_a_change() -> Result<()> {
    let lab = relayed()?;
    let late = |milliseconds| Impairment::late(Duration::from_millis(milliseconds));
    lab.impair("wlan0", late(10))?;
    lab.impair("wwan0", late(40))?;
    let lines = "prefer = [\"latency\"]\nmargin = \"90%\"";
    let (_agent, app) = start(&lab, UNHURRIED, lines)?;
    lab.chooses("app", &app, "wlan0")?;
    // Half as long, which is less than the margin.
    lab.impair("wwan0", late(5))?;
    wait_latency(&lab, "wwan0", 10.0, 18.0)?;
    lab.chooses("app", &app, "wlan0")?;
    let position = lab.position()?;
    lab.reload(
        UNHURRIED,
        &policy(&app, "prefer = [\"latency\"]\nmargin = \"1%\""),
    )?;
    lab.chooses("app", &app, "wwan0")?;
    lab.assert_sources_match(position)
}

#[test]
fn a_domain_that_is_too_late_does_not_meet_a_requirement() -> Result<()> {
    let lab = relayed()?;
    let lines = "require = { max-latency = \"30ms\" }";
    let (_agent, app) = start(&lab, UNHURRIED, lines)?;
    lab.chooses("app", &app, "wlan0")?;
    lab.impair("wlan0", Impairment::late(Duration::from_millis(50)))?;
    lab.chooses("app", &app, "wwan0")?;
    let reason = lab.candidate("app", "wlan0", false)?;
    ensure!(reason.contains("latency"), "{reason}");
    conformance::row("WM-1", "a highest latency is required, and measured")
}

#[test]
fn a_domain_whose_layer_2_lets_nearly_nothing_through_is_left() -> Result<()> {
    let lab = relayed()?;
    let poor = Impairment {
        seed: 7,
        ..Impairment::lossy(90)
    };
    let (_agent, app) = start(&lab, &by_http(), "")?;
    lab.chooses("app", &app, "wlan0")?;
    lab.impair("wlan0", poor)?;
    lab.wait_state("wlan0", "limited")?;
    lab.chooses("app", &app, "wwan0")?;
    lab.impair("wlan0", Impairment::default())?;
    lab.wait_state("wlan0", "validated")?;
    lab.chooses("app", &app, "wlan0")?;
    conformance::row(
        "P-4.4-2",
        "nine of ten packets are lost while the interface is up: the domain is left, and chosen again when it is well",
    )
}

#[test]
fn a_domain_whose_layer_2_is_poor_from_the_beginning_is_not_chosen() -> Result<()> {
    let lab = relayed()?;
    let poor = Impairment {
        seed: 7,
        ..Impairment::lossy(90)
    };
    lab.impair("wlan0", poor)?;
    let app = lab.cgroup().child("app")?;
    lab.configure_agent(&by_http(), &policy(&app, ""))?;
    let _agent = lab.start_agent()?;
    lab.wait_state("wwan0", "validated")?;
    lab.chooses("app", &app, "wwan0")?;
    lab.wait_state("wlan0", "limited")?;
    lab.chooses("app", &app, "wwan0")?;
    conformance::row("P-4.4-2", "poor from the beginning: never chosen")
}

#[test]
fn a_domain_that_loses_too_much_does_not_meet_a_requirement() -> Result<()> {
    let lab = relayed()?;
    // So many failures in a row do not come: only the requirement is about what is lost.
    let check = "check = { icmp = \"gateway\", interval = \"100ms\", fall = 100, rise = 1 }\n";
    let (_agent, app) = start(&lab, check, "require = { max-loss = \"20%\" }")?;
    lab.chooses("app", &app, "wlan0")?;
    lab.impair("wlan0", Impairment::lossy(40))?;
    lab.chooses("app", &app, "wwan0")?;
    let reason = lab.candidate("app", "wlan0", false)?;
    ensure!(reason.contains("loses"), "{reason}");
    ensure!(lab.domain("wlan0")?["state"] == "validated");
    lab.impair("wlan0", Impairment::default())?;
    lab.chooses("app", &app, "wlan0")?;
    conformance::row("WM-1", "a highest error rate is required, and measured")
}

#[test]
fn the_cheaper_domain_is_chosen() -> Result<()> {
    let lab = Lab::new()?;
    let app = lab.cgroup().child("app")?;
    let costs = |wlan0: u32, wwan0: u32, more: &str| {
        let policy = policy(&app, &format!("prefer = [\"cost\"]\n{more}"));
        format!("{policy}[domain.wlan0]\ncost = {wlan0}\n[domain.wwan0]\ncost = {wwan0}\n")
    };
    lab.configure_agent(&by_http(), &costs(20, 10, ""))?;
    let _agent = lab.start_agent()?;
    lab.wait_state("wlan0", "validated")?;
    lab.chooses("app", &app, "wwan0")?;
    let reason = lab.candidate("app", "wlan0", false)?;
    ensure!(reason.contains("wwan0"), "{reason}");

    lab.reload(&by_http(), &costs(10, 20, ""))?;
    lab.chooses("app", &app, "wlan0")?;
    // The cheaper one leads nowhere: what it costs is no matter.
    lab.blackhole("wlan0", Way::Both)?;
    lab.chooses("app", &app, "wwan0")?;
    lab.heal("wlan0")?;
    lab.chooses("app", &app, "wlan0")?;

    lab.reload(
        &by_http(),
        &costs(10, 20, "require = { max-cost = 9 }\notherwise = \"block\""),
    )?;
    lab.wait_decision("app", "verdict", "block")?;
    lab.reload(&by_http(), &costs(30, 20, "require = { max-cost = 20 }"))?;
    lab.chooses("app", &app, "wwan0")?;
    conformance::row(
        "WM-1",
        "choice by cost, and a highest cost that is required",
    )
}

#[test]
fn cost_type_of_service_and_the_users_preference_choose() -> Result<()> {
    let lab = Lab::new()?;
    let app = lab.cgroup().child("app")?;
    let cgroup = app.name();
    lab.configure_agent(
        &by_http(),
        &format!(
            "[domain.wlan0]\ncost = 10\n[domain.wwan0]\ncost = 20\n\
             [policy.app]\nmatch.cgroup = \"{cgroup}\"\nuse = [\"wwan0\", \"wlan0\"]\n\
             prefer = [\"cost\"]\n\
             [[policy.app.rule]]\ndscp = \"EF\"\nuse = \"wwan0\"\n"
        ),
    )?;
    let _agent = lab.start_agent()?;
    lab.wait_state("wlan0", "validated")?;
    lab.wait_state("wwan0", "validated")?;
    lab.chooses("app", &app, "wlan0")?;
    let target = lab.target4();
    Probe::flow(Kind::Tcp, Family::V4, target)
        .first("set tos=184")
        .succeed(&lab, &app)?;
    lab.assert_only_by("wwan0", target)?;
    lab.steer(&["domain", "prefer", "wwan0"])?.success()?;
    lab.chooses("app", &app, "wwan0")?;
    lab.blackhole("wwan0", Way::Both)?;
    lab.wait_state("wwan0", "limited")?;
    lab.chooses("app", &app, "wlan0")?;
    conformance::row(
        "BB-3",
        "the cheaper domain; another one for a type of service; the one the user prefers, as long as it leads somewhere",
    )
}

#[test]
fn the_domain_that_carries_more_is_chosen() -> Result<()> {
    let lab = Lab::new()?;
    let app = lab.cgroup().child("app")?;
    let carries = |wlan0: &str, wwan0: &str, lines: &str| {
        let policy = policy(&app, lines);
        format!(
            "{policy}[domain.wlan0]\nbandwidth = \"{wlan0}\"\n[domain.wwan0]\nbandwidth = \"{wwan0}\"\n"
        )
    };
    let prefer = "prefer = [\"bandwidth\"]";
    lab.configure_agent(&by_http(), &carries("10M", "50M", prefer))?;
    let _agent = lab.start_agent()?;
    lab.wait_state("wlan0", "validated")?;
    lab.chooses("app", &app, "wwan0")?;
    lab.reload(&by_http(), &carries("100M", "50M", prefer))?;
    lab.chooses("app", &app, "wlan0")?;
    let least = "require = { min-bandwidth = \"20M\" }";
    lab.reload(&by_http(), &carries("10M", "50M", least))?;
    lab.chooses("app", &app, "wwan0")?;
    lab.candidate("app", "wlan0", false)?;
    conformance::row(
        "WM-1",
        "choice by bandwidth, and a lowest one that is required",
    )
}

#[test]
fn availability_cost_and_stability_choose_in_this_order() -> Result<()> {
    let lab = Lab::new()?;
    let app = lab.cgroup().child("app")?;
    let lines = "require = { max-cost = 10 }\nprefer = [\"cost\", \"stability\"]";
    let costs = |wlan0: u32| {
        let policy = policy(&app, lines);
        format!("{policy}[domain.wlan0]\ncost = {wlan0}\n[domain.wwan0]\ncost = 10\n")
    };
    lab.configure_agent(&by_http(), &costs(10))?;
    let _agent = lab.start_agent()?;
    lab.wait_state("wlan0", "validated")?;
    lab.wait_state("wwan0", "validated")?;
    lab.chooses("app", &app, "wlan0")?;
    lab.carrier_down("wlan0")?;
    lab.chooses("app", &app, "wwan0")?;
    lab.carrier_up("wlan0")?;
    lab.wait_state("wlan0", "validated")?;
    // It costs the same, comes first in `use`, and was lost once.
    lab.chooses("app", &app, "wwan0")?;
    let reason = lab.candidate("app", "wlan0", false)?;
    ensure!(reason.contains("wwan0"), "{reason}");
    lab.reload(&by_http(), &costs(9))?;
    lab.chooses("app", &app, "wlan0")?;
    lab.reload(&by_http(), &costs(11))?;
    lab.chooses("app", &app, "wwan0")?;
    conformance::row(
        "ARENA-1",
        "a requirement first, then cost, then how often a domain was lost",
    )
}

#[test]
fn the_lowest_metric_comes_first() -> Result<()> {
    let lab = Lab::builder()
        .uplinks([
            Uplink::new("eth0", 1).metric(300),
            Uplink::new("eth1", 2).metric(200),
            Uplink::new("eth2", 3).metric(250),
        ])
        .build()?;
    let app = lab.cgroup().child("app")?;
    let cgroup = app.name();
    let text = |lines: &str| format!("[policy.app]\nmatch.cgroup = \"{cgroup}\"\n{lines}\n");
    for lines in [
        "use = \"any\"",
        "use = [\"eth0\", \"eth1\", \"eth2\"]\nprefer = [\"metric\"]",
    ] {
        lab.configure_agent(&by_http(), &text(lines))?;
        let mut agent = lab.start_agent()?;
        lab.chooses("app", &app, "eth1")?;
        for family in ["-4", "-6"] {
            let gateway = if family == "-4" {
                "10.3.0.1"
            } else {
                "2001:db8:3::1"
            };
            lab.ip(&[
                family, "route", "add", "default", "via", gateway, "dev", "eth2", "metric", "100",
            ])?;
        }
        lab.chooses("app", &app, "eth2")?;
        for family in ["-4", "-6"] {
            lab.ip(&[
                family, "route", "delete", "default", "dev", "eth2", "metric", "100",
            ])?;
        }
        lab.chooses("app", &app, "eth1")?;
        agent.stop()?;
    }
    conformance::row(
        "WIN-1",
        "of several domains the one with the lowest metric is taken",
    )
}

#[test]
fn a_primary_interface_is_the_hosts_whatever_came_up_first() -> Result<()> {
    let lab = Lab::new()?;
    lab.configure_agent(
        &format!("primary = [\"wlan0\"]\n{}", by_http()),
        "[policy.default]\nuse = \"any\"\n",
    )?;
    let _agent = lab.start_agent()?;
    let anybody = lab.cgroup().child("anybody")?;
    let leaves_by = |uplink: &str| -> Result<()> {
        lab.chooses("default", &anybody, uplink)?;
        lab.matrix_leaves_by(&anybody, uplink)
    };
    leaves_by("wlan0")?;
    for order in [["eth0", "wlan0", "wwan0"], ["wlan0", "wwan0", "eth0"]] {
        lab.all_down()?;
        for uplink in order {
            lab.carrier_up(uplink)?;
            lab.wait_state(uplink, "validated")?;
        }
        leaves_by("wlan0")?;
    }
    lab.carrier_down("wlan0")?;
    leaves_by("eth0")?;
    conformance::row(
        "MAC-1",
        "the primary interface gives the host's default, in whatever order interfaces came up",
    )
}

/// Flows to `target` leave by `uplink` by now, or soon.
fn reaches(lab: &Lab, app: &LabCgroup, target: IpAddr, uplink: &str) -> Result<()> {
    wait::until(&format!("{target} to be reached by {uplink}"), || {
        let report = Probe::flow(Kind::UdpConnected, Family::V4, target)
            .first("set timeout=300")
            .last(lab, app)?;
        Ok((report.uplink.as_deref() == Some(uplink)).then_some(()))
    })?;
    let position = lab.position()?;
    Probe::flow(Kind::Tcp, Family::V4, target).succeed(lab, app)?;
    lab.drain()?;
    let about = lab.capture().since(position, |p| p.is_about(target));
    let strays: Vec<_> = about.iter().filter(|p| p.uplink != uplink).collect();
    ensure!(!about.is_empty() && strays.is_empty(), "{strays:?}");
    lab.assert_sources_match(position)
}

#[test]
fn only_domains_that_lead_to_the_destination_are_candidates() -> Result<()> {
    let lab = Lab::builder()
        .uplinks([
            Uplink::new("eth0", 1).without_default_route(),
            Uplink::new("wlan0", 2),
        ])
        .build()?;
    let app = lab.cgroup().child("app")?;
    let cgroup = app.name();
    // Checked by what is on its own link, so that both are well.
    lab.configure_agent(
        &checked("icmp = [\"10.1.0.1\", \"10.2.0.1\"]"),
        &format!(
            "[policy.app]\nmatch.cgroup = \"{cgroup}\"\nuse = \"any\"\n\
             [[policy.app.rule]]\ndestination = [\"198.51.100.0/24\"]\nuse = [\"eth0\", \"wlan0\"]\n"
        ),
    )?;
    let _agent = lab.start_agent()?;
    lab.wait_state("eth0", "validated")?;
    lab.wait_state("wlan0", "validated")?;
    lab.chooses("app", &app, "wlan0")?;
    let reason = lab.candidate("app", "eth0", false)?;
    ensure!(reason.contains("route"), "{reason}");
    let target = "198.51.100.77".parse()?;
    reaches(&lab, &app, target, "wlan0")?;
    lab.ip(&[
        "route",
        "add",
        "198.51.100.0/24",
        "via",
        "10.1.0.1",
        "dev",
        "eth0",
    ])?;
    reaches(&lab, &app, target, "eth0")?;
    lab.chooses("app", &app, "wlan0")?;
    lab.ip(&["route", "delete", "198.51.100.0/24", "dev", "eth0"])?;
    reaches(&lab, &app, target, "wlan0")?;
    conformance::row(
        "WM-2",
        "a domain without a route to a rule's destination, or to anywhere, is no candidate until it has one",
    )
}
