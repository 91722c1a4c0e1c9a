//! The runner while the command runs: signals, job control, the end.
//!
//! The command is in the foreground process group of the terminal, so Ctrl-C and Ctrl-\ reach it
//! directly, and the runner ignores its own copy. Signals that somebody sends to the runner alone
//! are handed on. When the command stops, the runner stops too: the shell that started it then
//! takes the terminal back, and `fg` and `bg` work.

use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, getpgrp, getpid, tcgetpgrp, tcsetpgrp};

use super::channel::{News, Order, receive, send};
use super::run::Ended;
use crate::sys::{from_nix, process};
use crate::{Error, Result};

/// Which process group has the terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Terminal {
    /// The command stays in the runner's process group, with whatever else is in it (the other
    /// commands of a pipeline).
    Shared,
    /// The command has a group of its own, in the foreground. A process can't see a group that
    /// was made outside of its pid namespace, and shells stumble over that when they want to
    /// give the terminal back to it.
    OfCommand,
}

impl Terminal {
    /// The command gets a group of its own when the runner is alone on the terminal: it leads
    /// the foreground group, and no stream goes to another command.
    pub(super) fn of_self() -> Self {
        let leads = getpgrp() == getpid();
        let on_terminal = std::io::stdin().is_terminal()
            && std::io::stdout().is_terminal()
            && std::io::stderr().is_terminal();
        if leads && on_terminal && in_foreground() {
            Terminal::OfCommand
        } else {
            Terminal::Shared
        }
    }
}

/// Whether the command has been given the terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lent {
    Yes,
    No,
}

impl Lent {
    /// Makes the runner's group the foreground again, unless somebody else has the terminal by
    /// now: a command that the user sent to the background stops there when it reads.
    fn take_back(&mut self) {
        if *self == Lent::Yes {
            // Without a terminal there is nothing to take back.
            let _ = tcsetpgrp(std::io::stdin(), getpgrp());
            *self = Lent::No;
        }
    }
}

fn in_foreground() -> bool {
    tcgetpgrp(std::io::stdin()) == Ok(getpgrp())
}

/// The signals that a runner handles; blocked from before init is started until the end.
#[derive(Debug)]
pub(super) struct Signals {
    fd: SignalFd,
    before: SigSet,
}

/// `si_code` of a signal that the kernel sent, as it does for a key on the terminal.
const SI_KERNEL: i32 = 0x80;

impl Signals {
    pub(super) fn block() -> Result<Self> {
        let mut handled = SigSet::empty();
        for signal in [
            Signal::SIGHUP,
            Signal::SIGINT,
            Signal::SIGQUIT,
            Signal::SIGTERM,
            Signal::SIGUSR1,
            Signal::SIGUSR2,
            Signal::SIGTSTP,
            Signal::SIGTTIN,
            Signal::SIGTTOU,
            Signal::SIGCONT,
        ] {
            handled.add(signal);
        }
        let before = SigSet::thread_get_mask().map_err(failed)?;
        let mut blocked = handled;
        // Nobody reads stderr any more: no reason to leave the command alone.
        blocked.add(Signal::SIGPIPE);
        blocked.thread_block().map_err(failed)?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let fd = SignalFd::with_flags(&handled, flags).map_err(failed)?;
        Ok(Self { fd, before })
    }

    /// The mask from before, which the command gets.
    pub(super) fn mask_before(&self) -> SigSet {
        self.before
    }

    fn hand_on(&self, channel: &UnixStream, terminal: Terminal, lent: &mut Lent) {
        while let Ok(Some(info)) = self.fd.read_signal() {
            let number = u8::try_from(info.ssi_signo).unwrap_or(0);
            match Signal::try_from(i32::from(number)) {
                Ok(Signal::SIGCONT) if in_foreground() => {
                    if terminal == Terminal::OfCommand {
                        *lent = Lent::Yes;
                    }
                    send(channel, Order::Foreground);
                }
                Ok(Signal::SIGCONT) => send(channel, Order::Background),
                // A hangup goes to the leader of the session only, which may be the runner.
                Ok(Signal::SIGHUP) => send(channel, Order::Signal(number)),
                // Of a key on the terminal, the command has got its own.
                Ok(_) if info.ssi_code != SI_KERNEL => send(channel, Order::Signal(number)),
                _ => {}
            }
        }
    }
}

fn failed(errno: Errno) -> Error {
    Error::system("waiting for the command").errno(from_nix(errno))
}

/// Waits until the command, and with it everything in its pid namespace, has ended.
pub(super) fn until_end(
    init: Pid,
    channel: &UnixStream,
    signals: &Signals,
    terminal: Terminal,
) -> Result<Ended> {
    let mut lent = match terminal {
        Terminal::OfCommand => Lent::Yes,
        Terminal::Shared => Lent::No,
    };
    let ended = loop {
        let mut ready = [
            PollFd::new(channel.as_fd(), PollFlags::POLLIN),
            PollFd::new(signals.fd.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut ready, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(failed(errno)),
        }
        let [told, signalled] = ready.map(|fd| fd.any().unwrap_or(false));
        if signalled {
            signals.hand_on(channel, terminal, &mut lent);
        }
        if !told {
            continue;
        }
        match receive(channel) {
            Some(News::Stopped) => {
                lent.take_back();
                // SIGSTOP, because the others are blocked. Goes on with SIGCONT, which is then
                // handed on.
                raise(Signal::SIGSTOP).map_err(failed)?;
            }
            Some(News::Exited(code)) => break Ended::Exited(code),
            Some(News::Killed(number)) => break killed(i32::from(number)),
            Some(News::Failed) => break Ended::NotStarted,
            // Somebody killed init.
            None => break Ended::Killed(Signal::SIGKILL),
        }
    };
    lent.take_back();
    loop {
        match waitpid(init, None) {
            Err(Errno::EINTR) | Ok(WaitStatus::StillAlive) => {}
            Ok(_) | Err(Errno::ECHILD) => return Ok(ended),
            Err(errno) => return Err(failed(errno)),
        }
    }
}

fn killed(number: i32) -> Ended {
    match Signal::try_from(number) {
        Ok(signal) => Ended::Killed(signal),
        // A real-time signal, which has no name here.
        Err(_) => Ended::Exited(u8::try_from(128 + number).unwrap_or(u8::MAX)),
    }
}

/// Ends the process by `signal`, as the command was: shells tell the two apart. Returns the exit
/// code that stands for it if the process is still there.
pub fn die_of(signal: Signal) -> u8 {
    // The command has left a core dump if it was to; one of ours would be in its way.
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    let _ = process::default_action(signal);
    let mut only = SigSet::empty();
    only.add(signal);
    let _ = raise(signal);
    let _ = only.thread_unblock();
    u8::try_from(128 + signal as i32).unwrap_or(u8::MAX)
}
