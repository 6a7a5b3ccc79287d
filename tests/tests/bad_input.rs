//! Bad input by file, command line and API: a clear error, and what ran goes on.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use steer_tests::{Family, Kind, Lab, LabCgroup, conformance, wait};

const SOCKET: &str = "/run/steer/agent.sock";

/// Still answers, and still steers.
fn goes_on(lab: &Lab, app: &LabCgroup) -> Result<()> {
    lab.steer(&["status", "--json"])?.json()?;
    lab.flow_leaves_by(app, "wlan0", Kind::Tcp, Family::V4)
        .map(drop)
}

#[test]
fn a_broken_file_is_refused_with_file_line_and_column() -> Result<()> {
    for (file, line, says) in [
        ("[policy.x\nuse = [\"wlan0\"]", 1, "x"),
        ("[agent]\ncolour = \"red\"", 2, "colour"),
        (
            "[policy.x]\nmatch.cgroup = \"a/../b\"\nuse = [\"wlan0\"]",
            2,
            "..",
        ),
        (
            "[policy.x]\nmatch.cgruop = \"a\"\nuse = [\"wlan0\"]",
            2,
            "cgruop",
        ),
        ("[agent]\nmark-mask = \"0x77000000000\"", 2, "mark-mask"),
    ] {
        let lab = Lab::new()?;
        lab.write_file("/etc/steer/steer.toml", file)?;
        let output = lab.agent_that_ends()?;
        ensure!(output.code != 0, "accepted: {file}");
        let place = format!("steer.toml:{line}:");
        ensure!(
            output.stderr.contains(&place) && output.stderr.contains(says),
            "the message should name {place} and {says}: {}",
            output.stderr
        );
    }
    conformance::row(
        "INVARIANT-5",
        "a bad file is refused with file, line and column of each mistake",
    )
}

#[test]
fn a_name_of_three_hundred_characters_in_a_file_is_refused() -> Result<()> {
    let lab = Lab::new()?;
    let name = "n".repeat(300);
    lab.write_file(
        "/etc/steer/steer.toml",
        &format!("[policy.{name}]\nmatch.cgroup = \"a\"\nuse = [\"wlan0\"]"),
    )?;
    let output = lab.agent_that_ends()?;
    ensure!(
        output.code != 0 && output.stderr.contains("steer.toml:1:"),
        "{output:?}"
    );
    Ok(())
}

#[test]
fn two_policies_of_one_priority_on_one_cgroup_are_an_error_that_names_both() -> Result<()> {
    let lab = Lab::new()?;
    let app = lab.cgroup().child("app")?;
    let _agent = lab.start_agent()?;
    lab.set_policy("first", &app, "wlan0", &[])?;
    let output = lab.steer(&[
        "policy",
        "set",
        "second",
        "--cgroup",
        app.name(),
        "--via",
        "wwan0",
    ])?;
    let status = lab.steer(&["status", "--json"])?.json()?;
    let said = format!("{}{}{status}", output.stdout, output.stderr);
    ensure!(said.contains("first") && said.contains("second"), "{said}");
    ensure!(output.code != 0, "the second was accepted: {output:?}");
    goes_on(&lab, &app)
}

#[test]
fn an_interface_that_does_not_exist_is_a_domain_that_is_down() -> Result<()> {
    let lab = Lab::new()?;
    let app = lab.cgroup().child("app")?;
    lab.configure("[domain.lte]\nmatch = { interface = \"wwan7\" }\n")?;
    let _agent = lab.start_agent()?;
    let domain = lab.steer(&["domain", "show", "lte", "--json"])?.json()?;
    ensure!(
        domain.get("state").and_then(Value::as_str) != Some("up"),
        "{domain}"
    );
    lab.set_policy("app", &app, "lte,wlan0", &[])?;
    goes_on(&lab, &app)
}

#[test]
fn the_command_line_refuses_what_cannot_be_and_says_why() -> Result<()> {
    let lab = Lab::new()?;
    let app = lab.cgroup().child("app")?;
    let _agent = lab.start_agent()?;
    lab.set_policy("app", &app, "wlan0", &[])?;
    let before = lab.steer(&["policy", "list", "--json"])?.json()?;
    let long = "n".repeat(300);
    let outside = format!("{}/../elsewhere", lab.cgroup().name());
    for (args, says) in [
        (
            [
                "policy",
                "set",
                &long,
                "--cgroup",
                app.name(),
                "--via",
                "wlan0",
            ],
            "name",
        ),
        (
            ["policy", "set", "x", "--cgroup", &outside, "--via", "wlan0"],
            "..",
        ),
        (
            ["policy", "set", "x", "--cgroup", "", "--via", "wlan0"],
            "cgroup",
        ),
        (
            [
                "policy",
                "set",
                "x",
                "--cgroup",
                app.name(),
                "--via",
                "nowhere",
            ],
            "nowhere",
        ),
        (
            ["policy", "set", "x", "--cgroup", app.name(), "--via", ""],
            "",
        ),
        (
            ["policy", "set", "x", "--pid", "4194305", "--via", "wlan0"],
            "no process 4194305",
        ),
        (
            [
                "policy",
                "set",
                "app",
                "--cgroup",
                app.name(),
                "--via",
                "nowhere",
            ],
            "nowhere",
        ),
    ] {
        let output = lab.steer(&args)?;
        ensure!(output.code == 1 || output.code == 2, "{output:?}");
        ensure!(
            output.stderr.contains(says),
            "the message should name {says}: {output:?}"
        );
    }
    lab.steer(&["policy", "unset", "nobody"])?.failure(1)?;
    lab.steer(&["policy", "show", "nobody"])?.failure(1)?;
    lab.steer(&["domain", "show", "nobody"])?.failure(1)?;
    lab.steer(&["fly"])?.failure(2)?;
    lab.steer(&["run", "--via", "wlan0", "--", "no-such-command"])?
        .failure(127)?;
    let after = lab.steer(&["policy", "list", "--json"])?.json()?;
    ensure!(before == after, "something changed: {before} {after}");
    goes_on(&lab, &app)?;
    conformance::row(
        "INVARIANT-5",
        "commands that cannot be are refused by what is wrong with them, and nothing changes",
    )
}

#[test]
fn without_an_agent_the_command_line_says_so_with_its_own_code() -> Result<()> {
    let lab = Lab::new()?;
    lab.steer(&["policy", "list"])?.failure(3)?;
    let output = lab.steer(&["run", "--via", "wlan0", "--", "echo", "started"])?;
    output.failure(3)?;
    ensure!(output.stdout.is_empty(), "{output:?}");
    Ok(())
}

/// Sends `message` (with its final zero) and returns what comes back until the end or two seconds of silence.
fn call(lab: &Lab, message: &[u8]) -> Result<String> {
    lab.host().run(|| {
        let mut stream = UnixStream::connect(SOCKET).context("connect to the agent")?;
        stream
            .set_read_timeout(Some(Duration::from_secs(2)))
            .context("set timeout")?;
        stream
            .set_write_timeout(Some(Duration::from_secs(2)))
            .context("set timeout")?;
        // The agent may close before all is written, which is an answer, too.
        drop(
            stream
                .write_all(message)
                .and_then(|()| stream.write_all(&[0])),
        );
        let mut answer = Vec::new();
        let mut buffer = [0; 4096];
        while let Ok(length) = stream.read(&mut buffer) {
            answer.extend_from_slice(&buffer[..length]);
            if length == 0 || answer.ends_with(&[0]) {
                break;
            }
        }
        Ok(String::from_utf8_lossy(&answer).into_owned())
    })
}

#[test]
fn the_api_survives_nonsense_missing_fields_ten_megabytes_and_a_thousand_connections() -> Result<()>
{
    let lab = Lab::new()?;
    let app = lab.cgroup().child("app")?;
    let _agent = lab.start_agent()?;
    lab.set_policy("app", &app, "wlan0", &[])?;

    let answer = call(
        &lab,
        br#"{"method":"net.steer.Agent.SetPolicy","parameters":{"name":"x"}}"#,
    )?;
    ensure!(
        answer.contains("error") && answer.contains("cgroup"),
        "missing fields: {answer:?}"
    );
    let answer = call(&lab, br#"{"method":"net.steer.Agent.Fly","parameters":{}}"#)?;
    ensure!(
        answer.contains("MethodNotFound"),
        "unknown method: {answer:?}"
    );
    let answer = call(
        &lab,
        br#"{"method":"net.steer.Agent.ShowPolicy","parameters":{"name":"app","colour":"red"}}"#,
    )?;
    ensure!(answer.contains("colour"), "unknown parameter: {answer:?}");
    call(&lab, b"not json at all")?;
    call(&lab, b"")?;
    call(&lab, &[0xff; 1000])?;
    goes_on(&lab, &app).context("after nonsense")?;

    call(&lab, &vec![b' '; 10 << 20])?;
    let mut huge = br#"{"method":"net.steer.Agent.ShowPolicy","parameters":{"name":""#.to_vec();
    huge.resize(10 << 20, b'x');
    call(&lab, &huge)?;
    goes_on(&lab, &app).context("after ten megabytes")?;

    let connections = lab.host().run(|| {
        let mut open = Vec::new();
        for _ in 0..1000 {
            match UnixStream::connect(SOCKET) {
                Ok(stream) => open.push(stream),
                Err(_) => break,
            }
        }
        Ok(open)
    })?;
    lab.flow_leaves_by(&app, "wlan0", Kind::Tcp, Family::V4)
        .context("among connections")?;
    drop(connections);
    wait::until("the agent to answer again", || {
        Ok((lab.steer(&["status", "--json"])?.code == 0).then_some(()))
    })?;
    goes_on(&lab, &app).context("after a thousand connections")?;
    conformance::row(
        "INVARIANT-5",
        "calls with missing fields, of 10 MB, and 1,000 connections get an error, and what worked goes on",
    )
}

#[test]
fn a_hundred_commands_at_once_find_their_places_in_turn() -> Result<()> {
    let lab = Lab::new()?;
    let app = lab.cgroup().child("app")?;
    let _agent = lab.start_agent()?;
    lab.set_policy("app", &app, "wlan0", &[])?;
    // Half of the agent's places are taken by callers who say nothing.
    let idle = lab.host().run(|| {
        (0..32)
            .map(|_| UnixStream::connect(SOCKET).context("connect to the agent"))
            .collect::<Result<Vec<_>>>()
    })?;
    std::thread::scope(|scope| {
        let commands: Vec<_> = (0..100)
            .map(|_| scope.spawn(|| lab.steer(&["run", "--via", "wlan0", "--", "true"])))
            .collect();
        for command in commands {
            match command.join() {
                Ok(output) => drop(output?.success()?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        anyhow::Ok(())
    })?;
    drop(idle);
    goes_on(&lab, &app).context("after a hundred commands")
}

#[test]
fn several_mistakes_in_a_file_are_drawn_one_after_the_other() -> Result<()> {
    let lab = Lab::new()?;
    lab.write_file("/etc/steer/steer.toml", "[agent]\ncolour = 1\nshape = 2\n")?;
    let ended = lab.agent_that_ends()?;
    let words = ended.failure(1)?;
    let expected = "\
error: unknown key `colour` in [agent]
 --> /etc/steer/steer.toml:2:1
  |
2 | colour = 1
  | ^^^^^^ there is no such key
  |
help: known are `cgroup-root`, `mark-mask`, `table-base`, `rule-base`, `discover`, `host-model`, `linger`, `check`, `order`, `primary`

error: unknown key `shape` in [agent]
 --> /etc/steer/steer.toml:3:1
  |
3 | shape = 2
  | ^^^^^ there is no such key
  |
help: known are `cgroup-root`, `mark-mask`, `table-base`, `rule-base`, `discover`, `host-model`, `linger`, `check`, `order`, `primary`

steer: the files cannot be taken: there are 2 mistakes in them
";
    ensure!(words == expected, "{words}");
    Ok(())
}

#[test]
fn a_mistyped_option_is_not_taken_for_the_command() -> Result<()> {
    let lab = Lab::new()?;
    for (line, says) in [
        ("run --via wlan0 --strct -- true", "'--strict'"),
        ("run --via wlan0 --wait 30s -- true", "--wait=30s"),
        ("run --via wlan0, wwan0 -- true", "no space between"),
        (
            "policy set x --pid 1 --via wlan0, wwan0",
            "no space between",
        ),
    ] {
        let output = lab.steer(&line.split(' ').collect::<Vec<_>>())?;
        let words = output.failure(2)?;
        ensure!(words.contains(says), "{line}: {words}");
    }
    Ok(())
}

#[test]
fn errors_speak_of_what_was_typed() -> Result<()> {
    let lab = Lab::new()?;
    let app = lab.cgroup().child("app")?;
    lab.configure(&format!(
        "[policy.written]\nmatch.cgroup = \"{}\"\nuse = [\"wwan0\"]\n",
        lab.cgroup().child("other")?.name()
    ))?;
    let _agent = lab.start_agent()?;
    lab.set_policy("app", &app, "wlan0", &[])?;
    let path = app.name();
    for (line, says) in [
        (
            "run --via wlna0 -- true".to_owned(),
            "steer: true was not started: --via: unknown domain `wlna0`; did you mean `wlan0`?\n",
        ),
        (
            format!("policy set app --cgroup {path} --via nowhere"),
            "steer: --via: unknown domain `nowhere`\n",
        ),
        (
            "policy set x --pid 4194305 --via wlan0".to_owned(),
            "steer: --pid: no process 4194305\n",
        ),
        (
            format!("policy set written --cgroup {path} --via wlan0"),
            "steer: NAME: policy `written` is written in /etc/steer/steer.toml:4: change it there, \
             or choose another name\n",
        ),
        (
            "policy show ap".to_owned(),
            "steer: there is no policy `ap`; did you mean `app`?\n",
        ),
        (
            "domain show wlan".to_owned(),
            "steer: there is no domain `wlan`; did you mean `wlan0`?\n",
        ),
    ] {
        let output = lab.steer(&line.split(' ').collect::<Vec<_>>())?;
        let words = output.failure(1)?;
        ensure!(words == says, "{line}: {words}");
    }
    lab.carrier_down("wlan0")?;
    let output = wait::until("the carrier to be missed", || {
        let output = lab.steer(&["run", "--via", "wlan0", "--", "true"])?;
        Ok((output.code != 0).then_some(output))
    })?;
    let words = output.failure(4)?;
    let says = "steer: true was not started: no domain fits: no carrier on wlan0 (`steer domain \
                list` shows all domains)\n";
    ensure!(words == says, "{words}");
    Ok(())
}
