//! `steer run --ask` and `steer domain prefer` on a controlling terminal, and without one.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use nix::pty::{Winsize, openpty};
use nix::sys::signal::{SigHandler, Signal, signal};

use steer::api::methods::{Prefer, Reply, Request};
use steer::api::server::Call;
use steer::api::types::Choice;

use crate::fake::{Agent, DEADLINE, agreeable, domain, policy, run_reply};

fn choice(domain: &str, state: &str) -> Choice {
    Choice {
        domain: domain.to_owned(),
        kind: "wlan".to_owned(),
        state: state.to_owned(),
        reason: "no carrier".to_owned(),
        cost: 7,
        metered: domain == "lte",
    }
}

/// An agent that asks, and the calls of `Prefer` that it gets. What is sent to it answers the question
/// without one.
fn asking() -> (Agent, Receiver<Prefer>, Arc<Mutex<Option<Call>>>) {
    let (told, prefers): (Sender<Prefer>, _) = channel();
    let open: Arc<Mutex<Option<Call>>> = Arc::default();
    let waiting = Arc::clone(&open);
    let agent = Agent::start(move |call| match &call.request {
        Request::Run(run) => {
            assert_eq!(run.ask, Some(true));
            let mut part = run_reply("run-1".to_owned(), Vec::new());
            part.cgroup = None;
            part.waits = Some("waits for an answer".to_owned());
            part.question = Some(vec![choice("wifi", "down"), choice("lte", "up")]);
            call.reply.part(Reply::Run(part)).unwrap();
            *waiting.lock().unwrap() = Some(call);
        }
        Request::Prefer(prefer) => {
            told.send(prefer.clone()).unwrap();
            agreeable(call);
            if let Some(run) = waiting.lock().unwrap().take() {
                agreeable(run);
            }
        }
        _ => agreeable(call),
    });
    (agent, prefers, open)
}

/// `steer LINE` in a session of its own, and its controlling terminal if it is to have one.
fn session(agent: &Agent, line: &str, terminal: bool) -> (Child, Option<File>) {
    let size = Winsize {
        ws_row: 24,
        ws_col: 80,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let pty = openpty(Some(&size), None).unwrap();
    let slave = pty.slave.as_raw_fd();
    let mut command = Command::new(env!("CARGO_BIN_EXE_steer"));
    command
        .arg("--socket")
        .arg(agent.path())
        .args(line.split_whitespace())
        .env("TERM", "dumb")
        // The question is not asked of data.
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let lead = move || -> std::io::Result<()> {
        nix::unistd::setsid()?;
        // A shell that runs the tests in the background has it ignored.
        // SAFETY: no handler is set.
        unsafe { signal(Signal::SIGINT, SigHandler::SigDfl) }?;
        // SAFETY: an open terminal, and a number.
        if terminal && unsafe { libc::ioctl(slave, libc::TIOCSCTTY, 0) } < 0 {
            return Err(std::io::Error::last_os_error());
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes system calls only.
    unsafe { command.pre_exec(lead) };
    let child = command.spawn().unwrap();
    (child, terminal.then(|| File::from(pty.master)))
}

/// Reads a terminal until this was printed.
fn read_until(terminal: &mut File, wanted: &str) -> String {
    let mut printed = String::new();
    let mut buffer = [0; 1024];
    while !printed.contains(wanted) {
        let length = match terminal.read(&mut buffer) {
            Ok(length @ 1..) => length,
            end => panic!("{end:?} instead of {wanted}: {printed}"),
        };
        printed.push_str(&String::from_utf8_lossy(&buffer[..length]));
    }
    printed.replace('\r', "")
}

fn text(output: &Output) -> (String, String) {
    (
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

fn of(domain: &str, policies: &[&str]) -> Prefer {
    Prefer {
        domain: Some(domain.to_owned()),
        policy: policies.iter().map(|&name| name.to_owned()).collect(),
    }
}

#[test]
fn run_asks_on_the_terminal_until_the_answer_is_one() {
    let (agent, prefers, _open) = asking();
    let (mut child, terminal) = session(&agent, "run --ask -- cat", true);
    let mut terminal = terminal.unwrap();
    let shown = read_until(&mut terminal, "(Ctrl-C: none): ");
    for wanted in [
        "Which domain for `cat`?",
        "1  wifi    wlan  7     no       down: no carrier",
        "2  lte     wlan  7     yes      up",
        "Number (1 to 2) or name",
    ] {
        assert!(shown.contains(wanted), "{wanted} is missing:\n{shown}");
    }
    terminal.write_all(b"3\n").unwrap();
    read_until(&mut terminal, "There is no `3` to choose.");
    terminal.write_all(b"\n").unwrap();
    read_until(&mut terminal, "Which one?");
    assert!(prefers.try_recv().is_err());
    child.stdin.take().unwrap().write_all(b"data").unwrap();
    terminal.write_all(b"2\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(text(&output), ("data".to_owned(), String::new()));
    assert_eq!(
        prefers.recv_timeout(DEADLINE).unwrap(),
        of("lte", &["run-1"])
    );
}

#[test]
fn an_empty_line_takes_the_first_that_fits_of_those_that_were_named() {
    let (agent, prefers, _open) = asking();
    let (child, terminal) = session(&agent, "run --ask --via wifi,lte -- true", true);
    let mut terminal = terminal.unwrap();
    read_until(&mut terminal, "or name [2]: ");
    terminal.write_all(b"\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(
        prefers.recv_timeout(DEADLINE).unwrap(),
        of("lte", &["run-1"])
    );
}

#[test]
fn an_answer_from_elsewhere_ends_the_question_on_the_terminal() {
    let (agent, prefers, open) = asking();
    let (child, terminal) = session(&agent, "run --ask -- echo started", true);
    let mut terminal = terminal.unwrap();
    read_until(&mut terminal, "(Ctrl-C: none): ");
    terminal.write_all(b"half a li").unwrap();
    agreeable(open.lock().unwrap().take().unwrap());
    let said = read_until(&mut terminal, "answered elsewhere");
    assert!(!said.contains("started"), "{said}");
    let output = child.wait_with_output().unwrap();
    assert_eq!(text(&output), ("started\n".to_owned(), String::new()));
    assert!(prefers.try_recv().is_err());
}

#[test]
fn ctrl_c_and_the_end_of_input_start_nothing() {
    let (agent, prefers, open) = asking();
    for (typed, end) in [(b"\x03", "130"), (b"\x04", "1")] {
        let (child, terminal) = session(&agent, "run --ask -- echo started", true);
        let mut terminal = terminal.unwrap();
        read_until(&mut terminal, "(Ctrl-C: none): ");
        terminal.write_all(typed).unwrap();
        let output = child.wait_with_output().unwrap();
        let status = output.status;
        let code = status.code().or(status.signal().map(|signal| 128 + signal));
        assert_eq!(code.unwrap().to_string(), end, "{output:?}");
        assert_eq!(text(&output).0, "");
        // The agent finds that nobody waits any more.
        let call = open.lock().unwrap().take().unwrap();
        let start = std::time::Instant::now();
        while !call.reply.is_closed() {
            assert!(start.elapsed() < DEADLINE, "the call was not given up");
            std::thread::yield_now();
        }
    }
    assert!(prefers.try_recv().is_err());
}

#[test]
fn without_a_terminal_run_says_how_to_answer_and_waits() {
    let (agent, _prefers, open) = asking();
    let (mut child, _) = session(&agent, "run --ask -- echo started", false);
    let mut said = String::new();
    let mut stderr = child.stderr.take().unwrap();
    let mut byte = [0];
    while !said.ends_with('\n') {
        stderr.read_exact(&mut byte).unwrap();
        said.push(char::from(byte[0]));
    }
    assert_eq!(
        said,
        "steer: which domain? Answer by `steer domain prefer NAME --policy run-1`; NAME is one of wifi \
         (wlan, cost 7, down: no carrier), lte (wlan, cost 7, metered, up)\n"
    );
    agreeable(open.lock().unwrap().take().unwrap());
    let output = child.wait_with_output().unwrap();
    assert_eq!(text(&output).0, "started\n");
}

#[test]
fn prefer_offers_what_the_policies_can_use() {
    let (agent, prefers, _open) = asking();
    let line = "domain prefer --policy web,mail";
    let (child, terminal) = session(&agent, line, true);
    let mut terminal = terminal.unwrap();
    let shown = read_until(&mut terminal, "(empty: no change): ");
    for wanted in ["1  wifi", "2  lte", "TAKEN BY", "web, mail"] {
        assert!(shown.contains(wanted), "{wanted} is missing:\n{shown}");
    }
    terminal.write_all(b"lte\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(text(&output).0.contains("mail"), "{output:?}");
    assert_eq!(
        prefers.recv_timeout(DEADLINE).unwrap(),
        of("lte", &["web", "mail"])
    );

    let (child, terminal) = session(&agent, line, true);
    let mut terminal = terminal.unwrap();
    read_until(&mut terminal, "(empty: no change): ");
    terminal.write_all(b"\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(text(&output).0, "nothing was changed\n");
    assert!(prefers.try_recv().is_err());
}

#[test]
fn prefer_without_a_terminal_wants_a_name() {
    let agent = Agent::start(|call| match &call.request {
        Request::ListDomains => {
            let mut lte = domain("lte");
            lte.state = "absent".to_owned();
            lte.reason = "there is no interface wwan0".to_owned();
            call.reply
                .end(Ok(Reply::Domains(vec![domain("wifi"), lte])));
        }
        Request::ListPolicies => call.reply.end(Ok(Reply::Policies(vec![policy("web")]))),
        other => panic!("{other:?}"),
    });
    let (child, _) = session(&agent, "domain prefer", false);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(
        text(&output).1,
        "steer: there is no terminal to ask on: name one, `steer domain prefer NAME`; NAME is one of wifi \
         (wlan, cost 0, up), lte (wlan, cost 0, absent: there is no interface wwan0)\n"
    );
}
