//! Live flows: whose each is, which domain it uses, which it would get now, and so what becomes of it.
//!
//! A verdict is *level*: it follows from what is known and from the flow's socket, and not from what
//! changed, so that the next agent comes to the same. Only since when a domain is lost must be
//! remembered ([`Losses`]).
//!
//! Connections that were accepted are answered by the way they were asked, as long as that way is there:
//! that their policy would prefer another domain is nothing to them, since the peer chose. They are told
//! by their own port, which is a listener's; one whose listener has gone is taken for a flow of the
//! host's own.
//!
//! Rules of a policy may look at what a socket does not tell: the code point, and whether its source was
//! chosen before the decision or by it. A flow that is where it would be by any answer is where it should
//! be; else it would be ended again and again. And of domains that share flows each is right: a flow whose
//! source was chosen before, by a peer or an application, is on the member whose address that is.

mod asked;
mod losses;
mod place;

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use steer_common::{CgroupEntry, FlowState, flow_flags, policy_flags};

use self::asked::Asked;
pub use self::losses::{Loss, Losses};
use self::place::Place;
use crate::engine::Engine;
use crate::explain::flow::{Fate, Owner, Pass, Refuse};
use crate::health::Standing;
use crate::ids::{CgroupId, DomainIndex, IfIndex, PolicyId};
use crate::name::Name;
use crate::policy::{Policy, Session, Sessions};
use crate::rules;

/// `IPPROTO_TCP`
const TCP: u8 = 6;

/// A live flow, as the kernel tells of its socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// `IPPROTO_*`.
    pub protocol: u8,
    /// Its own address, IPv4 also where the socket is an IPv6 one.
    pub local: SocketAddr,
    /// Its peer's.
    pub peer: SocketAddr,
    /// The socket's mark.
    pub mark: u32,
    /// The cgroup that made the socket.
    pub cgroup: CgroupId,
    /// The interface that the socket is bound to.
    pub bound: Option<IfIndex>,
    /// The peer asked.
    pub accepted: bool,
    /// What the kernel programs remember of the socket. The kernel never tells it of datagram sockets.
    pub memory: Option<FlowState>,
}

/// What becomes of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is none of steer's: no policy is to move it.
    Alone,
    /// It is where a new one would go.
    Home,
    /// It stays on its domain although a new one would go elsewhere.
    Keep,
    /// The same, but its domain is lost, and then it is ended.
    Linger {
        /// When, on the clock that [`Engine::judge`] is asked by.
        until: Duration,
    },
    /// It goes on by the domain that a new one would get.
    Move(Means),
    /// It is ended.
    Reset,
}

/// How a flow goes on by another domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Means {
    /// By this mark, inside the mask: its source is an address of that domain too.
    Mark(u32),
    /// The packet programs see to it.
    Repair,
}

/// Why a flow is not where a new one would go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It has its domain, and another is chosen now.
    Better,
    /// Its policy does not allow where it is.
    NotAllowed,
    /// Its domain has no carrier, or no interface.
    Carrier,
    /// Its own address has gone.
    Address,
    /// Its domain has no route to its peer any more.
    Route,
    /// Its domain's check fails.
    Check,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Better => "another domain is chosen now",
            Self::NotAllowed => "its policy does not allow it",
            Self::Carrier => "its domain has no carrier",
            Self::Address => "its address has gone",
            Self::Route => "its domain has no route to the peer",
            Self::Check => "its domain's check fails",
        })
    }
}

/// What was found of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    /// The policy whose it is.
    pub policy: Option<Name>,
    /// The domain that it uses; none: the host's routing.
    pub from: Option<Name>,
    /// The domain that a new one would get.
    pub to: Option<Name>,
    /// What becomes of it.
    pub verdict: Verdict,
    /// Why it is not at home.
    pub why: Option<Why>,
}

/// Whose a flow is.
struct Holder<'a> {
    owner: Owner,
    /// The policy in force and those behind it; empty: the cgroup is closed.
    chain: &'a [Name],
    /// Another strict policy wants it too, and another domain for it.
    disputed: bool,
}

/// What `sessions` and `linger` say where no policy does.
const NOBODYS: Sessions = Sessions {
    on_better: Session::Keep,
    on_loss: Session::Reset,
};

impl Engine {
    /// What becomes of a flow at the time `now`, in seconds of a clock that goes on for as long as the
    /// host runs.
    pub fn judge(&self, flow: &Flow, losses: &mut Losses, now: Duration) -> Judged {
        let mut judged = Judged {
            policy: None,
            from: None,
            to: None,
            verdict: Verdict::Alone,
            why: None,
        };
        let remembers = |flag| flow.memory.is_some_and(|memory| memory.flags & flag != 0);
        if remembers(flow_flags::FOREIGN) || self.state().exempt.contains(&flow.cgroup) {
            return judged;
        }
        let plan = self.plan();
        let holder = self.holder(flow);
        let owner = holder.as_ref().map(|holder| holder.owner);
        let strict = owner.is_some_and(|owner| owner.strict);
        let asked = Asked::new(plan, owner.as_ref(), flow);
        let fate = asked.fate;
        if let Fate::Never(_) | Fate::Local(_) = fate {
            return judged;
        }
        let wanted = asked.wanted;
        let place = self.place_of(flow);
        // What nobody steers, and nobody steered.
        let steered = place.marked.is_some();
        let foreign = match fate {
            Fate::Pass(Pass::NoPolicy) => !steered || !self.bears_mark(flow),
            _ => !steered && asked.may_pass,
        };
        if foreign || !strict && remembers(flow_flags::APP_BOUND) {
            return judged;
        }
        let at_interface = |bound: IfIndex| {
            let mut homes = asked.homes().filter_map(|index| plan.domains.get(&index));
            homes.any(|at| at.ifindex == bound.0)
        };
        if !strict && flow.bound.is_some_and(|bound| !at_interface(bound)) {
            return judged;
        }
        judged.policy = holder.as_ref().and_then(|h| h.chain.first().cloned());
        judged.from = place.domain.cloned();
        judged.to = wanted.and_then(|index| self.name_of(index)).cloned();
        let disputed = holder.as_ref().is_some_and(|holder| holder.disputed);
        let here = place.domain.and_then(|domain| self.index_of(domain));
        if let Some(index) = here.filter(|index| asked.is_home(*index))
            && place.lost.is_none()
            && (!strict
                || !disputed
                    && self.guard_lets(flow, index, &place)
                    && (fate == Fate::Steer(index)
                        || self.is_decided(flow, &place)
                        || asked.is_member(index) && goes_by_source(flow, index, &place)))
        {
            judged.verdict = Verdict::Home;
            return judged;
        }
        let chain = holder.as_ref().map_or(&[][..], |holder| holder.chain);
        let among = place
            .domain
            .is_some_and(|domain| self.uses(chain, &asked.flow, domain));
        let sessions = self.policy_of(chain).map_or(NOBODYS, |p| p.sessions);
        // A strict policy's flow may be elsewhere only where its guard knows it to be.
        let known = among && !disputed && self.is_decided(flow, &place);
        let (wish, why) = match place.lost {
            Some(why) if strict && !known => (Session::Reset, why),
            Some(why) => (sessions.on_loss, why),
            None if flow.accepted && !strict => return judged,
            None if strict && !(known && self.fits(&place)) => (Session::Reset, Why::NotAllowed),
            None if matches!(fate, Fate::Pass(Pass::NoPolicy)) => return judged,
            None if among && !self.fits(&place) || is_blocked(&fate) => {
                (sessions.on_loss, Why::NotAllowed)
            }
            None if among && self.is_dead(&place) => (sessions.on_loss, Why::Check),
            None => (sessions.on_better, Why::Better),
        };
        judged.why = Some(why);
        judged.verdict = match wish {
            Session::Reset => Verdict::Reset,
            Session::Keep if why == Why::Better => Verdict::Keep,
            Session::Keep => {
                let policy = self.policy_of(chain);
                let linger = policy.and_then(|policy| policy.linger);
                let linger = linger.unwrap_or(self.state().config.agent.linger);
                let loss = Loss {
                    policy: judged.policy.clone(),
                    domain: judged.from.clone(),
                    address: flow.local.ip(),
                };
                let until = losses.since(loss, now).saturating_add(linger);
                if until > now {
                    Verdict::Linger { until }
                } else {
                    Verdict::Reset
                }
            }
            Session::Move => match wanted.and_then(|to| self.means(flow, to, chain, strict)) {
                Some(means) => Verdict::Move(means),
                None => Verdict::Reset,
            },
        };
        judged
    }

    /// Whose a flow is: the policy of its cgroup as it is now, or, where that has none, the one that
    /// decided the flow or made the socket. Strict goes before others.
    fn holder(&self, flow: &Flow) -> Option<Holder<'_>> {
        let entry = self.plan().cgroups.get(&flow.cgroup).copied();
        let remembered = flow.memory.map_or(0, |memory| {
            if memory.flags & flow_flags::DECIDED != 0 && memory.policy != 0 {
                memory.policy
            } else {
                memory.creator
            }
        });
        let remembered = (remembered != 0).then_some(CgroupEntry {
            policy: remembered,
            ..CgroupEntry::default()
        });
        let held = |entry: Option<CgroupEntry>| {
            let entry = entry?;
            Some((Owner::of(self.plan(), Some(&entry))?, entry.policy))
        };
        let (cgroup, socket) = (held(entry), held(remembered));
        let (holds, other) = match (cgroup, socket) {
            (Some(cgroup), Some(socket)) if socket.0.strict && !cgroup.0.strict => {
                (socket, Some(cgroup))
            }
            (Some(cgroup), socket) => (cgroup, socket),
            (None, socket) => (socket?, None),
        };
        let (owner, policy) = holds;
        let chain = self.state().memory.policies.key(policy);
        Some(Holder {
            owner,
            chain: chain.map_or(&[], |chain| chain),
            disputed: other.is_some_and(|(other, _)| {
                let plan = self.plan();
                let chosen = |owner: Owner| owner.choose(plan, &asked::asked(flow)).choice;
                other.strict && owner.strict && chosen(other) != chosen(owner)
            }),
        })
    }

    fn policy_of(&self, chain: &[Name]) -> Option<&Policy> {
        self.state().policy(chain.first()?.as_str())
    }

    /// Whether a domain is one that these policies can use for a flow.
    fn uses(&self, chain: &[Name], flow: &rules::Flow, domain: &Name) -> bool {
        let asked = self.ask(chain, flow);
        let names = asked.inputs.iter().flat_map(|stage| &stage.use_);
        self.expand(names).contains(domain)
    }

    /// Whether a flow's domain could be chosen, as far as the domain goes.
    fn fits(&self, place: &Place<'_>) -> bool {
        place
            .domain
            .is_some_and(|domain| self.unfit(domain).is_none())
    }

    /// Whether nothing is to be hoped for from a flow's domain, although it is there.
    fn is_dead(&self, place: &Place<'_>) -> bool {
        place.domain.is_some_and(|domain| {
            let condition = self.state().health.get(domain);
            condition.is_some_and(|condition| {
                matches!(
                    condition.standing(),
                    Standing::Limited(_) | Standing::Portal(_)
                )
            })
        })
    }

    /// Whether a flow remembers that it was put on the domain where it is, which is what a guard goes by,
    /// and has that domain's source.
    ///
    /// What a datagram socket remembers the kernel does not tell. `connect` marks it for the domain that it
    /// remembers, so that its mark and its source say as much.
    fn is_decided(&self, flow: &Flow, place: &Place<'_>) -> bool {
        let Some(index) = place.domain.and_then(|domain| self.index_of(domain)) else {
            return false;
        };
        let decided = match flow.memory {
            Some(memory) => {
                memory.flags & flow_flags::DECIDED != 0 && memory.domain == u32::from(index.0)
            }
            None => flow.protocol != TCP && place.marked == Some(index),
        };
        // Of a domain that is lost the address may have gone too.
        decided && (place.lost.is_some() || self.has_source(flow, index))
    }

    fn has_source(&self, flow: &Flow, index: DomainIndex) -> bool {
        self.plan().sources.contains(&(index, flow.local.ip()))
    }

    /// Whether what a flow sends passes a guard at its policy's domain, and goes there.
    fn guard_lets(&self, flow: &Flow, index: DomainIndex, place: &Place<'_>) -> bool {
        let domain = self.plan().domains.get(&index);
        let bound = |bound: IfIndex| domain.is_some_and(|at| at.ifindex == bound.0);
        self.has_source(flow, index)
            && flow.bound.is_none_or(bound)
            && (place.marked == Some(index)
                || domain.is_some_and(|at| self.leads(flow, at.ifindex)))
    }

    /// How a flow can go on by a domain.
    fn means(&self, flow: &Flow, to: DomainIndex, chain: &[Name], strict: bool) -> Option<Means> {
        // A strict policy's guard knows by which domain each of its flows goes, and drops the others.
        if strict {
            return None;
        }
        let domain = self.plan().domains.get(&to)?;
        let shared = self.holders(flow.local.ip()).nth(1).is_some();
        if shared && self.has_source(flow, to) {
            return Some(Means::Mark(domain.mark));
        }
        let number = self.state().memory.policies.get(chain).map(PolicyId);
        let entry = number.and_then(|number| self.plan().policies.get(&number));
        let moves = policy_flags::REPAIR | policy_flags::MOVE;
        let moves = entry.is_some_and(|entry| entry.flags & moves == moves);
        (moves && flow.protocol != TCP).then_some(Means::Repair)
    }
}

/// Whether the guard knows a shared flow by its source, of which it accepts every member's: nobody put it on
/// another member. One that was accepted has its listener's mark, which says nothing of it.
fn goes_by_source(flow: &Flow, index: DomainIndex, place: &Place<'_>) -> bool {
    let decided = flow.memory.is_some_and(|memory| {
        memory.flags & flow_flags::DECIDED != 0 && memory.domain != u32::from(index.0)
    });
    !decided && (flow.accepted || place.marked.is_none_or(|marked| marked == index))
}

/// Whether new flows are refused, for whatever domain.
fn is_blocked(fate: &Fate) -> bool {
    matches!(fate, Fate::Refuse(Refuse::Blocked | Refuse::Closed))
}
