//! Several kinds at once.

use steer::probe::run;
use steer_core::probe::{DnsTarget, Host, Outcome, Report};

use crate::bed::{UPLINK, http, http_target, in_lab, nobody, only_by_uplink, probe, reason, short};

#[test]
fn every_kind_has_to_pass() {
    in_lab(async |lab| {
        let target = lab.target4();
        let web = http(lab, target, "HTTP/1.1 204 No Content\r\n\r\n");
        let mut probe = short(lab);
        probe.check.http = vec![http_target(web)];
        probe.check.tcp = vec![(Host::Ip(target), web.port())];
        probe.check.icmp = vec![Host::Ip(target)];
        assert_eq!(run(&probe).await.outcome, Outcome::Passed);
        only_by_uplink(lab, target);

        probe.check.icmp = vec![Host::Ip(nobody())];
        probe.check.dns = vec![DnsTarget {
            name: "check.example".to_owned(),
            address: None,
        }];
        let report = run(&probe).await;
        assert_eq!(
            reason(&report),
            "DNS: the domain has no name server; \
             no answer to ICMP echo from 10.2.0.77 within 2s"
        );
        assert_eq!((report.asked, report.lost), (3, 1));
        assert!(report.rtt.is_some());
    });
}

#[test]
fn a_portal_is_the_outcome_whatever_else_fails() {
    in_lab(async |lab| {
        let redirects = "HTTP/1.1 302 Found\r\nLocation: http://portal.example/\r\n\r\n";
        let mut probe = short(lab);
        probe.check.http = vec![http_target(http(lab, lab.target4(), redirects))];
        probe.check.icmp = vec![Host::Ip(nobody())];
        let page = Some("http://portal.example/".to_owned());
        assert_eq!(run(&probe).await.outcome, Outcome::Portal(page));
    });
}

#[test]
fn without_interface_or_address_every_kind_fails_and_says_why() {
    in_lab(async |lab| {
        let mut probe = probe(lab);
        let target = lab.target4();
        let name = || Host::Name("check.example".to_owned());
        probe.check.http = vec![http_target((target, 80).into())];
        probe.check.dns = vec![DnsTarget {
            name: "check.example".to_owned(),
            address: None,
        }];
        probe.check.tcp = vec![(name(), 443)];
        probe.check.icmp = vec![Host::Ip(target)];
        probe.servers = vec![(target, 53).into()];

        probe.ifname = "gone0".to_owned();
        let report = run(&probe).await;
        let no_device = "bind to interface gone0: No such device (os error 19)";
        for kind in ["HTTP", "DNS", "ICMP"] {
            let said = reason(&report).split("; ");
            let mut of_kind = said.filter(|reason| reason.contains(kind));
            let said = of_kind.next().expect("a reason");
            assert!(said.ends_with(no_device), "{said}");
        }
        assert_eq!((report.asked, report.lost), (0, 0));

        probe.ifname = UPLINK.to_owned();
        (probe.source4, probe.source6) = (None, None);
        let report = run(&probe).await;
        assert_eq!(
            reason(&report),
            format!(
                "HTTP http://{target}/generate_204?x: wlan0 has no IPv4 address to send from; \
                 DNS: the domain has no name server; the domain has no address; \
                 ICMP echo to {target}: wlan0 has no IPv4 address to send from"
            )
        );
        assert_eq!((report.asked, report.lost), (0, 0));
        lab.assert_silent(target).expect("nothing sent");
    });
}

#[test]
fn nothing_asked_passes_and_sends_nothing() {
    in_lab(async |lab| {
        let nothing = Report {
            outcome: Outcome::Passed,
            rtt: None,
            asked: 0,
            lost: 0,
        };
        assert_eq!(run(&probe(lab)).await, nothing);
    });
}

#[test]
fn a_probe_can_move_between_threads() {
    fn is_send(_: impl Send) {}
    in_lab(async |lab| is_send(run(&probe(lab))));
}
