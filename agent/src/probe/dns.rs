//! DNS: what the domain's own name servers say. Nothing is kept, no list of suffixes is tried, and no
//! file of the host is read.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt as _;
use hickory_net::proto::op::{DnsRequest, DnsRequestOptions, DnsResponse, Query, ResponseCode};
use hickory_net::proto::rr::{Name, RData, RecordType};
use hickory_net::runtime::iocompat::AsyncIoTokioAsStd;
use hickory_net::runtime::{DnsUdpSocket, RuntimeProvider, TokioHandle, TokioTime};
use hickory_net::tcp::TcpClientStream;
use hickory_net::udp::UdpClientStream;
use hickory_net::xfer::{DnsHandle as _, DnsRequestSender as _, FirstAnswer as _};
use hickory_net::{DnsError, NetError};
use steer_core::plan::Family;
use steer_core::probe::{DnsTarget, Outcome};
use tokio::io::ReadBuf;
use tokio::net::{TcpStream, UdpSocket};
use tracing::instrument::WithSubscriber as _;
use tracing::subscriber::NoSubscriber;

use super::question::{Asker, Miss};
use super::{any, each, sentence};
use crate::steered::{Way, receive};

/// Name servers that are asked at most.
const SERVERS: usize = 4;
/// How often the name of another target is asked for, so that one lost packet is not that target's.
const TRIES: u8 = 3;

/// Looks up `target`.
pub(super) async fn ask(asker: &Asker<'_>, target: &DnsTarget) -> Outcome {
    let families: Vec<_> = match target.address {
        Some(address) => vec![Family::of(address)],
        None => asker.families().collect(),
    };
    let Some(servers) = servers(asker) else {
        return Outcome::Failed(NO_SERVER.to_owned());
    };
    let of_server = |server: SocketAddr| families.iter().map(move |family| (server, *family));
    let questions = servers.into_iter().flat_map(of_server);
    any(each(questions, async |(server, family)| {
        match look_up(asker, server, &target.name, family, 1).await {
            Err(reason) => Outcome::Failed(reason),
            Ok(found) => match target.address {
                Some(address) if !found.contains(&address) => Outcome::Portal(None),
                _ => Outcome::Passed,
            },
        }
    }))
    .await
}

/// The addresses of `name`, as the first name server says that knows any.
pub(super) async fn addresses(
    asker: &Asker<'_>,
    name: &str,
    family: Family,
) -> Result<Vec<IpAddr>, String> {
    let servers = servers(asker).ok_or(NO_SERVER)?;
    let mut open = each(servers, |server| {
        look_up(asker, server, name, family, TRIES)
    });
    let mut reasons = Vec::new();
    while let Some(found) = open.next().await {
        match found {
            Ok(addresses) => return Ok(addresses),
            Err(reason) => reasons.push(reason),
        }
    }
    Err(sentence(reasons))
}

const NO_SERVER: &str = "DNS: the domain has no name server";

/// The servers that are asked: those that the domain has a source for. Whatever scope one had, here it is
/// the domain's interface that it is asked by.
fn servers(asker: &Asker<'_>) -> Option<Vec<SocketAddr>> {
    let way = &asker.way;
    let servers = asker.probe.servers.iter();
    let servers: Vec<_> = servers
        .filter(|server| way.source(Family::of(server.ip())).is_some())
        .map(|server| SocketAddr::new(server.ip(), server.port()))
        .take(SERVERS)
        .collect();
    (!servers.is_empty()).then_some(servers)
}

/// What `server` says of `name`: at least one address.
async fn look_up(
    asker: &Asker<'_>,
    server: SocketAddr,
    name: &str,
    family: Family,
    tries: u8,
) -> Result<Vec<IpAddr>, String> {
    let question = Question {
        server,
        tries,
        every: asker.probe.timeout / (u32::from(tries) + 1),
        provider: Provider {
            way: Arc::new(asker.way.clone()),
            handle: TokioHandle::default(),
        },
    };
    // The library warns of each answer that is none to the question: whoever sends them would fill the log.
    let silent = question
        .addresses(name, family)
        .with_subscriber(NoSubscriber::default());
    let found = asker.counted(tries == 1, silent).await;
    found.map_err(|miss| {
        let from = server.ip();
        match miss {
            Miss::Late => asker.sentence(&format!("DNS {name} from {from}"), Miss::Late),
            miss => asker.sentence(&format!("DNS {name}: {from}"), miss),
        }
    })
}

/// A question to one server.
struct Question {
    server: SocketAddr,
    tries: u8,
    every: Duration,
    provider: Provider,
}

impl Question {
    async fn addresses(self, name: &str, family: Family) -> Result<Vec<IpAddr>, Miss> {
        let kind = match family {
            Family::Ipv4 => RecordType::A,
            Family::Ipv6 => RecordType::AAAA,
        };
        let mut name = Name::from_utf8(name).map_err(|error| Miss::Unasked(error.to_string()))?;
        name.set_fqdn(true);
        let query = Query::query(name, kind);
        let mut answer = self.by_udp(query.clone()).await?;
        if answer.truncation {
            answer = self.by_tcp(query).await?;
        }
        meaning(&answer, kind)
    }

    async fn by_udp(&self, query: Query) -> Result<DnsResponse, Miss> {
        let mut stream = UdpClientStream::builder(self.server, self.provider.clone())
            // The asker's time is shorter.
            .with_timeout(Some(Duration::MAX))
            .with_max_retries(self.tries)
            .with_os_port_selection(true)
            .build();
        let answer = stream.send_message(self.request(query)).first_answer();
        Ok(answer.await?)
    }

    async fn by_tcp(&self, query: Query) -> Result<DnsResponse, Miss> {
        let provider = self.provider.clone();
        // What drives the connection ends with the provider.
        let exchange =
            TcpClientStream::exchange(self.server, None, Duration::MAX, None, provider).await?;
        let answer = exchange.send(self.request(query)).first_answer();
        Ok(answer.await?)
    }

    /// Without EDNS, which a simple forwarder may drop: what is asked for is short.
    fn request(&self, query: Query) -> DnsRequest {
        let mut options = DnsRequestOptions::default();
        options.use_edns = false;
        options.retry_interval = self.every;
        DnsRequest::from_query(query, options)
    }
}

/// The addresses in `answer`, or why there are none. The server followed aliases, so it does not matter
/// whose the addresses are.
fn meaning(answer: &DnsResponse, kind: RecordType) -> Result<Vec<IpAddr>, Miss> {
    if answer.response_code != ResponseCode::NoError {
        return Err(Miss::Bad(answer.response_code.to_string()));
    }
    let records = answer.answers.iter();
    let addresses: Vec<_> = records
        .filter_map(|record| match (&record.data, kind) {
            (RData::A(a), RecordType::A) => Some(IpAddr::V4(a.0)),
            (RData::AAAA(aaaa), RecordType::AAAA) => Some(IpAddr::V6(aaaa.0)),
            _ => None,
        })
        .collect();
    match addresses.is_empty() {
        true => Err(Miss::Bad(format!("no {kind} record"))),
        false => Ok(addresses),
    }
}

impl From<NetError> for Miss {
    fn from(error: NetError) -> Self {
        match error {
            NetError::Io(error) => Self::from(&*error),
            NetError::Timeout => Self::Late,
            NetError::Dns(DnsError::ResponseCode(code)) => Self::Bad(code.to_string()),
            error => Self::Bad(error.to_string()),
        }
    }
}

/// Makes the library's sockets: on the domain's way, and connected, so that the kernel drops what comes
/// from elsewhere and tells of a port that is closed.
#[derive(Clone)]
struct Provider {
    way: Arc<Way>,
    handle: TokioHandle,
}

type Made<T> = Pin<Box<dyn Send + Future<Output = io::Result<T>>>>;

impl RuntimeProvider for Provider {
    type Handle = TokioHandle;
    type Timer = TokioTime;
    type Udp = Connected;
    type Tcp = AsyncIoTokioAsStd<TcpStream>;

    fn create_handle(&self) -> Self::Handle {
        self.handle.clone()
    }

    fn connect_tcp(
        &self,
        server: SocketAddr,
        _bind: Option<SocketAddr>,
        _timeout: Option<Duration>,
    ) -> Made<Self::Tcp> {
        let socket = self.way.tcp(Family::of(server.ip()));
        Box::pin(async move {
            let socket = socket?;
            Ok(AsyncIoTokioAsStd(socket.connect(server).await?))
        })
    }

    fn bind_udp(&self, _local: SocketAddr, server: SocketAddr) -> Made<Self::Udp> {
        let socket = self.way.udp(Family::of(server.ip()));
        Box::pin(async move {
            let socket = socket?;
            socket.connect(server).await?;
            Ok(Connected { socket, server })
        })
    }
}

/// A socket that knows its server, and hears of errors.
struct Connected {
    socket: UdpSocket,
    server: SocketAddr,
}

#[async_trait]
impl DnsUdpSocket for Connected {
    type Time = TokioTime;

    fn poll_recv_from(
        &self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<(usize, SocketAddr)>> {
        let mut buffer = ReadBuf::new(buffer);
        ready!(self.socket.poll_recv(cx, &mut buffer))?;
        Poll::Ready(Ok((buffer.filled().len(), self.server)))
    }

    async fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        Ok((receive(&self.socket, buffer).await?, self.server))
    }

    fn poll_send_to(
        &self,
        cx: &mut Context<'_>,
        buffer: &[u8],
        _target: SocketAddr,
    ) -> Poll<io::Result<usize>> {
        self.socket.poll_send(cx, buffer)
    }
}
