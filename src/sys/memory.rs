//! Memory that is not needed any more.

/// Gives freed memory back to the system, where the allocator would keep it.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) touches only memory that is free.
    unsafe {
        libc::malloc_trim(0);
    }
}
