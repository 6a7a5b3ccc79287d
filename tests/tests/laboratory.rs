//! The laboratory itself, without steer: what it claims about an unsteered host must hold before any
//! scenario may rely on it.

use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use steer_tests::report::{DISCARD_PORT, ECHO_PORT, HTTP_PORT};
use steer_tests::{
    ARP, Direction, Family, Kind, Lab, Probe, SERVER4, SERVER6, Snapshot, Uplink, wait,
};

/// A flow of every kind and family; every packet of it leaves by `uplink` with its address.
fn whole_matrix_leaves_by(lab: &Lab, uplink: &str, operation: Option<&str>) -> Result<()> {
    let app = lab.cgroup().child("app")?;
    let wanted = lab.uplink(uplink)?.addresses();
    for kind in Kind::ALL {
        for family in Family::ALL.into_iter().filter(|family| family.suits(kind)) {
            let target = family.target(lab);
            let mut probe = Probe::flow(kind, family, target);
            if let Some(operation) = operation {
                probe = probe.first(operation);
            }
            let report = probe.succeed(lab, &app)?;
            if kind.is_answered_by_server() {
                ensure!(
                    report.uplink.as_deref() == Some(uplink),
                    "{kind:?} {family:?}: {report:?}"
                );
                let seen = report.seen_address().context("the server saw no address")?;
                ensure!(wanted.contains(&seen), "{kind:?} {family:?}: {report:?}");
            }
            lab.assert_only_by(uplink, target)
                .with_context(|| format!("{kind:?} {family:?}"))?;
        }
    }
    Ok(())
}

#[test]
fn everything_unsteered_leaves_by_the_default_route() -> Result<()> {
    for mode in 0..=2 {
        let lab = Lab::builder().rp_filter(mode).build()?;
        whole_matrix_leaves_by(&lab, "eth0", None)?;
    }
    Ok(())
}

#[test]
fn a_bound_device_reaches_the_same_address_behind_every_uplink() -> Result<()> {
    let lab = Lab::new()?;
    for uplink in ["eth0", "wlan0", "wwan0"] {
        whole_matrix_leaves_by(&lab, uplink, Some(&format!("set device={uplink}")))?;
    }
    Ok(())
}

#[test]
fn the_server_with_the_same_address_says_which_uplink_it_stands_behind() -> Result<()> {
    let lab = Lab::new()?;
    let app = lab.cgroup().child("app")?;
    for (family, server) in [(Family::V4, SERVER4), (Family::V6, SERVER6)] {
        for uplink in lab.uplink_names() {
            let report = Probe::flow(Kind::Tcp, family, server)
                .first(&format!("set device={uplink}"))
                .succeed(&lab, &app)?;
            ensure!(report.uplink.as_deref() == Some(uplink), "{report:?}");
        }
    }
    Ok(())
}

#[test]
fn absence_is_seen_for_what_was_never_sent_and_presence_for_what_was() -> Result<()> {
    let lab = Lab::new()?;
    let app = lab.cgroup().child("app")?;
    let (sent, unsent) = (lab.target4(), lab.target4());
    for number in 0..50 {
        // Nothing is awaited: only the drain can make the assertion wait for the last datagram.
        Probe::new(Kind::UdpUnconnected, Family::V4)
            .then(&format!("post one-{number}; {sent}:{DISCARD_PORT}"))
            .succeed(&lab, &app)?;
        lab.drain()?;
        let token = format!("one-{number};");
        ensure!(
            lab.capture()
                .packets(|p| p.carries(&token) && p.direction == Direction::FromHost)
                .len()
                == 1,
            "datagram {number} was sent and not captured"
        );
    }
    lab.assert_silent(unsent)?;
    ensure!(
        lab.assert_silent(sent).is_err(),
        "silence was asserted of what was sent"
    );
    Ok(())
}

#[test]
fn a_packet_by_the_wrong_uplink_is_found() -> Result<()> {
    let lab = Lab::new()?;
    let app = lab.cgroup().child("app")?;
    let target = lab.target4();
    let address = lab.uplink("wlan0")?.address4().context("wlan0 has IPv4")?;
    // wlan0's source by eth0's wire: what the laboratory must never let pass.
    Probe::new(Kind::UdpUnconnected, Family::V4)
        .then(&format!("bind {address}"))
        .then(&format!("post stray {target}:{ECHO_PORT}"))
        .succeed(&lab, &app)?;
    ensure!(
        lab.assert_only_by("wlan0", target).is_err(),
        "the wrong uplink was not noticed"
    );
    ensure!(
        lab.assert_only_by("eth0", target).is_err(),
        "the wrong source was not noticed"
    );
    lab.assert_only_by_from("eth0", target, &[address])?;
    Ok(())
}

#[test]
fn address_resolution_for_a_stray_destination_is_captured() -> Result<()> {
    let lab = Lab::new()?;
    let app = lab.cgroup().child("app")?;
    // Outside every route but on-link by the bound device, as IPv4 assumes.
    lab.ip(&["route", "delete", "default", "dev", "wlan0"])?;
    let target = lab.target4();
    Probe::new(Kind::UdpUnconnected, Family::V4)
        .then("set device=wlan0")
        .then(&format!("post stray {target}:{ECHO_PORT}"))
        .succeed(&lab, &app)?;
    lab.capture()
        .wait_for("an ARP request for the target", |p| {
            p.ethertype == ARP && p.destination == Some(target) && p.uplink == "wlan0"
        })?;
    Ok(())
}

#[test]
fn every_kind_of_hand_made_packet_is_captured() -> Result<()> {
    let lab = Lab::new()?;
    let app = lab.cgroup().child("app")?;
    for (family, source) in [(Family::V4, "10.3.0.2"), (Family::V6, "2001:db8:3::2")] {
        for kind in ["raw-udp", "header", "packet"] {
            let target = family.target(&lab);
            let to = SocketAddr::new(target, 9);
            Probe::named(kind, family)
                .then(&format!("set source={source}"))
                .then("set device=wwan0")
                .then(&format!("post made-by-hand {to}"))
                .succeed(&lab, &app)?;
            lab.assert_only_by("wwan0", target)
                .with_context(|| format!("{kind} {family:?}"))?;
        }
    }
    Ok(())
}

#[test]
fn control_messages_choose_interface_and_source() -> Result<()> {
    let lab = Lab::new()?;
    let app = lab.cgroup().child("app")?;
    for family in [Family::V4, Family::V6] {
        let target = family.target(&lab);
        let to = SocketAddr::new(target, ECHO_PORT);
        Probe::new(Kind::UdpUnconnected, family)
            .then(&format!("send token {to} pktinfo=wlan0"))
            .succeed(&lab, &app)?;
        lab.assert_only_by("wlan0", target)?;
    }
    Ok(())
}

#[test]
fn http_is_served_with_the_address_that_was_seen() -> Result<()> {
    let lab = Lab::new()?;
    let app = lab.cgroup().child("app")?;
    let url = format!("http://{SERVER4}:{HTTP_PORT}/");
    let output = lab
        .command("curl", &app)?
        .args(["--silent", "--max-time", "5", "--interface", "wwan0", &url])
        .output()
        .context("start curl")?;
    let body = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success() && body.contains("\"10.3.0.2:"),
        "curl: {output:?}"
    );
    ensure!(body.contains("\"uplink\":\"wwan0\""), "{body}");
    Ok(())
}

#[test]
fn a_client_behind_an_uplink_reaches_a_server_at_the_host() -> Result<()> {
    let lab = Lab::new()?;
    let app = lab.cgroup().child("app")?;
    for kind in [Kind::Tcp, Kind::UdpUnconnected] {
        let mut server = Probe::new(kind, Family::V4)
            .then("bind 0.0.0.0:5000")
            .start(&lab, &app)?;
        if kind == Kind::Tcp {
            server.succeed("listen")?;
        }
        server.ask("serve")?;
        let address: IpAddr = "10.1.0.2".parse()?;
        let mut client = Probe::new(kind, Family::V4).start_in(lab.peer("eth0")?)?;
        client.succeed(&format!("connect {address}:5000"))?;
        let answer = client.succeed("send hello")?;
        ensure!(answer.uplink.as_deref() == Some("host"), "{answer:?}");
        ensure!(server.read()?.ok, "the server failed");
    }
    Ok(())
}

#[test]
fn links_go_and_come_back() -> Result<()> {
    let mut lab = Lab::new()?;
    let app = lab.cgroup().child("app")?;
    let before = Snapshot::take(&lab)?;

    let goes_by = |lab: &Lab, uplink: &str| -> Result<()> {
        for family in [Family::V4, Family::V6] {
            let target = family.target(lab);
            Probe::flow(Kind::UdpConnected, family, target).succeed(lab, &app)?;
            lab.assert_only_by(uplink, target)?;
        }
        Ok(())
    };
    lab.link_down("eth0")?;
    goes_by(&lab, "wlan0")?;
    lab.link_up("eth0")?;
    goes_by(&lab, "eth0")?;
    before
        .assert_same(&Snapshot::take(&lab)?)
        .context("after link_up")?;

    let index = |lab: &Lab| -> Result<u64> {
        let shown = lab.ip_json(&["link", "show", "dev", "eth0"])?;
        shown
            .pointer("/0/ifindex")
            .and_then(serde_json::Value::as_u64)
            .context("no index")
    };
    let old = index(&lab)?;
    lab.delete_link("eth0")?;
    goes_by(&lab, "wlan0")?;
    lab.create_link("eth0")?;
    goes_by(&lab, "eth0")?;
    ensure!(
        index(&lab)? != old,
        "the interface came back with its old index"
    );

    lab.carrier_down("eth0")?;
    lab.carrier_up("eth0")?;
    goes_by(&lab, "eth0")?;

    lab.rename_link("eth0", "lan7")?;
    goes_by(&lab, "eth0")?;
    lab.ip(&["link", "show", "dev", "lan7"])?;
    Ok(())
}

#[test]
fn rules_can_be_flushed_and_the_host_still_works() -> Result<()> {
    let lab = Lab::new()?;
    let before = Snapshot::take(&lab)?;
    lab.ip(&[
        "rule", "add", "fwmark", "7", "lookup", "77", "priority", "100",
    ])?;
    ensure!(
        before.assert_same(&Snapshot::take(&lab)?).is_err(),
        "a new rule was not noticed"
    );
    lab.flush_rules()?;
    before.assert_same(&Snapshot::take(&lab)?)
}

#[test]
fn overlapping_prefixes_and_the_same_address_on_two_uplinks_can_be_had() -> Result<()> {
    let lab = Lab::builder()
        .uplinks([
            Uplink::new("eth0", 1)
                .ipv4([10, 1, 0, 2], 8, [10, 1, 0, 1])
                .serves("10.77.0.0/16"),
            Uplink::new("wlan0", 2)
                .ipv4([10, 2, 0, 2], 8, [10, 2, 0, 1])
                .serves("10.77.0.0/16"),
            Uplink::new("wwan0", 3)
                .ipv4([10, 1, 0, 2], 8, [10, 3, 0, 1])
                .without_ipv6(),
        ])
        .build()?;
    let app = lab.cgroup().child("app")?;
    let target: IpAddr = "10.77.0.10".parse()?;
    let report = Probe::flow(Kind::Tcp, Family::V4, target)
        .first("set device=wlan0")
        .succeed(&lab, &app)?;
    ensure!(report.uplink.as_deref() == Some("wlan0"), "{report:?}");
    ensure!(
        lab.link_local("wwan0")?.to_string().starts_with("fe80::"),
        "no link-local address"
    );
    Ok(())
}

#[test]
fn a_container_and_a_wg_quick_tunnel_can_be_had() -> Result<()> {
    let lab = Lab::builder().container().wg_quick().build()?;
    let app = lab.cgroup().child("app")?;
    let target = lab.target4();
    let report = Probe::flow(Kind::UdpConnected, Family::V4, target).succeed(&lab, &app)?;
    ensure!(
        report.uplink.as_deref() == Some("wg0"),
        "wg-quick's rules do not catch: {report:?}"
    );
    lab.assert_only_by("wg0", target)?;

    let mut server = Probe::new(Kind::Tcp, Family::V4)
        .then("bind 0.0.0.0:5000")
        .then("listen")
        .start(&lab, &app)?;
    server.ask("serve")?;
    let mut client = Probe::new(Kind::Tcp, Family::V4).start_in(lab.peer("docker0")?)?;
    client.succeed("connect 10.2.0.2:5000")?;
    client.succeed("send hello")?;
    Ok(())
}

#[test]
fn what_an_agent_remembers_stays_in_its_laboratory() -> Result<()> {
    let (lab, other) = (Lab::new()?, Lab::new()?);
    let path = format!("/var/lib/remembered-by-{}", std::process::id());
    lab.write_file(&path, "of networks")?;
    ensure!(!std::fs::exists(&path)?, "the machine has {path}");
    let elsewhere = other.host().run(|| Ok(std::fs::exists(&path)?))?;
    ensure!(!elsewhere, "another laboratory has {path}");
    Ok(())
}

/// Whether any thread or descriptor of the machine still holds the network namespace `inode`.
fn namespace_exists(inode: u64) -> Result<bool> {
    let wanted = format!("net:[{inode}]");
    for process in std::fs::read_dir("/proc").context("list processes")? {
        let tasks = process.context("list processes")?.path().join("task");
        // Processes and threads end while they are looked at.
        let Ok(tasks) = std::fs::read_dir(tasks) else {
            continue;
        };
        for task in tasks.flatten() {
            let held = std::fs::read_link(task.path().join("ns/net"));
            if held.is_ok_and(|link| link.to_string_lossy() == wanted) {
                return Ok(true);
            }
            let Ok(descriptors) = std::fs::read_dir(task.path().join("fd")) else {
                continue;
            };
            for descriptor in descriptors.flatten() {
                let held = std::fs::read_link(descriptor.path());
                if held.is_ok_and(|link| link.to_string_lossy() == wanted) {
                    return Ok(true);
                }
            }
        }
    }
    Ok(false)
}

#[test]
fn nothing_is_left_when_a_laboratory_is_dropped() -> Result<()> {
    let (cgroup, inode, pid);
    {
        let lab = Lab::new()?;
        let deep = lab.cgroup().child("app/deep/deeper")?;
        let session = Probe::new(Kind::Tcp, Family::V4).start(&lab, &deep)?;
        (cgroup, inode, pid) = (
            lab.cgroup().path().to_owned(),
            lab.host().inode()?,
            session.pid(),
        );
        ensure!(
            namespace_exists(inode)?,
            "the search for namespaces finds nothing"
        );
        // The laboratory goes first: the session's process must be killed with its cgroup.
        drop(lab);
    }
    ensure!(!cgroup.exists(), "{} is left", cgroup.display());
    ensure!(
        !std::path::Path::new(&format!("/proc/{pid}/exe")).exists(),
        "process {pid} is left"
    );
    wait::until("the namespace to be gone", || {
        Ok((!namespace_exists(inode)?).then_some(()))
    })
}

const HELD_OPEN: &str = "STEER_LABORATORY_HELD_OPEN";

/// Not a test of its own: the child process of the test below.
#[test]
fn held_open_until_killed() -> Result<()> {
    if std::env::var_os(HELD_OPEN).is_none() {
        return Ok(());
    }
    let lab = Lab::new()?;
    let app = lab.cgroup().child("app")?;
    let session = Probe::new(Kind::Tcp, Family::V4).start(&lab, &app)?;
    println!(
        "held {} {} {}",
        lab.host().inode()?,
        session.pid(),
        lab.cgroup().path().display()
    );
    loop {
        std::thread::park();
    }
}

#[test]
fn nothing_is_left_when_the_test_is_killed() -> Result<()> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["--exact", "held_open_until_killed", "--nocapture"])
        .env(HELD_OPEN, "1")
        .stdout(Stdio::piped())
        .spawn()
        .context("start this test again")?;
    let output = BufReader::new(child.stdout.take().context("its output")?);
    let mut held = None;
    for line in output.lines() {
        let line = line.context("read its output")?;
        // The harness prints the test's name on the same line first.
        if let Some((_, rest)) = line.split_once("held ") {
            held = Some(rest.to_owned());
            break;
        }
    }
    let held = held.context("the laboratory was not built")?;
    let mut fields = held.split(' ');
    let inode: u64 = fields.next().context("inode")?.parse()?;
    let pid = fields.next().context("pid")?.to_owned();
    let cgroup = std::path::PathBuf::from(fields.next().context("cgroup")?);
    ensure!(
        cgroup.exists() && namespace_exists(inode)?,
        "nothing was there to begin with"
    );
    child.kill().context("kill it")?;
    child.wait().context("wait for it")?;
    wait::until("its cgroup, process and namespace to be gone", || {
        let alive = std::path::Path::new(&format!("/proc/{pid}/exe")).exists();
        Ok((!cgroup.exists() && !alive && !namespace_exists(inode)?).then_some(()))
    })
}
