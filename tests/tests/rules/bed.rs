//! What scenarios of rules share: a policy with rules, destinations that rules name, and flows.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use steer_tests::report::ECHO_PORT;
use steer_tests::{Direction, Family, Kind, Lab, LabCgroup, Probe, Session, wait};

/// Ways to begin a flow in which a rule can decide before its first packet.
pub(crate) const KINDS: [Kind; 3] = [Kind::Tcp, Kind::UdpConnected, Kind::UdpUnconnected];

/// Places that rules name; the servers of every uplink are there. [`Lab::target4`] and [`Lab::target6`] are
/// outside of all.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place(pub(crate) u8);

impl Place {
    /// The item `destination` of a rule.
    pub(crate) fn named(self) -> String {
        let number = self.0;
        format!(
            "destination = [\"198.51.100.{}/28\", \"2001:db8:ffff:0:{number:x}::/80\"]",
            u16::from(number) * 16
        )
    }

    /// One of its addresses, of sixteen.
    pub(crate) fn at(self, family: Family, number: u8) -> IpAddr {
        match family {
            Family::V6 => {
                let place = u16::from(self.0);
                Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, place, 0, 0, number.into()).into()
            }
            Family::V4 | Family::Mapped => {
                Ipv4Addr::new(198, 51, 100, self.0 * 16 + number % 16).into()
            }
        }
    }
}

/// `[policy.app]` for `cgroup` with these lines, and rules after it.
pub(crate) fn policy(name: &str, cgroup: &LabCgroup, lines: &str, rules: &[String]) -> String {
    let mut text = format!(
        "[policy.{name}]\nmatch.cgroup = \"{}\"\n{lines}\n",
        cgroup.name()
    );
    for rule in rules {
        text.push_str(&format!("[[policy.{name}.rule]]\n{rule}\n"));
    }
    text
}

/// A rule that has flows to a place go by `uplink`, and perhaps says what else.
pub(crate) fn to(place: Place, uplink: &str, more: &str) -> String {
    format!("{}\nuse = \"{uplink}\"\n{more}", place.named())
}

/// A flow by a new socket, and what the socket is told before it begins.
#[derive(Clone, Debug)]
pub(crate) struct Flow {
    pub(crate) kind: Kind,
    pub(crate) family: Family,
    pub(crate) to: IpAddr,
    pub(crate) before: Vec<String>,
}

impl Flow {
    pub(crate) fn new(kind: Kind, family: Family, to: IpAddr) -> Self {
        Self {
            kind,
            family,
            to,
            before: Vec::new(),
        }
    }

    fn probe(&self) -> Probe {
        let told = self.before.iter().rev();
        told.fold(
            Probe::flow(self.kind, self.family, self.to),
            |probe, one| probe.first(one),
        )
    }

    /// It succeeds, and from its first packet on all of it crosses `uplink` alone, with its address.
    pub(crate) fn leaves_by(&self, lab: &Lab, cgroup: &LabCgroup, uplink: &str) -> Result<()> {
        let flow = || {
            lab.drain()?;
            let position = lab.position()?;
            let report = self.probe().succeed(lab, cgroup)?;
            ensure!(
                !self.kind.is_answered_by_server() || report.uplink.as_deref() == Some(uplink),
                "another answered: {report:?}"
            );
            self.only_by(lab, uplink, position)
        };
        flow().with_context(|| format!("{self:?} should leave by {uplink}"))
    }

    /// What is about it since `position` crossed `uplink` alone, with its address.
    pub(crate) fn only_by(&self, lab: &Lab, uplink: &str, position: usize) -> Result<()> {
        lab.drain()?;
        let own = lab.uplink(uplink)?.addresses();
        let about = lab.capture().since(position, |p| p.is_about(self.to));
        let is_sent = |p: &steer_tests::Packet| p.direction == Direction::FromHost && p.is_ip();
        ensure!(about.iter().any(is_sent), "nothing was sent: {about:?}");
        let is_right = |p: &steer_tests::Packet| {
            p.uplink == uplink
                && (!is_sent(p) || p.source.is_some_and(|source| own.contains(&source)))
        };
        let strays: Vec<_> = about.iter().filter(|p| !is_right(p)).collect();
        ensure!(strays.is_empty(), "{strays:#?}");
        Ok(())
    }

    /// The program sees `errno_name`, and nothing is sent.
    pub(crate) fn is_refused(&self, lab: &Lab, cgroup: &LabCgroup, errno_name: &str) -> Result<()> {
        lab.drain()?;
        let position = lab.position()?;
        let reports = self.probe().run(lab, cgroup)?;
        let refused = reports.iter().find(|report| !report.ok);
        ensure!(
            refused.is_some_and(|report| report.errno_name == errno_name),
            "{self:?} should be refused with {errno_name}: {reports:#?}"
        );
        lab.drain()?;
        let about = lab.capture().since(position, |p| p.is_about(self.to));
        ensure!(about.is_empty(), "{self:?}: {about:#?}");
        Ok(())
    }
}

/// A flow of each kind and family, each to an address of its own in `place` (or in none that a rule names), leaves
/// by `uplink`.
pub(crate) fn flows_leave_by(
    lab: &Lab,
    cgroup: &LabCgroup,
    place: Option<Place>,
    uplink: &str,
) -> Result<()> {
    let mut number = 0;
    for kind in KINDS {
        for family in Family::ALL {
            number += 1;
            let to = place.map_or_else(|| family.target(lab), |place| place.at(family, number));
            Flow::new(kind, family, to)
                .leaves_by(lab, cgroup, uplink)
                .with_context(|| format!("{place:?}"))?;
        }
    }
    Ok(())
}

/// Flows to a place are refused at once.
pub(crate) fn flows_are_refused(lab: &Lab, cgroup: &LabCgroup, place: Place) -> Result<()> {
    for kind in KINDS {
        for family in Family::ALL {
            Flow::new(kind, family, place.at(family, 15)).is_refused(lab, cgroup, "ENETUNREACH")?;
        }
    }
    Ok(())
}

/// A flow that lives.
pub(crate) struct Live {
    pub(crate) session: Session,
    pub(crate) kind: Kind,
    pub(crate) family: Family,
    pub(crate) to: IpAddr,
}

impl Live {
    /// Opens one, which leaves by `uplink`.
    pub(crate) fn open(
        lab: &Lab,
        cgroup: &LabCgroup,
        (kind, family): (Kind, Family),
        to: IpAddr,
        uplink: &str,
    ) -> Result<Self> {
        let mut session = Probe::new(kind, family).start(lab, cgroup)?;
        session.succeed("set timeout=20000")?;
        session.succeed(&format!("connect {}", SocketAddr::new(to, ECHO_PORT)))?;
        let mut live = Self {
            session,
            kind,
            family,
            to,
        };
        live.goes_on_by(uplink)?;
        Ok(live)
    }

    /// It is answered from behind `uplink`.
    pub(crate) fn goes_on_by(&mut self, uplink: &str) -> Result<()> {
        let report = self.session.succeed("send on")?;
        let told = || {
            format!(
                "{:?} {:?} to {}: {report:?}",
                self.kind, self.family, self.to
            )
        };
        ensure!(report.uplink.as_deref() == Some(uplink), "{}", told());
        Ok(())
    }

    /// It was told to wait; the program learns at once that it has ended.
    pub(crate) fn has_ended(&mut self) -> Result<()> {
        let told = self.session.read()?;
        ensure!(
            told.errno_name == "ECONNABORTED",
            "{:?} {:?} to {}: {told:?}",
            self.kind,
            self.family,
            self.to
        );
        Ok(())
    }
}

/// Kinds of flows that live, with their families.
pub(crate) const LIVE: [(Kind, Family); 6] = [
    (Kind::Tcp, Family::V4),
    (Kind::Tcp, Family::V6),
    (Kind::Tcp, Family::Mapped),
    (Kind::UdpConnected, Family::V4),
    (Kind::UdpConnected, Family::V6),
    (Kind::UdpConnected, Family::Mapped),
];

/// A live flow of each kind and family to a place.
pub(crate) fn open_all(
    lab: &Lab,
    cgroup: &LabCgroup,
    place: Place,
    uplink: &str,
) -> Result<Vec<Live>> {
    let flows = (8..).zip(LIVE);
    flows
        .map(|(number, flow)| Live::open(lab, cgroup, flow, place.at(flow.1, number), uplink))
        .collect()
}

/// Reads the files again.
pub(crate) fn reload(lab: &Lab, text: &str) -> Result<()> {
    lab.configure(text)?;
    lab.steer(&["reload"])?.success().map(drop)
}

/// A policy as it is shown.
pub(crate) fn shown(lab: &Lab, policy: &str) -> Result<Value> {
    lab.steer(&["policy", "show", policy, "--json"])?.json()
}

/// Waits until rule `number` of `owner`, as `policy` shows it, decides so: for a domain, or a verdict.
pub(crate) fn wait_rule(
    lab: &Lab,
    (policy, owner, number): (&str, &str, u64),
    decision: &str,
) -> Result<()> {
    let what = format!("rule {number} of {owner} to decide: {decision}");
    wait::until(&what, || {
        let shown = shown(lab, policy)?;
        let rules = shown["rule_decisions"].as_array().cloned();
        let is_it = |rule: &Value| {
            rule["policy"] == owner
                && rule["number"] == number
                && (rule["domain"] == decision
                    || rule["domain"].is_null() && rule["verdict"] == decision)
        };
        Ok(rules.unwrap_or_default().iter().any(is_it).then_some(()))
    })
}
