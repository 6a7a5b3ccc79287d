//! What a plain user tries so that the agent, which runs as root, ends, does not start, or serves nobody else.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use nix::fcntl::{FcntlArg, Flock, FlockArg, fcntl};
use serde_json::json;
use steer_tests::{Caller, Family, Kind, Lab, User, wait};

const ALICE: u32 = 4711;
const BOB: u32 = 4712;

/// Does something as a user, in a thread of its own, as the laboratory's host sees the file system.
fn as_user<T: Send>(lab: &Lab, uid: u32, act: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    lab.host().run(|| {
        let id = libc::c_long::from(uid);
        // SAFETY: the calls take numbers, and no groups at a null pointer; they change the ids of this thread
        // alone, which ends here.
        let call = |number, ids: [libc::c_long; 3]| unsafe {
            libc::syscall(number, ids[0], ids[1], ids[2]) == 0
        };
        let changed = call(libc::SYS_setgroups, [0; 3])
            && call(libc::SYS_setresgid, [id; 3])
            && call(libc::SYS_setresuid, [id; 3]);
        ensure!(changed, "become user {uid}: {}", io::Error::last_os_error());
        act()
    })
}

#[test]
fn nobody_else_keeps_an_agent_from_starting_by_a_lock() -> Result<()> {
    let lab = Lab::new()?;
    let mut agent = lab.start_agent()?;
    for private in [
        "/run/steer/agent.lock",
        "/run/steer/state.json",
        "/sys/fs/bpf/steer",
    ] {
        let opened = as_user(&lab, ALICE, || Ok(File::open(private).err()))?;
        let denied = opened.is_some_and(|e| e.kind() == ErrorKind::PermissionDenied);
        ensure!(denied, "{private} can be opened");
    }
    agent.stop()?;
    // Everybody may see which agent runs; and who may read a file may lock it as readers do.
    let held = as_user(&lab, ALICE, || {
        let file = File::open("/run/steer/running.json")?;
        let lock = libc::flock {
            l_type: i16::try_from(libc::F_RDLCK)?,
            l_whence: 0,
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        fcntl(&file, FcntlArg::F_OFD_SETLK(&lock))?;
        Ok(file)
    })?;
    agent.start()?;
    let mode = lab
        .host()
        .run(|| Ok(fs::metadata("/run/steer/running.json")?.mode() & 0o777))?;
    ensure!(mode == 0o644, "{mode:o}");
    agent.stop()?;
    let flock = as_user(&lab, ALICE, || {
        let file = File::open("/run/steer/running.json")?;
        Ok(Flock::lock(file, FlockArg::LockExclusiveNonblock).is_ok())
    })?;
    ensure!(flock, "the file was not to be had");
    agent.start()?;
    drop(held);
    Ok(())
}

#[test]
fn a_lock_file_that_an_older_agent_left_open_to_all_is_closed() -> Result<()> {
    let lab = Lab::new()?;
    lab.host().run(|| {
        fs::create_dir_all("/run/steer")?;
        fs::write("/run/steer/agent.lock", "")?;
        fs::set_permissions("/run/steer/agent.lock", fs::Permissions::from_mode(0o644))?;
        Ok(())
    })?;
    let _agent = lab.start_agent()?;
    let mode = lab
        .host()
        .run(|| Ok(fs::metadata("/run/steer/agent.lock")?.mode() & 0o777))?;
    ensure!(mode == 0o600, "{mode:o}");
    Ok(())
}

#[test]
fn pins_are_not_made_in_a_directory_of_somebody_else() -> Result<()> {
    let lab = Lab::new()?;
    // As `mount -t bpf` without options does it.
    lab.host().run(|| {
        fs::set_permissions("/sys/fs/bpf", fs::Permissions::from_mode(0o1777))?;
        Ok(())
    })?;
    as_user(&lab, ALICE, || Ok(fs::create_dir("/sys/fs/bpf/steer")?))?;
    let output = lab.agent_that_ends()?;
    let said = output.failure(1)?;
    ensure!(said.contains("made by user 4711"), "{output:?}");
    as_user(&lab, ALICE, || Ok(fs::remove_dir("/sys/fs/bpf/steer")?))?;
    let _agent = lab.start_agent()?;
    Ok(())
}

#[test]
fn nothing_that_is_said_ends_the_agent() -> Result<()> {
    let lab = Lab::new()?;
    let mut agent = lab.start_agent()?;
    let pid = agent.pid()?;
    let session = lab.cgroup().child("session")?;
    let method = |name: &str, parameters: &str| {
        format!("{{\"method\":\"net.steer.Agent.{name}\",\"parameters\":{parameters}}}")
    };
    let deep = 30_000;
    let nested = |open: &str, close: &str| open.repeat(deep) + &close.repeat(deep);
    let set = |more: &str| {
        method(
            "SetPolicy",
            &format!(
                "{{\"name\":\"x\",\"cgroup\":[\"{}\"],\"unit\":[],\"use\":[\"wlan0\"]{more}}}",
                session.name()
            ),
        )
    };
    for said in [
        nested("[", "]"),
        "[".repeat(60_000),
        "{\"a\":".repeat(12_000),
        method("SetPolicy", &nested("[", "]")),
        method("Status", &format!("{{\"x\":{}}}", nested("[", "]"))),
        format!(
            "{{\"method\":\"net.steer.Agent.Status\",\"unknown\":{}}}",
            nested("[", "]")
        ),
        set(",\"priority\":1e400"),
        set(",\"priority\":99999999999999999999999999999999"),
        set(",\"priority\":-9223372036854775808"),
        set(&format!(",\"pid\":{}", "9".repeat(60_000))),
        method(
            "Run",
            "{\"via\":[\"wlan0\"],\"command\":\"x\",\"wait_ms\":9223372036854775808}",
        ),
        method(
            "Run",
            &format!(
                "{{\"via\":[{}],\"command\":\"x\"}}",
                vec!["\"wlan0\""; 6000].join(",")
            ),
        ),
        method(
            "Run",
            &format!("{{\"via\":[\"{}\"],\"command\":\"x\"}}", "x".repeat(60_000)),
        ),
        method("Move", "{\"pid\":1.5,\"via\":[]}"),
        method("ShowPolicy", "{\"name\":\"\\u0000\"}"),
        method("ShowPolicy", "{\"name\":\"../../etc/passwd\"}"),
        method("Explain", "{\"cgroup\":\"/../../..\"}"),
        method(
            "Explain",
            "{\"destination\":\"::ffff:999.0.0.1\",\"port\":99999999}",
        ),
        "\\u0000".to_owned(),
        "\u{fffd}\"".to_owned(),
        String::new(),
        "null".to_owned(),
        "\0\0\0\0".to_owned(),
    ] {
        let shown: String = said.chars().take(60).collect();
        for uid in [ALICE, 0] {
            let mut caller = Caller::start(&lab, &User::new(uid), &session)?;
            // An answer, or the connection's end, perhaps while the call is still being written.
            match caller.say(&[said.as_bytes(), b"\0"].concat()) {
                Ok(()) => drop(caller.answer().with_context(|| shown.clone())?),
                Err(error) => {
                    let cause = error.downcast_ref::<io::Error>().map(io::Error::kind);
                    ensure!(cause == Some(ErrorKind::BrokenPipe), "{shown}: {error:#}");
                }
            }
        }
        ensure!(!agent.has_ended()?, "it ended at {shown}:\n{}", agent.log());
    }
    ensure!(agent.pid()? == pid, "another agent");
    lab.nothing_left(&session)
}

#[test]
fn floods_of_calls_keep_neither_the_network_nor_root_waiting_and_fill_no_log() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab.start_agent()?;
    let app = lab.cgroup().child("app")?;
    let own = lab.cgroup().child("own")?;
    lab.set_policy("app", &app, "wlan0,wwan0", &[])?;
    let mut callers = Vec::new();
    for uid in [ALICE, BOB] {
        for number in 0..8 {
            let cgroup = own.child(&format!("{uid}-{number}"))?;
            User::new(uid).own(&cgroup)?;
            callers.push((
                Caller::start(&lab, &User::new(uid), &cgroup)?,
                cgroup,
                number,
            ));
        }
    }
    let before = agent.log().lines().count();
    let over = AtomicBool::new(false);
    let (lab, over) = (&lab, &over);
    std::thread::scope(|scope| {
        let mut floods = Vec::new();
        for (mut caller, cgroup, number) in callers {
            floods.push(scope.spawn(move || -> Result<usize> {
                let name = format!("p-{}", caller.pid());
                let many = vec!["wlan0"; 256];
                let set = json!({"name": name, "cgroup": [cgroup.name()], "unit": [], "use": many});
                let mut calls = 0;
                while !over.load(Ordering::Relaxed) {
                    match number {
                        // Never reads; it is cut off when the agent has waited long enough.
                        0 => drop(caller.ask("ListDomains", &json!({}), false)),
                        1 => drop(caller.call("Status", &json!({}))?),
                        2 => drop(caller.call("Explain", &json!({}))?),
                        3 => drop(caller.call("Move", &json!({"pid": 1, "via": many}))?),
                        _ => {
                            caller.call("SetPolicy", &set)?;
                            caller.call("UnsetPolicy", &json!({"name": name}))?;
                        }
                    }
                    calls += 1;
                }
                Ok(calls)
            }));
        }
        let switched = (|| {
            for _ in 0..3 {
                lab.carrier_down("wlan0")?;
                lab.wait_decision("app", "domain", "wwan0")?;
                lab.carrier_up("wlan0")?;
                lab.wait_decision("app", "domain", "wlan0")?;
            }
            Ok::<_, anyhow::Error>(())
        })();
        over.store(true, Ordering::Relaxed);
        for flood in floods {
            let calls = flood
                .join()
                .map_err(|_| anyhow::anyhow!("the thread panicked"))?;
            ensure!(calls? > 0, "no flood");
        }
        switched
    })?;
    let lines = agent.log().lines().count() - before;
    ensure!(
        lines < 100 && !agent.log().contains("p-"),
        "{lines} lines:\n{}",
        agent.log()
    );
    wait::until("the policies of the floods to be gone", || {
        Ok((lab.policies()?.len() == 1).then_some(()))
    })
}

/// Sets how many descriptors a process may have.
fn limit_descriptors(pid: u32, most: u64) -> Result<()> {
    let limit = libc::rlimit {
        rlim_cur: most,
        rlim_max: 1024,
    };
    let (pid, kind) = (i32::try_from(pid)?, libc::RLIMIT_NOFILE);
    // SAFETY: the limit lives until the call returns, which reads it; nothing is asked for.
    let limited = unsafe { libc::prlimit(pid, kind, &raw const limit, std::ptr::null_mut()) };
    let error = io::Error::last_os_error();
    ensure!(limited == 0, "limit process {pid}: {error}");
    Ok(())
}

#[test]
fn an_agent_without_descriptors_goes_on_and_serves_when_it_has_some() -> Result<()> {
    let lab = Lab::new()?;
    let mut agent = lab.start_agent()?;
    let session = lab.cgroup().child("session")?;
    let app = lab.cgroup().child("app")?;
    lab.set_policy("app", &app, "wlan0,wwan0", &[])?;
    // It has more open already: not one call can be accepted.
    limit_descriptors(agent.pid()?, 3)?;
    let mut callers = Vec::new();
    for uid in ALICE..ALICE + 6 {
        for _ in 0..8 {
            callers.push(Caller::start(&lab, &User::new(uid), &session)?);
        }
    }
    wait::until("no descriptor to be left", || {
        let lacks = agent.log().contains("no call could be accepted");
        Ok(lacks.then_some(()))
    })?;
    lab.carrier_down("wlan0")?;
    wait::until("new flows to leave by the next domain", || {
        let gone = lab.flow_leaves_by(&app, "wwan0", Kind::UdpConnected, Family::V4);
        Ok(gone.ok().map(drop))
    })?;
    ensure!(!agent.has_ended()?, "{}", agent.log());
    limit_descriptors(agent.pid()?, 1024)?;
    drop(callers);
    wait::until("the agent to answer", || {
        Ok((lab.steer(&["status"])?.code == 0).then_some(()))
    })?;
    lab.carrier_up("wlan0")?;
    lab.wait_decision("app", "domain", "wlan0")
}
