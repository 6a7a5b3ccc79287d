//! The main job again, from wherever a policy comes: every kind of flow leaves by the chosen interface with
//! its address, for policies from files, patterns, units and each call of the API, as root and as a user.

use std::fs;

use anyhow::{Context, Result, ensure};
use steer_tests::{Family, Kind, Lab, LabCgroup, Probe, Session, User, conformance, matrix};

const ALICE: u32 = 4711;

/// A cgroup that has a policy.
struct Source {
    /// Where the policy comes from.
    from: &'static str,
    cgroup: LabCgroup,
    uplink: &'static str,
    /// Who sends; none: root.
    user: Option<User>,
    /// What keeps the cgroup, where it lasts as long as somebody is in it.
    _holder: Option<Session>,
}

/// The cgroup of a laboratory that a process is in.
fn cgroup_of(lab: &Lab, session: &Session) -> Result<LabCgroup> {
    let text = fs::read_to_string(format!("/proc/{}/cgroup", session.pid()))?;
    let root = format!("0::/{}/", lab.cgroup().name());
    let path = text.lines().find_map(|line| line.strip_prefix(&root));
    lab.cgroup()
        .child(path.with_context(|| format!("not in the laboratory: {text}"))?)
}

/// Cgroups whose policies are in the files, one of which a later file replaces.
fn from_files(lab: &Lab) -> Result<Vec<Source>> {
    let root = lab.cgroup().name();
    lab.configure(&format!(
        "[policy.path]\nmatch.cgroup = \"{root}/path\"\nuse = [\"wlan0\"]\n\
         [policy.level]\nmatch.cgroup = \"{root}/level/*/app\"\nuse = [\"wwan0\"]\n\
         [policy.across]\nmatch.cgroup = \"{root}/across/**\"\nuse = [\"wlan0\"]\n\
         [policy.unit]\nmatch.unit = \"matrix.service\"\nuse = [\"wwan0\"]\n\
         [policy.replaced]\nmatch.cgroup = \"{root}/replaced\"\nuse = [\"wwan0\"]\n"
    ))?;
    lab.host()
        .run(|| Ok(fs::create_dir_all("/etc/steer/steer.d")?))?;
    lab.write_file(
        "/etc/steer/steer.d/50-later.toml",
        &format!("[policy.replaced]\nmatch.cgroup = \"{root}/replaced\"\nuse = [\"wlan0\"]\n"),
    )?;
    let table = [
        ("a file with a path", "path", "wlan0"),
        ("a file with *", "level/any/app", "wwan0"),
        ("a file with **", "across/a/b/c", "wlan0"),
        ("a file with a unit", "some.slice/matrix.service", "wwan0"),
        ("a later file", "replaced", "wlan0"),
    ];
    let sources = table.into_iter().map(|(from, cgroup, uplink)| {
        Ok(Source {
            from,
            cgroup: lab.cgroup().child(cgroup)?,
            uplink,
            user: None,
            _holder: None,
        })
    });
    sources.collect()
}

/// Cgroups whose policies root sets by each call of the API.
fn from_root(lab: &Lab) -> Result<Vec<Source>> {
    let hold = Probe::new(Kind::UdpUnconnected, Family::V4);
    let by_path = lab.cgroup().child("by-path")?;
    lab.set_policy("by-path", &by_path, "wwan0", &[])?;
    let by_unit = lab.cgroup().child("other.slice/by-unit.service")?;
    let unit = [
        "policy",
        "set",
        "by-unit",
        "--unit",
        "by-unit.service",
        "--via",
        "wlan0",
    ];
    lab.steer(&unit)?.success()?;
    let by_pid = lab.cgroup().child("by-pid")?;
    let process = hold.start(lab, &by_pid)?;
    let pid = process.pid().to_string();
    let set = ["policy", "set", "by-pid", "--pid", &pid, "--via", "wwan0"];
    lab.steer(&set)?.success()?;
    let run = hold.start_by_run(lab, "wlan0", &[])?;
    let moved = hold.start(lab, &lab.cgroup().child("by-move")?)?;
    let pid = moved.pid().to_string();
    lab.steer(&["move", &pid, "--via", "wwan0"])?.success()?;
    let source = |from, cgroup, uplink, holder| Source {
        from,
        cgroup,
        uplink,
        user: None,
        _holder: holder,
    };
    Ok(vec![
        source("policy set --cgroup", by_path, "wwan0", None),
        source("policy set --unit", by_unit, "wlan0", None),
        source("policy set --pid", by_pid, "wwan0", Some(process)),
        source("run", cgroup_of(lab, &run)?, "wlan0", Some(run)),
        source("move", cgroup_of(lab, &moved)?, "wwan0", Some(moved)),
    ])
}

/// Cgroups that the agent makes for processes of a plain user.
fn from_user(lab: &Lab) -> Result<Vec<Source>> {
    let alice = User::new(ALICE);
    let session = lab.cgroup().child("session")?;
    let hold = Probe::new(Kind::UdpUnconnected, Family::V4);
    let run = hold.start_as(lab, &alice, &session, Some(("wwan0", &[])))?;
    let moved = hold.start_as(lab, &alice, &session, None)?;
    let pid = moved.pid().to_string();
    let call = ["move", &pid, "--via", "wlan0"];
    lab.steer_as(&alice, &session, &call)?.success()?;
    let named = hold.start_as(lab, &alice, &session, None)?;
    let pid = named.pid().to_string();
    let call = ["policy", "set", "hers", "--pid", &pid, "--via", "wwan0"];
    lab.steer_as(&alice, &session, &call)?.success()?;
    let sources = [
        ("run as a user", "wwan0", run),
        ("move as a user", "wlan0", moved),
        ("policy set --pid as a user", "wwan0", named),
    ];
    let sources = sources.into_iter().map(|(from, uplink, holder)| {
        Ok(Source {
            from,
            cgroup: cgroup_of(lab, &holder)?,
            uplink,
            user: Some(alice.clone()),
            _holder: Some(holder),
        })
    });
    sources.collect()
}

/// Every kind of flow that a user can make; raw sockets the kernel keeps for root.
fn users_matrix_leaves_by(lab: &Lab, source: &Source, user: &User) -> Result<()> {
    for (kind, family) in matrix() {
        let target = family.target(lab);
        if kind == Kind::Raw {
            let session = Probe::new(kind, family).start_as(lab, user, &source.cgroup, None)?;
            let opened = session.reports().first().context("it reported nothing")?;
            ensure!(!opened.ok && opened.errno_name == "EPERM", "{opened:?}");
            continue;
        }
        let flow = Probe::flow(kind, family, target);
        let reports = flow.start_as(lab, user, &source.cgroup, None)?.finish()?;
        let sent = reports.iter().all(|report| report.ok);
        ensure!(sent, "{kind:?} {family:?}: {reports:#?}");
        lab.assert_only_by(source.uplink, target)
            .with_context(|| format!("{kind:?} {family:?} of {user:?}"))?;
    }
    Ok(())
}

fn every_source(rp_filter: u8) -> Result<()> {
    let lab = Lab::builder().rp_filter(rp_filter).build()?;
    // Users have ping sockets where the host says so, and each network namespace says it for itself.
    lab.host().run(|| {
        Ok(fs::write(
            "/proc/sys/net/ipv4/ping_group_range",
            "0 2147483647",
        )?)
    })?;
    let mut sources = from_files(&lab)?;
    let _agent = lab.start_agent()?;
    sources.extend(from_root(&lab)?);
    sources.extend(from_user(&lab)?);
    // All at the same time: most of it is waiting, and destinations tell the flows apart.
    let lab = &lab;
    std::thread::scope(|scope| {
        let running: Vec<_> = sources
            .iter()
            .map(|source| {
                let matrix = move || match &source.user {
                    None => lab.matrix_leaves_by(&source.cgroup, source.uplink),
                    Some(user) => users_matrix_leaves_by(lab, source, user),
                };
                (source.from, scope.spawn(matrix))
            })
            .collect();
        for (from, running) in running {
            let left = running.join();
            let left = left.map_err(|_| anyhow::anyhow!("the thread panicked"))?;
            left.with_context(|| format!("a policy from {from}"))?;
        }
        Ok::<_, anyhow::Error>(())
    })?;
    conformance::row(
        "AMSS-2",
        &format!(
            "every kind of socket, both families, with policies from files, patterns, units and each call \
             of the API, as root and as a user, rp_filter {rp_filter}"
        ),
    )
}

#[test]
fn every_kind_of_flow_is_steered_wherever_its_policy_comes_from() -> Result<()> {
    every_source(0)
}

#[test]
fn so_it_is_under_a_strict_reverse_path_filter() -> Result<()> {
    every_source(1)
}

#[test]
fn so_it_is_under_a_loose_reverse_path_filter() -> Result<()> {
    every_source(2)
}
