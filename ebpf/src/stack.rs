//! Room on the stack for functions that are global to the verifier: it must be initialised before they get it.

use core::mem::MaybeUninit;

/// A type of numbers alone, of whole words and aligned like them.
///
/// # Safety
/// Zeros must be a value of it, and its size and alignment multiples of eight.
pub unsafe trait Numbers: Copy {}

/// Writes zeros word by word: the compiler would call `memset`, which costs.
#[inline(always)]
pub fn zeroed<T: Numbers>(place: &mut MaybeUninit<T>) -> &mut T {
    const { assert!(size_of::<T>() % 8 == 0 && align_of::<T>() % 8 == 0) };
    let words = place.as_mut_ptr().cast::<u64>();
    let mut at = 0;
    while at < size_of::<T>() / 8 {
        // SAFETY: within the place, which is aligned for it.
        unsafe { words.add(at).write_volatile(0) };
        at += 1;
    }
    // SAFETY: all of it is zeros.
    unsafe { place.assume_init_mut() }
}
