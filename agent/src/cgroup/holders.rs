//! Which processes hold a socket: told by the links in /proc/PID/fd, within limits.
//!
//! Blocks, so it has no place on the agent's loop.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::process;

/// Descriptors that one search looks at: about a third of a second.
const MOST_DESCRIPTORS: usize = 200_000;

/// Descriptors of one process that are looked at.
const MOST_OF_ONE: usize = 65_536;

/// A process that holds a socket.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder {
    /// Its number.
    pub pid: i32,
    /// The user whose it is; none: its user ids differ.
    pub uid: Option<u32>,
    /// Its name (/proc/PID/comm).
    pub command: String,
}

/// What a search found.
#[derive(Clone, Debug, Default)]
pub struct Holders {
    /// By the socket's inode.
    pub of: HashMap<u32, Vec<Holder>>,
    /// Whether it ended at a limit, so that there may be more.
    pub cut_short: bool,
}

/// Where holders were found, to look there first the next time.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Process and descriptor, by inode.
    places: HashMap<u32, BTreeSet<(i32, i32)>>,
}

/// A search for the holders of some sockets.
struct Search<'a> {
    wanted: &'a HashSet<u32>,
    descriptors: usize,
    looked_at: HashSet<i32>,
    about: BTreeMap<i32, Option<Holder>>,
    places: HashMap<u32, BTreeSet<(i32, i32)>>,
    cut_short: bool,
}

/// Finds who holds the sockets with these inodes: where they were found the last time, then in `cgroups`,
/// and, for those that nobody there holds, everywhere. Only processes of `uid`, if it is given.
pub fn holders(
    wanted: &HashSet<u32>,
    cgroups: &[PathBuf],
    uid: Option<u32>,
    found: &mut Found,
) -> Holders {
    let mut search = Search {
        wanted,
        descriptors: MOST_DESCRIPTORS,
        looked_at: HashSet::new(),
        about: BTreeMap::new(),
        places: HashMap::new(),
        cut_short: false,
    };
    let known: BTreeSet<i32> = found
        .places
        .iter()
        .filter(|(inode, _)| wanted.contains(inode))
        .flat_map(|(_, places)| places.iter().map(|(pid, _)| *pid))
        .collect();
    let known_in_cgroups = cgroups.iter().flat_map(|directory| process::of(directory));
    for pid in known.into_iter().chain(known_in_cgroups) {
        search.process(pid, uid);
    }
    if search.places.len() < wanted.len() {
        for pid in everywhere() {
            if search.places.len() == wanted.len() {
                break;
            }
            search.process(pid, uid);
        }
    }
    let Search {
        about,
        places,
        cut_short,
        ..
    } = search;
    let holder = |(pid, _): &(i32, i32)| about.get(pid).cloned().flatten();
    let mut of: HashMap<u32, Vec<Holder>> = HashMap::new();
    for (inode, places) in &places {
        let mut holders: Vec<Holder> = places.iter().filter_map(holder).collect();
        holders.dedup();
        of.insert(*inode, holders);
    }
    found.places = places;
    Holders { of, cut_short }
}

impl Search<'_> {
    fn process(&mut self, pid: i32, uid: Option<u32>) {
        if !self.looked_at.insert(pid) || self.descriptors == 0 {
            self.cut_short |= self.descriptors == 0;
            return;
        }
        // Its number cannot become another's while this is open and says that it lives.
        let Ok(pidfd) = process::open(pid) else {
            return;
        };
        let owner = || process::owner(pid, &pidfd).ok();
        let before = owner();
        if before.is_none() || uid.is_some() && before != Some(uid) {
            return;
        }
        let mut sockets = Vec::new();
        let Ok(list) = fs::read_dir(format!("/proc/{pid}/fd")) else {
            return;
        };
        for entry in list.flatten().take(MOST_OF_ONE) {
            if self.descriptors == 0 {
                self.cut_short = true;
                break;
            }
            self.descriptors -= 1;
            let number = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok());
            let inode = socket_at(&entry.path()).filter(|inode| self.wanted.contains(inode));
            sockets.extend(number.zip(inode));
        }
        if sockets.is_empty() {
            return;
        }
        let command = process::command(pid).unwrap_or_default();
        // Asked after reading too: all of it is of this process, and it was the same user's all the time.
        let Some(uid) = owner().filter(|after| Some(*after) == before) else {
            return;
        };
        self.about.insert(pid, Some(Holder { pid, uid, command }));
        for (number, inode) in sockets {
            self.places.entry(inode).or_default().insert((pid, number));
        }
    }
}

/// Every process there is.
fn everywhere() -> impl Iterator<Item = i32> {
    let list = fs::read_dir("/proc").into_iter().flatten().flatten();
    list.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The inode of the socket that a descriptor is, as its link in /proc says.
fn socket_at(link: &Path) -> Option<u32> {
    let target = fs::read_link(link).ok()?;
    let inode = target.to_str()?.strip_prefix("socket:[")?;
    inode.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn inode(socket: &UdpSocket) -> u32 {
        let path = format!("/proc/self/fd/{}", socket.as_raw_fd());
        let inode = fs::metadata(path).unwrap().ino();
        u32::try_from(inode).unwrap()
    }

    #[test]
    fn a_socket_is_found_at_the_process_that_has_it() {
        let sockets = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
        let wanted: HashSet<u32> = sockets.iter().map(inode).collect();
        let mut found = Found::default();
        for _ in 0..2 {
            let holders = holders(&wanted, &[], None, &mut found);
            for inode in &wanted {
                let [holder] = &holders.of[inode][..] else {
                    panic!("{holders:?}");
                };
                assert_eq!(holder.pid.unsigned_abs(), std::process::id());
                assert_eq!(holder.uid, Some(nix::unistd::geteuid().as_raw()));
                assert!(!holder.command.is_empty());
            }
        }
        drop(sockets);
        let holders = holders(&wanted, &[], None, &mut found);
        assert!(holders.of.is_empty(), "{holders:?}");
    }

    #[test]
    fn processes_of_others_are_not_looked_at() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let wanted = HashSet::from([inode(&socket)]);
        let other = Some(nix::unistd::geteuid().as_raw() + 1);
        let holders = holders(&wanted, &[], other, &mut Found::default());
        assert!(holders.of.is_empty(), "{holders:?}");
    }
}
