//! Kernel programs that were built with the feature `log-programs` say what they decide, as much of it as the
//! agent's log shows, and do their work while nobody listens.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;

use anyhow::{Context, Result, ensure};
use steer_tests::report::{DISCARD_PORT, ECHO_PORT};
use steer_tests::{Agent, Family, Kind, Lab, LabCgroup, Probe, wait};

/// Datagrams whose messages are more than the programs' ring of 128 KiB holds: each takes a quarter of one.
const MORE_THAN_FITS: usize = 600;

/// An agent whose programs log and that logs what `filter` says.
fn agent<'lab>(lab: &'lab Lab, filter: &str) -> Result<Agent<'lab>> {
    let mut agent = lab.agent()?;
    agent.upgrade(true)?;
    agent.log_what(filter);
    lab.configure("")?;
    agent.start()?;
    Ok(agent)
}

/// Waits until the agent has logged `message`.
fn wait_logged(agent: &Agent<'_>, message: &str) -> Result<()> {
    wait::until(&format!("`{message}` in the log"), || {
        Ok(agent.log().contains(message).then_some(()))
    })
    .with_context(|| agent.log())
}

fn ifindex(lab: &Lab, uplink: &str) -> Result<u64> {
    let links = lab.ip_json(&["link", "show", uplink])?;
    links[0]["ifindex"].as_u64().context("no ifindex")
}

/// A flow that a socket program decided, to an address of its own.
fn flow(lab: &Lab, kind: Kind, family: Family, app: &LabCgroup) -> Result<String> {
    let target = family.target(lab);
    Probe::flow(kind, family, target).succeed(lab, app)?;
    Ok(match family {
        Family::V6 => target.to_string(),
        Family::V4 | Family::Mapped => format!("::ffff:{target}"),
    })
}

#[test]
fn what_connect_sendmsg_guard_repair_and_cgroup_mkdir_decide_is_logged() -> Result<()> {
    let lab = Lab::new()?;
    let agent = agent(&lab, "info,steer::programs=trace")?;
    let [steered, strict, older] =
        ["steered", "strict", "older"].map(|name| lab.cgroup().child(name));
    let (steered, strict, older) = (steered?, strict?, older?);
    let to = SocketAddr::new(lab.target4(), ECHO_PORT);
    let mut session = Probe::new(Kind::UdpConnected, Family::V4).start(&lab, &older)?;
    session.succeed(&format!("connect {to}"))?;
    // Numbers are given in this order.
    lab.set_policy("steered", &steered, "wlan0", &[])?;
    lab.set_policy("strict", &strict, "wwan0", &["--strict"])?;
    lab.configure(&format!(
        "[policy.older]\nmatch.cgroup = \"{}\"\nuse = [\"wlan0\"]\nrepair = true\n",
        older.name()
    ))?;
    lab.steer(&["reload"])?.success()?;

    for (kind, hook) in [
        (Kind::UdpConnected, "connect"),
        (Kind::UdpUnconnected, "sendmsg"),
    ] {
        for family in [Family::V4, Family::V6] {
            let target = flow(&lab, kind, family, &steered)?;
            let chosen = "policy 1 by choice 1: domain 1";
            wait_logged(&agent, &format!("{hook} to {target}: {chosen}"))?;
        }
    }

    session.succeed("send repaired")?;
    let (eth0, wlan0, wwan0) = (
        ifindex(&lab, "eth0")?,
        ifindex(&lab, "wlan0")?,
        ifindex(&lab, "wwan0")?,
    );
    wait_logged(
        &agent,
        &format!("guard at interface {eth0}: policy 3 wants domain 1: wrong"),
    )?;
    wait_logged(
        &agent,
        &format!("repair: policy 3: lease on domain 1 at interface {wlan0}"),
    )?;

    let target = lab.target4();
    let to = SocketAddr::new(target, DISCARD_PORT);
    // With a source of eth0, by its own domain.
    Probe::named("header", Family::V4)
        .then("set source=10.1.0.2")
        .then(&format!("post dropped {to}"))
        .run(&lab, &strict)?;
    lab.assert_silent(target)?;
    wait_logged(
        &agent,
        &format!("guard at interface {wwan0}: policy 2 drops: no source of domain 2"),
    )?;

    lab.carrier_down("wwan0")?;
    lab.wait_decision("strict", "verdict", "block")?;
    let target = lab.target4();
    Probe::flow(Kind::Tcp, Family::V4, target).run(&lab, &strict)?;
    wait_logged(
        &agent,
        &format!(
            "connect to ::ffff:{target}: policy 2 refuses: errno -{}",
            libc::ENETUNREACH
        ),
    )?;

    let made = fs::metadata(steered.child("new")?.path())?.ino();
    wait_logged(&agent, &format!("cgroup {made} is made: policy 1, flags 0"))
}

#[test]
fn programs_skip_what_the_log_does_not_show_and_go_on_without_an_agent() -> Result<()> {
    let lab = Lab::new()?;
    let mut agent = agent(&lab, "info,steer::programs=trace")?;
    let app = lab.cgroup().child("app")?;
    lab.set_policy("app", &app, "wlan0", &[])?;
    let to = SocketAddr::new(lab.target4(), ECHO_PORT);
    let mut session = Probe::new(Kind::UdpUnconnected, Family::V4).start(&lab, &app)?;
    session.succeed(&format!("send heard {to}"))?;
    wait_logged(&agent, &format!("sendmsg to ::ffff:{}", to.ip()))?;

    agent.kill()?;
    let discard = SocketAddr::new(to.ip(), DISCARD_PORT);
    for number in 0..MORE_THAN_FITS {
        session.succeed(&format!("post unheard-{number} {discard}"))?;
    }
    session.succeed(&format!("send last {to}"))?;
    lab.assert_only_by("wlan0", to.ip())?;

    let target = flow(&lab, Kind::UdpConnected, Family::V4, &app)?;
    lab.assert_only_by("wlan0", target.trim_start_matches("::ffff:").parse()?)?;
    agent.log_what("info,steer::programs=debug");
    agent.start()?;
    let before = agent.log();
    session.succeed(&format!("send skipped {to}"))?;
    // The ring keeps the order: what came before would be there.
    let target = flow(&lab, Kind::UdpConnected, Family::V4, &app)?;
    wait_logged(&agent, &format!("connect to {target}"))?;
    let log = agent.log();
    let more = log.strip_prefix(&before).context("a log only grows")?;
    ensure!(!more.contains("sendmsg"), "{more}");
    Ok(())
}
