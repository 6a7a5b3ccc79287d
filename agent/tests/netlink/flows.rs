//! Live flows: what is listed, and what closing one does to both ends.

use std::collections::HashMap;
use std::io::{ErrorKind, Read as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};

use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use steer::cgroup::sockets;
use steer::netlink::{Condition, FlowPhase, LiveFlow, Transport, Wanted, live_flows, reset_flows};

use crate::in_namespace;

/// Both ends of a TCP connection, the one that asked first.
fn connection(listener: &TcpListener, target: SocketAddr) -> (TcpStream, TcpStream) {
    let asks = TcpStream::connect(target).expect("a connection");
    let (answers, _) = listener.accept().expect("a connection");
    (asks, answers)
}

fn datagrams(from: &str, to: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind(from).expect("a socket");
    socket.connect(to).expect("a peer");
    socket
}

async fn all() -> Vec<LiveFlow> {
    some(&[]).await
}

async fn some(any: &[Condition]) -> Vec<LiveFlow> {
    let wanted = Wanted {
        any,
        ..Wanted::default()
    };
    live_flows(wanted).await.expect("a list")
}

fn of(flows: &[LiveFlow], local: SocketAddr) -> &LiveFlow {
    let mut found = flows.iter().filter(|flow| flow.local == local);
    let flow = found.next();
    assert_eq!(found.next(), None, "listed twice");
    flow.unwrap_or_else(|| panic!("{local} is not among {flows:?}"))
}

#[test]
fn every_socket_with_a_peer_is_a_flow_and_no_other() {
    in_namespace(|| async {
        let four = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let both = TcpListener::bind("[::]:0").expect("a listener");
        let port = both.local_addr().expect("an address").port();
        let unconnected = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let server = unconnected.local_addr().expect("an address");
        assert_eq!(all().await, [], "listeners and servers are no flows");

        let tcp = connection(&four, four.local_addr().expect("an address"));
        let six = connection(&both, SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], port)));
        let mapped = connection(&both, SocketAddr::from(([127, 0, 0, 1], port)));
        let udp = datagrams("127.0.0.1:0", server);
        setsockopt(&udp, sockopt::Mark, &0x0100_0007).expect("a mark");

        let flows = all().await;
        assert_eq!(flows.len(), 7, "{flows:?}");
        for (transport, asks, answers) in [
            (Transport::Tcp, &tcp.0, Some(&tcp.1)),
            (Transport::Tcp, &six.0, Some(&six.1)),
            (Transport::Tcp, &mapped.0, Some(&mapped.1)),
        ] {
            let (local, peer) = (asks.local_addr().unwrap(), asks.peer_addr().unwrap());
            let flow = of(&flows, local);
            assert_eq!((flow.transport, flow.phase), (transport, FlowPhase::Open));
            assert_eq!((flow.peer, flow.accepted), (peer, false));
            assert_eq!((flow.uid, flow.v6), (0, local.is_ipv6()));
            assert_ne!((flow.inode, flow.cookie), (0, 0));
            if let Some(answers) = answers {
                let other = flows.iter().find(|flow| flow.peer == local);
                let other = other.expect("the other end");
                assert!(other.accepted, "{other:?}");
                let name = answers.local_addr().unwrap();
                assert_eq!(other.local.port(), name.port());
                assert_eq!(other.v6, name.is_ipv6());
                assert!(!other.local.is_ipv6() || local.is_ipv6(), "told as IPv4");
            }
        }
        let flow = of(&flows, udp.local_addr().unwrap());
        assert_eq!(
            (flow.transport, flow.phase, flow.peer, flow.mark),
            (Transport::Udp, FlowPhase::Open, server, 0x0100_0007)
        );
        assert_eq!(flow.carried, None, "nobody asked");
    });
}

#[test]
fn flows_tell_what_they_carried() {
    in_namespace(|| async {
        use std::io::Write as _;
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let (mut asks, mut answers) =
            connection(&listener, listener.local_addr().expect("an address"));
        asks.write_all(&[7; 5000]).expect("it is sent");
        answers.read_exact(&mut [0; 5000]).expect("it comes");
        answers.write_all(&[7; 300]).expect("it is sent");
        asks.read_exact(&mut [0; 300]).expect("it comes");
        let wanted = Wanted {
            carried: true,
            ..Wanted::default()
        };
        let flows = live_flows(wanted).await.expect("a list");
        let carried = of(&flows, asks.local_addr().unwrap()).carried;
        let carried = carried.expect("TCP knows");
        // The kernel counts the handshake's number as an acknowledged byte on one side.
        assert!((5000..=5001).contains(&carried.bytes_out), "{carried:?}");
        assert_eq!(carried.bytes_in, 300);
        assert!(
            carried.packets_out >= 3 && carried.packets_in >= 2,
            "{carried:?}"
        );
    });
}

#[test]
fn the_kernel_filters_by_any_of_several_marks_and_cgroups() {
    in_namespace(|| async {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let (asks, _answers) = connection(&listener, listener.local_addr().expect("an address"));
        setsockopt(&asks, sockopt::Mark, &0x0300_0001).expect("a mark");
        let name = asks.local_addr().unwrap();
        let cgroup = of(&all().await, name).cgroup;
        assert_ne!(cgroup, 0, "the kernel tells it from 5.7 on");

        let mark = |mark| Condition::Mark {
            mark,
            mask: 0x7700_0000,
        };
        let count = async |any: &[Condition]| some(any).await.len();
        assert_eq!(count(&[mark(0x0300_0000)]).await, 1);
        assert_eq!(count(&[mark(0x0100_0000)]).await, 0);
        assert_eq!(count(&[mark(0x0100_0000), mark(0x0300_0000)]).await, 1);
        assert_eq!(count(&[mark(0x0300_0000), mark(0x0100_0000)]).await, 1);
        assert_eq!(count(&[Condition::Cgroup(cgroup)]).await, 2);
        assert_eq!(count(&[Condition::Cgroup(cgroup ^ 1 << 40)]).await, 0);
        // More than one request takes, the right one among the last and the first, told once.
        let mut many: Vec<Condition> = (0..3000)
            .map(|other| Condition::Cgroup(1 << 40 | other))
            .collect();
        assert_eq!(count(&many).await, 0);
        many.push(Condition::Cgroup(cgroup));
        assert_eq!(count(&many).await, 2);
        many.insert(0, mark(0x0300_0000));
        assert_eq!(count(&many).await, 2);
    });
}

#[test]
fn a_reset_flow_ends_at_once_at_both_ends_and_servers_live_on() {
    in_namespace(|| async {
        let listener = TcpListener::bind("[::]:0").expect("a listener");
        let port = listener.local_addr().expect("an address").port();
        for target in [
            SocketAddr::from(([127, 0, 0, 1], port)),
            SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], port)),
        ] {
            let (mut asks, mut answers) = connection(&listener, target);
            let other = connection(&listener, target);
            let flows = all().await;
            let flow = of(&flows, asks.local_addr().unwrap());
            let outcomes = reset_flows([flow]).await.expect("a socket");
            assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
            let error = asks.read(&mut [0]).expect_err("it is closed");
            assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
            let error = answers.read(&mut [0]).expect_err("the peer hears of it");
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            let left = all().await;
            assert!(
                left.iter()
                    .any(|flow| flow.local == other.0.local_addr().unwrap())
            );
            // Once more, it is gone already.
            let outcomes = reset_flows([flow]).await.expect("a socket");
            assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
            connection(&listener, target);
        }
    });
}

#[test]
fn a_reset_datagram_socket_sees_an_error_and_may_connect_again() {
    in_namespace(|| async {
        let server = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let name = server.local_addr().unwrap();
        let socket = datagrams("127.0.0.1:0", name);
        let mapped = UdpSocket::bind("[::]:0").expect("a socket");
        let as_six = SocketAddr::from(([0, 0, 0, 0, 0, 0xffff, 0x7f00, 1], name.port()));
        mapped.connect(as_six).expect("a peer");
        let flows = all().await;
        assert_eq!(flows.len(), 2, "{flows:?}");
        for outcome in reset_flows(&flows).await.expect("a socket") {
            outcome.expect("it is reset");
        }
        for (socket, again) in [(&socket, name), (&mapped, as_six)] {
            // Who waits for an answer is woken, and who sends learns that there is no peer.
            let error = socket.recv(&mut [0]).expect_err("it is told");
            assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
            let error = socket.send(b"late").expect_err("it is told");
            assert_eq!(error.raw_os_error(), Some(libc::EDESTADDRREQ));
            socket.connect(again).expect("a peer");
            socket.send(b"anew").expect("it is sent");
            let mut buffer = [0; 8];
            let (length, _) = server.recv_from(&mut buffer).expect("it comes");
            assert_eq!(&buffer[..length], b"anew", "the server lives on");
        }
    });
}

#[test]
fn a_socket_that_came_in_anothers_place_is_left_alone() {
    in_namespace(|| async {
        let server = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let name = server.local_addr().unwrap();
        let first = datagrams("127.0.0.1:0", name);
        let place = first.local_addr().unwrap();
        let flows = all().await;
        drop(first);
        let second = datagrams(&place.to_string(), name);
        let outcomes = reset_flows(&flows).await.expect("a socket");
        assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
        second.send(b"here").expect("it was left alone");
        assert_eq!(all().await.len(), 1);
    });
}

#[test]
fn a_live_flow_is_given_another_mark_and_no_other_is() {
    in_namespace(|| async {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let (asks, answers) = connection(&listener, listener.local_addr().expect("an address"));
        setsockopt(&asks, sockopt::Mark, &0x0100_0007).expect("a mark");
        let flows = all().await;
        let flow = of(&flows, asks.local_addr().unwrap());
        let other = of(&flows, answers.local_addr().unwrap());
        let wanted = |cookie| sockets::Wanted {
            cookie,
            mark: 0x0200_0000,
            mask: 0x7700_0000,
        };
        let own = i32::try_from(std::process::id()).expect("a process id");
        assert!(sockets::of_process(own).contains(&flow.inode));
        // The second is not the socket that was meant, and the third is nobody's.
        let failed = sockets::mark(HashMap::from([
            (flow.inode, wanted(flow.cookie)),
            (other.inode, wanted(other.cookie + 1_000_000)),
            (u32::MAX, wanted(1)),
        ]));
        assert_eq!(failed.len(), 2, "{failed:?}");
        assert!(!failed.contains_key(&flow.inode), "{failed:?}");
        let mark = getsockopt(&asks, sockopt::Mark).expect("a mark");
        assert_eq!(mark, 0x0200_0007, "foreign bits are kept");
        assert_eq!(getsockopt(&answers, sockopt::Mark), Ok(0));
        assert_eq!(
            of(&all().await, asks.local_addr().unwrap()).mark,
            0x0200_0007
        );
    });
}
