//! How a command ended, and what it said.

use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Output};

#[derive(Debug)]
#[allow(dead_code)] // not every test binary asks for the signal
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) signal: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Said {
    pub(crate) fn new(status: ExitStatus, out: &[u8], err: &[u8]) -> Self {
        Self {
            code: status.code(),
            signal: status.signal(),
            out: String::from_utf8_lossy(out).into_owned(),
            err: String::from_utf8_lossy(err).into_owned(),
        }
    }
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        Self::new(output.status, &output.stdout, &output.stderr)
    }
}
