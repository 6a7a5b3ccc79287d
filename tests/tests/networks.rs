//! Domains whose network changes under them: other prefixes, gateways and addresses, carriers that come and go,
//! and networks that are known from before.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use steer_tests::checks::{HOST4, Http};
use steer_tests::health::by_http;
use steer_tests::{Agent, Direction, Family, Kind, Lab, LabCgroup, Probe, Way, conformance, wait};

fn policy(app: &LabCgroup, lines: &str) -> String {
    let cgroup = app.name();
    format!("[policy.app]\nmatch.cgroup = \"{cgroup}\"\nuse = [\"wlan0\", \"wwan0\"]\n{lines}\n")
}

fn start<'lab>(lab: &'lab Lab, lines: &str) -> Result<(Agent<'lab>, LabCgroup)> {
    let app = lab.cgroup().child("app")?;
    lab.configure_agent(&by_http(), &policy(&app, lines))?;
    let agent = lab.start_agent()?;
    for uplink in ["wlan0", "wwan0"] {
        lab.wait_state(uplink, "validated")?;
    }
    lab.chooses("app", &app, "wlan0")?;
    Ok((agent, app))
}

#[test]
fn new_flows_bear_the_new_address_of_a_renumbered_domain() -> Result<()> {
    let lab = Lab::builder().rp_filter(1).build()?;
    let (_agent, app) = start(&lab, "")?;
    for _ in 0..2 {
        lab.renumber("wlan0")?;
        let now = lab.uplink("wlan0")?;
        for (key, address) in [("source4", now.address4()), ("source6", now.address6())] {
            let address = address.context("an address")?.to_string();
            lab.wait_decision("app", key, &address)?;
        }
        lab.wait_state("wlan0", "validated")?;
        let position = lab.position()?;
        lab.matrix_leaves_by(&app, "wlan0")?;
        // Its checks bear it too.
        wait::until("another check", || {
            let address = now.address4();
            let checked = lab.capture().has(position, |p| {
                p.uplink == "wlan0" && p.source == address && p.destination_port == Some(80)
            });
            Ok(checked.then_some(()))
        })?;
        lab.assert_sources_match(position)?;
    }
    Ok(())
}

#[test]
fn new_flows_take_the_new_gateway_of_a_domain() -> Result<()> {
    let lab = Lab::new()?;
    let (_agent, app) = start(&lab, "")?;
    let mut routers = Vec::new();
    for change in 0..3 {
        if change > 0 {
            lab.change_gateway("wlan0")?;
        }
        wait::until("flows to reach the new gateway", || {
            let target = lab.target4();
            let report = Probe::flow(Kind::UdpConnected, Family::V4, target)
                .first("set timeout=300")
                .last(&lab, &app)?;
            Ok((report.uplink.as_deref() == Some("wlan0")).then_some(()))
        })?;
        lab.wait_state("wlan0", "validated")?;
        lab.wait_decision("app", "domain", "wlan0")?;
        let position = lab.position()?;
        lab.matrix_leaves_by(&app, "wlan0")?;
        let sent = lab.capture().since(position, |p| {
            p.uplink == "wlan0" && p.direction == Direction::FromHost && p.is_ip()
        });
        let mut to: Vec<_> = sent.iter().map(|p| p.destination_mac).collect();
        to.retain(|mac| mac[0] & 1 == 0);
        to.dedup();
        ensure!(
            to.len() == 1 && !routers.contains(&to[0]),
            "{to:?} {routers:?}"
        );
        routers.extend(to);
    }
    Ok(())
}

#[test]
fn a_domain_without_address_is_left_and_gives_up_after_its_time() -> Result<()> {
    let lab = Lab::new()?;
    let (_agent, app) = start(&lab, "[domain.wlan0]\nattach-timeout = \"500ms\"")?;
    lab.address_gone("wlan0")?;
    lab.wait_state("wlan0", "configuring")?;
    lab.chooses("app", &app, "wwan0")?;
    lab.wait_domain("wlan0", "give up", |shown| {
        let reason = shown["reason"].as_str().unwrap_or_default();
        reason.contains("attach-timeout")
    })?;
    lab.chooses("app", &app, "wwan0")?;
    lab.address_back("wlan0")?;
    lab.wait_state("wlan0", "validated")?;
    // Its addresses come back one after the other.
    lab.wait_decision("app", "source6", "2001:db8:2::2")?;
    lab.chooses("app", &app, "wlan0")?;
    conformance::row(
        "WLAN-2",
        "no address within the time that the file gives: the next domain, and the reason is told",
    )
}

#[test]
fn a_domain_that_does_not_pass_its_check_in_time_gives_up() -> Result<()> {
    let lab = Lab::new()?;
    let app = lab.cgroup().child("app")?;
    lab.blackhole("wlan0", Way::Upstream)?;
    // So many failures take longer than it may take.
    let check = "check = { icmp = \"192.0.2.80\", interval = \"200ms\", fall = 100, rise = 2 }\n";
    let text = policy(&app, "[domain.wlan0]\nattach-timeout = \"500ms\"");
    lab.configure_agent(check, &text)?;
    let _agent = lab.start_agent()?;
    lab.wait_state("wwan0", "validated")?;
    lab.chooses("app", &app, "wwan0")?;
    lab.wait_state("wlan0", "limited")?;
    lab.drain()?;
    let asked = lab.capture().packets(|p| {
        p.uplink == "wlan0" && p.direction == Direction::FromHost && p.destination == Some(HOST4)
    });
    ensure!(asked.len() < 100, "it was given up by its failures");
    lab.chooses("app", &app, "wwan0")?;
    lab.heal("wlan0")?;
    lab.chooses("app", &app, "wlan0")?;
    conformance::row(
        "WLAN-2",
        "an address, and nothing behind it within the time that the file gives: the next domain",
    )
}

#[test]
fn a_domain_with_the_best_signal_and_no_working_ip_is_not_chosen_again_and_again() -> Result<()> {
    let lab = Lab::new()?;
    let (_agent, app) = start(&lab, "")?;
    lab.blackhole("wlan0", Way::Upstream)?;
    lab.wait_state("wlan0", "limited")?;
    lab.chooses("app", &app, "wwan0")?;
    let watch = lab.watch()?;
    let position = watch.position();
    for _ in 0..3 {
        lab.carrier_down("wlan0")?;
        lab.wait_state("wlan0", "down")?;
        lab.carrier_up("wlan0")?;
        lab.wait_state("wlan0", "limited")?;
        lab.chooses("app", &app, "wwan0")?;
    }
    let decided = watch.since(position, |line| line["policy"] == "app");
    ensure!(decided.is_empty(), "{decided:#?}");
    conformance::row(
        "WLAN-3",
        "layer 2 comes again and again, layer 3 never does: the domain is not chosen once",
    )
}

#[test]
fn an_unproven_network_that_failed_before_waits_for_its_check_after_a_restart() -> Result<()> {
    let lab = Lab::new()?;
    let (mut agent, app) = start(&lab, "")?;
    lab.blackhole("wlan0", Way::Upstream)?;
    lab.wait_state("wlan0", "limited")?;
    lab.chooses("app", &app, "wwan0")?;
    agent.stop()?;
    agent.start()?;
    lab.wait_state("wlan0", "limited")?;
    lab.chooses("app", &app, "wwan0")?;
    lab.heal("wlan0")?;
    lab.wait_state("wlan0", "validated")?;
    lab.chooses("app", &app, "wlan0")
}

/// Waits until the clock shows another second, which is as exactly as networks are remembered.
fn another_second() -> Result<()> {
    let now = || -> Result<u64> { Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs()) };
    let before = now()?;
    wait::until("another second", || Ok((now()? > before).then_some(())))
}

#[test]
fn the_network_that_was_good_last_comes_first_where_that_is_preferred() -> Result<()> {
    let lab = Lab::new()?;
    let (_agent, app) = start(&lab, "prefer = [\"last-good\"]")?;
    // wwan0 goes on being good when wlan0 is gone.
    lab.carrier_down("wlan0")?;
    lab.wait_state("wlan0", "down")?;
    another_second()?;
    let position = lab.position()?;
    wait::until("wwan0 to be good once more", || {
        let answered = lab.capture().since(position, |p| {
            p.uplink == "wwan0" && p.direction == Direction::ToHost && p.carries("204 No")
        });
        // What came of an answer is known when the next one is asked for.
        Ok((answered.len() > 1).then_some(()))
    })?;
    comes_back(&lab, &app, "wwan0")?;
    conformance::row(
        "WLAN-1",
        "ordered by last success: the network that was well last is taken after all were gone",
    )
}

#[test]
fn the_network_that_was_good_first_comes_first_where_that_is_preferred() -> Result<()> {
    let lab = Lab::new()?;
    lab.carrier_down("wlan0")?;
    let app = lab.cgroup().child("app")?;
    lab.configure_agent(&by_http(), &policy(&app, "prefer = [\"first-good\"]"))?;
    let _agent = lab.start_agent()?;
    lab.wait_state("wwan0", "validated")?;
    another_second()?;
    lab.carrier_up("wlan0")?;
    lab.wait_state("wlan0", "validated")?;
    comes_back(&lab, &app, "wwan0")?;
    conformance::row(
        "WLAN-1",
        "ordered by first success: the network that has been known as good for longest is taken after all were gone",
    )
}

/// All go, and come back in the order of `use`: `uplink` is chosen although it does not come first there.
fn comes_back(lab: &Lab, app: &LabCgroup, uplink: &str) -> Result<()> {
    lab.all_down()?;
    for gone in ["wlan0", "wwan0"] {
        lab.wait_state(gone, "down")?;
    }
    lab.all_up()?;
    for back in ["wlan0", "wwan0"] {
        lab.wait_state(back, "validated")?;
    }
    lab.chooses("app", app, uplink)
}

#[test]
fn all_domains_go_and_come_back() -> Result<()> {
    let lab = Lab::new()?;
    let (_agent, app) = start(&lab, "otherwise = \"block\"")?;
    let watch = lab.watch()?;
    let position = watch.position();
    lab.all_down()?;
    lab.wait_decision("app", "verdict", "block")?;
    for uplink in lab.uplink_names() {
        lab.wait_state(uplink, "down")?;
    }
    lab.matrix_is_refused(&app, None)?;
    lab.all_up()?;
    for uplink in ["wlan0", "wwan0"] {
        lab.wait_state(uplink, "validated")?;
    }
    lab.chooses("app", &app, "wlan0")?;
    lab.matrix_leaves_by(&app, "wlan0")?;
    let states: Vec<_> = watch
        .since(position, |line| {
            line["domain"] == "wwan0" && line["policy"].is_null()
        })
        .iter()
        .map(|line| line["state"].clone())
        .collect();
    ensure!(
        states.first().is_some_and(|state| state == "down")
            && states.last().is_some_and(|state| state == "validated"),
        "{states:?}"
    );
    conformance::row(
        "AND-4",
        "all domains go and come back: nothing leaves meanwhile, and the first that leads somewhere is taken again",
    )
}

#[test]
fn a_flapping_domain_is_left_alone_until_it_stays() -> Result<()> {
    const FLAPS: u32 = 5;
    let lab = Lab::new()?;
    let (_agent, app) = start(&lab, "")?;
    let watch = lab.watch()?;
    let position = watch.position();
    lab.flap("wlan0", FLAPS, Duration::from_millis(100))?;
    lab.chooses("app", &app, "wwan0")
        .context("while it is doubted")?;
    lab.chooses("app", &app, "wlan0").context("once it stays")?;
    let decided = watch.since(position, |line| line["policy"] == "app");
    // The first two losses may be forgiven at once; after the third it must stay for a while.
    ensure!(
        (2..=6).contains(&decided.len()),
        "{} decisions: {decided:#?}",
        decided.len()
    );
    Ok(())
}

#[test]
fn a_link_that_flaps_every_second_for_a_minute_changes_a_decision_five_times_at_most() -> Result<()>
{
    let lab = Lab::new()?;
    let (_agent, app) = start(&lab, "")?;
    lab.wait_state("wlan0", "validated")?;
    lab.wait_state("wwan0", "validated")?;
    lab.chooses("app", &app, "wlan0")?;
    let watch = lab.watch()?;
    let position = watch.position();
    lab.flap("wlan0", 60, Duration::from_secs(1))?;
    lab.chooses("app", &app, "wwan0")?;
    let decided = watch.since(position, |line| line["policy"] == "app");
    ensure!(
        (1..=5).contains(&decided.len()),
        "{} decisions: {decided:#?}",
        decided.len()
    );
    Ok(())
}

#[test]
fn a_login_at_one_network_says_nothing_about_another() -> Result<()> {
    let lab = Lab::new()?;
    let (_agent, app) = start(&lab, "")?;
    lab.serve_http("wlan0", Http::Login)?;
    lab.wait_state("wlan0", "portal")?;
    lab.serve_http("wlan0", Http::Right)?;
    lab.wait_state("wlan0", "validated")?;
    lab.chooses("app", &app, "wlan0")?;
    // Another network, with a portal of its own.
    let position = lab.position()?;
    lab.serve_http("wlan0", Http::Login)?;
    lab.renumber("wlan0")?;
    lab.wait_state("wlan0", "portal")?;
    lab.chooses("app", &app, "wwan0")?;
    let now = lab.uplink("wlan0")?.address4();
    let asked = lab.capture().has(position, |p| {
        p.uplink == "wlan0" && p.source == now && p.destination_port == Some(80)
    });
    ensure!(asked, "it was not checked again");
    Ok(())
}
