//! `rebind`: whether an unconnected socket stays with its first decision, or follows that of the moment.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use steer_tests::load::{Load, Way};
use steer_tests::report::ECHO_PORT;
use steer_tests::{Agent, Direction, Family, Kind, Lab, LabCgroup, Probe, Session, conformance};

/// An unconnected socket, and where it sends to.
struct Socket {
    session: Session,
    family: Family,
    to: IpAddr,
}

impl Socket {
    fn open(lab: &Lab, app: &LabCgroup, family: Family) -> Result<Self> {
        let session = Probe::new(Kind::UdpUnconnected, family).start(lab, app)?;
        Ok(Self {
            session,
            family,
            to: family.target(lab),
        })
    }

    /// The next datagram crosses `uplink` alone, with its address, and is answered.
    fn sends_by(&mut self, lab: &Lab, uplink: &str) -> Result<()> {
        lab.drain()?;
        let position = lab.position()?;
        let to = SocketAddr::new(self.to, ECHO_PORT);
        let report = self.session.succeed(&format!("send token {to}"))?;
        ensure!(
            report.uplink.as_deref() == Some(uplink),
            "{:?} not by {uplink}: {report:?}",
            self.family
        );
        lab.drain()?;
        let own = lab.uplink(uplink)?.addresses();
        let about = lab.capture().since(position, |p| p.is_about(self.to));
        let is_right = |p: &steer_tests::Packet| {
            p.uplink == uplink
                && (p.direction == Direction::ToHost || p.source.is_some_and(|s| own.contains(&s)))
        };
        ensure!(about.iter().all(is_right), "{about:#?}");
        Ok(())
    }
}

/// A policy by wlan0, else wwan0, and a socket of each family.
fn start<'lab>(lab: &'lab Lab, lines: &str) -> Result<(Agent<'lab>, LabCgroup, Vec<Socket>)> {
    let app = lab.cgroup().child("app")?;
    let cgroup = app.name();
    lab.configure(&format!(
        "[policy.app]\nmatch.cgroup = \"{cgroup}\"\nuse = [\"wlan0\", \"wwan0\"]\n{lines}\n"
    ))?;
    let agent = lab.start_agent()?;
    let open = |family| Socket::open(lab, &app, family);
    let sockets = Family::ALL.into_iter().map(open).collect::<Result<_>>()?;
    Ok((agent, app, sockets))
}

fn all_by(lab: &Lab, sockets: &mut [Socket], uplink: &str) -> Result<()> {
    sockets
        .iter_mut()
        .try_for_each(|socket| socket.sends_by(lab, uplink))
}

#[test]
fn each_datagram_follows_the_decision_of_the_moment_where_the_policy_says_so() -> Result<()> {
    for strict in [false, true] {
        let lab = Lab::builder().rp_filter(1).build()?;
        let lines = format!("rebind = \"datagram\"\nstrict = {strict}");
        let (_agent, app, mut sockets) = start(&lab, &lines)?;
        let load = Load::start(&lab, &app, &[Way::Unconnected])?;
        let begun = lab.position()?;
        all_by(&lab, &mut sockets, "wlan0").context("at first")?;
        lab.carrier_down("wlan0")?;
        lab.wait_decision("app", "domain", "wwan0")?;
        all_by(&lab, &mut sockets, "wwan0").context("the first is gone")?;
        lab.carrier_up("wlan0")?;
        lab.wait_decision("app", "domain", "wlan0")?;
        all_by(&lab, &mut sockets, "wlan0").context("the better one is back")?;
        for uplink in ["wwan0", "wlan0"] {
            lab.steer(&["domain", "prefer", uplink])?.success()?;
            all_by(&lab, &mut sockets, uplink).context("preferred")?;
        }
        lab.assert_sources_match(begun)?;
        drop(load);
    }
    conformance::row(
        "AMSS-3",
        "datagrams of unconnected sockets are each decided by the decision of the moment (rebind = \"datagram\"): \
         when a domain goes, when a better one comes, when another is preferred; the source is always that of the \
         interface used",
    )
}

#[test]
fn datagrams_stay_on_their_domain_while_it_lives_where_the_policy_says_nothing() -> Result<()> {
    for strict in [false, true] {
        let lab = Lab::builder().rp_filter(1).build()?;
        let (_agent, app, mut sockets) = start(&lab, &format!("strict = {strict}"))?;
        lab.carrier_down("wlan0")?;
        lab.wait_decision("app", "domain", "wwan0")?;
        all_by(&lab, &mut sockets, "wwan0").context("at first")?;
        lab.carrier_up("wlan0")?;
        lab.wait_decision("app", "domain", "wlan0")?;
        all_by(&lab, &mut sockets, "wwan0").context("another is better")?;
        for family in Family::ALL {
            Socket::open(&lab, &app, family)?
                .sends_by(&lab, "wlan0")
                .context("a new one")?;
        }
        lab.carrier_down("wwan0")?;
        lab.wait_decision("app", "domain", "wlan0")?;
        all_by(&lab, &mut sockets, "wlan0").context("theirs is gone")?;
        lab.carrier_up("wwan0")?;
        all_by(&lab, &mut sockets, "wlan0").context("theirs is back")?;
    }
    conformance::row(
        "AMSS-3",
        "datagrams of unconnected sockets stay on their first domain while it lives (rebind = \"flow\")",
    )
}
