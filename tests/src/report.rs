//! What the probe and the laboratory's servers say about an operation: one JSON object a line.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// Port of the laboratory's echo servers, TCP and UDP.
pub const ECHO_PORT: u16 = 7;
/// Port that takes datagrams and connections and never answers.
pub const DISCARD_PORT: u16 = 9;
/// Port of the same servers for HTTP clients.
pub const HTTP_PORT: u16 = 80;

/// A server's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Uplink behind which the server stands.
    pub uplink: String,
    /// Address and port that the server saw.
    pub seen: SocketAddr,
    /// What it was sent.
    pub token: String,
}

/// Result of one operation of the probe.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The operation: `open`, `set`, `bind`, `connect`, `send`, ...
    pub op: String,
    /// Whether it did what it should; for `send` with an answer, whether the answer came.
    pub ok: bool,
    /// 0, or why not.
    pub errno: i32,
    /// Its name, such as `ENETUNREACH`.
    pub errno_name: String,
    /// What the socket says its own address is.
    pub local: Option<SocketAddr>,
    /// Where it was connected or sent to.
    pub peer: Option<SocketAddr>,
    /// Address and port that the server saw.
    pub seen_by: Option<SocketAddr>,
    /// Uplink behind which the server that answered stands.
    pub uplink: Option<String>,
    /// `SO_MARK` of the socket.
    pub mark: Option<u32>,
    /// How many exchanges `flood` and `churn` tried.
    pub tried: u64,
    /// How many of these failed.
    pub failed: u64,
}

impl Report {
    /// The source address that the server saw, v4-mapped ones as IPv4.
    pub fn seen_address(&self) -> Option<IpAddr> {
        self.seen_by.map(|seen| seen.ip().to_canonical())
    }
}
