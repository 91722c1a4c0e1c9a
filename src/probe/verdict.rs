//! What a trial found.

use serde::{Deserialize, Serialize};

use super::cause::Cause;
use crate::sys::Errno;

/// What the trial of the kernel's overlay found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Everything that was tried worked, and left in the upper layer what it should.
    pub supported: bool,
    /// Why not, where the trial can tell.
    pub cause: Option<Cause>,
    /// What was tried, in this order.
    pub steps: Vec<Step>,
    /// Whether the attributes were kept under `user.overlay.`.
    pub userxattr: bool,
}

impl Verdict {
    /// Whether the kernel's overlay can be mounted and works, apart from files whose owners have
    /// no id in this user namespace.
    pub fn mounts(&self) -> bool {
        self.supported || self.cause == Some(Cause::UnmappedOwners)
    }

    /// The step that decided.
    pub fn failed_step(&self) -> Option<&Step> {
        self.steps
            .iter()
            .find(|step| matches!(step.outcome, Outcome::Failed { .. }))
    }
}

/// One thing that was tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// What was tried.
    #[serde(rename = "step")]
    pub name: String,
    /// How it went.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// How a step went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// It worked.
    Ok,
    /// It did not.
    Failed {
        /// The error number's name, such as `EINVAL`; empty where no call failed but the result
        /// was wrong.
        errno: String,
        /// The error number; 0 where there was none.
        code: i32,
        /// What there is to add: the system call, the kernel's words.
        detail: String,
    },
    /// There was nothing to try it on, or no use.
    Skipped {
        /// Why.
        detail: String,
    },
}

impl Outcome {
    /// The error number of a failed step.
    pub(crate) fn errno(&self) -> Option<Errno> {
        match self {
            Self::Failed { code, .. } if *code != 0 => Some(Errno::from_raw_os_error(*code)),
            _ => None,
        }
    }
}

/// A failed step, as the child meets it.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    errno: Option<Errno>,
    detail: String,
}

impl Failure {
    /// No call failed, but the result is wrong.
    pub(super) fn wrong(detail: impl Into<String>) -> Self {
        Self {
            errno: None,
            detail: detail.into(),
        }
    }

    /// A call failed.
    pub(super) fn call(detail: impl Into<String>, errno: Errno) -> Self {
        Self {
            errno: Some(errno),
            detail: detail.into(),
        }
    }
}

impl From<Failure> for Outcome {
    fn from(failure: Failure) -> Self {
        let code = failure.errno.map_or(0, Errno::raw_os_error);
        let errno = match failure.errno {
            Some(_) => format!("{:?}", nix::errno::Errno::from_raw(code)),
            None => String::new(),
        };
        Self::Failed {
            errno,
            code,
            detail: failure.detail,
        }
    }
}
