//! Filters of the `clsact` qdisc: where kernels without tcx (before Linux 6.6) run programs at an
//! interface.
//!
//! Each request has a socket of its own and waits for its answer, which the kernel gives at once.

use std::os::fd::{AsRawFd as _, BorrowedFd};

use netlink_sys::{Socket, SocketAddr};

use super::connection::{BUFFER, DONE, ERROR, Refusal, outcome};
use super::wire::{Message, Request, attributes, messages, u32_at};

/// Before all filters that do not insist on being first too.
const PRIORITY: u32 = 1;
/// Tells our filters from others of that priority: "ST".
const HANDLE: u32 = 0x5354;

/// `TC_H_CLSACT`, as the parent of the qdisc.
const CLSACT: u32 = 0xffff_fff1;
/// `TC_H_MAKE(TC_H_CLSACT, 0)`: the qdisc itself.
const QDISC: u32 = 0xffff_0000;
/// Length of `struct tcmsg`.
const TCMSG: usize = 20;

/// `TCA_KIND`.
const KIND: u16 = 1;
/// `TCA_OPTIONS`.
const OPTIONS: u16 = 2;
/// `TCA_BPF_FD`.
const FD: u16 = 6;
/// `TCA_BPF_NAME`.
const NAME: u16 = 7;
/// `TCA_BPF_FLAGS`.
const FLAGS: u16 = 8;
/// `TCA_BPF_FLAG_ACT_DIRECT`: the program's return value is the verdict.
const DIRECT_ACTION: u32 = 1;
/// `TCA_BPF_ID`.
const ID: u16 = 11;

/// A side of the qdisc.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilterSide {
    /// What arrives.
    Ingress,
    /// What leaves.
    Egress,
    /// What leaves, after the filter at [`FilterSide::Egress`].
    EgressSecond,
}

impl FilterSide {
    /// `TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_..)`.
    const fn parent(self) -> u32 {
        match self {
            Self::Ingress => 0xffff_fff2,
            Self::Egress | Self::EgressSecond => 0xffff_fff3,
        }
    }

    const fn handle(self) -> u32 {
        match self {
            Self::Ingress | Self::Egress => HANDLE,
            Self::EgressSecond => HANDLE + 1,
        }
    }
}

/// Adds the qdisc to an interface. False: it has one.
///
/// # Errors
/// The kernel refuses, or the interface is gone.
pub fn add_clsact(interface: u32) -> Result<bool, Refusal> {
    let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    match ask(qdisc(libc::RTM_NEWQDISC, flags, interface), |_| {}) {
        Ok(()) => Ok(true),
        Err(refusal) if refusal.errno() == libc::EEXIST => Ok(false),
        Err(refusal) => Err(refusal),
    }
}

/// Removes the qdisc. What is gone already is fine.
///
/// # Errors
/// The kernel refuses.
pub fn remove_clsact(interface: u32) -> Result<(), Refusal> {
    unless_gone(ask(qdisc(libc::RTM_DELQDISC, 0, interface), |_| {}))
}

/// Adds our filter with `program`, or puts `program` into the one that is there, without a gap
/// (`cls_bpf_change` replaces a filter of the same handle in one list operation).
///
/// # Errors
/// The kernel refuses, or there is no qdisc.
pub fn set_filter(
    interface: u32,
    side: FilterSide,
    program: BorrowedFd<'_>,
    name: &str,
) -> Result<(), Refusal> {
    let mut request = filter(libc::RTM_NEWTFILTER, libc::NLM_F_CREATE, interface, side);
    request.nest(OPTIONS, |options| {
        options.put(FD, &program.as_raw_fd().to_ne_bytes());
        options.put(NAME, format!("{name}\0").as_bytes());
        options.put_u32(FLAGS, DIRECT_ACTION);
    });
    ask(request, |_| {})
}

/// The id of the program in our filter; `None`: there is no filter of ours.
///
/// # Errors
/// The kernel refuses.
pub fn filter_program(interface: u32, side: FilterSide) -> Result<Option<u32>, Refusal> {
    let mut program = None;
    let answer = ask(
        filter(libc::RTM_GETTFILTER, 0, interface, side),
        |message| {
            program = program.or_else(|| program_in(message));
        },
    );
    unless_gone(answer)?;
    Ok(program)
}

/// Removes our filter. What is gone already is fine.
///
/// # Errors
/// The kernel refuses.
pub fn remove_filter(interface: u32, side: FilterSide) -> Result<(), Refusal> {
    unless_gone(ask(
        filter(libc::RTM_DELTFILTER, 0, interface, side),
        |_| {},
    ))
}

/// Whether a side has filters, of anybody. If that cannot be told, it has.
pub fn has_filters(interface: u32, side: FilterSide) -> bool {
    let header = tcmsg(interface, 0, side.parent(), 0);
    let mut found = false;
    let request = Request::new(libc::RTM_GETTFILTER, libc::NLM_F_DUMP, &header);
    let answer = ask(request, |_| found = true);
    found || answer.is_err()
}

fn tcmsg(interface: u32, handle: u32, parent: u32, info: u32) -> [u8; TCMSG] {
    let mut header = [0; TCMSG];
    for (place, word) in header
        .chunks_exact_mut(4)
        .zip([0, interface, handle, parent, info])
    {
        place.copy_from_slice(&word.to_ne_bytes());
    }
    header
}

fn qdisc(kind: u16, flags: i32, interface: u32) -> Request {
    let header = tcmsg(interface, QDISC, CLSACT, 0);
    let mut request = Request::new(kind, flags | libc::NLM_F_ACK, &header);
    request.put(KIND, b"clsact\0");
    request
}

fn filter(kind: u16, flags: i32, interface: u32, side: FilterSide) -> Request {
    let all_protocols = u16::try_from(libc::ETH_P_ALL).unwrap_or_default().to_be();
    let info = PRIORITY << 16 | u32::from(all_protocols);
    let header = tcmsg(interface, side.handle(), side.parent(), info);
    let mut request = Request::new(kind, flags | libc::NLM_F_ACK, &header);
    request.put(KIND, b"bpf\0");
    request
}

/// `TCA_BPF_ID` of a filter.
fn program_in(message: &Message<'_>) -> Option<u32> {
    let (_, mut all) = message.split::<TCMSG>()?;
    let (_, options) = all.find(|(kind, _)| *kind == OPTIONS)?;
    let (_, id) = attributes(options).find(|(kind, _)| *kind == ID)?;
    u32_at(id, 0)
}

fn unless_gone(answer: Result<(), Refusal>) -> Result<(), Refusal> {
    match answer {
        // No such filter, interface, qdisc.
        Err(refusal) if matches!(refusal.errno(), libc::ENOENT | libc::ENODEV | libc::EINVAL) => {
            Ok(())
        }
        answer => answer,
    }
}

/// Makes a request in the calling thread's network namespace, and hands the messages of the answer but
/// the last to `each`.
fn ask(request: Request, mut each: impl FnMut(&Message<'_>)) -> Result<(), Refusal> {
    let mut socket = Socket::new(isize::try_from(libc::NETLINK_ROUTE).unwrap_or_default())?;
    socket.bind_auto()?;
    socket.set_ext_ack(true)?;
    socket.send_to(&request.finish(1), &SocketAddr::new(0, 0), 0)?;
    let mut buffer = Vec::with_capacity(BUFFER);
    loop {
        buffer.clear();
        socket.recv(&mut buffer, 0)?;
        for message in messages(&buffer) {
            match message.kind {
                DONE | ERROR => return outcome(&message),
                _ => each(&message),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{FD, FilterSide, ID, KIND, NAME, OPTIONS, filter, program_in, qdisc, tcmsg};
    use crate::netlink::wire::{Request, messages, u32_at};

    #[test]
    fn a_filter_is_named_by_interface_side_priority_and_handle() {
        let bytes = filter(libc::RTM_NEWTFILTER, 0, 7, FilterSide::Egress).finish(1);
        let message = messages(&bytes).next().expect("one message");
        let (header, mut rest) = message.split::<20>().expect("a header");
        let words: Vec<_> = (0..5).filter_map(|word| u32_at(header, word * 4)).collect();
        let info = 1 << 16 | u32::from(3_u16.to_be());
        assert_eq!(words, [0, 7, 0x5354, 0xffff_fff3, info]);
        assert_eq!(rest.next(), Some((KIND, b"bpf\0".as_slice())));
    }

    #[test]
    fn a_qdisc_is_clsact() {
        let bytes = qdisc(libc::RTM_NEWQDISC, 0, 7).finish(1);
        let message = messages(&bytes).next().expect("one message");
        let (header, mut rest) = message.split::<20>().expect("a header");
        assert_eq!(header, &tcmsg(7, 0xffff_0000, 0xffff_fff1, 0));
        assert_eq!(rest.next(), Some((KIND, b"clsact\0".as_slice())));
    }

    #[test]
    fn the_program_is_found_in_a_filter() {
        let mut request = Request::new(libc::RTM_NEWTFILTER, 0, &tcmsg(7, 1, 2, 3));
        request.put(KIND, b"bpf\0");
        request.nest(OPTIONS, |options| {
            options.put(NAME, b"guard\0");
            options.put_u32(FD, 3);
            options.put_u32(ID, 99);
        });
        let bytes = request.finish(1);
        let message = messages(&bytes).next().expect("one message");
        assert_eq!(program_in(&message), Some(99));
    }
}
