//! The agent's API: Varlink interface `net.steer.Agent` on a socket in /run.
//!
//! [`types`] and [`methods`] are what is said, [`interface`] is its description, [`server`] hands
//! calls to the agent's loop, [`client`] makes them. The only module that knows `zlink`.
//!
//! The framing is its own (`connection`): `zlink` 0.8 lets a message grow to 100 MB, ends its
//! server on a failed accept, and serializes a long reply anew for every 256 bytes of its buffer.

pub mod answer;
pub mod client;
mod connection;
mod description;
pub mod error;
pub mod explain;
pub mod flows;
pub mod interface;
pub mod methods;
pub mod mistake;
mod places;
pub mod server;
pub mod types;

/// Where the agent listens.
pub const SOCKET: &str = "/run/steer/agent.sock";

/// Name of the Varlink interface.
pub const INTERFACE: &str = "net.steer.Agent";

/// Largest request, bytes.
pub const MAX_REQUEST: usize = 64 << 10;
