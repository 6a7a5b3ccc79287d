//! A version whose kernel maps have another layout takes over, and gives back again: nothing is lost and
//! nothing leaks, wherever on the way it is killed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use steer_tests::load::{Load, Way};
use steer_tests::report::ECHO_PORT;
use steer_tests::{Agent, Family, Kind, Lab, LabCgroup, Probe, Session, conformance};

/// Names of the pinned links, by the directory of their layout.
type Pinned = BTreeMap<String, BTreeSet<String>>;

/// What is pinned, as the calling thread sees the file system.
fn pinned_here() -> Result<Pinned> {
    let mut pinned = Pinned::new();
    for layout in fs::read_dir("/sys/fs/bpf/steer").context("list the pins")? {
        let layout = layout.context("list the pins")?;
        let links = layout.path().join("links");
        let mut names = BTreeSet::new();
        // It may be removed while it is read.
        for link in fs::read_dir(links).into_iter().flatten().flatten() {
            names.insert(link.file_name().to_string_lossy().into_owned());
        }
        pinned.insert(layout.file_name().to_string_lossy().into_owned(), names);
    }
    Ok(pinned)
}

fn pinned(lab: &Lab) -> Result<Pinned> {
    lab.host().run(pinned_here)
}

/// Whose links are pinned: of one layout alone.
fn only_layout(lab: &Lab) -> Result<(String, BTreeSet<String>)> {
    let mut pinned = pinned(lab)?;
    let found = pinned.pop_first().context("nothing is pinned")?;
    ensure!(pinned.is_empty(), "also pinned: {pinned:?}");
    Ok(found)
}

/// Kills the agent as soon as it has made another layout than `from` with at least `links` links, or is
/// done with that.
fn kill_on_the_way(agent: &mut Agent<'_>, lab: &Lab, from: &str, links: usize) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    lab.host().run(|| {
        // Without a pause: the way is short.
        loop {
            let pinned = pinned_here()?;
            let other = pinned
                .iter()
                .find(|(layout, _)| layout.starts_with('v') && *layout != from);
            if other.is_some_and(|(_, names)| names.len() >= links) || !pinned.contains_key(from) {
                return Ok(());
            }
            if agent.has_ended()? || Instant::now() > deadline {
                bail!(
                    "{links} links were not taken over: {pinned:?}\n{}",
                    agent.log()
                );
            }
        }
    })?;
    agent.kill()
}

/// Makes cgroups below a strict one, each with a flow at once, while the agent starts.
fn flows_of_new_cgroups(
    lab: &Lab,
    strict: &LabCgroup,
    session: &mut Session,
    round: usize,
) -> Result<()> {
    let to = SocketAddr::new(lab.target4(), ECHO_PORT);
    for number in 0..50 {
        let new = strict.child(&format!("made-{round}-{number}"))?;
        new.adopt(session.pid())?;
        session.succeed("open udp 4")?;
        session.succeed(&format!("connect {to}"))?;
        session.succeed("send new")?;
    }
    lab.assert_only_by("wlan0", to.ip()).map(drop)
}

#[test]
fn another_layout_takes_over_and_gives_back_under_load_wherever_it_is_killed() -> Result<()> {
    let lab = Lab::builder().rp_filter(1).build()?;
    let mut agent = lab.start_agent()?;
    let strict = lab.cgroup().child("strict")?;
    let steered = lab.cgroup().child("steered")?;
    lab.set_policy("strict", &strict, "wlan0", &["--strict"])?;
    lab.set_policy("steered", &steered, "wwan0", &[])?;
    let run = Probe::new(Kind::UdpConnected, Family::V4).start_by_run(&lab, "wlan0", &[])?;
    let policies = lab.steer(&["policy", "list", "--json"])?.json()?;
    let mut fresh = Probe::new(Kind::UdpConnected, Family::V4).start(&lab, &strict)?;
    let loads = [
        (Load::start(&lab, &strict, &Way::ALL)?, "wlan0"),
        (Load::start(&lab, &steered, &Way::ALL)?, "wwan0"),
    ];

    let (mut layout, links) = only_layout(&lab)?;
    ensure!(links.len() > 10, "{links:?}");
    let mut next = false;
    let mut cut = 0;
    // Killed before the first link, on the way, and not at all.
    for (round, taken) in [0, 1, 4, 8, 12].into_iter().enumerate() {
        let round_of = || format!("round {round}, killed after {taken} links");
        agent.kill()?;
        next = !next;
        agent.upgrade(next)?;
        agent.spawn()?;
        kill_on_the_way(&mut agent, &lab, &layout, taken).with_context(round_of)?;
        let left = pinned(&lab)?;
        cut += usize::from(taken > 0 && left.len() > 1);
        let left: BTreeSet<String> = left.into_values().flatten().collect();
        ensure!(left.is_superset(&links), "{}: {left:?}", round_of());
        // The one or the other goes on.
        if round % 2 == 1 {
            next = !next;
            agent.upgrade(next)?;
        }
        agent.spawn()?;
        flows_of_new_cgroups(&lab, &strict, &mut fresh, round).with_context(round_of)?;
        agent.wait_ready().with_context(round_of)?;
        let (now, all) = only_layout(&lab).with_context(round_of)?;
        ensure!(all == links, "{}: {all:?}, not {links:?}", round_of());
        ensure!(
            (now == layout) == (round % 2 == 1),
            "{}: {layout}, then {now}",
            round_of()
        );
        layout = now;
        let still = lab.steer(&["policy", "list", "--json"])?.json()?;
        ensure!(names(&still) == names(&policies), "{still}, not {policies}");
    }

    ensure!(cut > 0, "every agent was done before it was killed");
    for (load, uplink) in loads {
        let own = lab.uplink(uplink)?.addresses().into_iter().collect();
        load.assert_only_by(&lab, 0.., &[(uplink.to_owned(), own)].into())?;
        load.finish_complete(&lab, uplink)?;
    }
    drop(run);
    agent.stop()?;
    lab.steer(&["detach"])?.success()?;
    lab.host().run(|| {
        ensure!(!fs::exists("/sys/fs/bpf/steer")?, "pins are left");
        Ok(())
    })?;
    for row in ["INVARIANT-1", "INVARIANT-2"] {
        conformance::row(
            row,
            "another version takes over under traffic of every kind, and is killed on the way: every packet by \
             its domain, with its address, and none lost",
        )?;
    }
    Ok(())
}

fn names(policies: &Value) -> Vec<&str> {
    let policies = policies.as_array().into_iter().flatten();
    policies
        .filter_map(|policy| policy["name"].as_str())
        .collect()
}

#[test]
fn what_another_version_left_is_seen_and_removed() -> Result<()> {
    let lab = Lab::new()?;
    let app = lab.cgroup().child("app")?;
    let mut agent = lab.start_agent()?;
    agent.stop()?;
    agent.upgrade(true)?;
    agent.start()?;
    lab.set_policy("app", &app, "wlan0", &["--strict"])?;
    agent.stop()?;
    let status = lab.steer(&["status"])?;
    let words = status.failure(3)?.to_owned() + &status.stdout;
    ensure!(words.contains("another version"), "{words}");
    lab.flow_leaves_by(&app, "wlan0", Kind::Tcp, Family::V4)?;
    lab.steer(&["detach"])?.success()?;
    lab.flow_leaves_by(&app, "eth0", Kind::Tcp, Family::V4)?;
    lab.host().run(|| {
        ensure!(!fs::exists("/sys/fs/bpf/steer")?, "pins are left");
        Ok(())
    })
}

#[test]
fn without_its_record_another_versions_strict_policy_is_not_opened() -> Result<()> {
    let lab = Lab::new()?;
    let app = lab.cgroup().child("app")?;
    let mut agent = lab.agent()?;
    lab.configure("")?;
    agent.upgrade(true)?;
    agent.start()?;
    lab.set_policy("app", &app, "wlan0", &["--strict"])?;
    agent.kill()?;
    lab.host()
        .run(|| Ok(fs::remove_file("/run/steer/state.json")?))?;
    let words = lab.agent_that_ends()?;
    let words = words.failure(1)?;
    ensure!(words.contains("steer detach"), "{words}");
    lab.flow_leaves_by(&app, "wlan0", Kind::Tcp, Family::V4)
        .map(drop)
}
