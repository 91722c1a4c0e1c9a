//! What must hold for any bytes: shared by the fuzz targets and by the test `fuzz_corpus`, which
//! stands in for them where there is no nightly compiler.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use overfall::format::index::{Links, entry_name, origin_of};
use overfall::format::metacopy;
use overfall::format::origin::Origin;
use overfall::format::override_stat::OverrideStat;
use overfall::format::redirect::Redirect;
use overfall::format::{Visible, XattrNamespace, acl};
use overfall::options::Options;

/// An option string is refused with one line, or read as something that is written and read again
/// as the same.
#[allow(dead_code)] // each target has its own check
pub(crate) fn options(data: &[u8]) {
    let options = match Options::parse(OsStr::from_bytes(data)) {
        Ok(options) => options,
        Err(error) => {
            let line = error.to_string();
            assert!(!line.trim().is_empty() && !line.contains('\n'), "{line:?}");
            return;
        }
    };
    if let Err(error) = options.check() {
        assert!(!error.to_string().contains('\n'), "{error}");
        return;
    }
    let _ = options.unsupported_by_fuse();
    let written = options.to_option_string();
    match Options::parse(&written) {
        Ok(again) => assert_eq!(again, options, "written as {written:?}"),
        Err(error) => panic!("{written:?} isn't read again: {error}"),
    }
}

/// A value is refused, or read as something that is written and read again as the same.
#[allow(dead_code)] // not every fuzz target has this check
pub(crate) fn formats(data: &[u8]) {
    let Some((which, value)) = data.split_first() else {
        return;
    };
    match which % 7 {
        0 => origin(value),
        1 => list(value),
        2 => record(value),
        3 => name(value),
        4 => redirect(value),
        6 => links(value),
        _ => drop(metacopy::check(value)),
    }
}

fn origin(value: &[u8]) {
    if let Some(origin) = Origin::parse(value) {
        assert!(!origin.handle.is_empty() && origin.handle.len() < value.len());
        // Written, a handle has whole words.
        if let Some(written) = origin.format() {
            let again = Origin::parse(&written).expect("what was written");
            assert_eq!(again.uuid, origin.uuid);
            assert!(again.handle.starts_with(&origin.handle));
        }
    }
}

/// An access control list, behind two bytes of mode.
fn list(value: &[u8]) {
    let Some((mode, value)) = value.split_first_chunk::<2>() else {
        return;
    };
    let mode = u32::from(u16::from_le_bytes(*mode));
    if let Some(inherited) = acl::inherit(value, mode) {
        // Nobody gets more than was asked for, and no other bits are touched.
        assert_eq!(inherited.mode & !mode, 0, "{inherited:?} from {mode:o}");
        assert_eq!(inherited.mode & !0o777, mode & !0o777);
        if let Some(access) = inherited.access {
            assert_eq!(access.len(), value.len());
        }
    }
}

/// A link count, and the name of an entry.
fn links(value: &[u8]) {
    if let Some(links) = Links::parse(value) {
        assert_eq!(Links::parse(&links.format()), Some(links));
    }
    if let Some(origin) = origin_of(OsStr::from_bytes(value)) {
        assert!(entry_name(&origin).as_bytes().eq_ignore_ascii_case(value));
    }
}

fn record(value: &[u8]) {
    if let Some(record) = OverrideStat::parse(value) {
        // chown(2) has no such owner.
        assert!(record.uid != u32::MAX && record.gid != u32::MAX);
        assert_eq!(OverrideStat::parse(&record.format()), Some(record));
    }
}

fn name(value: &[u8]) {
    let name = OsStr::from_bytes(value);
    for namespace in [XattrNamespace::User, XattrNamespace::Trusted] {
        if let Some(stored) = namespace.store(name) {
            // A user's attribute never looks like one of the overlay's own.
            assert!(!namespace.is_private(&stored), "{name:?} as {stored:?}");
            match namespace.show(&stored) {
                Visible::As(shown) => assert_eq!(shown, name),
                Visible::Hidden => panic!("{name:?} is hidden"),
            }
        }
        // No file has an attribute with a longer name.
        if value.len() <= 255
            && let Visible::As(shown) = namespace.show(name)
        {
            assert_eq!(namespace.store(&shown).as_deref(), Some(name));
        }
    }
}

fn redirect(value: &[u8]) {
    if let Ok(redirect) = Redirect::parse(value) {
        if let Redirect::Path(names) = &redirect {
            let one_name = |name: &std::ffi::OsString| {
                !name.is_empty() && !name.as_bytes().iter().any(|byte| matches!(byte, 0 | b'/'))
            };
            assert!(!names.is_empty() && names.iter().all(one_name));
        }
        if let Some(written) = redirect.format()
            && !written.is_empty()
        {
            assert_eq!(Redirect::parse(&written), Ok(redirect));
        }
    }
}
