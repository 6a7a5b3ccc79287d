//! From the loss of a carrier, or of every packet, to the first flow on the next domain.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use steer_tests::{Lab, Way, wait};

use crate::api::Api;
use crate::clock::monotonic;
use crate::load::milliseconds;
use crate::sites::{self, POLICY, SECOND, STEERED};
use crate::statistics::Sample;
use crate::worker::Worker;
use crate::{Extent, carrier};

/// How often domains are checked here, milliseconds.
const INTERVAL: u32 = 500;

/// Times to the first flow on the next domain.
#[derive(Debug)]
pub(crate) struct Failover {
    /// With one policy.
    pub(crate) one: Times,
    /// With many.
    pub(crate) many: Times,
}

/// With as many policies.
#[derive(Debug)]
pub(crate) struct Times {
    /// From the loss of the carrier, milliseconds.
    pub(crate) carrier: Sample,
    /// From when packets are dropped, in intervals of the domain's check.
    pub(crate) blackhole: Sample,
}

/// Measures both.
pub(crate) fn measure(extent: &Extent) -> Result<Failover> {
    let one = losses(1, extent).context("one policy")?;
    let many = losses(extent.policies, extent).context("many policies")?;
    Ok(Failover { one, many })
}

fn losses(policies: usize, extent: &Extent) -> Result<Times> {
    let lab = sites::laboratory()?;
    sites::configure_many(&lab, policies, extent.cgroups, &[STEERED, SECOND])?;
    let check = format!("[agent]\ncheck = {{ icmp = \"gateway\", interval = \"{INTERVAL}ms\" }}\n");
    lab.write_file(sites::CHECKS, &check)?;
    let _agent = sites::start_agent(&lab)?;
    let mut worker = Worker::start(&lab, &sites::application(&lab)?, &[STEERED])?;
    let mut carriers = Vec::new();
    for _ in 0..extent.losses {
        let (lost, next) = in_use(&lab)?;
        worker.watch(address(&lab, next)?)?;
        let cut = carrier::cut(lab.peer(lost)?)?;
        carriers.push(milliseconds(worker.when()?.saturating_sub(cut)));
        lab.carrier_up(lost)?;
    }
    let mut blackholes = Vec::new();
    for _ in 0..extent.blackholes {
        let (lost, next) = in_use(&lab)?;
        worker.watch(address(&lab, next)?)?;
        lab.blackhole(lost, Way::Both)?;
        let lost_at = monotonic()?;
        let waited = milliseconds(worker.when()?.saturating_sub(lost_at));
        blackholes.push(waited / f64::from(INTERVAL));
        lab.heal(lost)?;
    }
    Ok(Times {
        carrier: Sample::new(carriers),
        blackhole: Sample::new(blackholes),
    })
}

/// The domain in use and the other one, once both are well. Which it is changes with every loss, for a domain
/// that was lost often waits before it is taken again.
fn in_use(lab: &Lab) -> Result<(&'static str, &'static str)> {
    wait::until("both domains to be well", || {
        let well = |domain: &str| -> Result<bool> {
            let shown = ask(lab, "ShowDomain", domain)?;
            Ok(shown["domain"]["state"] == "validated")
        };
        Ok((well(STEERED)? && well(SECOND)?).then_some(()))
    })?;
    let shown = ask(lab, "ShowPolicy", POLICY)?;
    let chosen = shown["policy"]["decision"]["domain"].as_str();
    ensure!(
        chosen == Some(STEERED) || chosen == Some(SECOND),
        "{chosen:?} is chosen"
    );
    Ok(if chosen == Some(STEERED) {
        (STEERED, SECOND)
    } else {
        (SECOND, STEERED)
    })
}

fn ask(lab: &Lab, method: &str, name: &str) -> Result<Value> {
    Api::connect(lab)?.call(method, &json!({ "name": name }))
}

fn address(lab: &Lab, uplink: &str) -> Result<std::net::IpAddr> {
    lab.uplink(uplink)?
        .address4()
        .with_context(|| format!("{uplink} has no IPv4 address"))
}
