//! What the programs decide, told to the agent's log in builds with the feature `log-programs`.
//!
//! Each message is made by a function that is global to the verifier: some hundred instructions are then verified
//! once, and the bytes of the stack that they take, up to 200, are free again for what follows. Where nobody reads
//! the ring a message is lost, and nothing else changes.

/// Calls a function of [`messages`], or is nothing at all.
macro_rules! log {
    ($message:ident($($argument:expr),*)) => {
        #[cfg(feature = "log-programs")]
        crate::log::messages::$message($($argument),*)
    };
}
pub(crate) use log;

#[cfg(feature = "log-programs")]
pub mod messages {
    //! The messages.

    use aya_ebpf::{bindings::__sk_buff, helpers::generated::bpf_get_retval};
    use aya_log_ebpf::{debug, macro_support::Level};
    use steer_common::guard_reason;

    use crate::{address::Address, connect, sendmsg, sock::field};

    /// `said`: what `ask` of `connect` gave. `verdict`: what came of it.
    #[unsafe(no_mangle)]
    #[inline(never)]
    pub extern "C" fn log_connect(
        policy: u32,
        said: u64,
        verdict: i32,
        destination: *const Address,
    ) -> u32 {
        let said = (said & connect::STEER != 0).then_some(said);
        decided("connect", Level::Debug, policy, said, verdict, destination)
    }

    /// Likewise of `sendmsg`, which is asked about each datagram: the everyday ones are for who wants to see all.
    #[unsafe(no_mangle)]
    #[inline(never)]
    pub extern "C" fn log_sendmsg(
        policy: u32,
        said: u64,
        verdict: i32,
        destination: *const Address,
    ) -> u32 {
        let said = (said & sendmsg::STEER != 0).then_some(said);
        decided("sendmsg", Level::Trace, policy, said, verdict, destination)
    }

    /// `chosen`: the choice in the upper half, its domain in the lowest byte.
    #[inline(always)]
    fn decided(
        hook: &str,
        everyday: Level,
        policy: u32,
        chosen: Option<u64>,
        verdict: i32,
        destination: *const Address,
    ) -> u32 {
        // SAFETY: null, or an address.
        let Some(destination) = (unsafe { destination.as_ref() }) else {
            return 0;
        };
        let to = destination.bytes();
        if verdict == 0 {
            // SAFETY: takes nothing.
            let error = unsafe { bpf_get_retval() };
            debug!(
                (),
                "{} to {:i}: policy {} refuses: errno {}", hook, to, policy, error
            );
        } else if let Some(chosen) = chosen {
            let (choice, domain) = ((chosen >> 32) as u32, (chosen & 0xff) as u32);
            aya_log_ebpf::log!(
                (),
                everyday,
                "{} to {:i}: policy {} by choice {}: domain {}",
                hook,
                to,
                policy,
                choice,
                domain
            );
        } else {
            aya_log_ebpf::log!(
                (),
                everyday,
                "{} to {:i}: policy {} passes",
                hook,
                to,
                policy
            );
        }
        0
    }

    /// A strict policy's packet that was dropped, for one of [`guard_reason`].
    #[unsafe(no_mangle)]
    #[inline(never)]
    pub extern "C" fn log_dropped(
        skb: *mut __sk_buff,
        policy: u32,
        domain: u32,
        reason: u32,
    ) -> u32 {
        let ifindex = field!(skb, ifindex);
        match reason {
            guard_reason::SOURCE => debug!(
                (),
                "guard at interface {}: policy {} drops: no source of domain {}",
                ifindex,
                policy,
                domain
            ),
            guard_reason::INTERFACE => debug!(
                (),
                "guard at interface {}: policy {} drops: not at domain {}", ifindex, policy, domain
            ),
            _ => debug!(
                (),
                "guard at interface {}: policy {} drops: no domain", ifindex, policy
            ),
        }
        0
    }

    /// Any other policy's packet that left otherwise than by its domain.
    #[unsafe(no_mangle)]
    #[inline(never)]
    pub extern "C" fn log_wrong(skb: *mut __sk_buff, policy: u32, domain: u32) -> u32 {
        let ifindex = field!(skb, ifindex);
        debug!(
            (),
            "guard at interface {}: policy {} wants domain {}: wrong", ifindex, policy, domain
        );
        0
    }

    /// A lease that was made, or still holds.
    #[unsafe(no_mangle)]
    #[inline(never)]
    pub extern "C" fn log_leased(policy: u32, domain: u32, ifindex: u32) -> u32 {
        debug!(
            (),
            "repair: policy {}: lease on domain {} at interface {}", policy, domain, ifindex
        );
        0
    }

    /// No lease, because answers would belong to two flows, or there is no room.
    #[unsafe(no_mangle)]
    #[inline(never)]
    pub extern "C" fn log_lease_refused(policy: u32, domain: u32) -> u32 {
        debug!(
            (),
            "repair: policy {}: lease on domain {} refused", policy, domain
        );
        0
    }

    /// A new cgroup's entry, with bits of [`steer_common::cgroup_flags`].
    #[unsafe(no_mangle)]
    #[inline(never)]
    pub extern "C" fn log_entered(id: u64, policy: u32, flags: u32) -> u32 {
        debug!(
            (),
            "cgroup {} is made: policy {}, flags {:x}", id, policy, flags
        );
        0
    }
}
