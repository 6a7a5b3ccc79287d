//! The kernel programs and the module that owns them, on the real kernel: real cgroups, real sockets,
//! two uplinks, and what arrives at their other end. Needs root, a cgroup2 mount and iproute2.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod answers;
mod cgroups;
mod child;
mod costs;
mod counts;
mod egress;
mod flows;
mod frames;
mod guard;
mod lab;
mod life;
mod options;
mod parsing;
mod peer;
mod rebind;
mod repair;
mod repair_ends;
mod rules;
mod rules_found;
mod rulesets;
mod share;
mod strict;
mod traffic;
mod tun;
mod versions;
mod whose;

/// What `child::Child` runs, in a process of its own.
#[test]
#[ignore = "the part of the other tests that runs inside a cgroup"]
fn child_process() {
    child::serve();
}
