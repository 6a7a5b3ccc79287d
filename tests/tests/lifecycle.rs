//! The agent's life: killed and restarted under load, stopped, started again, detached.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use steer_tests::load::{Load, Way};
use steer_tests::report::ECHO_PORT;
use steer_tests::{Family, Kind, Lab, Probe, Snapshot, conformance, wait};

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

#[test]
fn a_killed_and_restarted_agent_loses_nothing_and_leaks_nothing() -> Result<()> {
    let lab = Lab::builder().rp_filter(1).build()?;
    let mut agent = lab.start_agent()?;
    let app = lab.cgroup().child("app")?;
    lab.set_policy("app", &app, "wlan0", &["--strict"])?;
    let load = Load::start(&lab, &app, &Way::ALL)?;
    for round in 0..restarts() {
        agent
            .restart_after_kill()
            .with_context(|| format!("round {round}"))?;
    }
    let own = lab.uplink("wlan0")?.addresses().into_iter().collect();
    load.assert_only_by(&lab, 0.., &[("wlan0".to_owned(), own)].into())?;
    load.finish_complete(&lab, "wlan0")?;
    for row in ["INVARIANT-1", "INVARIANT-2"] {
        conformance::row(
            row,
            "the agent is killed and started again under traffic of every kind of a strict policy: every packet \
             by its domain, with its address, and none lost",
        )?;
    }
    Ok(())
}

#[test]
fn what_the_start_took_is_given_back() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab.start_agent()?;
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid()?))?;
    // Pages of files and of the kernel's ring, which are there for all who use them, are counted apart.
    let own = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))
        .and_then(|value| value.trim().strip_suffix(" kB"))
        .context("no RssAnon")?;
    let kilobytes: u64 = own.parse()?;
    // The kernel's types alone take three times as much while programs are loaded.
    ensure!(kilobytes < 6 * 1024, "{kilobytes} kB");
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
        let below = lab.cgroup().child("cli")?.descendants()?;
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
        let below = lab.cgroup().child("cli")?.descendants()?;
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
    conformance::row(
        "INVARIANT-4",
        "detach leaves rules, routes, addresses, settings, pins and cgroups as they were, after a stop and after a kill",
    )
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

#[test]
fn cgroups_of_others_beside_the_places_of_commands_are_left_alone() -> Result<()> {
    let lab = Lab::new()?;
    let places = lab.cgroup().child("cli")?;
    // Empty, and named as the agent names its own.
    places.child("steer-run-1-1")?;
    places.child("theirs/inner")?;
    let others = places.descendants()?;
    let mut agent = lab.start_agent()?;
    let run = || Probe::new(Kind::Tcp, Family::V4).start_by_run(&lab, "wlan0", &[]);
    let only_theirs =
        |what: &str| wait::until(what, || Ok((places.descendants()? == others).then_some(())));
    drop(run()?);
    only_theirs("the command's place to be gone")?;
    let session = run()?;
    agent.kill()?;
    drop(session);
    agent.start()?;
    only_theirs("what an ended command left to be gone")?;
    let session = run()?;
    agent.kill()?;
    drop(session);
    lab.steer(&["detach"])?.success()?;
    only_theirs("detach to leave theirs")
}

#[test]
fn no_agent_starts_before_detach_has_removed_everything() -> Result<()> {
    let lab = Lab::new()?;
    let app = lab.cgroup().child("app")?;
    let before = Snapshot::take(&lab)?;
    let mut agent = lab.start_agent()?;
    lab.set_policy("app", &app, "wlan0", &[])?;
    agent.kill()?;
    // A changed setting that takes until somebody reads what is written: detach waits there, when programs,
    // rules and tables are gone already, and more is to come.
    let fifo = "/run/steer/fifo";
    let mode = nix::sys::stat::Mode::S_IRWXU;
    lab.host()
        .run(|| nix::unistd::mkfifo(fifo, mode).context("make a FIFO"))?;
    let state = lab.host().run(|| Ok(fs::read("/run/steer/state.json")?))?;
    let mut state: Value = serde_json::from_slice(&state)?;
    state["sysctls"] = serde_json::json!({ "../../run/steer/fifo": "1" });
    lab.write_file("/run/steer/state.json", &state.to_string())?;

    std::thread::scope(|scope| {
        let detach = scope.spawn(|| lab.steer(&["detach"]));
        let refused = wait::until("the rules to be gone", || {
            let rules = lab.ip_json(&["rule", "show"])?;
            Ok((rules.as_array().map(Vec::len) == Some(3)).then_some(()))
        })
        .and_then(|()| lab.agent_that_ends());
        // Whatever came of it, detach goes on as soon as there is a reader, which does not wait for it.
        let _reader = lab.host().run(|| {
            let mut options = fs::OpenOptions::new();
            let options = options.read(true).custom_flags(libc::O_NONBLOCK);
            options.open(fifo).context("open the FIFO")
        })?;
        let detached = match detach.join() {
            Ok(output) => output?,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        detached.success()?;
        let refused = refused?;
        let words = refused.failure(1)?;
        ensure!(words.contains("another steer agent"), "{words}");
        anyhow::Ok(())
    })?;
    before.assert_same(&Snapshot::take(&lab)?)?;
    agent.start()
}

#[test]
fn lost_events_are_made_up_for_at_once() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab.start_agent()?;
    let app = lab.cgroup().child("app")?;
    lab.set_policy("app", &app, "wlan0", &[])?;
    let path = format!("{}/many/late", lab.cgroup().name());
    lab.steer(&["policy", "set", "late", "--cgroup", &path, "--via", "wwan0"])?
        .success()?;
    let many = lab.cgroup().child("many")?;
    let pid = nix::unistd::Pid::from_raw(i32::try_from(agent.pid()?)?);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP)?;
    // Two events each, of more than 280 bytes: three times what the ring holds (1 MiB).
    for number in 0..6_000 {
        let path = many.path().join(number.to_string());
        fs::create_dir(&path)?;
        fs::remove_dir(&path)?;
    }
    let late = many.child("late/inner")?;
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT)?;
    wait::until("the agent to know the new cgroups", || {
        let view = lab.steer(&["policy", "show", "late", "--json"])?.json()?;
        Ok((view["cgroups"] == 2).then_some(()))
    })?;
    let status = lab.steer(&["status", "--json"])?.json()?;
    ensure!(
        status["counters"]["events-lost"].as_u64() > Some(0),
        "{status}"
    );
    let log = agent.log();
    ensure!(log.contains("everything is read again"), "{log}");
    lab.matrix_leaves_by(&late, "wwan0")
}

#[test]
fn status_without_an_agent_shows_what_is_known_and_no_more() -> Result<()> {
    let lab = Lab::new()?;
    let [app, other] = ["app", "other"].map(|name| lab.cgroup().child(name));
    let (app, other) = (app?, other?);
    lab.configure(&format!(
        "[policy.written]\nmatch.cgroup = \"{}\"\nuse = [\"wlan0\", \"wwan0\"]\n\
         otherwise = \"pass\"\npriority = 3\n",
        app.name()
    ))?;
    let mut agent = lab.start_agent()?;
    let more = ["--otherwise", "next", "--priority", "7"];
    lab.set_policy("set", &other, "wwan0", &more)?;
    // Guards are there for strict policies.
    lab.set_policy("xx", &other.child("inner")?, "wwan0", &["--strict"])?;
    let online = lab.steer(&["status", "--json"])?.json()?;
    agent.stop()?;
    let output = lab.steer(&["status", "--json"])?;
    output.failure(3)?;
    let offline: Value = serde_json::from_str(&output.stdout)?;
    let policy = |status: &Value, index: usize| status["policies"][index].clone();
    for (index, unknown) in [(0, &["reason"][..]), (1, &["reason", "priority", "cgroup"])] {
        let (mut before, mut after) = (policy(&online, index), policy(&offline, index));
        for view in [&mut before, &mut after] {
            view["decision"]["reason"] = Value::Null;
            view["decision"]["candidates"] = Value::Null;
            view["domains"] = Value::Null;
        }
        // What became of live flows is told by who deals with them.
        ensure!(before["sessions"].is_object(), "{before}");
        for field in unknown.iter().chain(&["sessions"]) {
            before[field] = Value::Null;
            if *field == "cgroup" {
                ensure!(after[field] == serde_json::json!([]), "{after}");
            } else {
                ensure!(after[field].is_null(), "{after}");
            }
            after[field] = Value::Null;
        }
        ensure!(before == after, "{before:#} {after:#}");
    }
    let guards = online["guards"].as_array().context("guards")?;
    ensure!(
        !guards.is_empty() && online["guards"] == offline["guards"],
        "{online:#} {offline:#}"
    );
    let people = lab.steer(&["status"])?;
    ensure!(
        people
            .stdout
            .contains("domains are not followed without an agent"),
        "{people:?}"
    );
    Ok(())
}

#[test]
fn cgroup_root_is_a_path_below_the_mount_or_a_whole_one() -> Result<()> {
    let lab = Lab::new()?;
    let (name, path) = (lab.cgroup().name(), lab.cgroup().path());
    for root in [
        name.to_owned(),
        format!("/{name}"),
        path.display().to_string(),
    ] {
        lab.write_file(
            "/etc/steer/steer.toml",
            &format!("[agent]\ncgroup-root = \"{root}\"\n"),
        )?;
        let mut agent = lab.start_agent()?;
        let status = lab.steer(&["status", "--json"])?.json()?;
        ensure!(
            status["cgroup_root"].as_str() == path.to_str(),
            "{root}: {status}"
        );
        agent.stop()?;
    }
    lab.write_file(
        "/etc/steer/steer.toml",
        "[agent]\ncgroup-root = \"/no/where\"\n",
    )?;
    let ended = lab.agent_that_ends()?;
    let words = ended.failure(1)?;
    let mount = path.parent().context("the mount")?;
    let tried = mount.join("no/where").display().to_string();
    ensure!(
        words.contains("cgroup-root") && words.contains(&tried),
        "{words}"
    );
    Ok(())
}

#[test]
fn an_agent_that_does_not_listen_where_it_is_asked_is_found_all_the_same() -> Result<()> {
    let lab = Lab::new()?;
    let mut agent = lab.start_agent()?;
    let runs = format!(
        "an agent runs (pid {}) with the socket /run/steer/agent.sock",
        agent.pid()?
    );
    let elsewhere = ["--socket", "/run/steer/other.sock", "policy", "list"];
    let output = lab.steer(&elsewhere)?;
    let words = output.failure(3)?;
    ensure!(
        words.contains(&runs) && words.contains("use --socket /run/steer/agent.sock"),
        "{words}"
    );
    lab.host()
        .run(|| fs::remove_file("/run/steer/agent.sock").context("remove the socket"))?;
    let output = lab.steer(&["status"])?;
    let words = output.failure(3)?;
    ensure!(
        words.contains(&runs) && words.contains("which was removed"),
        "{words}"
    );
    ensure!(!output.stdout.contains("not running"), "{output:?}");
    let second = lab.agent_that_ends()?;
    let words = second.failure(1)?;
    ensure!(
        words.contains(&runs) && !words.contains("--socket"),
        "{words}"
    );
    let output = lab.steer(&["detach"])?;
    ensure!(output.failure(1)?.contains(&runs), "{output:?}");
    agent.kill()?;
    let output = lab.steer(&["status"])?;
    ensure!(output.failure(3)?.contains("not running"), "{output:?}");
    Ok(())
}

#[test]
fn a_policy_that_is_nowhere_in_force_says_why() -> Result<()> {
    let lab = Lab::new()?;
    let app = lab.cgroup().child("app")?;
    lab.configure(&format!(
        "[policy.written]\nmatch.cgroup = \"{}\"\nuse = [\"wwan0\"]\n",
        app.name()
    ))?;
    let _agent = lab.start_agent()?;
    let set = |name: &str, path: &str| {
        lab.steer(&["policy", "set", name, "--cgroup", path, "--via", "wlan0"])
    };
    let output = set("app", app.name())?;
    let overruled = format!("policy `written` overrules it on the cgroup {}", app.name());
    ensure!(output.unwrapped().contains(&overruled), "{output:?}");

    let late = format!("{}/late", lab.cgroup().name());
    let output = set("late", &late)?;
    let says = "matches no cgroup now; it holds as soon as one is made";
    ensure!(output.unwrapped().contains(says), "{output:?}");
    let unit = [
        "policy",
        "set",
        "unit",
        "--unit",
        "no.service",
        "--via",
        "wlan0",
    ];
    let output = lab.steer(&unit)?;
    ensure!(output.unwrapped().contains(says), "{output:?}");
    let list = lab.steer(&["policy", "list"])?;
    ensure!(list.success()?.contains("CGROUPS"), "{list:?}");

    lab.cgroup().child("late")?;
    wait::until("the policy to be in force", || {
        let view = lab.steer(&["policy", "show", "late", "--json"])?.json()?;
        Ok((view["cgroups"] == 1 && view["note"].is_null()).then_some(()))
    })
}

#[test]
fn detach_says_what_it_left_and_what_is_forgotten() -> Result<()> {
    let lab = Lab::new()?;
    let app = lab.cgroup().child("app")?;
    let mut agent = lab.start_agent()?;
    lab.set_policy("app", &app, "wlan0", &[])?;
    let session = Probe::new(Kind::Tcp, Family::V4).start_by_run(&lab, "wlan0", &[])?;
    agent.stop()?;
    let output = lab.steer(&["detach"])?;
    output.failure(1)?;
    for says in [
        "left: cgroup ",
        " (1 process: pid ",
        "), its processes run on without a policy",
        "removed 1 policy set by command",
        "policies in files are in force again",
    ] {
        ensure!(
            output.unwrapped().contains(says.trim()),
            "{says}: {}",
            output.stdout
        );
    }
    drop(session);
    wait::until("the rest to be removed", || {
        let output = lab.steer(&["detach"])?;
        Ok((output.code == 0).then_some(()))
    })
}

#[test]
fn what_status_warns_of_and_why_the_agent_ended_are_logged() -> Result<()> {
    let lab = Lab::new()?;
    lab.configure(&format!(
        "[policy.app]\nmatch.cgroup = \"{}\"\nuse = [\"wlan0\", \"wlan7\"]\n",
        lab.cgroup().child("app")?.name()
    ))?;
    let mut agent = lab.start_agent()?;
    let status = lab.steer(&["status", "--json"])?.json()?;
    let warnings = status["warnings"].as_array().context("warnings")?;
    ensure!(!warnings.is_empty(), "{status}");
    let log = agent.log();
    for warning in warnings {
        let told = |line: &str| {
            line.contains("WARN") && warning.as_str().is_some_and(|w| line.contains(w))
        };
        ensure!(
            log.lines().filter(|line| told(line)).count() == 1,
            "{warning}: {log}"
        );
    }
    let pid = nix::unistd::Pid::from_raw(i32::try_from(agent.pid()?)?);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT)?;
    wait::until("the agent to end", || Ok(agent.has_ended()?.then_some(())))?;
    let log = agent.log();
    ensure!(log.contains("stopped by SIGINT"), "{log}");
    Ok(())
}
