//! The agent's life: killed and restarted under load, stopped, started again, detached.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use steer_tests::report::{DISCARD_PORT, ECHO_PORT};
use steer_tests::{Direction, Family, Kind, Lab, Probe, Snapshot, wait};

/// How often the agent is killed: `STEER_RESTARTS`, 50 on CI, else a few times.
fn restarts() -> usize {
    let wanted = std::env::var("STEER_RESTARTS")
        .ok()
        .and_then(|text| text.parse().ok());
    wanted.unwrap_or(if std::env::var_os("CI").is_some() {
        50
    } else {
        5
    })
}

/// Sequence numbers after `token` in what the host sent, with how often each was seen on which uplink.
fn numbers_seen(lab: &Lab, token: &str) -> BTreeMap<u64, Vec<String>> {
    let prefix = format!("{token}-");
    let mut seen: BTreeMap<u64, Vec<String>> = BTreeMap::new();
    for packet in lab
        .capture()
        .packets(|p| p.direction == Direction::FromHost && p.protocol == Some(17))
    {
        let text = String::from_utf8_lossy(&packet.payload).into_owned();
        let number = text
            .strip_prefix(&prefix)
            .and_then(|rest| rest.split_once(';'));
        if let Some(number) = number.and_then(|(number, _)| number.parse().ok()) {
            seen.entry(number).or_default().push(packet.uplink);
        }
    }
    seen
}

#[test]
fn a_killed_and_restarted_agent_loses_nothing_and_leaks_nothing() -> Result<()> {
    let lab = Lab::builder().rp_filter(1).build()?;
    let mut agent = lab.start_agent()?;
    let app = lab.cgroup().child("app")?;
    lab.set_policy("app", &app, "wlan0", &["--strict"])?;

    let targets = [lab.target4(), lab.target6(), lab.target4(), lab.target6()];
    let mut floods = Vec::new();
    for (number, family) in [Family::V4, Family::V6].into_iter().enumerate() {
        let to = SocketAddr::new(targets[number], DISCARD_PORT);
        let mut session = Probe::new(Kind::UdpConnected, family).start(&lab, &app)?;
        session.succeed(&format!("connect {to}"))?;
        session.ask(&format!("flood flow{number}"))?;
        floods.push(session);
    }
    let mut churns = Vec::new();
    for (number, family) in [(2, Family::V4), (3, Family::V6)] {
        let to = SocketAddr::new(targets[number], ECHO_PORT);
        let mut session = Probe::new(Kind::Tcp, family).start(&lab, &app)?;
        session.ask(&format!("churn new{number} {to}"))?;
        churns.push(session);
    }

    for round in 0..restarts() {
        agent
            .restart_after_kill()
            .with_context(|| format!("round {round}"))?;
    }

    for (number, mut session) in floods.into_iter().enumerate() {
        session.ask("close")?;
        let report = session.read()?;
        ensure!(
            report.tried > 0 && report.failed == 0,
            "sending failed: {report:?}"
        );
        lab.drain()?;
        let seen = numbers_seen(&lab, &format!("flow{number}"));
        for sequence in 1..=report.tried {
            let uplinks = seen.get(&sequence).map(Vec::as_slice).unwrap_or_default();
            ensure!(
                uplinks == ["wlan0"],
                "datagram {sequence} of {} was seen on {uplinks:?}",
                report.tried
            );
        }
    }
    for mut session in churns {
        session.ask("close")?;
        let report = session.read()?;
        ensure!(
            report.tried > 0 && report.failed == 0,
            "new flows failed: {report:?}"
        );
    }
    for target in targets {
        lab.assert_only_by("wlan0", target)?;
    }
    Ok(())
}

#[test]
fn runs_policy_is_still_there_after_the_agent_was_killed() -> Result<()> {
    let lab = Lab::new()?;
    let mut agent = lab.start_agent()?;
    let mut session =
        Probe::new(Kind::UdpConnected, Family::V4).start_by_run(&lab, "wlan0", &[])?;
    let mut flow = |what: &str| -> Result<()> {
        let target = lab.target4();
        session.succeed("open udp 4")?;
        session.succeed(&format!("connect {}", SocketAddr::new(target, ECHO_PORT)))?;
        session.succeed("send token")?;
        lab.assert_only_by("wlan0", target)
            .map(drop)
            .with_context(|| what.to_owned())
    };
    flow("before")?;
    agent.kill()?;
    flow("while the agent is dead")?;
    agent.start()?;
    flow("after")?;
    let policies = lab.steer(&["policy", "list", "--json"])?.json()?;
    ensure!(
        policies.as_array().is_some_and(|list| list.len() == 1),
        "{policies}"
    );
    drop(session);
    wait::until("run's policy and cgroup to be gone", || {
        let policies = lab.steer(&["policy", "list", "--json"])?.json()?;
        let below = lab.cgroup().child("steer")?.descendants()?;
        Ok((policies == Value::Array(Vec::new()) && below.is_empty()).then_some(()))
    })
}

#[test]
fn what_ended_while_the_agent_was_dead_is_cleared_away_by_the_next() -> Result<()> {
    let lab = Lab::new()?;
    let mut agent = lab.start_agent()?;
    let session = Probe::new(Kind::Tcp, Family::V4).start_by_run(&lab, "wlan0", &[])?;
    agent.kill()?;
    drop(session);
    agent.start()?;
    wait::until("run's policy and cgroup to be gone", || {
        let policies = lab.steer(&["policy", "list", "--json"])?.json()?;
        let below = lab.cgroup().child("steer")?.descendants()?;
        Ok((policies == Value::Array(Vec::new()) && below.is_empty()).then_some(()))
    })
}

#[test]
fn a_stopped_agent_keeps_its_last_decisions_and_the_next_adopts_them() -> Result<()> {
    let lab = Lab::new()?;
    let mut agent = lab.start_agent()?;
    let app = lab.cgroup().child("app")?;
    lab.set_policy("app", &app, "wlan0", &["--strict"])?;
    let running = Snapshot::take(&lab)?;
    let code = agent.stop()?;
    ensure!(code == 0, "the agent ended with {code}");
    lab.matrix_leaves_by(&app, "wlan0").context("stopped")?;
    running
        .assert_same(&Snapshot::take(&lab)?)
        .context("stopped")?;
    let status = lab.steer(&["status", "--json"])?;
    status.failure(3)?;
    agent.start()?;
    lab.matrix_leaves_by(&app, "wlan0")
        .context("started again")?;
    running
        .assert_same_but(&Snapshot::take(&lab)?, &["pins"])
        .context("started again")
}

#[test]
fn a_policy_removed_from_the_file_while_the_agent_was_dead_ends() -> Result<()> {
    let lab = Lab::new()?;
    let app = lab.cgroup().child("app")?;
    let policy = format!(
        "[policy.app]\nmatch.cgroup = \"{}\"\nuse = [\"wlan0\"]\n",
        app.name()
    );
    lab.configure(&policy)?;
    let mut agent = lab.start_agent()?;
    lab.flow_leaves_by(&app, "wlan0", Kind::Tcp, Family::V4)?;
    agent.kill()?;
    lab.configure("")?;
    agent.start()?;
    lab.matrix_leaves_by(&app, "eth0")
}

#[test]
fn detach_leaves_the_host_as_it_was() -> Result<()> {
    let lab = Lab::new()?;
    let app = lab.cgroup().child("app")?;
    for cgroup in ["agent", "cli"] {
        lab.cgroup().child(cgroup)?;
    }
    let before = Snapshot::take(&lab)?;
    let cgroups = lab.cgroup().descendants()?;
    for kill in [false, true] {
        let mut agent = lab.start_agent()?;
        lab.set_policy("app", &app, "wlan0,wwan0", &[])?;
        lab.set_policy("other", &app.child("inner")?, "wwan0", &["--strict"])?;
        let session = Probe::new(Kind::Tcp, Family::V4).start_by_run(&lab, "wlan0", &[])?;
        lab.matrix_leaves_by(&app, "wlan0")?;
        lab.steer(&["detach"])?
            .failure(1)
            .context("detach while the agent runs")?;
        drop(session);
        if kill {
            agent.kill()?;
        } else {
            agent.stop()?;
        }
        lab.steer(&["detach"])?.success()?;
        before
            .assert_same(&Snapshot::take(&lab)?)
            .with_context(|| format!("killed: {kill}"))?;
        app.child("inner")?.remove()?;
        let left = lab.cgroup().descendants()?;
        ensure!(left == cgroups, "cgroups differ: {cgroups:?}, now {left:?}");
        lab.matrix_leaves_by(&app, "eth0").context("after detach")?;
        lab.steer(&["detach"])?.success().context("detach twice")?;
    }
    Ok(())
}

#[test]
fn without_any_file_run_does_what_it_says() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    let domains = lab.steer(&["domain", "list", "--json"])?.json()?;
    let names: Vec<&str> = domains
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|domain| domain.get("name")?.as_str())
        .collect();
    ensure!(names == ["eth0", "wlan0", "wwan0"], "{names:?}");
    for via in names {
        let mut session =
            Probe::new(Kind::UdpConnected, Family::V6).start_by_run(&lab, via, &["--strict"])?;
        let target = lab.target6();
        session.succeed(&format!("connect {}", SocketAddr::new(target, ECHO_PORT)))?;
        session.succeed("send token")?;
        lab.assert_only_by(via, target)?;
    }
    Ok(())
}

/// A strict policy, with traffic that it lets out by `wlan0`; then what `break_it` does to the dead agent's
/// world, and what `restart` makes of it. Nothing may leave by another uplink.
fn strict_stays_closed(
    break_it: impl FnOnce(&Lab) -> Result<()>,
    restart: impl FnOnce(&Lab, &mut steer_tests::Agent<'_>) -> Result<()>,
) -> Result<()> {
    let lab = Lab::new()?;
    let mut agent = lab.start_agent()?;
    let app = lab.cgroup().child("app")?;
    lab.set_policy("app", &app, "wlan0", &["--strict"])?;
    let to = SocketAddr::new(lab.target4(), ECHO_PORT);
    let mut flow = Probe::new(Kind::Tcp, Family::V4).start(&lab, &app)?;
    flow.succeed(&format!("connect {to}"))?;
    lab.assert_only_by("wlan0", to.ip())?;

    agent.kill()?;
    break_it(&lab)?;
    restart(&lab, &mut agent)?;
    for target in [lab.target4(), lab.target6()] {
        let family = if target.is_ipv4() {
            Family::V4
        } else {
            Family::V6
        };
        for kind in [Kind::Tcp, Kind::UdpConnected, Kind::UdpUnconnected] {
            let mut probe = Probe::new(kind, family).start(&lab, &app)?;
            let to = SocketAddr::new(target, ECHO_PORT);
            let operation = match kind {
                Kind::UdpUnconnected => format!("post hello {to}"),
                _ => format!("connect {to}"),
            };
            let report = probe.perform(&operation)?;
            ensure!(!report.ok, "{kind:?} to {to} was not refused");
        }
        lab.drain()?;
        lab.assert_silent(target)?;
    }
    Ok(())
}

#[test]
fn a_strict_policy_stays_closed_when_its_domain_is_gone_at_the_next_start() -> Result<()> {
    strict_stays_closed(
        |lab| lab.delete_link("wlan0"),
        |lab, agent| {
            agent.start()?;
            let shown = lab.steer(&["policy", "show", "app", "-j"])?.json()?;
            ensure!(shown["decision"]["verdict"] == "block", "{shown}");
            Ok(())
        },
    )
}

#[test]
fn a_lost_record_of_a_strict_policy_stops_the_next_agent() -> Result<()> {
    strict_stays_closed(
        |lab| {
            lab.write_file("/run/steer/state.json", "{\"version\":1,")?;
            lab.delete_link("wlan0")
        },
        |lab, _agent| {
            let ended = lab.agent_that_ends()?;
            let words = ended.failure(1)?;
            ensure!(words.contains("steer detach"), "{words}");
            Ok(())
        },
    )
}
