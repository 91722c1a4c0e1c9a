//! The environment of a command in a container.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use super::config::Container;
use super::settings::Settings;
use crate::{Error, Result};

/// Where programs are looked for in a container.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Variables of the outside that come along.
const PASSED: [&str; 1] = ["TERM"];
/// The same, with any ending: vagga's own ways to hand something in.
const PREFIX: &[u8] = b"VAGGAENV_";
const PASSED_PREFIXES: [&[u8]; 2] = [b"VAGGAOPT_", b"VAGGACLI_"];

/// What the user asked for on the command line.
#[derive(Debug, Clone, Default)]
pub struct Wishes {
    /// `NAME=VALUE`.
    pub set: Vec<(OsString, OsString)>,
    /// Variables of the outside that come along.
    pub pass: Vec<OsString>,
}

/// Puts it together: what is later in this list replaces what is earlier.
///
/// `PATH`, `TERM` and proxies; the container's `environ-file` (its text is `file`) and `environ`; the
/// settings' `environ`; what the settings' `propagate-environ` names; `VAGGAENV_NAME` of the outside
/// as NAME; what was asked for.
pub(super) fn environment(
    container: &Container,
    settings: &Settings,
    file: Option<&[u8]>,
    wishes: &Wishes,
    outside: &[(OsString, OsString)],
) -> Result<Vec<(OsString, OsString)>> {
    let mut all: BTreeMap<OsString, OsString> = BTreeMap::new();
    all.insert("PATH".into(), PATH.into());
    for (key, value) in outside {
        if PASSED.iter().any(|name| key == name) {
            all.insert(key.clone(), value.clone());
        }
    }
    all.extend(settings.proxies(outside).cloned());
    if let Some(text) = file {
        for (number, line) in text.split(|byte| *byte == b'\n').enumerate() {
            if line.is_empty() {
                continue;
            }
            let Some(at) = line.iter().position(|byte| *byte == b'=') else {
                let name = container.environ_file.clone().unwrap_or_default();
                return Err(Error::usage("reading the environment's file")
                    .at(name)
                    .because(format!("line {} is not NAME=VALUE", number + 1)));
            };
            let (key, value) = (&line[..at], unquoted(&line[at + 1..]));
            all.insert(text_of(key), text_of(value));
        }
    }
    for (key, value) in container.environ.iter().chain(&settings.environ) {
        all.insert(key.into(), value.into());
    }
    let propagated = outside.iter().filter(|(key, _)| settings.propagates(key));
    all.extend(propagated.cloned());
    for (key, value) in outside {
        let bytes = key.as_bytes();
        if let Some(name) = bytes.strip_prefix(PREFIX) {
            all.insert(text_of(name), value.clone());
        } else if PASSED_PREFIXES
            .iter()
            .any(|prefix| bytes.starts_with(prefix))
        {
            all.insert(key.clone(), value.clone());
        }
    }
    for name in &wishes.pass {
        let value = outside.iter().find(|(key, _)| key == name);
        let value = value.map_or_else(OsString::new, |(_, value)| value.clone());
        all.insert(name.clone(), value);
    }
    for (key, value) in &wishes.set {
        all.insert(key.clone(), value.clone());
    }
    Ok(all.into_iter().collect())
}

fn unquoted(value: &[u8]) -> &[u8] {
    match value {
        [b'"', inner @ .., b'"'] => inner,
        _ => value,
    }
}

fn text_of(bytes: &[u8]) -> OsString {
    OsString::from_vec(bytes.to_vec())
}

/// Refuses `NAME=VALUE` where a name is wanted.
pub(crate) fn variable_name(text: &OsStr) -> Result<OsString> {
    if text.is_empty() || text.as_bytes().contains(&b'=') {
        return Err(Error::usage("reading --use-env")
            .at(text)
            .because("a variable's name is wanted")
            .remedy("--environ sets NAME=VALUE"));
    }
    Ok(text.to_os_string())
}
