//! Beside packet programs and packet filters of others: what is steered goes right, strict does not leak,
//! the others see their packets, and they are there when steer has gone.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use steer_tests::foreign::{ForeignProgram, Place, Side, Verdict, nft};
use steer_tests::report::{DISCARD_PORT, ECHO_PORT};
use steer_tests::{Agent, Family, Kind, Lab, LabCgroup, Probe, Session, conformance, ip, wait};

/// What others count: steered flows go there.
const COUNTED: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 40);

/// An agent, and what needs its packet programs at both sides: a strict application, one whose flow is
/// repaired, and a strong host model. The other uplinks have tables, too.
struct Steered<'lab> {
    agent: Agent<'lab>,
    app: LabCgroup,
    strict: LabCgroup,
    /// A datagram socket that was connected before its policy came.
    repaired: Session,
}

fn steered(lab: &Lab) -> Result<Steered<'_>> {
    let older = lab.cgroup().child("older")?;
    let mut repaired = Probe::new(Kind::UdpConnected, Family::V4).start(lab, &older)?;
    let to = SocketAddr::new(lab.target4(), ECHO_PORT);
    repaired.succeed(&format!("connect {to}"))?;
    let cgroup = older.name();
    lab.configure_agent(
        "host-model = \"strong\"",
        &format!("[policy.older]\nmatch.cgroup = \"{cgroup}\"\nuse = [\"wlan0\"]\nrepair = true\n"),
    )?;
    let agent = lab.start_agent()?;
    let (app, strict) = (lab.cgroup().child("app")?, lab.cgroup().child("strict")?);
    for uplink in ["eth0", "wwan0"] {
        lab.set_policy(uplink, &lab.cgroup().child(uplink)?, uplink, &[])?;
    }
    lab.set_policy("app", &app, "wlan0", &[])?;
    lab.set_policy("strict", &strict, "wlan0", &["--strict"])?;
    ip(
        lab.peer("wlan0")?,
        &["route", "replace", "10.1.0.2/32", "via", "10.2.0.2"],
    )?;
    Ok(Steered {
        agent,
        app,
        strict,
        repaired,
    })
}

/// Flows of every kind go right, also to the address that others count; nothing strict gets out, what is
/// repaired finds back, and nothing comes in by another interface's address.
fn all_is_right(lab: &Lab, steered: &mut Steered<'_>, what: &str) -> Result<()> {
    for cgroup in [&steered.app, &steered.strict] {
        lab.matrix_leaves_by(cgroup, "wlan0")
            .with_context(|| what.to_owned())?;
        for kind in Kind::ALL {
            Probe::flow(kind, Family::V4, COUNTED.into())
                .succeed(lab, cgroup)
                .with_context(|| format!("{what}: {kind:?}"))?;
        }
    }
    lab.assert_only_by("wlan0", COUNTED.into())
        .with_context(|| what.to_owned())?;
    let report = steered.repaired.succeed("send repaired");
    let report = report.with_context(|| format!("{what}: a repaired flow"))?;
    ensure!(
        report.uplink.as_deref() == Some("wlan0"),
        "{what}: not repaired: {report:?}"
    );
    ensure!(
        answers(lab, "10.2.0.2")?,
        "{what}: no answer at its own address"
    );
    ensure!(!answers(lab, "10.1.0.2")?, "{what}: the host is not strong");
    nothing_leaks(lab, &steered.strict, what)
}

/// Whether the host answers the peer behind `wlan0` that asks this address.
fn answers(lab: &Lab, address: &str) -> Result<bool> {
    let mut ping = Probe::new(Kind::Raw, Family::V4).start_in(lab.peer("wlan0")?)?;
    ping.succeed("set timeout=300")?;
    ping.succeed("bind 10.2.0.1")?;
    Ok(ping.perform(&format!("send echo {address}"))?.ok)
}

/// What only the packet programs can stop.
fn attack(lab: &Lab, strict: &LabCgroup) -> Result<Vec<IpAddr>> {
    let mut targets = Vec::new();
    for kind in ["header", "packet"] {
        let target = lab.target4();
        Probe::named(kind, Family::V4)
            .then("set source=10.1.0.2")
            .then("set device=eth0")
            .then(&format!("post token {target}:{DISCARD_PORT}"))
            .run(lab, strict)?;
        targets.push(target);
    }
    let target = lab.target4();
    let to = SocketAddr::new(target, DISCARD_PORT);
    Probe::new(Kind::UdpUnconnected, Family::V4)
        .then(&format!("post token {to} pktinfo=eth0"))
        .run(lab, strict)?;
    targets.push(target);
    lab.drain()?;
    Ok(targets)
}

fn leaked(lab: &Lab, targets: &[IpAddr]) -> usize {
    let away = |target: &&IpAddr| {
        let packets = lab.capture().about(**target);
        packets.iter().any(|p| p.is_ip() && p.uplink != "wlan0")
    };
    targets.iter().filter(away).count()
}

fn nothing_leaks(lab: &Lab, strict: &LabCgroup, what: &str) -> Result<()> {
    let targets = attack(lab, strict)?;
    let leaked = leaked(lab, &targets);
    ensure!(leaked == 0, "{what}: {leaked} of {} leaked", targets.len());
    Ok(())
}

/// One program of others that counts, at both sides of every uplink, each side by itself.
struct Foreign([ForeignProgram; 2]);

impl Foreign {
    fn load(verdict: Verdict) -> Result<Self> {
        let load = || ForeignProgram::load(COUNTED, verdict);
        Ok(Self([load()?, load()?]))
    }

    fn attach(&mut self, lab: &Lab, place: Place) -> Result<()> {
        for (program, side) in self.0.iter_mut().zip(Side::BOTH) {
            for uplink in lab.uplink_names() {
                program.attach(lab, uplink, side, place)?;
            }
        }
        Ok(())
    }

    fn attach_filters(&self, lab: &Lab) -> Result<()> {
        for (program, side) in self.0.iter().zip(Side::BOTH) {
            for uplink in lab.uplink_names() {
                program.attach_filter(lab, uplink, side)?;
            }
        }
        Ok(())
    }

    /// Both sides have seen more than the last time.
    fn see_more(&self, seen: &mut [u64; 2], what: &str) -> Result<()> {
        for ((program, side), seen) in self.0.iter().zip(Side::BOTH).zip(seen) {
            let now = program.seen()?;
            ensure!(now > *seen, "{what}: nothing seen at {}", side.name());
            *seen = now;
        }
        Ok(())
    }
}

/// Detaches steer, and finds the programs of others where they were.
fn they_remain(
    lab: &Lab,
    mut steered: Steered<'_>,
    foreign: &[&Foreign],
    what: &str,
) -> Result<()> {
    steered.agent.stop()?;
    lab.steer(&["detach"])?.success()?;
    let cgroup = lab.cgroup().child("nobody")?;
    let mut seen = Vec::new();
    for foreign in foreign {
        seen.push([foreign.0[0].seen()?, foreign.0[1].seen()?]);
    }
    Probe::flow(Kind::UdpConnected, Family::V4, COUNTED.into()).succeed(lab, &cgroup)?;
    for (foreign, seen) in foreign.iter().zip(&mut seen) {
        foreign.see_more(seen, &format!("{what}, after detach"))?;
    }
    Ok(())
}

#[test]
fn programs_that_were_there_first_see_their_packets_and_hide_nothing() -> Result<()> {
    for verdict in [Verdict::Next, Verdict::End] {
        let lab = Lab::new()?;
        let mut head = Foreign::load(Verdict::Next)?;
        // The last one may end the chain: steer's run before it.
        let mut tail = Foreign::load(verdict)?;
        head.attach(&lab, Place::Head)?;
        tail.attach(&lab, Place::Tail)?;
        let mut steered = steered(&lab)?;
        let what = format!("others at head and tail, {verdict:?}");
        all_is_right(&lab, &mut steered, &what)?;
        for foreign in [&head, &tail] {
            foreign.see_more(&mut [0; 2], &what)?;
        }
        they_remain(&lab, steered, &[&head, &tail], &what)?;
    }
    conformance::row(
        "LIN-1",
        "beside packet programs of others, before and after steer's own",
    )
}

#[test]
fn a_program_that_comes_later_and_goes_on_hides_nothing() -> Result<()> {
    let lab = Lab::new()?;
    let mut steered = steered(&lab)?;
    let (mut head, mut tail) = (Foreign::load(Verdict::Next)?, Foreign::load(Verdict::Next)?);
    head.attach(&lab, Place::Head)?;
    tail.attach(&lab, Place::Tail)?;
    all_is_right(&lab, &mut steered, "others that came later")?;
    for foreign in [&head, &tail] {
        foreign.see_more(&mut [0; 2], "others that came later")?;
    }
    they_remain(&lab, steered, &[&head, &tail], "others that came later")
}

#[test]
fn a_filter_that_accepts_is_reached_and_hides_nothing() -> Result<()> {
    for before in [true, false] {
        let lab = Lab::new()?;
        let foreign = Foreign::load(Verdict::End)?;
        if before {
            foreign.attach_filters(&lab)?;
        }
        let mut steered = steered(&lab)?;
        if !before {
            foreign.attach_filters(&lab)?;
        }
        let what = format!("a clsact filter, before steer: {before}");
        all_is_right(&lab, &mut steered, &what)?;
        foreign.see_more(&mut [0; 2], &what)?;
        they_remain(&lab, steered, &[&foreign], &what)?;
    }
    Ok(())
}

#[test]
fn a_program_that_ends_the_chain_before_the_guard_is_named_and_overtaken() -> Result<()> {
    let lab = Lab::new()?;
    let mut steered = steered(&lab)?;
    let mut foreign = Foreign::load(Verdict::End)?;
    foreign.attach(&lab, Place::Head)?;
    ensure!(
        leaked(&lab, &attack(&lab, &steered.strict)?) > 0,
        "it should hide the guard: this scenario shows nothing"
    );
    let findings = lab.steer(&["doctor", "--json"])?;
    ensure!(
        findings.stdout.contains("\"B02\""),
        "doctor does not name it: {findings:#?}"
    );
    wait::until_within(LOOK, "all of steer's to be first again", || {
        let first = steered.agent.log().matches("is the first again").count();
        Ok((first == 3 * lab.uplink_names().len()).then_some(()))
    })?;
    ensure!(
        leaked(&lab, &attack(&lab, &steered.strict)?) == 0,
        "the guard should be first again"
    );
    all_is_right(&lab, &mut steered, "others that were overtaken")?;
    foreign.see_more(&mut [0; 2], "others that were overtaken")?;
    they_remain(&lab, steered, &[&foreign], "others that were overtaken")
}

/// The agent looks after everything every half minute, and loads a program again that it puts first.
const LOOK: std::time::Duration = std::time::Duration::from_secs(90);

#[test]
fn packet_filters_that_set_other_bits_of_the_mark_keep_them_and_steers() -> Result<()> {
    let lab = Lab::new()?;
    nft(
        &lab,
        "table inet others {
            chain out {
                type route hook output priority mangle; policy accept;
                meta mark set meta mark | 0x1 counter
            }
            chain pre {
                type filter hook prerouting priority mangle; policy accept;
                meta mark set meta mark | 0x4 counter
            }
            chain post {
                type filter hook postrouting priority srcnat; policy accept;
                meta mark & 0x1 == 0x1 counter
                meta mark & 0x77000000 != 0 meta mark & 0x1 == 0x1 ip daddr 198.51.100.40 counter
                meta mark & 0x1 == 0x1 meta mark set meta mark | 0x2
            }
        }\n",
    )?;
    let mut steered = steered(&lab)?;
    all_is_right(&lab, &mut steered, "nft rules on other bits")?;
    let list = |lab: &Lab| nft(lab, "list table inet others\n");
    let counted = list(&lab)?;
    ensure!(
        !counted.contains("packets 0 "),
        "both kinds of bits should be on packets: {counted}"
    );
    steered.agent.stop()?;
    lab.steer(&["detach"])?.success()?;
    let left = list(&lab)?;
    ensure!(
        left.contains("meta mark set"),
        "the rules have gone: {left}"
    );
    Ok(())
}
