//! Carries out probes: asks over one domain alone whether it leads anywhere, and whether a portal
//! answers in place of others.
//!
//! Whoever sits on the path may answer anything, slowly or without end. So all of a probe ends at its
//! timeout; of each connection a bounded number of bytes is read; and what is read goes through the
//! pure functions of `answer`.

mod answer;
mod api;
mod dns;
mod http;
mod icmp;
mod question;
pub mod resolv;
mod tcp;

use std::future::Future;
use std::net::IpAddr;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use steer_core::plan::Family;
use steer_core::probe::{Outcome, Probe, Report};

use question::Asker;

/// Reasons in the text of one failure at most.
const REASONS: usize = 4;

/// Carries out `probe`, which takes no longer than its timeout.
///
/// All kinds are asked at once, and of each kind all targets. One target that answers is enough for a
/// kind; every kind has to pass. A portal that any of them shows is the outcome, whatever else failed.
pub async fn run(probe: &Probe) -> Report {
    let asker = Asker::new(probe);
    let check = &probe.check;
    let (http, dns, tcp, icmp, api) = tokio::join!(
        kind(each(&check.http, |target| http::ask(&asker, target))),
        kind(each(&check.dns, |target| dns::ask(&asker, target))),
        kind(each(&check.tcp, |(host, port)| tcp::ask(
            &asker, host, *port
        ))),
        kind(each(&check.icmp, |host| icmp::ask(&asker, host))),
        api::ask(probe),
    );
    let outcome = all([http, dns, tcp, icmp, api]);
    asker.report(outcome)
}

/// What came of looking a name up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Its addresses, IPv6 first.
    pub addresses: Vec<IpAddr>,
    /// Why there are none of a family, as sentences without a full stop.
    pub failures: Vec<String>,
}

/// Looks `name` up by the name servers of `probe`'s domain, over that domain, in each family that it has an
/// address of. It takes no longer than the probe's timeout.
pub async fn look_up(probe: &Probe, name: &str) -> Found {
    let asker = Asker::new(probe);
    let (v6, v4) = tokio::join!(
        of_family(&asker, name, Family::Ipv6),
        of_family(&asker, name, Family::Ipv4),
    );
    let mut found = Found::default();
    for family in [v6, v4].into_iter().flatten() {
        match family {
            Ok(addresses) => found.addresses.extend(addresses),
            // A name that is none is so in both families.
            Err(reason) if found.failures.contains(&reason) => {}
            Err(reason) => found.failures.push(reason),
        }
    }
    found
}

async fn of_family(
    asker: &Asker<'_>,
    name: &str,
    family: Family,
) -> Option<Result<Vec<IpAddr>, String>> {
    if !asker.families().any(|has| has == family) {
        return None;
    }
    Some(dns::addresses(asker, name, family).await)
}

/// A question for each of `items`. (They are held, and not what makes them, so that a probe can move
/// between threads.)
fn each<T, Q>(
    items: impl IntoIterator<Item = T>,
    question: impl FnMut(T) -> Q,
) -> FuturesUnordered<Q> {
    items.into_iter().map(question).collect()
}

/// What comes of one kind: of none, a pass.
async fn kind<Q: Future<Output = Outcome>>(targets: FuturesUnordered<Q>) -> Outcome {
    match targets.is_empty() {
        true => Outcome::Passed,
        false => any(targets).await,
    }
}

/// What comes of questions of which one that passes is enough; there is at least one.
///
/// A portal answers in place of targets, so one that some of them show is the outcome only when none is left
/// that might pass.
async fn any<Q: Future<Output = Outcome>>(mut open: FuturesUnordered<Q>) -> Outcome {
    let mut portal = None;
    let mut reasons = Vec::new();
    while let Some(outcome) = open.next().await {
        match outcome {
            Outcome::Passed => return Outcome::Passed,
            Outcome::Portal(address) => portal = Some(portal.flatten().or(address)),
            Outcome::Failed(reason) => reasons.push(reason),
        }
    }
    match portal {
        Some(address) => Outcome::Portal(address),
        None => Outcome::Failed(sentence(reasons)),
    }
}

/// What comes of kinds that all have to pass.
fn all(kinds: impl IntoIterator<Item = Outcome>) -> Outcome {
    let mut portal = None;
    let mut reasons = Vec::new();
    for kind in kinds {
        match kind {
            Outcome::Passed => {}
            Outcome::Portal(address) => portal = Some(portal.flatten().or(address)),
            Outcome::Failed(reason) => reasons.push(reason),
        }
    }
    match portal {
        Some(address) => Outcome::Portal(address),
        None if reasons.is_empty() => Outcome::Passed,
        None => Outcome::Failed(sentence(reasons)),
    }
}

/// Reasons as one text, each said once.
fn sentence(mut reasons: Vec<String>) -> String {
    let mut seen = std::collections::BTreeSet::new();
    reasons.retain(|reason| seen.insert(reason.clone()));
    let more = reasons.len().saturating_sub(REASONS);
    reasons.truncate(REASONS);
    let said = reasons.join("; ");
    match more {
        0 => said,
        more => format!("{said}; and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use std::future::{Ready, pending, ready};

    use futures_util::FutureExt as _;
    use futures_util::future::Either;

    use super::{FuturesUnordered, Outcome, all, any, kind};

    fn portal(address: &str) -> Outcome {
        Outcome::Portal(Some(address.to_owned()))
    }

    fn failed(reason: &str) -> Outcome {
        Outcome::Failed(reason.to_owned())
    }

    fn soon(outcomes: &[Outcome]) -> Vec<Ready<Outcome>> {
        outcomes.iter().cloned().map(ready).collect()
    }

    fn of_any(outcomes: &[Outcome]) -> Outcome {
        any(soon(outcomes).into_iter().collect())
            .now_or_never()
            .expect("all are there")
    }

    #[test]
    fn one_target_of_a_kind_is_enough_and_the_rest_is_not_waited_for() {
        let questions = [
            Either::Left(ready(failed("a"))),
            Either::Right(pending()),
            Either::Left(ready(Outcome::Passed)),
        ];
        assert_eq!(
            any(questions.into_iter().collect()).now_or_never(),
            Some(Outcome::Passed)
        );
        let none = FuturesUnordered::<Ready<Outcome>>::new();
        assert_eq!(kind(none).now_or_never(), Some(Outcome::Passed));
        assert_eq!(
            of_any(&[failed("a"), failed("b"), failed("a")]),
            failed("a; b")
        );
    }

    #[test]
    fn a_portal_decides_a_kind_of_which_nothing_passes() {
        let questions = [Either::Left(ready(portal("x"))), Either::Right(pending())];
        assert_eq!(any(questions.into_iter().collect()).now_or_never(), None);
        let outcomes = [Outcome::Portal(None), portal("x"), portal("y"), failed("a")];
        assert_eq!(of_any(&outcomes), portal("x"));
        for passed in [
            [portal("x"), Outcome::Passed],
            [Outcome::Passed, portal("x")],
        ] {
            assert_eq!(of_any(&passed), Outcome::Passed, "whichever comes first");
        }
        assert_eq!(
            of_any(&[Outcome::Portal(None), failed("a")]),
            Outcome::Portal(None)
        );
    }

    #[test]
    fn every_kind_has_to_pass_and_a_portal_outweighs_failures() {
        assert_eq!(all([Outcome::Passed, Outcome::Passed]), Outcome::Passed);
        assert_eq!(
            all([Outcome::Passed, failed("a"), failed("b")]),
            failed("a; b")
        );
        assert_eq!(
            all([failed("a"), Outcome::Portal(None), portal("x")]),
            portal("x")
        );
        assert_eq!(all([portal("x"), Outcome::Portal(None)]), portal("x"));
        assert_eq!(
            all([Outcome::Passed, Outcome::Portal(None)]),
            Outcome::Portal(None)
        );
    }

    #[test]
    fn a_failure_names_a_few_reasons_and_counts_the_rest() {
        let many: Vec<_> = (0..9).map(|number| failed(&number.to_string())).collect();
        assert_eq!(of_any(&many), failed("0; 1; 2; 3; and 5 more"));
    }
}
