//! What this process may do.

use rustix::thread::CapabilitySet;

/// Whether we have CAP_SYS_ADMIN in the initial user namespace: what `trusted.*` attributes need
/// (xattr(7)).
pub fn is_real_root() -> bool {
    has_admin() && in_initial_user_namespace()
}

/// Whether we have CAP_SYS_ADMIN in our user namespace.
pub fn has_admin() -> bool {
    rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN))
}

/// Whether our user namespace is the machine's: only that maps every id to itself
/// (user_namespaces(7)).
pub fn in_initial_user_namespace() -> bool {
    let Ok(map) = std::fs::read_to_string("/proc/self/uid_map") else {
        return true;
    };
    let mut fields = map.split_ascii_whitespace();
    let all = u32::MAX.to_string();
    fields.next() == Some("0") && fields.next() == Some("0") && fields.next() == Some(&*all)
}
