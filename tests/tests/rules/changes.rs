//! What becomes of the flows of rules when domains come and go, and when rules do.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use steer_tests::load::{Load, Way};
use steer_tests::report::ECHO_PORT;
use steer_tests::{Family, Kind, Lab, LabCgroup, Probe, conformance, wait};

use super::bed::{self, Flow, LIVE, Live, Place, policy, to};

/// Ways of sending whose first packet can be decided.
const DECIDED: [Way; 5] = [
    Way::Connections,
    Way::Connection,
    Way::Connected,
    Way::Unconnected,
    Way::Datagrams,
];

/// All that [`Load`] sends to.
const TARGETS: &str = "destination = [\"198.18.0.0/16\", \"2001:db8:ffff::/64\"]";

/// An uplink with its addresses.
fn only(lab: &Lab, uplinks: &[&str]) -> Result<BTreeMap<String, BTreeSet<IpAddr>>> {
    let of = |name: &&str| {
        let own = lab.uplink(name)?.addresses();
        Ok(((*name).to_owned(), own.into_iter().collect()))
    };
    uplinks.iter().map(of).collect()
}

/// How many live flows of the policy were reset, and how many are kept where they are.
fn wait_reset(lab: &Lab, reset: usize) -> Result<()> {
    wait::until(&format!("{reset} live flows to be reset"), || {
        let sessions = bed::shown(lab, "app")?["sessions"].clone();
        Ok((sessions["reset"] == reset).then_some(()))
    })
}

/// Flows to a place are left to the host's own best way. What an unconnected socket is told with its first
/// datagram counts from the next one on (docs/kernel.md): that one goes as its socket was made to.
fn is_passed(lab: &Lab, app: &LabCgroup, place: Place) -> Result<()> {
    for (number, family) in (1..).zip(Family::ALL) {
        for kind in [Kind::Tcp, Kind::UdpConnected] {
            let to = place.at(family, number + if kind == Kind::Tcp { 0 } else { 4 });
            Flow::new(kind, family, to).leaves_by(lab, app, "eth0")?;
        }
        let to = place.at(family, number + 8);
        let mut session = Probe::new(Kind::UdpUnconnected, family).start(lab, app)?;
        for uplink in ["wlan0", "eth0", "eth0"] {
            lab.drain()?;
            let position = lab.position()?;
            session.succeed(&format!("send token {}", SocketAddr::new(to, ECHO_PORT)))?;
            Flow::new(Kind::UdpUnconnected, family, to).only_by(lab, uplink, position)?;
        }
    }
    Ok(())
}

#[test]
fn flows_of_a_rule_whose_domain_goes_follow_its_otherwise_and_others_stay() -> Result<()> {
    let lab = Lab::new()?;
    let app = lab.cgroup().child("app")?;
    let [blocked, passed, next, other] = [1, 2, 3, 4].map(Place);
    let rules = [
        to(blocked, "wwan0", "otherwise = \"block\""),
        to(passed, "wwan0", "otherwise = \"pass\""),
        to(next, "wwan0", "otherwise = \"next\""),
        to(other, "eth0", ""),
    ];
    lab.configure(&policy("app", &app, "use = \"wlan0\"", &rules))?;
    let _agent = lab.start_agent()?;
    let mut ending = Vec::new();
    for place in [blocked, passed, next] {
        bed::flows_leave_by(&lab, &app, Some(place), "wwan0")?;
        ending.extend(bed::open_all(&lab, &app, place, "wwan0")?);
    }
    let mut staying = bed::open_all(&lab, &app, other, "eth0")?;
    for live in &mut ending {
        live.session.ask("wait")?;
    }
    lab.carrier_down("wwan0")?;
    for live in &mut ending {
        live.has_ended()?;
    }
    wait_reset(&lab, ending.len())?;
    bed::flows_are_refused(&lab, &app, blocked)?;
    is_passed(&lab, &app, passed)?;
    bed::flows_leave_by(&lab, &app, Some(next), "wlan0")?;
    bed::flows_leave_by(&lab, &app, Some(other), "eth0")?;
    bed::flows_leave_by(&lab, &app, None, "wlan0")?;
    lab.carrier_up("wwan0")?;
    bed::wait_rule(&lab, ("app", "app", 1), "wwan0")?;
    for place in [blocked, passed, next] {
        bed::flows_leave_by(&lab, &app, Some(place), "wwan0")?;
    }
    for live in &mut staying {
        live.goes_on_by("eth0")?;
    }
    wait_reset(&lab, ending.len())
}

#[test]
fn flows_of_a_strict_rule_are_silent_while_its_domain_is_gone() -> Result<()> {
    let lab = Lab::builder().rp_filter(1).build()?;
    let app = lab.cgroup().child("app")?;
    let rule = format!("{TARGETS}\nuse = \"wwan0\"");
    let lines = "use = [\"wlan0\", \"eth0\"]\nstrict = true";
    lab.configure(&policy("app", &app, lines, &[rule]))?;
    let _agent = lab.start_agent()?;
    let load = Load::start(&lab, &app, &DECIDED)?;
    let begun = lab.position()?;
    load.wait_for_ways(&lab, "wwan0", begun, &DECIDED)?;
    for round in 0..3 {
        lab.carrier_down("wwan0")?;
        bed::wait_rule(&lab, ("app", "app", 1), "block")?;
        lab.drain()?;
        let silent = lab.position()?;
        // The policy's own domains are there all the while.
        Flow::new(Kind::Tcp, Family::V4, Place(1).at(Family::V4, round))
            .leaves_by(&lab, &app, "wlan0")?;
        Flow::new(Kind::UdpUnconnected, Family::V4, lab.target4()).is_refused(
            &lab,
            &app,
            "ENETUNREACH",
        )?;
        lab.drain()?;
        let end = lab.position()?;
        load.assert_only_by(&lab, silent..end, &BTreeMap::new())
            .context("while its domain is gone")?;
        lab.carrier_up("wwan0")?;
        bed::wait_rule(&lab, ("app", "app", 1), "wwan0")?;
        let back = lab.position()?;
        load.wait_for_ways(&lab, "wwan0", back, &DECIDED)?;
    }
    lab.drain()?;
    load.assert_only_by(&lab, 0.., &only(&lab, &["wwan0"])?)?;
    conformance::row(
        "INVARIANT-1",
        "no packet of a strict policy's rule by another uplink while its domain goes and comes, under traffic",
    )
}

#[test]
fn rules_that_change_under_traffic_leak_nothing_of_a_strict_policy() -> Result<()> {
    let lab = Lab::builder().rp_filter(1).build()?;
    let app = lab.cgroup().child("app")?;
    let with = |uplink: &str| {
        let lines = "use = \"eth0\"\nstrict = true";
        let rule = format!("{TARGETS}\nprotocol = [\"tcp\", \"udp\"]\nuse = \"{uplink}\"");
        policy("app", &app, lines, &[rule])
    };
    lab.configure(&with("wlan0"))?;
    let _agent = lab.start_agent()?;
    let load = Load::start(&lab, &app, &DECIDED)?;
    let (mut now, mut seen) = ("wlan0", 0);
    for uplink in ["wwan0", "wlan0", "wwan0", "wlan0", "wwan0"] {
        lab.drain()?;
        let before = lab.position()?;
        load.assert_only_by(&lab, seen..before, &only(&lab, &[now])?)?;
        bed::reload(&lab, &with(uplink))?;
        lab.drain()?;
        let after = lab.position()?;
        load.assert_only_by(&lab, before..after, &only(&lab, &[now, uplink])?)?;
        load.wait_for_ways(&lab, uplink, after, &DECIDED)?;
        (now, seen) = (uplink, after);
    }
    // Without any rule they are the policy's own.
    bed::reload(
        &lab,
        &policy("app", &app, "use = \"eth0\"\nstrict = true", &[]),
    )?;
    lab.drain()?;
    let end = lab.position()?;
    load.assert_only_by(&lab, seen..end, &only(&lab, &[now, "eth0"])?)?;
    load.wait_for_ways(&lab, "eth0", end, &DECIDED)?;
    lab.drain()?;
    load.assert_only_by(&lab, end.., &only(&lab, &["eth0"])?)?;
    conformance::row(
        "INVARIANT-1",
        "no packet of a strict policy by another uplink than its rule's while rules change, under traffic",
    )
}

#[test]
fn live_flows_are_kept_or_end_as_the_policy_says_when_their_rule_changes() -> Result<()> {
    for wish in ["keep", "reset"] {
        let lab = Lab::new()?;
        let app = lab.cgroup().child("app")?;
        let [changed, gone, same] = [1, 2, 3].map(Place);
        let lines = format!("use = \"wlan0\"\nsessions.on-better = \"{wish}\"");
        let before = [
            to(changed, "wwan0", ""),
            to(gone, "wwan0", ""),
            to(same, "wwan0", ""),
        ];
        lab.configure(&policy("app", &app, &lines, &before))?;
        let _agent = lab.start_agent()?;
        let mut touched = bed::open_all(&lab, &app, changed, "wwan0")?;
        touched.extend(bed::open_all(&lab, &app, gone, "wwan0")?);
        let mut untouched = bed::open_all(&lab, &app, same, "wwan0")?;
        untouched.push(Live::open(&lab, &app, LIVE[0], lab.target4(), "wlan0")?);
        if wish == "reset" {
            for live in &mut touched {
                live.session.ask("wait")?;
            }
        }
        // One goes by another domain, one is gone, and one has another place in the row.
        let after = [to(same, "wwan0", ""), to(changed, "eth0", "")];
        bed::reload(&lab, &policy("app", &app, &lines, &after))?;
        // In force with the answer.
        bed::flows_leave_by(&lab, &app, Some(changed), "eth0")?;
        bed::flows_leave_by(&lab, &app, Some(gone), "wlan0")?;
        bed::flows_leave_by(&lab, &app, Some(same), "wwan0")?;
        let sessions = bed::shown(&lab, "app")?["sessions"].clone();
        let count = |key: &str| sessions[key].as_u64().map(usize::try_from);
        let expected = match wish {
            "keep" => (touched.len(), 0),
            _ => (0, touched.len()),
        };
        let counted = (count("kept"), count("reset"));
        ensure!(
            counted == (Some(Ok(expected.0)), Some(Ok(expected.1))),
            "{wish}: {sessions:#}"
        );
        for live in &mut touched {
            match wish {
                "keep" => live.goes_on_by("wwan0")?,
                _ => live.has_ended()?,
            }
        }
        let (last, rest) = untouched.split_last_mut().context("a flow")?;
        last.goes_on_by("wlan0")?;
        for live in rest {
            live.goes_on_by("wwan0")?;
        }
    }
    Ok(())
}
