//! Packet programs on kernels without tcx (before Linux 6.6): filters of the `clsact` qdisc.
//!
//! A filter outlives the agent by itself, but says nowhere whose it is. So its program is pinned under
//! the filter's name as a record, and a directory records that the qdisc is ours too. The few netlink
//! messages are written here, where the program's descriptor is.

use std::{
    collections::BTreeSet,
    fs, io,
    os::fd::{AsRawFd as _, BorrowedFd},
    path::{Path, PathBuf},
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

use super::{
    error::{Error, Result},
    pins, sys,
};

/// A side of the qdisc (`TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_..)`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Parent(pub(super) u32);

/// Filters on what arrives.
pub(super) const INGRESS: Parent = Parent(0xffff_fff2);
/// Filters on what leaves.
pub(super) const EGRESS: Parent = Parent(0xffff_fff3);

/// Before all filters that do not insist on being first too.
const PRIORITY: u32 = 1;
/// Tells our filters from others of that priority: "ST".
const HANDLE: u32 = 0x5354;

/// The records of filters in one layout.
pub(super) struct Filters<'a> {
    /// Where they are.
    pub(super) directory: &'a Path,
}

/// A filter's name: `<kind><ifindex>`.
fn ifindex(name: &str, kind: &str) -> Option<u32> {
    name.strip_prefix(kind)?.parse().ok()
}

const QDISC: &str = "qdisc-";

impl Filters<'_> {
    /// Attaches `program` to an interface, or puts it in the place of the one that is there.
    pub(super) fn attach(
        &self,
        name: &str,
        parent: Parent,
        interface: u32,
        program: BorrowedFd<'_>,
    ) -> Result<()> {
        fs::create_dir_all(self.directory)
            .map_err(Error::file("make directory", self.directory))?;
        match Message::qdisc(libc::RTM_NEWQDISC, interface)
            .send(libc::NLM_F_CREATE | libc::NLM_F_EXCL)
        {
            Ok(_) => {
                let record = self.qdisc(interface);
                fs::create_dir_all(&record).map_err(Error::file("make directory", record))?;
            }
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
            Err(error) => return Err(Error::kernel("add clsact qdisc for", name)(error)),
        }
        Message::filter(libc::RTM_NEWTFILTER, parent, interface)
            .with_program(program, name)
            .send(libc::NLM_F_CREATE)
            .map_err(Error::kernel("attach", name))?;
        let record = self.directory.join(name);
        pins::unlink(&record)?;
        sys::pin(program, &record).map_err(Error::file("pin", record))
    }

    /// The interfaces that have the filters of a kind.
    pub(super) fn interfaces(&self, kind: &str, parent: Parent) -> Result<BTreeSet<u32>> {
        Ok(pins::list(self.directory)?
            .into_iter()
            .filter_map(|(name, _)| ifindex(&name, kind))
            .filter(|interface| is_attached(parent, *interface))
            .collect())
    }

    /// Detaches a filter if there is a record of it, and removes the record, and the qdisc if it was
    /// made for it and nothing is left in it.
    pub(super) fn detach(&self, name: &str, parent: Parent, interface: u32) -> Result<()> {
        let record = self.directory.join(name);
        if !record.exists() {
            return Ok(());
        }
        let gone = |error: &io::Error| {
            matches!(
                error.raw_os_error(),
                Some(libc::ENOENT | libc::ENODEV | libc::EINVAL)
            )
        };
        match Message::filter(libc::RTM_DELTFILTER, parent, interface).send(0) {
            Err(error) if !gone(&error) => return Err(Error::kernel("detach", name)(error)),
            _ => {}
        }
        pins::unlink(&record)?;
        let qdisc = self.qdisc(interface);
        if !qdisc.exists() || !is_empty(INGRESS, interface) || !is_empty(EGRESS, interface) {
            return Ok(());
        }
        match Message::qdisc(libc::RTM_DELQDISC, interface).send(0) {
            Err(error) if !gone(&error) => {
                return Err(Error::kernel("remove clsact qdisc for", name)(error));
            }
            _ => {}
        }
        fs::remove_dir(&qdisc).map_err(Error::file("remove directory", qdisc))
    }

    fn qdisc(&self, interface: u32) -> PathBuf {
        self.directory.join(format!("{QDISC}{interface}"))
    }
}

/// Whether our filter is there.
fn is_attached(parent: Parent, interface: u32) -> bool {
    Message::filter(libc::RTM_GETTFILTER, parent, interface)
        .send(0)
        .is_ok()
}

/// Whether nobody's filter is there.
fn is_empty(parent: Parent, interface: u32) -> bool {
    let mut message = Message::filter(libc::RTM_GETTFILTER, parent, interface);
    message.handle = 0;
    message.info = 0;
    matches!(message.send(libc::NLM_F_DUMP), Ok(0))
}

/// A request about traffic control.
struct Message {
    kind: u16,
    interface: u32,
    handle: u32,
    parent: u32,
    info: u32,
    attributes: Vec<u8>,
}

impl Message {
    fn qdisc(kind: u16, interface: u32) -> Self {
        Self {
            kind,
            interface,
            handle: 0xffff_0000,
            parent: 0xffff_fff1,
            info: 0,
            attributes: attribute(KIND, b"clsact\0"),
        }
    }

    fn filter(kind: u16, parent: Parent, interface: u32) -> Self {
        let all_protocols = u32::from(u16::try_from(libc::ETH_P_ALL).unwrap_or_default().to_be());
        Self {
            kind,
            interface,
            handle: HANDLE,
            parent: parent.0,
            info: PRIORITY << 16 | all_protocols,
            attributes: attribute(KIND, b"bpf\0"),
        }
    }

    fn with_program(mut self, program: BorrowedFd<'_>, name: &str) -> Self {
        const OPTIONS: u16 = 2;
        const FD: u16 = 6;
        const NAME: u16 = 7;
        const FLAGS: u16 = 8;
        const DIRECT_ACTION: u32 = 1;
        let options = [
            attribute(FD, &program.as_raw_fd().to_ne_bytes()),
            attribute(NAME, format!("steer-{name}\0").as_bytes()),
            attribute(FLAGS, &DIRECT_ACTION.to_ne_bytes()),
        ]
        .concat();
        self.attributes.extend(attribute(OPTIONS, &options));
        self
    }

    /// Sends it and returns how many objects were answered.
    fn send(&self, flags: i32) -> io::Result<usize> {
        const HEADERS: usize = 36;
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK | flags;
        let length = u32::try_from(HEADERS + self.attributes.len()).map_err(io::Error::other)?;
        let mut request = Vec::with_capacity(HEADERS + self.attributes.len());
        request.extend(length.to_ne_bytes());
        request.extend(self.kind.to_ne_bytes());
        request.extend(
            u16::try_from(flags)
                .map_err(io::Error::other)?
                .to_ne_bytes(),
        );
        request.extend([0; 8]);
        for word in [0, self.interface, self.handle, self.parent, self.info] {
            request.extend(word.to_ne_bytes());
        }
        request.extend(&self.attributes);
        let netlink = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        send(netlink.as_raw_fd(), &request, MsgFlags::empty())?;
        let mut answered = 0;
        let mut buffer = vec![0; 32 * 1024];
        loop {
            let length = recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            if let Some(end) = read_answers(&buffer[..length], &mut answered) {
                return end.map(|()| answered);
            }
        }
    }
}

const KIND: u16 = 1;

/// Counts the objects in `answers`; `Some` when the last message is among them.
fn read_answers(mut answers: &[u8], answered: &mut usize) -> Option<io::Result<()>> {
    const ERROR: u16 = 2;
    const DONE: u16 = 3;
    let malformed = || Some(Err(io::ErrorKind::InvalidData.into()));
    while let Some((header, _)) = answers.split_first_chunk::<16>() {
        let [a, b, c, d, kind_low, kind_high, ..] = *header;
        let length = u32::from_ne_bytes([a, b, c, d]) as usize;
        match u16::from_ne_bytes([kind_low, kind_high]) {
            DONE => return Some(Ok(())),
            ERROR => {
                let Some(code) = answers.get(16..).and_then(<[u8]>::first_chunk) else {
                    return malformed();
                };
                return Some(match i32::from_ne_bytes(*code) {
                    0 => Ok(()),
                    code => Err(io::Error::from_raw_os_error(-code)),
                });
            }
            _ => *answered += 1,
        }
        if length < 16 {
            return malformed();
        }
        answers = answers
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default();
    }
    None
}

/// One attribute with its padding.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    // The values here are short.
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut attribute = Vec::with_capacity(usize::from(length).next_multiple_of(4));
    attribute.extend(length.to_ne_bytes());
    attribute.extend(kind.to_ne_bytes());
    attribute.extend(value);
    attribute.resize(usize::from(length).next_multiple_of(4), 0);
    attribute
}
