//! What is run, one after the other: names of files, and command lines.

use anyhow::{Result, ensure};
use steer_tests::{Family, Kind, Lab, Output, Probe, wait};

/// Runs `steer ARGS` and compares what it prints with the file of that name.
pub(crate) type Case<'a> = dyn FnMut(&str, &[&str]) -> Result<Output> + 'a;

/// Plays everything in one laboratory.
pub(crate) fn play(lab: &Lab, case: &mut Case<'_>) -> Result<()> {
    without_agent(case)?;
    let vault = lab.cgroup().child("vault")?;
    // What checks measure is never the same.
    let text = format!(
        "[domain.lte]\nmatch = {{ interface = \"wwan0\" }}\ndns.servers = [\"10.3.0.1\"]\n\
         [group.internet]\ndomains = [\"eth0\", \"lte\"]\n\
         [policy.vault]\nmatch.cgroup = \"{}\"\nuse = [\"internet\"]\notherwise = \"pass\"\n",
        vault.name()
    );
    lab.configure_agent("check = \"none\"\n", &text)?;
    let mut agent = lab.start_agent()?;
    policies(lab, case)?;
    domains(lab, case)?;
    explain(lab, case)?;
    flows(lab, case)?;
    run(case)?;
    moving(lab, case)?;
    files(lab, case)?;
    mistakes(case)?;
    agent.kill()?;
    left_behind(case)
}

/// No agent has ever run.
fn without_agent(case: &mut Case<'_>) -> Result<()> {
    for (name, args) in [
        ("absent-status", &["status"][..]),
        ("absent-watch", &["watch"]),
        ("absent-status-json", &["status", "--json"]),
        ("absent-policy-list", &["policy", "list"]),
        ("absent-run", &["run", "--via", "wlan0", "--", "true"]),
        ("absent-detach", &["detach"]),
        ("absent-detach-json", &["detach", "--json"]),
        // What it finds depends on the machine.
        ("doctor-code", &["doctor", "--code", "R05"]),
        ("doctor-code-json", &["doctor", "--code", "K01", "--json"]),
        ("doctor-code-unknown", &["doctor", "--code", "X1"]),
    ] {
        case(name, args)?;
    }
    Ok(())
}

fn policies(lab: &Lab, case: &mut Case<'_>) -> Result<()> {
    let web = lab.cgroup().child("app.slice/web.scope")?;
    let set = [
        "policy",
        "set",
        "web",
        "--cgroup",
        web.name(),
        "--via",
        "wlan0,lte",
    ];
    case("policy-set", &set)?;
    case("policy-set-json", &[&set[..], &["--json"]].concat())?;
    case(
        "policy-set-nowhere",
        &[
            "policy",
            "set",
            "later",
            "--unit",
            "x.service",
            "--via",
            "eth0",
        ],
    )?;
    for (name, args) in [
        ("policy", &["policy"][..]),
        ("policy-json", &["policy", "--json"]),
        ("policy-list", &["policy", "list"]),
        ("policy-list-json", &["policy", "list", "--json"]),
        ("policy-show", &["policy", "show", "web"]),
        ("policy-show-json", &["policy", "show", "vault", "--json"]),
        ("policy-show-unknown", &["policy", "show", "wbe"]),
        ("policy-unset", &["policy", "unset", "later"]),
        ("policy-unset-unknown", &["policy", "unset", "later"]),
        ("policy-unset-of-a-file", &["policy", "unset", "vault"]),
    ] {
        case(name, args)?;
    }
    let other = lab.cgroup().child("other")?;
    lab.set_policy("other", &other, "eth0", &[])?;
    case("policy-unset-json", &["policy", "unset", "other", "--json"])?;
    let refused = |via| ["policy", "set", "x", "--unit", "x.service", "--via", via];
    case("policy-set-unknown-domain", &refused("wlan7"))?;
    case(
        "policy-set-bad-path",
        &["policy", "set", "x", "--cgroup", "../x", "--via", "eth0"],
    )?;
    case(
        "policy-set-bad-name",
        &["policy", "set", "a/b", "--cgroup", "x", "--via", "eth0"],
    )?;
    Ok(())
}

fn domains(lab: &Lab, case: &mut Case<'_>) -> Result<()> {
    for (name, args) in [
        ("domain", &["domain"][..]),
        ("domain-json", &["domain", "--json"]),
        ("domain-list", &["domain", "list"]),
        ("domain-list-json", &["domain", "list", "--json"]),
        ("domain-show", &["domain", "show", "wlan0"]),
        ("domain-show-json", &["domain", "show", "wwan0", "--json"]),
        ("domain-show-unknown", &["domain", "show", "wlan7"]),
        ("domain-login-no-portal", &["domain", "login", "wlan0"]),
        ("domain-prefer-no-terminal", &["domain", "prefer"]),
        ("domain-prefer", &["domain", "prefer", "lte"]),
        (
            "domain-prefer-json",
            &["domain", "prefer", "lte", "--policy", "web", "--json"],
        ),
        ("policy-show-preferred", &["policy", "show", "web"]),
        (
            "domain-prefer-unusable",
            &["domain", "prefer", "eth0", "--policy", "web"],
        ),
        ("domain-prefer-unknown", &["domain", "prefer", "wlan7"]),
        ("domain-prefer-none", &["domain", "prefer", "--none"]),
        ("status", &["status"]),
        ("status-json", &["status", "--json"]),
        ("steer", &[]),
        ("steer-json", &["--json"]),
    ] {
        case(name, args)?;
    }
    lab.carrier_down("wlan0")?;
    wait::until("the next domain", || {
        let shown = lab.steer(&["policy", "show", "web", "--json"])?.json()?;
        Ok((shown["decision"]["domain"] == "lte").then_some(()))
    })?;
    case("domain-list-down", &["domain", "list"])?;
    case("policy-show-next", &["policy", "show", "web"])?;
    case("run-no-domain", &["run", "--via", "wlan0", "--", "true"])?;
    lab.carrier_up("wlan0")?;
    wait::until("the first domain", || {
        let shown = lab.steer(&["policy", "show", "web", "--json"])?.json()?;
        Ok((shown["decision"]["domain"] == "wlan0").then_some(()))
    })
}

fn explain(lab: &Lab, case: &mut Case<'_>) -> Result<()> {
    let web = lab.cgroup().child("app.slice/web.scope")?;
    let vault = lab.cgroup().child("vault")?;
    for (name, args) in [
        ("explain", &["explain", "--cgroup", web.name()][..]),
        (
            "explain-flow",
            &["explain", "--unit", "web.scope", "198.51.100.1:443"],
        ),
        (
            "explain-flow-json",
            &[
                "explain",
                "--cgroup",
                vault.name(),
                "2001:db8:ffff::1",
                "--json",
            ],
        ),
        ("explain-own", &["explain", "127.0.0.1"]),
        ("explain-no-address", &["explain", "example.org:80"]),
    ] {
        case(name, args)?;
    }
    let phone = lab.cgroup().child("phone")?;
    lab.set_policy("phone", &phone, "lte", &[])?;
    let named = ["explain", "--cgroup", phone.name(), "-4", "--name"];
    for (name, more) in [
        ("explain-name", &["host.example:443"][..]),
        ("explain-name-json", &["host.example", "--json"]),
        ("explain-name-unknown", &["nowhere.example"]),
        ("explain-name-no-name", &["printer.local"]),
    ] {
        case(name, &[&named[..], more].concat())?;
    }
    case(
        "explain-name-no-server",
        &[
            "explain",
            "--cgroup",
            vault.name(),
            "--name",
            "host.example",
        ],
    )?;
    lab.steer(&["policy", "unset", "phone"])?.success()?;
    Ok(())
}

fn flows(lab: &Lab, case: &mut Case<'_>) -> Result<()> {
    case("flows-none", &["flows"])?;
    let web = lab.cgroup().child("app.slice/web.scope")?;
    // Not an address of the laboratory's servers, which are others each time.
    let mut server = Probe::new(Kind::UdpUnconnected, Family::V4)
        .then("bind 10.2.0.1:7007")
        .start_in(lab.peer("wlan0")?)?;
    let _session = Probe::new(Kind::UdpConnected, Family::V4)
        .then("bind 10.2.0.2:7006")
        .then("connect 10.2.0.1:7007")
        .then("post token")
        .start(lab, &web)?;
    server.succeed("serve")?;
    let all = ["flows", "--all", "10.2.0.1:7007"];
    wait::until("the answer", || {
        let told = lab.steer(&[&all[..], &["--json"]].concat())?.json()?;
        Ok((told["flows"][0]["received_packets"] == 1).then_some(()))
    })?;
    case("flows", &all)?;
    case("flows-json", &[&all[..], &["--json"]].concat())?;
    case("flows-no-policy", &["flows", "--policy", "wbe"])?;
    case("flows-no-address", &["flows", "example.org"])?;
    Ok(())
}

fn run(case: &mut Case<'_>) -> Result<()> {
    for (name, args) in [
        (
            "run",
            &["run", "--via", "wlan0", "--", "echo", "steered"][..],
        ),
        (
            "run-exit-code",
            &["run", "--via", "wlan0", "--", "sh", "-c", "exit 7"],
        ),
        (
            "run-not-found",
            &["run", "--via", "wlan0", "--", "no-such-command"],
        ),
        (
            "run-not-executable",
            &["run", "--via", "wlan0", "--", "/etc/steer/steer.toml"],
        ),
        (
            "run-ask-unanswered",
            &["run", "--ask", "--wait=1ms", "--", "true"],
        ),
        (
            "run-unknown-domain",
            &["run", "--via", "wlan7", "--", "true"],
        ),
    ] {
        case(name, args)?;
    }
    Ok(())
}

fn moving(lab: &Lab, case: &mut Case<'_>) -> Result<()> {
    let app = lab.cgroup().child("app")?;
    let session = Probe::new(Kind::UdpUnconnected, Family::V4).start(lab, &app)?;
    let pid = session.pid().to_string();
    let via = |via| ["move", &pid, "--via", via];
    case("move", &via("wlan0"))?;
    case("move-json", &[&via("wlan0")[..], &["--json"]].concat())?;
    case("move-unknown-domain", &via("wlan7"))?;
    case("move-no-process", &["move", "999999999", "--via", "wlan0"])?;
    Ok(())
}

fn files(lab: &Lab, case: &mut Case<'_>) -> Result<()> {
    case("check", &["check"])?;
    case("check-json", &["check", "--json"])?;
    case("reload", &["reload"])?;
    case("reload-json", &["reload", "--json"])?;
    lab.host()
        .run(|| Ok(std::fs::create_dir_all("/etc/steer/steer.d")?))?;
    lab.write_file(
        "/etc/steer/steer.d/90-bad.toml",
        "[policy.x]\nmatch.cgroup = \"x\"\nusee = \"eth0\"\n",
    )?;
    case("check-mistake", &["check"])?;
    case("check-mistake-json", &["check", "--json"])?;
    case("reload-mistake", &["reload"])?;
    lab.host()
        .run(|| Ok(std::fs::remove_file("/etc/steer/steer.d/90-bad.toml")?))?;
    Ok(())
}

/// Command lines that cannot be.
fn mistakes(case: &mut Case<'_>) -> Result<()> {
    for (name, args) in [
        ("usage-unknown-command", &["polcy"][..]),
        ("usage-unknown-option", &["status", "--jsn"]),
        ("usage-no-match", &["policy", "set", "x", "--via", "eth0"]),
        (
            "usage-two-matches",
            &[
                "policy", "set", "x", "--pid", "1", "--unit", "a", "--via", "eth0",
            ],
        ),
        ("usage-space", &["run", "--via", "eth0,", "wlan0", "true"]),
        (
            "usage-time",
            &["run", "--via", "eth0", "--wait=5", "--", "true"],
        ),
        ("agent-twice", &["agent"]),
        ("detach-running", &["detach"]),
    ] {
        let output = case(name, args)?;
        ensure!(output.code != 0, "{name}: {output:?}");
    }
    Ok(())
}

/// The agent was killed.
fn left_behind(case: &mut Case<'_>) -> Result<()> {
    for (name, args) in [
        ("left-status", &["status"][..]),
        ("left-status-json", &["status", "--json"]),
        ("detach", &["detach"]),
        ("detach-nothing", &["detach"]),
    ] {
        case(name, args)?;
    }
    Ok(())
}
