//! Plain users: they steer their own processes, and nothing of anybody else's.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
use serde_json::Value;
use steer_tests::report::ECHO_PORT;
use steer_tests::{Family, Kind, Lab, LabCgroup, Output, Probe, Session, User, conformance, wait};

const ALICE: u32 = 4711;
const BOB: u32 = 4712;

/// A flow of what runs already, and the only uplink that it leaves by.
fn flow_by(lab: &Lab, session: &mut Session, uplink: &str) -> Result<()> {
    let target = Family::V4.target(lab);
    session.succeed(&format!(
        "send token {}",
        SocketAddr::new(target, ECHO_PORT)
    ))?;
    lab.assert_only_by(uplink, target).map(drop)
}

/// A probe with an unconnected socket, which alice starts in `cgroup`.
fn probe_of(lab: &Lab, uid: u32, cgroup: &LabCgroup) -> Result<Session> {
    Probe::new(Kind::UdpUnconnected, Family::V4).start_as(lab, &User::new(uid), cgroup, None)
}

/// Says no, with exit code 1 and these words.
fn refused(output: &Output, words: &str) -> Result<()> {
    let said = output.failure(1)?;
    ensure!(said.contains(words), "`{words}` is missing: {output:?}");
    ensure!(output.stdout.is_empty(), "it did something: {output:?}");
    Ok(())
}

#[test]
fn a_plain_user_runs_a_command_by_a_domain() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    let session_cgroup = lab.cgroup().child("session")?;
    let alice = User::new(ALICE);
    for (kind, family) in [(Kind::Tcp, Family::V4), (Kind::UdpConnected, Family::V6)] {
        let probe = Probe::new(kind, family);
        let mut session = probe.start_as(&lab, &alice, &session_cgroup, Some(("wlan0", &[])))?;
        let target = family.target(&lab);
        session.succeed(&format!("connect {}", SocketAddr::new(target, ECHO_PORT)))?;
        session.succeed("send token")?;
        lab.assert_only_by("wlan0", target)?;
        // Limits on its session hold for it as before.
        let at = fs::read_to_string(format!("/proc/{}/cgroup", session.pid()))?;
        let below = format!("0::/{}/steer-run-", session_cgroup.name());
        ensure!(at.lines().any(|line| line.starts_with(&below)), "{at}");
        let own = lab.steer_as(&alice, &session_cgroup, &["policy", "list", "--json"])?;
        let own = own.json()?;
        ensure!(
            own[0]["owner"] == ALICE && own[0]["origin"] == "user",
            "{own}"
        );
        ensure!(own.as_array().is_some_and(|own| own.len() == 1), "{own}");
        drop(session);
        wait::until("the policy and the cgroup to be gone", || {
            let gone = lab.policies()?.is_empty() && session_cgroup.descendants()?.is_empty();
            Ok(gone.then_some(()))
        })?;
    }
    let run = |command: &str| {
        let args = ["run", "--via", "wlan0", "--", "sh", "-c", command];
        lab.steer_as(&alice, &session_cgroup, &args)
    };
    let output = run("id -u; exit 17")?;
    ensure!(output.failure(17)?.is_empty(), "{output:?}");
    ensure!(output.stdout.trim() == ALICE.to_string(), "{output:?}");
    // A command that starts another by a domain does not lead deeper and deeper.
    let output = run("exec /run/machine/steer run --via wwan0 -- cat /proc/self/cgroup")?;
    let at = output.success()?;
    ensure!(at.matches("steer-run-").count() == 1, "{at}");
    conformance::row(
        "INVARIANT-6",
        "a plain user has a command of its own steered, and it ends with the command",
    )
}

#[test]
fn a_running_process_is_moved_by_its_user() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    let cgroup = lab.cgroup().child("session")?;
    let alice = User::new(ALICE);
    let mut session = probe_of(&lab, ALICE, &cgroup)?;
    flow_by(&lab, &mut session, "eth0")?;
    let mut other = probe_of(&lab, ALICE, &cgroup)?;

    let pid = session.pid().to_string();
    let moved = lab.steer_as(&alice, &cgroup, &["move", &pid, "--via", "wlan0", "--json"])?;
    let moved = moved.json()?;
    ensure!(moved["domain"] == "wlan0", "{moved}");
    let is_moved = |pid: u32| -> Result<bool> {
        let at = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        Ok(at.contains("steer-run-"))
    };
    ensure!(is_moved(session.pid())? && !is_moved(other.pid())?);
    flow_by(&lab, &mut other, "eth0")?;
    // Its socket was made before; a flow that it opens now is steered.
    let target = Family::V4.target(&lab);
    session.succeed(&format!("connect {}", SocketAddr::new(target, ECHO_PORT)))?;
    session.succeed("send token")?;
    lab.assert_only_by("wlan0", target)?;

    // No domain fits: it stays where it is.
    lab.carrier_down("wwan0")?;
    let pid = other.pid().to_string();
    wait::until("no carrier on wwan0", || {
        let output = lab.steer_as(&alice, &cgroup, &["move", &pid, "--via", "wwan0"])?;
        Ok((output.code == 4).then_some(()))
    })?;
    ensure!(!is_moved(other.pid())?);

    // By a name of the user's own, which it may change and unset.
    let set = |via: &str| {
        let args = [
            "policy", "set", "mine", "--pid", &pid, "--via", via, "--json",
        ];
        lab.steer_as(&alice, &cgroup, &args)
    };
    let first = set("wlan0")?.json()?;
    let again = set("eth0,wlan0")?.json()?;
    ensure!(
        first["cgroup"] == again["cgroup"],
        "it was moved again: {first} {again}"
    );
    ensure!(again["decision"]["domain"] == "eth0", "{again}");
    set("wlan0")?.success()?;
    let target = Family::V4.target(&lab);
    other.succeed(&format!("connect {}", SocketAddr::new(target, ECHO_PORT)))?;
    other.succeed("send token")?;
    lab.assert_only_by("wlan0", target)?;
    lab.steer_as(&alice, &cgroup, &["policy", "unset", "mine"])?
        .success()?;
    drop((session, other));
    wait::until("the policies and cgroups to be gone", || {
        Ok((lab.policies()?.is_empty() && cgroup.descendants()?.is_empty()).then_some(()))
    })
}

#[test]
fn a_plain_user_may_not_touch_what_is_of_others() -> Result<()> {
    let lab = Lab::new()?;
    lab.configure(
        "[domain.corp]\nmatch.interface = \"wwan0\"\n\
         [policy.written]\nmatch.cgroup = \"x.slice/written\"\nuse = [\"corp\"]\n",
    )?;
    let _agent = lab.start_agent()?;
    let cgroup = lab.cgroup().child("session")?;
    let theirs = lab.cgroup().child("theirs")?;
    let alice = User::new(ALICE);
    let bobs = probe_of(&lab, BOB, &theirs)?;
    let own = probe_of(&lab, ALICE, &cgroup)?;
    let roots = Probe::new(Kind::Tcp, Family::V4).start(&lab, &theirs)?;
    lab.set_policy("roots", &theirs, "wlan0", &[])?;
    let bob = User::new(BOB);
    let bobs_pid = bobs.pid().to_string();
    lab.steer_as(
        &bob,
        &theirs,
        &[
            "policy", "set", "bobs", "--pid", &bobs_pid, "--via", "wlan0",
        ],
    )?
    .success()?;
    let before = lab.policies()?;
    let where_is = |pid: u32| fs::read_to_string(format!("/proc/{pid}/cgroup"));
    let places = [where_is(bobs.pid())?, where_is(roots.pid())?];

    let name = theirs.name().to_owned();
    let dots = format!("{}/../theirs", cgroup.name());
    let pattern = format!("{}/*", cgroup.name());
    let (own_pid, roots_pid) = (own.pid().to_string(), roots.pid().to_string());
    let via = ["--via", "wlan0"];
    let no_other = "does not belong to user 4711";
    for (args, words) in [
        // Processes of others.
        (vec!["move", &bobs_pid, "--via", "wlan0"], no_other),
        (vec!["move", &roots_pid, "--via", "wlan0"], no_other),
        (vec!["move", "1", "--via", "wlan0"], no_other),
        (vec!["move", "999999999", "--via", "wlan0"], "no process"),
        (vec!["policy", "set", "x", "--pid", &bobs_pid], no_other),
        (vec!["policy", "set", "x", "--pid", &roots_pid], no_other),
        // Cgroups of others, and names that may lead to them.
        (vec!["policy", "set", "x", "--cgroup", &name], no_other),
        (vec!["policy", "set", "x", "--cgroup", &dots], "`..`"),
        (
            vec!["policy", "set", "x", "--cgroup", &pattern],
            "by a pattern",
        ),
        (vec!["policy", "set", "x", "--unit", "x.service"], "a unit"),
        // Policies of others.
        (
            vec!["policy", "set", "roots", "--pid", &own_pid],
            "another's",
        ),
        (
            vec!["policy", "set", "bobs", "--pid", &own_pid],
            "another's",
        ),
        (
            vec!["policy", "set", "written", "--pid", &own_pid],
            "another's",
        ),
        (
            vec!["policy", "set", "default", "--pid", &own_pid],
            "default",
        ),
        (
            vec!["policy", "unset", "roots"],
            "there is no policy `roots`",
        ),
        (vec!["policy", "unset", "bobs"], "there is no policy `bobs`"),
        (
            vec!["policy", "unset", "written"],
            "there is no policy `written`",
        ),
        (
            vec!["policy", "show", "roots"],
            "there is no policy `roots`",
        ),
        (vec!["policy", "show", "bobs"], "there is no policy `bobs`"),
        // A domain of a file, by its name and by its interface's.
        (
            vec!["run", "--via", "corp", "--", "true"],
            "may not use the domain `corp`",
        ),
        (
            vec!["run", "--via", "wlan0,wwan0", "--", "true"],
            "may not use the domain `corp`",
        ),
        (
            vec!["move", &own_pid, "--via", "corp"],
            "may not use the domain `corp`",
        ),
        // Files.
        (
            vec!["policy", "set", "x", "--pid", &own_pid, "--save"],
            "may not save a policy in a file",
        ),
        (vec!["detach"], "only root may undo"),
    ] {
        let set = args.starts_with(&["policy", "set"]);
        let args = if set {
            [&args[..], &via].concat()
        } else {
            args
        };
        let output = lab.steer_as(&alice, &cgroup, &args)?;
        refused(&output, words).with_context(|| args.join(" "))?;
    }

    ensure!(lab.policies()? == before, "{before:?}");
    ensure!(
        [where_is(bobs.pid())?, where_is(roots.pid())?] == places,
        "{places:?}"
    );
    ensure!(
        cgroup.descendants()?.is_empty(),
        "{:?}",
        cgroup.descendants()?
    );

    // It is told of nothing of others.
    let status = lab
        .steer_as(&alice, &cgroup, &["status", "--json"])?
        .json()?;
    ensure!(status["policies"] == Value::Array(Vec::new()), "{status}");
    ensure!(status["counters"] == serde_json::json!({}), "{status}");
    let seen = status["domains"].as_array().context("no domains")?;
    ensure!(seen.len() == 3, "{status}");
    conformance::row(
        "INVARIANT-6",
        "a plain user may not steer, change or read what is of others, one attempt after the other",
    )
}

#[test]
fn a_plain_user_never_gets_round_a_strict_policy_of_an_administrator() -> Result<()> {
    for by_file in [true, false] {
        let lab = Lab::new()?;
        let cgroup = lab.cgroup().child("session")?;
        let inner = cgroup.child("inner")?;
        if by_file {
            let name = cgroup.name();
            lab.configure(&format!(
                "[policy.closed]\nmatch.cgroup = \"{name}\"\nuse = [\"wwan0\"]\nstrict = true\n"
            ))?;
        }
        let _agent = lab.start_agent()?;
        if !by_file {
            lab.set_policy("closed", &cgroup, "wwan0", &["--strict"])?;
        }
        let alice = User::new(ALICE);
        alice.own(&inner)?;
        let session = probe_of(&lab, ALICE, &cgroup)?;
        let pid = session.pid().to_string();
        for args in [
            vec!["run", "--via", "wlan0", "--", "true"],
            vec!["run", "--via", "wlan0", "--strict", "--", "true"],
            vec!["move", &pid, "--via", "wlan0"],
            vec!["policy", "set", "x", "--pid", &pid, "--via", "wlan0"],
            vec![
                "policy",
                "set",
                "x",
                "--cgroup",
                inner.name(),
                "--via",
                "wlan0",
            ],
        ] {
            let output = lab.steer_as(&alice, &cgroup, &args)?;
            refused(&output, "closed").with_context(|| args.join(" "))?;
        }
        for at in [&cgroup, &inner] {
            let probe = Probe::new(Kind::UdpUnconnected, Family::V4);
            let mut probe = probe.start_as(&lab, &alice, at, None)?;
            flow_by(&lab, &mut probe, "wwan0")?;
        }
        let left = cgroup.descendants()?;
        ensure!(left == ["inner"], "{left:?}");
    }
    conformance::row(
        "INVARIANT-6",
        "a plain user's wish never holds against an administrator's strict policy, from a file or by command",
    )
}

#[test]
fn a_cgroup_that_is_delegated_to_a_user_is_its_own_as_long_as_it_is_that_one() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    let session = lab.cgroup().child("session")?;
    let app = session.child("app")?;
    let alice = User::new(ALICE);
    alice.own(&app)?;
    let set = [
        "policy",
        "set",
        "app",
        "--cgroup",
        app.name(),
        "--via",
        "wlan0",
    ];
    lab.steer_as(&alice, &session, &set)?.success()?;
    let mut probe = probe_of(&lab, ALICE, &app)?;
    flow_by(&lab, &mut probe, "wlan0")?;
    drop(probe);

    // Another cgroup of that name is not hers.
    app.remove()?;
    let app = session.child("app")?;
    let mut probe = probe_of(&lab, BOB, &app)?;
    flow_by(&lab, &mut probe, "eth0")?;
    wait::until("the policy to end with its cgroup", || {
        Ok(lab.policies()?.is_empty().then_some(()))
    })?;
    let output = lab.steer_as(&alice, &session, &set)?;
    refused(&output, "does not belong to user 4711")
}

#[test]
fn a_program_that_runs_as_another_user_is_not_its_starters() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    let cgroup = lab.cgroup().child("session")?;
    let alice = User::new(ALICE);
    // Its ids differ: the real one is alice's, as of a program with set-user-ID.
    let mut command = lab.command("sleep", &cgroup)?;
    command.arg("60");
    let change = || -> std::io::Result<()> {
        let (real, effective) = (
            nix::unistd::Uid::from_raw(ALICE),
            nix::unistd::Uid::from_raw(0),
        );
        nix::unistd::setresuid(real, effective, effective)?;
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes one system call.
    unsafe {
        command.pre_exec(change);
    }
    let mut child = command.spawn()?;
    let pid = child.id().to_string();
    let output = lab.steer_as(&alice, &cgroup, &["move", &pid, "--via", "wlan0"]);
    child.kill()?;
    child.wait()?;
    refused(&output?, "does not belong to user 4711")
}

#[test]
fn files_say_what_users_may_do_and_who_is_an_administrator() -> Result<()> {
    let lab = Lab::new()?;
    lab.write_accounts(
        "/etc/passwd",
        "root:x:0:0::/:/bin/sh\nalice:x:4711:4711::/:/bin/sh\n",
    )?;
    lab.write_accounts("/etc/group", "root:x:0:\nsteer:x:500:\nnet:x:501:\n")?;
    lab.configure(
        "[permit.net]\ngroups = [\"net\"]\ndomains = [\"wlan0\"]\nstrict = false\n\
         [permit.alice]\nusers = [\"alice\"]\ndomains = [\"wwan0\"]\n",
    )?;
    let _agent = lab.start_agent()?;
    let cgroup = lab.cgroup().child("session")?;
    let run = |user: &User, args: &[&str]| {
        let args = [&["run"], args, &["--", "true"]].concat();
        lab.steer_as(user, &cgroup, &args)
    };
    let (alice, bob) = (User::new(ALICE), User::new(BOB));
    let member = bob.clone().member_of(501);
    run(&alice, &["--via", "wwan0", "--strict"])?.success()?;
    refused(
        &run(&alice, &["--via", "wlan0"])?,
        "may not use the domain `wlan0`",
    )?;
    refused(&run(&bob, &["--via", "wwan0"])?, "no [permit.x]")?;
    run(&member, &["--via", "wlan0"])?.success()?;
    refused(&run(&member, &["--via", "wlan0", "--strict"])?, "strict")?;

    let administrator = bob.member_of(500);
    let set = [
        "policy",
        "set",
        "all",
        "--cgroup",
        cgroup.name(),
        "--via",
        "eth0",
    ];
    lab.steer_as(&administrator, &cgroup, &set)?.success()?;
    let all = lab.steer_as(&administrator, &cgroup, &["policy", "list", "--json"])?;
    let all = all.json()?;
    ensure!(
        all[0]["name"] == "all" && all[0]["owner"].is_null(),
        "{all}"
    );
    Ok(())
}

#[test]
fn a_command_that_is_killed_while_it_waits_leaves_nothing() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    let cgroup = lab.cgroup().child("session")?;
    lab.carrier_down("wlan0")?;
    let args = ["run", "--via", "wlan0", "--wait", "--", "true"];
    let mut command = lab.steer_command(&User::new(ALICE), &cgroup, &args)?;
    let mut waiting = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let places = || cgroup.descendants();
    wait::until("the call to wait", || {
        Ok((places()?.len() == 1 && lab.policies()?.len() == 1).then_some(()))
    })?;
    waiting.kill()?;
    waiting.wait()?;
    wait::until("its place and policy to be gone", || {
        Ok((places()?.is_empty() && lab.policies()?.is_empty()).then_some(()))
    })
}

#[test]
fn what_is_no_longer_permitted_ends_or_blocks_if_it_is_strict() -> Result<()> {
    let lab = Lab::new()?;
    lab.configure("[permit.all]\ngroups = [\"501\"]\n")?;
    let mut agent = lab.start_agent()?;
    let cgroup = lab.cgroup().child("session")?;
    let alice = User::new(ALICE).member_of(501);
    let run = |more: &[&str]| {
        let probe = Probe::new(Kind::UdpUnconnected, Family::V4);
        probe.start_as(&lab, &alice, &cgroup, Some(("wlan0", more)))
    };
    let (mut lax, mut strict) = (run(&[])?, run(&["--strict"])?);
    for session in [&mut lax, &mut strict] {
        flow_by(&lab, session, "wlan0")?;
    }
    // Not even the next agent asks who she is: she is gone, but for her processes.
    agent.restart_after_kill()?;
    lab.configure("[permit.all]\ngroups = [\"501\"]\ndomains = [\"wwan0\"]\n")?;
    lab.steer(&["reload"])?.success()?;
    let left = lab.policies()?;
    ensure!(left.len() == 1 && left[0]["strict"] == true, "{left:?}");
    ensure!(left[0]["decision"]["verdict"] == "block", "{left:?}");
    let target = Family::V4.target(&lab);
    strict.perform(&format!(
        "send token {}",
        SocketAddr::new(target, ECHO_PORT)
    ))?;
    lab.assert_silent(target)?;
    let target = Family::V4.target(&lab);
    lax.succeed(&format!("connect {}", SocketAddr::new(target, ECHO_PORT)))?;
    lax.succeed("send token")?;
    lab.assert_only_by("eth0", target).map(drop)
}

#[test]
fn a_plain_user_has_an_end_of_policies() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    let cgroup = lab.cgroup().child("session")?;
    let alice = User::new(ALICE);
    let probe = Probe::new(Kind::UdpUnconnected, Family::V4);
    let start = || probe.start_as(&lab, &alice, &cgroup, Some(("wlan0", &[])));
    let mut running = Vec::new();
    for _ in 0..64 {
        running.push(start()?);
    }
    let output = lab.steer_as(&alice, &cgroup, &["run", "--via", "wlan0", "--", "true"])?;
    refused(&output, "has 64 policies")?;
    // Nobody else is in want of any.
    let bob = User::new(BOB);
    lab.steer_as(&bob, &cgroup, &["run", "--via", "wlan0", "--", "true"])?
        .success()?;
    running.pop();
    wait::until("one to be free again", || {
        let output = lab.steer_as(&alice, &cgroup, &["run", "--via", "wlan0", "--", "true"])?;
        Ok((output.code == 0).then_some(()))
    })
}

/// What a program finds when it is started: all that could differ.
const LOOK: &str = "env | sort; pwd; umask; echo $PPID; ls /proc/self/fd | wc -l; \
    grep -E '^(Sig(Blk|Ign)|Uid|Gid|Groups|NoNewPrivs|Cap...):' /proc/self/status; \
    tail -n 1 /proc/self/limits; cut -d ' ' -f 5-8 /proc/self/stat";

#[test]
fn what_run_starts_finds_everything_as_if_it_had_been_started_directly() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    let cgroup = lab.cgroup().child("session")?;
    let alice = User::new(ALICE).member_of(27);
    for (ignored, blocked) in [(false, false), (true, false), (false, true), (true, true)] {
        let look = |mut command: Command| -> Result<String> {
            let change = move || {
                let pipe = if ignored {
                    SigHandler::SigIgn
                } else {
                    SigHandler::SigDfl
                };
                // SAFETY: no handler of ours runs in it.
                unsafe { signal(Signal::SIGPIPE, pipe) }?;
                let mut mask = SigSet::empty();
                if blocked {
                    mask.add(Signal::SIGUSR1);
                    mask.add(Signal::SIGPIPE);
                }
                mask.thread_set_mask()?;
                nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o137));
                Ok(())
            };
            // SAFETY: between fork and exec the closure makes system calls only.
            unsafe {
                command.pre_exec(change);
            }
            let output = command
                .env_clear()
                .env("PATH", "/usr/bin:/bin")
                .env("ODD", "a b\n c")
                .stdin(Stdio::null())
                .output()?;
            ensure!(
                output.status.success() && output.stderr.is_empty(),
                "{output:?}"
            );
            Ok(String::from_utf8(output.stdout)?)
        };
        let mut direct = lab.command("sh", &cgroup)?;
        direct.args(["-c", LOOK]);
        alice.become_by(&mut direct);
        let args = ["run", "--via", "wlan0", "--", "sh", "-c", LOOK];
        let direct = look(direct)?;
        let run = look(lab.steer_command(&alice, &cgroup, &args)?)?;
        ensure!(direct.contains("SigIgn:"), "{direct}");
        ensure!(direct == run, "directly:\n{direct}\nby run:\n{run}");
    }
    Ok(())
}
