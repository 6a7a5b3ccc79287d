//! The C library's heap, which keeps what was freed unless it is told not to.

/// Gives freed memory back to the kernel.
///
/// To be called where much was needed for a moment: the kernel's types, the files, a look at everything.
pub(crate) fn release() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes a number.
    unsafe {
        libc::malloc_trim(0);
    }
}
