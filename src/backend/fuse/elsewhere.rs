//! Other mount namespaces that hold a copy of a mount: whoever makes a namespace copies every mount
//! there is, and our server has to serve until the last copy has gone.

use std::path::Path;
use std::time::{Duration, Instant};

use super::handover::Device;
use super::identity;
use crate::backend::tables::{self, Table};
use crate::{Error, Result};

/// How long a server may take to end before we ask what keeps it.
const SOON: Duration = Duration::from_secs(1);

/// Waits for a server to end. `gone` waits for at most the time that it is given.
pub(super) fn wait(
    pid: u32,
    device: Device,
    target: &Path,
    patience: Duration,
    gone: impl Fn(Duration) -> bool,
) -> Result<()> {
    let start = Instant::now();
    let mut before = None;
    let mut was_stopped = false;
    while !gone(SOON) {
        let stopped = identity::is_stopped(pid);
        if stopped && was_stopped {
            return Err(complaint(target)
                .because(format!(
                    "it is unmounted, but its server (process {pid}) is stopped and doesn't answer"
                ))
                .remedy(format!("`kill -CONT {pid}` lets it end")));
        }
        was_stopped = stopped;
        let now = device.and_then(holder);
        // One that holds it only for now, as another server that is starting does, has gone the
        // second time.
        let stays = now.filter(|_| now == before);
        before = now;
        if let Some(holder) = stays {
            return Err(complaint(target)
                .because(format!(
                    "it is unmounted here, but process {holder} has it in a mount namespace of \
                     its own, so its server (process {pid}) goes on"
                ))
                .remedy("the server ends with that namespace"));
        }
        if start.elapsed() > patience {
            return Err(complaint(target)
                .because(format!(
                    "it is unmounted, but its server (process {pid}) doesn't end"
                ))
                .remedy("perhaps a layer's file system hangs; ask `dmesg`"));
        }
    }
    Ok(())
}

fn complaint(target: &Path) -> Error {
    Error::system("waiting for the server to end").at(target)
}

/// A process in whose mount namespace the device is mounted.
fn holder(device: (u32, u32)) -> Option<u32> {
    let has_it = |table: &Table| table.mounts.iter().any(|mount| mount.device == device);
    tables::all()
        .iter()
        .find(|table| has_it(table))
        .map(|table| table.holder)
}
