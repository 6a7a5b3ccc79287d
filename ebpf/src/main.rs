//! The kernel programs: socket programs decide, packet programs guard.
//!
//! One file per hook; `maps` and `globals` hold what they share with the agent, `owner` says whose a
//! flow is, `decision` what becomes of it. Everything is attached once and looks its policy up.
#![no_std]
#![no_main]

mod address;
mod bind;
mod cgroups;
mod connect;
mod count;
mod decision;
mod divided;
mod egress;
mod family;
mod fit;
mod flow;
mod globals;
mod guard;
mod host;
mod host_egress;
mod ingress;
mod judge;
mod kernel;
mod log;
mod maps;
mod options;
mod owner;
mod packet;
mod plain;
mod post_bind;
mod repair;
mod rules;
mod sendmsg;
mod setsockopt;
mod share;
mod sock;
mod sock_create;
mod stack;
mod traffic;
mod tuple;

/// bpf helpers used here are open to GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    // No program of ours can panic: the verifier would refuse the endless loop.
    loop {}
}
