//! Flows that are spread over several domains (`share`, `weight`), from the file to the wire.

mod shares {
    mod rebind;
}

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use steer_tests::report::ECHO_PORT;
use steer_tests::{Direction, Family, Kind, Lab, LabCgroup, Probe, Session, conformance, wait};

/// Flows whose spreading is looked at.
const MANY: usize = 300;
/// Ways to begin a flow, and the probe's word for one with a new socket each time.
const KINDS: [(Kind, &str); 3] = [
    (Kind::Tcp, "churn"),
    (Kind::UdpConnected, "churn"),
    (Kind::UdpUnconnected, "sprout"),
];
const UPLINKS: [&str; 3] = ["eth0", "wlan0", "wwan0"];

/// Domains of these weights, in a group that the policy for `app` shares.
fn sharing(app: &LabCgroup, weights: [Option<u32>; 3], lines: &str) -> String {
    let mut text = String::new();
    let mut members = Vec::new();
    for (uplink, weight) in UPLINKS.into_iter().zip(weights) {
        let Some(weight) = weight else { continue };
        text.push_str(&format!("[domain.{uplink}]\nweight = {weight}\n"));
        members.push(uplink);
    }
    text.push_str(&format!("[group.all]\ndomains = {members:?}\n"));
    let cgroup = app.name();
    text.push_str(&format!(
        "[policy.app]\nmatch.cgroup = \"{cgroup}\"\nuse = \"all\"\n{lines}\n"
    ));
    text
}

fn reload(lab: &Lab, text: &str) -> Result<()> {
    lab.configure(text)?;
    lab.steer(&["reload"])?.success().map(drop)
}

fn show(lab: &Lab) -> Result<Value> {
    lab.steer(&["policy", "show", "app", "--json"])?.json()
}

/// Waits until the flows of `app` are spread over these domains, with these weights.
fn wait_members(lab: &Lab, members: &[(&str, u32)]) -> Result<()> {
    let wanted: Vec<Value> = members
        .iter()
        .map(|(domain, weight)| json!({ "domain": domain, "weight": weight }))
        .collect();
    wait::until(&format!("members {members:?}"), || {
        let shown = show(lab)?;
        let decision = &shown["decision"];
        let alone = members.len() == 1 && decision["domain"] == members[0].0;
        let told = decision["members"].as_array().cloned().unwrap_or_default();
        Ok((told == wanted || alone && told.len() <= 1).then_some(()))
    })
}

/// Ports of the flows to `target` that began by each uplink since `position`. Whatever was sent there bears
/// the uplink's address.
fn began(lab: &Lab, position: usize, target: IpAddr) -> Result<BTreeMap<String, BTreeSet<u16>>> {
    let mut began: BTreeMap<String, BTreeSet<u16>> = BTreeMap::new();
    let sent = lab.capture().since(position, |p| {
        p.direction == Direction::FromHost && p.is_ip() && p.destination == Some(target)
    });
    for packet in sent {
        let own = lab.uplink(&packet.uplink)?.addresses();
        ensure!(
            packet.source.is_some_and(|source| own.contains(&source)),
            "{packet}"
        );
        if let Some(port) = packet.source_port {
            began.entry(packet.uplink).or_default().insert(port);
        }
    }
    Ok(began)
}

/// Many flows, one after the other, by new sockets: how many left by each uplink. None fails, no packet bears
/// another's address, and no flow is on two uplinks.
fn spread(
    lab: &Lab,
    app: &LabCgroup,
    (kind, operation): (Kind, &str),
    family: Family,
) -> Result<BTreeMap<String, usize>> {
    lab.drain()?;
    let position = lab.position()?;
    let target = family.target(lab);
    let mut session = Probe::new(kind, family).start(lab, app)?;
    session.succeed("set pause=0")?;
    session.ask(&format!(
        "{operation} token {}",
        SocketAddr::new(target, ECHO_PORT)
    ))?;
    let last = format!("token-{MANY};");
    lab.capture().wait_for("the last of many flows", |p| {
        p.is_about(target) && p.carries(&last)
    })?;
    session.ask("close")?;
    let report = session.read()?;
    ensure!(report.failed == 0, "{kind:?} {family:?}: {report:?}");
    lab.drain()?;
    let began = began(lab, position, target)?;
    if kind == Kind::Tcp {
        // Ports are not taken again while a connection is remembered, so this is each connection's way.
        let flows: usize = began.values().map(BTreeSet::len).sum();
        ensure!(
            flows as u64 == report.tried,
            "{report:?}, but {flows} ways of flows"
        );
    }
    Ok(began
        .into_iter()
        .map(|(uplink, ports)| (uplink, ports.len()))
        .collect())
}

/// Flows of every kind are spread by the weights, over all members and nothing else.
fn is_spread(lab: &Lab, app: &LabCgroup, weights: [Option<u32>; 3]) -> Result<()> {
    let sum: u32 = weights.into_iter().flatten().sum();
    for way in KINDS {
        for family in Family::ALL {
            let found = spread(lab, app, way, family)?;
            let all: usize = found.values().sum();
            for (uplink, weight) in UPLINKS.into_iter().zip(weights) {
                let count = found.get(uplink).copied().unwrap_or_default();
                let expected = all * weight.unwrap_or(0) as usize / sum as usize;
                // Six standard deviations of what is drawn, and the slots are drawn, too.
                let room = if weight.unwrap_or(0) == 0 { 0 } else { all / 5 };
                ensure!(
                    count.abs_diff(expected) <= room && (count > 0) == (expected > 0),
                    "{way:?} {family:?}: {found:?} by weights {weights:?}"
                );
            }
        }
    }
    Ok(())
}

#[test]
fn flows_are_spread_by_weight_and_each_has_its_domains_source() -> Result<()> {
    let lab = Lab::builder().rp_filter(1).build()?;
    let app = lab.cgroup().child("app")?;
    let _agent = lab.start_agent()?;
    for (weights, lines) in [
        ([None, Some(1), Some(1)], ""),
        ([None, Some(3), Some(1)], "strict = true"),
        ([Some(1), Some(1), Some(2)], "strict = true"),
        ([Some(2), Some(1), Some(1)], "repair = true"),
    ] {
        reload(
            &lab,
            &sharing(&app, weights, &format!("share = \"flow\"\n{lines}")),
        )?;
        is_spread(&lab, &app, weights).with_context(|| lines.to_owned())?;
    }
    conformance::row(
        "WIN-2",
        "flows are shared over two and three domains by weight, by TCP, connected and unconnected UDP, IPv4, \
         IPv6 and mapped, strict too; each with its domain's source (RFC 4311)",
    )
}

#[test]
fn without_a_share_all_flows_leave_by_the_first() -> Result<()> {
    let lab = Lab::new()?;
    let app = lab.cgroup().child("app")?;
    let text = sharing(&app, [None, Some(1), Some(1)], "");
    lab.configure(&text)?;
    let _agent = lab.start_agent()?;
    let found = spread(&lab, &app, KINDS[0], Family::V4)?;
    ensure!(found.keys().eq(["wlan0"]), "{found:?}");
    Ok(())
}

#[test]
fn all_flows_to_one_destination_are_on_the_member_that_explain_names() -> Result<()> {
    const DESTINATIONS: usize = 12;
    let lab = Lab::new()?;
    let app = lab.cgroup().child("app")?;
    let lines = "share = \"destination\"\nstrict = true";
    lab.configure(&sharing(&app, [Some(1), Some(1), Some(1)], lines))?;
    let _agent = lab.start_agent()?;
    for family in Family::ALL {
        let mut used = BTreeSet::new();
        for _ in 0..DESTINATIONS {
            let target = family.target(&lab);
            let args = [
                "explain",
                "--json",
                "--cgroup",
                app.name(),
                &target.to_string(),
            ];
            let explained = lab.steer(&args)?.json()?;
            let uplink = explained["flow"]["domain"].as_str().context("a domain")?;
            let uplink = uplink.to_owned();
            for kind in [
                Kind::Tcp,
                Kind::UdpConnected,
                Kind::UdpUnconnected,
                Kind::Tcp,
            ] {
                Probe::flow(kind, family, target).succeed(&lab, &app)?;
            }
            lab.assert_only_by(&uplink, target)
                .with_context(|| format!("{explained:#}"))?;
            used.insert(uplink);
        }
        ensure!(used.len() == 3, "{family:?}: {used:?}");
    }
    conformance::row(
        "WIN-2",
        "flows are shared by destination: all to one address by one domain, as `steer explain` says",
    )
}

/// A flow that lives, and the uplink that it leaves by.
struct Live {
    session: Session,
    uplink: String,
}

/// Live flows of these kinds, of which each of these uplinks has at least two.
fn open_live(lab: &Lab, app: &LabCgroup, kinds: &[Kind], uplinks: &[&str]) -> Result<Vec<Live>> {
    let mut flows: Vec<Live> = Vec::new();
    let ways = kinds
        .iter()
        .flat_map(|kind| Family::ALL.map(|family| (*kind, family)));
    for (kind, family) in ways.cycle().take(60) {
        let to = SocketAddr::new(family.target(lab), ECHO_PORT);
        let mut session = Probe::new(kind, family).start(lab, app)?;
        session.succeed("set timeout=20000")?;
        session.succeed(&format!("connect {to}"))?;
        let uplink = session.succeed("send first")?.uplink.context("an answer")?;
        flows.push(Live { session, uplink });
        let of = |uplink: &&str| flows.iter().filter(|flow| flow.uplink == **uplink).count();
        if flows.len() >= 12 && uplinks.iter().all(|uplink| of(uplink) >= 2) {
            return Ok(flows);
        }
    }
    anyhow::bail!("flows of which not all of {uplinks:?} have two")
}

#[test]
fn flows_of_a_member_that_goes_end_others_stay_and_new_ones_leave_by_the_rest() -> Result<()> {
    // The kernel does not list what UDP sockets remember (`inet_sk_diag_fill`), and without that the agent
    // takes none of a strict share for its own.
    let both = &[Kind::Tcp, Kind::UdpConnected][..];
    for (lines, kinds) in [
        ("share = \"flow\"", both),
        ("share = \"flow\"\nstrict = true", &both[..1]),
    ] {
        let lab = Lab::new()?;
        let app = lab.cgroup().child("app")?;
        let weights = [Some(1), Some(1), Some(1)];
        lab.configure(&sharing(&app, weights, lines))?;
        let _agent = lab.start_agent()?;
        let flows = open_live(&lab, &app, kinds, &UPLINKS)?;
        let (mut lost, mut rest): (Vec<Live>, Vec<Live>) =
            flows.into_iter().partition(|flow| flow.uplink == "wlan0");
        for flow in &mut lost {
            flow.session.ask("wait")?;
        }
        lab.carrier_down("wlan0")?;
        for flow in &mut lost {
            let told = flow.session.read()?;
            ensure!(told.errno_name == "ECONNABORTED", "{told:?}");
        }
        wait_members(&lab, &[("eth0", 1), ("wwan0", 1)])?;
        is_spread(&lab, &app, [Some(1), None, Some(1)]).context("without wlan0")?;
        let stay = |rest: &mut [Live]| {
            rest.iter_mut().try_for_each(|flow| {
                let report = flow.session.perform("send on")?;
                ensure!(
                    report.ok && report.uplink.as_ref() == Some(&flow.uplink),
                    "{lines}: by {}: {report:?}",
                    flow.uplink
                );
                Ok(())
            })
        };
        stay(&mut rest).context("without wlan0")?;
        lab.carrier_up("wlan0")?;
        wait_members(&lab, &[("eth0", 1), ("wlan0", 1), ("wwan0", 1)])?;
        is_spread(&lab, &app, weights).context("all back")?;
        stay(&mut rest).context("all back")?;
        let sessions = show(&lab)?["sessions"].clone();
        ensure!(
            sessions["reset"] == lost.len() && sessions["kept"] == 0 && sessions["failed"] == 0,
            "{} lost: {sessions:#}",
            lost.len()
        );
    }
    conformance::row(
        "WIN-2",
        "a member that goes ends its own flows alone; new ones are shared by the others, and by all when it is back",
    )
}

#[test]
fn a_member_without_weight_has_flows_only_when_no_other_is_left() -> Result<()> {
    let lab = Lab::new()?;
    let app = lab.cgroup().child("app")?;
    let weights = [Some(1), Some(1), Some(0)];
    lab.configure(&sharing(&app, weights, "share = \"flow\""))?;
    let _agent = lab.start_agent()?;
    is_spread(&lab, &app, weights)?;
    lab.carrier_down("eth0")?;
    wait_members(&lab, &[("wlan0", 1)])?;
    is_spread(&lab, &app, [None, Some(1), Some(0)])?;
    lab.carrier_down("wlan0")?;
    lab.wait_decision("app", "domain", "wwan0")?;
    is_spread(&lab, &app, [None, None, Some(1)])?;
    lab.carrier_up("eth0")?;
    wait_members(&lab, &[("eth0", 1)])?;
    is_spread(&lab, &app, [Some(1), None, Some(0)])
}

#[test]
fn it_is_said_over_which_domains_flows_are_spread() -> Result<()> {
    let lab = Lab::new()?;
    let app = lab.cgroup().child("app")?;
    let weights = [None, Some(3), Some(1)];
    let rule = "[[policy.app.rule]]\nprotocol = \"udp\"\nuse = [\"all\", \"eth0\"]";
    lab.configure(&sharing(
        &app,
        weights,
        &format!("share = \"flow\"\n{rule}"),
    ))?;
    let _agent = lab.start_agent()?;
    let members = json!([
        { "domain": "wlan0", "weight": 3 },
        { "domain": "wwan0", "weight": 1 },
    ]);
    let shown = show(&lab)?;
    ensure!(
        shown["share"] == "flow"
            && shown["decision"]["members"] == members
            && shown["rule_decisions"][0]["members"] == members,
        "{shown:#}"
    );
    let text = lab.steer(&["policy", "show", "app"])?;
    ensure!(text.success()?.contains("steer by wlan0+wwan0"), "{text:?}");
    let text = lab.steer(&["status"])?;
    ensure!(text.success()?.contains("wlan0+wwan0"), "{text:?}");
    let args = ["explain", "--json", "--cgroup", app.name(), "198.18.0.1"];
    let explained = lab.steer(&args)?.json()?;
    let uplink = explained["flow"]["interface"].as_str();
    ensure!(
        explained["warnings"] == json!([])
            && matches!(uplink, Some("wlan0" | "wwan0"))
            && explained["flow"]["reason"]
                .as_str()
                .is_some_and(|reason| reason.contains("wlan0") && reason.contains("wwan0")),
        "{explained:#}"
    );
    Ok(())
}
