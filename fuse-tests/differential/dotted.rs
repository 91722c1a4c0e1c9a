//! The fallback form: overfall's side runs where no whiteouts can be made, and what it leaves is
//! brought to the kernel's form before it is compared with what the kernel left.

use std::path::Path;

use super::compare;
use super::look;
use super::manner::Manner;
use super::side::{self, Carrier, Mounted};

/// Checks an upper in the fallback form, unmounted, and upgrades it.
pub(crate) fn upgrade(dir: &Path, manner: &Manner, lowers: usize) -> Result<(), String> {
    let (upper, work) = (dir.join("u"), dir.join("w"));
    if !upper.join(".wh..wh.overfall").exists() {
        return Err("the upper isn't marked".to_owned());
    }
    let left = compare::leftovers(dir, false);
    let guard = "work/incompat";
    let strange: Vec<_> = left.iter().filter(|line| !line.contains(guard)).collect();
    if !strange.is_empty() || left.is_empty() {
        return Err(format!("work directory: {left:?}"));
    }
    if let Ok(mounted) = Mounted::new(dir, Carrier::Kernel, manner, lowers) {
        mounted.unmount()?;
        return Err("the kernel's overlay mounts it".to_owned());
    }
    let arguments = ["upgrade-layer".into(), upper.clone().into()];
    let work = ["--workdir".into(), work.into()];
    side::overfall(dir, arguments.into_iter().chain(work))?;
    let tree = look::tree(&upper, &look::plainly).map_err(|error| error.to_string())?;
    let begins = |path: &Path| {
        let name = path.file_name().unwrap_or_default();
        name.to_string_lossy().starts_with(".wh.")
    };
    match tree.keys().find(|path| begins(path)) {
        Some(path) => Err(format!("{} is left", path.display())),
        None => Ok(()),
    }
}
