//! Since when a decision is what it is: as long as it stays the same, over the agent's death.

use std::time::SystemTime;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use steer_tests::{Lab, wait};

/// The host's time as the agent writes it.
fn now() -> Result<String> {
    let output = std::process::Command::new("date")
        .args(["-u", "+%Y-%m-%dT%H:%M:%SZ"])
        .output()
        .context("ask for the time")?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// Waits for the next second, so that what happens from now on has another time.
fn next_second() -> Result<()> {
    let second = || {
        SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map(|since| since.as_secs())
    };
    let began = second()?;
    wait::until("the next second", || Ok((second()? > began).then_some(())))
}

fn text(status: &Value, path: &str) -> Option<String> {
    status.pointer(path)?.as_str().map(str::to_owned)
}

#[test]
fn a_decision_is_as_old_as_it_is_over_the_agents_death() -> Result<()> {
    const SINCE: &str = "/policies/0/decision/since";
    const DOMAIN: &str = "/policies/0/decision/domain";
    let lab = Lab::new()?;
    let mut agent = lab.start_agent()?;
    let app = lab.cgroup().child("app")?;
    let status = || -> Result<Value> {
        let output = lab.steer(&["status", "--json"])?;
        serde_json::from_str(&output.stdout).with_context(|| format!("{output:#?}"))
    };
    let before = now()?;
    lab.set_policy("app", &app, "wlan0,wwan0", &[])?;
    let first = text(&status()?, SINCE).context("no time")?;
    ensure!(before <= first && first <= now()?, "{before} {first}");

    // Something else changes.
    next_second()?;
    lab.set_policy("other", &lab.cgroup().child("other")?, "eth0", &[])?;
    lab.carrier_down("eth0")?;
    ensure!(text(&status()?, SINCE).as_ref() == Some(&first));

    next_second()?;
    lab.carrier_down("wlan0")?;
    let second = wait::until("the next domain", || {
        let status = status()?;
        let moved = text(&status, DOMAIN).as_deref() == Some("wwan0");
        Ok(moved.then(|| text(&status, SINCE)))
    })?;
    let second = second.context("no time")?;
    ensure!(first < second, "{first} {second}");

    next_second()?;
    agent.kill()?;
    let offline = status()?;
    ensure!(text(&offline, SINCE).as_ref() == Some(&second), "{offline}");
    let killed = text(&offline, "/last_seen").context("nobody was seen")?;
    ensure!(second <= killed && killed <= now()?, "{second} {killed}");

    agent.start()?;
    let online = status()?;
    ensure!(text(&online, SINCE).as_ref() == Some(&second), "{online}");
    ensure!(text(&online, "/last_seen").is_none(), "{online}");

    next_second()?;
    let before = now()?;
    ensure!(agent.stop()? == 0);
    let stopped = text(&status()?, "/last_seen").context("nobody was seen")?;
    ensure!(before <= stopped && stopped <= now()?, "{before} {stopped}");
    let page = lab.steer(&["status"])?;
    for time in [&second, &stopped] {
        ensure!(
            page.unwrapped().contains(time.as_str()),
            "{time}: {page:#?}"
        );
    }
    lab.steer(&["detach"])?.success()?;
    let left = lab
        .host()
        .run(|| Ok(std::fs::exists("/run/steer/decided.json")?))?;
    ensure!(!left, "detach left the times");
    Ok(())
}
