//! The name servers in a file like `/etc/resolv.conf`.

use std::fs::File;
use std::io::{self, Read as _};
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::path::{Path, PathBuf};

use resolv_conf::{Config, ScopedIp};

/// Bytes of the file that are read at most.
const LIMIT: u64 = 64 << 10;
/// The port of DNS.
const PORT: u16 = 53;

/// Why the file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It could not be opened or read.
    #[error("read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is no such file.
    #[error("{} is longer than {LIMIT} bytes", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
    },
}

/// The name servers in the file at `path`, in its order. A server with a scope has the index of the
/// interface; one whose interface is not there is left out, like every line that cannot be read.
///
/// # Errors
/// The file cannot be read, or is too long.
pub fn name_servers(path: &Path) -> Result<Vec<SocketAddr>, Error> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(LIMIT + 1).read_to_end(&mut bytes));
    let length = read.map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })?;
    if u64::try_from(length).is_ok_and(|length| length > LIMIT) {
        return Err(Error::TooLong {
            path: path.to_owned(),
        });
    }
    Ok(servers(&bytes, |name| {
        nix::net::if_::if_nametoindex(name).ok()
    }))
}

/// The servers in the text of a file; `index` knows interfaces by name.
fn servers(text: &[u8], index: impl Fn(&str) -> Option<u32>) -> Vec<SocketAddr> {
    let (config, _mistakes) = Config::parse_with_errors(text);
    let scope = |name: &str| name.parse().ok().or_else(|| index(name));
    let servers = config.nameservers.into_iter();
    servers
        .filter_map(|server| match server {
            ScopedIp::V4(ip) => Some(SocketAddr::new(IpAddr::V4(ip), PORT)),
            ScopedIp::V6(ip, None) => Some(SocketAddr::new(IpAddr::V6(ip), PORT)),
            ScopedIp::V6(ip, Some(name)) => {
                Some(SocketAddrV6::new(ip, PORT, 0, scope(&name)?).into())
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Vec<String> {
        let servers = servers(text.as_bytes(), |name| (name == "wlan0").then_some(7));
        servers.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn name_servers_come_in_order_and_with_their_scope() {
        let text = "# a comment\nnameserver 192.0.2.53\nsearch example.org\n\
                    nameserver fe80::1%wlan0\nnameserver fe80::2%3\nnameserver 2001:db8::53\n\
                    options edns0 trust-ad\n";
        assert_eq!(
            read(text),
            [
                "192.0.2.53:53",
                "[fe80::1%7]:53",
                "[fe80::2%3]:53",
                "[2001:db8::53]:53"
            ]
        );
    }

    #[test]
    fn what_cannot_be_read_is_left_out_alone() {
        let text = "nameserver\nnameserver example.org\nnonsense\nnameserver fe80::1%gone\n\
                    options unheard-of:5\nnameserver 192.0.2.1\n";
        assert_eq!(read(text), ["192.0.2.1:53"]);
        assert_eq!(read(""), [""; 0]);
    }

    #[test]
    fn the_file_is_read_and_its_absence_and_length_are_errors() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("resolv.conf");
        assert!(matches!(name_servers(&path), Err(Error::Read { .. })));
        std::fs::write(&path, "nameserver 192.0.2.1\n").expect("a file");
        let one: SocketAddr = "192.0.2.1:53".parse().expect("an address");
        assert_eq!(name_servers(&path).expect("servers"), [one]);
        let mut file = File::options().append(true).open(&path).expect("the file");
        file.write_all(&vec![b'#'; 64 << 10]).expect("written");
        assert!(matches!(name_servers(&path), Err(Error::TooLong { .. })));
    }

    proptest! {
        #[test]
        fn any_file_is_read_without_panic(
            text in prop_oneof![
                any::<Vec<u8>>(),
                "((nameserver|options|search|lookup|sortlist|domain)[ -~]{0,20}\n){0,5}"
                    .prop_map(String::into_bytes),
            ],
        ) {
            servers(&text, |_| None);
        }
    }
}
