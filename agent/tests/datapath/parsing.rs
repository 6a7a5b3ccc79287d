//! What the packet programs make of packets of every shape: the programs themselves, run by
//! `BPF_PROG_TEST_RUN` on tables of frames.
//!
//! The process that runs them has a policy that repairs. A frame whose flow can be told is rewritten, and
//! compared with one that was built with the other address; any other comes out as it went in.

use steer_common::{IngressEntry, MAX_REPAIRED};

use crate::{
    child::Child,
    frames::{Body, Frame, checksum},
    lab::{Lab, SERVER4, SERVER6, ifindex, ip},
    repair::{BARE_RETURNS, RETURNS, repaired},
};

const ONE4: &str = "10.0.1.2";
const ONE6: &str = "fd00:1::2";
const TWO4: &str = "10.0.2.2";
const TWO6: &str = "fd00:2::2";
/// The host's hardware address at `h1`, and the router's.
const HOST: [u8; 6] = [2, 0, 0, 0, 0, 1];
const ROUTER: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// Bytes of the shortest frame of this kind that the kernel runs a program on: it asks for the IP header.
fn least(frame: &Frame) -> usize {
    if frame.source.is_ipv4() { 34 } else { 54 }
}

/// `TCX_NEXT`
const LEFT: i32 = -1;
/// `TC_ACT_REDIRECT`
const REDIRECTED: i32 = 7;

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// Runs the guard of `h1` or the ingress program of `h2`.
fn run(lab: &Lab, child: &mut Child, program: &str, frame: &[u8]) -> (i32, Vec<u8>) {
    let index = ifindex(if program == "guard" { "h1" } else { "h2" });
    let pin = lab.layout().join(format!("links/{program}-{index}"));
    let hex: String = frame.iter().map(|byte| format!("{byte:02x}")).collect();
    let answer = child.ask(&format!("test-run {} {index} {hex}", pin.display()));
    let mut words = answer.strip_prefix("ok ").expect(&answer).split(' ');
    let verdict = words.next().unwrap().parse().unwrap();
    let hex = words.next().unwrap_or_default();
    let after = (0..hex.len() / 2)
        .map(|at| u8::from_str_radix(&hex[at * 2..at * 2 + 2], 16).unwrap())
        .collect();
    (verdict, after)
}

fn outbound(frame: &Frame) -> Vec<u8> {
    frame.bytes(ROUTER, HOST)
}

fn inbound(frame: &Frame) -> Vec<u8> {
    frame.bytes([9; 6], ROUTER)
}

/// As [`repaired`], with the process in the policy's cgroup.
fn tested(test: impl FnOnce(&mut Lab, &mut Child) + Send + 'static) {
    repaired(|lab, child, group| {
        lab.give(&group, 1, 0);
        test(lab, child);
    });
}

fn udp4() -> Frame {
    Frame::new(ONE4, SERVER4, Body::Udp(1000, 53, b"query".to_vec()))
}

fn udp6() -> Frame {
    Frame::new(ONE6, SERVER6, Body::Udp(1000, 53, b"query".to_vec()))
}

/// An extension header of eight bytes.
const SHORT: [u8; 8] = [0; 8];
/// One of 24.
const LONG: [u8; 24] = {
    let mut bytes = [0; 24];
    bytes[1] = 2;
    bytes
};

/// Frames whose flow can be told.
fn told() -> Vec<(&'static str, Frame)> {
    let four = |body| Frame::new(ONE4, SERVER4, body);
    let six = |body| Frame::new(ONE6, SERVER6, body);
    vec![
        ("udp", udp4()),
        ("udp", udp6()),
        (
            "udp of odd length",
            four(Body::Udp(1001, 53, b"odd".to_vec())),
        ),
        ("udp without payload", six(Body::Udp(1001, 53, Vec::new()))),
        ("udp without checksum", four(Body::UdpUnsummed(1002, 53))),
        ("udp without checksum", six(Body::UdpUnsummed(1002, 53))),
        ("first of a connection", four(Body::Tcp(1003, 80, SYN))),
        ("first of a connection", six(Body::Tcp(1003, 80, SYN))),
        ("later of a connection", four(Body::Tcp(1003, 80, ACK))),
        ("later of a connection", six(Body::Tcp(1003, 80, ACK))),
        ("echo", four(Body::Echo(77))),
        ("echo", six(Body::Echo(77))),
        ("options", udp4().options(&[1; 4])),
        ("as many options as there can be", udp4().options(&[1; 40])),
        ("hop-by-hop", udp6().extension(0, &SHORT)),
        ("destination options", udp6().extension(60, &LONG)),
        ("routing at its end", udp6().extension(43, &SHORT)),
        ("atomic fragment", udp6().extension(44, &SHORT)),
        (
            "chain of all",
            six(Body::Tcp(1004, 80, SYN))
                .extension(0, &LONG)
                .extension(60, &SHORT)
                .extension(43, &LONG)
                .extension(60, &LONG),
        ),
        (
            "chain as long as is walked",
            (0..8).fold(udp6(), |frame, _| frame.extension(60, &SHORT)),
        ),
        ("first fragment", udp4().fragment(500, 0, true)),
        ("later fragment", later4(500)),
        ("first fragment", udp6().fragment(501, 0, true)),
        ("later fragment", later6(501)),
    ]
}

fn later4(id: u16) -> Frame {
    Frame::new(ONE4, SERVER4, Body::Other(17, vec![0x11; 16])).fragment(id, 1480, false)
}

fn later6(id: u16) -> Frame {
    Frame::new(ONE6, SERVER6, Body::Other(17, vec![0x11; 16])).fragment(id, 1448, true)
}

/// Frames that are left as they are.
fn left() -> Vec<(&'static str, Frame)> {
    let four = |body| Frame::new(ONE4, SERVER4, body);
    let six = |body| Frame::new(ONE6, SERVER6, body);
    let next = |kind: u8| {
        let mut bytes = SHORT;
        bytes[1] = kind;
        bytes
    };
    let mut more_to_go = SHORT;
    more_to_go[3] = 1;
    vec![
        (
            "connection that began elsewhere",
            four(Body::Tcp(2000, 80, ACK)),
        ),
        (
            "answer to a connection",
            four(Body::Tcp(2001, 80, SYN | ACK)),
        ),
        ("echo reply", four(Body::Reply(70))),
        ("echo reply", six(Body::Reply(70))),
        ("error", four(Body::Error(3, 1, udp4().packet()))),
        ("error", six(Body::Error(3, 1, udp6().packet()))),
        (
            "neighbour solicitation",
            six(Body::Other(58, vec![135; 24])),
        ),
        (
            "icmp of the other family",
            four(Body::Other(58, vec![128; 16])),
        ),
        ("icmp of the other family", six(Body::Other(1, vec![8; 16]))),
        ("sctp", four(Body::Other(132, vec![0; 12]))),
        ("esp", four(Body::Other(50, vec![0; 16]))),
        ("esp", six(Body::Other(50, vec![0; 16]))),
        ("no next header", six(Body::Other(59, Vec::new()))),
        ("signed", four(Body::Other(51, vec![0; 24]))),
        ("signed", udp6().extension(51, &LONG)),
        (
            "routing that is not at its end",
            udp6().extension(43, &more_to_go),
        ),
        (
            "chain longer than is walked",
            (0..9).fold(udp6(), |frame, _| frame.extension(60, &SHORT)),
        ),
        ("header beyond the packet", udp6().extension(60, &next(200))),
        (
            "fragment of a fragment",
            udp6()
                .extension(44, &[0, 0, 0, 1, 0, 0, 0, 9])
                .fragment(502, 0, true),
        ),
        ("later fragment of nothing", later4(600)),
        ("later fragment of nothing", later6(601)),
        (
            "udp cut short",
            four(Body::Other(17, vec![0, 1, 0, 2, 0, 8, 0])),
        ),
        ("tcp cut short", four(Body::Other(6, vec![0; 19]))),
        (
            "echo cut short",
            six(Body::Other(58, vec![128, 0, 0, 0, 0, 1, 0])),
        ),
        (
            "nothing behind the header",
            four(Body::Other(17, Vec::new())),
        ),
        ("in a VLAN", udp4().in_vlan()),
        ("in a VLAN", udp6().in_vlan()),
        ("to this host", udp4().to("127.0.0.1")),
        ("to the link", udp6().to("fe80::1")),
        ("to many", udp4().to("224.0.0.251")),
        ("v4-mapped on the wire", udp6().from("::ffff:10.0.1.2")),
    ]
}

fn moved(frame: &Frame) -> Frame {
    let source = if frame.source.is_ipv4() { TWO4 } else { TWO6 };
    frame.clone().from(source)
}

/// The frame between IP headers: what the kernel puts in front when it is redirected is its own affair.
fn ip_of(frame: &[u8]) -> &[u8] {
    &frame[14..]
}

#[test]
fn packets_whose_flow_can_be_told_are_rewritten_to_the_byte() {
    tested(|lab, child| {
        for (name, frame) in told() {
            let (verdict, after) = run(lab, child, "guard", &outbound(&frame));
            assert_eq!(
                verdict,
                REDIRECTED,
                "{name}: {frame:02x?}",
                frame = frame.packet()
            );
            assert_eq!(ip_of(&after), moved(&frame).packet(), "{name}");
        }
    });
}

#[test]
fn other_packets_are_left_as_they_are() {
    tested(|lab, child| {
        for (name, frame) in left() {
            let before = outbound(&frame);
            let (verdict, after) = run(lab, child, "guard", &before);
            assert_eq!((verdict, &after), (LEFT, &before), "{name}");
        }
        assert_eq!(lab.datapath().counters().unwrap().repaired, 0);
    });
}

#[test]
fn packets_that_end_too_early_are_left_as_they_are() {
    tested(|lab, child| {
        for (name, frame) in told() {
            let whole = outbound(&frame);
            // So that there are leases.
            run(lab, child, "guard", &whole);
            for length in least(&frame)..whole.len() {
                let (verdict, after) = run(lab, child, "guard", &whole[..length]);
                assert_eq!(
                    (verdict, &*after),
                    (LEFT, &whole[..length]),
                    "{name} of {length} bytes"
                );
            }
        }
    });
}

#[test]
fn headers_that_tell_what_cannot_be_are_left_as_they_are() {
    tested(|lab, child| {
        let mut frames = Vec::new();
        for frame in [udp4(), udp6(), udp4().options(&[1; 8])] {
            let whole = outbound(&frame);
            run(lab, child, "guard", &whole);
            let mut with = |name: String, at: usize, bytes: &[u8]| {
                let mut frame = whole.clone();
                frame[at..at + bytes.len()].copy_from_slice(bytes);
                frames.push((name, frame));
            };
            if frame.source.is_ipv4() {
                for length in 0..5 {
                    with(format!("header of {length} words"), 14, &[0x40 | length]);
                }
                with("header longer than the packet".into(), 14, &[0x4f]);
                for length in [0, 1, 19, 20, 27] {
                    with(format!("length {length}"), 16, &[0, length]);
                }
                with("length beyond the end".into(), 16, &[0xff, 0xff]);
                with("of IPv6".into(), 14, &[0x65]);
            } else {
                for length in [0, 1, 7] {
                    with(format!("payload of {length}"), 18, &[0, length]);
                }
                with("payload beyond the end".into(), 18, &[0xff, 0xff]);
                with("of IPv4".into(), 14, &[0x40]);
            }
        }
        for (name, frame) in frames {
            let (verdict, after) = run(lab, child, "guard", &frame);
            assert_eq!((verdict, &after), (LEFT, &frame), "{name}");
        }
    });
}

#[test]
fn what_pads_a_packet_is_no_part_of_it() {
    tested(|lab, child| {
        for frame in [udp4(), udp6()] {
            let padded = [outbound(&frame), vec![0xee; 7]].concat();
            let (verdict, after) = run(lab, child, "guard", &padded);
            assert_eq!(verdict, REDIRECTED);
            let expected = [moved(&frame).packet(), vec![0xee; 7]].concat();
            assert_eq!(ip_of(&after), expected);
        }
    });
}

#[test]
fn pings_displace_no_connection() {
    tested(|lab, child| {
        let connection = |flags| Frame::new(ONE4, SERVER4, Body::Tcp(1003, 80, flags));
        run(lab, child, "guard", &outbound(&connection(SYN)));
        // More than there is room for, each used often enough to count as used.
        for identifier in 0..MAX_REPAIRED + MAX_REPAIRED / 4 {
            let identifier = u16::try_from(identifier).unwrap();
            let ping = outbound(&Frame::new(ONE4, SERVER4, Body::Echo(identifier)));
            for _ in 0..3 {
                assert_eq!(run(lab, child, "guard", &ping).0, REDIRECTED);
            }
        }
        let later = connection(ACK);
        let (verdict, after) = run(lab, child, "guard", &outbound(&later));
        assert_eq!(verdict, REDIRECTED);
        assert_eq!(ip_of(&after), moved(&later).packet());
    });
}

/// Answers to what [`told`] has.
fn answers() -> Vec<(&'static str, Frame)> {
    let four = |body| Frame::new(SERVER4, TWO4, body);
    let six = |body| Frame::new(SERVER6, TWO6, body);
    let answer = || Body::Udp(53, 1000, b"answer".to_vec());
    vec![
        ("udp", four(answer())),
        ("udp", six(answer())),
        ("udp with options", four(answer()).options(&[1; 8])),
        (
            "udp with headers",
            six(answer()).extension(0, &SHORT).extension(60, &LONG),
        ),
        ("udp without checksum", four(Body::UdpUnsummed(53, 1002))),
        ("tcp", four(Body::Tcp(80, 1003, SYN | ACK))),
        ("tcp", six(Body::Tcp(80, 1003, ACK))),
        ("echo", four(Body::Reply(77))),
        ("echo", six(Body::Reply(77))),
        ("first fragment", four(answer()).fragment(300, 0, true)),
        (
            "later fragment",
            four(Body::Other(17, vec![0x22; 24])).fragment(300, 1480, false),
        ),
        ("first fragment", six(answer()).fragment(301, 0, true)),
        (
            "later fragment",
            six(Body::Other(17, vec![0x22; 24])).fragment(301, 1448, false),
        ),
    ]
}

fn home(frame: &Frame) -> Frame {
    let destination = if frame.source.is_ipv4() { ONE4 } else { ONE6 };
    frame.clone().to(destination)
}

/// Has every flow of [`told`] repaired, so that there are leases.
fn lease_all(lab: &Lab, child: &mut Child) {
    for (_, frame) in told() {
        run(lab, child, "guard", &outbound(&frame));
    }
}

#[test]
fn answers_go_where_their_socket_expects_them() {
    answered(RETURNS);
}

#[test]
fn answers_do_so_too_where_the_link_layer_is_not_known() {
    answered(BARE_RETURNS);
}

fn answered(returns: IngressEntry) {
    tested(move |lab, child| {
        lab.datapath()
            .set_ingress(ifindex("h2"), Some(returns))
            .unwrap();
        let frames = answers();
        for (name, frame) in &frames {
            let before = inbound(frame);
            // Nobody's answers.
            let (verdict, after) = run(lab, child, "ingress", &before);
            assert_eq!((verdict, &after), (LEFT, &before), "{name}, unasked");
        }
        lease_all(lab, child);
        for (name, frame) in &frames {
            let whole = inbound(frame);
            let (verdict, after) = run(lab, child, "ingress", &whole);
            assert_eq!(verdict, REDIRECTED, "{name}");
            assert_eq!(after, home(frame).bytes(HOST, ROUTER), "{name}");
            for length in least(frame)..whole.len() {
                let (verdict, after) = run(lab, child, "ingress", &whole[..length]);
                assert_eq!(
                    (verdict, &*after),
                    (LEFT, &whole[..length]),
                    "{name} of {length} bytes"
                );
            }
        }
        // The peer asks by the identifier of an echo of ours.
        let frame = inbound(&Frame::new(SERVER4, TWO4, Body::Echo(77)));
        let (verdict, after) = run(lab, child, "ingress", &frame);
        assert_eq!((verdict, after), (LEFT, frame));
    });
}

#[test]
fn what_looks_like_an_answer_in_a_frame_of_another_type_is_left_as_it_is() {
    tested(|lab, child| {
        lease_all(lab, child);
        for answer in [
            Frame::new(SERVER4, TWO4, Body::Tcp(80, 1003, ACK)),
            Frame::new(SERVER6, TWO6, Body::Tcp(80, 1003, ACK)),
        ] {
            let mut frame = inbound(&answer);
            assert_eq!(run(lab, child, "ingress", &frame).0, REDIRECTED);
            frame[12..14].copy_from_slice(&[0x88, 0xb5]);
            let (verdict, after) = run(lab, child, "ingress", &frame);
            assert_eq!((verdict, after), (LEFT, frame));
        }
    });
}

#[test]
fn errors_go_back_with_the_packet_that_was_sent() {
    tested(|lab, child| {
        lease_all(lab, child);
        let of_flows = |(_, frame): &(&str, Frame)| {
            frame.fragment.is_none() && frame.extensions.iter().all(|(kind, _)| *kind != 44)
        };
        for (name, frame) in told().iter().filter(|told| of_flows(told)) {
            let v4 = frame.source.is_ipv4();
            let (router, here) = if v4 {
                ("10.0.2.1", TWO4)
            } else {
                ("fd00:2::1", TWO6)
            };
            let (sent, was) = (moved(frame).packet(), frame.packet());
            let header = was.len() - frame.body_length();
            let mut least = None;
            for (kind4, kind6) in [(3, 1), (11, 3), (12, 4), (3, 2)] {
                for length in 0..=was.len() {
                    let error = |borne: &[u8]| Body::Error(kind4, kind6, borne.to_vec());
                    let error = Frame::new(router, here, error(&sent[..length]));
                    let whole = inbound(&error);
                    let (verdict, after) = run(lab, child, "ingress", &whole);
                    if verdict == LEFT {
                        assert_eq!(after, whole, "{name}, {length} bytes borne");
                        assert!(length < was.len(), "{name}");
                        continue;
                    }
                    assert_eq!(verdict, REDIRECTED, "{name}, {length} bytes borne");
                    least = Some(least.unwrap_or(length).min(length));
                    let mut borne = was[..length].to_vec();
                    // Half a checksum of TCP cannot be put right, and stays.
                    if matches!(frame.body, Body::Tcp(..)) && length == header + 17 {
                        borne[length - 1] = sent[length - 1];
                    }
                    let mut expected = home(&error);
                    expected.body = Body::Error(kind4, kind6, borne);
                    assert_eq!(
                        after,
                        expected.bytes(HOST, ROUTER),
                        "{name}, {length} bytes borne"
                    );
                }
            }
            // Eight bytes of the transport are enough (RFC 792).
            assert_eq!(least, Some(header + 8), "{name}");
        }
    });
}

#[test]
fn what_is_too_big_is_told_to_its_sender() {
    tested(|lab, child| {
        ip("link set h2 mtu 1280");
        for (frame, kind) in [(udp4(), 3), (udp6(), 2)] {
            let mut frame = frame;
            frame.body = Body::Udp(1000, 53, vec![0x33; 1300]);
            let (verdict, after) = run(lab, child, "guard", &outbound(&frame));
            assert_eq!(verdict, REDIRECTED);
            assert_eq!(after[..12], [HOST, HOST].concat());
            let was = frame.packet();
            let mut expected = Frame::new(
                &frame.destination.to_string(),
                &frame.source.to_string(),
                Body::Error(3, 2, Vec::new()),
            );
            let borne = if kind == 3 { 80 } else { 128 };
            expected.body = Body::Error(3, 2, was[..borne].to_vec());
            let v4 = frame.source.is_ipv4();
            let at = if v4 { 20 } else { 40 };
            let packet = ip_of(&after);
            assert_eq!(packet.len(), at + 8 + borne);
            assert_eq!(packet[at..at + 2], if v4 { [3, 4] } else { [2, 0] });
            assert_eq!(packet[at + 6..at + 8], 1280_u16.to_be_bytes());
            assert_eq!(packet[at + 8..], was[..borne]);
            let expected = expected.packet();
            if v4 {
                assert_eq!(packet[12..20], expected[12..20]);
                assert_eq!(checksum(&packet[..20], 0), 0);
                assert_eq!(checksum(&packet[20..], 0), 0);
            } else {
                assert_eq!(packet[8..40], expected[8..40]);
                let length = u32::try_from(packet.len() - 40).unwrap();
                assert_eq!(packet[4..7], [0, u8::try_from(length).unwrap(), 58]);
                assert_eq!(checksum(&packet[8..], length + 58), 0);
            }
        }
        let counters = lab.datapath().counters().unwrap();
        assert_eq!((counters.repair_too_big, counters.repaired), (2, 0));
    });
}

#[test]
fn two_flows_that_would_look_alike_are_not_both_repaired() {
    tested(|lab, child| {
        let first = udp4();
        let second = udp4().from("10.0.1.99");
        let (verdict, _) = run(lab, child, "guard", &outbound(&first));
        assert_eq!(verdict, REDIRECTED);
        let before = outbound(&second);
        let (verdict, after) = run(lab, child, "guard", &before);
        assert_eq!((verdict, after), (LEFT, before));
        assert_eq!(lab.datapath().counters().unwrap().repair_refused, 1);
        // The first goes on.
        let (verdict, _) = run(lab, child, "guard", &outbound(&first));
        assert_eq!(verdict, REDIRECTED);
    });
}
