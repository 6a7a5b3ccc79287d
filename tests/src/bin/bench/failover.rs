//! From the loss of a carrier to the first flow on the next domain.

use anyhow::{Context, Result};
use steer_tests::Lab;

use crate::load::milliseconds;
use crate::sites::{self, SECOND, STEERED};
use crate::statistics::Sample;
use crate::worker::Worker;
use crate::{Extent, carrier};

/// Milliseconds to the first flow on the next domain.
#[derive(Debug)]
pub(crate) struct Failover {
    /// With one policy.
    pub(crate) one: Sample,
    /// With many.
    pub(crate) many: Sample,
}

/// Measures both.
pub(crate) fn measure(extent: &Extent) -> Result<Failover> {
    let one = losses(1, extent).context("one policy")?;
    let many = losses(extent.policies, extent).context("many policies")?;
    Ok(Failover { one, many })
}

fn losses(policies: usize, extent: &Extent) -> Result<Sample> {
    let lab = sites::laboratory()?;
    sites::configure_many(&lab, policies, extent.cgroups, &[STEERED, SECOND])?;
    let _agent = sites::start_agent(&lab)?;
    let mut worker = Worker::start(&lab, &sites::application(&lab)?, &[STEERED])?;
    let mut times = Vec::new();
    for _ in 0..extent.losses {
        wait_for(&mut worker, &lab, STEERED)?;
        worker.watch(address(&lab, SECOND)?)?;
        let cut = carrier::cut(lab.peer(STEERED)?)?;
        times.push(milliseconds(worker.when()?.saturating_sub(cut)));
        lab.carrier_up(STEERED)?;
    }
    Ok(Sample::new(times))
}

fn wait_for(worker: &mut Worker, lab: &Lab, uplink: &str) -> Result<()> {
    worker.watch(address(lab, uplink)?)?;
    worker.when().map(drop)
}

fn address(lab: &Lab, uplink: &str) -> Result<std::net::IpAddr> {
    lab.uplink(uplink)?
        .address4()
        .with_context(|| format!("{uplink} has no IPv4 address"))
}
