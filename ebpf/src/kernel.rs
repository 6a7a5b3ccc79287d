//! Members of the kernel's own structures.

use core::{ffi::c_void, mem::MaybeUninit};

use aya_ebpf::helpers::generated::bpf_probe_read_kernel;

/// Reads a member of a kernel structure. Offsets are known at load time only, so these are not
/// direct, checked accesses; the kernel's reader fails on a wrong one.
#[inline(always)]
pub fn read<T: Copy>(object: *const c_void, offset: u32) -> Option<T> {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: `value` has the size that is told; it is used only if the kernel filled it.
    unsafe {
        let result = bpf_probe_read_kernel(
            value.as_mut_ptr().cast(),
            size_of::<T>() as u32,
            object.wrapping_byte_add(offset as usize),
        );
        (result == 0).then(|| value.assume_init())
    }
}
