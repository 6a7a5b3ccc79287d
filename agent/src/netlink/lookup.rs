//! What `ip route get` asks: the route that the kernel would take.

use std::net::IpAddr;

use steer_core::explain::compare::{Answer, KernelRoute};
use steer_core::ids::{IfIndex, TableId};

use super::Error;
use super::connection::{Connection, Refusal};
use super::watcher::read;
use super::wire::{AF_INET, Message, Request, family_of, ip, u32_at};

/// `RTM_F_LOOKUP_TABLE`: tell the table that the route was found in, which IPv6 always does.
const LOOKUP_TABLE: u32 = 0x1000;
/// `RTA_UID`
const RTA_UID: u16 = 25;
/// `RTA_IP_PROTO`
const RTA_IP_PROTO: u16 = 27;
/// `RTA_DPORT`
const RTA_DPORT: u16 = 29;

/// A flow whose route is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    /// Where it goes.
    pub destination: IpAddr,
    /// Its source; `None`: the route gives it one.
    pub source: Option<IpAddr>,
    /// The mark of its socket.
    pub mark: u32,
    /// Its user, whom rules may tell apart.
    pub uid: Option<u32>,
    /// Its transport protocol (`IPPROTO_*`), which rules may tell apart too.
    pub protocol: u8,
    /// The port that it goes to.
    pub port: Option<u16>,
    /// The interface that it is bound to.
    pub interface: Option<IfIndex>,
}

/// The route that the kernel would take for a flow which begins now. For IPv4 that is looked up twice, as
/// `connect` does (`ip_route_connect`): the first route gives the source, with which the second is found.
///
/// # Errors
/// The kernel could not be asked. That it has no route is an answer.
pub async fn route_to(question: &Question) -> Result<Answer, Error> {
    let mut connection = Connection::open(libc::NETLINK_ROUTE).map_err(Error::Open)?;
    let first = ask(&mut connection, question).await?;
    match &first {
        Answer::Route(route) if question.source.is_none() && question.destination.is_ipv4() => {
            let source = route.source;
            let again = Question {
                source,
                ..*question
            };
            ask(&mut connection, &again).await
        }
        _ => Ok(first),
    }
}

async fn ask(connection: &mut Connection, question: &Question) -> Result<Answer, Error> {
    match connection.dump(&request(question), parse).await {
        Ok(answers) => match answers.into_iter().next() {
            Some(Answer::Route(route)) => Ok(Answer::Route(KernelRoute {
                // It is not repeated where it was given.
                source: route.source.or(question.source),
                ..route
            })),
            Some(refused) => Ok(refused),
            None => Err(read("route")(Refusal::invalid("the kernel gave no answer"))),
        },
        Err(refusal) if is_answer(refusal.errno()) => Ok(Answer::Refused {
            errno: refusal.errno(),
            words: refusal.to_string(),
        }),
        Err(refusal) => Err(read("route")(refusal)),
    }
}

/// Whether an error is what a program would see that connects: no route, or one that refuses.
fn is_answer(errno: i32) -> bool {
    matches!(
        errno,
        libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL | libc::ENETDOWN
    )
}

fn request(question: &Question) -> Request {
    let family = family_of(question.destination);
    let bits = |ip: IpAddr| if ip.is_ipv4() { 32 } else { 128 };
    let mut fixed = [0; 12];
    fixed[0] = family;
    fixed[1] = bits(question.destination);
    fixed[2] = question.source.map_or(0, bits);
    if family == AF_INET {
        fixed[8..12].copy_from_slice(&LOOKUP_TABLE.to_ne_bytes());
    }
    let mut request = Request::new(libc::RTM_GETROUTE, libc::NLM_F_ACK, &fixed);
    request.put_ip(libc::RTA_DST, question.destination);
    if let Some(source) = question.source {
        request.put_ip(libc::RTA_SRC, source);
    }
    if let Some(interface) = question.interface {
        request.put_u32(libc::RTA_OIF, interface.0);
    }
    if question.mark != 0 {
        request.put_u32(libc::RTA_MARK, question.mark);
    }
    if let Some(uid) = question.uid {
        request.put_u32(RTA_UID, uid);
    }
    request.put(RTA_IP_PROTO, &[question.protocol]);
    if let Some(port) = question.port {
        request.put(RTA_DPORT, &port.to_be_bytes());
    }
    request
}

/// Reads the kernel's answer: no route of a table, but one made for this flow.
fn parse(message: &Message<'_>) -> Option<Answer> {
    if message.kind != libc::RTM_NEWROUTE {
        return None;
    }
    let (fixed, rest) = message.split::<12>()?;
    let [.., table, _, _, kind, _, _, _, _] = *fixed;
    let refused = |errno: i32| Answer::Refused {
        errno,
        words: std::io::Error::from_raw_os_error(errno).to_string(),
    };
    match kind {
        libc::RTN_UNREACHABLE => return Some(refused(libc::EHOSTUNREACH)),
        libc::RTN_BLACKHOLE => return Some(refused(libc::EINVAL)),
        libc::RTN_PROHIBIT => return Some(refused(libc::EACCES)),
        _ => {}
    }
    let mut table = TableId(u32::from(table));
    let (mut interface, mut source, mut gateway) = (None, None, None);
    for (kind, value) in rest {
        match kind {
            libc::RTA_TABLE => table = TableId(u32_at(value, 0)?),
            libc::RTA_OIF => interface = u32_at(value, 0).map(IfIndex),
            libc::RTA_PREFSRC => source = ip(value),
            libc::RTA_GATEWAY => gateway = ip(value),
            libc::RTA_VIA => gateway = value.get(2..).and_then(ip),
            _ => {}
        }
    }
    Some(Answer::Route(KernelRoute {
        interface: interface?,
        source,
        gateway,
        table,
    }))
}
