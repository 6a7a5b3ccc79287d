//! No way out of a strict policy: every way that a program has to choose mark, interface or source by
//! itself, each by capture on every uplink.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use steer_tests::report::{DISCARD_PORT, ECHO_PORT};
use steer_tests::{
    Agent, Direction, Family, Kind, Lab, LabCgroup, Probe, Session, User, conformance, matrix, wait,
};

/// Whom the escapes would suit: `eth0`, the host's best way, with its addresses.
const OTHER: [(Family, &str); 2] = [(Family::V4, "10.1.0.2"), (Family::V6, "2001:db8:1::2")];

/// A strict policy by `wlan0` for the cgroup `app`; the other domains have their tables too.
fn strict(lab: &Lab) -> Result<(Agent<'_>, LabCgroup)> {
    let agent = lab.start_agent()?;
    other_domains(lab)?;
    let app = lab.cgroup().child("app")?;
    lab.set_policy("app", &app, "wlan0", &["--strict"])?;
    Ok((agent, app))
}

fn other_domains(lab: &Lab) -> Result<()> {
    for uplink in ["eth0", "wwan0"] {
        lab.set_policy(uplink, &lab.cgroup().child(uplink)?, uplink, &[])?;
    }
    Ok(())
}

/// The mark of the domain `eth0`, as its sockets have it.
fn mark_of_eth0(lab: &Lab) -> Result<String> {
    let cgroup = lab.cgroup().child("eth0")?;
    let report = Probe::new(Kind::UdpConnected, Family::V4).last(lab, &cgroup)?;
    let mark = report.mark.filter(|mark| *mark != 0);
    Ok(format!(
        "{:#x}",
        mark.context("eth0's sockets have no mark")?
    ))
}

/// Connects where the kind does and sends, whatever comes of it.
fn try_flow(session: &mut Session, kind: Kind, target: IpAddr) -> Result<()> {
    let to = SocketAddr::new(target, ECHO_PORT);
    session.succeed("set timeout=200")?;
    if matches!(kind, Kind::Tcp | Kind::UdpConnected) {
        session.perform(&format!("connect {to}"))?;
        session.perform("send stray")?;
    } else {
        session.perform(&format!("send stray {to}"))?;
    }
    Ok(())
}

#[test]
fn what_a_socket_was_told_before_the_policy_leads_nowhere() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    other_domains(&lab)?;
    let app = lab.cgroup().child("app")?;
    let mark = format!("set mark={}", mark_of_eth0(&lab)?);
    for (family, address) in OTHER {
        let bind = format!("bind {address}");
        let mut ways = vec![
            mark.as_str(),
            "set device=eth0",
            "set ifindex=eth0",
            "set unicast-if=eth0",
            bind.as_str(),
        ];
        if family == Family::V6 {
            ways.push("set pktinfo6=eth0");
        }
        for way in ways {
            for kind in Kind::ALL {
                let what = || format!("{way} {kind:?} {family:?}");
                lab.steer(&["policy", "unset", "app"])?;
                let mut session = Probe::new(kind, family).start(&lab, &app)?;
                session.succeed(way).with_context(what)?;
                lab.set_policy("app", &app, "wlan0", &["--strict"])?;
                let target = family.target(&lab);
                try_flow(&mut session, kind, target).with_context(what)?;
                lab.assert_at_most_by("wlan0", target).with_context(what)?;
            }
        }
    }
    conformance::row(
        "INVARIANT-1",
        "options and binds from before a strict policy lead none of its sockets elsewhere",
    )
}

#[test]
fn a_flow_from_before_the_policy_is_cut_off_elsewhere() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    other_domains(&lab)?;
    let app = lab.cgroup().child("app")?;
    for (kind, family) in matrix() {
        let what = || format!("{kind:?} {family:?}");
        lab.steer(&["policy", "unset", "app"])?;
        let to = SocketAddr::new(family.target(&lab), ECHO_PORT);
        let mut session = Probe::new(kind, family).start(&lab, &app)?;
        session
            .succeed(&format!("connect {to}"))
            .with_context(what)?;
        session.succeed("send before").with_context(what)?;
        lab.assert_only_by("eth0", to.ip()).with_context(what)?;
        lab.set_policy("app", &app, "wlan0", &["--strict"])?;
        lab.drain()?;
        let start = lab.position()?;
        session.succeed("set timeout=200")?;
        session.perform("send behind")?;
        lab.drain()?;
        let strays = lab.capture().since(start, |p| {
            p.is_about(to.ip()) && p.uplink != "wlan0" && p.direction == Direction::FromHost
        });
        ensure!(strays.is_empty(), "{}: {strays:?}", what());
    }
    Ok(())
}

#[test]
fn a_socket_handed_in_obeys_the_policy_of_who_uses_it() -> Result<()> {
    let lab = Lab::new()?;
    let (_agent, app) = strict(&lab)?;
    let free = lab.cgroup().child("free")?;
    for (kind, family) in matrix() {
        // A raw socket has no hook that tells who uses it, nor has a ping socket that is not connected:
        // what they send is its who made them. README says so.
        if kind == Kind::Raw {
            continue;
        }
        for way in ["", "set device=eth0"] {
            let what = || format!("{kind:?} {family:?} {way}");
            let mut giver = Probe::new(kind, family).start(&lab, &free)?;
            if !way.is_empty() {
                giver.succeed(way)?;
            }
            let mut taker = Probe::new(kind, family).start(&lab, &app)?;
            hand_over(&mut giver, &mut taker).with_context(what)?;
            let target = family.target(&lab);
            taker.succeed("set timeout=200")?;
            let to = SocketAddr::new(target, ECHO_PORT);
            match kind {
                Kind::UdpUnconnected => {
                    taker.perform(&format!("send stray {to}"))?;
                    taker.perform(&format!("send stray {to}"))?;
                }
                _ => {
                    taker.perform(&format!("connect {to}"))?;
                    taker.perform("send stray")?;
                }
            }
            lab.assert_at_most_by("wlan0", target).with_context(what)?;
            // What was decided holds for the giver too.
            giver.succeed("set timeout=200")?;
            giver.perform("send back")?;
            lab.assert_at_most_by("wlan0", target).with_context(what)?;
        }
    }
    Ok(())
}

#[test]
fn a_socket_handed_out_stays_strict() -> Result<()> {
    let lab = Lab::new()?;
    let (_agent, app) = strict(&lab)?;
    let free = lab.cgroup().child("free")?;
    for (kind, family) in matrix() {
        for way in ["", "set device=eth0", "set mark=0", "set unicast-if=eth0"] {
            let what = || format!("{kind:?} {family:?} {way}");
            let mut giver = Probe::new(kind, family).start(&lab, &app)?;
            let mut taker = Probe::new(kind, family).start(&lab, &free)?;
            hand_over(&mut giver, &mut taker).with_context(what)?;
            if !way.is_empty() {
                let report = taker.perform(way)?;
                ensure!(!report.ok, "{}: was not refused", what());
            }
            let target = family.target(&lab);
            try_flow(&mut taker, kind, target)?;
            lab.assert_at_most_by("wlan0", target).with_context(what)?;
        }
    }
    for (family, source) in OTHER {
        let mut giver = Probe::named("packet", family).start(&lab, &app)?;
        let mut taker = Probe::named("packet", family).start(&lab, &free)?;
        hand_over(&mut giver, &mut taker)?;
        let target = family.target(&lab);
        taker.succeed(&format!("set source={source}"))?;
        taker.succeed("set device=eth0")?;
        let to = SocketAddr::new(target, DISCARD_PORT);
        taker.perform(&format!("post stray {to}"))?;
        lab.assert_silent(target)?;
    }
    conformance::row(
        "INVARIANT-1",
        "a socket of a strict policy stays so in whatever process it is, and one that is handed in becomes so",
    )
}

fn hand_over(giver: &mut Session, taker: &mut Session) -> Result<()> {
    let meeting = format!("meeting-{}", taker.pid());
    taker.ask(&format!("take {meeting}"))?;
    giver.succeed(&format!("give {meeting}"))?;
    let taken = taker.read()?;
    ensure!(taken.ok, "not taken: {taken:?}");
    Ok(())
}

#[test]
fn control_messages_of_every_kind_of_socket_lead_nowhere() -> Result<()> {
    let lab = Lab::new()?;
    let (_agent, app) = strict(&lab)?;
    let mark = format!("mark={}", mark_of_eth0(&lab)?);
    for (family, address) in OTHER {
        let source = format!("pktinfo={address}");
        for extra in ["pktinfo=eth0", &source, &mark, "mark=0"] {
            for (word, connects) in [
                ("udp", true),
                ("udp", false),
                ("ping", true),
                ("ping", false),
                ("raw", true),
                ("raw", false),
                ("raw-udp", false),
            ] {
                for verb in ["post", "ring"] {
                    let what = || format!("{word} {family:?} {extra} {connects} {verb}");
                    let target = family.target(&lab);
                    let to = SocketAddr::new(target, DISCARD_PORT);
                    let mut session = Probe::named(word, family).start(&lab, &app)?;
                    session.succeed("set timeout=200")?;
                    let message = if connects {
                        session.perform(&format!("connect {to}"))?;
                        format!("{verb} stray {extra}")
                    } else {
                        format!("{verb} stray {to} {extra}")
                    };
                    for _ in 0..2 {
                        let report = session.perform(&message)?;
                        ensure!(
                            report.errno_name != "ENOSYS",
                            "this kernel has no io_uring, so nothing was tried: {report:?}"
                        );
                    }
                    lab.assert_at_most_by("wlan0", target).with_context(what)?;
                }
            }
        }
    }
    conformance::row(
        "INVARIANT-1",
        "control messages (IP_PKTINFO, IPV6_PKTINFO, SO_MARK) lead no datagram of a strict policy \
         elsewhere, by sendmsg or io_uring",
    )
}

#[test]
fn a_connection_that_begins_with_data_leaves_by_its_domain() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    other_domains(&lab)?;
    let app = lab.cgroup().child("app")?;
    for family in Family::ALL {
        lab.set_policy("app", &app, "wlan0", &["--strict"])?;
        let target = family.target(&lab);
        let to = SocketAddr::new(target, ECHO_PORT);
        Probe::new(Kind::Tcp, family)
            .then(&format!("fast hello {to}"))
            .then("send more")
            .succeed(&lab, &app)
            .with_context(|| format!("{family:?}"))?;
        lab.assert_only_by("wlan0", target)?;
        // And not where a socket from before the policy was led.
        lab.steer(&["policy", "unset", "app"])?;
        let mut session = Probe::new(Kind::Tcp, family).start(&lab, &app)?;
        session.succeed("set device=eth0")?;
        lab.set_policy("app", &app, "wlan0", &["--strict"])?;
        let target = family.target(&lab);
        session.succeed("set timeout=200")?;
        session.perform(&format!(
            "fast stray {}",
            SocketAddr::new(target, ECHO_PORT)
        ))?;
        lab.assert_at_most_by("wlan0", target)?;
        lab.steer(&["policy", "unset", "app"])?;
    }
    conformance::row(
        "INVARIANT-1",
        "the data of a TCP connection's first packet (MSG_FASTOPEN) leaves by the domain",
    )
}

/// What the guards dropped so far.
fn dropped(lab: &Lab) -> Result<u64> {
    let status = lab.steer(&["status", "--json"])?.json()?;
    status["counters"]["guard-dropped"]
        .as_u64()
        .with_context(|| format!("no guard-dropped: {status}"))
}

#[test]
fn further_subflows_of_multipath_tcp_reach_no_other_uplink() -> Result<()> {
    let lab = Lab::new()?;
    let (_agent, app) = strict(&lab)?;
    let free = lab.cgroup().child("free")?;
    lab.ip(&["mptcp", "limits", "set", "subflow", "4"])?;
    for endpoint in [
        ["10.1.0.2", "dev", "eth0"],
        ["10.2.0.2", "dev", "wlan0"],
        ["2001:db8:1::2", "dev", "eth0"],
        ["2001:db8:2::2", "dev", "wlan0"],
    ] {
        let mut words = vec!["mptcp", "endpoint", "add"];
        words.extend(endpoint);
        words.push("subflow");
        lab.ip(&words)?;
    }
    for family in [Family::V4, Family::V6] {
        // Without a policy there is a second subflow by the other uplink: the method works.
        let target = family.target(&lab);
        let _flow = multipath(&lab, &free, family, "eth0", target)?;
        let sources = lab.uplink("wlan0")?.addresses();
        lab.capture().wait_for("a subflow without a policy", |p| {
            p.is_about(target)
                && p.tcp_flags == 2
                && p.source.is_some_and(|source| sources.contains(&source))
        })?;
        let before = dropped(&lab)?;
        let target = family.target(&lab);
        let _flow = multipath(&lab, &app, family, "wlan0", target)?;
        wait::until("the guard to drop the subflow", || {
            Ok((dropped(&lab)? > before).then_some(()))
        })?;
        lab.assert_only_by("wlan0", target)
            .with_context(|| format!("{family:?}"))?;
    }
    conformance::row(
        "INVARIANT-1",
        "further subflows of Multipath TCP do not leave by another domain",
    )
}

/// A Multipath TCP connection from `cgroup` to a server behind `uplink` that speaks it too.
fn multipath(
    lab: &Lab,
    cgroup: &LabCgroup,
    family: Family,
    uplink: &str,
    target: IpAddr,
) -> Result<(Session, Session)> {
    const PORT: u16 = 7007;
    let mut server = Probe::named("mptcp", family).start_in(lab.peer(uplink)?)?;
    let to = SocketAddr::new(target, PORT);
    server.succeed(&format!("bind {to}"))?;
    server.succeed("listen")?;
    let mut client = Probe::named("mptcp", family).start(lab, cgroup)?;
    client.succeed(&format!("connect {to}"))?;
    // Not answered: the connection stays, and further subflows come once it was acknowledged.
    client.succeed("post hello")?;
    Ok((server, client))
}

#[test]
fn sctp_where_there_is_any_reaches_no_other_uplink() -> Result<()> {
    let lab = Lab::new()?;
    let (_agent, app) = strict(&lab)?;
    for family in [Family::V4, Family::V6] {
        let target = family.target(&lab);
        let mut session = Probe::named("sctp", family).start(&lab, &app)?;
        if let [opened] = session.reports()
            && !opened.ok
        {
            ensure!(opened.errno_name == "EPROTONOSUPPORT", "{opened:?}");
            continue;
        }
        session.succeed("set timeout=200")?;
        session.perform(&format!("connect {}", SocketAddr::new(target, ECHO_PORT)))?;
        lab.assert_at_most_by("wlan0", target)?;
    }
    Ok(())
}

#[test]
fn a_process_that_leaves_its_cgroup_does_not_take_its_sockets_out() -> Result<()> {
    let lab = Lab::new()?;
    let (_agent, app) = strict(&lab)?;
    let free = lab.cgroup().child("free")?;
    for (kind, family) in matrix() {
        let mut session = Probe::new(kind, family).start(&lab, &app)?;
        // As an administrator may.
        session.succeed(&format!("enter {}", free.path().display()))?;
        let target = family.target(&lab);
        try_flow(&mut session, kind, target)?;
        lab.assert_at_most_by("wlan0", target)
            .with_context(|| format!("{kind:?} {family:?}"))?;
    }
    // And a plain user may not.
    let alice = User::new(4711);
    let probe = Probe::new(Kind::UdpUnconnected, Family::V4);
    let mut session = probe.start_as(&lab, &alice, &app, None)?;
    for cgroup in [&free, lab.cgroup()] {
        let report = session.perform(&format!("enter {}", cgroup.path().display()))?;
        ensure!(report.errno_name == "EACCES", "{report:?}");
    }
    let target = lab.target4();
    let to = SocketAddr::new(target, ECHO_PORT);
    session.succeed(&format!("send still-strict {to}"))?;
    lab.assert_only_by("wlan0", target).map(drop)
}

#[test]
fn a_user_moves_about_in_its_own_cgroups_and_takes_no_socket_out() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    other_domains(&lab)?;
    let alice = User::new(4711);
    let tree = lab.cgroup().child("delegated")?;
    let (app, beside) = (tree.child("app")?, tree.child("beside")?);
    for cgroup in [&tree, &app, &beside] {
        alice.own(cgroup)?;
    }
    let enter = format!("enter {}", beside.path().display());
    // The policy is on all that she has: wherever she goes, it is there.
    lab.set_policy("tree", &tree, "wlan0", &["--strict"])?;
    for (kind, family) in matrix().filter(|(kind, _)| *kind != Kind::Raw) {
        let mut session = Probe::new(kind, family).start_as(&lab, &alice, &app, None)?;
        session.succeed(&enter)?;
        for open in [false, true] {
            if open {
                session.succeed(&format!("open {}", words(kind, family)))?;
            }
            // As any user may, where a policy allows it.
            session.perform("set device=eth0")?;
            let target = family.target(&lab);
            try_flow(&mut session, kind, target)?;
            lab.assert_at_most_by("wlan0", target)
                .with_context(|| format!("{kind:?} {family:?}, a new socket: {open}"))?;
        }
    }
    lab.steer(&["policy", "unset", "tree"])?.success()?;
    // It is on one of them: what was made there stays strict in the other, and new sockets are the other's.
    lab.set_policy("app", &app, "wlan0", &["--strict"])?;
    for (kind, family) in matrix().filter(|(kind, _)| *kind != Kind::Raw) {
        let mut session = Probe::new(kind, family).start_as(&lab, &alice, &app, None)?;
        session.succeed(&enter)?;
        session.perform("set device=eth0")?;
        let target = family.target(&lab);
        try_flow(&mut session, kind, target)?;
        lab.assert_at_most_by("wlan0", target)
            .with_context(|| format!("{kind:?} {family:?}"))?;
        session.succeed(&format!("open {}", words(kind, family)))?;
        let target = family.target(&lab);
        try_flow(&mut session, kind, target)?;
        lab.assert_only_by("eth0", target)
            .with_context(|| format!("{kind:?} {family:?} beside"))?;
    }
    conformance::row(
        "INVARIANT-1",
        "a process that moves itself to another cgroup, delegated or not, takes no strict socket out",
    )
}

/// The probe's words for a socket.
fn words(kind: Kind, family: Family) -> String {
    let kind = match kind {
        Kind::Tcp => "tcp",
        Kind::UdpConnected | Kind::UdpUnconnected => "udp",
        Kind::Ping => "ping",
        Kind::Raw => "raw",
    };
    let family = match family {
        Family::V4 => "4",
        Family::V6 => "6",
        Family::Mapped => "mapped",
    };
    format!("{kind} {family}")
}

#[test]
fn sockets_that_bind_without_a_hook_leave_by_no_other_uplink() -> Result<()> {
    let lab = Lab::new()?;
    let (_agent, app) = strict(&lab)?;
    for (family, address) in OTHER {
        for kind in [Kind::Ping, Kind::Raw] {
            for connects in [false, true] {
                let target = family.target(&lab);
                let to = SocketAddr::new(target, ECHO_PORT);
                let mut session = Probe::new(kind, family).start(&lab, &app)?;
                session.succeed("set timeout=200")?;
                session.perform(&format!("bind {address}"))?;
                if connects {
                    session.perform(&format!("connect {to}"))?;
                    session.perform("send stray")?;
                } else {
                    session.perform(&format!("send stray {to}"))?;
                }
                lab.assert_at_most_by("wlan0", target)
                    .with_context(|| format!("{kind:?} {family:?} {connects}"))?;
            }
        }
    }
    Ok(())
}

#[test]
fn an_address_that_need_not_be_the_hosts_cannot_be_bound() -> Result<()> {
    let lab = Lab::new()?;
    let (_agent, app) = strict(&lab)?;
    for (family, other) in OTHER {
        let nobodys = match family {
            Family::V4 => "192.0.2.77",
            _ => "2001:db8:77::77",
        };
        for address in [other, nobodys] {
            for option in ["set freebind=1", "set no-port=1"] {
                for kind in [Kind::Tcp, Kind::UdpConnected, Kind::UdpUnconnected] {
                    let target = family.target(&lab);
                    let mut session = Probe::new(kind, family).start(&lab, &app)?;
                    session.succeed(option)?;
                    let report = session.perform(&format!("bind {address}"))?;
                    let what = format!("{kind:?} {family:?} {option} {address}");
                    ensure!(report.errno_name == "EPERM", "{what}: {report:?}");
                    try_flow(&mut session, kind, target)?;
                    lab.assert_at_most_by("wlan0", target).context(what)?;
                }
            }
        }
    }
    Ok(())
}

#[test]
fn packet_sockets_from_before_the_policy_are_guarded() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    other_domains(&lab)?;
    let app = lab.cgroup().child("app")?;
    for (family, source) in OTHER {
        for device in ["eth0", "wwan0", "wlan0"] {
            lab.steer(&["policy", "unset", "app"])?;
            let mut session = Probe::named("packet", family).start(&lab, &app)?;
            session.succeed(&format!("set source={source}"))?;
            session.succeed(&format!("set device={device}"))?;
            let before = lab.target4();
            let before = if family == Family::V4 {
                before
            } else {
                lab.target6()
            };
            session.succeed(&format!(
                "post open {}",
                SocketAddr::new(before, DISCARD_PORT)
            ))?;
            lab.drain()?;
            ensure!(
                !lab.capture().about(before).is_empty(),
                "{device}: not sent"
            );
            lab.set_policy("app", &app, "wlan0", &["--strict"])?;
            let target = family.target(&lab);
            session.perform(&format!(
                "post closed {}",
                SocketAddr::new(target, DISCARD_PORT)
            ))?;
            lab.assert_silent(target)
                .with_context(|| format!("{family:?} {device}"))?;
        }
    }
    Ok(())
}
