//! What every test has: a laboratory, a probe over one of its uplinks, and servers behind it that say
//! what they are told to.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use steer::probe::run;
use steer_core::ids::IfIndex;
use steer_core::probe::{Check, Expect, Host, HttpTarget, Outcome, Probe, Report};
use steer_tests::Lab;
use tokio::io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// The uplink that probes are made over: not the one with the best metric.
pub(crate) const UPLINK: &str = "wlan0";
/// How long a probe has that should be answered.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long one has that should not.
pub(crate) const SHORT: Duration = Duration::from_secs(2);
/// A mark with bits that are not the agent's.
pub(crate) const MARK: u32 = 0x1300_0001;
/// The bits that are.
pub(crate) const MASK: u32 = 0x7700_0000;

/// Runs `test` at the host of a new laboratory.
pub(crate) fn in_lab(test: impl AsyncFnOnce(&Lab) + Send) {
    let lab = Lab::new().expect("a laboratory, which needs root");
    prepare(&lab).expect("the uplink");
    let outcome = lab.host().run(|| {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(test(&lab));
        Ok(())
    });
    outcome.expect("the test");
}

/// Waits until both ends of the uplink can find each other, and gives the host the rule for marked IPv6
/// flows that the agent has. Without it the last acknowledgement of a closed connection would leave by
/// `eth0`: the kernel remembers mark and interface of such a connection, but for IPv6 the interface
/// does not bind the route of what no socket sends (`tcp_v6_send_response`). IPv4 needs none.
fn prepare(lab: &Lab) -> anyhow::Result<()> {
    lab.link_local(UPLINK)?;
    lab.peer_link_local(UPLINK)?;
    let mark = format!("{:#x}/{MASK:#x}", MARK & MASK);
    lab.ip(&["-6", "rule", "add", "fwmark", &mark, "table", "100"])?;
    let route = "-6 route add default via 2001:db8:2::1 dev wlan0 table 100";
    lab.ip(&route.split(' ').collect::<Vec<_>>())?;
    Ok(())
}

/// A probe over [`UPLINK`] that asks nothing yet.
pub(crate) fn probe(lab: &Lab) -> Probe {
    let uplink = lab.uplink(UPLINK).expect("the uplink");
    let index = nix::net::if_::if_nametoindex(UPLINK).expect("the interface");
    let (source4, source6) = (uplink.address4(), uplink.address6());
    Probe {
        domain: UPLINK.parse().expect("a name"),
        epoch: 1,
        due: Duration::ZERO,
        mark: MARK,
        mask: MASK,
        interface: IfIndex(index),
        ifname: UPLINK.to_owned(),
        source4: source4.and_then(|ip| match ip {
            IpAddr::V4(ip) => Some(ip),
            IpAddr::V6(_) => None,
        }),
        source6: source6.and_then(|ip| match ip {
            IpAddr::V6(ip) => Some(ip),
            IpAddr::V4(_) => None,
        }),
        gateways: ["10.2.0.1", "2001:db8:2::1"]
            .map(|ip| ip.parse().expect("an address"))
            .to_vec(),
        servers: Vec::new(),
        portal_api: None,
        check: Check::default(),
        timeout: PATIENCE,
    }
}

/// A probe with the time that one has that is not answered.
pub(crate) fn short(lab: &Lab) -> Probe {
    Probe {
        timeout: SHORT,
        ..probe(lab)
    }
}

/// Both families' addresses that nothing has used before.
pub(crate) fn targets(lab: &Lab) -> [IpAddr; 2] {
    [lab.target4(), lab.target6()]
}

/// An address on the uplink's own network that nobody has.
pub(crate) fn nobody() -> IpAddr {
    "10.2.0.77".parse().expect("an address")
}

/// What comes of asking one HTTP server.
pub(crate) async fn ask_http(mut probe: Probe, server: SocketAddr, expect: Expect) -> Report {
    probe.check.http = vec![http_target(server)];
    probe.check.expect = expect;
    run(&probe).await
}

/// `/generate_204?x` of a server.
pub(crate) fn http_target(server: SocketAddr) -> HttpTarget {
    HttpTarget {
        host: Host::Ip(server.ip()),
        port: server.port(),
        path: "/generate_204?x".to_owned(),
    }
}

/// The reason of a failure.
pub(crate) fn reason(report: &Report) -> &str {
    match &report.outcome {
        Outcome::Failed(reason) => reason,
        other => panic!("{other:?} is no failure"),
    }
}

/// All packets about `ip` took the probe's uplink, with its source.
pub(crate) fn only_by_uplink(lab: &Lab, ip: IpAddr) {
    lab.assert_only_by(UPLINK, ip)
        .expect("the right uplink alone");
}

/// A TCP server at `ip` behind the uplink, on a port of its own; `each` is what it does with a
/// connection.
pub(crate) fn serve<F>(
    lab: &Lab,
    ip: IpAddr,
    each: impl Fn(TcpStream) -> F + Send + 'static,
) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    serve_at(lab, SocketAddr::new(ip, 0), each)
}

/// As [`serve`], on the port of `at`.
pub(crate) fn serve_at<F>(
    lab: &Lab,
    at: SocketAddr,
    each: impl Fn(TcpStream) -> F + Send + 'static,
) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let peer = lab.peer(UPLINK).expect("the peer");
    let listener = peer.run(|| Ok(std::net::TcpListener::bind(at)?));
    let listener = listener.expect("a listener");
    let address = listener.local_addr().expect("its address");
    listener.set_nonblocking(true).expect("non-blocking");
    let listener = TcpListener::from_std(listener).expect("the runtime takes it");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(each(stream));
        }
    });
    address
}

/// An HTTP server that answers each request with `answer`, as it is, and closes.
pub(crate) fn http(lab: &Lab, ip: IpAddr, answer: impl Into<Vec<u8>>) -> SocketAddr {
    let answer = answer.into();
    serve(lab, ip, move |mut stream| {
        let answer = answer.clone();
        async move {
            // To one that has closed without a request nothing is said: the host would answer with a reset
            // that no socket of the probe sends.
            if !request(&mut stream).await.is_empty() {
                say(&mut stream, &answer).await;
            }
        }
    })
}

/// Reads the head of a request; empty, if there is none.
pub(crate) async fn request(stream: &mut TcpStream) -> String {
    let mut read = Vec::new();
    while !read.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => read.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(read).expect("a request is text")
}

/// Sends `bytes`; says whether the client still takes them.
pub(crate) async fn say(stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> bool {
    stream.write_all(bytes).await.is_ok()
}
