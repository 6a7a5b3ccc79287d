//! DNS.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::sync::{Arc, Mutex};

use hickory_net::proto::op::{Message, ResponseCode};
use hickory_net::proto::rr::{RData, Record as DnsRecord, RecordType};
use steer::probe::run;
use steer_core::probe::{DnsTarget, Host, HttpTarget, Outcome, Probe, Report};
use steer_tests::Lab;
use tokio::io::AsyncReadExt as _;
use tokio::net::UdpSocket;
use tracing::instrument::WithSubscriber as _;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::bed::{
    UPLINK, http, in_lab, nobody, only_by_uplink, probe, reason, say, serve, serve_at, short,
    targets,
};

pub(crate) const NAME: &str = "check.example";

/// A name server at `ip`, on a port of its own: `answers` are the datagrams that a question gets.
fn server(
    lab: &Lab,
    ip: IpAddr,
    answers: impl Fn(Message) -> Vec<Vec<u8>> + Send + 'static,
) -> SocketAddr {
    let peer = lab.peer(UPLINK).expect("the peer");
    let socket = peer.run(|| {
        // Where its link-local address is, if it is one.
        let far_end = nix::net::if_::if_nametoindex("peer")?;
        let at = match ip {
            IpAddr::V6(ip) => SocketAddrV6::new(ip, 0, 0, far_end).into(),
            IpAddr::V4(_) => SocketAddr::new(ip, 0),
        };
        Ok(std::net::UdpSocket::bind(at)?)
    });
    let socket = socket.expect("a socket");
    socket.set_nonblocking(true).expect("non-blocking");
    let port = socket.local_addr().expect("its address").port();
    let socket = UdpSocket::from_std(socket).expect("the runtime takes it");
    tokio::spawn(async move {
        let mut buffer = [0; 1500];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            let question = Message::from_vec(&buffer[..length]).expect("a question");
            for answer in answers(question) {
                socket.send_to(&answer, from).await.expect("sent");
            }
        }
    });
    SocketAddr::new(ip, port)
}

/// The answer that has those of `addresses` that are asked for.
fn found(question: Message, addresses: &[IpAddr]) -> Message {
    let asked = question.queries[0].clone();
    let mut answer = question.into_response();
    for address in addresses {
        let data = match (*address, asked.query_type()) {
            (IpAddr::V4(ip), RecordType::A) => RData::A(ip.into()),
            (IpAddr::V6(ip), RecordType::AAAA) => RData::AAAA(ip.into()),
            _ => continue,
        };
        answer.add_answer(DnsRecord::from_rdata(asked.name().clone(), 0, data));
    }
    answer
}

fn bytes(message: &Message) -> Vec<u8> {
    message.to_vec().expect("a message")
}

/// A name server that knows `addresses` under every name.
pub(crate) fn knowing(lab: &Lab, ip: IpAddr, addresses: &[IpAddr]) -> SocketAddr {
    let addresses = addresses.to_vec();
    server(lab, ip, move |question| {
        vec![bytes(&found(question, &addresses))]
    })
}

/// A name server that says `code`.
fn saying(lab: &Lab, ip: IpAddr, code: ResponseCode) -> SocketAddr {
    server(lab, ip, move |question| {
        let mut answer = question.into_response();
        answer.metadata.response_code = code;
        vec![bytes(&answer)]
    })
}

/// What comes of a question for [`NAME`] to `servers`.
async fn ask(mut probe: Probe, servers: &[SocketAddr], address: Option<IpAddr>) -> Report {
    probe.servers = servers.to_vec();
    probe.check.dns = vec![DnsTarget {
        name: NAME.to_owned(),
        address,
    }];
    run(&probe).await
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

#[test]
fn a_name_that_a_server_knows_passes_over_the_domain_alone() {
    in_lab(async |lab| {
        for target in targets(lab) {
            let known = [ip("192.0.2.1"), ip("2001:db8::1")];
            let server = knowing(lab, target, &known);
            let report = ask(probe(lab), &[server], None).await;
            assert_eq!(report.outcome, Outcome::Passed);
            assert_eq!(report.lost, 0);
            assert!(report.rtt.is_some());
            for address in known {
                let report = ask(probe(lab), &[server], Some(address)).await;
                assert_eq!(report.outcome, Outcome::Passed);
                assert_eq!((report.asked, report.lost), (1, 0));
            }
            only_by_uplink(lab, target);
        }
    });
}

#[test]
fn a_server_with_a_link_local_address_is_one_of_the_interface() {
    in_lab(async |lab| {
        let gateway = lab.peer_link_local(UPLINK).expect("a link-local address");
        let server = knowing(lab, gateway, &[ip("192.0.2.1")]);
        assert_eq!(
            ask(probe(lab), &[server], None).await.outcome,
            Outcome::Passed
        );
    });
}

#[test]
fn a_name_of_one_family_is_enough() {
    in_lab(async |lab| {
        for known in ["192.0.2.1", "2001:db8::1"] {
            let server = knowing(lab, lab.target4(), &[ip(known)]);
            assert_eq!(
                ask(probe(lab), &[server], None).await.outcome,
                Outcome::Passed
            );
        }
    });
}

#[test]
fn another_address_than_the_known_one_is_a_portal() {
    in_lab(async |lab| {
        let server = knowing(lab, lab.target4(), &[ip("10.2.0.1"), ip("10.2.0.2")]);
        let report = ask(probe(lab), &[server], Some(ip("192.0.2.1"))).await;
        assert_eq!(report.outcome, Outcome::Portal(None));
        assert_eq!((report.asked, report.lost), (1, 0));
        let report = ask(probe(lab), &[server], Some(ip("10.2.0.2"))).await;
        assert_eq!(report.outcome, Outcome::Passed);
    });
}

#[test]
fn an_answer_without_address_fails_but_is_not_lost() {
    in_lab(async |lab| {
        let known = Some(ip("192.0.2.1"));
        let at = lab.target4();
        for (code, why) in [
            (ResponseCode::NXDomain, "Non-Existent Domain"),
            (ResponseCode::ServFail, "Server Failure"),
            (ResponseCode::Refused, "Query Refused"),
            (ResponseCode::NoError, "no A record"),
        ] {
            let report = ask(probe(lab), &[saying(lab, at, code)], known).await;
            assert_eq!(reason(&report), format!("DNS {NAME}: {at}: {why}"));
            assert_eq!((report.asked, report.lost), (1, 0));
        }
        // Nothing listens there.
        let report = ask(probe(lab), &[SocketAddr::new(at, 1)], known).await;
        assert_eq!(
            reason(&report),
            format!("DNS {NAME}: {at}: connection refused")
        );
        assert_eq!((report.asked, report.lost), (1, 0));
    });
}

#[test]
fn silence_is_lost_and_every_server_is_asked() {
    in_lab(async |lab| {
        let silent = SocketAddr::new(nobody(), 53);
        let known = ip("192.0.2.1");
        let report = ask(short(lab), &[silent], Some(known)).await;
        assert_eq!(
            reason(&report),
            "DNS check.example from 10.2.0.77: no answer within 2s"
        );
        assert_eq!((report.asked, report.lost), (1, 1));
        let refusing = saying(lab, lab.target4(), ResponseCode::Refused);
        let server = knowing(lab, lab.target4(), &[known]);
        let report = ask(probe(lab), &[silent, refusing, server], Some(known)).await;
        assert_eq!(report.outcome, Outcome::Passed);
        assert_eq!(report.lost, 0);
    });
}

#[test]
fn without_a_server_of_a_family_of_the_domain_nothing_is_asked() {
    in_lab(async |lab| {
        let none = "DNS: the domain has no name server";
        assert_eq!(reason(&ask(probe(lab), &[], None).await), none);
        let at = lab.target6();
        let probe = Probe {
            source6: None,
            ..probe(lab)
        };
        let server = knowing(lab, at, &[ip("192.0.2.1")]);
        assert_eq!(reason(&ask(probe, &[server], None).await), none);
        lab.assert_silent(at).expect("nothing sent");
    });
}

#[test]
fn an_answer_to_another_question_is_not_taken() {
    in_lab(async |lab| {
        let (right, wrong) = (ip("192.0.2.1"), ip("192.0.2.2"));
        let server = server(lab, lab.target4(), move |question| {
            let mut other_id = found(question.clone(), &[wrong]);
            other_id.metadata.id ^= 1;
            let mut other_name = found(question.clone(), &[wrong]);
            other_name.queries[0].name = "other.example.".parse().expect("a name");
            let right = found(question, &[right]);
            vec![
                vec![],
                vec![0; 3],
                bytes(&other_id),
                bytes(&other_name),
                bytes(&right),
            ]
        });
        let log = Log::default();
        let servers = [server];
        let asked = ask(probe(lab), &servers, Some(right));
        let report = asked.with_subscriber(log.clone()).await;
        assert_eq!(report.outcome, Outcome::Passed);
        // Whoever answers so could fill it.
        assert_eq!(*log.0.lock().expect("no panic"), [""; 0]);
    });
}

/// Events that are logged with the level that the agent has by itself.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<&'static str>>>);

impl Subscriber for Log {
    fn enabled(&self, event: &Metadata<'_>) -> bool {
        *event.level() <= Level::INFO
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        self.0
            .lock()
            .expect("no panic")
            .push(event.metadata().name());
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[test]
fn a_malformed_answer_fails() {
    in_lab(async |lab| {
        for mangle in [
            (|mut answer: Vec<u8>| {
                answer.truncate(answer.len() - 3);
                answer
            }) as fn(Vec<u8>) -> Vec<u8>,
            // The answer's name is a pointer to itself.
            |mut answer| {
                let name = answer.len() - 16;
                answer[name..name + 2].copy_from_slice(&[0xc0, u8::try_from(name).expect("short")]);
                answer
            },
            // Far more records than there are.
            |mut answer| {
                answer[6..8].fill(0xff);
                answer
            },
        ] {
            let known = ip("192.0.2.1");
            let server = server(lab, lab.target4(), move |question| {
                vec![mangle(bytes(&found(question, &[known])))]
            });
            let report = ask(probe(lab), &[server], Some(known)).await;
            assert!(
                reason(&report).starts_with("DNS check.example: "),
                "{report:?}"
            );
            assert_eq!((report.asked, report.lost), (1, 0));
        }
    });
}

/// A name server that says by UDP that its answer is too long, and by TCP what `answer` makes of it.
fn truncating(
    lab: &Lab,
    at: IpAddr,
    answer: impl Fn(Message) -> Vec<u8> + Send + Clone + 'static,
) -> SocketAddr {
    let address = server(lab, at, |question| {
        let mut answer = question.into_response();
        answer.metadata.truncation = true;
        vec![bytes(&answer)]
    });
    serve_at(lab, address, move |mut stream| {
        let answer = answer.clone();
        async move {
            let length = stream.read_u16().await.expect("a length");
            let mut question = vec![0; length.into()];
            stream.read_exact(&mut question).await.expect("a question");
            let said = answer(Message::from_vec(&question).expect("a message"));
            say(&mut stream, &said).await;
            // Until the probe is over.
            assert!(stream.read_u8().await.is_err(), "one question");
        }
    })
}

#[test]
fn a_truncated_answer_is_asked_for_by_tcp() {
    in_lab(async |lab| {
        let known = ip("192.0.2.1");
        for target in targets(lab) {
            let server = truncating(lab, target, move |question| {
                let answer = bytes(&found(question, &[known]));
                let length = u16::try_from(answer.len()).expect("short");
                [&length.to_be_bytes(), answer.as_slice()].concat()
            });
            let report = ask(probe(lab), &[server], Some(known)).await;
            assert_eq!(report.outcome, Outcome::Passed);
            only_by_uplink(lab, target);
        }
        // One that promises more than it gives.
        let server = truncating(lab, lab.target4(), |_question| vec![0xff, 0xff, 1, 2, 3]);
        let report = ask(short(lab), &[server], Some(known)).await;
        assert!(
            reason(&report).ends_with("no answer within 2s"),
            "{report:?}"
        );
    });
}

#[test]
fn names_of_other_targets_are_looked_up_over_the_domain() {
    in_lab(async |lab| {
        let dns = lab.target4();
        for target in targets(lab) {
            let web = http(lab, target, "HTTP/1.1 204 No Content\r\n\r\n");
            let named = || Host::Name(NAME.to_owned());
            let mut probe = probe(lab);
            probe.servers = vec![knowing(lab, dns, &[target])];
            probe.check.http = vec![HttpTarget {
                host: named(),
                port: web.port(),
                path: "/".to_owned(),
            }];
            probe.check.tcp = vec![(named(), web.port())];
            probe.check.icmp = vec![named()];
            assert_eq!(run(&probe).await.outcome, Outcome::Passed);
            only_by_uplink(lab, target);
        }
        only_by_uplink(lab, dns);
    });
}

#[test]
fn a_name_that_is_lost_once_is_asked_for_again() {
    in_lab(async |lab| {
        let target = lab.target4();
        let web = serve(lab, target, async |_stream| {});
        let first = std::sync::atomic::AtomicBool::new(true);
        let mut probe = probe(lab);
        // The question is repeated after a part of this.
        probe.timeout = std::time::Duration::from_secs(4);
        probe.source6 = None;
        probe.servers = vec![server(lab, lab.target4(), move |question| {
            match first.swap(false, std::sync::atomic::Ordering::Relaxed) {
                true => vec![],
                false => vec![bytes(&found(question, &[target]))],
            }
        })];
        probe.check.tcp = vec![(Host::Name(NAME.to_owned()), web.port())];
        let report = run(&probe).await;
        assert_eq!(report.outcome, Outcome::Passed);
        assert_eq!((report.asked, report.lost), (2, 0));
    });
}

#[test]
fn a_name_that_is_none_fails_by_itself() {
    in_lab(async |lab| {
        let at = lab.target4();
        let mut probe = probe(lab);
        probe.servers = vec![knowing(lab, at, &[ip("192.0.2.1")])];
        for name in ["a..b", &"a".repeat(64), &"a.".repeat(200)] {
            probe.check.tcp = vec![(Host::Name(name.to_owned()), 1)];
            assert!(reason(&run(&probe).await).starts_with("DNS "), "{name}");
        }
        lab.assert_silent(at).expect("nothing sent");
    });
}
