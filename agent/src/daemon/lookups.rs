//! Answers `Resolve`: looks names up over one domain alone, for whoever may use it.

use std::cell::RefCell;
use std::net::IpAddr;
use std::rc::Rc;

use steer_core::name::Name;
use steer_core::probe::host_name;
use tokio::task::spawn_local;

use super::Daemon;
use super::access::Authority;
use crate::api::answer::Answer;
use crate::api::error::ApiError;
use crate::api::methods::{Reply, Resolve, ResolveReply};
use crate::api::server::Caller;
use crate::probe;

/// Names that are looked up at once.
const MOST: usize = 64;
/// Of these, for one user.
const MOST_OF_ONE: usize = 8;

/// The users for whom names are looked up now.
#[derive(Default)]
pub(super) struct Lookups {
    under_way: Rc<RefCell<Vec<u32>>>,
}

/// One of these; it ends with this.
struct UnderWay {
    uid: u32,
    all: Rc<RefCell<Vec<u32>>>,
}

impl Lookups {
    fn begin(&self, uid: u32) -> Option<UnderWay> {
        let mut all = self.under_way.borrow_mut();
        let own = all.iter().filter(|other| **other == uid).count();
        if all.len() >= MOST || own >= MOST_OF_ONE {
            return None;
        }
        all.push(uid);
        let all = self.under_way.clone();
        Some(UnderWay { uid, all })
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut all = self.all.borrow_mut();
        if let Some(at) = all.iter().position(|uid| *uid == self.uid) {
            all.swap_remove(at);
        }
    }
}

impl Daemon {
    /// Begins to look a name up; answers when that is done.
    pub(super) fn resolve(
        &self,
        caller: &Caller,
        authority: &Authority,
        asked: &Resolve,
        answer: Answer,
    ) {
        match self.begin_lookup(caller, authority, asked) {
            Ok(looking) => drop(spawn_local(async move { answer.end(Ok(looking.await)) })),
            Err(error) => answer.end(Err(error)),
        }
    }

    fn begin_lookup(
        &self,
        caller: &Caller,
        authority: &Authority,
        asked: &Resolve,
    ) -> Result<impl Future<Output = Reply> + use<>, ApiError> {
        let invalid = |reason| ApiError::InvalidArgument {
            field: "name".to_owned(),
            reason,
        };
        let name = host_name(&asked.name).map_err(invalid)?;
        never_asked(&name).map_or(Ok(()), |why| Err(invalid(format!("`{name}` {why}"))))?;
        let domain = self.find_domain(&asked.domain)?;
        if !self.is_led_to(caller, &domain.name) {
            self.permit(authority, std::slice::from_ref(&domain.name), false, None)?;
        }
        let failed = |reason| ApiError::Failed { reason };
        let way = self.engine.lookup(domain).map_err(failed)?;
        let under_way = self.lookups.begin(caller.uid).ok_or_else(|| {
            failed("as many names are looked up as can be: try again in some seconds".to_owned())
        })?;
        let domain = domain.name.to_string();
        Ok(async move {
            let found = probe::look_up(&way, &name).await;
            drop(under_way);
            let addresses = found.addresses.iter().map(ToString::to_string);
            Reply::Resolved(ResolveReply {
                name,
                domain,
                addresses: addresses.collect(),
                failures: found.failures,
            })
        })
    }

    /// Whether the caller's own flows go by a domain: it asks no more there than it could itself.
    fn is_led_to(&self, caller: &Caller, domain: &Name) -> bool {
        let holding = self.holding(caller);
        let policy = holding.first();
        let decision = policy.and_then(|policy| self.engine.decision(policy.as_str()));
        decision.is_some_and(|decision| decision.domain() == Some(domain))
    }
}

/// Why name servers are never asked for a name.
fn never_asked(name: &str) -> Option<&'static str> {
    if name.parse::<IpAddr>().is_ok() {
        return Some("is an address, and no name");
    }
    match name.rsplit('.').next()? {
        "localhost" => Some("is this host itself (RFC 6761)"),
        "local" => Some("is asked for on the link, not of name servers (RFC 6762)"),
        "onion" => Some("is known to Tor alone (RFC 7686)"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{Lookups, MOST, MOST_OF_ONE, never_asked};

    #[test]
    fn what_is_no_name_of_the_dns_is_not_asked_for() {
        for name in [
            "localhost",
            "a.localhost",
            "printer.local",
            "x.onion",
            "192.0.2.1",
        ] {
            assert!(never_asked(name).is_some(), "{name}");
        }
        for name in ["local.example", "onion", "localhost.example"] {
            assert_eq!(never_asked(name).is_some(), name == "onion", "{name}");
        }
    }

    #[test]
    fn one_user_leaves_room_for_others_and_what_ends_makes_room() {
        let lookups = Lookups::default();
        let mut own: Vec<_> = (0..MOST_OF_ONE).filter_map(|_| lookups.begin(7)).collect();
        assert_eq!(own.len(), MOST_OF_ONE);
        assert!(lookups.begin(7).is_none());
        let others = (0..100).filter_map(|uid| lookups.begin(1000 + uid));
        let others: Vec<_> = others.collect();
        assert_eq!(others.len(), MOST - MOST_OF_ONE);
        assert!(own.pop().is_some());
        assert!(lookups.begin(7).is_some());
    }
}
