//! A run on a terminal. util-linux's script(1) makes one and passes its own input on to it.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::ways::{Way, finish, skip};

/// script(1), with a shell command line on its terminal; `$RUN` is `overfall run`.
fn on_terminal(way: &Way, line: &str) -> Command {
    if Command::new("script").arg("--version").output().is_err() {
        skip("script(1) of util-linux isn't installed");
    }
    let run = way.command(&[]);
    let words: Vec<_> = [run.get_program()]
        .into_iter()
        .chain(run.get_args())
        .map(|word| word.to_str().unwrap())
        .collect();
    let mut command = Command::new("script");
    command
        .args(["-q", "-e", "-c", line, "/dev/null"])
        .env("RUN", words.join(" "))
        .env("TMPDIR", way.scratch())
        .env("SHELL", "/bin/bash")
        .current_dir("/")
        .stdin(Stdio::null());
    command
}

pub(crate) fn the_summary_is_for_a_terminal(way: &Way) {
    let changes = "echo > /new; mkdir /dir; rm /etc/hostname; echo >> /etc/hosts";
    let ran = finish(&mut on_terminal(way, &format!("$RUN -- sh -c '{changes}'")));
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let last = ran.out.lines().last().unwrap().trim().to_owned();
    let wanted = "2 added, 1 changed, 1 removed";
    assert!(last.starts_with("overfall: ") && last.ends_with(wanted), "{ran:?}");
    let ran = finish(&mut on_terminal(way, "$RUN -- sh -c 'exit 6'"));
    assert_eq!(ran.code, Some(6), "{ran:?}");
    assert!(ran.out.trim().ends_with("; nothing changed"), "{ran:?}");
    // Not a terminal: not a word.
    assert_eq!(way.sh(changes).good(), "");
}

struct Session(Child);

impl Session {
    fn start(way: &Way, line: &str) -> Self {
        let mut command = on_terminal(way, line);
        Self(
            command
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap(),
        )
    }

    fn type_in(&mut self, keys: &str) {
        let stdin = self.0.stdin.as_mut().unwrap();
        stdin.write_all(keys.as_bytes()).unwrap();
        stdin.flush().unwrap();
    }

    /// Waits until `text` has been shown, and gives back what was shown before and with it.
    fn until(&mut self, text: &str) -> String {
        let stdout = self.0.stdout.as_mut().unwrap();
        let mut shown = Vec::new();
        let mut byte = [0];
        while !shown.ends_with(text.as_bytes()) {
            let read = stdout.read(&mut byte).unwrap();
            let so_far = String::from_utf8_lossy(&shown);
            assert_eq!(read, 1, "{text:?} never came: {so_far}");
            shown.extend(byte);
        }
        String::from_utf8_lossy(&shown).into_owned()
    }

    fn end(mut self) -> Option<i32> {
        drop(self.0.stdin.take());
        self.0.wait().unwrap().code()
    }
}

pub(crate) fn ctrl_c_ends_the_command(way: &Way) {
    // `sleep` dies of it; the shell with the trap decides for itself.
    let mut session = Session::start(way, "$RUN -- sh -c 'echo ready; exec sleep 1000'");
    session.until("ready");
    std::thread::sleep(Duration::from_millis(200));
    session.type_in("\x03");
    session.until("nothing changed");
    assert_eq!(session.end(), Some(130));

    let script = "trap \"echo caught; exit 4\" INT; echo ready; while :; do sleep 0.05; done";
    let mut session = Session::start(way, &format!("$RUN -- sh -c '{script}'"));
    session.until("ready");
    session.type_in("\x03");
    session.until("caught");
    assert_eq!(session.end(), Some(4));
}

pub(crate) fn ctrl_z_stops_and_fg_continues(way: &Way) {
    if !std::fs::exists("/bin/bash").unwrap() {
        skip("job control is tried with bash, which isn't installed");
    }
    let mut session = Session::start(way, "exec bash --norc --noediting -i");
    session.type_in("PS1=; stty -echo; echo be''gin\n");
    session.until("begin");
    session.type_in("$RUN -- cat\none\n");
    session.until("one");
    session.type_in("\x1a");
    session.until("Stopped");
    session.type_in("echo out''side; fg\ntwo\n");
    session.until("outside");
    session.until("two");
    // In the background it stops as soon as it reads, and leaves the terminal to the shell.
    session.type_in("\x1a");
    session.until("Stopped");
    session.type_in("bg; sleep 0.5; echo still the sh''ell; fg\nthree\n");
    session.until("still the shell");
    session.until("three");
    session.type_in("\x04");
    session.until("nothing changed");
    // A shell of its own inside has job control, and gives the terminal back without complaint.
    session.type_in("$RUN -- sh\necho in''side; exit 8\n");
    session.until("inside");
    let shown = session.until("nothing changed");
    assert!(!shown.contains("tty"), "{shown}");
    session.type_in("exit $?\n");
    assert_eq!(session.end(), Some(8));
}
