//! A strict policy under traffic of every kind while things change: no packet leaves by an uplink that is
//! not its domain's at that time, and none with an address that is not that uplink's.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Context, Result};
use serde_json::Value;
use steer_tests::load::{Load, Way};
use steer_tests::{Agent, Lab, LabCgroup, conformance, wait};

/// Uplinks that may be used, with the addresses that may be used there.
type Allowed = BTreeMap<String, BTreeSet<IpAddr>>;

fn allowed(lab: &Lab, uplinks: &[&str]) -> Result<Allowed> {
    let of = |name: &&str| {
        let own = lab.uplink(name)?.addresses();
        Ok(((*name).to_owned(), own.into_iter().collect()))
    };
    uplinks.iter().map(of).collect()
}

/// Both at the same time.
fn either(one: &Allowed, other: &Allowed) -> Allowed {
    let mut both = one.clone();
    for (uplink, own) in other {
        both.entry(uplink.clone()).or_default().extend(own);
    }
    both
}

/// A host under the traffic of a strict application and of one that is steered, and where the first may
/// leave at the moment.
struct Watched<'lab> {
    lab: &'lab Lab,
    strict: Load,
    steered: Load,
    now: Allowed,
    /// Everything captured before was looked at.
    seen: usize,
}

impl<'lab> Watched<'lab> {
    /// Policies for both applications by `via`, of which the first is in use, and traffic.
    fn start(lab: &'lab Lab, via: &str, now: &[&str]) -> Result<Self> {
        let cgroups = ["strict", "steered"].map(|name| lab.cgroup().child(name));
        let [strict, steered] = cgroups;
        let (strict, steered) = (strict?, steered?);
        set(lab, &strict, &steered, via)?;
        // The others have tables, too, and other flows.
        for uplink in lab.uplink_names() {
            lab.set_policy(uplink, &lab.cgroup().child(uplink)?, uplink, &[])?;
        }
        Ok(Self {
            lab,
            now: allowed(lab, now)?,
            seen: lab.position()?,
            strict: Load::start(lab, &strict, &Way::ALL)?,
            steered: Load::start(
                lab,
                &steered,
                &[Way::Connections, Way::Unconnected, Way::Datagrams],
            )?,
        })
    }

    /// While `act` runs, what may be now and what may be afterwards both may be; afterwards only that.
    fn change(
        &mut self,
        what: &str,
        after: Allowed,
        act: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        self.look(what)?;
        act().with_context(|| what.to_owned())?;
        self.now = either(&self.now, &after);
        self.look(&format!("during: {what}"))?;
        self.now = after;
        Ok(())
    }

    /// Looks at all that was sent since the last time.
    fn look(&mut self, what: &str) -> Result<()> {
        self.lab.drain()?;
        let end = self.lab.position()?;
        let what = || what.to_owned();
        self.strict
            .assert_only_by(self.lab, self.seen..end, &self.now)
            .with_context(what)?;
        // It may leave by any uplink, but not with another's address.
        let any = allowed(self.lab, &self.lab.uplink_names())?;
        self.steered
            .assert_only_by(self.lab, self.seen..end, &either(&any, &self.now))
            .with_context(what)?;
        self.seen = end;
        Ok(())
    }

    /// All that follows decisions leaves by `uplink`.
    fn goes_by(&mut self, what: &str, uplink: &str) -> Result<()> {
        self.strict
            .wait_for(self.lab, uplink, self.seen)
            .with_context(|| what.to_owned())?;
        self.look(what)
    }
}

fn set(lab: &Lab, strict: &LabCgroup, steered: &LabCgroup, via: &str) -> Result<()> {
    lab.set_policy("strict", strict, via, &["--strict"])?;
    lab.set_policy("steered", steered, via, &[])?;
    Ok(())
}

/// Records what every scenario here shows.
fn rows(what: &str) -> Result<()> {
    conformance::row(
        "INVARIANT-1",
        &format!(
            "no packet of a strict policy by another uplink, for traffic of every kind: {what}"
        ),
    )?;
    conformance::row(
        "INVARIANT-2",
        &format!("each packet bears an address of the uplink it leaves by: {what}"),
    )
}

#[test]
fn a_domain_that_is_replaced_is_left_at_once() -> Result<()> {
    let lab = Lab::builder().rp_filter(1).build()?;
    let _agent = lab.start_agent()?;
    let mut watched = Watched::start(&lab, "wlan0", &["wlan0"])?;
    watched.goes_by("at first", "wlan0")?;
    let (strict, steered) = (
        lab.cgroup().child("strict")?,
        lab.cgroup().child("steered")?,
    );
    for uplink in ["wwan0", "eth0", "wlan0", "wwan0"] {
        let what = format!("replaced by {uplink}");
        watched.change(&what, allowed(&lab, &[uplink])?, || {
            set(&lab, &strict, &steered, uplink)
        })?;
        watched.goes_by(&what, uplink)?;
    }
    conformance::row(
        "S60-9",
        "an application that is given one domain after the other uses one at a time",
    )?;
    rows("its domain is replaced by another, several times")
}

#[test]
fn failover_and_return_lead_nowhere_else() -> Result<()> {
    let lab = Lab::builder().rp_filter(1).build()?;
    let _agent = lab.start_agent()?;
    let both = ["wlan0", "wwan0"];
    let mut watched = Watched::start(&lab, "wlan0,wwan0", &["wlan0"])?;
    watched.goes_by("at first", "wlan0")?;
    for round in 0..4 {
        let what = format!("carrier lost, round {round}");
        watched.change(&what, allowed(&lab, &both)?, || {
            lab.carrier_down("wlan0")?;
            lab.wait_decision("strict", "domain", "wwan0")
        })?;
        watched.goes_by(&what, "wwan0")?;
        let what = format!("carrier back, round {round}");
        // Live flows stay where they are, which is a domain of the policy.
        watched.change(&what, allowed(&lab, &both)?, || {
            lab.carrier_up("wlan0")?;
            lab.wait_decision("strict", "domain", "wlan0")
        })?;
        let new = [Way::Connections, Way::Datagrams, Way::Pings, Way::Raws];
        watched
            .strict
            .wait_for_ways(&lab, "wlan0", watched.seen, &new)
            .with_context(|| what.clone())?;
        watched.look(&what)?;
    }
    // Both lost, and nothing left.
    watched.change("both lost", Allowed::new(), || {
        lab.carrier_down("wlan0")?;
        lab.carrier_down("wwan0")?;
        lab.wait_decision("strict", "verdict", "block")
    })?;
    watched.change("one back", allowed(&lab, &both)?, || {
        lab.carrier_up("wwan0")?;
        lab.wait_decision("strict", "domain", "wwan0")
    })?;
    watched.goes_by("one back", "wwan0")?;
    rows("failover by carrier loss, and back")
}

#[test]
fn a_domain_that_is_lost_while_no_agent_runs_is_not_replaced_by_another() -> Result<()> {
    let lab = Lab::builder().rp_filter(1).build()?;
    let mut agent = lab.start_agent()?;
    let mut watched = Watched::start(&lab, "wlan0,wwan0", &["wlan0"])?;
    agent.kill()?;
    lab.carrier_down("wlan0")?;
    watched.look("carrier lost without an agent")?;
    lab.delete_link("wlan0")?;
    watched.look("interface deleted without an agent")?;
    lab.create_link("wlan0")?;
    watched.look("interface made again without an agent")?;
    // With the address of another domain, which no agent has told the kernel programs of.
    lab.add_address("wlan0", "10.3.0.2/32")?;
    lab.remove_address("wlan0", "10.3.0.2/32")?;
    lab.delete_link("wlan0")?;
    let both = allowed(&lab, &["wlan0", "wwan0"])?;
    watched.change("an agent again", both, || {
        agent.start()?;
        lab.wait_decision("strict", "domain", "wwan0")
    })?;
    watched.goes_by("an agent again", "wwan0")?;
    rows("its domain goes while no agent runs, and the next agent chooses another")
}

#[test]
fn an_interface_that_flaps_and_is_made_again_leaks_nothing() -> Result<()> {
    let lab = Lab::builder().rp_filter(1).build()?;
    let agent = lab.start_agent()?;
    let mut watched = Watched::start(&lab, "wlan0", &["wlan0"])?;
    for round in 0..10 {
        lab.link_down("wlan0")?;
        lab.link_up("wlan0")?;
        lab.carrier_down("wlan0")?;
        lab.carrier_up("wlan0")?;
        watched.look(&format!("flap {round}"))?;
    }
    back(&lab, &mut watched, "after the flaps", &agent)?;
    for round in 0..5 {
        lab.delete_link("wlan0")?;
        watched.look(&format!("deleted {round}"))?;
        lab.create_link("wlan0")?;
        watched.look(&format!("made again {round}"))?;
    }
    back(&lab, &mut watched, "after it was made again", &agent)?;
    // Slowly, so that the agent acts on each.
    for round in 0..3 {
        let what = format!("deleted and decided {round}");
        watched.change(&what, Allowed::new(), || {
            lab.delete_link("wlan0")?;
            lab.wait_decision("strict", "verdict", "block")
        })?;
        let what = format!("made again and decided {round}");
        watched.change(&what, allowed(&lab, &["wlan0"])?, || {
            lab.create_link("wlan0")
        })?;
        back(&lab, &mut watched, &what, &agent)?;
    }
    rows("its interface flaps, and is deleted and made again with another index")
}

fn back(lab: &Lab, watched: &mut Watched<'_>, what: &str, agent: &Agent<'_>) -> Result<()> {
    let mut back = || {
        lab.wait_decision("strict", "domain", "wlan0")?;
        watched.goes_by(what, "wlan0")
    };
    let log = || format!("the agent's log:\n{}", agent.log());
    back().with_context(log)
}

/// Addresses of a domain as the agent has them.
fn wait_addresses(lab: &Lab, domain: &str, wanted: &[&str]) -> Result<()> {
    wait::until(&format!("{domain} to have {wanted:?}"), || {
        let shown = lab.steer(&["domain", "show", domain, "--json"])?.json()?;
        let shown = shown["addresses"].as_array().cloned().unwrap_or_default();
        let shown: BTreeSet<&str> = shown.iter().filter_map(Value::as_str).collect();
        Ok((shown == wanted.iter().copied().collect()).then_some(()))
    })?;
    // Acknowledged once all before it is in force.
    lab.set_policy("again", &lab.cgroup().child("again")?, "eth0", &[])
        .map(drop)
}

#[test]
fn renumbering_takes_the_new_addresses_and_leaves_the_old() -> Result<()> {
    let lab = Lab::builder().rp_filter(1).build()?;
    // Else the first address of a network takes the others along when it goes.
    lab.host().run(|| {
        let setting = "/proc/sys/net/ipv4/conf/all/promote_secondaries";
        Ok(std::fs::write(setting, "1")?)
    })?;
    let _agent = lab.start_agent()?;
    let mut watched = Watched::start(&lab, "wlan0", &["wlan0"])?;
    let mut old = ["10.2.0.2/24", "2001:db8:2::2/64"].map(str::to_owned);
    for round in 0..4 {
        let new = [
            format!("10.2.0.{}/24", 10 + round),
            format!("2001:db8:2::{}/64", 10 + round),
        ];
        let bare = |address: &String| -> Result<IpAddr> {
            let bare = address.split_once('/').context("a length")?.0;
            Ok(bare.parse()?)
        };
        let own: BTreeSet<IpAddr> = new.iter().map(bare).collect::<Result<_>>()?;
        let after = Allowed::from([("wlan0".to_owned(), own)]);
        // Make before break, and break before make.
        let make_first = round % 2 == 0;
        let what = format!("renumbered to {new:?}, make first: {make_first}");
        watched.change(&what, after, || {
            let remove = || old.iter().try_for_each(|a| lab.remove_address("wlan0", a));
            let add = || new.iter().try_for_each(|a| lab.add_address("wlan0", a));
            if make_first {
                add()?;
                remove()?;
            } else {
                remove()?;
                add()?;
            }
            // The routes go with an address that they prefer, or with the last one of their network.
            let default = [
                "default", "via", "10.2.0.1", "dev", "wlan0", "metric", "200",
            ];
            lab.ip(&[&["route", "replace"], &default[..]].concat())?;
            wait_addresses(&lab, "wlan0", &[&new[0], &new[1]])?;
            lab.wait_decision("strict", "domain", "wlan0")
        })?;
        watched.goes_by(&what, "wlan0")?;
        old = new;
    }
    rows("its addresses change while they are in use")
}
