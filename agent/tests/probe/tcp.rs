//! TCP.

use std::time::Duration;

use steer::probe::run;
use steer_core::probe::{Host, Outcome};

use crate::bed::{in_lab, nobody, only_by_uplink, probe, reason, serve, short, targets};

#[test]
fn a_connection_over_the_domain_alone_passes() {
    in_lab(async |lab| {
        for target in targets(lab) {
            let server = serve(lab, target, async |_stream| {});
            let mut probe = probe(lab);
            probe.check.tcp = vec![(Host::Ip(target), server.port())];
            let report = run(&probe).await;
            assert_eq!(report.outcome, Outcome::Passed);
            assert_eq!((report.asked, report.lost), (1, 0));
            assert!(report.rtt.is_some_and(|rtt| rtt > Duration::ZERO));
            only_by_uplink(lab, target);
        }
    });
}

#[test]
fn a_refused_connection_fails_but_is_not_lost() {
    in_lab(async |lab| {
        for target in targets(lab) {
            let mut probe = probe(lab);
            probe.check.tcp = vec![(Host::Ip(target), 1)];
            let report = run(&probe).await;
            let place = (target, 1).into();
            let place: std::net::SocketAddr = place;
            assert_eq!(reason(&report), format!("TCP {place}: connection refused"));
            assert_eq!((report.asked, report.lost, report.rtt), (1, 0, None));
            only_by_uplink(lab, target);
        }
    });
}

#[test]
fn silence_fails_and_is_lost() {
    in_lab(async |lab| {
        let mut probe = short(lab);
        probe.check.tcp = vec![(Host::Ip(nobody()), 443)];
        let report = run(&probe).await;
        assert_eq!(reason(&report), "TCP 10.2.0.77:443: no answer within 2s");
        assert_eq!((report.asked, report.lost, report.rtt), (1, 1, None));
    });
}

#[test]
fn one_target_that_answers_is_enough() {
    in_lab(async |lab| {
        let target = lab.target4();
        let server = serve(lab, target, async |_stream| {});
        let mut probe = probe(lab);
        probe.check.tcp = vec![(Host::Ip(nobody()), 443), (Host::Ip(target), server.port())];
        let report = run(&probe).await;
        assert_eq!(report.outcome, Outcome::Passed);
        // The other one was given up, which says nothing of it.
        assert_eq!((report.asked, report.lost), (1, 0));
    });
}

#[test]
fn a_target_of_a_family_that_the_domain_lacks_is_not_asked() {
    in_lab(async |lab| {
        let target = lab.target6();
        let mut probe = probe(lab);
        probe.source6 = None;
        probe.check.tcp = vec![(Host::Ip(target), 443)];
        let report = run(&probe).await;
        assert_eq!(
            reason(&report),
            format!("TCP [{target}]:443: wlan0 has no IPv6 address to send from")
        );
        assert_eq!((report.asked, report.lost), (0, 0));
        lab.assert_silent(target).expect("nothing sent");
    });
}
