//! What `steer doctor` makes of facts, stated as a host would give them.
#![expect(clippy::unwrap_used, reason = "a test fails by it")]

mod codes;
mod details;
mod facts;
mod page;
