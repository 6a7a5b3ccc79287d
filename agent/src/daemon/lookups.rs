//! Answers `Resolve`: looks names up over one domain alone, for whoever may use it.

use std::future::{Future, poll_fn};
use std::net::{IpAddr, SocketAddr};

use steer_core::name::Name;
use steer_core::probe::host_name;
use steer_core::rules::Flow;
use tokio::task::spawn_local;

use super::Daemon;
use super::access::Authority;
use crate::api::answer::Answer;
use crate::api::error::ApiError;
use crate::api::methods::{Reply, Resolve, ResolveReply};
use crate::api::server::Caller;
use crate::cgroup::process;
use crate::probe;

/// UDP.
const UDP: u8 = 17;

impl Daemon {
    /// Begins to look a name up; answers when that is done. It ends with the caller's connection, of which one
    /// user can have a few: more is not looked up at once.
    pub(super) fn resolve(
        &self,
        caller: &Caller,
        authority: &Authority,
        asked: &Resolve,
        mut answer: Answer,
    ) {
        let looking = match self.begin_lookup(caller, authority, asked) {
            Ok(looking) => looking,
            Err(error) => return answer.end(Err(error)),
        };
        let _goes_on_by_itself = spawn_local(async move {
            let reply = tokio::select! {
                reply = looking => reply,
                () = poll_fn(|context| answer.poll_closed(context)) => return,
            };
            answer.end(Ok(reply));
        });
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
        let way = self.engine.lookup(domain);
        let servers = way.as_ref().map(|way| way.servers.as_slice());
        if !self.could_ask(caller, &domain.name, servers.unwrap_or_default()) {
            self.permit(authority, std::slice::from_ref(&domain.name), false, None)?;
        }
        let way = way.map_err(|reason| ApiError::Failed { reason })?;
        let domain = domain.name.to_string();
        Ok(async move {
            let found = probe::look_up(&way, &name).await;
            let addresses = found.addresses.iter().map(ToString::to_string);
            Reply::Resolved(ResolveReply {
                name,
                domain,
                addresses: addresses.collect(),
                failures: found.failures,
            })
        })
    }

    /// Whether the caller's own flows to these name servers, of which there is one, go by a domain: it learns no more
    /// there than it could itself.
    fn could_ask(&self, caller: &Caller, domain: &Name, servers: &[SocketAddr]) -> bool {
        let chain = self.holding(caller);
        let by_domain = |server: &SocketAddr| {
            let flow = Flow {
                protocol: UDP,
                port: server.port(),
                ..Flow::to(server.ip())
            };
            let decided = self.engine.decide_flow(&chain, &flow);
            decided.decision.domain() == Some(domain)
        };
        // It may have no network at all.
        let same_network =
            process::shares_network(caller.pid) && !process::has_ended(&caller.pidfd);
        same_network && !chain.is_empty() && !servers.is_empty() && servers.iter().all(by_domain)
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
    use super::never_asked;

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
}
