//! Processes that pretend to be somebody else's server.

use std::fs;

use libtest_mimic::Completion;

use super::place::{Place, run};
use super::telling::{list, not_ours_alone};
use super::{Case, Verdict};

/// It unmounts whatever there is.
pub(crate) const ALONE: &[Case] = &[("a_liars_word_counts_nothing", a_liars_word_counts_nothing)];

/// A process that says it serves the mount of somebody else, in memory of its own and in memory
/// that it was given.
fn a_liars_word_counts_nothing(place: &Place) -> Verdict {
    if let Some(reason) = not_ours_alone() {
        return Ok(Completion::ignored_with(reason));
    }
    // Before the server: it is found first.
    let mut liars = Vec::new();
    for (user, owner) in [(54321, 54321), (54321, place.uid()), (place.uid(), 54321)] {
        liars.push(Liar::start(user, owner)?);
    }
    place.mount();
    let told = serde_json::json!({
        "target": "/lie", "device": device(&place.merged())?, "lower": ["/lie"], "upper": null,
        "work": null, "counted": [],
    });
    for liar in &mut liars {
        liar.say(&told)?;
    }
    let seen = list(place);
    // Root sees what the liars say of nothing that there is.
    let by_root = list_as_root(place)?;
    let said = run(place.overfall(&["umount", "--all"]));
    let left = place.is_mounted();
    drop(liars);
    assert_eq!(seen.len(), 1, "{seen:?}");
    for row in [
        &seen[0],
        by_root
            .iter()
            .find(|row| row["target"] == seen[0]["target"])
            .unwrap(),
    ] {
        assert_eq!(row["user"], place.uid(), "{row}");
        assert_eq!(row["lower"].as_array().unwrap().len(), 1, "{row}");
        assert_ne!(row["lower"][0], "/lie", "{row}");
        assert_eq!(row["place"], "here", "{row}");
    }
    assert!(!by_root.iter().any(|row| row.to_string().contains("/lie")));
    assert_eq!((said.code, left), (Some(0), false), "{said:?}");
    Ok(Completion::Completed)
}

fn list_as_root(place: &Place) -> Result<Vec<serde_json::Value>, libtest_mimic::Failed> {
    let mut command = std::process::Command::new(place.program());
    command.args(["list", "--json"]);
    let said = run(command);
    assert_eq!(said.code, Some(0), "{said:?}");
    Ok(serde_json::from_str(&said.out)?)
}

/// Number of the file system's device, as mount tables have it.
fn device(target: &std::path::Path) -> Result<(u32, u32), libtest_mimic::Failed> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let line = table
        .lines()
        .find(|line| line.split(' ').nth(4) == target.to_str());
    let (major, minor) = line
        .unwrap()
        .split(' ')
        .nth(2)
        .unwrap()
        .split_once(':')
        .unwrap();
    Ok((major.parse()?, minor.parse()?))
}

/// A process whose first descriptor is named as a server's status is; killed when it is dropped.
struct Liar {
    process: std::process::Child,
    /// Held until it is written to: what this process holds is a word of root's.
    status: Option<fs::File>,
}

impl Liar {
    fn start(user: u32, owner: u32) -> Result<Self, libtest_mimic::Failed> {
        use rustix::fs::{MemfdFlags, memfd_create};
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let status = fs::File::from(memfd_create("overfall-status", flags)?);
        std::os::unix::fs::fchown(&status, Some(owner), Some(owner))?;
        let user = user.to_string();
        let process = std::process::Command::new("setpriv")
            .args([
                "--reuid",
                &user,
                "--regid",
                &user,
                "--clear-groups",
                "sleep",
                "100",
            ])
            .stdin(status.try_clone()?)
            .spawn()?;
        Ok(Self {
            process,
            status: Some(status),
        })
    }

    fn say(&mut self, told: &serde_json::Value) -> Result<(), libtest_mimic::Failed> {
        use rustix::fs::{SealFlags, fcntl_add_seals};
        let mut text = vec![0; 4096];
        serde_json::to_writer(&mut text, told)?;
        let status = self.status.take().unwrap();
        std::os::unix::fs::FileExt::write_all_at(&status, &text, 0)?;
        fcntl_add_seals(
            &status,
            SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL,
        )?;
        Ok(())
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
