//! Who is to carry an overlay.

use super::{Backend, Carrier};
use crate::{Overlay, Result};

/// A choice and its reason.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) carrier: Carrier,
    /// Why it isn't the kernel's overlayfs although it might have been.
    pub(super) why_not_native: Option<String>,
}

impl Choice {
    fn wished(carrier: Carrier) -> Self {
        Self {
            carrier,
            why_not_native: None,
        }
    }
}

/// Takes the wish, or tries the kernel's overlayfs out where the choice is left to us.
pub(super) fn choose(overlay: &Overlay) -> Result<Choice> {
    match overlay.backend {
        Backend::Native => Ok(Choice::wished(Carrier::Native)),
        Backend::Fuse => Ok(Choice::wished(Carrier::Fuse)),
        Backend::Auto => Ok(Choice::wished(Carrier::Fuse)),
    }
}
