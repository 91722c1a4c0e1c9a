//! The ranges of ids that /etc/subuid and /etc/subgid give to users (subuid(5)).

use std::fs;
use std::path::Path;

use nix::unistd::{Uid, User};

/// The ranges (first id, how many) that `file`, in the format of subuid(5), gives to a user.
pub(crate) fn subordinate(file: &Path, uid: Uid) -> Vec<(u32, u32)> {
    let name = User::from_uid(uid).ok().flatten().map(|user| user.name);
    match fs::read(file) {
        Ok(text) => parse_subordinate(&text, name.as_deref(), uid.as_raw()),
        Err(_) => Vec::new(),
    }
}

fn parse_subordinate(text: &[u8], name: Option<&str>, uid: u32) -> Vec<(u32, u32)> {
    let number = |field: &[u8]| std::str::from_utf8(field).ok()?.trim().parse::<u32>().ok();
    let mine = |owner: &[u8]| {
        name.is_some_and(|name| name.as_bytes() == owner) || number(owner) == Some(uid)
    };
    text.split(|byte| *byte == b'\n')
        .filter_map(|line| {
            let mut fields = line.split(|byte| *byte == b':');
            let (owner, first, count) = (fields.next()?, fields.next()?, fields.next()?);
            mine(owner).then_some((number(first)?, number(count)?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_by_name_or_number() {
        let text = b"# c\nann:100000:65536\nbob:1:2\n1001:300000:10\nann:x:1\nann\n";
        assert_eq!(
            parse_subordinate(text, Some("ann"), 1001),
            [(100_000, 65536), (300_000, 10)]
        );
        assert_eq!(parse_subordinate(text, None, 5), []);
    }
}
