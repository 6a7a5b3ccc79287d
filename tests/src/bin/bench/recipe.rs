//! The usual recipe for one application on one uplink: nftables marks the cgroup's packets in a chain of
//! type `route`, a rule leads the mark to a table, and masquerade mends the source.

use std::io::Write;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use steer_tests::{Lab, LabCgroup, Namespace};

/// Applies it to `cgroup` for the uplink `wlan0`.
pub(crate) fn apply(lab: &Lab, cgroup: &LabCgroup) -> Result<()> {
    // nft looks for cgroups below /sys/fs/cgroup only; this is the laboratory's own mount namespace.
    run(
        lab.host(),
        &["mount", "-t", "cgroup2", "none", "/sys/fs/cgroup"],
        "",
    )?;
    let path = cgroup.name();
    let level = path.split('/').count();
    let rules = format!(
        "table inet recipe {{
            chain out {{
                type route hook output priority mangle; policy accept;
                socket cgroupv2 level {level} \"{path}\" meta mark set 0x1
            }}
            chain source {{
                type nat hook postrouting priority srcnat; policy accept;
                meta mark 0x1 masquerade
            }}
        }}\n"
    );
    run(lab.host(), &["nft", "-f", "-"], &rules)?;
    for family in ["-4", "-6"] {
        let gateway = if family == "-4" {
            "10.2.0.1"
        } else {
            "2001:db8:2::1"
        };
        lab.ip(&[
            family, "rule", "add", "fwmark", "1", "table", "100", "priority", "100",
        ])?;
        let route = [
            "route", "add", "default", "via", gateway, "dev", "wlan0", "table", "100",
        ];
        lab.ip(&[&[family], &route[..]].concat())?;
    }
    Ok(())
}

/// Lets `peer` drop what comes to the datagram servers before its IP layer sees it.
pub(crate) fn drop_datagrams(peer: &Namespace) -> Result<()> {
    drop_arriving(peer, "datagrams", "udp dport 9")
}

/// Lets `peer` answer no connection.
pub(crate) fn drop_connections(peer: &Namespace) -> Result<()> {
    drop_arriving(peer, "connections", "meta l4proto tcp")
}

fn drop_arriving(peer: &Namespace, table: &str, what: &str) -> Result<()> {
    let rules = format!(
        "table netdev {table} {{
            chain in {{
                type filter hook ingress device peer priority 0; policy accept;
                {what} drop
            }}
        }}\n"
    );
    run(peer, &["nft", "-f", "-"], &rules)
}

/// Gives `to` the routing rules that the agent made at `from`, to see what they alone cost.
pub(crate) fn copy_rules(from: &Lab, to: &Lab) -> Result<()> {
    for family in ["-4", "-6"] {
        let lines = from.ip(&[family, "rule", "list"])?;
        for line in lines.lines() {
            let (priority, rule) = line.split_once(':').context("a line of ip rule list")?;
            if ["0", "32766", "32767"].contains(&priority) {
                continue;
            }
            let words: Vec<&str> = rule
                .split_whitespace()
                .filter(|word| !word.starts_with('['))
                .collect();
            let start = [family, "rule", "add", "priority", priority];
            to.ip(&[&start, &words[..]].concat())?;
        }
    }
    Ok(())
}

fn run(namespace: &Namespace, command: &[&str], input: &str) -> Result<()> {
    let mut child = namespace
        .command(command[0])
        .args(&command[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {}", command[0]))?;
    child
        .stdin
        .take()
        .context("standard input")?
        .write_all(input.as_bytes())
        .with_context(|| format!("write to {}", command[0]))?;
    let output = child
        .wait_with_output()
        .with_context(|| format!("wait for {}", command[0]))?;
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{}: {}",
        command.join(" "),
        words.trim()
    );
    Ok(())
}
