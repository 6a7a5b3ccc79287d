//! `steer doctor` on a real kernel: what it finds, what it leaves alone, and what it says to a plain user.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::unistd::{Gid, Uid};
use serde_json::Value;
use steer_tests::{Family, Kind, Lab, Snapshot, conformance};

/// What `steer doctor --json` said.
struct Said(Value);

impl Said {
    /// Of a host that may have problems (1) or not (0).
    fn on(lab: &Lab, code: i32) -> Result<Self> {
        let output = lab.steer(&["doctor", "--json"])?;
        ensure!(output.code == code, "{output:#?}");
        serde_json::from_str(&output.stdout)
            .map(Self)
            .context("parse what doctor printed")
    }

    fn findings(&self) -> impl Iterator<Item = &Value> {
        self.0["findings"].as_array().into_iter().flatten()
    }

    fn codes(&self) -> BTreeSet<&str> {
        let codes = self
            .findings()
            .filter_map(|finding| finding["code"].as_str());
        codes.collect()
    }

    /// A finding of that code says `words`.
    fn says(&self, code: &str, words: &str) -> Result<()> {
        let found = self.findings().any(|finding| {
            let text = finding["text"].as_str();
            finding["code"] == code && text.is_some_and(|text| text.contains(words))
        });
        ensure!(found, "no {code} with {words:?}: {:#}", self.0);
        Ok(())
    }

    /// As docs/json.schema.json says.
    fn is_as_documented(&self) -> Result<()> {
        let schema = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/json.schema.json");
        let mut schema: Value = serde_json::from_str(&std::fs::read_to_string(schema)?)?;
        schema["$ref"] = "#/$defs/steer%20doctor".into();
        let validator = jsonschema::validator_for(&schema).context("the schema itself")?;
        let wrong: Vec<_> = validator
            .iter_errors(&self.0)
            .map(|e| e.to_string())
            .collect();
        ensure!(wrong.is_empty(), "{wrong:#?}: {:#}", self.0);
        Ok(())
    }

    fn is_silent_about(&self, code: &str) -> Result<()> {
        ensure!(!self.codes().contains(code), "{code}: {:#}", self.0);
        Ok(())
    }
}

#[test]
fn several_managers_of_the_network_are_named_and_left_alone() -> Result<()> {
    let lab = Lab::builder().wg_quick().build()?;
    for rule in [
        // Tailscale's four.
        "rule add fwmark 0x80000/0xff0000 table main priority 5210",
        "rule add fwmark 0x80000/0xff0000 table default priority 5230",
        "rule add fwmark 0x80000/0xff0000 unreachable priority 5250",
        "rule add table 52 priority 5270",
        "route add 100.100.100.100 dev wg0 table 52",
        // mwan3: by interface, by mark, and what has neither.
        "rule add iif wlan0 table 2 priority 1002",
        "rule add fwmark 0x100/0x3f00 table 1 priority 2001",
        "rule add fwmark 0x200/0x3f00 table 2 priority 2002",
        "rule add fwmark 0x200/0x3f00 unreachable priority 3002",
        "route add default dev eth0 table 1",
        "route add default dev wlan0 table 2",
    ] {
        lab.ip(&rule.split(' ').collect::<Vec<_>>())?;
    }
    lab.configure("")?;
    let before = Snapshot::take(&lab)?;
    let look = |lab: &Lab| -> Result<()> {
        let said = Said::on(lab, 0)?;
        said.says("R10", "wg-quick has rules (IPv4 32764) into wg0")?;
        said.says("R11", "Tailscale has rules (IPv4 5210 to 5270)")?;
        said.says("R13", "mwan3 has rules (IPv4 2001 to 3002)")?;
        said.says(
            "R05",
            "IPv4 rule 32764: not fwmark 0xca6c lookup 51820 (wg-quick)",
        )?;
        said.says("R05", "IPv4 rule 5270: lookup 52 (Tailscale)")?;
        // wg-quick looks at the whole mark, the others at bits of their own.
        said.says("R02", "(wg-quick)")?;
        for code in ["R01", "R03", "R04", "R12", "R14"] {
            said.is_silent_about(code)?;
        }
        Ok(())
    };
    look(&lab)?;
    before.assert_same(&Snapshot::take(&lab)?)?;

    let mut agent = lab.start_agent()?;
    look(&lab)?;
    let app = lab.cgroup().child("app")?;
    lab.set_policy("web", &app, "wlan0", &["--strict"])?;
    lab.flow_leaves_by(&app, "wlan0", Kind::Tcp, Family::V4)?;
    look(&lab)?;
    lab.steer(&["policy", "unset", "web"])?.success()?;
    agent.stop()?;
    lab.steer(&["detach"])?.success()?;
    before.assert_same(&Snapshot::take(&lab)?)?;
    conformance::row(
        "P-5.5-3",
        "rules like those of wg-quick, Tailscale and mwan3 on one host: steer doctor names each, a \
         strict policy holds beside them, and none of their rules and routes is changed",
    )
}

#[test]
fn a_healthy_host_with_an_agent_has_no_problem() -> Result<()> {
    let lab = Lab::new()?;
    let before = Snapshot::take(&lab)?;
    let cgroups = lab.cgroup().descendants()?;
    let said = Said::on(&lab, 0)?;
    ensure!(said.codes().contains("A01"), "{:#}", said.0);
    before.assert_same(&Snapshot::take(&lab)?)?;
    let said_before: BTreeSet<String> = said.codes().into_iter().map(str::to_owned).collect();

    let _agent = lab.start_agent()?;
    let app = lab.cgroup().child("app")?;
    lab.set_policy("web", &app, "wlan0", &["--strict"])?;
    let held = Snapshot::take(&lab)?;
    let said = Said::on(&lab, 0)?;
    said.is_as_documented()?;
    ensure!(
        said.0["summary"]["problems"] == 0 && said.0["summary"]["warnings"] == 0,
        "{:#}",
        said.0
    );
    ensure!(said.0["unchecked"] == serde_json::json!([]), "{:#}", said.0);
    // Its own programs, rules and tables are not taken for somebody else's.
    for code in [
        "A01", "B01", "B02", "B03", "C06", "C08", "L01", "L03", "L04", "R03", "R04",
    ] {
        said.is_silent_about(code)?;
    }
    ensure!(said_before.contains("A01"), "{said_before:?}");
    held.assert_same(&Snapshot::take(&lab)?)?;
    lab.flow_leaves_by(&app, "wlan0", Kind::Tcp, Family::V4)?;
    ensure!(
        cgroups
            .iter()
            .all(|name| lab.cgroup().path().join(name).exists())
    );
    Ok(())
}

#[test]
fn a_strict_reverse_path_filter_is_named_where_a_tunnel_catches_the_way_back() -> Result<()> {
    let lab = Lab::builder().rp_filter(1).build()?;
    Said::on(&lab, 0)?.is_silent_about("S01")?;
    let lab = Lab::builder().rp_filter(1).wg_quick().build()?;
    let said = Said::on(&lab, 0)?;
    said.says("S01", "rp_filter is 1 at wlan0")?;
    let mend = said.findings().find(|finding| finding["code"] == "S01");
    ensure!(mend.is_some_and(|f| f["mend"].as_str().is_some_and(|m| m.starts_with("sysctl "))));
    Ok(())
}

#[test]
fn a_steered_flow_beside_a_tunnel_needs_what_doctor_says_of_the_reverse_path_filter() -> Result<()>
{
    let lab = Lab::builder().rp_filter(1).wg_quick().build()?;
    let _agent = lab.start_agent()?;
    let app = lab.cgroup().child("app")?;
    lab.set_policy("web", &app, "wlan0", &[])?;
    let blocked = lab.flow_leaves_by(&app, "wlan0", Kind::Tcp, Family::V4);
    ensure!(
        blocked.is_err(),
        "S01 says that answers are dropped, and they arrived"
    );
    for scope in ["all", "wlan0"] {
        lab.write_file(&format!("/proc/sys/net/ipv4/conf/{scope}/rp_filter"), "2")?;
    }
    lab.flow_leaves_by(&app, "wlan0", Kind::Tcp, Family::V4)
        .map(drop)
}

#[test]
fn leftovers_are_named_and_left() -> Result<()> {
    let lab = Lab::new()?;
    lab.ip(&[
        "rule",
        "add",
        "from",
        "192.0.2.77",
        "table",
        "40001",
        "priority",
        "4020",
        "protocol",
        "83",
    ])?;
    let said = Said::on(&lab, 0)?;
    said.says("L03", "1 rules and 0 routes")?;
    lab.ip(&["rule", "delete", "priority", "4020"])?;
    Said::on(&lab, 0)?.is_silent_about("L03")?;

    let mut agent = lab.start_agent()?;
    let app = lab.cgroup().child("app")?;
    lab.set_policy("web", &app, "wlan0", &[])?;
    agent.kill()?;
    let held = Snapshot::take(&lab)?;
    let said = Said::on(&lab, 0)?;
    said.says("L01", "no agent does")?;
    said.says("L08", "/run/steer/agent.sock")?;
    said.is_silent_about("L03")?;
    held.assert_same(&Snapshot::take(&lab)?)?;

    lab.write_file("/run/steer/state.json", "{\"version\":1,")?;
    Said::on(&lab, 1)?.says("L06", "/run/steer/state.json")?;
    lab.host().run(|| {
        std::fs::create_dir("/sys/fs/bpf/steer/new-7").context("leave an unfinished layout")
    })?;
    Said::on(&lab, 1)?.says("L09", "new-7")?;
    // Without the record something may be left, which detach says.
    lab.steer(&["detach"])?.failure(1)?;
    let said = Said::on(&lab, 0)?;
    for code in ["L01", "L06", "L08", "L09"] {
        said.is_silent_about(code)?;
    }
    Ok(())
}

#[test]
fn a_wrong_file_is_a_problem_and_every_other_check_is_made() -> Result<()> {
    let lab = Lab::new()?;
    lab.configure("[policy.web]\nusee = []\n")?;
    let said = Said::on(&lab, 1)?;
    said.says("A05", "/etc/steer/steer.toml:")?;
    ensure!(said.codes().contains("A01"));
    Ok(())
}

#[test]
fn a_plain_user_is_told_what_only_root_may_see() -> Result<()> {
    let lab = Lab::new()?;
    lab.ip(&[
        "rule",
        "add",
        "fwmark",
        "0x100/0x3f00",
        "table",
        "1",
        "priority",
        "2001",
    ])?;
    let _agent = lab.start_agent()?;
    let program = std::env::var_os("STEER_BIN").context("STEER_BIN names no steer")?;
    let reachable = tempfile::Builder::new().prefix("steer-doctor-").tempdir()?;
    let copy = reachable.path().join("steer");
    std::fs::copy(program, &copy).context("copy steer to where anybody may run it")?;
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(reachable.path(), std::fs::Permissions::from_mode(0o755))?;
    for arguments in [&["doctor"][..], &["doctor", "--json"]] {
        let mut command = lab.host().command(&copy);
        command.args(arguments).env("NO_COLOR", "1");
        // After the namespaces were entered, which only root may.
        // SAFETY: system calls alone, between fork and exec.
        unsafe {
            command.pre_exec(|| {
                nix::unistd::setgroups(&[])?;
                nix::unistd::setgid(Gid::from_raw(65_534))?;
                nix::unistd::setuid(Uid::from_raw(65_534))?;
                Ok(())
            });
        }
        let output = command.output().context("run steer as nobody")?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.code() == Some(0), "{output:?}");
        if arguments.len() == 1 {
            ensure!(text.contains("NOT CHECKED"), "{text}");
            ensure!(
                text.contains("whether the kernel takes steer's programs: needs root"),
                "{text}"
            );
            ensure!(
                text.lines().all(|line| line.chars().count() <= 80),
                "{text}"
            );
            continue;
        }
        let said = Said(serde_json::from_str(&text).context("parse what doctor printed")?);
        said.says("R13", "mwan3 has rules (IPv4 2001)")?;
        said.is_silent_about("A01")?;
        let unchecked = said.0["unchecked"].as_array().context("a list")?;
        ensure!(unchecked.len() >= 5, "{:#}", said.0);
    }
    Ok(())
}

#[test]
fn text_fits_and_a_code_is_explained() -> Result<()> {
    let lab = Lab::builder().wg_quick().build()?;
    let output = lab.steer(&["doctor"])?;
    let text = output.success()?;
    for line in text.lines() {
        ensure!(line.chars().count() <= 80, "{line}");
    }
    ensure!(text.contains("WARNINGS\n  R05  "), "{text}");
    ensure!(
        text.lines()
            .last()
            .is_some_and(|line| line.contains("explains a code")),
        "{text}"
    );
    let text = lab.steer(&["doctor", "--code", "r05"])?;
    ensure!(
        text.success()?
            .starts_with("R05: a rule of others catches unmarked traffic\n")
    );
    let explained = lab.steer(&["doctor", "--code", "R05", "--json"])?.json()?;
    ensure!(explained["severity"] == "warning", "{explained:#}");
    lab.steer(&["doctor", "--code", "X1"])?.failure(2)?;
    Ok(())
}

#[test]
fn a_program_that_lets_no_other_be_attached_is_named() -> Result<()> {
    let lab = Lab::new()?;
    let below = lab.cgroup().child("below")?;
    let inner = below.child("inner")?;
    let _program = attach_alone(below.path())?;

    // Below the managed cgroup it does no harm: steer's programs run beside it.
    lab.configure("")?;
    let said = Said::on(&lab, 0)?;
    said.says("C08", "program lone is at sock-create")?;
    said.is_silent_about("C06")?;
    let mut agent = lab.start_agent()?;
    lab.set_policy("web", &inner, "wlan0", &["--strict"])?;
    lab.flow_leaves_by(&inner, "wlan0", Kind::Tcp, Family::V4)?;
    agent.stop()?;
    lab.steer(&["detach"])?.success()?;

    // At the managed cgroup and above it, it keeps steer out.
    for (root, place) in [(below.path(), "there"), (inner.path(), "below")] {
        let file = format!("[agent]\ncgroup-root = \"{}\"\n", root.display());
        lab.write_file("/etc/steer/steer.toml", &file)?;
        let said = Said::on(&lab, 1)?;
        said.says("C06", "program lone (id ")?;
        said.says("C06", &format!("lets no other be attached {place}"))?;
        agent.start()?;
        let refused = lab.steer(&[
            "policy",
            "set",
            "web",
            "--cgroup",
            inner.name(),
            "--via",
            "wlan0",
        ])?;
        ensure!(
            refused.code != 0,
            "C06 says that nothing can be attached: {refused:#?}"
        );
        agent.stop()?;
        lab.steer(&["detach"])?.success()?;
    }
    Ok(())
}

/// `bpf(2)`.
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const CGROUP_SOCK: u32 = 9;
const SOCK_CREATE: u32 = 2;

/// Attaches `return 1` to a cgroup for itself alone (flags 0), as `ip vrf exec` does. It is there as long
/// as the cgroup.
fn attach_alone(cgroup: &Path) -> Result<OwnedFd> {
    // r0 = 1; exit
    let code: [u64; 2] = [0x0000_0001_0000_00b7, 0x95];
    let license = CString::new("GPL")?;
    let mut load = [0_u64; 16];
    load[0] = u64::from(CGROUP_SOCK) | 2 << 32;
    load[1] = code.as_ptr() as u64;
    load[2] = license.as_ptr() as u64;
    // prog_name stands at byte 48, expected_attach_type at 68.
    load[6] = u64::from_ne_bytes(*b"lone\0\0\0\0");
    load[8] = u64::from(SOCK_CREATE) << 32;
    let program = bpf(BPF_PROG_LOAD, &load)?;
    // SAFETY: the kernel just gave us this descriptor; nobody else knows it.
    let program = unsafe { OwnedFd::from_raw_fd(program) };
    let cgroup = File::open(cgroup).context("open the cgroup")?;
    let number = |fd: &dyn AsRawFd| u64::from(fd.as_raw_fd().unsigned_abs());
    let mut attach = [0_u64; 16];
    attach[0] = number(&cgroup) | number(&program) << 32;
    attach[1] = u64::from(SOCK_CREATE);
    bpf(BPF_PROG_ATTACH, &attach)?;
    Ok(program)
}

fn bpf(command: libc::c_int, attributes: &[u64; 16]) -> Result<i32> {
    // SAFETY: the kernel reads as many bytes as it is told, and what they point to, all of which live
    // until the call returns; it writes nothing.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            attributes.as_ptr(),
            size_of_val(attributes),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error()).with_context(|| format!("bpf command {command}"));
    }
    Ok(i32::try_from(result)?)
}
