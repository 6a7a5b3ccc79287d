//! The pure part of `steer`: configuration, state, selection and plan.
//!
//! Nothing here takes a clock, does I/O or knows the kernel's interfaces. Data goes one way:
//! inputs -> state -> select -> [`plan`].

pub mod ids;
pub mod network;
pub mod plan;
