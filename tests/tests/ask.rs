//! Choices that are made by hand: at the start of a command (`run --ask`), and for policies that are in
//! force (`domain prefer`).

use std::fs;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use steer_tests::{
    Family, Kind, Lab, LabCgroup, Output, Probe, Session, Terminal, User, conformance, wait,
};

const ALICE: u32 = 4711;
const BOB: u32 = 4712;

/// The prompt of a question without a default.
const PROMPT: &str = "(Ctrl-C: none): ";

/// `steer run --ask MORE -- steer-probe`, which alice starts.
fn asking(lab: &Lab, cgroup: &LabCgroup, more: &[&str]) -> Result<Command> {
    let probe = lab.probe_of_users()?;
    let args = [&["run", "--ask"], more, &["--", probe]].concat();
    lab.steer_command(&User::new(ALICE), cgroup, &args)
}

/// The policy whose command waits for an answer.
fn open_question(lab: &Lab) -> Result<Value> {
    wait::until("an open question", || {
        let list = lab.steer(&["policy", "list", "--json"])?.json()?;
        let policies = list.as_array().cloned().unwrap_or_default();
        Ok(policies
            .into_iter()
            .find(|policy| !policy["question"].is_null()))
    })
}

fn name_of(policy: &Value) -> Result<String> {
    let name = policy["name"].as_str().map(str::to_owned);
    name.with_context(|| format!("no name: {policy}"))
}

#[test]
fn an_application_is_bound_by_a_file_or_by_who_starts_it() -> Result<()> {
    let lab = Lab::new()?;
    let backup = lab.cgroup().child("backup")?;
    lab.configure(&format!(
        "[policy.backup]\nmatch.cgroup = \"{}\"\nuse = [\"wlan0\"]\n",
        backup.name()
    ))?;
    let _agent = lab.start_agent()?;
    let cgroup = lab.cgroup().child("session")?;
    for (kind, family) in [(Kind::Tcp, Family::V4), (Kind::UdpConnected, Family::V6)] {
        lab.flow_leaves_by(&backup, "wlan0", kind, family)?;
    }

    for (typed, uplink) in [("wwan0\n", "wwan0"), ("2\n", "wlan0")] {
        let mut terminal = Terminal::new()?;
        let mut command = asking(&lab, &cgroup, &[])?;
        terminal.control(&mut command);
        let mut shown = String::new();
        let mut session = Probe::new(Kind::Tcp, Family::V4).start_by(command, || {
            shown = terminal.wait_for(PROMPT)?;
            terminal.type_in(typed)
        })?;
        for (number, domain) in [("1", "eth0"), ("2", "wlan0"), ("3", "wwan0")] {
            let row = |line: &str| {
                let words: Vec<_> = line.split_whitespace().collect();
                words.starts_with(&[number, domain]) && words.ends_with(&["0", "no", "up"])
            };
            ensure!(shown.lines().any(row), "{domain} is not offered:\n{shown}");
        }
        lab.connects_by(&mut session, uplink)?;
        drop(session);
        // Nothing else was changed by the answer.
        lab.flow_leaves_by(&backup, "wlan0", Kind::Tcp, Family::V4)?;
    }
    conformance::row(
        "S60-2",
        "an application is bound to a domain by a file, and another by the answer of the user who starts it",
    )
}

#[test]
fn a_question_is_answered_from_another_shell() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    let cgroup = lab.cgroup().child("session")?;
    let (alice, bob) = (User::new(ALICE), User::new(BOB));
    let mut command = asking(&lab, &cgroup, &["--via", "wlan0,wwan0"])?;
    Terminal::none(&mut command);
    command.stderr(Stdio::null());
    let mut session = Probe::new(Kind::Tcp, Family::V4).start_by(command, || {
        let policy = open_question(&lab)?;
        let name = name_of(&policy)?;
        let offered: Vec<_> = policy["question"]
            .as_array()
            .into_iter()
            .flatten()
            .collect();
        ensure!(
            offered.len() == 2
                && offered[0]["domain"] == "wlan0"
                && offered[0]["kind"].is_string()
                && offered[1]["state"] == "up",
            "{policy}"
        );
        let how = format!("waits for an answer: `steer domain prefer NAME --policy {name}`");
        ensure!(policy["decision"]["reason"] == how.as_str(), "{policy}");
        let list = lab.steer(&["status"])?;
        ensure!(list.success()?.contains("waits for an answer"), "{list:?}");
        // Nobody is in its place yet.
        for place in cgroup.descendants()? {
            let inside = fs::read_to_string(cgroup.path().join(place).join("cgroup.procs"))?;
            ensure!(inside.is_empty(), "{inside} is there already");
        }

        // Not by others, and not by what was not offered.
        let answer = |user: &User, domain: &str| {
            lab.steer_as(
                user,
                &cgroup,
                &["domain", "prefer", domain, "--policy", &name],
            )
        };
        answer(&bob, "wwan0")?.failure(1)?;
        let said = answer(&alice, "eth0")?;
        let words = format!("policy `{name}` cannot use `eth0`, only `wlan0`, `wwan0`");
        ensure!(said.failure(1)?.contains(&words), "{said:?}");
        // A wish for all policies is none for this question.
        lab.steer_as(&alice, &cgroup, &["domain", "prefer", "wwan0"])?
            .failure(1)?;
        ensure!(name_of(&open_question(&lab)?)? == name, "it was answered");
        answer(&alice, "wwan0")?.success().map(drop)
    })?;
    lab.connects_by(&mut session, "wwan0")?;
    // What else was named comes behind it.
    lab.carrier_down("wwan0")?;
    wait::until("the other domain", || {
        let list = lab.steer(&["policy", "list", "--json"])?.json()?;
        Ok((list[0]["decision"]["domain"] == "wlan0").then_some(()))
    })?;
    drop(session);
    lab.nothing_left(&cgroup)
}

#[test]
fn without_a_good_answer_nothing_is_started() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    let cgroup = lab.cgroup().child("session")?;
    let alice = User::new(ALICE);
    let run = |more: &[&str]| -> Result<Command> {
        let args = [&["run", "--ask"], more, &["--", "echo", "started"]].concat();
        let mut command = lab.steer_command(&alice, &cgroup, &args)?;
        command.stdin(Stdio::null());
        Ok(command)
    };

    // Nobody answers.
    let output = Output::of(&mut run(&["--wait=1s"])?, &["run"])?;
    let said = output.failure(4)?;
    ensure!(said.contains("nobody chose one in time"), "{output:?}");
    ensure!(output.stdout.is_empty(), "{output:?}");
    lab.nothing_left(&cgroup)?;

    // Somebody takes the policy away.
    let mut command = run(&["--wait"])?;
    Terminal::none(&mut command);
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let name = name_of(&open_question(&lab)?)?;
    lab.steer_as(&alice, &cgroup, &["policy", "unset", &name])?
        .success()?;
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(said.contains("was unset while it waited"), "{output:?}");
    ensure!(output.stdout.is_empty(), "{output:?}");
    lab.nothing_left(&cgroup)?;

    // What is chosen is not there.
    lab.carrier_down("wwan0")?;
    wait::until("no carrier on wwan0", || {
        let shown = lab.steer(&["domain", "show", "wwan0", "--json"])?.json()?;
        Ok((shown["state"] == "down").then_some(()))
    })?;
    let mut terminal = Terminal::new()?;
    let mut command = run(&[])?;
    terminal.control(&mut command);
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let shown = terminal.wait_for(PROMPT)?;
    ensure!(shown.contains("down: no carrier on wwan0"), "{shown}");
    terminal.type_in("wwan0\n")?;
    let output = child.wait_with_output()?;
    ensure!(output.status.code() == Some(4), "{output:?}");
    ensure!(output.stdout.is_empty(), "{output:?}");
    lab.nothing_left(&cgroup)?;

    // Ctrl-C.
    let mut terminal = Terminal::new()?;
    let mut command = run(&["--wait"])?;
    terminal.control(&mut command);
    let child = command.stdout(Stdio::piped()).spawn()?;
    terminal.wait_for(PROMPT)?;
    terminal.type_in("\x03")?;
    let output = child.wait_with_output()?;
    ensure!(!output.status.success(), "{output:?}");
    ensure!(output.stdout.is_empty(), "{output:?}");
    lab.nothing_left(&cgroup)
}

#[test]
fn a_preference_moves_new_flows_and_outlives_the_agent() -> Result<()> {
    let lab = Lab::new()?;
    lab.configure("[group.both]\ndomains = [\"eth0\", \"wlan0\"]\n")?;
    let mut agent = lab.start_agent()?;
    let app = lab.cgroup().child("app")?;
    lab.set_policy("app", &app, "both", &["--strict"])?;
    lab.flow_leaves_by(&app, "eth0", Kind::Tcp, Family::V4)?;

    let prefer = |args: &[&str]| lab.steer(&[&["domain", "prefer"], args].concat());
    let now = prefer(&["wlan0", "--json"])?.json()?;
    ensure!(now[0]["preferred"] == "wlan0", "{now}");
    let reason = "wlan0 is preferred (steer domain prefer) and fits";
    ensure!(now[0]["decision"]["reason"] == reason, "{now}");
    lab.matrix_leaves_by(&app, "wlan0")?;
    let explained = lab.steer(&["explain", "--cgroup", app.name()])?;
    ensure!(explained.unwrapped().contains(reason), "{explained:?}");

    agent.kill()?;
    lab.flow_leaves_by(&app, "wlan0", Kind::Tcp, Family::V6)?;
    agent.start()?;
    lab.flow_leaves_by(&app, "wlan0", Kind::Tcp, Family::V4)?;
    lab.steer(&["reload"])?.success()?;
    lab.flow_leaves_by(&app, "wlan0", Kind::UdpConnected, Family::V4)?;

    // It is a wish and no condition.
    lab.carrier_down("wlan0")?;
    lab.wait_decision("app", "domain", "eth0")?;
    lab.flow_leaves_by(&app, "eth0", Kind::Tcp, Family::V4)?;
    lab.carrier_up("wlan0")?;
    lab.wait_decision("app", "domain", "wlan0")?;

    prefer(&["--none"])?.success()?;
    lab.flow_leaves_by(&app, "eth0", Kind::Tcp, Family::V4)
        .map(drop)
}

#[test]
fn a_preference_is_for_ones_own_policies_and_adds_nothing() -> Result<()> {
    let lab = Lab::new()?;
    let theirs = lab.cgroup().child("theirs")?;
    lab.configure(&format!(
        "[policy.written]\nmatch.cgroup = \"{}\"\nuse = [\"eth0\", \"wlan0\"]\nstrict = true\n",
        theirs.name()
    ))?;
    let _agent = lab.start_agent()?;
    let cgroup = lab.cgroup().child("session")?;
    let (alice, bob) = (User::new(ALICE), User::new(BOB));
    let probe = |user: &User| -> Result<Session> {
        let more: &[&str] = &[];
        let kind = Probe::new(Kind::Tcp, Family::V4);
        kind.start_as(&lab, user, &cgroup, Some(("eth0,wlan0", more)))
    };
    let mut own = probe(&alice)?;
    let list = lab.steer_as(&alice, &cgroup, &["policy", "list", "--json"])?;
    let alices = name_of(&list.json()?[0])?;
    let mut bobs = probe(&bob)?;

    // For hers alone, although all could use it.
    let prefer = |user: &User, at: &LabCgroup, args: &[&str]| {
        lab.steer_as(user, at, &[&["domain", "prefer"], args].concat())
    };
    let changed = prefer(&alice, &cgroup, &["wlan0", "--json"])?.json()?;
    ensure!(
        changed.as_array().is_some_and(|all| all.len() == 1) && changed[0]["name"] == alices,
        "{changed}"
    );
    lab.connects_by(&mut own, "wlan0")?;
    lab.connects_by(&mut bobs, "eth0")?;
    lab.flow_leaves_by(&theirs, "eth0", Kind::Tcp, Family::V4)?;

    for (user, at, args, words) in [
        (&bob, &cgroup, ["wlan0", &alices], "there is no policy"),
        (&alice, &cgroup, ["wlan0", "written"], "there is no policy"),
        // Where it holds for her she may know it, and no more.
        (&alice, &theirs, ["wlan0", "written"], "is another's"),
        (&alice, &cgroup, ["wwan0", &alices], "only `eth0`, `wlan0`"),
    ] {
        let [domain, policy] = args;
        let output = prefer(user, at, &[domain, "--policy", policy])?;
        ensure!(output.failure(1)?.contains(words), "{output:?}");
    }
    let output = lab.steer(&["domain", "prefer", "wwan0", "--policy", "written"])?;
    ensure!(
        output.failure(1)?.contains("only `eth0`, `wlan0`"),
        "{output:?}"
    );
    lab.flow_leaves_by(&theirs, "eth0", Kind::UdpConnected, Family::V4)?;

    // An administrator's wish reaches the files' policies, strict as they are.
    lab.steer(&["domain", "prefer", "wlan0", "--policy", "written"])?
        .success()?;
    lab.matrix_leaves_by(&theirs, "wlan0")
}
