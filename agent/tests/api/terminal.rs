//! What text looks like on a terminal: as wide as that is, with colour unless the user wants none.

use std::fs::File;
use std::io::Read;
use std::process::{Command, Stdio};

use nix::pty::{Winsize, openpty};

use steer::api::methods::{Reply, Request};

use crate::fake::{Agent, agreeable, policy};

/// What `steer LINE` prints on a terminal of a width.
fn on_terminal(agent: &Agent, line: &str, columns: u16, environment: &[(&str, &str)]) -> String {
    let size = Winsize {
        ws_row: 24,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let terminal = openpty(Some(&size), None).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_steer"))
        .arg("--socket")
        .arg(agent.path())
        .args(line.split_whitespace())
        .env_remove("NO_COLOR")
        .env_remove("COLUMNS")
        .env("TERM", "xterm")
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .stdout(terminal.slave)
        .spawn()
        .unwrap();
    let mut printed = Vec::new();
    let mut buffer = [0; 4096];
    let mut master = File::from(terminal.master);
    // The far end's end is an error here.
    while let Ok(length @ 1..) = master.read(&mut buffer) {
        printed.extend_from_slice(&buffer[..length]);
    }
    assert!(child.wait().unwrap().success());
    String::from_utf8(printed).unwrap().replace('\r', "")
}

/// Width of the widest line, without colours.
fn widest(text: &str) -> usize {
    let mut plain = String::new();
    let mut parts = text.split("\x1b[");
    plain.push_str(parts.next().unwrap());
    for part in parts {
        plain.push_str(part.split_once('m').unwrap().1);
    }
    plain
        .lines()
        .map(|line| line.chars().count())
        .max()
        .unwrap()
}

/// Policies that want more than 80 columns.
fn wide() -> Agent {
    Agent::start(|call| {
        if let Request::ListPolicies = call.request {
            let mut web = policy("web");
            web.cgroup = vec!["x.slice/".repeat(20)];
            let reply = Reply::Policies(vec![web]);
            call.reply.end(Ok(reply));
            return;
        }
        agreeable(call);
    })
}

#[test]
fn text_is_as_wide_as_the_terminal() {
    let agent = wide();
    for columns in [60, 80, 132] {
        let text = on_terminal(&agent, "policy", columns, &[]);
        let width = widest(&text);
        let room = usize::from(columns);
        assert!(
            width <= room && width > room - 10,
            "{columns}: {width}\n{text}"
        );
    }
    let text = on_terminal(&agent, "policy", 132, &[("COLUMNS", "70")]);
    assert!(widest(&text) <= 70, "COLUMNS wins: {text}");
}

#[test]
fn colour_is_for_terminals_and_for_who_wants_it() {
    let agent = wide();
    for (environment, colour) in [
        (&[][..], true),
        (&[("NO_COLOR", "1")], false),
        (&[("NO_COLOR", "")], true),
        (&[("TERM", "dumb")], false),
    ] {
        let text = on_terminal(&agent, "policy", 80, environment);
        assert_eq!(text.contains('\x1b'), colour, "{environment:?}: {text:?}");
    }
    let json = on_terminal(&agent, "policy --json", 80, &[]);
    assert!(!json.contains('\x1b'), "{json:?}");
}
