//! Network-namespace laboratory for steer: a host with several uplinks, peers that capture what really
//! crossed the wire, programs that send in every way a program can, and the agent under test.
//!
//! A scenario builds a [`Lab`], starts an [`Agent`], sets policies through the command line, lets a
//! [`Probe`] send from a cgroup, and asserts on captured packets. Everything is private to the
//! laboratory and ends with it: network and mount namespaces without names, a cgroup of its own.

pub mod abandoned;
mod agent;
mod attachment;
mod blackhole;
mod builder;
mod caller;
mod capture;
mod cgroup;
pub mod checks;
pub mod conformance;
mod executable;
pub mod foreign;
pub mod health;
mod ip;
mod lab;
mod link;
pub mod load;
mod mounts;
mod namespace;
mod packet;
mod packet_filter;
mod probe;
mod relay;
pub mod report;
mod rulesets;
mod scenario;
mod server;
mod snapshot;
mod terminal;
mod uplink;
mod user;
mod vm;
pub mod wait;
pub mod wlan;

pub use agent::{Agent, Output};
pub use blackhole::Way;
pub use builder::LabBuilder;
pub use caller::Caller;
pub use capture::Capture;
pub use cgroup::{LabCgroup, mount_point};
pub use executable::steer as steer_binary;
pub use ip::{ip, ip_batch, ip_json};
pub use lab::{Lab, SERVER4, SERVER6};
pub use link::send_frame;
pub use namespace::Namespace;
pub use packet::{ARP, Direction, Packet};
pub use probe::{Family, Kind, Probe, Session};
pub use relay::Impairment;
pub use scenario::matrix;
pub use snapshot::Snapshot;
pub use terminal::Terminal;
pub use uplink::{Net, Uplink};
pub use user::User;
pub use vm::{Ended, Vm};
