//! A process in a cgroup that does with sockets what it is told.
//!
//! It is this test binary again. One command per line on its standard input, one answer each:
//! `ok [value]` or `errno <number>`.

use std::{
    collections::HashMap,
    ffi::c_void,
    fs,
    io::{self, BufRead as _, BufReader, Write as _},
    net::{IpAddr, SocketAddr},
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    path::Path,
    process::{Command, Stdio},
};

/// Marks answers in the output, where the test harness writes too.
const ANSWER: &str = "\u{1}";

/// The process, seen from the test. Killed when dropped.
pub(crate) struct Child {
    process: std::process::Child,
    answers: BufReader<std::process::ChildStdout>,
}

impl Child {
    /// Starts one in `cgroup` and in this thread's namespaces.
    pub(crate) fn start(cgroup: &Path) -> Self {
        let procs = fs::OpenOptions::new()
            .write(true)
            .open(cgroup.join("cgroup.procs"))
            .unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--ignored", "--exact", "child_process", "--nocapture"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        // SAFETY: between fork and exec only `write` is called.
        unsafe {
            command.pre_exec(move || (&procs).write_all(b"0"));
        }
        let mut process = command.spawn().unwrap();
        let answers = BufReader::new(process.stdout.take().unwrap());
        Self { process, answers }
    }

    /// Gives a command and returns the answer.
    pub(crate) fn ask(&mut self, command: &str) -> String {
        writeln!(self.process.stdin.as_mut().unwrap(), "{command}").unwrap();
        loop {
            let mut line = String::new();
            assert_ne!(
                self.answers.read_line(&mut line).unwrap(),
                0,
                "the child died of {command}"
            );
            if let Some((_, answer)) = line.split_once(ANSWER) {
                return answer.trim_end().to_owned();
            }
        }
    }

    /// Gives commands that must each be answered `ok`.
    #[track_caller]
    pub(crate) fn must(&mut self, commands: &[&str]) {
        for command in commands {
            let answer = self.ask(command);
            assert!(answer.starts_with("ok"), "{command}: {answer}");
        }
    }

    /// The mark of socket `name`.
    pub(crate) fn mark(&mut self, name: &str) -> u32 {
        self.ask(&format!("mark {name}"))
            .strip_prefix("ok ")
            .unwrap()
            .parse()
            .unwrap()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _killed = self.process.kill();
        let _reaped = self.process.wait();
    }
}

/// The process itself.
pub(crate) fn serve() {
    let mut sockets = HashMap::new();
    for line in io::stdin().lines() {
        let line = line.unwrap();
        let answer = match run(&mut sockets, &line.split(' ').collect::<Vec<_>>()) {
            Ok(value) => format!("ok {value}"),
            Err(error) => format!("errno {}", error.raw_os_error().unwrap()),
        };
        println!("{ANSWER}{}", answer.trim_end());
    }
}

fn run(sockets: &mut HashMap<String, OwnedFd>, words: &[&str]) -> io::Result<String> {
    let descriptor = |name: &str| sockets[name].as_raw_fd();
    let done = |result: i64| {
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(String::new())
        }
    };
    match *words {
        ["open", name, family, kind] => {
            let (kind, protocol) = match (kind, family) {
                ("stream", _) => (libc::SOCK_STREAM, 0),
                ("dgram", _) => (libc::SOCK_DGRAM, 0),
                ("ping", "inet") => (libc::SOCK_DGRAM, libc::IPPROTO_ICMP),
                ("ping", "inet6") => (libc::SOCK_DGRAM, libc::IPPROTO_ICMPV6),
                ("raw", "inet") => (libc::SOCK_RAW, libc::IPPROTO_ICMP),
                ("raw", "inet6") => (libc::SOCK_RAW, libc::IPPROTO_ICMPV6),
                ("raw", "packet") => (libc::SOCK_DGRAM, 0),
                // Whole packets, and whole frames.
                ("whole", "inet") => (libc::SOCK_RAW, libc::IPPROTO_RAW),
                ("whole", "packet") => (libc::SOCK_RAW, 0),
                _ => panic!("{words:?}"),
            };
            let family = match family {
                "inet" => libc::AF_INET,
                "inet6" => libc::AF_INET6,
                "packet" => libc::AF_PACKET,
                _ => panic!("{words:?}"),
            };
            // SAFETY: takes numbers.
            let socket = unsafe { libc::socket(family, kind, protocol) };
            if socket < 0 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: just made.
            sockets.insert(name.to_owned(), unsafe { OwnedFd::from_raw_fd(socket) });
            Ok(String::new())
        }
        ["close", name] => {
            sockets.remove(name);
            Ok(String::new())
        }
        ["mark", name] => {
            let mut mark = 0_u32;
            let mut length: libc::socklen_t = 4;
            // SAFETY: both pointers are valid for the length told.
            done(i64::from(unsafe {
                libc::getsockopt(
                    descriptor(name),
                    libc::SOL_SOCKET,
                    libc::SO_MARK,
                    (&raw mut mark).cast(),
                    &raw mut length,
                )
            }))?;
            Ok(mark.to_string())
        }
        ["set", name, level, option, value] => {
            let number: Result<u32, _> = value.parse();
            let bytes = match number {
                Ok(number) => number.to_ne_bytes().to_vec(),
                Err(_) => value.as_bytes().to_vec(),
            };
            done(set(descriptor(name), level, option, &bytes))
        }
        ["set-long", name, level, option, value] => {
            let mut bytes = vec![0; 20_000];
            bytes[..4].copy_from_slice(&value.parse::<u32>().unwrap().to_ne_bytes());
            done(set(descriptor(name), level, option, &bytes))
        }
        ["connect", name, target] => {
            let (address, length) = encode(target);
            // SAFETY: the address is valid for the length told.
            done(i64::from(unsafe {
                libc::connect(descriptor(name), (&raw const address).cast(), length)
            }))
        }
        ["listen", name] => {
            // SAFETY: takes numbers.
            done(i64::from(unsafe { libc::listen(descriptor(name), 8) }))
        }
        ["accept", listener, name] => {
            // SAFETY: nothing is told of the peer.
            let socket = unsafe {
                libc::accept(
                    descriptor(listener),
                    std::ptr::null_mut(),
                    std::ptr::null_mut(),
                )
            };
            if socket < 0 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: just made.
            sockets.insert(name.to_owned(), unsafe { OwnedFd::from_raw_fd(socket) });
            Ok(String::new())
        }
        ["disconnect", name] => {
            // SAFETY: all zero is `AF_UNSPEC`.
            let address: libc::sockaddr = unsafe { std::mem::zeroed() };
            // SAFETY: the address is valid for the length told.
            done(i64::from(unsafe {
                libc::connect(descriptor(name), &raw const address, 16)
            }))
        }
        ["bind", name, target] => {
            let (address, length) = encode(target);
            // SAFETY: the address is valid for the length told.
            done(i64::from(unsafe {
                libc::bind(descriptor(name), (&raw const address).cast(), length)
            }))
        }
        ["source", name] => {
            // SAFETY: all zero is valid.
            let mut address: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
            let mut length = libc::socklen_t::try_from(size_of_val(&address)).unwrap();
            // SAFETY: both pointers are valid for the length told.
            done(i64::from(unsafe {
                libc::getsockname(descriptor(name), (&raw mut address).cast(), &raw mut length)
            }))?;
            Ok(decode(&address))
        }
        ["send", name, target, text] => {
            let (address, length) = encode(target);
            // SAFETY: buffer and address are valid for the lengths told.
            done(
                i64::try_from(unsafe {
                    libc::sendto(
                        descriptor(name),
                        text.as_ptr().cast(),
                        text.len(),
                        0,
                        (&raw const address).cast(),
                        length,
                    )
                })
                .unwrap(),
            )
        }
        ["write", name, text] => {
            // SAFETY: the buffer is valid for the length told.
            done(
                i64::try_from(unsafe {
                    libc::send(descriptor(name), text.as_ptr().cast(), text.len(), 0)
                })
                .unwrap(),
            )
        }
        ["send-hex", name, target, hex] => {
            let bytes = bytes(hex);
            let (address, length) = encode(target);
            // SAFETY: buffer and address are valid for the lengths told.
            let sent = unsafe {
                libc::sendto(
                    descriptor(name),
                    bytes.as_ptr().cast(),
                    bytes.len(),
                    0,
                    (&raw const address).cast(),
                    length,
                )
            };
            done(i64::try_from(sent).unwrap())
        }
        ["test-run", pin, ifindex, hex] => test_run(pin, ifindex.parse().unwrap(), hex),
        ["read", name] => read(descriptor(name)),
        ["connect-begin", name, target] => {
            let (address, length) = encode(target);
            let socket = descriptor(name);
            // SAFETY: takes numbers.
            done(i64::from(unsafe {
                libc::fcntl(socket, libc::F_SETFL, libc::O_NONBLOCK)
            }))?;
            // SAFETY: the address is valid for the length told.
            let result = unsafe { libc::connect(socket, (&raw const address).cast(), length) };
            let error = io::Error::last_os_error();
            if result < 0 && error.raw_os_error() != Some(libc::EINPROGRESS) {
                return Err(error);
            }
            Ok(String::new())
        }
        ["connect-end", name] => connect_end(descriptor(name)),
        ["pump", name, bytes] => pump(descriptor(name), bytes.parse().unwrap()),
        ["send-by", name, interface, target, text] => {
            done(send_by(descriptor(name), interface, target, text))
        }
        ["hold-by", name, interface, target, text] => {
            done(hold_by(descriptor(name), interface, target, text))
        }
        ["send-from", name, source, target, text] => {
            done(send_from(descriptor(name), source, target, text))
        }
        ["packet", name, interface] => done(packet(descriptor(name), interface)),
        ["frame", name, interface, ethertype, hex] => {
            let ethertype = u16::from_str_radix(ethertype, 16).unwrap();
            done(frame(descriptor(name), interface, ethertype, &bytes(hex)))
        }
        // Loops of their own, so that measurements are not of this conversation.
        ["loop-connect", family, kind, target, times] => {
            for _ in 0..times.parse::<u32>().unwrap() {
                run(sockets, &["open", "loop", family, kind])?;
                run(sockets, &["connect", "loop", target])?;
            }
            Ok(String::new())
        }
        ["loop-send", name, target, times] => {
            for _ in 0..times.parse::<u32>().unwrap() {
                run(sockets, &["send", name, target, "x"])?;
            }
            Ok(String::new())
        }
        ["loop-write", name, times] => {
            for _ in 0..times.parse::<u32>().unwrap() {
                run(sockets, &["write", name, "x"])?;
            }
            Ok(String::new())
        }
        ["loop-set", name, times] => {
            for _ in 0..times.parse::<u32>().unwrap() {
                run(sockets, &["set", name, "1", "7", "65536"])?;
            }
            Ok(String::new())
        }
        ["move", cgroup] => {
            fs::write(Path::new(cgroup).join("cgroup.procs"), "0")?;
            Ok(String::new())
        }
        ["ip", ref words @ ..] => {
            crate::lab::ip(&words.join(" "));
            Ok(String::new())
        }
        ["unshare"] => {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?;
            Ok(String::new())
        }
        _ => panic!("{words:?}"),
    }
}

fn set(socket: i32, level: &str, option: &str, value: &[u8]) -> i64 {
    let [level, option] = [level, option].map(|number| number.parse().unwrap());
    let length = libc::socklen_t::try_from(value.len()).unwrap();
    // SAFETY: the value is valid for the length told.
    i64::from(unsafe { libc::setsockopt(socket, level, option, value.as_ptr().cast(), length) })
}

fn family(number: i32) -> libc::sa_family_t {
    number.try_into().unwrap()
}

fn encode(target: &str) -> (libc::sockaddr_storage, libc::socklen_t) {
    // SAFETY: all zero is valid.
    let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    let length = match target.parse().unwrap() {
        SocketAddr::V4(address) => {
            let name = libc::sockaddr_in {
                sin_family: family(libc::AF_INET),
                sin_port: address.port().to_be(),
                sin_addr: libc::in_addr {
                    s_addr: u32::from_ne_bytes(address.ip().octets()),
                },
                sin_zero: [0; 8],
            };
            // SAFETY: a storage holds any name.
            unsafe { (&raw mut storage).cast::<libc::sockaddr_in>().write(name) };
            size_of::<libc::sockaddr_in>()
        }
        SocketAddr::V6(address) => {
            let name = libc::sockaddr_in6 {
                sin6_family: family(libc::AF_INET6),
                sin6_port: address.port().to_be(),
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr {
                    s6_addr: address.ip().octets(),
                },
                sin6_scope_id: address.scope_id(),
            };
            // SAFETY: a storage holds any name.
            unsafe { (&raw mut storage).cast::<libc::sockaddr_in6>().write(name) };
            size_of::<libc::sockaddr_in6>()
        }
    };
    (storage, libc::socklen_t::try_from(length).unwrap())
}

fn decode(storage: &libc::sockaddr_storage) -> String {
    if i32::from(storage.ss_family) == libc::AF_INET {
        // SAFETY: the family says what it is.
        let name = unsafe { *std::ptr::from_ref(storage).cast::<libc::sockaddr_in>() };
        std::net::Ipv4Addr::from(name.sin_addr.s_addr.to_ne_bytes()).to_string()
    } else {
        // SAFETY: the family says what it is.
        let name = unsafe { *std::ptr::from_ref(storage).cast::<libc::sockaddr_in6>() };
        std::net::Ipv6Addr::from(name.sin6_addr.s6_addr).to_string()
    }
}

/// Sends one IPv4 datagram by an interface of the sender's choice (`IP_PKTINFO`).
fn send_by(socket: i32, interface: &str, target: &str, text: &str) -> i64 {
    let index = nix::net::if_::if_nametoindex(interface).unwrap();
    let information = libc::in_pktinfo {
        ipi_ifindex: i32::try_from(index).unwrap(),
        ipi_spec_dst: libc::in_addr { s_addr: 0 },
        ipi_addr: libc::in_addr { s_addr: 0 },
    };
    let kind = (libc::IPPROTO_IP, libc::IP_PKTINFO);
    send_with(socket, kind, information, target, text, 0)
}

/// Has the kernel hold a datagram back (`MSG_MORE`) that is to leave by an interface (`IPV6_PKTINFO`).
fn hold_by(socket: i32, interface: &str, target: &str, text: &str) -> i64 {
    let information = libc::in6_pktinfo {
        ipi6_addr: libc::in6_addr { s6_addr: [0; 16] },
        ipi6_ifindex: nix::net::if_::if_nametoindex(interface).unwrap(),
    };
    let kind = (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO);
    send_with(socket, kind, information, target, text, libc::MSG_MORE)
}

/// Sends a datagram from an address of the sender's choice (`IP_PKTINFO`, `IPV6_PKTINFO`), as a server that
/// answers does.
fn send_from(socket: i32, source: &str, target: &str, text: &str) -> i64 {
    match source.parse().unwrap() {
        IpAddr::V4(source) => {
            let information = libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: libc::in_addr {
                    s_addr: u32::from_ne_bytes(source.octets()),
                },
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            let kind = (libc::IPPROTO_IP, libc::IP_PKTINFO);
            send_with(socket, kind, information, target, text, 0)
        }
        IpAddr::V6(source) => {
            let information = libc::in6_pktinfo {
                ipi6_addr: libc::in6_addr {
                    s6_addr: source.octets(),
                },
                ipi6_ifindex: 0,
            };
            let kind = (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO);
            send_with(socket, kind, information, target, text, 0)
        }
    }
}

/// Sends a datagram with a control message: level and type, and what it says.
fn send_with<T>(
    socket: i32,
    kind: (i32, i32),
    information: T,
    target: &str,
    text: &str,
    flags: i32,
) -> i64 {
    let (mut address, length) = encode(target);
    let mut part = libc::iovec {
        iov_base: text.as_ptr().cast_mut().cast(),
        iov_len: text.len(),
    };
    let mut control = [0_u64; 8];
    // SAFETY: all zero is valid.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = (&raw mut address).cast();
    message.msg_namelen = length;
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast::<c_void>();
    let size = u32::try_from(size_of::<T>()).unwrap();
    // SAFETY: computes.
    message.msg_controllen = unsafe { libc::CMSG_SPACE(size) } as usize;
    // SAFETY: reads the message.
    let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    // SAFETY: there is room for one header and its data.
    let header = unsafe { &mut *header };
    (header.cmsg_level, header.cmsg_type) = kind;
    // SAFETY: computes.
    header.cmsg_len = unsafe { libc::CMSG_LEN(size) } as usize;
    // SAFETY: computes an address within `control`.
    let data = unsafe { libc::CMSG_DATA(header) }.cast::<T>();
    // SAFETY: there is room for it.
    unsafe { data.write_unaligned(information) };
    // SAFETY: everything that the message points to is alive.
    i64::try_from(unsafe { libc::sendmsg(socket, &raw const message, flags) }).unwrap()
}

/// Sends an IPv4 packet to everybody behind an interface, past all of the stack but tc.
fn packet(socket: i32, interface: &str) -> i64 {
    let index = nix::net::if_::if_nametoindex(interface).unwrap();
    // SAFETY: all zero is valid.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = family(libc::AF_PACKET);
    address.sll_protocol = 0x0800_u16.to_be();
    address.sll_ifindex = i32::try_from(index).unwrap();
    address.sll_halen = 6;
    address.sll_addr[..6].fill(0xff);
    let header: [u8; 28] = [
        0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 2, 2, 192, 0, 2, 1, 0, 1, 0, 1, 0, 8, 0, 0,
    ];
    // SAFETY: buffer and address are valid for the lengths told.
    let sent = unsafe {
        libc::sendto(
            socket,
            header.as_ptr().cast(),
            header.len(),
            0,
            (&raw const address).cast(),
            libc::socklen_t::try_from(size_of_val(&address)).unwrap(),
        )
    };
    i64::try_from(sent).unwrap()
}

/// Sends a frame by `interface`, said to be of type `ethertype`.
fn frame(socket: i32, interface: &str, ethertype: u16, bytes: &[u8]) -> i64 {
    let index = nix::net::if_::if_nametoindex(interface).unwrap();
    // SAFETY: all zero is valid.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = family(libc::AF_PACKET);
    address.sll_protocol = ethertype.to_be();
    address.sll_ifindex = i32::try_from(index).unwrap();
    // SAFETY: buffer and address are valid for the lengths told.
    let sent = unsafe {
        libc::sendto(
            socket,
            bytes.as_ptr().cast(),
            bytes.len(),
            0,
            (&raw const address).cast(),
            libc::socklen_t::try_from(size_of_val(&address)).unwrap(),
        )
    };
    i64::try_from(sent).unwrap()
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len() / 2)
        .map(|at| u8::from_str_radix(&hex[at * 2..at * 2 + 2], 16).unwrap())
        .collect()
}

/// What arrives at a socket, printable, or `EAGAIN`.
fn read(socket: i32) -> io::Result<String> {
    let patience = libc::timeval {
        tv_sec: 5,
        tv_usec: 0,
    };
    let mut bytes = [0_u8; 4096];
    // SAFETY: the value is valid for the length told.
    unsafe {
        libc::setsockopt(
            socket,
            libc::SOL_SOCKET,
            libc::SO_RCVTIMEO,
            (&raw const patience).cast(),
            16,
        )
    };
    // SAFETY: the buffer is valid for the length told.
    let length = unsafe { libc::recv(socket, bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    let Ok(length) = usize::try_from(length) else {
        return Err(io::Error::last_os_error());
    };
    Ok(bytes[..length]
        .iter()
        .map(|&byte| {
            if byte.is_ascii_graphic() {
                char::from(byte)
            } else {
                '.'
            }
        })
        .collect())
}

/// Waits for a connection that was begun.
fn connect_end(socket: i32) -> io::Result<String> {
    let mut wanted = libc::pollfd {
        fd: socket,
        events: libc::POLLOUT,
        revents: 0,
    };
    let (mut error, mut length) = (0_i32, 4);
    // SAFETY: one element.
    if unsafe { libc::poll(&raw mut wanted, 1, 30_000) } != 1 {
        return Err(io::Error::from_raw_os_error(libc::ETIMEDOUT));
    }
    // SAFETY: the value is valid for the length told.
    unsafe {
        libc::getsockopt(
            socket,
            libc::SOL_SOCKET,
            libc::SO_ERROR,
            (&raw mut error).cast(),
            &raw mut length,
        )
    };
    // SAFETY: takes numbers.
    unsafe { libc::fcntl(socket, libc::F_SETFL, 0) };
    if error == 0 {
        Ok(String::new())
    } else {
        Err(io::Error::from_raw_os_error(error))
    }
}

/// The byte at `place` of what [`pump`] sends: no two stretches of a few kilobytes are alike.
pub(crate) fn pumped(place: u64) -> u8 {
    (place.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

/// Sends so many bytes and ends the stream.
fn pump(socket: i32, bytes: u64) -> io::Result<String> {
    let mut sent = 0;
    while sent < bytes {
        let end = (sent + 65_536).min(bytes);
        let chunk: Vec<u8> = (sent..end).map(pumped).collect();
        // SAFETY: the buffer is valid for the length told.
        let result = unsafe { libc::send(socket, chunk.as_ptr().cast(), chunk.len(), 0) };
        match u64::try_from(result) {
            Ok(length) => sent += length,
            Err(_) => return Err(io::Error::last_os_error()),
        }
    }
    // SAFETY: takes numbers.
    unsafe { libc::shutdown(socket, libc::SHUT_WR) };
    Ok(String::new())
}

/// Runs the packet program of the link that is pinned at `pin` on a frame at an interface, by
/// `BPF_PROG_TEST_RUN`, for the calling process's cgroup: its verdict, and the frame after it.
fn test_run(pin: &str, ifindex: u32, hex: &str) -> io::Result<String> {
    const OBJ_GET: i64 = 7;
    const TEST_RUN: i64 = 10;
    const PROG_GET_FD_BY_ID: i64 = 13;
    const INFO_BY_FD: i64 = 15;
    let bpf = |command: i64, attributes: &mut [u64]| {
        // SAFETY: the attributes are valid for the length told, and what they point to outlives the call.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                command,
                attributes.as_mut_ptr(),
                size_of_val(attributes),
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(u64::try_from(result).unwrap())
    };
    let path = std::ffi::CString::new(pin).unwrap();
    let link = bpf(OBJ_GET, &mut [path.as_ptr() as u64, 0])?;
    // `struct bpf_link_info`: type and id, then the program's id.
    let mut info = [0_u64; 8];
    bpf(INFO_BY_FD, &mut [link | 64 << 32, info.as_mut_ptr() as u64])?;
    let program = bpf(PROG_GET_FD_BY_ID, &mut [info[1] & 0xffff_ffff, 0])?;
    let frame: Vec<u8> = (0..hex.len() / 2)
        .map(|at| u8::from_str_radix(&hex[at * 2..at * 2 + 2], 16).unwrap())
        .collect();
    let mut after = [0_u8; 4096];
    let mut context = [0_u32; 48];
    context[10] = ifindex;
    let context_size = size_of_val(&context) as u64;
    let mut run = [
        program,
        frame.len() as u64 | (after.len() as u64) << 32,
        frame.as_ptr() as u64,
        after.as_mut_ptr() as u64,
        1,
        context_size,
        context.as_ptr() as u64,
        0,
        0,
    ];
    let result = bpf(TEST_RUN, &mut run);
    for descriptor in [link, program] {
        // SAFETY: opened above.
        drop(unsafe { OwnedFd::from_raw_fd(i32::try_from(descriptor).unwrap()) });
    }
    result?;
    let (verdict, length) = ((run[0] >> 32) as u32 as i32, (run[1] >> 32) as usize);
    let frame: String = after[..length]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Ok(format!("{verdict} {frame}"))
}
