//! What the kernel or the disk refuses: who asked is told in its words, nobody else is, and what was there
//! before stays.

use std::fs;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use steer_tests::{Family, Kind, Lab};

/// `bpf(2)`: opens what is pinned, and makes a map read-only for system calls.
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_MAP_FREEZE: libc::c_int = 22;

/// The beginning of `union bpf_attr` for both.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    /// Address of the pin's path; a map's descriptor, in the first half.
    first: u64,
    rest: [u64; 7],
}

fn bpf(command: libc::c_int, attributes: &Attributes) -> Result<i64> {
    // SAFETY: the kernel reads as many bytes as it is told, which live until the call returns, and from
    // them the path, which does so too; it writes nothing.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attributes),
            size_of::<Attributes>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error()).with_context(|| format!("bpf command {command}"));
    }
    Ok(result)
}

/// From now on the kernel refuses every write to a map of the agent's, with EPERM. Programs still write it.
fn freeze(lab: &Lab, map: &str) -> Result<()> {
    lab.host().run(|| {
        let layouts = fs::read_dir("/sys/fs/bpf/steer").context("read the pins")?;
        let pins: Vec<PathBuf> = layouts
            .flatten()
            .map(|layout| layout.path().join("maps").join(map))
            .filter(|pin| pin.exists())
            .collect();
        let [pin] = pins.as_slice() else {
            bail!("one map {map}: {pins:?}");
        };
        let path = std::ffi::CString::new(pin.display().to_string())?;
        let found = bpf(
            BPF_OBJ_GET,
            &Attributes {
                first: path.as_ptr() as u64,
                ..Attributes::default()
            },
        )?;
        // SAFETY: the kernel just gave us this descriptor; nobody else knows it.
        let map = unsafe { OwnedFd::from_raw_fd(i32::try_from(found)?) };
        let number = u64::try_from(std::os::fd::AsRawFd::as_raw_fd(&map))?;
        bpf(
            BPF_MAP_FREEZE,
            &Attributes {
                first: number,
                ..Attributes::default()
            },
        )
        .map(drop)
    })
}

fn shown(lab: &Lab, policy: &str) -> Result<Value> {
    lab.steer(&["policy", "show", policy, "--json"])?.json()
}

#[test]
fn a_command_whose_entry_the_kernel_refuses_is_not_started_and_told_why() -> Result<()> {
    let lab = Lab::new()?;
    let app = lab.cgroup().child("app")?;
    let _agent = lab.start_agent()?;
    lab.set_policy("app", &app, "wlan0", &[])?;
    freeze(&lab, "CGROUPS")?;
    let output = lab.steer(&["run", "--via", "wlan0", "--", "echo", "started"])?;
    let words = output.failure(1)?;
    ensure!(output.stdout.is_empty(), "{output:?}");
    ensure!(
        words.contains("Operation not permitted") && !words.contains("no domain fits"),
        "{words}"
    );
    let left = lab.cgroup().child("cli")?.descendants()?;
    ensure!(left.is_empty(), "{left:?}");
    let policies = lab.steer(&["policy", "list", "--json"])?.json()?;
    ensure!(
        policies.as_array().is_some_and(|list| list.len() == 1),
        "{policies}"
    );
    lab.flow_leaves_by(&app, "wlan0", Kind::Tcp, Family::V4)
        .map(drop)
}

#[test]
fn what_the_kernel_refuses_of_one_policy_is_told_of_that_one_alone() -> Result<()> {
    let lab = Lab::new()?;
    let [app, other] = ["app", "other"].map(|name| lab.cgroup().child(name));
    let (app, other) = (app?, other?);
    let _agent = lab.start_agent()?;
    lab.set_policy("app", &app, "wlan0", &[])?;
    freeze(&lab, "CGROUPS")?;

    let set = |name: &str, path: &str| {
        lab.steer(&["policy", "set", name, "--cgroup", path, "--via", "wwan0"])
    };
    let output = set("other", other.name())?;
    let words = output.failure(1)?;
    ensure!(words.contains("Operation not permitted"), "{words}");
    let view = shown(&lab, "other")?;
    let why = view["quarantined"].as_str().unwrap_or_default();
    ensure!(
        view["cgroups"] == 0 && why.contains("Operation not permitted"),
        "{view}"
    );
    let people = lab.steer(&["policy", "show", "other"])?;
    ensure!(people.success()?.contains("not in force"), "{people:?}");

    // Nothing of these is refused.
    let absent = format!("{}/absent", lab.cgroup().name());
    set("third", &absent)?.success()?;
    lab.steer(&["policy", "unset", "third"])?.success()?;
    for policy in ["app", "third"] {
        let output = lab.steer(&["policy", "show", policy, "--json"])?;
        ensure!(!output.stdout.contains("not permitted"), "{output:?}");
    }
    ensure!(shown(&lab, "app")?["cgroups"] == 1);
    // What was refused is not wanted any more.
    lab.steer(&["policy", "unset", "other"])?.success()?;
    // This is: it cannot be taken from its cgroup.
    let output = lab.steer(&["policy", "unset", "app"])?;
    let words = output.failure(1)?;
    ensure!(words.contains("Operation not permitted"), "{words}");
    // So all that it leads to is kept.
    lab.matrix_leaves_by(&app, "wlan0")
}

#[test]
fn a_route_that_the_kernel_refuses_is_no_error_of_another_domains_policy() -> Result<()> {
    let lab = Lab::new()?;
    let [app, other] = ["app", "other"].map(|name| lab.cgroup().child(name));
    let (app, other) = (app?, other?);
    let _agent = lab.start_agent()?;
    // The kernel keeps a default route whose gateway nothing leads to any more, but takes no such one anew.
    let routes = lab.ip_json(&["-4", "route", "show", "dev", "wwan0", "scope", "link"])?;
    for route in routes.as_array().into_iter().flatten() {
        let destination = route["dst"].as_str().context("a destination")?;
        lab.ip(&["route", "delete", destination, "dev", "wwan0"])?;
    }
    let view = lab.set_policy("other", &other, "wwan0", &[])?;
    ensure!(
        view["decision"]["verdict"] == "block"
            && view["decision"]["reason"]
                .as_str()
                .is_some_and(|reason| reason.contains("the kernel refused it")),
        "{view}"
    );
    lab.set_policy("app", &app, "wlan0", &[])?;
    lab.matrix_leaves_by(&app, "wlan0")?;
    // And its answer to a command is the kernel's, too.
    let output = lab.steer(&["run", "--via", "wwan0", "--", "echo", "started"])?;
    let words = output.failure(4)?;
    ensure!(words.contains("the kernel refused it"), "{words}");
    lab.steer(&["policy", "unset", "app"])?.success().map(drop)
}

#[test]
fn what_cannot_be_kept_is_not_done_and_the_file_is_as_it_was() -> Result<()> {
    let lab = Lab::new()?;
    let app = lab.cgroup().child("app")?;
    let _agent = lab.start_agent()?;
    let file = |name: &str| {
        let path = format!("/etc/steer/steer.d/50-{name}.toml");
        lab.host().run(move || Ok(fs::read_to_string(path).ok()))
    };
    let set = |name: &str, via: &str, more: &[&str]| {
        let mut args = vec![
            "policy",
            "set",
            name,
            "--cgroup",
            app.name(),
            "--via",
            via,
            "--priority",
            if name == "saved" { "2" } else { "1" },
        ];
        args.extend(more);
        lab.steer(&args)
    };
    set("saved", "wlan0", &["--save"])?.success()?;
    set("set", "wlan0", &[])?.success()?;
    // A decision that was undone is as old as that.
    let list = || -> Result<Value> {
        let mut list = lab.steer(&["policy", "list", "--json"])?.json()?;
        for policy in list.as_array_mut().into_iter().flatten() {
            policy["decision"]["since"] = Value::Null;
        }
        Ok(list)
    };
    let before = list()?;
    let kept = file("saved")?;
    ensure!(kept.is_some() && file("set")?.is_none(), "{kept:?}");

    // Where the state is written before it takes its place.
    lab.host()
        .run(|| fs::create_dir("/run/steer/state.next").context("be in the way"))?;
    for attempt in [
        set("saved", "wwan0", &["--save"])?,
        set("set", "wwan0", &[])?,
        set("set", "wwan0", &["--save"])?,
        set("new", "wwan0", &["--save"])?,
        lab.steer(&["policy", "unset", "saved", "--save"])?,
        lab.steer(&["policy", "unset", "set"])?,
    ] {
        let words = attempt.failure(1)?;
        ensure!(words.contains("state.json"), "{attempt:?}");
        let after = list()?;
        ensure!(before == after, "{}: {after}", attempt.command);
        ensure!(file("saved")? == kept, "{}", attempt.command);
        ensure!(file("set")?.is_none() && file("new")?.is_none());
    }
    lab.flow_leaves_by(&app, "wlan0", Kind::Tcp, Family::V4)?;

    lab.host()
        .run(|| fs::remove_dir("/run/steer/state.next").context("go out of the way"))?;
    set("saved", "wwan0", &["--save"])?.success()?;
    ensure!(file("saved")? != kept);
    lab.flow_leaves_by(&app, "wwan0", Kind::Tcp, Family::V4)
        .map(drop)
}

#[test]
fn a_policy_that_cannot_be_saved_leaves_the_strict_one_of_its_name_in_force() -> Result<()> {
    let lab = Lab::new()?;
    let app = lab.cgroup().child("app")?;
    let _agent = lab.start_agent()?;
    let before = lab.set_policy("web", &app, "wlan0", &["--strict"])?;
    // One cannot be written down, the other would be in quarantine.
    for more in [
        &["--via", "wlan0", "--strict", "--otherwise", "pass"][..],
        &["--via", "wlan0,a-name-of-no-interface"],
    ] {
        let args = ["policy", "set", "web", "--cgroup", app.name()];
        let output = lab.steer(&[&args, more, &["--save"]].concat())?;
        output.failure(1)?;
        let after = lab.steer(&["policy", "show", "web", "--json"])?.json()?;
        ensure!(after["strict"] == before["strict"], "{before} {after}");
        lab.flow_leaves_by(&app, "wlan0", Kind::Tcp, Family::V4)?;
        lab.carrier_down("wlan0")?;
        lab.wait_decision("web", "verdict", "block")?;
        lab.matrix_is_refused(&app, None)?;
        lab.carrier_up("wlan0")?;
        lab.wait_decision("web", "domain", "wlan0")?;
    }
    Ok(())
}
