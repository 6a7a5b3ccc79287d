//! What routers advertise, sent by one end of a cable and told by the kernel at the other.

use std::fs;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use steer::netlink::RouterOption;

use super::{Mirror, in_namespace, index, ip, uplink};

/// All nodes of a link.
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ROUTER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x99);

/// Makes `up0` take what routers say, gives the router at the other end its address, and follows what
/// the kernel tells.
async fn listen_to_routers() -> Mirror {
    fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0").expect("write a sysctl");
    uplink("up0", 1);
    fs::write("/proc/sys/net/ipv6/conf/up0/accept_ra", "2").expect("write a sysctl");
    ip(&format!("addr add {ROUTER}/64 dev up0p nodad"));
    let mut mirror = Mirror::open().await;
    // It hears nothing before it has an address of its own.
    let up = index("up0");
    mirror
        .until("a link-local address", |mirror| {
            let mut addresses = mirror.network.addresses.iter();
            addresses.any(|address| address.interface == up && address.usable && !address.global)
        })
        .await;
    mirror
}

/// Advertises `options` from the router.
fn advertise(options: &[u8]) {
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6)).expect("root");
    let interface = index("up0p").0;
    socket.set_multicast_if_v6(interface).expect("an interface");
    socket.set_multicast_loop_v6(false).expect("an option");
    // RFC 4861, section 6.1.2: an advertisement that crossed a router is none.
    socket.set_multicast_hops_v6(255).expect("a hop limit");
    let from = SocketAddrV6::new(ROUTER, 0, 0, interface);
    socket.bind(&from.into()).expect("the router's address");
    // Of no use as a router: lifetime 0. The kernel sets the checksum.
    let mut message = vec![134, 0, 0, 0, 64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    message.extend(options);
    let to = SocketAddrV6::new(ALL_NODES, 0, 0, interface);
    socket.send_to(&message, &to.into()).expect("sent");
}

fn servers() -> (Vec<u8>, RouterOption) {
    let address: Ipv6Addr = "2001:db8::53".parse().expect("an address");
    let mut option = vec![25, 3, 0, 0, 0, 0, 2, 88];
    option.extend(address.octets());
    let told = RouterOption::Servers {
        addresses: vec![address],
        lifetime: Duration::from_secs(600),
    };
    (option, told)
}

#[test]
fn servers_and_portal_of_a_router_are_told_with_the_interface() {
    in_namespace(|| async {
        let mut mirror = listen_to_routers().await;
        let (server, told) = servers();
        let mut portal = vec![37, 3];
        portal.extend(b"https://api.example/");
        portal.extend([0, 0]);
        advertise(&[server, portal].concat());
        mirror
            .until("both options", |mirror| mirror.advertised.len() == 2)
            .await;
        let api = RouterOption::Portal(Some("https://api.example/".to_owned()));
        let up = index("up0");
        assert_eq!(mirror.advertised, [(up, told), (up, api)]);
        assert_eq!(mirror.dumps, 1);
    });
}

#[test]
fn what_a_router_says_while_everything_is_read_again_is_not_lost() {
    in_namespace(|| async {
        let mut mirror = listen_to_routers().await;
        let (server, told) = servers();
        mirror.watcher.request_dump();
        advertise(&server);
        mirror
            .until("the option", |mirror| !mirror.advertised.is_empty())
            .await;
        assert_eq!(mirror.advertised, [(index("up0"), told)]);
        assert_eq!(mirror.dumps, 2);
    });
}
