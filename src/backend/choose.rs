//! Who is to carry an overlay.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Backend, Carrier, form};
use crate::Overlay;
use crate::probe::{self, Unmapped, Verdict};
use crate::sys::privilege::Privilege;
use crate::union::Owners;

/// A choice and its reason.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) carrier: Carrier,
    /// Why it isn't the kernel's overlayfs, where the choice was ours.
    pub(super) why_not_native: Option<String>,
}

impl Choice {
    fn of(carrier: Carrier) -> Self {
        Self {
            carrier,
            why_not_native: None,
        }
    }

    fn fuse_because(why: String) -> Self {
        log::info!("the kernel's overlay doesn't carry this: {why}");
        Self {
            carrier: Carrier::Fuse,
            why_not_native: Some(why),
        }
    }
}

/// Takes the wish, or tries the kernel's overlayfs out where the choice is left to us.
pub(super) fn choose(overlay: &Overlay) -> Choice {
    match overlay.backend {
        Backend::Native => Choice::of(Carrier::Native),
        Backend::Fuse => Choice::of(Carrier::Fuse),
        Backend::Auto => match why_not_native(overlay) {
            None => Choice::of(Carrier::Native),
            Some(why) => Choice::fuse_because(why),
        },
    }
}

fn why_not_native(overlay: &Overlay) -> Option<String> {
    if Privilege::current() == Privilege::None {
        // The trial would make a user namespace of its own; this mount is wanted here.
        return Some("a plain user may not mount it outside a user namespace".to_owned());
    }
    if let Some(layer) = form::first_dotted(&overlay.options) {
        return Some(format!(
            "{} is in overfall's fallback form, which it doesn't read",
            layer.display()
        ));
    }
    if matches!(overlay.owners, Owners::Given { .. }) {
        return Some("it shows no other owners than the layers'".to_owned());
    }
    if let Some(option) = overlay.options.shown.first() {
        return Some(format!("it doesn't know `{option}`"));
    }
    if overlay.owners == Owners::FakeRoot
        && let Some(layer) = first_foreign(overlay)
    {
        return Some(format!(
            "{} belongs to somebody without an id in this user namespace",
            layer.display()
        ));
    }
    match probe::trial(&overlay.options) {
        Ok(verdict) if is_enough(&verdict, overlay.owners) => None,
        Ok(verdict) => Some(reason(&verdict)),
        Err(error) => Some(format!("it can't be tried out: {error}")),
    }
}

/// A layer whose root belongs to nobody of this user namespace: so may what is in it, further down than
/// the trial looks.
fn first_foreign(overlay: &Overlay) -> Option<&Path> {
    let unmapped = Unmapped::current();
    let mut layers = overlay.options.lower.iter().map(PathBuf::as_path);
    layers.find(|layer| fs::metadata(layer).is_ok_and(|found| unmapped.owns(&found)))
}

/// Files of owners that this user namespace has no ids for are beyond the kernel's overlay. That
/// matters to whoever wants to play root, and to nobody else: our server, too, would refuse them.
fn is_enough(verdict: &Verdict, owners: Owners) -> bool {
    match owners {
        Owners::Real => verdict.mounts(),
        Owners::FakeRoot => verdict.supported,
        Owners::Given { .. } => false,
    }
}

fn reason(verdict: &Verdict) -> String {
    let cause = verdict.cause.map(|cause| cause.words());
    let step = verdict.failed_step().map(|step| step.name.as_str());
    match (cause, step) {
        (Some(cause), Some(step)) => format!("{cause} (tried: {step})"),
        (Some(cause), None) => cause.to_owned(),
        (None, Some(step)) => format!("this failed: {step}"),
        (None, None) => "its trial failed".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::Cause;

    fn verdict(supported: bool, cause: Option<Cause>) -> Verdict {
        Verdict {
            supported,
            cause,
            steps: Vec::new(),
            userxattr: true,
        }
    }

    #[test]
    fn unmapped_owners_matter_to_a_fake_root_only() {
        let unmapped = verdict(false, Some(Cause::UnmappedOwners));
        assert!(is_enough(&unmapped, Owners::Real));
        assert!(!is_enough(&unmapped, Owners::FakeRoot));
        assert!(is_enough(&verdict(true, None), Owners::FakeRoot));
        assert!(!is_enough(&verdict(false, None), Owners::Real));
    }

    #[test]
    fn there_is_always_a_reason() {
        assert_eq!(reason(&verdict(false, None)), "its trial failed");
        let unmapped = verdict(false, Some(Cause::UnmappedOwners));
        assert_eq!(reason(&unmapped), Cause::UnmappedOwners.words());
    }
}
