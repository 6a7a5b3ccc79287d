//! What is done on a thread of its own: flows are listed, moved and ended.

use std::collections::BTreeMap;

use steer_core::ids::CgroupId;
use steer_core::sessions::{Means, Verdict};
use tracing::debug;

use super::count::Outcome;
use super::look::{Candidate, Doing};
use super::wanted::{Moved, Touched};
use crate::cgroup::sockets;
use crate::netlink::{self, Condition, LiveFlow};
use crate::reconcile::{FlowMeans, mark_flows, reset_flows};

/// So many cgroups are asked for one by one; for more, all flows are read.
pub(super) const FEW: usize = 64;

/// The flows that are to be judged: those that a change touched, and then those that moved processes have.
pub(super) async fn list(
    means: &FlowMeans,
    touched: &Touched,
    moved: &[Moved],
) -> Result<Vec<Candidate>, netlink::Error> {
    let mut moved_to: BTreeMap<u32, CgroupId> = BTreeMap::new();
    for Moved { pid, cgroup } in moved {
        let sockets = sockets::of_process(*pid).into_iter();
        moved_to.extend(sockets.map(|inode| (inode, *cgroup)));
    }
    if touched.is_empty() && moved_to.is_empty() {
        return Ok(Vec::new());
    }
    let ids = touched.cgroups.iter();
    let conditions: Vec<Condition> = if touched.all || !moved_to.is_empty() {
        Vec::new()
    } else {
        ids.map(|id| Condition::Cgroup(id.0)).collect()
    };
    let live = means.live_flows(&conditions).await?;
    let candidate = |live: &LiveFlow, moved| Candidate {
        live: live.clone(),
        moved,
    };
    let moved = live.iter().filter_map(|live| {
        let cgroup = moved_to.get(&live.inode)?;
        Some(candidate(live, Some(*cgroup)))
    });
    let moved: Vec<Candidate> = moved.collect();
    let touched = live
        .into_iter()
        .filter(|live| touched.has(CgroupId(live.cgroup)))
        .map(|live| Candidate { live, moved: None });
    Ok(touched.chain(moved).collect())
}

/// What comes of a flow with which nothing is to be done.
pub(super) fn outcome(verdict: Verdict) -> Option<Outcome> {
    match verdict {
        Verdict::Move(Means::Mark(_)) | Verdict::Reset => None,
        // The packet programs see to it.
        Verdict::Move(Means::Repair) => Some(Outcome::Moved),
        Verdict::Alone | Verdict::Home | Verdict::Keep | Verdict::Linger { .. } => {
            Some(Outcome::Kept)
        }
    }
}

/// Does what is to be done with each flow.
pub(super) async fn carry_out(doing: Vec<Doing>, mask: u32) -> Vec<(Doing, Outcome)> {
    let marks = doing.iter().filter_map(|doing| match doing.judged.verdict {
        Verdict::Move(Means::Mark(mark)) => Some((&doing.candidate.live, mark)),
        _ => None,
    });
    let mut marked = mark_flows(&marks.collect::<Vec<_>>(), mask).into_iter();
    let (mut done, mut ending) = (Vec::with_capacity(doing.len()), Vec::new());
    for doing in doing {
        if !matches!(doing.judged.verdict, Verdict::Move(Means::Mark(_))) {
            ending.push(doing);
            continue;
        }
        match marked.next().flatten() {
            None => done.push((doing, Outcome::Moved)),
            // It is ended instead.
            Some(words) => {
                let live = &doing.candidate.live;
                debug!(local = %live.local, peer = %live.peer, "a flow cannot be moved: {words}");
                ending.push(doing);
            }
        }
    }
    let flows: Vec<&LiveFlow> = ending.iter().map(|doing| &doing.candidate.live).collect();
    let reset = reset_flows(&flows).await;
    let outcomes = reset
        .into_iter()
        .map(|failed| failed.map_or(Outcome::Reset, Outcome::Failed));
    done.extend(ending.into_iter().zip(outcomes));
    done
}
