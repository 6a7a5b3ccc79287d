//! What is counted of single flows, and when.

use std::collections::BTreeSet;

use steer::datapath::{FlowCounts, Survey};
use steer::netlink::{Wanted, live_flows};

use crate::flows::steered;
use crate::lab::{Lab, SERVER4, SERVER6, ifindex};

/// The cookies of this host's datagram sockets.
fn cookies() -> BTreeSet<u64> {
    let wanted = Wanted {
        unconnected: true,
        ..Wanted::default()
    };
    let flows = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(live_flows(wanted))
        .unwrap();
    flows.iter().map(|flow| flow.cookie).collect()
}

/// Names of the programs that are attached to a cgroup itself and are not pinned.
fn attached(lab: &Lab) -> Vec<String> {
    let survey = Survey::open(&lab.pins).unwrap();
    let found = survey.at_cgroup(&lab.cgroup).unwrap();
    let programs = found.into_iter().flat_map(|at| at.programs);
    programs.map(|program| program.name).collect()
}

#[test]
fn a_socket_is_counted_from_when_somebody_asks_until_nobody_does() {
    steered(|lab, child| {
        child.must(&["open four inet dgram", "open six inet6 dgram"]);
        let send = |child: &mut crate::child::Child, text: &str| {
            child.must(&[
                &format!("send four {SERVER4}:7001 {text}"),
                &format!("send six [{SERVER6}]:7001 {text}"),
            ]);
        };
        send(child, "before");
        let counts = FlowCounts::begin(&lab.cgroup).unwrap();
        assert!(counts.read().unwrap().is_empty());
        send(child, "one");
        send(child, "three");
        let counted = counts.read().unwrap();
        let found: BTreeSet<u64> = counted.iter().map(|(cookie, _)| *cookie).collect();
        assert_eq!(found, cookies());
        assert_eq!(counted.len(), 2);
        for (_, count) in &counted {
            assert_eq!((count.sent_bytes, count.sent_packets), (8, 2), "{count:?}");
            assert_eq!(count.received_packets, 0, "{count:?}");
            assert_eq!(
                (count.port, count.ifindex),
                (7001, ifindex("h2")),
                "{count:?}"
            );
        }
        counts.forget(counted[0].0).unwrap();
        assert_eq!(counts.read().unwrap().len(), 1);
        assert_eq!(attached(lab), ["flow_sent"]);
        drop(counts);
        assert!(attached(lab).is_empty());
        // What is counted the next time begins from nothing.
        let counts = FlowCounts::begin(&lab.cgroup).unwrap();
        assert!(counts.read().unwrap().is_empty());
    });
}
