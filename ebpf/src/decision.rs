//! What becomes of a flow: the part that `connect` and `sendmsg` share.

use aya_ebpf::helpers::generated::bpf_set_retval;
use steer_common::{
    DomainEntry, DomainSlots, ERRNO_NO_DOMAIN, ERRNO_NOT_ALLOWED, LocalEntry, counter,
    domain_flags, local_flags, verdict,
};

use crate::{address::Address, count::count, maps::DOMAINS, owner::Owner, tuple::Tuple};

/// Verdict of a cgroup program: go on.
pub const ALLOW: i32 = 1;
/// Verdict of a cgroup program: fail with the return value set, `EPERM` if none is.
const REFUSE: i32 = 0;

/// What an owner's policy says about one destination.
pub enum Decision {
    /// Left to the host's routing. With the entry if that is because the destination is on-link at
    /// another interface.
    Pass(Option<&'static LocalEntry>),
    /// Put on the domain, by this choice.
    Steer(Domain, u32),
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

/// Decides for `owner` and a flow; `bound_device` is the interface that the application bound
/// the socket to, or 0.
#[inline(always)]
pub fn decide(owner: &Owner, tuple: &Tuple, bound_device: u32) -> Decision {
    let destination = tuple.destination;
    if destination.is_never_steered() {
        return Decision::Pass(None);
    }
    let choice = owner.choice();
    if let Some(local) = destination.local() {
        if local.flags & local_flags::HOST != 0 {
            return Decision::Pass(None);
        }
        if owner.passes_locals() && !contains(local, choice.domain) {
            return Decision::Pass(Some(local));
        }
    }
    match choice.verdict {
        verdict::PASS => return Decision::Pass(None),
        verdict::STEER => {}
        _ => return Decision::NoDomain,
    }
    let Some(domain) = Domain::get(choice.domain) else {
        return Decision::NoDomain;
    };
    if bound_device != 0 && bound_device != domain.entry.ifindex {
        // The application's own choice of interface is respected, unless the policy is strict.
        return if owner.is_strict() {
            Decision::NotAllowed
        } else {
            Decision::Pass(None)
        };
    }
    Decision::Steer(domain, owner.choice)
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
