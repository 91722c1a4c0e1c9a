//! A server that is watched: it stays in the foreground and its log is kept, so that a test can
//! say at the end that nothing in it panicked.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::Tree;

impl Tree {
    /// Keeps the server's log from now on, and gives it at most so many descriptors.
    pub(crate) fn watch(&self, files: Option<u32>) {
        let log = self.beside("server.log");
        *self.watch.borrow_mut() = Some(Watch {
            files,
            log,
            server: None,
        });
    }

    /// The mount still answers, and nothing in a watched server has panicked.
    #[track_caller]
    pub(crate) fn assert_lives(&self) {
        fs::metadata(self.at("")).expect("stat of the mount's root");
        fs::read_dir(self.at("")).expect("listing the mount's root");
        self.assert_no_panic();
    }

    #[track_caller]
    pub(super) fn assert_no_panic(&self) {
        if let Some(watch) = &*self.watch.borrow() {
            let said = watch.said();
            assert!(!said.contains("panicked"), "the server panicked:\n{said}");
        }
    }
}

/// How a watched server is started, and the server once it runs.
#[derive(Debug)]
pub(crate) struct Watch {
    /// How many descriptors it may have; few make it open directories again and again.
    files: Option<u32>,
    log: PathBuf,
    server: Option<Child>,
}

impl Watch {
    /// Runs overfall and waits until it says that it has mounted.
    pub(super) fn start(&mut self, arguments: &[OsString]) -> Result<(), String> {
        let log = File::options().create(true).append(true).open(&self.log);
        let log = log.map_err(|e| format!("the log: {e}"))?;
        let said_before = self.said().len();
        let limit = self
            .files
            .map_or(String::new(), |n| format!("ulimit -n {n}; "));
        let server = Command::new("sh")
            .arg("-c")
            .arg(format!("{limit}exec \"$0\" \"$@\""))
            .arg(super::suite::overfall_binary())
            .args(arguments)
            .env("OVERFALL_LOG", "info")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        let server = self.server.insert(server.map_err(|e| format!("sh: {e}"))?);
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            let said = fs::read_to_string(&self.log).unwrap_or_default();
            if said[said_before..].contains("mounted, carried by") {
                return Ok(());
            }
            let ended = server.try_wait().map_err(|e| e.to_string())?;
            if ended.is_some() || Instant::now() > end {
                return Err(format!("overfall: {ended:?}: {}", said.trim()));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for the end that an unmount brings.
    pub(super) fn wait(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.wait().expect("the watched server");
        }
    }

    /// All that the server has logged.
    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}
