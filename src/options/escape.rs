//! The backslash rule: `\` takes the meaning off the byte behind it.

/// Cuts `bytes` at each `separator` that has no backslash before it. Backslashes stay.
pub(super) fn split(bytes: &[u8], separator: u8) -> Vec<&[u8]> {
    let mut pieces = Vec::new();
    let mut start = 0;
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] == b'\\' {
            at += 2;
            continue;
        }
        if bytes[at] == separator {
            pieces.push(&bytes[start..at]);
            start = at + 1;
        }
        at += 1;
    }
    pieces.push(&bytes[start..]);
    pieces
}

/// Takes the backslashes away. `None` where the last one has nothing behind it.
pub(crate) fn unescape(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut plain = Vec::with_capacity(bytes.len());
    let mut rest = bytes.iter();
    while let Some(&byte) = rest.next() {
        plain.push(if byte == b'\\' { *rest.next()? } else { byte });
    }
    Some(plain)
}

/// Puts a backslash before every byte that separates.
pub(super) fn escape_into(out: &mut Vec<u8>, plain: &[u8]) {
    for &byte in plain {
        if matches!(byte, b'\\' | b':' | b',') {
            out.push(b'\\');
        }
        out.push(byte);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backslash_hides_the_byte_behind_it() {
        assert_eq!(split(br"a\:b:c", b':'), [&br"a\:b"[..], b"c"]);
        assert_eq!(split(br"a\\:b", b':'), [&br"a\\"[..], b"b"]);
        assert_eq!(split(b"", b':'), [b""]);
        assert_eq!(unescape(br"a\:b\\").as_deref(), Some(&br"a:b\"[..]));
        assert_eq!(unescape(br"a\"), None);
    }

    #[test]
    fn what_is_escaped_reads_back() {
        let plain = br"/odd\na:me,with all";
        let mut escaped = Vec::new();
        escape_into(&mut escaped, plain);
        assert_eq!(split(&escaped, b':').len(), 1);
        assert_eq!(split(&escaped, b',').len(), 1);
        assert_eq!(unescape(&escaped).as_deref(), Some(&plain[..]));
    }
}
