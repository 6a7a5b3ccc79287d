//! `steer flows`: whose flows there are, where they leave, and how much they carry.

use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use steer_tests::report::ECHO_PORT;
use steer_tests::{
    Direction, Family, Kind, Lab, LabCgroup, Probe, Session, Terminal, User, conformance,
    steer_binary, wait,
};

const ALICE: u32 = 4711;
const BOB: u32 = 4712;

/// `steer flows --json ARGS`, as root.
fn flows(lab: &Lab, args: &[&str]) -> Result<Vec<Value>> {
    let output = lab.steer(&[&["flows", "--json"], args].concat())?;
    listed(&output.json()?)
}

fn listed(document: &Value) -> Result<Vec<Value>> {
    ensure!(document["notes"] == Value::Array(Vec::new()), "{document}");
    let flows = document["flows"].as_array();
    Ok(flows.with_context(|| format!("{document}"))?.clone())
}

/// The one flow of a process that goes to an address.
fn flow_of(lab: &Lab, session: &Session, to: IpAddr) -> Result<Value> {
    let pid = session.pid().to_string();
    let mut found = flows(lab, &["--pid", &pid, &to.to_string()])?;
    let one = found.pop().context("no flow")?;
    ensure!(found.is_empty(), "two: {one} {found:?}");
    Ok(one)
}

/// Payload bytes that crossed the wires to and from an address: sent, received.
fn captured(lab: &Lab, about: IpAddr) -> Result<[u64; 2]> {
    lab.drain()?;
    let packets = lab.capture().about(about);
    Ok([Direction::FromHost, Direction::ToHost].map(|direction| {
        let went = packets.iter().filter(|p| p.direction == direction);
        went.map(|packet| packet.payload.len() as u64).sum()
    }))
}

/// Starts a flow of one exchange that stays open.
fn open(lab: &Lab, app: &LabCgroup, kind: Kind, family: Family) -> Result<(Session, IpAddr)> {
    let target = family.target(lab);
    let session = Probe::flow(kind, family, target).start(lab, app)?;
    ensure!(
        session.reports().iter().all(|report| report.ok),
        "{kind:?} {family:?}: {:?}",
        session.reports()
    );
    Ok((session, target))
}

const KINDS: [Kind; 3] = [Kind::Tcp, Kind::UdpConnected, Kind::UdpUnconnected];

#[test]
fn flows_are_told_with_process_domain_source_and_bytes() -> Result<()> {
    let lab = Lab::builder().rp_filter(1).build()?;
    let _agent = lab.start_agent()?;
    let app = lab.cgroup().child("app")?;
    let closed = lab.cgroup().child("closed")?;
    lab.set_policy("app", &app, "wlan0", &[])?;
    lab.set_policy("closed", &closed, "wlan0", &["--strict"])?;
    // Counting begins.
    ensure!(flows(&lab, &[])?.is_empty());
    let uplink = lab.uplink("wlan0")?;
    for (policy, cgroup) in [("app", &app), ("closed", &closed)] {
        for kind in KINDS {
            for family in Family::ALL {
                let what = format!("{policy} {kind:?} {family:?}");
                let (mut session, target) = open(&lab, cgroup, kind, family)?;
                let to = SocketAddr::new(target, ECHO_PORT);
                for round in 0..3 {
                    let message = format!("{}{round}", "x".repeat(100 * (round + 1)));
                    session.succeed(&match kind {
                        Kind::UdpUnconnected => format!("send {message} {to}"),
                        _ => format!("send {message}"),
                    })?;
                }
                let flow = flow_of(&lab, &session, target).with_context(|| what.clone())?;
                let source = match family {
                    Family::V6 => uplink.address6(),
                    Family::V4 | Family::Mapped => uplink.address4(),
                };
                let source = source.context("an address")?.to_string();
                let protocol = if kind == Kind::Tcp { "tcp" } else { "udp" };
                let [sent, received] = captured(&lab, target)?;
                ensure!(sent > 600 && received > 600, "{what}: {sent} {received}");
                for (field, expected) in [
                    ("policy", policy.into()),
                    ("protocol", protocol.into()),
                    ("whereabouts", "steered".into()),
                    ("domain", "wlan0".into()),
                    ("interface", "wlan0".into()),
                    ("wrong", Value::Null),
                    ("source", source.into()),
                    ("destination", target.to_string().into()),
                    ("destination_port", ECHO_PORT.into()),
                    ("cgroup", format!("/{}", cgroup.name()).into()),
                    ("uid", 0.into()),
                    ("sent_bytes", sent.into()),
                    ("received_bytes", received.into()),
                ] {
                    ensure!(
                        flow[field] == expected,
                        "{what}: not {field} {expected}: {flow}"
                    );
                }
                let process = &flow["processes"][0];
                ensure!(
                    process["pid"] == session.pid() && process["command"] == "steer-probe",
                    "{what}: {flow}"
                );
                ensure!(
                    flow["counted_since"].is_null() == (kind == Kind::Tcp),
                    "{what}: {flow}"
                );
                if kind != Kind::Tcp {
                    // The first exchange, and three.
                    ensure!(
                        flow["sent_packets"] == 4 && flow["received_packets"] == 4,
                        "{what}: {flow}"
                    );
                }
                session.finish()?;
                ensure!(flows(&lab, &[&target.to_string()])?.is_empty(), "{what}");
            }
        }
    }
    Ok(())
}

#[test]
fn what_is_left_to_the_host_and_what_is_asked_for_is_told_so() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    let app = lab.cgroup().child("app")?;
    let pass = lab.cgroup().child("pass")?;
    let none = lab.cgroup().child("none")?;
    lab.set_policy("app", &app, "wlan0", &[])?;
    let set = ["policy", "set", "pass", "--cgroup", pass.name()];
    lab.steer(&[&set[..], &["--otherwise", "pass"]].concat())?
        .success()?;
    let (_steered, to_steered) = open(&lab, &app, Kind::Tcp, Family::V4)?;
    let (_passed, to_passed) = open(&lab, &pass, Kind::UdpConnected, Family::V6)?;
    let (_nobodys, to_nobodys) = open(&lab, &none, Kind::Tcp, Family::V6)?;
    let at = |args: &[&str], to: IpAddr| -> Result<Option<Value>> {
        let found = flows(&lab, args)?;
        Ok(found
            .into_iter()
            .find(|f| f["destination"] == to.to_string()))
    };
    let passed = at(&[], to_passed)?.context("the passed flow")?;
    ensure!(
        passed["whereabouts"] == "host" && passed["domain"].is_null() && passed["policy"] == "pass",
        "{passed}"
    );
    ensure!(at(&[], to_nobodys)?.is_none());
    let nobodys = at(&["--all"], to_nobodys)?.context("the flow of no policy")?;
    ensure!(
        nobodys["policy"].is_null() && nobodys["whereabouts"] == "host",
        "{nobodys}"
    );
    let prefix = format!("{to_steered}/32");
    for (args, told) in [
        (&["--policy", "app"][..], [true, false]),
        (&["--policy", "pass"], [false, true]),
        (&["--domain", "wlan0"], [true, false]),
        (&["--domain", "eth0"], [false, false]),
        (&["--cgroup", app.name()], [true, false]),
        (&["--cgroup", lab.cgroup().name()], [true, true]),
        (&["-4"], [true, false]),
        (&["-6"], [false, true]),
        (&[&prefix], [true, false]),
        (&["0.0.0.0/0"], [true, false]),
        (&["--pid", "1"], [false, false]),
    ] {
        let found = [at(args, to_steered)?, at(args, to_passed)?].map(|f| f.is_some());
        ensure!(found == told, "{args:?}: {found:?}");
    }
    let output = lab.steer(&["flows", "--json", "--limit", "1", "--sort", "bytes"])?;
    let document = output.json()?;
    ensure!(document["omitted"] == 1, "{document}");
    ensure!(
        document["flows"].as_array().is_some_and(|f| f.len() == 1),
        "{document}"
    );
    for (args, code, words) in [
        (&["--policy", "nope"][..], 1, "nope"),
        (&["--domain", "wlan7"], 1, "wlan0"),
        (&["--pid", "4194300"], 1, "no process"),
        (&["--limit", "0"], 2, "--limit"),
        (&["nowhere"], 2, "no address"),
    ] {
        let output = lab.steer(&[&["flows"], args].concat())?;
        let said = output.failure(code)?;
        ensure!(said.contains(words), "{args:?}: {said}");
    }
    Ok(())
}

#[test]
fn a_server_answers_by_the_way_it_was_asked_and_is_told_so() -> Result<()> {
    let lab = Lab::builder().rp_filter(1).build()?;
    let _agent = lab.start_agent()?;
    let app = lab.cgroup().child("app")?;
    lab.set_policy("app", &app, "wlan0", &[])?;
    lab.set_policy("other", &lab.cgroup().child("other")?, "wwan0", &[])?;
    let mut server = Probe::new(Kind::Tcp, Family::V4)
        .then("bind 0.0.0.0:7010")
        .then("listen")
        .start(&lab, &app)?;
    for uplink in ["wlan0", "wwan0"] {
        server.ask("serve")?;
        let address = lab.uplink(uplink)?.address4().context("an address")?;
        let mut client = Probe::new(Kind::Tcp, Family::V4).start_in(lab.peer(uplink)?)?;
        let told = client.succeed(&format!("connect {address}:7010"))?;
        let client_at = told.local.context("the client's address")?;
        let pid = server.pid().to_string();
        let flow = wait::until("the accepted flow", || {
            let found = flows(&lab, &["--pid", &pid])?;
            let port = |flow: &Value| flow["destination_port"] == client_at.port();
            Ok(found.into_iter().find(port))
        })?;
        ensure!(
            flow["whereabouts"] == "steered"
                && flow["domain"] == uplink
                && flow["source"] == address.to_string()
                && flow["policy"] == "app",
            "{uplink}: {flow}"
        );
        client.succeed("send token")?;
        ensure!(server.read()?.ok, "the server failed");
    }
    Ok(())
}

#[test]
fn a_flow_that_is_not_where_its_policy_has_it_is_told_so() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    let app = lab.cgroup().child("app")?;
    // Older than the policy: it has eth0's source.
    let (mut old, target) = open(&lab, &app, Kind::UdpConnected, Family::V4)?;
    lab.set_policy("app", &app, "wlan0", &[])?;
    old.succeed("send again")?;
    let flow = flow_of(&lab, &old, target)?;
    let wrong = flow["wrong"].as_str().context("what is wrong")?;
    ensure!(
        flow["whereabouts"] == "wrong" && flow["domain"] == "wlan0" && wrong.contains("wlan0"),
        "{flow}"
    );
    // Now that packets are counted, it is known where they leave.
    old.succeed("send again")?;
    let flow = flow_of(&lab, &old, target)?;
    ensure!(flow["interface"] == "eth0", "{flow}");
    let text = lab.steer(&["flows"])?;
    ensure!(text.success()?.contains("wrong"), "{text:?}");
    conformance::row(
        "LIN-2",
        "`steer flows` tells of a flow that its policy does not have",
    )
}

#[test]
fn a_plain_user_is_told_of_its_own_flows_alone() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    let app = lab.cgroup().child("app")?;
    lab.set_policy("app", &app, "wlan0", &[])?;
    let [alice, bob] = [ALICE, BOB].map(User::new);
    let mut sessions = Vec::new();
    for user in [Some(&alice), Some(&bob), None] {
        let target = Family::V4.target(&lab);
        let probe = Probe::flow(Kind::Tcp, Family::V4, target);
        let session = match user {
            Some(user) => probe.start_as(&lab, user, &app, None)?,
            None => probe.start(&lab, &app)?,
        };
        sessions.push((session, target));
    }
    let told = |user: &User, args: &[&str]| -> Result<Vec<Value>> {
        let args = [&["flows", "--json", "--all"], args].concat();
        listed(&lab.steer_as(user, &app, &args)?.json()?)
    };
    for (user, own) in [(&alice, 0), (&bob, 1)] {
        let (session, target) = &sessions[own];
        let flows = told(user, &[])?;
        ensure!(flows.len() == 1, "{flows:?}");
        ensure!(flows[0]["destination"] == target.to_string(), "{flows:?}");
        ensure!(
            flows[0]["processes"][0]["pid"] == session.pid(),
            "{flows:?}"
        );
        // It holds where the user is, and so it is no secret.
        ensure!(flows[0]["policy"] == "app", "{flows:?}");
        for (other, (session, target)) in sessions.iter().enumerate() {
            let found = told(user, &[&target.to_string()])?;
            ensure!((found.len() == 1) == (other == own), "{found:?}");
            let pid = session.pid().to_string();
            let by_pid = lab.steer_as(user, &app, &["flows", "--pid", &pid])?;
            if other == own {
                by_pid.success()?;
            } else {
                ensure!(by_pid.failure(1)?.contains("does not belong"), "{by_pid:?}");
            }
        }
    }
    ensure!(flows(&lab, &[])?.len() == 3);
    conformance::row("INVARIANT-6", "a plain user is told of its own flows alone")
}

#[test]
fn watching_prints_what_changes_into_a_pipe() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    let app = lab.cgroup().child("app")?;
    lab.set_policy("app", &app, "wlan0", &[])?;
    for json in [false, true] {
        let mut args = vec!["flows", "--watch"];
        args.extend(json.then_some("--json"));
        let steer = steer_binary()?;
        let mut command = lab.command(&steer.to_string_lossy(), &lab.cgroup().child("cli")?)?;
        let mut watch = command.args(&args).stdout(Stdio::piped()).spawn()?;
        let output = watch.stdout.take().context("its output")?;
        let mut lines = BufReader::new(output).lines();
        let mut line_with = |wanted: &dyn Fn(&str) -> bool| -> Result<String> {
            for line in lines.by_ref() {
                let line = line?;
                if wanted(&line) {
                    return Ok(line);
                }
            }
            anyhow::bail!("it ended")
        };
        let (mut session, target) = open(&lab, &app, Kind::Tcp, Family::V4)?;
        let target = target.to_string();
        let line = line_with(&|line| line.contains(&target))?;
        if json {
            let document: Value = serde_json::from_str(&line)?;
            ensure!(listed(&document)?.len() == 1, "{document}");
        } else {
            ensure!(
                line.starts_with("new app ") && line.contains(" steer-probe by "),
                "{line}"
            );
            ensure!(line.contains("steer-probe by wlan0: tcp "), "{line}");
        }
        session.finish()?;
        if json {
            line_with(&|line| !line.contains(&target))?;
        } else {
            let line = line_with(&|line| line.starts_with("ended "))?;
            ensure!(line.contains(&target) && line.contains(" sent "), "{line}");
        }
        watch.kill()?;
        watch.wait()?;
    }
    Ok(())
}

#[test]
fn watching_draws_on_a_terminal() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    let app = lab.cgroup().child("app")?;
    lab.set_policy("app", &app, "wlan0", &[])?;
    let (mut session, target) = open(&lab, &app, Kind::Tcp, Family::V4)?;
    let steer = steer_binary()?;
    let mut command = lab.command(&steer.to_string_lossy(), &lab.cgroup().child("cli")?)?;
    let mut terminal = Terminal::new()?;
    terminal.control(&mut command);
    let mut watch = command
        .args(["flows", "--watch"])
        .stdout(terminal.output()?)
        .spawn()?;
    let drawn = terminal.wait_for(&target.to_string())?;
    ensure!(drawn.starts_with("\u{1b}[H"), "{drawn:?}");
    ensure!(
        drawn.contains("POLICY") && drawn.contains("wlan0"),
        "{drawn:?}"
    );
    session.finish()?;
    // Drawn over.
    terminal.wait_for("no live flow")?;
    watch.kill()?;
    watch.wait()?;
    Ok(())
}
