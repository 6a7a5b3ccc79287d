//! The pure part of `steer`: configuration, state, selection and plan.
//!
//! Nothing here takes a clock, does I/O or knows the kernel's interfaces. Data goes one way:
//! inputs ([`state::Event`]) -> [`state::State`] -> [`select`] -> [`plan`]. The [`engine`] does that
//! for changes alone; [`engine::plan`] does it for everything.
#![forbid(unsafe_code)]

pub mod attached;
pub mod cgroups;
pub mod check;
pub mod config;
pub mod criteria;
pub mod domains;
pub mod engine;
pub mod explain;
pub mod flows;
pub mod groups;
pub mod health;
pub mod ids;
pub mod memory;
pub mod name;
pub mod network;
pub mod pattern;
pub mod permission;
pub mod permit;
pub mod plan;
pub mod policy;
pub mod probe;
pub mod rules;
pub mod select;
pub mod sessions;
pub mod share;
pub mod state;
pub mod steps;
pub mod suggest;
