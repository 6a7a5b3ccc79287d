//! Live flows: what the kernel tells of them, and what is done about them.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use super::{Reconciler, chain};
use crate::cgroup::sockets;
use crate::netlink::{self, Condition, LiveFlow, Wanted, live_flows};

/// What a thread needs to see flows.
#[derive(Debug)]
pub struct FlowMeans {
    storage: OwnedFd,
}

impl Reconciler {
    /// For a thread that looks at flows.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn flow_means(&self) -> io::Result<FlowMeans> {
        let storage = self.flow_storage()?;
        Ok(FlowMeans { storage })
    }
}

impl FlowMeans {
    /// The live flows for which one of these holds (without any: all), with what the programs remember of
    /// them.
    ///
    /// # Errors
    /// They cannot be listed.
    pub async fn live_flows(&self, any: &[Condition]) -> Result<Vec<LiveFlow>, netlink::Error> {
        let wanted = Wanted {
            any,
            storage: Some(self.storage.as_fd()),
            carried: false,
            unconnected: false,
        };
        live_flows(wanted).await
    }
}

/// Ends flows. Returns what went wrong with each. May take long: it has a thread of its own.
pub async fn reset_flows(flows: &[&LiveFlow]) -> Vec<Option<String>> {
    if flows.is_empty() {
        return Vec::new();
    }
    match netlink::reset_flows(flows.iter().copied()).await {
        Ok(outcomes) => {
            let outcomes = outcomes.into_iter();
            outcomes
                .map(|outcome| outcome.err().map(|refusal| why(&refusal)))
                .collect()
        }
        Err(error) => vec![Some(chain(&error)); flows.len()],
    }
}

/// Puts flows on the domains with these marks inside the mask. Returns what went wrong with each. Walks
/// through /proc, on a thread of its own.
pub fn mark_flows(flows: &[(&LiveFlow, u32)], mask: u32) -> Vec<Option<String>> {
    let wanted: HashMap<u32, sockets::Wanted> = flows
        .iter()
        .map(|(flow, mark)| {
            let wanted = sockets::Wanted {
                cookie: flow.cookie,
                mark: *mark,
                mask,
            };
            (flow.inode, wanted)
        })
        .collect();
    let failed = if wanted.is_empty() {
        HashMap::new()
    } else {
        sockets::mark(wanted)
    };
    flows
        .iter()
        .map(|(flow, _)| failed.get(&flow.inode).map(ToString::to_string))
        .collect()
}

/// Why the kernel did not end a flow.
fn why(refusal: &netlink::Refusal) -> String {
    match refusal.errno() {
        libc::EOPNOTSUPP => {
            "this kernel cannot end sockets of others (CONFIG_INET_DIAG_DESTROY is \
                             not set, as `steer doctor` says)"
                .to_owned()
        }
        _ => refusal.to_string(),
    }
}
