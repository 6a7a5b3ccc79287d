//! Questions: each has the probe's time to be answered, and is counted.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use steer_core::plan::Family;
use steer_core::probe::{Host, Outcome, Probe, Report};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::{any, dns, each};
use crate::steered::{self, Way};

/// Addresses of one name and family that are tried.
const ADDRESSES: usize = 2;

/// One probe that is under way.
pub(super) struct Asker<'a> {
    pub(super) probe: &'a Probe,
    pub(super) way: Way,
    end: Instant,
    tally: Mutex<Tally>,
}

/// What came of the questions so far. Those that were given up because another one decided are not
/// in it.
#[derive(Debug, Default)]
struct Tally {
    asked: u32,
    lost: u32,
    rtt: Option<Duration>,
}

/// Why a question has no good answer.
#[derive(Debug)]
pub(super) enum Miss {
    /// The probe's time is over.
    Late,
    /// There is an answer, but not a good one.
    Bad(String),
    /// No answer can come.
    Unreachable(String),
    /// It could not be asked.
    Unasked(String),
}

impl<'a> Asker<'a> {
    /// Its time begins now.
    pub(super) fn new(probe: &'a Probe) -> Self {
        Self {
            probe,
            way: Way {
                mark: probe.mark,
                mask: probe.mask,
                ifname: probe.ifname.clone(),
                source4: probe.source4,
                source6: probe.source6,
            },
            end: Instant::now() + probe.timeout,
            tally: Mutex::default(),
        }
    }

    /// The report with what was counted.
    pub(super) fn report(&self, outcome: Outcome) -> Report {
        let tally = self.tally();
        Report {
            outcome,
            rtt: tally.rtt,
            asked: tally.asked,
            lost: tally.lost,
        }
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answer to `question`, if it comes in time.
    pub(super) async fn in_time<T>(
        &self,
        question: impl Future<Output = Result<T, Miss>>,
    ) -> Result<T, Miss> {
        timeout_at(self.end, question)
            .await
            .unwrap_or(Err(Miss::Late))
    }

    /// As [`Asker::in_time`], and counts it as one question. With `one_packet` the time that it took
    /// is one there and back.
    pub(super) async fn counted<T>(
        &self,
        one_packet: bool,
        question: impl Future<Output = Result<T, Miss>>,
    ) -> Result<T, Miss> {
        let start = Instant::now();
        let answer = self.in_time(question).await;
        let took = start.elapsed();
        let mut tally = self.tally();
        match &answer {
            Ok(_) if one_packet => {
                tally.rtt = Some(tally.rtt.map_or(took, |quickest| quickest.min(took)));
            }
            Ok(_) | Err(Miss::Bad(_)) => {}
            Err(Miss::Late | Miss::Unreachable(_)) => tally.lost = tally.lost.saturating_add(1),
            Err(Miss::Unasked(_)) => return answer,
        }
        tally.asked = tally.asked.saturating_add(1);
        answer
    }

    /// Asks `host` by each of its addresses at once, with `ask`; a name is looked up over the domain
    /// first, for each family that the domain has.
    pub(super) async fn reach<F: Future<Output = Outcome>>(
        &self,
        host: &Host,
        ask: impl Fn(IpAddr) -> F,
    ) -> Outcome {
        match host {
            Host::Ip(ip) => ask(*ip).await,
            Host::Gateway => {
                let gateways = &self.probe.gateways;
                let reached = |ip: &IpAddr| self.way.source(Family::of(*ip)).is_some();
                let open = each(gateways.iter().copied().filter(reached), ask);
                match open.is_empty() {
                    true => Outcome::Failed("the domain has no gateway".to_owned()),
                    false => any(open).await,
                }
            }
            Host::Name(name) => {
                let by = async |family| match dns::addresses(self, name, family).await {
                    Ok(found) => any(each(found.into_iter().take(ADDRESSES), &ask)).await,
                    Err(reason) => Outcome::Failed(reason),
                };
                let open = each(self.families(), by);
                match open.is_empty() {
                    true => Outcome::Failed("the domain has no address".to_owned()),
                    false => any(open).await,
                }
            }
        }
    }

    /// Families that the domain has a source of.
    pub(super) fn families(&self) -> impl Iterator<Item = Family> {
        let both = [Family::Ipv4, Family::Ipv6].into_iter();
        both.filter(|family| self.way.source(*family).is_some())
    }

    /// Connects to `port` of `ip`.
    pub(super) async fn connect(&self, ip: IpAddr, port: u16) -> Result<TcpStream, Miss> {
        self.counted(true, async {
            let socket = self.way.tcp(Family::of(ip))?;
            Ok(socket.connect(SocketAddr::new(ip, port)).await?)
        })
        .await
    }

    /// The sentence for a question that `what` names.
    pub(super) fn sentence(&self, what: &str, miss: Miss) -> String {
        match miss {
            Miss::Late => format!("{what}: no answer within {:?}", self.probe.timeout),
            Miss::Bad(why) | Miss::Unreachable(why) | Miss::Unasked(why) => {
                format!("{what}: {why}")
            }
        }
    }
}

impl From<&io::Error> for Miss {
    fn from(error: &io::Error) -> Self {
        use io::ErrorKind as Kind;
        match error.kind() {
            kind @ (Kind::ConnectionRefused | Kind::ConnectionReset) => Self::Bad(kind.to_string()),
            kind @ (Kind::HostUnreachable | Kind::NetworkUnreachable | Kind::NetworkDown) => {
                Self::Unreachable(kind.to_string())
            }
            // Not the kernel's: why there was no socket.
            Kind::Other => Self::Unasked(error.to_string()),
            _ => Self::Unreachable(error.to_string()),
        }
    }
}

impl From<io::Error> for Miss {
    fn from(error: io::Error) -> Self {
        Self::from(&error)
    }
}

impl From<steered::Error> for Miss {
    fn from(error: steered::Error) -> Self {
        Self::from(io::Error::from(error))
    }
}

/// `host` and, where it is not an address itself, the address at which it was asked.
pub(super) fn place(host: &Host, ip: IpAddr, port: Option<u16>) -> String {
    let shown = match (host, port) {
        (Host::Ip(IpAddr::V6(ip)), Some(port)) => format!("[{ip}]:{port}"),
        (host, Some(port)) => format!("{host}:{port}"),
        (host, None) => host.to_string(),
    };
    match host {
        Host::Ip(_) => shown,
        _ => format!("{shown} ({ip})"),
    }
}
