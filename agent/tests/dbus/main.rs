//! What connection managers say, on a message bus of each test's own, with doubles of the managers.
#![expect(clippy::unwrap_used, reason = "a test fails by it")]

mod bus;
mod double;
mod follower;
mod life;
mod modem_manager;
mod network_manager;
