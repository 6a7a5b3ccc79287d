//! CPU time per packet and per connection in every configuration.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use steer_tests::Lab;

use crate::kernel::Program;
use crate::programs::{self, Runs};
use crate::rounds::{self, Costs};
use crate::sites::{self, PLAIN, STEERED, Subject};
use crate::worker::Worker;
use crate::{Extent, recipe};

/// Subjects in their order.
pub(crate) mod subject {
    /// A second host without steer: how far the method itself is from 1.
    pub(crate) const CONTROL: usize = 0;
    /// A steered process.
    pub(crate) const STEERED: usize = 1;
    /// A process without a policy beside one with.
    pub(crate) const OTHER: usize = 2;
    /// A process steered by a strict policy.
    pub(crate) const STRICT: usize = 3;
    /// A process without a policy beside one with a strict one.
    pub(crate) const BESIDE_STRICT: usize = 4;
    /// A steered process among many policies.
    pub(crate) const MANY: usize = 5;
    /// A process without a policy beside many.
    pub(crate) const BESIDE_MANY: usize = 6;
    /// The usual recipe.
    pub(crate) const RECIPE: usize = 7;
    /// The agent runs and has no policy.
    pub(crate) const IDLE: usize = 8;
    /// A host that has any routing rule of its own.
    pub(crate) const ANY_RULE: usize = 9;
    /// The rules that one policy needs, without the agent.
    pub(crate) const RULES: usize = 10;
}

/// What was measured.
#[derive(Debug)]
pub(crate) struct Packets {
    /// Names of the subjects.
    pub(crate) names: Vec<&'static str>,
    /// Costs of every workload.
    pub(crate) costs: Vec<Costs>,
    /// What programs took.
    pub(crate) programs: Vec<Runs>,
}

/// Builds all configurations and measures them in turn.
pub(crate) fn measure(extent: &Extent) -> Result<Packets> {
    let bare = sites::laboratory()?;
    let control = sites::laboratory()?;
    let ordinary = sites::laboratory()?;
    let strict = sites::laboratory()?;
    let many = sites::laboratory()?;
    let nft = sites::laboratory()?;
    recipe::apply(&nft, &sites::application(&nft)?)?;
    let _ordinary = sites::with_policy(&ordinary, "")?;
    let any_rule = sites::laboratory()?;
    any_rule.ip(&["rule", "add", "fwmark", "5", "table", "100"])?;
    any_rule.ip(&["-6", "rule", "add", "fwmark", "5", "table", "100"])?;
    let rules = sites::laboratory()?;
    recipe::copy_rules(&ordinary, &rules)?;
    let idle = sites::laboratory()?;
    let _idle = idle.start_agent()?;
    let _strict = sites::with_policy(&strict, "strict = true")?;
    sites::configure_many(&many, extent.policies, extent.cgroups, &[STEERED])?;
    let _many = sites::start_agent(&many)?;

    let mut reference = Subject::other("the host without steer", &bare)?;
    let mut subjects = vec![
        Subject::other("a second host without steer", &control)?,
        Subject::steered("steered", &ordinary)?,
        Subject::other("no policy, one elsewhere", &ordinary)?,
        Subject::steered("steered, strict", &strict)?,
        Subject::other("no policy, a strict one elsewhere", &strict)?,
        Subject::steered("steered, many policies", &many)?,
        Subject::other("no policy, many elsewhere", &many)?,
        Subject::steered("the nft recipe", &nft)?,
        Subject::other("the agent without any policy", &idle)?,
        Subject::other("one unrelated routing rule", &any_rule)?,
        Subject::other("steer's routing rules alone", &rules)?,
    ];
    for index in [subject::STEERED, subject::STRICT, subject::MANY] {
        let Subject { name, worker } = &mut subjects[index];
        leaves_by(worker, &ordinary, STEERED).with_context(|| format!("process: {name}"))?;
    }
    for index in [
        subject::CONTROL,
        subject::OTHER,
        subject::BESIDE_STRICT,
        subject::BESIDE_MANY,
        subject::IDLE,
        subject::ANY_RULE,
        subject::RULES,
    ] {
        let Subject { name, worker } = &mut subjects[index];
        leaves_by(worker, &bare, PLAIN).with_context(|| format!("process: {name}"))?;
    }

    let costs = rounds::alternate(&mut reference.worker, &mut subjects, extent.rounds)?;
    let mut programs = Vec::new();
    for (lab, indices) in [
        (&ordinary, [subject::STEERED, subject::OTHER]),
        (&strict, [subject::STRICT, subject::BESIDE_STRICT]),
        (&many, [subject::MANY, subject::BESIDE_MANY]),
    ] {
        let pinned = Program::all(lab.host())?;
        for index in indices {
            programs.extend(programs::count(&mut subjects[index], &pinned)?);
        }
    }
    let names = subjects.iter().map(|subject| subject.name).collect();
    Ok(Packets {
        names,
        costs,
        programs,
    })
}

/// A flow that is not where it should be would be measured in vain.
fn leaves_by(worker: &mut Worker, lab: &Lab, uplink: &str) -> Result<()> {
    let source: Option<IpAddr> = worker.source()?;
    let wanted = lab.uplink(uplink)?.address4();
    ensure!(
        source == wanted,
        "flows should leave from {wanted:?}, not {source:?}"
    );
    Ok(())
}
