//! Socket storage.

use aya_ebpf::{
    bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock},
    helpers::generated::bpf_sk_storage_get,
};
use steer_common::{FlowState, counter};

use crate::{count::count, maps::FLOWS};

/// What `socket` remembers, if anything.
#[inline(always)]
pub fn get(socket: *mut bpf_sock) -> Option<&'static mut FlowState> {
    // SAFETY: the kernel gives null or this socket's own value, which lives as long as the program runs.
    unsafe {
        bpf_sk_storage_get(FLOWS.as_ptr(), socket.cast(), core::ptr::null_mut(), 0)
            .cast::<FlowState>()
            .as_mut()
    }
}

/// What `socket` remembers, beginning with `initial`. `None`: no memory; counted.
#[inline(always)]
pub fn get_or_create(
    socket: *mut bpf_sock,
    mut initial: FlowState,
) -> Option<&'static mut FlowState> {
    // SAFETY: as in `get`; `initial` outlives the call.
    let state = unsafe {
        bpf_sk_storage_get(
            FLOWS.as_ptr(),
            socket.cast(),
            (&raw mut initial).cast(),
            BPF_SK_STORAGE_GET_F_CREATE.into(),
        )
        .cast::<FlowState>()
        .as_mut()
    };
    if state.is_none() {
        count(counter::STORAGE_FAILED);
    }
    state
}
