//! The API's server when the process has no file descriptor left. Alone in its binary, because
//! the limit is the process'. Needs root, as the API does.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use steer::api::INTERFACE;
use steer::api::server::Server;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::timeout;

#[tokio::test(flavor = "current_thread")]
async fn a_lack_of_descriptors_delays_calls_and_ends_nothing() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("agent.sock");
    let (calls, _called) = mpsc::channel(1);
    let server = Server::bind(&path, calls).unwrap();
    let fd = socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .unwrap();

    // No number above those in use may be given out: no accept succeeds.
    let lowest_free = File::open("/dev/null").unwrap().as_raw_fd();
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(
        Resource::RLIMIT_NOFILE,
        u64::try_from(lowest_free).unwrap(),
        hard,
    )
    .unwrap();
    assert!(File::open("/dev/null").is_err());
    connect(fd.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
    let stream = UnixStream::from(fd);
    stream.set_nonblocking(true).unwrap();
    let mut stream = tokio::net::UnixStream::from_std(stream).unwrap();
    stream
        .write_all(b"{\"method\":\"org.varlink.service.GetInfo\"}\0")
        .await
        .unwrap();

    let mut answer = vec![0; 4096];
    tokio::select! {
        () = server.run() => panic!("the server ended"),
        answered = async {
            let silent = timeout(Duration::from_millis(300), stream.read(&mut answer)).await;
            assert!(silent.is_err(), "answered without a descriptor");
            setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
            timeout(Duration::from_secs(20), stream.read(&mut answer)).await
        } => {
            let len = answered.unwrap().unwrap();
            assert!(String::from_utf8_lossy(&answer[..len]).contains(INTERFACE));
        }
    }
}
