//! steer: the agent and the command line, as a library; `main` only dispatches.

pub mod api;
pub mod cgroup;
pub mod cli;
pub mod daemon;
pub mod datapath;
pub mod dbus;
pub mod doctor;
pub mod draw;
mod heap;
pub mod netlink;
pub mod probe;
pub mod reconcile;
pub mod statefile;
pub mod steered;
