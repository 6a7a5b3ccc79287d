//! The sockets themselves: mark, interface and source.

use std::net::IpAddr;

use socket2::SockRef;
use steer::steered::{Error, Way};
use steer_core::plan::Family;
use steer_core::probe::Probe;

use crate::bed::{MARK, MASK, UPLINK, in_lab, probe};

fn way(probe: &Probe) -> Way {
    Way {
        mark: probe.mark,
        mask: probe.mask,
        ifname: probe.ifname.clone(),
        source4: probe.source4,
        source6: probe.source6,
    }
}

fn assert_steered(socket: &SockRef<'_>, source: IpAddr) {
    assert_eq!(socket.mark().expect("a mark"), MARK & MASK);
    let device = socket.device().expect("a device");
    assert_eq!(device.as_deref(), Some(UPLINK.as_bytes()));
    let local = socket.local_addr().expect("an address").as_socket();
    assert_eq!(local.map(|local| local.ip()), Some(source));
    assert!(socket.nonblocking().expect("flags"));
}

#[test]
fn every_socket_has_mark_interface_and_source() {
    in_lab(async |lab| {
        let way = way(&probe(lab));
        for family in [Family::Ipv4, Family::Ipv6] {
            let source = way.source(family).expect("a source");
            assert_steered(&SockRef::from(&way.udp(family).expect("UDP")), source);
            assert_steered(&SockRef::from(&way.tcp(family).expect("TCP")), source);
            let echo = way.icmp(family).expect("ICMP");
            assert_steered(&SockRef::from(&echo.socket), source);
        }
    });
}

#[test]
fn without_source_or_interface_there_is_no_socket() {
    in_lab(async |lab| {
        let no_source = Way {
            source6: None,
            ..way(&probe(lab))
        };
        let error = no_source.udp(Family::Ipv6).expect_err("no source");
        assert!(matches!(error, Error::NoSource { .. }), "{error:?}");
        assert_eq!(error.to_string(), "wlan0 has no IPv6 address to send from");
        let no_interface = Way {
            ifname: "gone0".to_owned(),
            ..way(&probe(lab))
        };
        let error = no_interface.tcp(Family::Ipv4).expect_err("no interface");
        assert!(matches!(error, Error::Interface { .. }), "{error:?}");
        let foreign = Way {
            source4: Some([192, 0, 2, 9].into()),
            ..way(&probe(lab))
        };
        let error = foreign.udp(Family::Ipv4).expect_err("a foreign source");
        assert!(matches!(error, Error::Source { .. }), "{error:?}");
    });
}
