//! What becomes of a flow: the part that `connect`, `sendmsg`, guard and repair share.

use aya_ebpf::helpers::generated::bpf_set_retval;
use steer_common::{
    DomainEntry, DomainSlots, ERRNO_NO_DOMAIN, ERRNO_NOT_ALLOWED, FlowState, LocalEntry, counter,
    domain_flags, flow_flags, local_flags, rules::NAMES_DESTINATION, share, verdict,
};

use crate::{
    address::Address,
    count::count,
    fit,
    maps::DOMAINS,
    owner::Owner,
    rules::{self, Said},
    share::member,
    tuple::Tuple,
};

/// Verdict of a cgroup program: go on.
pub const ALLOW: i32 = 1;
/// Verdict of a cgroup program: fail with the return value set, `EPERM` if none is.
const REFUSE: i32 = 0;

/// What an owner's policy says about one destination.
pub enum Decision {
    /// Left to the host's routing. With the entry if that is because the destination is on-link at
    /// another interface.
    Pass(Option<&'static LocalEntry>),
    /// Left to the host's routing because nothing else was chosen for it.
    Free,
    /// Put on the domain with this index, by this choice.
    Steer(u32, u32),
    /// Refused: no domain fits.
    NoDomain,
    /// Refused: the policy does not allow it.
    NotAllowed,
}

/// A domain and its index.
#[derive(Clone, Copy)]
pub struct Domain {
    /// Index into `DOMAINS`, not 0.
    pub index: u32,
    /// A copy of its entry.
    pub entry: DomainEntry,
    /// What was copied.
    place: &'static DomainEntry,
}

impl Domain {
    /// Domain `index` if it has an interface.
    #[inline(always)]
    pub fn get(index: u32) -> Option<Self> {
        if index == 0 {
            return None;
        }
        let (entry, place) = entry_in_use(index)?;
        (entry.ifindex != 0).then_some(Self {
            index,
            entry,
            place,
        })
    }

    /// The mark of domain `index`, also while it has no interface.
    #[inline(always)]
    pub fn mark_of(index: u32) -> Option<u32> {
        if index == 0 {
            return None;
        }
        Some(entry_in_use(index)?.0.mark)
    }

    /// Whether it has a source and a table for the family.
    #[inline(always)]
    pub fn serves(&self, v4: bool) -> bool {
        let flag = if v4 {
            domain_flags::IPV4
        } else {
            domain_flags::IPV6
        };
        self.entry.flags & flag != 0
    }

    /// Whether an IPv4 address of it is another interface's, too.
    #[inline(always)]
    pub fn shares_address(&self) -> bool {
        self.entry.flags & domain_flags::SHARED != 0
    }

    /// Its IPv6 source.
    #[inline(always)]
    pub fn source6(&self) -> Address {
        // SAFETY: same size; the field is aligned to four bytes.
        Address(unsafe { *(&raw const self.entry.source6).cast::<[u32; 4]>() })
    }

    /// Its IPv6 source for who prefers a public address to a temporary one.
    #[inline(always)]
    pub fn public6(&self) -> Address {
        // SAFETY: as above.
        Address(unsafe { *(&raw const self.entry.public6).cast::<[u32; 4]>() })
    }

    /// A byte of its interface's name. Read in place, since the verifier takes no index into the stack
    /// that it does not know; a name that changes meanwhile is refused, or is the next one.
    #[inline(always)]
    pub fn name_byte(&self, at: usize) -> u8 {
        self.place.ifname.get(at).copied().unwrap_or(0)
    }

    /// Its IPv4 source as the kernel wants it.
    #[inline(always)]
    pub fn source4(&self) -> u32 {
        u32::from_ne_bytes(self.entry.source4)
    }
}

/// A copy of the entry of domain `index` that is in use now. `None` also if the agent may have
/// begun to write the same place again while it was copied: it does after so many changes of the domain as
/// there are other places.
#[inline(always)]
fn entry_in_use(index: u32) -> Option<(DomainEntry, &'static DomainEntry)> {
    let slots = DOMAINS.get(index)?;
    // SAFETY: valid, aligned words, which may change while they are read.
    let changes = || unsafe { (&raw const slots.changes).read_volatile() };
    let begun = changes();
    let place = slots.entries.get(DomainSlots::slot(begun))?;
    // SAFETY: as above; what was read is used only if it was not written meanwhile.
    let entry = unsafe { core::ptr::from_ref(place).read_volatile() };
    let meanwhile = changes().wrapping_sub(begun);
    (meanwhile < DomainSlots::COUNT as u32 - 1).then_some((entry, place))
}

/// What was chosen for one flow of an owner. All fields are always set: see [`Owner`].
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub struct Chosen {
    /// Index into `CHOICES`.
    pub choice: u32,
    /// One of [`verdict`].
    pub verdict: u32,
    /// Index into `DOMAINS`, or 0.
    pub domain: u32,
    /// Bits of [`chosen`].
    pub flags: u32,
}

/// Bits of [`Chosen::flags`].
pub mod chosen {
    /// Its domain is one of several that the choice spreads flows over.
    pub const SHARED: u32 = 1;
    /// By a rule that names destinations.
    pub const NAMED: u32 = 2;
    /// Nothing can be said: that takes the ports, which are not known.
    pub const UNKNOWN: u32 = 4;
}

impl Chosen {
    /// Closed.
    pub const NOTHING: Self = Self {
        choice: 0,
        verdict: verdict::BLOCK,
        domain: 0,
        flags: 0,
    };

    /// Whether one of [`chosen`] is so.
    #[inline(always)]
    pub fn is(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }
}

/// What was chosen for a flow: by the first rule that fits it, or else by the policy itself. `cookie` tells
/// its socket.
///
/// Rules that cannot be read count for nothing, and close a strict policy.
#[inline(always)]
pub fn choose(owner: &Owner, tuple: &Tuple, cookie: impl FnOnce() -> u64) -> Chosen {
    let entry = owner.choice();
    if owner.divides(&entry) {
        let mut found = Chosen::NOTHING;
        choice_of_flow(owner, tuple, cookie(), &raw mut found);
        return found;
    }
    Chosen {
        choice: owner.choice,
        verdict: entry.verdict,
        domain: entry.domain,
        flags: 0,
    }
}

/// [`choose`] where there is more than one way. A global function to the verifier, as those of `rules` are.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn choice_of_flow(
    owner: *const Owner,
    tuple: *const Tuple,
    cookie: u64,
    place: *mut Chosen,
) -> u32 {
    // SAFETY: null, or an owner.
    let Some(owner) = (unsafe { owner.as_ref() }) else {
        return 0;
    };
    // SAFETY: null, or a flow.
    let Some(tuple) = (unsafe { tuple.as_ref() }) else {
        return 0;
    };
    // SAFETY: null, or room that nobody else uses.
    let Some(place) = (unsafe { place.as_mut() }) else {
        return 0;
    };
    let mut choice = owner.choice;
    let mut flags = 0;
    if owner.rules != 0 {
        match rules::find(owner.rules, tuple) {
            Said::Choice(word) => {
                choice = word & !NAMES_DESTINATION;
                if word & NAMES_DESTINATION != 0 {
                    flags = chosen::NAMED;
                }
            }
            Said::PortsUnknown => {
                place.flags = chosen::UNKNOWN;
                return 0;
            }
            Said::Nothing if owner.is_strict() => return 0,
            Said::Nothing => {}
        }
    }
    let entry = owner.choice_at(choice);
    let mut domain = entry.domain;
    if entry.share != share::NONE && entry.verdict == verdict::STEER {
        flags |= chosen::SHARED;
        if entry.share == share::FLOW && tuple.without_ports != 0 {
            flags |= chosen::UNKNOWN;
        } else if let Some(member) = member(choice, entry.share, tuple, cookie) {
            domain = member;
        }
    }
    *place = Chosen {
        choice,
        verdict: entry.verdict,
        domain,
        flags,
    };
    0
}

/// Whether what is sent without a connection stays on `domain`, where the first of it was put by `choice`,
/// although another was chosen meanwhile (`rebind = "flow"`).
#[inline(always)]
pub fn stays(owner: &Owner, found: &Chosen, choice: u32, domain: u32, v4: bool) -> bool {
    choice == found.choice
        && domain != 0
        && found.verdict == verdict::STEER
        && !found.is(chosen::SHARED)
        && !owner.rebinds()
        && fit::serves(domain, v4)
}

/// Decides for `owner` and a flow; `bound_device` is the interface that the application bound
/// the socket to, or 0; `memory` what an unconnected socket remembers of what it sent before.
#[inline(always)]
pub fn decide(
    owner: &Owner,
    tuple: &Tuple,
    bound_device: u32,
    memory: Option<&FlowState>,
    cookie: impl FnOnce() -> u64,
) -> Decision {
    let destination = tuple.destination;
    if destination.is_never_steered() {
        return Decision::Pass(None);
    }
    let mut found = choose(owner, tuple, cookie);
    if let Some(flow) = memory
        && flow.flags & flow_flags::DECIDED != 0
        && flow.policy == owner.policy
        && stays(owner, &found, flow.choice, flow.domain, destination.is_v4())
    {
        found.domain = flow.domain;
    }
    settle(owner, &tuple.destination, bound_device, &found)
}

/// What comes of what was chosen.
#[inline(always)]
pub fn settle(owner: &Owner, destination: &Address, bound_device: u32, found: &Chosen) -> Decision {
    if let Some(local) = local_at(destination) {
        if local.flags & local_flags::HOST != 0 {
            return Decision::Pass(None);
        }
        if owner.passes_locals() && !found.is(chosen::NAMED) && !contains(local, found.domain) {
            return Decision::Pass(Some(local));
        }
    }
    match found.verdict {
        verdict::PASS => return Decision::Free,
        verdict::STEER => {}
        _ => return Decision::NoDomain,
    }
    let interface = fit::interface(found.domain);
    if interface == 0 {
        return Decision::NoDomain;
    }
    if bound_device != 0 && bound_device != interface {
        // The application's own choice of interface is respected, unless the policy is strict.
        return if owner.is_strict() {
            Decision::NotAllowed
        } else {
            Decision::Pass(None)
        };
    }
    Decision::Steer(found.domain, found.choice)
}

/// [`Address::local`], whose key takes stack that is needed before.
#[inline(never)]
fn local_at(destination: &Address) -> Option<&'static LocalEntry> {
    destination.local()
}

/// [`steer_common::DomainSet::contains`] with a bound that the verifier sees.
#[inline(always)]
pub fn contains(local: &LocalEntry, domain: u32) -> bool {
    local.domains.contains((domain & 0xff) as u16)
}

/// Refuses a flow: no domain fits.
#[inline(always)]
pub fn refuse_no_domain() -> i32 {
    count(counter::REFUSED);
    // SAFETY: takes a number.
    unsafe { bpf_set_retval(-ERRNO_NO_DOMAIN) };
    REFUSE
}

/// Refuses an operation: the policy does not allow it.
#[inline(always)]
pub fn refuse_not_allowed() -> i32 {
    count(counter::NOT_ALLOWED);
    // SAFETY: takes a number.
    unsafe { bpf_set_retval(-ERRNO_NOT_ALLOWED) };
    REFUSE
}
