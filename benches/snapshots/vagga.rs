//! A project as vagga leaves it: how long a writable run takes to start, and a container on another.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::{Outcome, Times, median, timed};

const VERSION: &str = ".vagga/.roots/app.0123abcd";
const BUSYBOX: [&str; 2] = ["/bin/busybox", "/usr/bin/busybox"];
const CONFIG: &str = "\
containers:
  app:
    setup: [!Sh 'true']
  on-it:
    setup: [!Container app]
";

/// A project whose container `app` has the planted root.
pub(crate) struct Project {
    dir: PathBuf,
}

impl Project {
    /// Moves `root` into a project in `dir`. `None` where there is no static busybox to run in it.
    pub(crate) fn around(root: &Path, dir: &Path) -> Outcome<Option<Self>> {
        let Some(busybox) = BUSYBOX.into_iter().find(|path| Path::new(path).exists()) else {
            return Ok(None);
        };
        let version = dir.join(VERSION);
        fs::create_dir_all(&version)?;
        let inside = version.join("root");
        fs::rename(root, &inside)?;
        for name in ["bin", "dev", "proc", "sys", "tmp", "run", "work", "etc"] {
            fs::create_dir(inside.join(name))?;
        }
        fs::copy(busybox, inside.join("bin/busybox"))?;
        for name in ["sh", "true"] {
            symlink("busybox", inside.join("bin").join(name))?;
        }
        for name in ["uid_map", "gid_map"] {
            fs::write(version.join(name), "0 0 65536")?;
        }
        fs::write(version.join("last_use"), "")?;
        symlink(".roots/app.0123abcd/root", dir.join(".vagga/app"))?;
        fs::write(dir.join("vagga.yaml"), CONFIG)?;
        Ok(Some(Self { dir: dir.into() }))
    }

    /// `_run -W app true`, start and end.
    pub(crate) fn run(&self, overlay: &str, times: Times) -> Outcome<Duration> {
        median(times, || {
            timed(|| self.vagga(&["_run", "-W", "--overlay", overlay, "app", "/bin/true"]))
        })
    }

    /// The build of a container that is on `app` and has nothing more.
    pub(crate) fn container_step(&self, options: &[&str], times: Times) -> Outcome<Duration> {
        median(times, || {
            let words = [&["_build", "--force"], options, &["on-it"]].concat();
            let time = timed(|| self.vagga(&words))?;
            self.vagga(&["_clean", "--unused", "--at-least", "0s"])?;
            Ok(time)
        })
    }

    fn vagga(&self, words: &[&str]) -> Outcome<()> {
        let output = Command::new(env!("CARGO_BIN_EXE_overfall"))
            .arg("vagga")
            .args(words)
            .current_dir(&self.dir)
            .output()?;
        match output.status.success() {
            true => Ok(()),
            false => Err(format!(
                "vagga {}: {}",
                words.join(" "),
                String::from_utf8_lossy(&output.stderr)
            )
            .into()),
        }
    }
}
