//! A lower layer that was an upper one: the kernel's overlay has written whiteouts, marks, redirects and
//! metadata copies into it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::execute::Hands;
use super::layers::{Entry, IN_ANOTHER_GROUP, Power};
use super::manner::Manner;
use super::ops::{On, Op, Step};
use super::random::Random;
use super::script;
use super::side::{Carrier, Mounted};

/// How many operations are looked through for those that leave something.
const STEPS: usize = 60;

/// Random changes for the topmost lower layer.
pub(crate) fn generate(random: &mut Random, power: Power, entries: &[Entry]) -> Vec<Step> {
    let mut steps = script::generate(random, power, entries, STEPS);
    steps.retain_mut(|step| {
        if step.uid == IN_ANOTHER_GROUP {
            step.uid = 0;
        }
        match &mut step.op {
            Op::Mkdir { mode, .. } => *mode &= 0o1777,
            Op::Chmod {
                on: On::Path(_),
                mode,
            } => *mode &= 0o1777,
            Op::Truncate {
                on: On::Path(_), ..
            }
            | Op::Chown {
                on: On::Path(_), ..
            } => {}
            Op::Unlink { .. } | Op::Rmdir { .. } | Op::Symlink { .. } => {}
            Op::Rename { .. } | Op::Link { .. } => {}
            _ => return false,
        }
        true
    });
    steps
}

/// Makes them, in the layers below `side`, by an overlay of the kernel's whose upper is the topmost
/// lower layer. What it refuses, it refuses.
pub(crate) fn bequeath(
    side: &Path,
    manner: &Manner,
    lowers: usize,
    steps: &[Step],
) -> Result<(), String> {
    let before = side.join("before");
    let prepare = || -> std::io::Result<()> {
        fs::create_dir(&before)?;
        fs::create_dir(before.join("m"))?;
        // On the layer's own file system.
        let top = side.join("l0").canonicalize()?;
        let work = top.with_file_name("before-w");
        fs::create_dir(&work)?;
        symlink(work, before.join("w"))?;
        symlink(top, before.join("u"))?;
        for index in 1..lowers {
            let below = side.join(format!("l{index}"));
            symlink(below, before.join(format!("l{}", index - 1)))?;
        }
        Ok(())
    };
    prepare().map_err(|error| error.to_string())?;
    let mounted = Mounted::new(&before, Carrier::Kernel, manner, lowers - 1)?;
    let mut hands = Hands::new(mounted.root(), manner);
    for step in steps {
        hands.execute(step);
    }
    drop(hands);
    mounted.unmount()?;
    // The kernel leaves a directory without any permission.
    let work = before.join("w/work");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    fs::set_permissions(work, open).map_err(|error| error.to_string())
}
