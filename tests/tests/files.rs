//! Files that are read again, and bad policies in good files, on the wire.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use steer_tests::{Agent, Family, Kind, Lab, LabCgroup, conformance, wait};

fn hang_up(agent: &Agent<'_>) -> Result<()> {
    let pid = Pid::from_raw(i32::try_from(agent.pid()?)?);
    kill(pid, Signal::SIGHUP).context("send SIGHUP")
}

/// `[policy.NAME]` for a cgroup.
fn policy(name: &str, cgroup: &LabCgroup, says: &str) -> String {
    format!(
        "[policy.{name}]\nmatch.cgroup = \"{}\"\n{says}\n",
        cgroup.name()
    )
}

/// Steered as `steer.toml` said before.
fn goes_on(lab: &Lab, app: &LabCgroup, uplink: &str) -> Result<()> {
    lab.flow_leaves_by(app, uplink, Kind::Tcp, Family::V4)?;
    lab.flow_leaves_by(app, uplink, Kind::UdpUnconnected, Family::V6)
        .map(drop)
}

#[test]
fn files_that_are_read_again_are_in_force_when_the_command_ends() -> Result<()> {
    let lab = Lab::new()?;
    let app = lab.cgroup().child("app")?;
    lab.configure(&policy("app", &app, "use = \"wlan0\""))?;
    let _agent = lab.start_agent()?;
    goes_on(&lab, &app, "wlan0")?;
    lab.configure(&policy("app", &app, "use = \"wwan0\""))?;
    goes_on(&lab, &app, "wlan0").context("before it is told")?;
    lab.steer(&["reload"])?.success()?;
    goes_on(&lab, &app, "wwan0")?;
    lab.configure("")?;
    let reloaded = lab.steer(&["reload", "--json"])?.json()?;
    ensure!(
        reloaded["files"] == 1 && reloaded["policies"] == 0,
        "{reloaded}"
    );
    let policies = lab.steer(&["policy", "list", "--json"])?.json()?;
    ensure!(policies == Value::Array(Vec::new()), "{policies}");
    goes_on(&lab, &app, "eth0").context("the host's own routing")
}

#[test]
fn a_hangup_has_the_files_read_again_and_the_agent_goes_on() -> Result<()> {
    let lab = Lab::new()?;
    let app = lab.cgroup().child("app")?;
    lab.configure(&policy("app", &app, "use = \"wlan0\""))?;
    let mut agent = lab.start_agent()?;
    lab.configure(&policy("app", &app, "use = \"wwan0\""))?;
    hang_up(&agent)?;
    lab.wait_decision("app", "domain", "wwan0")?;
    goes_on(&lab, &app, "wwan0")?;
    lab.configure("[polices.app]\n")?;
    hang_up(&agent)?;
    wait::until("the mistake to be logged", || {
        Ok(agent.log().contains("[polices.app]").then_some(()))
    })?;
    ensure!(!agent.has_ended()?, "it ended: {}", agent.log());
    goes_on(&lab, &app, "wwan0")
}

#[test]
fn systemd_is_told_when_files_are_read_again_and_when_that_is_done() -> Result<()> {
    let lab = Lab::new()?;
    lab.configure("")?;
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("notify");
    let socket = UnixDatagram::bind(&path)?;
    socket.set_read_timeout(Some(Duration::from_secs(20)))?;
    let told = || -> Result<String> {
        let mut message = [0; 256];
        let length = socket.recv(&mut message).context("nothing was told")?;
        Ok(String::from_utf8_lossy(&message[..length])
            .trim()
            .to_owned())
    };
    let mut agent = lab.agent()?;
    agent.notify_at(path);
    agent.start()?;
    ensure!(told()? == "READY=1");
    for text in ["", "[polices.x]\n"] {
        lab.configure(text)?;
        hang_up(&agent)?;
        let message = told()?;
        let (first, second) = message.split_once('\n').context(message.clone())?;
        ensure!(first == "RELOADING=1", "{message}");
        let since = second
            .strip_prefix("MONOTONIC_USEC=")
            .context(message.clone())?;
        ensure!(since.parse::<u64>().is_ok_and(|usec| usec > 0), "{message}");
        let message = told()?;
        ensure!(
            message == "READY=1",
            "a bad file is a reload, too: {message}"
        );
    }
    Ok(())
}

#[test]
fn a_bad_file_changes_nothing_and_the_caller_gets_what_is_wrong() -> Result<()> {
    let lab = Lab::new()?;
    let app = lab.cgroup().child("app")?;
    let good = policy("app", &app, "use = \"wlan0\"");
    lab.configure(&good)?;
    let agent = lab.start_agent()?;
    let before = lab.steer(&["policy", "list", "--json"])?.json()?;
    for (bad, says) in [
        ("[policy.app\n", "unclosed table"),
        ("[domain.x]\ncolour = 1\n", "unknown key `colour`"),
        ("[policy.new]\nuse = \"wwan0\"\n", "has no match"),
    ] {
        let other = policy("app", &app, "use = \"wwan0\"");
        lab.configure(&format!("{other}{bad}"))?;
        let output = lab.steer(&["reload"])?;
        let words = output.failure(1)?;
        ensure!(
            words.contains(says) && words.contains("^") && words.contains("steer.toml:"),
            "{bad}: {words}"
        );
        ensure!(agent.log().contains(says), "{}", agent.log());
        let after = lab.steer(&["policy", "list", "--json"])?.json()?;
        ensure!(after == before, "{bad}: {after}");
    }
    goes_on(&lab, &app, "wlan0")
}

#[test]
fn what_only_a_start_can_change_is_told_with_its_place() -> Result<()> {
    let lab = Lab::new()?;
    lab.configure("")?;
    let _agent = lab.start_agent()?;
    for (key, was) in [
        ("mark-mask = \"0x00ff0000\"", "0x77000000"),
        ("table-base = 9000", "40000"),
        ("rule-base = 9000", "4000"),
    ] {
        lab.configure_agent(key, "")?;
        let output = lab.steer(&["reload"])?;
        let words = output.failure(1)?;
        let name = key.split(' ').next().unwrap_or_default();
        for part in [
            format!("`{name}` cannot be changed while the agent runs (it is {was})"),
            "steer.toml:3:".to_owned(),
            "systemctl restart steer".to_owned(),
        ] {
            ensure!(words.contains(&part), "{part}: {words}");
        }
    }
    lab.write_file("/etc/steer/steer.toml", "")?;
    let output = lab.steer(&["reload"])?;
    ensure!(output.failure(1)?.contains("`cgroup-root`"), "{output:?}");
    lab.configure_agent("discover = [\"wlan0\"]", "")?;
    lab.steer(&["reload"])?.success()?;
    let domains = lab.steer(&["domain", "list", "--json"])?.json()?;
    let count = domains.as_array().map_or(0, Vec::len);
    ensure!(count == 1, "{domains}");
    Ok(())
}

/// Each is bad in itself, and strict.
const STRICT_AND_BAD: [&str; 3] = [
    "use = \"wlan0\"\nstrict = true\notherwise = \"pass\"",
    "use = \"a-name-no-interface-has\"\nstrict = true",
    "use = \"wlan0\"\nstirct = true",
];

fn quarantined(lab: &Lab, name: &str) -> Result<String> {
    let shown = lab.steer(&["policy", "show", name, "--json"])?.json()?;
    let reason = shown.get("quarantined").and_then(Value::as_str);
    Ok(reason.with_context(|| format!("{shown}"))?.to_owned())
}

#[test]
fn a_strict_policy_in_quarantine_stays_silent_and_the_others_of_its_file_steer() -> Result<()> {
    let lab = Lab::new()?;
    let [vault, app, plain, lax] = ["vault", "app", "plain", "lax"].map(|n| lab.cgroup().child(n));
    let (vault, app, plain, lax) = (vault?, app?, plain?, lax?);
    let file = |bad: &str| {
        [
            policy("app", &app, "use = \"wwan0\""),
            policy("vault", &vault, bad),
            policy("lax", &lax, "use = \"wlan0\"\nlunch = true"),
        ]
        .concat()
    };
    lab.configure(&file(STRICT_AND_BAD[0]))?;
    let mut agent = lab.start_agent()?;
    for (round, bad) in STRICT_AND_BAD.into_iter().enumerate() {
        if round > 0 {
            lab.configure(&file(bad))?;
            let output = lab.steer(&["reload"])?;
            output.success()?;
            ensure!(output.stderr.contains("error[quarantined]"), "{output:?}");
        }
        lab.matrix_is_refused(&vault, None).context(bad)?;
        let child = vault.child(&format!("below-{round}"))?;
        lab.matrix_is_refused(&child, None)
            .with_context(|| format!("a cgroup below: {bad}"))?;
        goes_on(&lab, &app, "wwan0").context(bad)?;
        goes_on(&lab, &lax, "eth0").context("the host's own routing")?;
        goes_on(&lab, &plain, "eth0")?;
        let reason = quarantined(&lab, "vault")?;
        ensure!(reason.contains("steer.toml:"), "{reason}");
        quarantined(&lab, "lax")?;
    }
    let status = lab.steer(&["status", "--json"])?.json()?;
    ensure!(status.to_string().contains("is in quarantine"), "{status}");
    agent.restart_after_kill()?;
    lab.matrix_is_refused(&vault, None).context("restarted")?;

    lab.configure(&file("use = \"wlan0\"\nstrict = true"))?;
    lab.steer(&["reload"])?.success()?;
    lab.matrix_leaves_by(&vault, "wlan0").context("mended")
}

#[test]
fn a_policy_that_was_in_force_is_closed_when_it_goes_bad() -> Result<()> {
    let lab = Lab::new()?;
    let vault = lab.cgroup().child("vault")?;
    lab.configure(&policy("vault", &vault, "use = \"wlan0\"\nstrict = true"))?;
    let _agent = lab.start_agent()?;
    lab.matrix_leaves_by(&vault, "wlan0")?;
    lab.configure(&policy("vault", &vault, STRICT_AND_BAD[0]))?;
    lab.steer(&["reload"])?.success()?;
    lab.matrix_is_refused(&vault, None)
}

#[test]
fn a_policy_is_not_saved_if_the_files_would_have_it_in_quarantine() -> Result<()> {
    let lab = Lab::new()?;
    let app = lab.cgroup().child("app")?;
    lab.configure(&policy("app", &app, "use = \"wlan0\""))?;
    let _agent = lab.start_agent()?;
    let output = lab.steer(&[
        "policy",
        "set",
        "second",
        "--cgroup",
        app.name(),
        "--via",
        "wwan0",
        "--save",
    ])?;
    ensure!(output.failure(1)?.contains("priority"), "{output:?}");
    let policies = lab.steer(&["policy", "list", "--json"])?.json()?;
    ensure!(!policies.to_string().contains("second"), "{policies}");
    goes_on(&lab, &app, "wlan0")
}

/// Sentences of one kind that `steer check --json` says, with the line that each is about.
fn checked(lab: &Lab, kind: &str) -> Result<Vec<(u64, String)>> {
    let found = lab.steer(&["check", "--json"])?.json()?;
    let found = found.as_array().context("no list")?.iter();
    let of_kind = found.filter(|found| found["kind"] == kind);
    of_kind
        .map(|found| {
            let message = found["message"].as_str().context("no message")?;
            Ok((
                found["line"].as_u64().context("no line")?,
                message.to_owned(),
            ))
        })
        .collect()
}

#[test]
fn of_two_policies_that_conflict_the_one_holds_that_check_names() -> Result<()> {
    let lab = Lab::new()?;
    let app = lab.cgroup().child("app.scope")?;
    let beside = lab.cgroup().child("app.slice")?;
    let root = lab.cgroup().name();
    // Each operator wants the application by its own network.
    let file = |first: i32, second: i32| {
        format!(
            "[policy.n1]\nmatch.cgroup = \"{root}/app*\"\nuse = \"wlan0\"\npriority = {first}\n\
             [policy.n2]\nmatch.cgroup = \"{root}/*.scope\"\nuse = \"wwan0\"\npriority = {second}\n"
        )
    };
    lab.configure(&file(1, 2))?;
    ensure!(
        checked(&lab, "overlapping")?.len() == 1,
        "no agent is needed"
    );
    let _agent = lab.start_agent()?;
    for (first, second, holds, uplink, why) in [
        (1, 2, "n2", "wwan0", "its priority is higher (2 over 1)"),
        (7, 2, "n1", "wlan0", "its priority is higher (7 over 2)"),
        (3, 3, "n1", "wlan0", "its name comes first"),
    ] {
        lab.configure(&file(first, second))?;
        lab.steer(&["reload"])?.success()?;
        lab.matrix_leaves_by(&app, uplink)
            .with_context(|| format!("{first} and {second}"))?;
        goes_on(&lab, &beside, "wlan0").context("where only one matches")?;
        let found = checked(&lab, "overlapping")?;
        let [(_, words)] = &found[..] else {
            anyhow::bail!("{found:?}");
        };
        ensure!(
            words.contains(&format!("`{holds}` holds there, since {why}"))
                && words.contains(&format!("{root}/app.scope for instance")),
            "{words}"
        );
    }
    // One that names the cgroup comes before patterns, and a file's before a command's.
    let exact = policy("n3", &app, "use = \"wwan0\"\npriority = 3");
    lab.configure(&format!("{}{exact}", file(3, 3)))?;
    lab.steer(&["reload"])?.success()?;
    lab.matrix_leaves_by(&app, "wwan0").context("by its path")?;
    let found = checked(&lab, "overlapping")?;
    let by_path = |(_, words): &&(u64, String)| words.contains("`n3` holds there, since it names");
    ensure!(found.iter().filter(by_path).count() == 2, "{found:?}");
    lab.set_policy("user", &app, "eth0", &["--priority", "100"])?;
    lab.matrix_leaves_by(&app, "wwan0")
        .context("the file's origin is higher")?;
    conformance::row(
        "P-4.3-2",
        "of two policies that conflict on one application the one holds that `steer check` names: by \
         priority, by exactness, and the file's before a user's",
    )
}

#[test]
fn a_policy_that_check_calls_shadowed_steers_nothing() -> Result<()> {
    let lab = Lab::new()?;
    let app = lab.cgroup().child("app.scope")?;
    let root = lab.cgroup().name();
    lab.configure(&format!(
        "[policy.all]\nmatch.cgroup = \"{root}/**\"\nuse = \"wlan0\"\npriority = 1\n{}",
        policy("app", &app, "use = \"wwan0\"")
    ))?;
    let _agent = lab.start_agent()?;
    goes_on(&lab, &app, "wlan0")?;
    let found = checked(&lab, "shadowed")?;
    ensure!(
        matches!(&found[..], [(8, words)] if words.contains("`app` can never be in force")),
        "{found:?}"
    );
    Ok(())
}

#[test]
fn check_needs_neither_an_agent_nor_root() -> Result<()> {
    let lab = Lab::new()?;
    lab.write_file(
        "/etc/steer/steer.toml",
        "[policy.web]\nmatch.cgroup = \"a\"\nuse = \"wlan0\"\n",
    )?;
    let program = lab.steer(&["check"])?;
    ensure!(
        program.success()? == "/etc/steer/steer.toml: no mistake\n",
        "{program:?}"
    );
    lab.write_file(
        "/etc/steer/steer.toml",
        "[policy.web]\nmatch.cgroup = \"a\"\nuse = \"wlan0\"\notherwise = \"blok\"\n",
    )?;
    let expected = "\
error[quarantined]: `otherwise` must be `block`, `pass` or `next`, not `blok`
 --> /etc/steer/steer.toml:4:13
  |
4 | otherwise = \"blok\"
  |             ^^^^^^ no such word
  |
help: did you mean `block`?

/etc/steer/steer.toml: 1 mistake
";
    let output = lab.steer(&["check"])?;
    ensure!(output.code == 1 && output.stdout == expected, "{output:?}");
    let plain = lab
        .host()
        .command("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(steer_tests::steer_binary()?)
        .arg("check")
        .output()?;
    ensure!(plain.status.code() == Some(1), "{plain:?}");
    ensure!(plain.stdout == expected.as_bytes(), "{plain:?}");
    lab.write_file("/etc/steer/steer.toml", "[agent]\ncolour = 1\n")?;
    let found = lab.steer(&["check", "--json"])?;
    ensure!(found.code == 1, "{found:?}");
    let found: Value = serde_json::from_str(&found.stdout)?;
    ensure!(
        found[0]["kind"] == "mistake"
            && found[0]["line"] == 2
            && found[0]["column"] == 1
            && found[0]["end_column"] == 7
            && found[0]["source"] == "colour = 1",
        "{found}"
    );
    let output = lab.steer(&["check", "/etc/steer/no-such-file.toml"])?;
    ensure!(
        output
            .failure(1)?
            .contains("read /etc/steer/no-such-file.toml"),
        "{output:?}"
    );
    Ok(())
}
