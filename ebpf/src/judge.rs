//! Whether a packet may leave by the interface it is about to leave by: the part that the packet
//! programs at egress share.
//!
//! The cheapest facts come first. Most packets are nobody's, or bear the mark that their policy's choice
//! of the moment has, at that domain's interface and with its preferred source.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_RB_AVAIL_DATA, bpf_sock},
    helpers::generated::{
        bpf_get_socket_cookie, bpf_ringbuf_query, bpf_set_hash, bpf_sk_fullsock, bpf_skb_cgroup_id,
    },
};
use steer_common::{
    EVENT_RING_BYTES, EventKind, GuardEvent, cell, counter, flow_flags, guard_reason, local_flags,
    verdict,
};

use crate::{
    address::Address,
    count::count,
    decision::contains,
    divided::{NAMED, is_of_connection},
    fit::{self, Fit, fit},
    flow, globals,
    log::log,
    maps::{EVENTS, cell},
    owner::Owner,
    packet::{self, Headers, ICMP, ICMPV6},
    sock::{
        self, AF_INET, AF_INET6, AF_PACKET, NEW_SYN_RECV, SOCK_DGRAM, SOCK_STREAM, TIME_WAIT,
        domain_of_mark, field, set_field,
    },
    stack,
    traffic::{self, Kind},
};

/// What becomes of a packet.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It leaves.
    Leave,
    /// It is dropped: a strict policy's, where it must not be.
    Drop,
    /// It leaves, but its policy would have had it elsewhere.
    Wrong,
    /// Where it must be is to be asked of [`crate::divided`] first, which takes more stack than is left here.
    Ask,
}

/// Whom a verdict is about. Words alone, as in [`crate::tuple::Tuple`].
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub struct Judgement {
    /// Whose it is, as far as there is something to say about it.
    pub owner: Owner,
    /// What its socket remembers, with [`Verdict::Ask`].
    pub memory: Memory,
}

// SAFETY: numbers alone.
unsafe impl stack::Numbers for Judgement {}

impl Judgement {
    /// Nothing more is to be done about what was asked about.
    #[inline(always)]
    pub fn forget(&mut self) {
        self.owner.forget();
    }

    #[inline(always)]
    fn ask(&mut self, owner: &Owner, memory: &Memory) -> Verdict {
        self.owner = *owner;
        self.memory = *memory;
        Verdict::Ask
    }
}

/// Whether a packet plainly leaves as it should: nobody's, or a connection's that is where its cgroup's policy
/// would put it now. It is counted. Most are that, and it is asked first: with little code, and without what their
/// sockets remember, which would cost as much as the cgroup. Only while no policy is strict.
///
/// The mark is the packet's, as the socket gave it: of a socket that need not be a full one no more is seen.
#[inline(never)]
pub fn is_plainly_right(skb: *mut __sk_buff) -> bool {
    let socket: *mut bpf_sock = field!(skb, __bindgen_anon_2.sk);
    if socket.is_null() {
        return true;
    }
    let state = field!(socket, state);
    if field!(socket, dst_port) == 0
        || state == TIME_WAIT
        || state == NEW_SYN_RECV
        || Owner::any_is_strict()
    {
        return false;
    }
    let owner = of_cgroup(skb);
    let mark = field!(skb, mark) & globals::MARK_MASK.load();
    if mark == 0 {
        return owner.is_none();
    }
    let choice = owner.choice();
    let index = choice.domain;
    if owner.is_none() || owner.divides(&choice) || !fit::bears_mark_of(index, mark) {
        return false;
    }
    // SAFETY: not null.
    let full = unsafe { bpf_sk_fullsock(socket) };
    if !is_at::<SOCK_DGRAM>(index, skb, full) || owner.repairs() && asks_for_echo(full) {
        return false;
    }
    set_field!(tag(index), skb, tc_index);
    traffic::add::<true>(skb, owner.policy, index, Kind::Sent);
    true
}

/// Judges a packet, counts it for its policy, and tells of drops.
///
/// `TC`: at tc egress, where a packet that was judged can be told to the interfaces below. `expected`: what
/// [`crate::divided::expected`] said when it was [`Verdict::Ask`], and else [`UNASKED`].
#[inline(always)]
pub fn judge<const TC: bool>(skb: *mut __sk_buff, place: &mut Judgement, expected: u64) -> Verdict {
    let socket: *mut bpf_sock = field!(skb, __bindgen_anon_2.sk);
    if socket.is_null() {
        return Verdict::Leave;
    }
    // SAFETY: not null.
    let full = unsafe { bpf_sk_fullsock(socket) };
    let (owner, memory) = whose(skb, full);
    if owner.is_none() {
        Verdict::Leave
    } else if owner.is_strict() {
        strict::<TC>(skb, full, &owner, &memory, place, expected)
    } else {
        others::<TC>(skb, full, &owner, &memory, place, expected)
    }
}

/// Nobody was asked where the packet must be.
pub const UNASKED: u64 = 1 << 62;

/// What a socket remembers of its flow. Words alone, as in [`crate::tuple::Tuple`].
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub struct Memory {
    /// The domain that it was put on; 0: none.
    pub domain: u32,
    /// The choice that said so; 0: none, or the mark alone says the domain.
    pub choice: u32,
    /// Of [`flow_flags`].
    pub flags: u32,
    /// Always zero.
    pub reserved: u32,
}

impl Memory {
    const NONE: Self = Self {
        domain: 0,
        choice: 0,
        flags: 0,
        reserved: 0,
    };

    /// It was left to the host, or the application bound an address.
    #[inline(always)]
    fn passed(&self) -> bool {
        self.flags & (flow_flags::DECIDED | flow_flags::APP_BOUND) != 0
    }
}

/// Whose the packet is.
///
/// Of a packet without a socket that can be asked (RST, TIME-WAIT) nobody is the owner: it is never
/// dropped for that, but goes by rule and mark.
#[inline(always)]
pub fn whose(skb: *mut __sk_buff, full: *mut bpf_sock) -> (Owner, Memory) {
    let mut memory = Memory::NONE;
    if !full.is_null()
        && let Some(flow) = flow::get(full)
    {
        if flow.flags & flow_flags::FOREIGN != 0 {
            return (Owner::NONE, memory);
        }
        memory.flags = flow.flags;
        if flow.flags & flow_flags::DECIDED != 0 {
            memory.domain = flow.domain;
            memory.choice = flow.choice;
            return (Owner::of_policy(flow.policy), memory);
        }
        if flow.creator != 0 {
            return (Owner::of_policy(flow.creator), memory);
        }
    }
    (of_cgroup(skb), memory)
}

/// The policy of the cgroup that made the packet's socket. Request sockets answer for their listener.
#[inline(always)]
fn of_cgroup(skb: *mut __sk_buff) -> Owner {
    // 0: none; 1: the root, whose sockets are the kernel's.
    // SAFETY: the program's own packet.
    let cgroup = unsafe { bpf_skb_cgroup_id(skb) };
    if cgroup <= 1 {
        Owner::NONE
    } else {
        Owner::of_cgroup(cgroup)
    }
}

/// A strict policy's packet leaves by its domain or not at all: the one that its flow was put on, or as the
/// policy chooses now.
#[inline(always)]
fn strict<const TC: bool>(
    skb: *mut __sk_buff,
    full: *mut bpf_sock,
    owner: &Owner,
    memory: &Memory,
    place: &mut Judgement,
    expected: u64,
) -> Verdict {
    let found = index_of_flow(
        skb,
        owner.numbers(),
        owner.rules,
        u64::from(memory.flags) << 32 | u64::from(memory.domain),
        expected,
    );
    if found & ASK != 0 {
        return place.ask(owner, memory);
    }
    let index = found as u32;
    let tag = tag(index);
    // Nothing else than the socket's own source can be on what a stream socket sends.
    if is_at::<SOCK_STREAM>(index, skb, full) || has_source_of(index, skb) {
        if TC {
            sign(skb, index);
        }
        traffic::add::<TC>(skb, owner.policy, index, Kind::Sent);
        count(counter::GUARD_PASSED);
        return Verdict::Leave;
    }
    let headers = packet::headers(skb);
    let fit = fit(index, skb, headers.map(|headers| headers.source));
    let right = match fit {
        Fit::Right => {
            if TC {
                sign(skb, index);
            }
            headers.is_some() || packet::is_what_it_says(skb) && !fit::is_tunnel(index)
        }
        Fit::Source => match &headers {
            Some(headers) => is_of_link(headers),
            None => false,
        },
        // Seen and found right at the domain's own interface, of which this one is a part or carrier.
        Fit::Interface | Fit::Gone if index != 0 && field!(skb, tc_index) == tag => {
            return Verdict::Leave;
        }
        Fit::Interface | Fit::Gone => match &headers {
            Some(headers) => {
                expected & NAMED == 0 && is_passed_local(owner, headers, index)
                    || fit == Fit::Interface
                        && fit::is_tunnel(index)
                        && is_tunnelled(skb)
                        && packet::wraps(skb, full, headers)
            }
            None => false,
        },
    };
    if right {
        let by = match fit {
            Fit::Right | Fit::Source => index,
            Fit::Interface | Fit::Gone => 0,
        };
        traffic::add::<TC>(skb, owner.policy, by, Kind::Sent);
        count(counter::GUARD_PASSED);
        return Verdict::Leave;
    }
    traffic::add::<TC>(skb, owner.policy, index, Kind::Dropped);
    count(counter::GUARD_DROPPED);
    let reason = match fit {
        // What is no IP and at its interface bears something else than it says.
        Fit::Source | Fit::Right => guard_reason::SOURCE,
        Fit::Gone => guard_reason::NO_DOMAIN,
        _ => guard_reason::INTERFACE,
    };
    tell(skb, owner, reason, headers.as_ref());
    log!(log_dropped(skb, owner.policy, index, reason));
    Verdict::Drop
}

/// Any other policy's packet leaves; what is to be told is how.
#[inline(always)]
fn others<const TC: bool>(
    skb: *mut __sk_buff,
    full: *mut bpf_sock,
    owner: &Owner,
    memory: &Memory,
    place: &mut Judgement,
    expected: u64,
) -> Verdict {
    if was_judged(skb) {
        // Judged at an interface of which this one is a part or carrier.
        return Verdict::Leave;
    }
    let found = index_of_flow(
        skb,
        owner.numbers(),
        owner.rules,
        u64::from(memory.flags) << 32 | u64::from(memory.domain),
        expected,
    );
    let index = found as u32;
    if found & ASK != 0 {
        // The mark is that of a connection, or only what the socket was made with.
        let memory = Memory {
            domain: index,
            ..*memory
        };
        return place.ask(owner, &memory);
    }
    // A source that a control message gives instead is the application's own choice.
    if is_at::<SOCK_DGRAM>(index, skb, full) || index != 0 && has_source_of(index, skb) {
        if TC {
            set_field!(tag(index), skb, tc_index);
        }
        traffic::add::<TC>(skb, owner.policy, index, Kind::Sent);
        // Repair may have put its flow elsewhere.
        place.owner = *owner;
        return Verdict::Leave;
    }
    let headers = packet::headers(skb);
    let fit = fit(index, skb, headers.map(|headers| headers.source));
    let mut by = 0;
    let mut kind = Kind::Sent;
    if fit == Fit::Right || fit == Fit::Source && headers.as_ref().is_some_and(is_of_link) {
        by = index;
    } else if index != 0
        && let Some(headers) = &headers
    {
        if packet::wraps(skb, full, headers) {
            // Counted, and perhaps repaired, when it was not wrapped yet.
            return Verdict::Leave;
        }
        // A flow that was decided and has a source of another domain answers who asked there, or has an
        // address that the application chose.
        let elsewhere =
            found & DECIDED != 0 && fit != Fit::Source && !headers.source.belongs_to(index);
        if !elsewhere
            && !headers.destination.is_never_steered()
            && (expected & NAMED != 0 || !is_passed_local(owner, headers, index))
        {
            by = index;
            kind = Kind::Wrong;
        }
    }
    if TC {
        set_field!(tag(by), skb, tc_index);
    }
    traffic::add::<TC>(skb, owner.policy, by, kind);
    let verdict = if kind == Kind::Sent {
        Verdict::Leave
    } else {
        count(counter::GUARD_WRONG);
        log!(log_wrong(skb, owner.policy, by));
        Verdict::Wrong
    };
    place.owner = *owner;
    verdict
}

/// Bits of what [`index_of_flow`] gives beside the index: it was decided, by socket or mark.
const DECIDED: u64 = 1 << 32;
/// [`crate::divided`] is to be asked first; the index is what was decided so far.
const ASK: u64 = 1 << 33;

/// The index of the domain that a packet must use, or 0. A global function to the verifier, as those of `rules`
/// are: what it finds has many reasons, and the rest need not be looked at for each.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn index_of_flow(
    skb: *mut __sk_buff,
    choice_and_flags: u64,
    rules: u32,
    memory: u64,
    expected: u64,
) -> u64 {
    let owner = Owner::of_numbers(choice_and_flags, rules);
    let memory = Memory {
        domain: memory as u32,
        flags: (memory >> 32) as u32,
        ..Memory::NONE
    };
    let choice = owner.choice();
    let mut decided = memory.domain;
    if !owner.is_strict() && decided == 0 {
        decided = marked(skb, choice.domain);
        if decided == 0 && (memory.passed() || chose_itself(skb)) {
            return 0;
        }
    }
    let flag = if decided != 0 { DECIDED } else { 0 };
    if owner.divides(&choice) {
        if expected != UNASKED {
            flag | expected & 0xff
        } else if decided != 0 && is_of_connection(skb) != 0 {
            flag | u64::from(decided)
        } else {
            ASK | u64::from(decided)
        }
    } else if decided != 0 {
        flag | u64::from(decided)
    } else if choice.verdict == verdict::STEER {
        choice.domain.into()
    } else {
        0
    }
}

/// The index of the domain that the packet's mark stands for, which most often is `own`.
#[inline(always)]
fn marked(skb: *mut __sk_buff, own: u32) -> u32 {
    let mark = field!(skb, mark) & globals::MARK_MASK.load();
    if mark == 0 {
        0
    } else if fit::bears_mark_of(own, mark) {
        own
    } else {
        domain_of_mark(mark)
    }
}

/// Whether the packet is at the interface of domain `index` and its socket, a stream socket or one of `KIND`,
/// bears an address of it: without a look at the packet, which is what costs.
#[inline(always)]
fn is_at<const KIND: u32>(index: u32, skb: *mut __sk_buff, full: *mut bpf_sock) -> bool {
    if index == 0 || full.is_null() {
        return false;
    }
    let (kind, family) = (field!(full, type_), field!(full, family));
    if kind != SOCK_STREAM && kind != KIND || family != AF_INET && family != AF_INET6 {
        return false;
    }
    let [source4, source6] = sock::sources(full);
    let source = if packet::is_v4(skb) { source4 } else { source6 };
    !source.is_unspecified() && fit(index, skb, Some(source)) == Fit::Right
}

/// Whether the packet is at the interface of domain `index` and bears an address of it.
#[inline(always)]
pub fn has_source_of(index: u32, skb: *mut __sk_buff) -> bool {
    match packet::source(skb) {
        Some(source) => fit(index, skb, Some(source)) == Fit::Right,
        None => false,
    }
}

/// Whether a packet has to do with its link alone, where its source may be of the link, or not there yet: neighbour
/// discovery, DHCP.
#[inline(always)]
fn is_of_link(headers: &Headers) -> bool {
    let source = headers.source;
    headers.destination.is_never_steered()
        && (source.is_unspecified() || !source.is_v4() && source.is_link_local())
}

/// Whether a socket may send echo requests, which are repaired by the decision of the moment.
#[inline(always)]
pub fn asks_for_echo(full: *mut bpf_sock) -> bool {
    if full.is_null() {
        return false;
    }
    let protocol = field!(full, protocol);
    protocol == ICMP || protocol == ICMPV6
}

/// Whether the application, or who asked it, chose the way of a flow that nothing was decided for: it bound
/// a device, has a mark of its own, writes frames, or answers a SYN.
#[inline(always)]
fn chose_itself(skb: *mut __sk_buff) -> bool {
    let socket: *mut bpf_sock = field!(skb, __bindgen_anon_2.sk);
    if socket.is_null() {
        return true;
    }
    // SAFETY: not null.
    let full = unsafe { bpf_sk_fullsock(socket) };
    full.is_null()
        || field!(full, bound_dev_if) != 0
        || field!(full, mark) != 0
        || field!(full, family) == AF_PACKET
}

/// Whether the destination is the host itself, or on-link elsewhere and left to the host's routing.
#[inline(always)]
fn is_passed_local(owner: &Owner, headers: &Headers, index: u32) -> bool {
    match headers.destination.local() {
        Some(local) => {
            if owner.is_strict() || local.flags & local_flags::HOST == 0 {
                owner.passes_locals() && !contains(local, index)
            } else {
                true
            }
        }
        None => false,
    }
}

/// `tc_index` of a packet that was judged; the domain whose interface it left by is added, or 0.
///
/// It stays with a packet through VLAN, bond, bridge and kernel tunnels; nothing else in the kernel
/// has used it since the tcindex classifier was removed (Linux 6.3), and no application can set it.
const TAG: u32 = 0x5300;
const TAG_MASK: u32 = 0xfb00;
/// Bit beside it: what the kernel writes in front of this packet is to be seen
/// ([`crate::repair::socket::learn`]).
pub const SHOWS: u32 = 0x0400;

/// The tag of a packet that leaves by domain `index`.
#[inline(always)]
pub fn tag(index: u32) -> u32 {
    TAG | index & 0xff
}

/// Notes in a strict policy's packet that it is right at domain `index`. What carries it through a tunnel has the
/// tag too; WireGuard leaves the hash alone.
#[inline(always)]
fn sign(skb: *mut __sk_buff, index: u32) {
    set_field!(tag(index), skb, tc_index);
    if fit::is_tunnel(index) {
        // SAFETY: takes numbers.
        unsafe { bpf_set_hash(skb, cell(cell::TUNNELLED)) };
    }
}

/// Whether a packet carries one that was right at a tunnel.
#[inline(always)]
fn is_tunnelled(skb: *mut __sk_buff) -> bool {
    let hash = field!(skb, hash);
    hash != 0 && hash == cell(cell::TUNNELLED)
}

/// Whether a packet was judged, at an interface of which this one is a part or carrier, or where it was repaired.
#[inline(always)]
pub fn was_judged(skb: *mut __sk_buff) -> bool {
    field!(skb, tc_index) & TAG_MASK == TAG
}

/// Whether a packet's link-layer header is to be seen.
#[inline(always)]
pub fn is_to_show(skb: *mut __sk_buff) -> bool {
    field!(skb, tc_index) & (TAG_MASK | SHOWS) == TAG | SHOWS
}

/// Tells the agent, unless the ring is half full: the rest is kept for cgroups.
fn tell(skb: *mut __sk_buff, owner: &Owner, reason: u32, headers: Option<&Headers>) {
    // SAFETY: asks the map for a number.
    let queued = unsafe {
        bpf_ringbuf_query(
            (&raw const EVENTS).cast_mut().cast(),
            BPF_RB_AVAIL_DATA.into(),
        )
    };
    if queued > u64::from(EVENT_RING_BYTES / 2) {
        return;
    }
    let (source, destination) = match headers {
        Some(headers) => (headers.source, headers.destination),
        None => (Address([0; 4]), Address([0; 4])),
    };
    let Some(mut record) = EVENTS.reserve_untyped::<GuardEvent>(0) else {
        return;
    };
    record.write(GuardEvent {
        kind: EventKind::Guard as u32,
        reason,
        // SAFETY: the program's own packet.
        cgroup: unsafe { bpf_skb_cgroup_id(skb) },
        // SAFETY: likewise.
        cookie: unsafe { bpf_get_socket_cookie(skb.cast()) },
        policy: owner.policy,
        ifindex: field!(skb, ifindex),
        source: source.bytes(),
        destination: destination.bytes(),
    });
    record.submit(0);
}
