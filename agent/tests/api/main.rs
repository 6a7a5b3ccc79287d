//! The API over a real socket, and the command line over the API. Needs root, as the API does.
#![expect(clippy::unwrap_used, reason = "a test fails by it")]

mod abuse;
mod ask;
mod calls;
mod command;
mod fake;
mod terminal;
