//! What the laboratory can do to networks, without steer: packets lost or late, servers that lie, other
//! prefixes and gateways, no carrier.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use steer_tests::checks::{DNS_PORT, Dns, HOST4, HOST6, Http, LOGIN, PORTAL4, PORTAL6};
use steer_tests::report::ECHO_PORT;
use steer_tests::{Direction, Family, Impairment, Kind, Lab, Namespace, Probe, Uplink, Way, wait};

/// A socket of `namespace` at `address`.
fn socket(namespace: &Namespace, address: IpAddr) -> Result<UdpSocket> {
    let socket = namespace.run(|| UdpSocket::bind((address, 0)).context("bind a socket"))?;
    socket
        .set_read_timeout(Some(wait::DEADLINE))
        .context("set a deadline")?;
    Ok(socket)
}

/// Whether a datagram from `from` comes to `to`. What heals the path comes after it, and then another one: the
/// first of both that arrives tells, without a wait for what does not come.
fn arrives(from: &UdpSocket, to: &UdpSocket, heal: impl FnOnce() -> Result<()>) -> Result<bool> {
    let destination = to.local_addr().context("an address")?;
    from.send_to(b"first", destination).context("send")?;
    heal()?;
    from.send_to(b"second", destination).context("send")?;
    let mut buffer = [0; 16];
    let length = to.recv(&mut buffer).context("receive")?;
    let is_first = &buffer[..length] == b"first";
    if is_first {
        to.recv(&mut buffer).context("receive")?;
    }
    Ok(is_first)
}

fn has_carrier(lab: &Lab, uplink: &str) -> Result<bool> {
    let shown = lab.ip_json(&["link", "show", "dev", uplink])?;
    let flags = shown.pointer("/0/flags").context("no flags")?;
    Ok(flags.to_string().contains("LOWER_UP"))
}

#[test]
fn a_blackhole_swallows_what_it_says_and_the_carrier_stays() -> Result<()> {
    let lab = Lab::builder()
        .uplinks([Uplink::new("eth0", 1), Uplink::new("wlan0", 2).relayed()])
        .build()?;
    for uplink in lab.uplink_names() {
        for net in lab.uplink(uplink)?.addresses() {
            let gateway = if net.is_ipv4() {
                lab.uplink(uplink)?.gateway4()
            } else {
                lab.uplink(uplink)?.gateway6()
            };
            let host = socket(lab.host(), net)?;
            let peer = socket(lab.peer(uplink)?, gateway.context("a gateway")?)?;
            for (way, from_host, to_host) in [
                (Way::Both, false, false),
                (Way::ToHost, true, false),
                (Way::FromHost, false, true),
                (Way::Upstream, true, true),
            ] {
                let heal = || lab.heal(uplink);
                let position = lab.position()?;
                lab.blackhole(uplink, way)?;
                let arrived = arrives(&host, &peer, heal)?;
                lab.blackhole(uplink, way)?;
                ensure!(has_carrier(&lab, uplink)?, "{way:?} takes the carrier");
                let came_back = arrives(&peer, &host, heal)?;
                ensure!(
                    (arrived, came_back) == (from_host, to_host),
                    "{uplink} {net} {way:?}: {arrived} {came_back}"
                );
                lab.drain()?;
                let sent = lab.capture().since(position, |p| {
                    p.uplink == uplink && p.direction == Direction::FromHost && p.carries("first")
                });
                ensure!(sent.len() == 1, "{way:?} hides what was sent: {sent:?}");
                let received = lab.capture().since(position, |p| {
                    p.direction == Direction::ToHost && p.carries("first")
                });
                ensure!(
                    received.len() == usize::from(to_host),
                    "{way:?} shows what was not received: {received:?}"
                );
            }
        }
    }
    Ok(())
}

#[test]
fn a_dead_upstream_spares_its_gateway() -> Result<()> {
    let lab = Lab::new()?;
    let app = lab.cgroup().child("app")?;
    lab.blackhole("eth0", Way::Upstream)?;
    for family in [Family::V4, Family::V6] {
        let uplink = lab.uplink("eth0")?;
        let gateway = match family {
            Family::V6 => uplink.gateway6(),
            Family::V4 | Family::Mapped => uplink.gateway4(),
        };
        let gateway = gateway.context("a gateway")?;
        let target = family.target(&lab);
        for kind in [Kind::Ping, Kind::UdpConnected] {
            Probe::flow(kind, family, gateway).succeed(&lab, &app)?;
            let lost = Probe::flow(kind, family, target)
                .first("set timeout=300")
                .last(&lab, &app)?;
            ensure!(!lost.ok, "{kind:?} {family:?} came through: {lost:?}");
        }
        let packets = lab.assert_only_by("eth0", target)?;
        ensure!(
            packets.iter().all(|p| p.direction == Direction::FromHost),
            "{packets:?}"
        );
    }
    lab.heal("eth0")?;
    lab.flow_leaves_by(&app, "eth0", Kind::Tcp, Family::V4)?;
    Ok(())
}

/// What `curl` says of `url` by `uplink`: status and where it is sent to.
fn status(lab: &Lab, uplink: &str, more: &[&str], url: &str) -> Result<String> {
    let app = lab.cgroup().child("app")?;
    let output = lab
        .command("curl", &app)?
        .args(["--silent", "--max-time", "5", "--interface", uplink])
        .args(["--globoff", "--output", "/dev/null"])
        .args(["--write-out", "%{http_code} %{redirect_url}"])
        .args(more)
        .arg(url)
        .output()
        .context("start curl")?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[test]
fn http_is_answered_as_each_uplink_is_told() -> Result<()> {
    let lab = Lab::new()?;
    let other = lab.target4();
    for host in [format!("{HOST4}"), format!("[{HOST6}]")] {
        let url = format!("http://{host}/generate_204");
        for (http, wanted) in [
            (Http::Right, "204".to_owned()),
            (Http::Login, format!("302 {LOGIN}")),
            (Http::Page, "200".to_owned()),
            (Http::Garbage, "000".to_owned()),
        ] {
            lab.serve_http("wlan0", http)?;
            let said = status(&lab, "wlan0", &[], &url)?;
            ensure!(said == wanted, "{http:?}: {said}");
            let beside = status(&lab, "eth0", &[], &url)?;
            ensure!(beside == "204", "{http:?} by another uplink: {beside}");
        }
        lab.serve_http("wlan0", Http::Silent)?;
        let said = status(&lab, "wlan0", &["--max-time", "0.3"], &url)?;
        ensure!(said == "000", "{said}");
    }
    lab.serve_http("wlan0", Http::Login)?;
    let said = status(&lab, "wlan0", &[], &format!("http://{other}/"))?;
    ensure!(said.starts_with("302"), "a portal answers for all: {said}");
    Ok(())
}

#[test]
fn a_login_opens_the_portal_of_its_uplink_alone() -> Result<()> {
    let lab = Lab::new()?;
    for uplink in ["wlan0", "wwan0"] {
        lab.serve_http(uplink, Http::Login)?;
        lab.serve_dns(uplink, Dns::Portal)?;
    }
    ensure!(status(&lab, "wlan0", &[], LOGIN)? == "200", "no page");
    ensure!(lab.served("wlan0")? == (Http::Login, Dns::Portal));
    status(&lab, "wlan0", &["--data", "name=guest"], LOGIN)?;
    ensure!(lab.served("wlan0")? == (Http::Right, Dns::Right));
    let url = format!("http://{HOST4}/");
    ensure!(status(&lab, "wlan0", &[], &url)? == "204");
    ensure!(status(&lab, "wwan0", &[], &url)?.starts_with("302"));
    Ok(())
}

/// Asks `server` for both addresses of `name`; what it says.
fn ask(lab: &Lab, server: IpAddr, tcp: bool, name: &str) -> Result<(ResponseCode, Vec<IpAddr>)> {
    let mut code = ResponseCode::NoError;
    let mut found = Vec::new();
    for kind in [RecordType::A, RecordType::AAAA] {
        let mut question = Message::query();
        question.add_query(Query::query(Name::from_ascii(name)?, kind));
        let question = question.to_vec()?;
        let answer = lab.host().run(|| exchange(server, tcp, &question))?;
        let answer = Message::from_vec(&answer)?;
        code = answer.metadata.response_code;
        found.extend(answer.answers.iter().filter_map(|r| r.data.ip_addr()));
    }
    Ok((code, found))
}

fn exchange(server: IpAddr, tcp: bool, question: &[u8]) -> Result<Vec<u8>> {
    let server = SocketAddr::new(server, DNS_PORT);
    if tcp {
        let mut stream = TcpStream::connect(server).context("connect")?;
        let length = u16::try_from(question.len())?;
        stream.write_all(&[&length.to_be_bytes(), question].concat())?;
        let mut length = [0; 2];
        stream.read_exact(&mut length).context("read a length")?;
        let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut answer).context("read an answer")?;
        return Ok(answer);
    }
    let any: IpAddr = if server.is_ipv4() { "0.0.0.0" } else { "::" }.parse()?;
    let socket = UdpSocket::bind((any, 0)).context("bind")?;
    socket.set_read_timeout(Some(wait::DEADLINE))?;
    socket.connect(server).context("connect")?;
    socket.send(question).context("ask")?;
    let mut answer = vec![0; 4096];
    let length = socket.recv(&mut answer).context("read an answer")?;
    answer.truncate(length);
    Ok(answer)
}

#[test]
fn dns_is_answered_as_each_uplink_is_told() -> Result<()> {
    let lab = Lab::new()?;
    let uplink = lab.uplink("wlan0")?;
    let gateways = [uplink.gateway4(), uplink.gateway6()];
    let right = (ResponseCode::NoError, vec![HOST4, HOST6]);
    let portal = (ResponseCode::NoError, vec![PORTAL4, PORTAL6]);
    let nothing = (ResponseCode::NXDomain, Vec::new());
    for server in gateways.into_iter().flatten() {
        for tcp in [false, true] {
            for (dns, known, unknown) in [
                (Dns::Right, &right, &nothing),
                (Dns::Portal, &portal, &portal),
                (Dns::NoName, &nothing, &nothing),
            ] {
                lab.serve_dns("wlan0", dns)?;
                for (name, wanted) in [("host.example.", known), ("other.example.", unknown)] {
                    let said = ask(&lab, server, tcp, name)?;
                    ensure!(said == *wanted, "{dns:?} {server} {tcp} {name}: {said:?}");
                }
                let beside = "10.1.0.1".parse()?;
                ensure!(ask(&lab, beside, tcp, "HOST.example.")? == right);
            }
        }
    }
    Ok(())
}

#[test]
fn a_silent_server_takes_the_question_and_says_nothing() -> Result<()> {
    let lab = Lab::new()?;
    let server = SocketAddr::new("10.2.0.1".parse()?, DNS_PORT);
    let host = socket(lab.host(), "10.2.0.2".parse()?)?;
    let mut question = Message::query();
    question.add_query(Query::query(
        Name::from_ascii("host.example.")?,
        RecordType::A,
    ));
    let question = question.to_vec()?;
    let mut buffer = [0; 4096];
    host.send_to(&question, server)?;
    host.recv(&mut buffer).context("an answer")?;
    lab.serve_dns("wlan0", Dns::Silent)?;
    // Too short a wait could only miss a fault.
    host.set_read_timeout(Some(Duration::from_millis(300)))?;
    host.send_to(&question, server)?;
    let answer = host.recv(&mut buffer);
    let silence = answer.is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
    ensure!(silence, "it is refused, or answered");
    let mut stream = lab.host().run(|| Ok(TcpStream::connect(server)?))?;
    stream.set_read_timeout(Some(Duration::from_millis(300)))?;
    let length = u16::try_from(question.len())?;
    stream.write_all(&[&length.to_be_bytes(), question.as_slice()].concat())?;
    let answer = stream.read(&mut buffer);
    let silence = answer.is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
    ensure!(silence, "the connection is ended, or answered");
    Ok(())
}

/// How many of `count` datagrams of 500 bytes that are sent at once are answered on the wire of `uplink`.
fn answered(lab: &Lab, uplink: &str, count: usize) -> Result<usize> {
    let address = lab.uplink(uplink)?.address4().context("an address")?;
    let gateway = lab.uplink(uplink)?.gateway4().context("a gateway")?;
    let host = socket(lab.host(), address)?;
    let position = lab.position()?;
    for _ in 0..count {
        host.send_to(&[b'x'; 500], (gateway, ECHO_PORT))?;
    }
    // What waits behind them is answered last: by TCP, which is told again if it is lost.
    let app = lab.cgroup().child("app")?;
    Probe::flow(Kind::Tcp, Family::V4, gateway).succeed(lab, &app)?;
    lab.drain()?;
    let answers = lab.capture().since(position, |p| {
        p.direction == Direction::ToHost && p.source_port == Some(ECHO_PORT) && p.carries("xxx")
    });
    Ok(answers.len())
}

#[test]
fn a_slow_uplink_loses_what_is_too_much_until_it_is_fast_again() -> Result<()> {
    let lab = Lab::new()?;
    lab.slow("eth0", 64_000)?;
    let slow = answered(&lab, "eth0", 100)?;
    ensure!((1..100).contains(&slow), "{slow} of 100 answered");
    lab.full_speed("eth0")?;
    let fast = answered(&lab, "eth0", 100)?;
    ensure!(fast == 100, "{fast} of 100 answered");
    Ok(())
}

fn relayed() -> Result<Lab> {
    Lab::builder()
        .uplinks([Uplink::new("eth0", 1), Uplink::new("wlan0", 2).relayed()])
        .build()
}

#[test]
fn a_relay_that_does_nothing_passes_everything_on() -> Result<()> {
    let lab = relayed()?;
    let app = lab.cgroup().child("app")?;
    lab.link_down("eth0")?;
    lab.matrix_leaves_by(&app, "wlan0")?;
    lab.carrier_down("wlan0")?;
    lab.carrier_up("wlan0")?;
    lab.link_down("wlan0")?;
    lab.link_up("wlan0")?;
    lab.matrix_leaves_by(&app, "wlan0")?;
    for address in ["10.2.0.1:0", "[2001:db8:2::1]:0"] {
        let listener = lab.peer("wlan0")?.run(|| Ok(TcpListener::bind(address)?))?;
        let to = listener.local_addr()?;
        // More than fits into one packet, also where the kernel leaves it to hardware to cut it.
        let sent: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_be_bytes).collect();
        let mut host = lab.host().run(|| Ok(TcpStream::connect(to)?))?;
        let (mut peer, _) = listener.accept()?;
        carry(&mut host, &mut peer, &sent)?;
        carry(&mut peer, &mut host, &sent)?;
    }
    Ok(())
}

/// Sends `sent` by one stream while the other reads it.
fn carry(from: &mut TcpStream, to: &mut TcpStream, sent: &[u8]) -> Result<()> {
    let mut received = vec![0; sent.len()];
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| from.write_all(sent));
        to.read_exact(&mut received).context("receive")?;
        sending.join().expect("no panic").context("send")
    })?;
    ensure!(received == sent, "something else arrived");
    Ok(())
}

/// Which of a hundred datagrams that the host sends one after the other arrive.
fn pattern(lab: &Lab) -> Result<Vec<usize>> {
    let host = socket(lab.host(), "10.2.0.2".parse()?)?;
    let peer = socket(lab.peer("wlan0")?, "10.2.0.1".parse()?)?;
    let to = peer.local_addr()?;
    for number in 0..100_u8 {
        host.send_to(&[number], to)?;
    }
    lab.impair("wlan0", Impairment::default())?;
    wait::until("the last one to arrive", || {
        host.send_to(&[100], to)?;
        peer.set_read_timeout(Some(Duration::from_millis(20)))?;
        Ok(peer.peek(&mut [0]).is_ok().then_some(()))
    })?;
    peer.set_read_timeout(Some(wait::DEADLINE))?;
    let mut arrived = Vec::new();
    loop {
        let mut number = [0];
        peer.recv(&mut number)?;
        if number[0] == 100 {
            return Ok(arrived);
        }
        arrived.push(usize::from(number[0]));
    }
}

#[test]
fn a_relay_loses_as_many_as_it_is_told_and_the_same_ones_again() -> Result<()> {
    let lab = relayed()?;
    let mut patterns = Vec::new();
    for (loss, seed, at_least, at_most) in [
        (0, 1, 100, 100),
        (100, 1, 0, 0),
        (50, 1, 35, 65),
        (50, 1, 35, 65),
        (50, 2, 35, 65),
        (90, 1, 2, 20),
    ] {
        let impairment = Impairment {
            seed,
            ..Impairment::lossy(loss)
        };
        lab.impair("wlan0", impairment)?;
        let arrived = pattern(&lab)?;
        ensure!(
            (at_least..=at_most).contains(&arrived.len()),
            "{loss}%: {} of 100 arrived",
            arrived.len()
        );
        patterns.push(arrived);
    }
    ensure!(patterns[2] == patterns[3], "chance is not repeated");
    ensure!(patterns[2] != patterns[4], "the seed means nothing");
    ensure!(lab.impair("eth0", Impairment::default()).is_err());
    Ok(())
}

#[test]
fn a_relay_holds_packets_as_long_as_it_is_told() -> Result<()> {
    let lab = relayed()?;
    let app = lab.cgroup().child("app")?;
    lab.link_down("eth0")?;
    let late = Impairment {
        jitter: Duration::from_millis(20),
        ..Impairment::late(Duration::from_millis(60))
    };
    lab.impair("wlan0", late)?;
    for family in [Family::V4, Family::V6] {
        let start = Instant::now();
        lab.flow_leaves_by(&app, "wlan0", Kind::UdpConnected, family)?;
        // No sooner: what is too late on a busy machine proves nothing.
        ensure!(
            start.elapsed() >= Duration::from_millis(120),
            "it came after {:?}",
            start.elapsed()
        );
    }
    Ok(())
}

/// A flow of each family by `uplink`, which bears its present addresses.
fn flows_leave_by(lab: &Lab, uplink: &str) -> Result<()> {
    let app = lab.cgroup().child("app")?;
    for family in [Family::V4, Family::V6] {
        lab.flow_leaves_by(&app, uplink, Kind::Tcp, family)?;
        lab.flow_leaves_by(&app, uplink, Kind::UdpUnconnected, family)?;
    }
    Ok(())
}

#[test]
fn a_renumbered_uplink_has_other_addresses_and_gateways() -> Result<()> {
    for relayed in [false, true] {
        let wlan0 = Uplink::new("wlan0", 1);
        let wlan0 = if relayed { wlan0.relayed() } else { wlan0 };
        let lab = Lab::builder()
            .uplinks([wlan0, Uplink::new("wwan0", 2)])
            .build()?;
        let mut seen = vec![lab.uplink("wlan0")?];
        for _ in 0..2 {
            lab.renumber("wlan0")?;
            let now = lab.uplink("wlan0")?;
            for before in &seen {
                for address in now.addresses() {
                    ensure!(!before.addresses().contains(&address), "{now:?} {before:?}");
                }
                ensure!(now.gateway4() != before.gateway4() && now.gateway6() != before.gateway6());
            }
            seen.push(now);
            flows_leave_by(&lab, "wlan0")?;
            let shown = lab.ip(&["address", "show", "dev", "wlan0"])?;
            ensure!(!shown.contains("10.1.0.2/"), "{shown}");
        }
        lab.carrier_down("wlan0")?;
        lab.carrier_up("wlan0")?;
        lab.link_down("wlan0")?;
        lab.link_up("wlan0")?;
        flows_leave_by(&lab, "wlan0")?;
    }
    Ok(())
}

#[test]
fn a_changed_gateway_leaves_the_prefix_as_it_is() -> Result<()> {
    let lab = Lab::new()?;
    let before = lab.uplink("eth0")?;
    let router = |lab: &Lab| -> Result<[u8; 6]> {
        let target = lab.target4();
        let app = lab.cgroup().child("app")?;
        Probe::flow(Kind::UdpConnected, Family::V4, target).succeed(lab, &app)?;
        let packets = lab.assert_only_by("eth0", target)?;
        let sent = packets.iter().find(|p| p.direction == Direction::FromHost);
        Ok(sent.context("nothing was sent")?.destination_mac)
    };
    let old = router(&lab)?;
    for _ in 0..2 {
        lab.change_gateway("eth0")?;
        flows_leave_by(&lab, "eth0")?;
    }
    let now = lab.uplink("eth0")?;
    ensure!(now.addresses() == before.addresses());
    ensure!(now.gateway4() != before.gateway4() && now.gateway6() != before.gateway6());
    ensure!(router(&lab)? != old, "the same router");
    for family in ["-4", "-6"] {
        let routes = lab.ip_json(&[family, "route", "show", "default", "dev", "eth0"])?;
        ensure!(routes.as_array().is_some_and(|r| r.len() == 1), "{routes}");
    }
    Ok(())
}

#[test]
fn addresses_and_carriers_go_and_come_back() -> Result<()> {
    let lab = Lab::new()?;
    flows_leave_by(&lab, "eth0")?;
    lab.address_gone("eth0")?;
    ensure!(has_carrier(&lab, "eth0")?);
    let shown = lab.ip(&["address", "show", "dev", "eth0", "scope", "global"])?;
    ensure!(shown.trim().is_empty(), "{shown}");
    lab.address_back("eth0")?;
    flows_leave_by(&lab, "eth0")?;

    lab.all_down()?;
    for uplink in lab.uplink_names() {
        ensure!(!has_carrier(&lab, uplink)?, "{uplink} has carrier");
    }
    lab.all_up()?;
    flows_leave_by(&lab, "eth0")
}

#[test]
fn a_flapping_uplink_loses_its_carrier_as_often_as_it_is_told() -> Result<()> {
    let lab = Lab::new()?;
    let changes = || -> Result<u64> {
        let shown = lab.ip_json(&["-s", "-s", "link", "show", "dev", "wlan0"])?;
        let changes = shown.pointer("/0/stats64/tx/carrier_changes");
        changes
            .and_then(serde_json::Value::as_u64)
            .with_context(|| format!("no carrier changes: {shown:#}"))
    };
    let before = changes()?;
    lab.flap("wlan0", 5, Duration::from_millis(20))?;
    let after = changes()?;
    ensure!(after - before == 10, "{before} {after}");
    ensure!(has_carrier(&lab, "wlan0")?);
    Ok(())
}
