//! Memory that is not needed any more.

/// Gives freed memory back to the system, where the allocator would keep it.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) touches only memory that is free.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Asks for a page with this protection, which nobody then uses.
#[cfg(test)]
pub(crate) fn try_mapping(protection: i32) -> Result<(), super::Errno> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping at a place of the kernel's choice is in nobody's way.
    let place = unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0) };
    if place == libc::MAP_FAILED {
        return Err(super::from_nix(nix::errno::Errno::last()));
    }
    // SAFETY: it is the mapping that was just made, and nothing points into it.
    unsafe { libc::munmap(place, 4096) };
    Ok(())
}
