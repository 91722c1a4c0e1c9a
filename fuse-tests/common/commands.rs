//! Commands and servers that are waited for, as long as the including module's `PATIENCE`.

use std::fs;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use super::PATIENCE;
use super::said::Said;

/// Runs a command to its end, and to the end of what it writes: that comes later when somebody
/// else still holds its pipes.
pub(crate) fn run(command: Command) -> Said {
    finish(start(command))
}

/// Starts a command with nothing to read and with pipes for what it says.
pub(crate) fn start(mut command: Command) -> Child {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// The end of a command that was started with pipes.
pub(crate) fn finish(mut child: Child) -> Said {
    let command = fs::read(format!("/proc/{}/cmdline", child.id())).unwrap_or_default();
    let command = String::from_utf8_lossy(&command).replace('\0', " ");
    let out = reader(child.stdout.take());
    let err = reader(child.stderr.take());
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if start.elapsed() > PATIENCE {
            child.kill().unwrap();
            let said = err.try_recv().unwrap_or_default();
            panic!("{command} hangs: {:?}", String::from_utf8_lossy(&said));
        }
        thread::sleep(Duration::from_millis(5));
    };
    let all = |from: mpsc::Receiver<Vec<u8>>, name: &str| {
        from.recv_timeout(PATIENCE)
            .unwrap_or_else(|_| panic!("somebody holds the {name} of {command}"))
    };
    Said::new(status, &all(out, "stdout"), &all(err, "stderr"))
}

fn reader(pipe: Option<impl Read + Send + 'static>) -> mpsc::Receiver<Vec<u8>> {
    let (send, receive) = mpsc::channel();
    thread::spawn(move || {
        let mut text = Vec::new();
        if let Some(mut pipe) = pipe {
            pipe.read_to_end(&mut text).unwrap();
        }
        let _ = send.send(text);
    });
    receive
}

/// Waits for something to come true.
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "waited in vain until {what}");
        thread::sleep(Duration::from_millis(5));
    }
}
