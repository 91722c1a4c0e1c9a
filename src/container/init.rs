//! Process 1 of the command's pid namespace: makes the root, starts the command, reaps, and ends
//! with the command. The kernel then kills whatever else is left in there.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill, killpg};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpid, setpgid, tcsetpgrp};

use super::channel::{News, Order, receive, send};
use super::command::Command;
use super::root::Root;
use super::wait::Terminal;
use crate::say::say;
use crate::sys::{from_nix, process};
use crate::{Error, Result};

/// Everything that init needs to know.
#[derive(Debug)]
pub(super) struct Init {
    pub(super) root: Root,
    pub(super) command: Command,
    /// Where the user was.
    pub(super) directory: Option<PathBuf>,
    /// The signal mask that the command gets.
    pub(super) mask: SigSet,
    pub(super) terminal: Terminal,
}

/// The exit code of init itself; only `channel` says how the command ended.
const DONE: u8 = 0;

impl Init {
    /// Does it all. Signals that the runner handles are blocked when this starts, and stay so:
    /// the terminal sends them to the whole process group.
    pub(super) fn run(self, channel: &UnixStream) -> u8 {
        // Should the runner be killed while init is still busy with the root.
        let _ =
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
        match self.serve(channel) {
            Ok(news) => send(channel, news),
            Err(error) => {
                say(error);
                send(channel, News::Failed);
            }
        }
        DONE
    }

    fn serve(mut self, channel: &UnixStream) -> Result<News> {
        self.root.enter()?;
        self.command.enter_directory(self.directory.take())?;
        let mut children = SigSet::empty();
        children.add(Signal::SIGCHLD);
        let signals = children
            .thread_block()
            .and_then(|()| SignalFd::with_flags(&children, SfdFlags::SFD_CLOEXEC))
            .map_err(|errno| failed("waiting for signals", errno))?;
        let terminal = self.terminal;
        let (wearer, helper) = self.command.disguise()?.unzip();
        let command = process::fork(move || {
            if terminal == Terminal::OfCommand {
                // Both may fail when the terminal is going away; the command will notice.
                let _ = setpgid(Pid::from_raw(0), Pid::from_raw(0));
                let _ = tcsetpgrp(std::io::stdin(), getpid());
            }
            let (error, code) = self.command.become_it(&self.mask, wearer);
            // It is as the command would have had it, and stderr's reader may have gone away.
            let mut broken_pipe = SigSet::empty();
            broken_pipe.add(Signal::SIGPIPE);
            let _ = broken_pipe.thread_block();
            say(error);
            code
        })
        .map_err(|errno| Error::system("starting the command").errno(errno))?;
        if let Some(helper) = helper {
            helper.help(command)?;
        }
        let watched = Watched { command, terminal };
        watched.wait(channel, &signals)
    }
}

fn failed(step: &str, errno: Errno) -> Error {
    Error::system(step).errno(from_nix(errno))
}

/// The running command.
#[derive(Debug, Clone, Copy)]
struct Watched {
    command: Pid,
    terminal: Terminal,
}

impl Watched {
    fn wait(self, channel: &UnixStream, signals: &SignalFd) -> Result<News> {
        loop {
            let mut ready = [
                PollFd::new(channel.as_fd(), PollFlags::POLLIN),
                PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut ready, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(failed("waiting for the command", errno)),
            }
            let [asked, died] = ready.map(|fd| fd.any().unwrap_or(false));
            if died {
                // One signal may stand for several children.
                let _ = signals.read_signal();
                if let Some(end) = self.reap(channel) {
                    return Ok(end);
                }
            }
            if asked {
                match receive(channel) {
                    Some(order) => self.obey(order),
                    // The runner was killed; so is everything in here when init ends.
                    None => return Ok(News::Failed),
                }
            }
        }
    }

    fn reap(self, channel: &UnixStream) -> Option<News> {
        let flags = WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED;
        loop {
            match waitpid(None, Some(flags)) {
                Ok(WaitStatus::Exited(pid, code)) if pid == self.command => {
                    return Some(News::Exited(u8::try_from(code & 0xff).unwrap_or(1)));
                }
                Ok(WaitStatus::Signaled(pid, signal, _)) if pid == self.command => {
                    return Some(News::Killed(number(signal)));
                }
                Ok(WaitStatus::Stopped(pid, _)) if pid == self.command => {
                    send(channel, News::Stopped);
                }
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return None,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return None,
            }
        }
    }

    fn obey(self, order: Order) {
        // A command that has just ended is reaped in the next round.
        let _ = match order {
            Order::Signal(number) => match Signal::try_from(i32::from(number)) {
                Ok(signal) => kill(self.command, signal),
                Err(errno) => Err(errno),
            },
            Order::Foreground => {
                if self.terminal == Terminal::OfCommand {
                    let _ = tcsetpgrp(std::io::stdin(), self.command);
                }
                self.proceed()
            }
            Order::Background => self.proceed(),
        };
    }

    fn proceed(self) -> nix::Result<()> {
        match self.terminal {
            Terminal::OfCommand => killpg(self.command, Signal::SIGCONT),
            Terminal::Shared => kill(self.command, Signal::SIGCONT),
        }
    }
}

fn number(signal: Signal) -> u8 {
    // Signal numbers end at 64.
    u8::try_from(signal as i32).unwrap_or(0)
}
