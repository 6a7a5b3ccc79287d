//! What a plain user tries to steer, read or get round that is not its own: each attempt by itself.

use std::fs;
use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use steer_tests::report::ECHO_PORT;
use steer_tests::{
    Caller, Family, Kind, Lab, LabCgroup, Output, Probe, Session, User, conformance, wait,
};

const ALICE: u32 = 4711;
const BOB: u32 = 4712;

fn probe_of(lab: &Lab, uid: u32, cgroup: &LabCgroup) -> Result<Session> {
    Probe::new(Kind::UdpUnconnected, Family::V4).start_as(lab, &User::new(uid), cgroup, None)
}

fn refused(output: &Output, words: &str) -> Result<()> {
    let said = output.failure(1)?;
    ensure!(said.contains(words), "`{words}` is missing: {output:?}");
    Ok(())
}

fn error(answer: &Value) -> Result<&str> {
    let name = answer["error"].as_str();
    name.with_context(|| format!("no error: {answer}"))
}

fn cgroup_of(pid: u32) -> Result<String> {
    Ok(fs::read_to_string(format!("/proc/{pid}/cgroup"))?)
}

#[test]
fn a_strict_default_policy_is_not_replaced_by_a_plain_user() -> Result<()> {
    let lab = Lab::new()?;
    lab.configure("[policy.default]\nuse = [\"wwan0\"]\nstrict = true\n")?;
    let _agent = lab.start_agent()?;
    let session = lab.cgroup().child("session")?;
    let alice = User::new(ALICE);
    let mut probe = probe_of(&lab, ALICE, &session)?;
    let pid = probe.pid().to_string();
    for args in [
        vec!["run", "--via", "wlan0", "--", "true"],
        vec!["move", &pid, "--via", "wlan0"],
        vec!["policy", "set", "x", "--pid", &pid, "--via", "wlan0"],
    ] {
        let output = lab.steer_as(&alice, &session, &args)?;
        refused(&output, "default").with_context(|| args.join(" "))?;
    }
    lab.connects_by(&mut probe, "wwan0")?;
    ensure!(
        session.descendants()?.is_empty(),
        "{:?}",
        session.descendants()?
    );
    // An administrator's is there for that.
    lab.set_policy("x", &session, "eth0", &[])?;
    lab.connects_by(&mut probe_of(&lab, ALICE, &session)?, "eth0")
}

#[test]
fn a_place_is_not_left_behind_with_the_strict_policy_that_an_administrator_gave_it() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    let session = lab.cgroup().child("session")?;
    let alice = User::new(ALICE);
    let probe = Probe::new(Kind::UdpUnconnected, Family::V4);
    let running = probe.start_as(&lab, &alice, &session, Some(("wlan0", &[])))?;
    let pid = running.pid().to_string();
    let place = cgroup_of(running.pid())?;
    // A name behind that of alice's policy, and one before it.
    for name in ["zz", "aa"] {
        let set = [
            "policy", "set", name, "--pid", &pid, "--via", "wwan0", "--strict",
        ];
        lab.steer(&set)?.success()?;
        for args in [
            vec!["move", &pid, "--via", "wlan0"],
            vec!["policy", "set", "x", "--pid", &pid, "--via", "wlan0"],
        ] {
            let output = lab.steer_as(&alice, &session, &args)?;
            refused(&output, name).with_context(|| args.join(" "))?;
        }
        ensure!(cgroup_of(running.pid())? == place, "it was moved");
        lab.steer(&["policy", "unset", name])?.success()?;
    }
    // Without it she may.
    lab.steer_as(&alice, &session, &["move", &pid, "--via", "eth0"])?
        .success()?;
    ensure!(cgroup_of(running.pid())? != place, "it was not moved");
    Ok(())
}

#[test]
fn a_cgroup_with_the_name_of_a_place_is_none() -> Result<()> {
    let lab = Lab::new()?;
    // `steer` and what is below it look like the places of processes in the managed root.
    for name in [
        "session/steer-app",
        "session/steer-run-1-1",
        "steer/run-7-7",
    ] {
        let _agent = lab.start_agent()?;
        let delegated = lab.cgroup().child(name)?;
        let alice = User::new(ALICE);
        alice.own(&delegated)?;
        // What limits there are on a delegated cgroup are the administrator's.
        fs::write(delegated.path().join("cgroup.max.depth"), "5")?;
        let set = [
            "policy",
            "set",
            "own",
            "--cgroup",
            delegated.name(),
            "--via",
            "wlan0",
        ];
        lab.steer_as(&alice, &delegated, &set)?.success()?;
        let output = lab.steer_as(
            &alice,
            &delegated,
            &["run", "--via", "wwan0", "--", "cat", "/proc/self/cgroup"],
        )?;
        let at = output.success()?.to_owned();
        let below = format!("0::/{}/steer-run-", delegated.name());
        ensure!(
            at.lines().any(|line| line.starts_with(&below)),
            "{name}: {at}"
        );
        let session = probe_of(&lab, ALICE, &delegated)?;
        let pid = session.pid().to_string();
        for args in [
            vec!["move", &pid, "--via", "wwan0"],
            vec!["policy", "set", "x", "--pid", &pid, "--via", "eth0"],
        ] {
            lab.steer_as(&alice, &delegated, &args)?.success()?;
            let at = cgroup_of(session.pid())?;
            ensure!(
                at.lines().any(|line| line.starts_with(&below)),
                "{name}: {at}"
            );
        }
        drop(session);
        lab.steer_as(&alice, &delegated, &["policy", "unset", "own"])?
            .success()?;
        lab.nothing_left(&delegated)?;
    }
    Ok(())
}

#[test]
fn no_place_is_made_where_the_kernel_allows_none() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    let session = lab.cgroup().child("session")?;
    let alice = User::new(ALICE);
    let run = ["run", "--via", "wlan0", "--", "true"];
    for limit in ["cgroup.max.depth", "cgroup.max.descendants"] {
        let file = session.path().join(limit);
        fs::write(&file, "0")?;
        refused(&lab.steer_as(&alice, &session, &run)?, "make cgroup")?;
        fs::write(&file, "max")?;
    }
    lab.steer_as(&alice, &session, &run)?.success()?;
    // A thread's cgroup takes no process of its own cgroup below it.
    let threaded = session.child("threaded")?;
    fs::write(threaded.path().join("cgroup.type"), "threaded")?;
    let probe = probe_of(&lab, ALICE, &session)?;
    fs::write(
        threaded.path().join("cgroup.procs"),
        probe.pid().to_string(),
    )?;
    let pid = probe.pid().to_string();
    let output = lab.steer_as(&alice, &session, &["move", &pid, "--via", "wlan0"])?;
    refused(&output, "move process")?;
    drop(probe);
    wait::until("no policy and no place to be left", || {
        let left = session.descendants()?;
        Ok((lab.policies()?.is_empty() && left == ["threaded"]).then_some(()))
    })
}

#[test]
fn a_connection_tells_and_does_nothing_for_another_process_with_the_number_of_its_caller()
-> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    let session = lab.cgroup().child("session")?;
    let secret = lab.cgroup().child("secret")?;
    let (alice, bob) = (User::new(ALICE), User::new(BOB));
    lab.set_policy("secret", &secret, "wwan0", &[])?;
    let mut caller = Caller::start(&lab, &alice, &session)?;
    // Taken for sure, and the process held, before it ends.
    let before = caller.call("ListPolicies", &json!({}))?;
    ensure!(before["parameters"]["policies"] == json!([]), "{before}");
    caller.end()?;
    let mut bobs = caller.reuse_pid(&lab, &bob, &secret)?;
    let place = cgroup_of(bobs.id())?;

    let list = caller.call("ListPolicies", &json!({}))?;
    ensure!(list["parameters"]["policies"] == json!([]), "{list}");
    let status = caller.call("Status", &json!({}))?;
    ensure!(!status.to_string().contains("secret"), "{status}");
    let show = caller.call("ShowPolicy", &json!({"name": "secret"}))?;
    ensure!(error(&show)?.ends_with("NoSuchPolicy"), "{show}");
    let explain = caller.call("Explain", &json!({}))?;
    ensure!(error(&explain)?.ends_with("NotPermitted"), "{explain}");
    // Nothing is made where bob's process is, not even for a while.
    lab.carrier_down("wlan0")?;
    let waits = json!({"via": ["wlan0"], "command": "x", "wait_ms": -1});
    let run = caller.call("Run", &waits)?;
    error(&run)?;
    ensure!(secret.descendants()?.is_empty(), "{run}");
    ensure!(cgroup_of(bobs.id())? == place, "it was moved");
    bobs.kill()?;
    bobs.wait()?;
    conformance::row(
        "INVARIANT-6",
        "a connection whose process has ended neither reads nor moves the one that has its number now",
    )
}

#[test]
fn names_of_places_cannot_be_taken_from_others() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    let session = lab.cgroup().child("session")?;
    let own = lab.cgroup().child("own")?;
    let (alice, bob) = (User::new(ALICE), User::new(BOB));
    alice.own(&own)?;
    let mut victim = Caller::start(&lab, &bob, &session)?;
    let mut squatter = Caller::start(&lab, &alice, &own)?;
    for number in 1..=20 {
        let path = own.child(&format!("c{number}"))?;
        alice.own(&path)?;
        let name = format!("run-{}-{number}", victim.pid());
        let set = json!({"name": name, "cgroup": [path.name()], "unit": [], "use": ["wlan0"]});
        let answer = squatter.call("SetPolicy", &set)?;
        ensure!(answer.get("error").is_none(), "{answer}");
    }
    let before = lab.policies()?.len();
    let run = json!({"via": ["eth0"], "command": "x"});
    let answer = victim.call("Run", &run)?;
    ensure!(answer["parameters"]["domain"] == "eth0", "{answer}");
    ensure!(lab.policies()?.len() == before + 1, "one was replaced");
    Ok(())
}

#[test]
fn a_caller_that_goes_while_it_waits_leaves_nothing() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    let session = lab.cgroup().child("session")?;
    let alice = User::new(ALICE);
    lab.carrier_down("wlan0")?;
    wait::until("no carrier on wlan0", || {
        let run = ["run", "--via", "wlan0", "--", "true"];
        Ok((lab.steer_as(&alice, &session, &run)?.code == 4).then_some(()))
    })?;
    let mut callers = Vec::new();
    for wait_ms in [-1, i64::MAX, 3_600_000, i64::MIN] {
        let mut caller = Caller::start(&lab, &alice, &session)?;
        let run = json!({"via": ["wlan0"], "command": "x", "wait_ms": wait_ms});
        caller.ask("Run", &run, true)?;
        let told = caller.answer()?.context("hung up")?;
        ensure!(told["continues"] == true, "{wait_ms}: {told}");
        callers.push(caller);
    }
    ensure!(
        lab.policies()?.len() == callers.len(),
        "{:?}",
        lab.policies()?
    );
    drop(callers);
    lab.nothing_left(&session)
}

#[test]
fn what_waits_is_not_let_in_where_a_strict_policy_holds_by_then() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    let session = lab.cgroup().child("session")?;
    lab.carrier_down("wlan0")?;
    let alice = User::new(ALICE);
    wait::until("no carrier on wlan0", || {
        let run = ["run", "--via", "wlan0", "--", "true"];
        Ok((lab.steer_as(&alice, &session, &run)?.code == 4).then_some(()))
    })?;
    let mut caller = Caller::start(&lab, &alice, &session)?;
    let run = json!({"via": ["wlan0"], "command": "x", "wait_ms": -1});
    caller.ask("Run", &run, true)?;
    caller.answer()?.context("hung up")?;
    lab.set_policy("closed", &session, "wwan0", &["--strict"])?;
    lab.carrier_up("wlan0")?;
    let answer = loop {
        let answer = caller.answer()?.context("hung up")?;
        if answer.get("continues").is_none() {
            break answer;
        }
    };
    error(&answer)?;
    let at = cgroup_of(caller.pid())?;
    ensure!(!at.contains("steer-run"), "{at}");
    Ok(())
}

#[test]
fn process_ids_that_are_none_are_refused() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab.start_agent()?;
    let session = lab.cgroup().child("session")?;
    let mut caller = Caller::start(&lab, &User::new(ALICE), &session)?;
    let mut root = Caller::start(&lab, &User::new(0), &session)?;
    // A thread that does not lead its process: one of the agent's own runtime, or of this program.
    let process = std::process::id();
    let threads = fs::read_dir(format!("/proc/{process}/task"))?.flatten();
    let mut threads = threads.filter_map(|t| t.file_name().to_str()?.parse::<u32>().ok());
    let thread = threads
        .find(|id| *id != process)
        .context("no second thread")?;
    for pid in [
        json!(0),
        json!(-1),
        json!(i64::MAX),
        json!(u32::MAX),
        json!(2_147_483_648_u32),
        json!(thread),
        json!(1e300),
        json!("1"),
        json!([1]),
    ] {
        for (method, call) in [
            ("Move", json!({"pid": pid, "via": ["wlan0"]})),
            (
                "SetPolicy",
                json!({"name": "x", "cgroup": [], "unit": [], "use": ["wlan0"], "pid": pid}),
            ),
        ] {
            let answer = caller.call(method, &call)?;
            error(&answer).with_context(|| format!("{method} {pid}"))?;
            if method == "Move" || pid != json!(thread) {
                let answer = root.call(method, &call)?;
                error(&answer).with_context(|| format!("{method} {pid} as root"))?;
            }
        }
    }
    // A thread of the kernel (2 is the first), the agent, and what it is started by.
    for pid in [1, 2, agent.pid()?] {
        let answer = caller.call("Move", &json!({"pid": pid, "via": ["wlan0"]}))?;
        ensure!(error(&answer)?.ends_with("NotPermitted"), "{pid}: {answer}");
    }
    ensure!(lab.policies()?.is_empty(), "{:?}", lab.policies()?);
    Ok(())
}

#[test]
fn no_cgroup_that_a_user_makes_leads_out_of_a_strict_policy() -> Result<()> {
    let lab = Lab::new()?;
    let inner = lab.cgroup().child("session/inner")?;
    let strict = format!(
        "match.cgroup = \"{}/session/**\"\nuse = [\"wwan0\"]\nstrict = true\n",
        lab.cgroup().name()
    );
    lab.configure(&format!("[policy.closed]\n{strict}"))?;
    let _agent = lab.start_agent()?;
    let alice = User::new(ALICE);
    alice.own(&inner)?;
    let deep = ["n"; 80].join("/");
    for name in [
        "plain",
        "steer",
        "steer/run-1-1",
        "steer-run-1-1",
        "..inner",
        "a b",
        "*",
        "**",
        "\u{1b}[2J",
        "tab\t",
        " (deleted)",
        "x.service",
        deep.as_str(),
    ] {
        let made = inner.child(name)?;
        let shown = name.escape_debug().to_string();
        let target = Family::V4.target(&lab);
        let mut probe = probe_of(&lab, ALICE, &made)?;
        let to = SocketAddr::new(target, ECHO_PORT);
        // It may be refused, where nothing can be chosen.
        let sent = probe.perform(&format!("send token {to}"))?;
        lab.drain()?;
        let packets = lab.capture().about(target);
        let strays = packets.iter().any(|packet| packet.uplink != "wwan0");
        ensure!(!strays, "{shown}: {packets:?}");
        // Deeper than patterns reach it is closed, once that is found.
        ensure!(sent.ok || name == deep, "{shown}: {sent:?}");
        let pid = probe.pid().to_string();
        for args in [
            vec!["run", "--via", "wlan0", "--", "true"],
            vec!["move", &pid, "--via", "wlan0"],
            vec![
                "policy",
                "set",
                "x",
                "--cgroup",
                made.name(),
                "--via",
                "wlan0",
            ],
        ] {
            let output = lab.steer_as(&alice, &made, &args)?;
            ensure!(output.code == 1 || output.code == 2, "{shown}: {output:?}");
            ensure!(!output.stderr.contains('\u{1b}'), "{shown}: {output:?}");
        }
    }
    let own = lab.policies()?;
    ensure!(own.len() == 1, "{own:?}");
    Ok(())
}

#[test]
fn a_name_that_a_user_took_goes_to_the_file_that_defines_it() -> Result<()> {
    let lab = Lab::new()?;
    lab.configure("")?;
    let _agent = lab.start_agent()?;
    let session = lab.cgroup().child("session")?;
    let alice = User::new(ALICE);
    let holder = probe_of(&lab, ALICE, &session)?;
    let pid = holder.pid().to_string();
    let set = ["policy", "set", "web", "--pid", &pid, "--via", "wlan0"];
    lab.steer_as(&alice, &session, &set)?.success()?;
    let place = cgroup_of(holder.pid())?;
    let place = place
        .lines()
        .find_map(|line| line.split("/session/").nth(1));
    let place = session.child(place.context("it has no place")?)?;
    lab.configure(&format!(
        "[policy.web]\nmatch.cgroup = \"{}\"\nuse = [\"wwan0\"]\nstrict = true\n",
        session.name()
    ))?;
    lab.steer(&["reload"])?.success()?;
    lab.connects_by(&mut probe_of(&lab, ALICE, &place)?, "wwan0")?;
    for args in [
        vec!["policy", "set", "web", "--pid", &pid, "--via", "wlan0"],
        vec!["policy", "unset", "web"],
        vec!["policy", "set", "other", "--pid", &pid, "--via", "wlan0"],
        vec!["run", "--via", "wlan0", "--", "true"],
    ] {
        let output = lab.steer_as(&alice, &place, &args)?;
        refused(&output, "web").with_context(|| args.join(" "))?;
    }
    lab.connects_by(&mut probe_of(&lab, ALICE, &place)?, "wwan0")
}

#[test]
fn a_user_is_told_the_same_of_what_is_of_others_and_of_what_is_not_there() -> Result<()> {
    let lab = Lab::new()?;
    let mut agent = lab.start_agent()?;
    let session = lab.cgroup().child("session")?;
    let secret = lab.cgroup().child("secret")?;
    let bobs = probe_of(&lab, BOB, &secret)?;
    lab.set_policy("secret", &secret, "wwan0", &[])?;
    let alice = User::new(ALICE);
    let missing = secret.name().replace("secret", "absent");
    let told = |args: &[&str], was: &str| -> Result<String> {
        let output = lab.steer_as(&alice, &session, args)?;
        ensure!(output.code == 1, "{output:?}");
        Ok(output.stderr.replace(was, "X"))
    };
    for (there, absent, command) in [
        ("secret", "absent", vec!["policy", "show"]),
        ("secret", "absent", vec!["policy", "unset"]),
        (secret.name(), &missing, vec!["explain", "--cgroup"]),
        (
            secret.name(),
            &missing,
            vec!["policy", "set", "x", "--via", "wlan0", "--cgroup"],
        ),
    ] {
        let of = |name: &str| told(&[&command[..], &[name]].concat(), name);
        ensure!(
            of(there)? == of(absent)?,
            "{}: {} | {}",
            command.join(" "),
            of(there)?,
            of(absent)?
        );
    }
    let pid = bobs.pid().to_string();
    let explained = told(&["explain", "--pid", &pid], &pid)?;
    ensure!(!explained.contains("secret"), "{explained}");
    // Nor without an agent.
    agent.stop()?;
    for args in [
        vec!["status"],
        vec!["status", "--json"],
        vec!["policy", "list"],
    ] {
        let output = lab.steer_as(&alice, &session, &args)?;
        let said = format!("{}{}", output.stdout, output.stderr);
        ensure!(!said.contains("secret"), "{output:?}");
    }
    Ok(())
}
