//! The running kernel's release: only for what its own overlay can do, never for what overfall does.

/// As (major, minor); the newest where it can't be told.
pub(crate) fn running() -> (u32, u32) {
    let name = rustix::system::uname();
    let mut parts = name
        .release()
        .to_bytes()
        .split(|b| *b == b'.' || *b == b'-');
    let mut number = || std::str::from_utf8(parts.next()?).ok()?.parse().ok();
    match (number(), number()) {
        (Some(major), Some(minor)) => (major, minor),
        _ => (u32::MAX, 0),
    }
}
