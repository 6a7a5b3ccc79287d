//! What has changed since flows were told last, a line each: for `--watch` into a pipe.

use std::collections::BTreeMap;

use super::{by, count, processes, since, words};
use crate::api::flows::{FlowsReply, LiveFlowView, Whereabouts};
use crate::cli::clean;

/// The flows that were told last, by id.
#[derive(Debug, Default)]
pub(super) struct Changes {
    flows: BTreeMap<String, LiveFlowView>,
}

/// What is told anew when it changes. Bytes and ages alone are no news.
type Told<'a> = (
    Option<&'a str>,
    Whereabouts,
    Option<&'a str>,
    Option<&'a str>,
    Option<&'a str>,
    Option<&'a str>,
);

fn told(flow: &LiveFlowView) -> Told<'_> {
    (
        flow.policy.as_deref(),
        flow.whereabouts,
        flow.domain.as_deref(),
        flow.source.as_deref(),
        flow.destination.as_deref(),
        flow.wrong.as_deref(),
    )
}

impl Changes {
    /// Lines for what has changed, in the order of the flows; those that ended are last.
    pub(super) fn since(&mut self, reply: &FlowsReply) -> String {
        let mut text = String::new();
        let mut before = std::mem::take(&mut self.flows);
        for flow in &reply.flows {
            match before.remove(&flow.id) {
                None => text.push_str(&line("new", flow)),
                Some(known) if told(&known) != told(flow) => {
                    text.push_str(&line("changed", flow));
                }
                Some(_) => {}
            }
            self.flows.insert(flow.id.clone(), flow.clone());
        }
        // Behind the limit it is not known what has ended.
        if reply.omitted == 0 {
            before
                .values()
                .for_each(|flow| text.push_str(&line("ended", flow)));
        }
        text
    }
}

fn line(what: &str, flow: &LiveFlowView) -> String {
    let words = format!(
        "{what} {} {} by {}: {} sent {} received {} age {}",
        flow.policy.as_deref().unwrap_or("-"),
        processes(flow).trim_start(),
        by(flow),
        words(flow),
        count(flow.sent_bytes),
        count(flow.received_bytes),
        since(flow)
    );
    clean(&words) + "\n"
}
