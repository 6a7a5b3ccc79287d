//! HTTP.

use std::sync::Arc;
use std::time::Duration;

use steer::probe::run;
use steer_core::probe::{Expect, Host, HttpTarget, Outcome};
use tokio::sync::mpsc;

use crate::bed::{
    SHORT, ask_http, http, http_target, in_lab, nobody, only_by_uplink, probe, reason, request,
    say, serve, short, targets,
};

const EMPTY: Expect = Expect::Status(204);

fn portal(address: &str) -> Outcome {
    Outcome::Portal(Some(address.to_owned()))
}

#[test]
fn the_expected_answer_over_the_domain_alone_passes() {
    in_lab(async |lab| {
        for target in targets(lab) {
            let server = http(lab, target, "HTTP/1.1 204 No Content\r\n\r\n");
            let report = ask_http(probe(lab), server, EMPTY).await;
            assert_eq!(report.outcome, Outcome::Passed);
            assert_eq!((report.asked, report.lost), (1, 0));
            assert!(report.rtt.is_some());
            only_by_uplink(lab, target);

            let text = Expect::Body("success".to_owned());
            let server = http(lab, target, "HTTP/1.0 200 OK\r\n\r\nsuccess\n");
            assert_eq!(
                ask_http(probe(lab), server, text).await.outcome,
                Outcome::Passed
            );
        }
    });
}

#[test]
fn the_request_is_plain_and_asks_to_close() {
    in_lab(async |lab| {
        for target in targets(lab) {
            let (sender, mut requests) = mpsc::unbounded_channel();
            let sender = Arc::new(sender);
            let server = serve(lab, target, move |mut stream| {
                let sender = Arc::clone(&sender);
                async move {
                    sender
                        .send(request(&mut stream).await)
                        .expect("the test waits");
                    say(&mut stream, b"HTTP/1.1 204 No Content\r\n\r\n").await;
                }
            });
            assert_eq!(
                ask_http(probe(lab), server, EMPTY).await.outcome,
                Outcome::Passed
            );
            let request = requests
                .recv()
                .await
                .expect("a request")
                .to_ascii_lowercase();
            let mut lines: Vec<_> = request.trim_end().split("\r\n").collect();
            assert_eq!(lines.remove(0), "get /generate_204?x http/1.1");
            lines.sort_unstable();
            let version = env!("CARGO_PKG_VERSION");
            assert_eq!(
                lines,
                [
                    "connection: close".to_owned(),
                    format!("host: {server}"),
                    format!("user-agent: steer/{version}"),
                ]
            );
        }
    });
}

#[test]
fn a_redirection_is_a_portal_with_its_address_and_is_not_followed() {
    in_lab(async |lab| {
        let target = lab.target4();
        let elsewhere = lab.target4();
        let to = |location: &str| {
            let answer = format!("HTTP/1.1 302 Found\r\nLocation: {location}\r\n\r\n");
            http(lab, target, answer)
        };
        let page = format!("http://{elsewhere}/login?from=x");
        let report = ask_http(probe(lab), to(&page), EMPTY).await;
        assert_eq!(report.outcome, portal(&page));
        lab.assert_silent(elsewhere).expect("not followed");

        let server = to("/login");
        let report = ask_http(probe(lab), server, EMPTY).await;
        assert_eq!(report.outcome, portal(&format!("http://{server}/login")));
        for bad in [
            "javascript:alert(1)",
            "ftp://192.0.2.1/",
            "http://x/\x1b[2J",
        ] {
            let outcome = ask_http(probe(lab), to(bad), EMPTY).await.outcome;
            // A server that sends control characters in a field is none that speaks HTTP.
            let broken = bad.contains('\x1b') && matches!(outcome, Outcome::Failed(_));
            assert!(
                outcome == Outcome::Portal(None) || broken,
                "{bad:?}: {outcome:?}"
            );
        }
    });
}

#[test]
fn any_other_complete_answer_is_a_portal_but_for_errors() {
    in_lab(async |lab| {
        let target = lab.target4();
        for answer in [
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nLogin",
            "HTTP/1.1 200 OK\r\n\r\nLogin",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nLogin\r\n0\r\n\r\n",
            "HTTP/1.1 511 Network Authentication Required\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        ] {
            let server = http(lab, target, answer);
            let report = ask_http(probe(lab), server, EMPTY).await;
            assert_eq!(report.outcome, Outcome::Portal(None), "{answer}");
            assert_eq!((report.asked, report.lost), (1, 0));
        }
        for status in ["404 Not Found", "503 Service Unavailable"] {
            let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
            let server = http(lab, target, answer.as_str());
            let report = ask_http(probe(lab), server, EMPTY).await;
            let code = &status[..3];
            let said = matches!(&report.outcome, Outcome::Failed(why) if why.ends_with(code));
            assert!(said, "{report:?}");
            assert_eq!((report.asked, report.lost), (1, 0));
        }
        let text = Expect::Body("success".to_owned());
        let server = http(
            lab,
            target,
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nLogin",
        );
        let report = ask_http(probe(lab), server, text).await;
        assert_eq!(report.outcome, Outcome::Portal(None));
    });
}

#[test]
fn a_broken_answer_fails() {
    in_lab(async |lab| {
        let target = lab.target4();
        let many = "A: b\r\n".repeat(500);
        for answer in [
            "",
            "\0\0\0\0",
            "SSH-2.0-OpenSSH_9.9\r\n",
            "HTTP/1.1 204",
            "HTTP/9.9 204 No Content\r\n\r\n",
            "HTTP/1.1 99999 No\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort",
            "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            &format!("HTTP/1.1 204 No Content\r\n{many}\r\n"),
            &format!(
                "HTTP/1.1 204 No Content\r\nA: {}\r\n\r\n",
                "b".repeat(60_000)
            ),
        ] {
            let server = http(lab, target, answer);
            let report = ask_http(probe(lab), server, EMPTY).await;
            let why = reason(&report);
            assert!(
                why.starts_with(&format!("HTTP http://{server}/generate_204?x: ")),
                "{answer:?}: {why}"
            );
            // The connection came about: the path is not what is broken.
            assert_eq!((report.asked, report.lost), (1, 0), "{answer:?}: {why}");
        }
    });
}

/// A server that says `start`, and then `more` for as long as it is listened to; with a `pause`, so
/// often only.
fn endless(
    lab: &steer_tests::Lab,
    start: &'static str,
    more: &'static str,
    pause: Option<Duration>,
) -> std::net::SocketAddr {
    let more = more.repeat(if pause.is_some() { 1 } else { 500 });
    serve(lab, lab.target4(), move |mut stream| {
        let more = more.clone();
        async move {
            request(&mut stream).await;
            let mut going = say(&mut stream, start.as_bytes()).await;
            while going {
                if let Some(pause) = pause {
                    tokio::time::sleep(pause).await;
                }
                going = say(&mut stream, more.as_bytes()).await;
            }
        }
    })
}

#[test]
fn an_answer_without_end_is_not_read_to_its_end() {
    in_lab(async |lab| {
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        // None of these waits for the probe's time to be over.
        for (start, more, is_portal) in [
            ("HTTP/1.1 200 OK\r\n", "A: b\r\n", false),
            ("HTTP/1.1 200 OK\r\n", "aaaaaaaa", false),
            ("", "HTTP/1.1 103 Early Hints\r\nA: b\r\n\r\n", false),
            ("HTTP/1.1 200 OK\r\n\r\n", "0123456789abcdef", true),
            (chunked, "10\r\n0123456789abcdef\r\n", true),
            // Little of an answer in much that is read.
            (chunked, "1;extension=abcdefghijkl\r\nx\r\n", false),
        ] {
            let server = endless(lab, start, more, None);
            let report = ask_http(probe(lab), server, EMPTY).await;
            match is_portal {
                true => assert_eq!(report.outcome, Outcome::Portal(None), "{start:?} {more:?}"),
                false => assert!(
                    reason(&report).contains("broken answer"),
                    "{more:?}: {report:?}"
                ),
            }
        }
    });
}

#[test]
fn a_slow_answer_ends_with_the_time_of_the_probe() {
    in_lab(async |lab| {
        for (start, more) in [
            ("HTTP/1.1 200 OK\r\n", "A: b\r\n"),
            ("HTTP/1.1 200 OK\r\n\r\n", "x"),
            ("", ""),
        ] {
            let server = endless(lab, start, more, Some(SHORT / 10));
            let report = ask_http(short(lab), server, EMPTY).await;
            assert!(
                reason(&report).ends_with("no answer within 2s"),
                "{report:?}"
            );
            assert_eq!((report.asked, report.lost), (1, 0));
        }
        let server = std::net::SocketAddr::new(nobody(), 80);
        let report = ask_http(short(lab), server, EMPTY).await;
        assert_eq!(
            reason(&report),
            "HTTP http://10.2.0.77/generate_204?x: no answer within 2s"
        );
        assert_eq!((report.asked, report.lost), (1, 1));
    });
}

#[test]
fn a_portal_that_one_target_shows_is_the_outcome() {
    in_lab(async |lab| {
        let shown = http(
            lab,
            lab.target4(),
            "HTTP/1.1 302 Found\r\nLocation: http://portal.example/\r\n\r\n",
        );
        let broken = http(lab, lab.target4(), "");
        let silent = std::net::SocketAddr::new(nobody(), 80);
        let mut probe = probe(lab);
        probe.check.http = [broken, silent, shown].map(http_target).to_vec();
        assert_eq!(run(&probe).await.outcome, portal("http://portal.example/"));
    });
}

#[test]
fn the_gateway_can_be_asked() {
    in_lab(async |lab| {
        let mut probe = probe(lab);
        let gateway = probe.gateways[0];
        let server = http(
            lab,
            gateway,
            "HTTP/1.1 302 Found\r\nLocation: /login\r\n\r\n",
        );
        probe.check.http = vec![HttpTarget {
            host: Host::Gateway,
            port: server.port(),
            path: "/".to_owned(),
        }];
        let report = run(&probe).await;
        assert_eq!(report.outcome, portal(&format!("http://{server}/login")));
    });
}
