//! Options about the FUSE server as a process: what it tells, and what it may do. The tree that it
//! shows is the same with each of them, and the kernel's overlay passes over them.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use super::escape::{escape_into, unescape};
use super::words::Word;
use super::{Switch, tuning};

/// What the server tells, and what it may do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Serving {
    /// `debug`: every request is logged, with its path and result.
    pub debug: bool,
    /// `log=`: the file that the log is added to.
    pub log: Option<PathBuf>,
    /// `seccomp=`: whether the threads that serve requests give up the system calls that they
    /// don't need. On, unless told.
    pub seccomp: Option<Switch>,
}

impl Serving {
    /// Takes an option with a value: `None` when it isn't one of these, or why its value won't do.
    pub(super) fn take(&mut self, name: &str, value: &[u8]) -> Option<Result<(), String>> {
        let taken = match name {
            "log" => file(value).map(|file| self.log = Some(file)),
            "seccomp" => tuning::word(value).map(|switch| self.seccomp = Some(switch)),
            _ => return None,
        };
        Some(taken)
    }

    /// The options that were given, as they are written.
    pub(super) fn written(&self) -> Vec<OsString> {
        let mut out: Vec<OsString> = Vec::new();
        if self.debug {
            out.push("debug".into());
        }
        if let Some(log) = &self.log {
            let mut text = b"log=".to_vec();
            escape_into(&mut text, log.as_os_str().as_bytes());
            out.push(OsString::from_vec(text));
        }
        if let Some(switch) = self.seccomp {
            out.push(format!("seccomp={}", switch.word()).into());
        }
        out
    }
}

fn file(escaped: &[u8]) -> Result<PathBuf, String> {
    match unescape(escaped) {
        Some(plain) if !plain.is_empty() && !plain.contains(&0) => {
            Ok(PathBuf::from(OsString::from_vec(plain)))
        }
        _ => Err("the name of a file".to_owned()),
    }
}
