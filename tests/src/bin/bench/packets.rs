//! CPU time per packet and per connection in every configuration.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use steer_tests::Lab;

use crate::kernel::Program;
use crate::programs::{self, Runs};
use crate::rounds::{self, Costs};
use crate::sites::{self, FEW_RULES, PLAIN, SECOND, STEERED, Subject};
use crate::worker::Worker;
use crate::workload::Workload;
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
    /// A process whose flows are older than their policy, which repairs them.
    pub(crate) const REPAIRED: usize = 11;
    /// A process steered by the last of a policy's few rules.
    pub(crate) const FEW_RULES: usize = 12;
    /// A process steered by the last of a policy's many rules.
    pub(crate) const MANY_RULES: usize = 13;
    /// A process whose flows are spread over two domains.
    pub(crate) const SHARED: usize = 14;
}

/// Flows among which both domains of a share are bound to be.
const FLOWS: usize = 64;

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
    let repair = sites::laboratory()?;
    let (_repair, repaired) = sites::repaired("repaired", &repair)?;
    let few_rules = sites::laboratory()?;
    let _few_rules = sites::with_rules(&few_rules, FEW_RULES)?;
    let many_rules = sites::laboratory()?;
    let _many_rules = sites::with_rules(&many_rules, extent.rules)?;
    let share = sites::laboratory()?;
    let _share = sites::with_share(&share)?;

    let mut reference = Subject::other("the host without steer", &bare)?;
    let mut subjects = vec![
        Subject::other("a second host without steer", &control)?.doing(&Workload::ALL),
        Subject::steered("steered", &ordinary)?,
        Subject::other("no policy, one elsewhere", &ordinary)?,
        Subject::steered("steered, strict", &strict)?,
        Subject::other("no policy, a strict one elsewhere", &strict)?,
        Subject::steered("steered, many policies", &many)?,
        Subject::other("no policy, many elsewhere", &many)?,
        Subject::steered("the nft recipe", &nft)?.doing(&Workload::ALL),
        Subject::other("the agent without any policy", &idle)?,
        Subject::other("one unrelated routing rule", &any_rule)?,
        Subject::other("steer's routing rules alone", &rules)?,
        repaired,
        Subject::steered("steered by the last of few rules", &few_rules)?.doing(&Workload::IPV4),
        Subject::steered("steered by the last of many rules", &many_rules)?.doing(&Workload::IPV4),
        Subject::shared("spread over two domains", &share)?.doing(&Workload::DECIDED),
    ];
    for index in [
        subject::STEERED,
        subject::STRICT,
        subject::MANY,
        subject::FEW_RULES,
        subject::MANY_RULES,
    ] {
        let Subject { name, worker, .. } = &mut subjects[index];
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
        let Subject { name, worker, .. } = &mut subjects[index];
        leaves_by(worker, &bare, PLAIN).with_context(|| format!("process: {name}"))?;
    }
    is_spread(&mut subjects[subject::SHARED].worker, &share)?;
    keep_flows(&mut reference.worker, &mut subjects, &bare)?;
    is_repaired(&mut subjects[subject::REPAIRED].worker, &repair)?;

    let costs = rounds::alternate(&mut reference.worker, &mut subjects, extent.rounds)?;
    let mut programs = Vec::new();
    for (lab, indices) in [
        (&ordinary, &[subject::STEERED, subject::OTHER][..]),
        (&strict, &[subject::STRICT, subject::BESIDE_STRICT]),
        (&many, &[subject::MANY, subject::BESIDE_MANY]),
        (&repair, &[subject::REPAIRED]),
        (&few_rules, &[subject::FEW_RULES]),
        (&many_rules, &[subject::MANY_RULES]),
        (&share, &[subject::SHARED]),
    ] {
        let pinned = Program::all(lab.host())?;
        for &index in indices {
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

/// Both domains have flows.
fn is_spread(worker: &mut Worker, lab: &Lab) -> Result<()> {
    let mut sources = BTreeSet::new();
    for _ in 0..FLOWS {
        sources.extend(worker.source()?);
    }
    let mut wanted = BTreeSet::new();
    for uplink in [STEERED, SECOND] {
        wanted.extend(lab.uplink(uplink)?.address4());
    }
    ensure!(
        sources == wanted,
        "flows should be spread over {wanted:?}, and have {sources:?}"
    );
    Ok(())
}

/// Has the flows begun that are kept, where they are not yet; the servers must see the uplink's address.
fn keep_flows(reference: &mut Worker, subjects: &mut [Subject], lab: &Lab) -> Result<()> {
    reference.begin()?;
    arrives_from(reference, lab, PLAIN).context("the host without steer")?;
    for (index, uplink) in [
        (subject::CONTROL, PLAIN),
        (subject::RECIPE, STEERED),
        (subject::REPAIRED, STEERED),
    ] {
        let Subject { name, worker, .. } = &mut subjects[index];
        if index != subject::REPAIRED {
            worker.begin()?;
        }
        arrives_from(worker, lab, uplink).with_context(|| format!("process: {name}"))?;
    }
    Ok(())
}

fn arrives_from(worker: &mut Worker, lab: &Lab, uplink: &str) -> Result<()> {
    let source = worker.finish()?;
    let wanted = lab.uplink(uplink)?.address4();
    ensure!(
        Some(source) == wanted,
        "the connection should come from {wanted:?}, not {source}"
    );
    Ok(())
}

/// All that is measured as repaired is.
fn is_repaired(worker: &mut Worker, lab: &Lab) -> Result<()> {
    let before = repaired(lab)?;
    worker.burst(Workload::UdpKept)?;
    let found = repaired(lab)?.saturating_sub(before);
    let sent = Workload::UdpKept.sent() as u64;
    ensure!(
        found >= sent,
        "of {sent} datagrams {found} were repaired: they should all be"
    );
    Ok(())
}

/// Packets repaired so far.
fn repaired(lab: &Lab) -> Result<u64> {
    let status = lab.steer(&["status", "--json"])?.json()?;
    let count = status["counters"]["repaired"].as_u64();
    count.context("the status has no count of repaired packets")
}
