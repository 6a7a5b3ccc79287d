//! `steer explain` says what happens on the wire, and warns where the kernel was led elsewhere.

use std::ffi::CString;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::ffi::OsStrExt as _;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use steer_tests::report::DISCARD_PORT;
use steer_tests::{Direction, Family, Kind, Lab, LabCgroup, Probe, SERVER4, Uplink, wait};

fn explain(lab: &Lab, args: &[&str]) -> Result<Value> {
    let mut all = vec!["explain", "--json"];
    all.extend(args);
    lab.steer(&all)?.json()
}

/// A string at a place in an answer; empty if there is none.
fn at<'a>(value: &'a Value, place: &str) -> &'a str {
    value
        .pointer(place)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

fn list<'a>(value: &'a Value, key: &str) -> Result<&'a Vec<Value>> {
    let list = value.get(key).and_then(Value::as_array);
    list.with_context(|| format!("no list {key} in {value:#}"))
}

fn has_no_warning(answer: &Value) -> Result<()> {
    ensure!(list(answer, "warnings")?.is_empty(), "{answer:#}");
    Ok(())
}

/// Text without the line breaks that fit it to the terminal.
fn unwrapped(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What an answer says of a flow: outcome, interface, source, error.
fn said(answer: &Value) -> [&str; 4] {
    ["outcome", "interface", "source", "error"].map(|key| at(answer, &format!("/flow/{key}")))
}

/// Where a datagram from a connected socket of `app` really goes: nowhere, with the error that the
/// program saw or without, or by an uplink from a source.
fn really(lab: &Lab, app: &LabCgroup, peer: &str) -> Result<(String, Option<(String, IpAddr)>)> {
    lab.drain()?;
    let position = lab.position()?;
    let family = if peer.starts_with('[') {
        Family::V6
    } else {
        Family::V4
    };
    let token = format!("token-{position}-of-explain");
    let reports = Probe::new(Kind::UdpConnected, family)
        .first("set broadcast=1")
        .then(&format!("connect {peer}"))
        .then(&format!("post {token}"))
        .run(lab, app)?;
    let failed = reports.iter().find(|report| !report.ok);
    let error = failed.map_or_else(String::new, |report| report.errno_name.clone());
    lab.drain()?;
    let sent = lab.capture().since(position, |packet| {
        packet.direction == Direction::FromHost && packet.carries(&token)
    });
    ensure!(sent.len() <= 1, "one datagram was sent: {sent:?}");
    let sent = sent.into_iter().next();
    Ok((
        error,
        sent.and_then(|packet| Some((packet.uplink, packet.source?))),
    ))
}

/// What is explained of a flow from `app` to `to` is what happens.
fn comes_true(lab: &Lab, app: &LabCgroup, to: IpAddr, outcome: &str) -> Result<()> {
    comes_true_of(
        lab,
        app,
        &SocketAddr::new(to, DISCARD_PORT).to_string(),
        outcome,
    )
}

/// As [`comes_true`], with a destination as it is written.
fn comes_true_of(lab: &Lab, app: &LabCgroup, to: &str, outcome: &str) -> Result<()> {
    let answer = explain(lab, &["--cgroup", app.name(), to])?;
    has_no_warning(&answer)?;
    let [told, interface, source, error] = said(&answer);
    ensure!(told == outcome, "{to} should be {outcome}: {answer:#}");
    let (seen, sent) = really(lab, app, to)?;
    let kernel = answer.pointer("/flow/kernel/agrees");
    match told {
        "refused" => ensure!(
            sent.is_none() && seen == error,
            "{to}: {sent:?}, {seen:?}; {answer:#}"
        ),
        "dropped" => ensure!(
            sent.is_none() && seen.is_empty() | (seen == "EPERM"),
            "{to}: {sent:?}, {seen:?}; {answer:#}"
        ),
        _ if interface == "lo" => ensure!(sent.is_none(), "{to}: {sent:?}; {answer:#}"),
        _ => {
            let expected = Some((interface.to_owned(), source.parse()?));
            ensure!(sent == expected, "{to}: {sent:?} {seen:?}, but {answer:#}");
            ensure!(
                told != "steered" || kernel == Some(&Value::Bool(true)),
                "{answer:#}"
            );
        }
    }
    Ok(())
}

/// Destinations of every sort, and what a policy that steers by wlan0 makes of each.
fn destinations(lab: &Lab) -> Result<Vec<(IpAddr, [&'static str; 3])>> {
    let eth0 = lab.uplink("eth0")?;
    let own: Vec<IpAddr> = eth0.addresses();
    let mut all: Vec<(IpAddr, [&'static str; 3])> = vec![
        // Policy: lax, lax with local-networks = steer, strict.
        (lab.target4(), ["steered"; 3]),
        (lab.target6(), ["steered"; 3]),
        ("10.2.0.1".parse()?, ["steered"; 3]),
        ("2001:db8:2::1".parse()?, ["steered"; 3]),
        ("10.1.0.1".parse()?, ["local", "steered", "steered"]),
        ("2001:db8:1::1".parse()?, ["local", "steered", "steered"]),
        ("127.0.0.1".parse()?, ["never"; 3]),
        ("::1".parse()?, ["never"; 3]),
        // The host's routing sends these by eth0, where the guard is in the way of a strict policy.
        ("224.0.0.251".parse()?, ["never", "never", "dropped"]),
        ("239.1.2.3".parse()?, ["never", "never", "dropped"]),
        ("255.255.255.255".parse()?, ["never", "never", "dropped"]),
    ];
    all.extend(own.into_iter().map(|ip| (ip, ["never"; 3])));
    Ok(all)
}

#[test]
fn every_sort_of_destination_fares_as_explained() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    let app = lab.cgroup().child("app")?;
    let policies: [&[&str]; 3] = [&[], &["--local-networks", "steer"], &["--strict"]];
    for (number, more) in policies.into_iter().enumerate() {
        lab.set_policy("app", &app, "wlan0", more)?;
        for (to, outcomes) in destinations(&lab)? {
            comes_true(&lab, &app, to, outcomes[number])
                .with_context(|| format!("{to} under a policy with {more:?}"))?;
        }
        let strict = more.contains(&"--strict");
        for (uplink, outcome) in [
            ("wlan0", "never"),
            ("eth0", if strict { "dropped" } else { "never" }),
        ] {
            let peer = lab.peer_link_local(uplink)?;
            let to = format!("[{peer}%{uplink}]:{DISCARD_PORT}");
            comes_true_of(&lab, &app, &to, outcome)
                .with_context(|| format!("{to} under a policy with {more:?}"))?;
        }
    }
    Ok(())
}

#[test]
fn flows_that_are_refused_or_passed_fare_as_explained() -> Result<()> {
    let lab = Lab::builder()
        .uplinks([
            Uplink::new("eth0", 1),
            Uplink::new("wlan0", 2).without_ipv6(),
            Uplink::new("lan0", 3).without_default_route(),
        ])
        .build()?;
    let _agent = lab.start_agent()?;
    let app = lab.cgroup().child("app")?;
    let other = lab.cgroup().child("other")?;
    for strict in [&[][..], &["--strict"]] {
        lab.set_policy("app", &app, "wlan0", strict)?;
        comes_true(&lab, &app, lab.target4(), "steered")?;
        comes_true(&lab, &app, lab.target6(), "refused").context("no IPv6 there")?;
        lab.set_policy("app", &app, "lan0", strict)?;
        comes_true(&lab, &app, lab.target4(), "refused").context("no default route")?;
        comes_true(&lab, &app, "10.3.0.1".parse()?, "steered")?;
    }
    for (to, what) in [(lab.target4(), "IPv4"), (lab.target6(), "IPv6")] {
        comes_true(&lab, &other, to, "passed").with_context(|| format!("{what} unsteered"))?;
    }
    lab.set_policy("app", &app, "wlan0", &["--otherwise", "pass"])?;
    lab.carrier_down("wlan0")?;
    lab.wait_decision("app", "verdict", "pass")?;
    comes_true(&lab, &app, lab.target4(), "passed")?;
    lab.set_policy("app", &app, "wlan0", &[])?;
    comes_true(&lab, &app, lab.target4(), "refused")?;
    let answer = explain(&lab, &["--cgroup", app.name(), "198.51.100.9"])?;
    let reason = at(&answer, "/flow/reason");
    ensure!(reason.contains("no carrier on wlan0"), "{answer:#}");
    Ok(())
}

#[test]
fn a_process_a_cgroup_and_a_unit_lead_to_the_same_policy() -> Result<()> {
    let lab = Lab::new()?;
    lab.configure("[domain.wifi]\nmatch = { interface = \"wlan0\" }\n")?;
    let agent = lab.start_agent()?;
    let unit = lab.cgroup().child("web.service")?;
    let below = unit.child("worker")?;
    lab.set_policy("web", &unit, "wifi", &["--priority", "3"])?;
    lab.set_policy("all", lab.cgroup(), "eth0", &[])?;
    let session = Probe::new(Kind::Tcp, Family::V4).start(&lab, &below)?;
    let pid = session.pid().to_string();
    let to = format!("{SERVER4}:7");

    let by_pid = explain(&lab, &["--pid", &pid, &to])?;
    let by_cgroup = explain(&lab, &["--cgroup", below.name(), &to])?;
    let by_unit = explain(&lab, &["--unit", "web.service", &to])?;
    for answer in [&by_pid, &by_cgroup, &by_unit] {
        has_no_warning(answer)?;
        ensure!(at(answer, "/policy") == "web", "{answer:#}");
        ensure!(at(answer, "/domain/name") == "wifi", "{answer:#}");
        let contenders = list(answer, "contenders")?;
        let told: Vec<[&str; 3]> = contenders
            .iter()
            .map(|c| [at(c, "/policy"), at(c, "/standing"), at(c, "/reason")])
            .collect();
        let expected = [
            ["web", "in_force", "it matches deeper than `all`"],
            ["all", "behind", "`web` matches deeper"],
        ];
        ensure!(told == expected, "{told:?}");
    }
    ensure!(by_pid.pointer("/subject/pid") == Some(&Value::from(session.pid())));
    ensure!(
        at(&by_pid, "/subject/command") == "steer-probe",
        "{by_pid:#}"
    );
    ensure!(
        at(&by_pid, "/cgroup") == format!("/{}", below.name()),
        "{by_pid:#}"
    );
    ensure!(
        at(&by_unit, "/cgroup") == format!("/{}", unit.name()),
        "{by_unit:#}"
    );
    let summary = at(&by_pid, "/summary");
    let begins = format!(
        "steer-probe (pid {pid}) to {to}: by wifi (wlan0) from 10.2.0.2, because policy `web`"
    );
    ensure!(summary.starts_with(&begins), "{summary}");
    ensure!(
        by_pid.pointer("/maps/agrees") == Some(&Value::Bool(true)),
        "{by_pid:#}"
    );

    // What is started from here: the command itself, in its cgroup.
    let own = explain(&lab, &[])?;
    ensure!(
        at(&own, "/policy") == "all" && own.pointer("/subject/caller") == Some(&Value::Bool(true))
    );
    ensure!(at(&own, "/cgroup").ends_with("/cli"), "{own:#}");
    let exempt = explain(&lab, &["--pid", &agent.pid()?.to_string()])?;
    ensure!(
        at(&exempt, "/unmanaged").contains("the agent's own"),
        "{exempt:#}"
    );
    let outside = explain(&lab, &["--pid", "1", &to])?;
    ensure!(
        at(&outside, "/unmanaged").contains("not below the managed root")
            && said(&outside)[0] == "passed",
        "{outside:#}"
    );

    let text = lab.steer(&["explain", "--pid", &pid, &to])?;
    let text = unwrapped(text.success()?);
    ensure!(text.starts_with(&begins), "{text}");
    for part in [
        "POLICY",
        "in force",
        "CANDIDATE",
        "as planned",
        "lookup",
        "ip route get",
    ] {
        ensure!(text.contains(part), "{part} in {text}");
    }
    Ok(())
}

#[test]
fn the_rule_that_is_told_is_the_one_that_ip_rule_prints() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    let app = lab.cgroup().child("app")?;
    lab.set_policy("app", &app, "wlan0", &[])?;
    let answer = explain(&lab, &["--cgroup", app.name()])?;
    let mut told = Vec::new();
    for (to, version) in [(lab.target4(), "-4"), (lab.target6(), "-6")] {
        let flow = explain(&lab, &["--cgroup", app.name(), &to.to_string()])?;
        let rule = flow.pointer("/flow/rule").context("a rule")?.clone();
        told.push((rule, version));
    }
    for (path, version) in list(&answer, "paths")?.iter().zip(["-4", "-6"]) {
        told.push((path.get("rule").context("a rule")?.clone(), version));
    }
    ensure!(told.len() == 4);
    for (rule, version) in told {
        let priority = rule.get("priority").context("its priority")?;
        let line = format!("{priority}:\t{}", at(&rule, "/text"));
        let printed = lab.ip(&[version, "rule", "show"])?;
        let printed: Vec<&str> = printed.lines().map(str::trim_end).collect();
        ensure!(
            printed.contains(&line.as_str()),
            "{line} is not among {printed:#?}"
        );
    }
    Ok(())
}

#[test]
fn a_rule_put_before_steers_is_warned_of_by_name() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    let app = lab.cgroup().child("app")?;
    lab.set_policy("app", &app, "wlan0", &[])?;
    for (version, to, gateway) in [
        ("-4", lab.target4(), "10.3.0.1"),
        ("-6", lab.target6(), "2001:db8:3::1"),
    ] {
        let args = ["--cgroup", app.name(), &to.to_string()];
        has_no_warning(&explain(&lab, &args)?)?;
        lab.ip(&[
            version, "route", "add", "default", "via", gateway, "dev", "wwan0", "table", "99",
        ])?;
        lab.ip(&[version, "rule", "add", "priority", "77", "table", "99"])?;
        let answer = wait::until("the warning", || {
            let answer = explain(&lab, &args)?;
            let named = list(&answer, "warnings")?.iter().any(|words| {
                words
                    .as_str()
                    .is_some_and(|words| words.contains("priority 77"))
            });
            Ok(named.then_some(answer))
        })?;
        let warning = at(&answer, "/warnings/0");
        for part in [
            "by wwan0",
            "table 99",
            "not by wlan0",
            "is not steer's",
            "remove it",
        ] {
            ensure!(warning.contains(part), "{part} in {warning}");
        }
        ensure!(answer.pointer("/flow/kernel/agrees") == Some(&Value::Bool(false)));
        ensure!(
            at(&answer, "/flow/kernel/interface") == "wwan0",
            "{answer:#}"
        );
        ensure!(
            at(&answer, "/flow/interface") == "wlan0",
            "the plan is what it was"
        );
        ensure!(
            at(&answer, "/summary").contains("but the kernel does otherwise"),
            "{answer:#}"
        );
        let output = lab.steer(&["explain", "--cgroup", app.name(), &to.to_string()])?;
        let text = unwrapped(output.success()?);
        ensure!(
            text.contains("warning the kernel sends it by wwan0"),
            "{text}"
        );
        // And so it is.
        let (_, sent) = really(&lab, &app, &SocketAddr::new(to, DISCARD_PORT).to_string())?;
        ensure!(
            sent.as_ref().is_some_and(|(uplink, _)| uplink == "wwan0"),
            "{sent:?}"
        );
        lab.ip(&[version, "rule", "del", "priority", "77"])?;
        lab.ip(&[
            version,
            "rule",
            "add",
            "priority",
            "78",
            "to",
            &to.to_string(),
            "prohibit",
        ])?;
        wait::until("the refusal", || {
            let answer = explain(&lab, &args)?;
            let warning = at(&answer, "/warnings/0");
            Ok(
                (warning.contains("the kernel refuses it") && warning.contains("priority 78"))
                    .then_some(()),
            )
        })?;
        lab.ip(&[version, "rule", "del", "priority", "78"])?;
        has_no_warning(&explain(&lab, &args)?)?;
    }
    Ok(())
}

#[test]
fn what_cannot_be_explained_is_refused_with_what_to_do() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    for (args, code, part) in [
        (&["example.org:80"][..], 2, "say `--name example.org:80`"),
        (
            &["--pid", "1", "--unit", "a.service"],
            2,
            "cannot be used with",
        ),
        (&["-4", "-6"], 2, "cannot be used with"),
        (&["-6", "192.0.2.1"], 1, "is not of the family"),
        (
            &["--unit", "absent.service"],
            1,
            "has no cgroup below the managed root",
        ),
        (&["--unit", "absent"], 1, "--unit"),
        (&["--cgroup", "a/*"], 1, "no pattern"),
        (&["--cgroup", "a/../b"], 1, "`..`"),
        (&["--pid", "999999999"], 1, "no process 999999999"),
        (&["fe80::1%nowhere"], 1, "there is no interface nowhere"),
    ] {
        let mut all = vec!["explain"];
        all.extend(args);
        let output = lab.steer(&all)?;
        let words = output.failure(code)?;
        ensure!(words.contains(part), "{args:?}: {words}");
    }
    for name in ["one", "two"] {
        lab.cgroup().child(name)?.child("same.service")?;
    }
    let output = lab.steer(&["explain", "--unit", "same.service"])?;
    ensure!(output.failure(1)?.contains("several cgroups"), "{output:?}");
    let later = format!("{}/later", lab.cgroup().name());
    lab.steer(&["policy", "set", "p", "--cgroup", &later, "--via", "wlan0"])?
        .success()?;
    let answer = explain(&lab, &["--cgroup", &later, "198.51.100.9"])?;
    ensure!(answer.get("cgroup_id") == Some(&Value::Null), "{answer:#}");
    ensure!(said(&answer)[..2] == ["steered", "wlan0"], "{answer:#}");
    ensure!(
        at(&answer, "/notes/0").contains("as soon as it is made"),
        "{answer:#}"
    );
    Ok(())
}

/// Deletes a cgroup's entry from the pinned map, as nobody should.
fn delete_entry(lab: &Lab, cgroup: u64) -> Result<()> {
    /// `BPF_OBJ_GET`, `BPF_MAP_DELETE_ELEM`.
    const GET: libc::c_long = 7;
    const DELETE: libc::c_long = 3;
    lab.host().run(|| {
        let layouts = std::fs::read_dir("/sys/fs/bpf/steer").context("list the pins")?;
        let layout = layouts.flatten().map(|entry| entry.path());
        let layout = layout.into_iter().find(|path| path.join("maps").is_dir());
        let pin = layout.context("a layout")?.join("maps/CGROUPS");
        let pin = CString::new(pin.as_os_str().as_bytes())?;
        // union bpf_attr: the path; then the map, padding, and the key.
        let get: [u64; 2] = [pin.as_ptr() as u64, 0];
        // SAFETY: the attributes and the path outlive the call.
        let map = unsafe { libc::syscall(libc::SYS_bpf, GET, get.as_ptr(), size_of_val(&get)) };
        let map = u64::try_from(map).context("open the map CGROUPS")?;
        let delete: [u64; 2] = [map, (&raw const cgroup) as u64];
        // SAFETY: likewise; the key is as long as the map's.
        let done =
            unsafe { libc::syscall(libc::SYS_bpf, DELETE, delete.as_ptr(), size_of_val(&delete)) };
        let error = std::io::Error::last_os_error();
        let map = i32::try_from(map)?;
        // SAFETY: the descriptor was just made and is used no more.
        unsafe { libc::close(map) };
        ensure!(
            done == 0 || error.kind() == std::io::ErrorKind::NotFound,
            "{error}"
        );
        Ok(())
    })
}

#[test]
fn an_entry_that_is_gone_from_the_kernel_map_is_warned_of() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    let app = lab.cgroup().child("app")?;
    lab.set_policy("app", &app, "wlan0", &[])?;
    let args = ["--cgroup", app.name(), "198.51.100.9"];
    let before = explain(&lab, &args)?;
    has_no_warning(&before)?;
    let id = before.get("cgroup_id").and_then(Value::as_u64);
    let id = id.context("its id")?;
    // The agent may put it back at any time.
    let answer = wait::until("the warning", || {
        delete_entry(&lab, id)?;
        let answer = explain(&lab, &args)?;
        let agrees = answer.pointer("/maps/agrees") == Some(&Value::Bool(true));
        Ok((!agrees).then_some(answer))
    })?;
    let warning = at(&answer, "/warnings/0");
    ensure!(
        warning.starts_with("the kernel map CGROUPS holds no entry, and not policy 1"),
        "{answer:#}"
    );
    ensure!(answer.pointer("/maps/entry") == Some(&Value::Bool(false)));
    Ok(())
}
