//! Which policy a process has: by path, by pattern, the deepest; from the first packet of a new cgroup
//! on; and when it changes under way.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use steer_tests::report::ECHO_PORT;
use steer_tests::{Family, Kind, Lab, LabCgroup, Probe, wait};

#[test]
fn the_deepest_policy_wins_and_children_inherit() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    let parent = lab.cgroup().child("app")?;
    let child = parent.child("inner")?;
    lab.set_policy("parent", &parent, "wlan0", &[])?;
    lab.flow_leaves_by(&child, "wlan0", Kind::Tcp, Family::V4)?;
    lab.set_policy("child", &child, "wwan0", &[])?;
    let grandchild = child.child("deep/deeper")?;
    for (cgroup, uplink) in [
        (&parent, "wlan0"),
        (&child, "wwan0"),
        (&grandchild, "wwan0"),
    ] {
        lab.matrix_leaves_by(cgroup, uplink)
            .with_context(|| cgroup.name().to_owned())?;
    }
    lab.steer(&["policy", "unset", "child"])?.success()?;
    lab.flow_leaves_by(&grandchild, "wlan0", Kind::Tcp, Family::V6)?;
    lab.steer(&["policy", "unset", "parent"])?.success()?;
    lab.flow_leaves_by(&grandchild, "eth0", Kind::Tcp, Family::V4)?;
    Ok(())
}

#[test]
fn a_new_cgroup_has_its_parents_policy_from_its_first_packet() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    let parent = lab.cgroup().child("app")?;
    lab.set_policy("app", &parent, "wlan0", &[])?;
    for number in 0..30 {
        let child = parent.child(&format!("new{number}"))?;
        lab.flow_leaves_by(&child, "wlan0", Kind::UdpUnconnected, Family::V4)?;
    }
    Ok(())
}

#[test]
fn a_pattern_matches_within_a_level_or_across() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    let root = lab.cgroup().child("apps")?;
    let one = root.child("web-1.scope")?;
    for (pattern, via) in [("apps/web-*.scope", "wlan0"), ("apps/**/db", "wwan0")] {
        let pattern = format!("{}/{pattern}", lab.cgroup().name());
        let name = format!("via-{via}");
        lab.steer(&["policy", "set", &name, "--cgroup", &pattern, "--via", via])?
            .success()?;
    }
    lab.flow_leaves_by(&one, "wlan0", Kind::Tcp, Family::V4)?;
    // One that comes after the policy.
    let two = root.child("web-2.scope")?;
    let other = root.child("mail.scope")?;
    let deep = root.child("a/b/db")?;
    for (cgroup, uplink) in [(&two, "wlan0"), (&other, "eth0"), (&deep, "wwan0")] {
        wait::until(&format!("{} to leave by {uplink}", cgroup.name()), || {
            let report =
                Probe::flow(Kind::UdpConnected, Family::V4, lab.target4()).succeed(&lab, cgroup)?;
            Ok((report.uplink.as_deref() == Some(uplink)).then_some(()))
        })?;
        lab.matrix_leaves_by(cgroup, uplink)?;
    }
    Ok(())
}

#[test]
fn a_new_cgroup_below_a_strict_pattern_never_leaks() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    let root = lab.cgroup().child("apps")?;
    let pattern = format!("{}/apps/*", lab.cgroup().name());
    lab.steer(&[
        "policy", "set", "closed", "--cgroup", &pattern, "--via", "wlan0", "--strict",
    ])?
    .success()?;
    for number in 0..30 {
        let child = root.child(&format!("new{number}"))?;
        let target = lab.target4();
        // Refused while undecided, or steered: either is right, another uplink is not.
        let reports = Probe::flow(Kind::UdpConnected, Family::V4, target)
            .first("set timeout=300")
            .run(&lab, &child)?;
        lab.drain()?;
        let strays = lab
            .capture()
            .packets(|p| p.is_about(target) && p.uplink != "wlan0");
        ensure!(strays.is_empty(), "{reports:?}: {strays:?}");
    }
    Ok(())
}

#[test]
fn a_policy_set_before_the_process_between_flows_and_during_a_flow() -> Result<()> {
    let lab = Lab::builder().rp_filter(1).build()?;
    let _agent = lab.start_agent()?;
    let app = lab.cgroup().child("app")?;
    let start = lab.position()?;
    let mut session = Probe::new(Kind::Tcp, Family::V4).start(&lab, &app)?;
    let before = lab.target4();
    session.succeed(&format!("connect {}", SocketAddr::new(before, ECHO_PORT)))?;
    session.succeed("send before")?;
    lab.assert_only_by("eth0", before)?;

    // During the flow: whatever becomes of it, no packet bears an address of another interface.
    lab.set_policy("app", &app, "wlan0", &[])?;
    session.perform("set timeout=500")?;
    session.perform("send during")?;
    let strays = lab
        .capture()
        .packets(|p| p.is_about(before) && p.uplink != "eth0" && p.is_ip());
    ensure!(
        strays.is_empty(),
        "the old flow changed its interface: {strays:?}"
    );

    // Between flows of one process, with sockets of every kind.
    for uplink in ["wlan0", "wwan0", "wlan0"] {
        lab.set_policy("app", &app, uplink, &[])?;
        for (kind, name) in [(Kind::Tcp, "tcp"), (Kind::UdpConnected, "udp")] {
            for (family, word) in [
                (Family::V4, "4"),
                (Family::V6, "6"),
                (Family::Mapped, "mapped"),
            ] {
                let target = family.target(&lab);
                session.succeed(&format!("open {name} {word}"))?;
                session.succeed(&format!("connect {}", SocketAddr::new(target, ECHO_PORT)))?;
                session.succeed("send after")?;
                lab.assert_only_by(uplink, target)
                    .with_context(|| format!("{kind:?} {family:?} after the policy came"))?;
            }
        }
    }
    lab.assert_sources_match(start)
}

#[test]
fn a_connected_datagram_socket_never_leaves_with_its_old_source() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    let app = lab.cgroup().child("app")?;
    for family in Family::ALL {
        lab.set_policy("app", &app, "wlan0", &[])?;
        let start = lab.position()?;
        let target = family.target(&lab);
        let mut session = Probe::new(Kind::UdpConnected, family).start(&lab, &app)?;
        session.succeed(&format!("connect {}", SocketAddr::new(target, ECHO_PORT)))?;
        session.succeed("send first")?;
        lab.set_policy("app", &app, "wwan0", &[])?;
        session.perform("set timeout=300")?;
        for number in 0..3 {
            session.perform(&format!("send again-{number}"))?;
        }
        lab.assert_sources_match(start)
            .with_context(|| format!("{family:?}"))?;
    }
    Ok(())
}

#[test]
fn a_socket_made_before_the_policy_is_steered_at_its_next_flow() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    let app = lab.cgroup().child("app")?;
    let start = lab.position()?;
    // Kept open to the end: what the kernel sends when a flow ends is another matter.
    let mut streams = Vec::new();
    for family in Family::ALL {
        lab.steer(&["policy", "unset", "app"])?;
        let mut stream = Probe::new(Kind::Tcp, family).start(&lab, &app)?;
        lab.set_policy("app", &app, "wlan0", &[])?;
        let target = family.target(&lab);
        stream.succeed(&format!("connect {}", SocketAddr::new(target, ECHO_PORT)))?;
        stream.succeed("send late")?;
        lab.assert_only_by("wlan0", target)
            .with_context(|| format!("{family:?}"))?;
        streams.push(stream);
    }
    lab.assert_sources_match(start)
}

#[test]
fn a_moved_process_has_the_policy_of_where_it_is() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    let (one, two) = (lab.cgroup().child("one")?, lab.cgroup().child("two")?);
    lab.set_policy("one", &one, "wlan0", &[])?;
    lab.set_policy("two", &two, "wwan0", &[])?;
    for kind in [Kind::Tcp, Kind::UdpConnected] {
        let mut session = Probe::new(kind, Family::V4).start(&lab, &one)?;
        two.adopt(session.pid())?;
        // A flow's policy is fixed at connect by the calling task's cgroup, wherever the socket was made.
        for again in ["the socket made before", "a socket made after"] {
            let target = lab.target4();
            session.succeed(&format!("connect {}", SocketAddr::new(target, ECHO_PORT)))?;
            session.succeed("send moved")?;
            lab.assert_only_by("wwan0", target)
                .with_context(|| format!("{kind:?}, {again}"))?;
            session.succeed(if kind == Kind::Tcp {
                "open tcp 4"
            } else {
                "open udp 4"
            })?;
        }
    }
    Ok(())
}

#[test]
fn the_cgroup_of_a_process_can_be_given_by_its_id() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    let app = lab.cgroup().child("app")?;
    let session = Probe::new(Kind::Tcp, Family::V4).start(&lab, &app)?;
    let pid = session.pid().to_string();
    let output = lab
        .steer(&[
            "policy", "set", "it", "--pid", &pid, "--via", "wlan0", "--json",
        ])?
        .json()?;
    let cgroup = output.pointer("/cgroup/0").and_then(Value::as_str);
    ensure!(cgroup == Some(app.name()), "{output}");
    lab.flow_leaves_by(&app, "wlan0", Kind::Tcp, Family::V4)?;
    Ok(())
}

#[test]
fn a_removed_cgroup_leaves_nothing_and_its_name_can_come_back() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    let parent = lab.cgroup().child("apps")?;
    let app = parent.child("app")?;
    lab.set_policy("app", &app, "wlan0", &[])?;
    let count = || -> Result<Option<u64>> {
        let shown = lab.steer(&["policy", "show", "app", "--json"])?.json()?;
        Ok(shown.get("cgroups").and_then(Value::as_u64))
    };
    ensure!(
        count()? == Some(1),
        "the policy is in force on {:?} cgroups",
        count()?
    );
    app.remove()?;
    wait::until("the policy to be in force nowhere", || {
        Ok((count()? == Some(0)).then_some(()))
    })?;
    let again = parent.child("app")?;
    wait::until("the policy to be in force again", || {
        Ok((count()? == Some(1)).then_some(()))
    })?;
    lab.matrix_leaves_by(&again, "wlan0")
}

#[test]
fn a_new_cgroup_that_a_strict_policy_names_has_it_from_its_first_packet() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    let parent = lab.cgroup().child("slice")?;
    let name = format!("{}/vault.service", parent.name());
    let set = [
        "policy", "set", "vault", "--cgroup", &name, "--via", "wlan0", "--strict",
    ];
    lab.steer(&set)?.success()?;
    for number in 0..20 {
        let vault = parent.child("vault.service")?;
        lab.flow_leaves_by(&vault, "wlan0", Kind::UdpConnected, Family::V4)
            .with_context(|| format!("made for the {number}th time"))?;
        let other = parent.child("other.service")?;
        lab.flow_leaves_by(&other, "eth0", Kind::UdpConnected, Family::V4)
            .context("a cgroup beside it")?;
        vault.remove()?;
        other.remove()?;
    }
    Ok(())
}

#[test]
fn a_strict_service_that_restarts_while_no_agent_runs_has_its_policy() -> Result<()> {
    let lab = Lab::new()?;
    let mut agent = lab.start_agent()?;
    let slice = lab.cgroup().child("slice")?;
    let top = slice.name().to_owned();
    let unit = slice.child("db.service")?;
    for set in [
        &[
            "vault",
            "--cgroup",
            &format!("{top}/vault.service"),
            "--via",
            "wlan0",
            "--strict",
        ][..],
        &[
            "deep",
            "--cgroup",
            &format!("{top}/not/yet/there"),
            "--via",
            "wlan0",
            "--strict",
        ],
        &["db", "--unit", "db.service", "--via", "wwan0", "--strict"],
    ] {
        lab.steer(&[&["policy", "set"], set].concat())?.success()?;
    }
    let restart = |name: &str| -> Result<LabCgroup> {
        let cgroup = slice.child(name)?;
        cgroup.remove()?;
        slice.child(name)
    };
    restart("vault.service")?;
    agent.kill()?;
    unit.remove()?;
    for (name, uplink) in [
        ("vault.service", "wlan0"),
        ("db.service", "wwan0"),
        ("not/yet/there", "wlan0"),
        ("not/yet/other", "eth0"),
        ("other.service", "eth0"),
    ] {
        for _ in 0..2 {
            let cgroup = restart(name)?;
            lab.matrix_leaves_by(&cgroup, uplink).context(name)?;
            lab.matrix_leaves_by(&cgroup.child("below")?, uplink)
                .context(name)?;
            cgroup.child("below")?.remove()?;
        }
    }
    // A unit of a strict policy where none has been: nobody can say, so it is closed.
    let elsewhere = lab.cgroup().child("elsewhere/db.service")?;
    for family in Family::ALL {
        let target = family.target(&lab);
        Probe::flow(Kind::Tcp, family, target)
            .first("set timeout=300")
            .run(&lab, &elsewhere)?;
        lab.assert_silent(target)?;
    }
    agent.start()?;
    lab.flow_leaves_by(&elsewhere, "wwan0", Kind::Tcp, Family::V4)?;
    Ok(())
}

#[test]
fn an_agent_in_the_managed_cgroup_manages_what_is_below() -> Result<()> {
    let lab = Lab::new()?;
    lab.configure("[policy.default]\nuse = \"wlan0\"\n")?;
    let mut agent = lab.agent()?;
    agent.place_in_managed_cgroup();
    agent.start()?;
    let app = lab.cgroup().child("app")?;
    lab.flow_leaves_by(&app, "wlan0", Kind::Tcp, Family::V4)?;
    let below = app.child("below")?;
    lab.flow_leaves_by(&below, "wlan0", Kind::Tcp, Family::V4)?;
    Ok(())
}

/// Whoever may make cgroups below a strict policy's must not get out of it by their names.
#[test]
fn cgroups_whose_names_are_not_utf8_keep_their_policy() -> Result<()> {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;

    let lab = Lab::new()?;
    let mut agent = lab.start_agent()?;
    let app = lab.cgroup().child("app")?;
    lab.set_policy("closed", &app, "wlan0", &["--strict"])?;
    let mut sessions = Vec::new();
    for name in [&b"\xff"[..], b"\xfe", "\u{fffd}".as_bytes()] {
        let directory = app.path().join(OsStr::from_bytes(name));
        std::fs::create_dir(&directory)?;
        let session = Probe::new(Kind::UdpConnected, Family::V4).start(&lab, &app)?;
        std::fs::write(directory.join("cgroup.procs"), session.pid().to_string())?;
        sessions.push((directory, session));
    }
    // All of them are known to the agent: it has answered since, and has read the tree anew.
    lab.steer(&["status"])?.success()?;
    agent.restart_after_kill()?;
    for (_, session) in &mut sessions {
        let target = lab.target4();
        session.succeed("open udp 4")?;
        session.succeed(&format!("connect {}", SocketAddr::new(target, ECHO_PORT)))?;
        session.succeed("send inside")?;
        lab.assert_only_by("wlan0", target)?;
    }
    for (directory, session) in sessions {
        app.adopt(session.pid())?;
        drop(session);
        std::fs::remove_dir(directory)?;
    }
    Ok(())
}
