//! The real command against a stand-in for the agent: what it prints and what it exits with.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::mpsc;
use std::{env, fs};

use serde_json::{Value, json};
use steer::api::error::ApiError;
use steer::api::methods::{Request, Run, SetPolicy};
use steer::api::server::Limits;
use steer::api::types::Otherwise;
use tempfile::TempDir;

use crate::fake::{Agent, DEADLINE, agreeable, candidate};

fn command(socket: &Path, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_steer"));
    command
        .arg("--socket")
        .arg(socket)
        .args(line.split_whitespace())
        .env_remove("SUDO_USER");
    command
}

fn steer(socket: &Path, line: &str) -> Output {
    command(socket, line).output().unwrap()
}

fn stdout(output: &Output) -> &str {
    str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    str::from_utf8(&output.stderr).unwrap()
}

#[test]
fn run_becomes_the_command_in_place() {
    let (tell, told) = mpsc::channel();
    let agent = Agent::start(move |call| {
        tell.send((call.caller.pid, call.request.clone())).unwrap();
        agreeable(call);
    });
    let directory = fs::canonicalize(env::temp_dir()).unwrap();
    let child = command(
        &agent.path(),
        "run --via wifi,lte --strict --wait=5s -- sh -c",
    )
    .arg("pwd; echo $$ $MARK \"$1\"; exit 7")
    .args(["name", "an argument"])
    .env("MARK", "kept")
    .current_dir(&directory)
    .stdout(std::process::Stdio::piped())
    .spawn()
    .unwrap();
    let pid = child.id();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(7));
    let expected = format!("{}\n{pid} kept an argument\n", directory.display());
    assert_eq!(stdout(&output), expected);

    let (caller, request) = told.recv_timeout(DEADLINE).unwrap();
    assert_eq!(
        caller,
        i32::try_from(pid).unwrap(),
        "the caller is what becomes the command"
    );
    let Request::Run(run) = request else {
        panic!("{request:?}")
    };
    let expected = Run {
        via: vec!["wifi".to_owned(), "lte".to_owned()],
        strict: Some(true),
        wait_ms: Some(5000),
        command: run.command.clone(),
        ask: None,
    };
    assert_eq!(run, expected);
    assert!(run.command.starts_with("sh -c pwd;"), "{}", run.command);

    let killed = command(&agent.path(), "run --via wifi -- sh -c")
        .arg("kill -9 $$")
        .output();
    assert_eq!(killed.unwrap().status.signal(), Some(9));
}

#[test]
fn run_starts_nothing_that_is_not_steered() {
    let directory = TempDir::new().unwrap();
    let witness = directory.path().join("witness");
    let line = format!("run --via wifi -- touch {}", witness.display());

    let nobody = directory.path().join("agent.sock");
    let output = steer(&nobody, &line);
    assert_eq!(output.status.code(), Some(3));
    let expected = format!(
        "steer: touch was not started: the agent is not running (no answer at {}): start it with \
         `steer agent` or `systemctl start steer`\n",
        nobody.display()
    );
    assert_eq!(stderr(&output), expected);

    let agent = Agent::start(|call| {
        let none = ApiError::NoDomainFits {
            policy: None,
            reason: "nothing is up".to_owned(),
            candidates: vec![candidate("wifi", false)],
        };
        call.reply.end(Err(none));
    });
    let output = steer(&agent.path(), &line);
    assert_eq!(output.status.code(), Some(4));
    assert!(
        stderr(&output).contains("wifi: it has no address"),
        "{}",
        stderr(&output)
    );
    assert!(!witness.exists());
}

#[test]
fn run_does_not_trouble_the_agent_for_what_cannot_be_run() {
    let agent = Agent::start(|call| panic!("called: {:?}", call.request));
    let directory = TempDir::new().unwrap();
    let text = directory.path().join("text");
    fs::write(&text, "").unwrap();
    fs::set_permissions(&text, fs::Permissions::from_mode(0o644)).unwrap();
    let missing = steer(&agent.path(), "run --via wifi -- /nonexistent/command");
    assert_eq!(missing.status.code(), Some(127));
    let text = steer(
        &agent.path(),
        &format!("run --via wifi -- {}", text.display()),
    );
    assert_eq!(text.status.code(), Some(126));
}

#[test]
fn a_command_tries_again_while_the_agent_is_busy() {
    let limits = Limits {
        connections: 1,
        ..Limits::default()
    };
    let agent = Agent::start_with(limits, agreeable);
    let mut only = agent.peer();
    // Answered: it has the only place.
    assert!(only.call("Status", &json!({})).get("error").is_none());
    let run = command(&agent.path(), "run --via wifi -- true")
        .spawn()
        .unwrap();
    let output = steer(&agent.path(), "domain list");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        stderr(&output),
        "steer: the agent is busy: 1 connections are open, tried again for 5 s: end some of its \
         callers\n"
    );
    drop(only);
    let output = run.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn policy_set_says_what_was_wished_and_shows_what_came_of_it() {
    let (tell, told) = mpsc::channel();
    let agent = Agent::start(move |call| {
        tell.send(call.request.clone()).unwrap();
        agreeable(call);
    });
    let line = "policy set web --cgroup /app.slice/x a/** --via wifi,lte --otherwise next \
                --priority 5 --save";
    let output = steer(&agent.path(), line);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(
        stdout(&output).contains("steer by wifi (wlan0)"),
        "{}",
        stdout(&output)
    );
    let expected = SetPolicy {
        name: "web".to_owned(),
        cgroup: vec!["app.slice/x".to_owned(), "a/**".to_owned()],
        use_: vec!["wifi".to_owned(), "lte".to_owned()],
        otherwise: Some(Otherwise::Next),
        priority: Some(5),
        save: Some(true),
        ..SetPolicy::default()
    };
    assert_eq!(
        told.recv_timeout(DEADLINE).unwrap(),
        Request::SetPolicy(expected)
    );
}

#[test]
fn reading_commands_print_one_sorted_json_document() {
    let agent = Agent::start(agreeable);
    for (line, pointer, expected) in [
        ("-j", "/agent_running", json!(true)),
        ("status --json", "/counters/steered", json!(7)),
        ("policy -j", "/1/name", json!("web")),
        ("policy list -j", "/0/name", json!("mail")),
        ("policy show web -j", "/decision/source6", Value::Null),
        (
            "policy set web --pid 1 --via lte -j",
            "/use/0",
            json!("lte"),
        ),
        ("policy unset web -j", "/removed", json!("web")),
        ("domain list --json", "/0/name", json!("lte")),
        ("domain show wifi -j", "/mark", json!("0x1000000")),
    ] {
        let output = steer(&agent.path(), line);
        assert!(output.status.success(), "{line}: {}", stderr(&output));
        let document: Value = serde_json::from_str(stdout(&output)).unwrap();
        assert_eq!(
            document.pointer(pointer),
            Some(&expected),
            "{line}: {document}"
        );
        // A map of serde_json is sorted: printing it again changes nothing.
        assert_eq!(stdout(&output), format!("{document:#}\n"), "{line}");
    }
}

#[test]
fn text_for_people_has_no_colour_when_piped_and_no_line_beyond_80_columns() {
    let agent = Agent::start(agreeable);
    for line in [
        "",
        "policy",
        "policy show web",
        "domain",
        "domain show wifi",
    ] {
        let output = steer(&agent.path(), line);
        assert!(output.status.success(), "{line}: {}", stderr(&output));
        let text = stdout(&output);
        assert!(text.contains("wifi"), "{line}: {text}");
        assert!(!text.contains('\x1b'), "{line}: {text:?}");
        assert!(text.lines().all(|l| l.len() <= 80), "{line}: {text}");
    }
}

#[test]
fn detach_does_not_pull_the_rug_from_under_an_agent() {
    let agent = Agent::start(agreeable);
    let output = steer(&agent.path(), "detach");
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("systemctl stop steer"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn errors_are_one_line_and_usage_has_its_own_code() {
    let agent = Agent::start(|call| {
        let name = "evil\n\x1b[2Jname".to_owned();
        call.reply
            .end(Err(ApiError::NoSuchPolicy { name, meant: None }));
    });
    let output = steer(&agent.path(), "policy show x");
    assert_eq!(output.status.code(), Some(1));
    let expected = "steer: there is no policy `evil\\n\\u{1b}[2Jname`: `steer policy list` shows \
                    all\n";
    assert_eq!(stderr(&output), expected);

    for line in [
        "nonsense",
        "policy set",
        "run --via x",
        "policy set a --pid 1 --via x --wat",
    ] {
        assert_eq!(steer(&agent.path(), line).status.code(), Some(2), "{line}");
    }
    assert_eq!(steer(&agent.path(), "--help").status.code(), Some(0));
    let help = steer(&agent.path(), "agent --help");
    assert!(stdout(&help).contains("--socket"), "{}", stdout(&help));
}
