//! Options that change how the FUSE server and the kernel share the work, and nothing that a
//! program could see in the tree: for finding out what a delay or a stale name comes from.
//!
//! The kernel's overlay has no use for any of them. They are accepted and passed over there, so
//! that one line of fstab fits both. `docs/tuning.md` says of each what it does and risks.

use std::num::NonZeroU8;
use std::time::Duration;

use super::Switch;
use super::words::Word;

/// What the kernel may remember and what it need not ask. `None` leaves a thing to the server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tuning {
    /// `timeout=`: for how long names, absent names and attributes are remembered.
    pub timeout: Timeout,
    /// `writeback=`: the kernel collects writes and sends them later.
    pub writeback: Option<Switch>,
    /// `no_open=`: the kernel opens files without asking.
    pub no_open: Option<Switch>,
    /// `no_opendir=`: the kernel opens directories without asking.
    pub no_opendir: Option<Switch>,
    /// `no_flush=`: the kernel closes files without asking.
    pub no_flush: Option<Switch>,
    /// `cache_dirs=`: the kernel keeps directory listings.
    pub cache_dirs: Option<Switch>,
    /// `cache_symlinks=`: the kernel keeps the targets of symbolic links.
    pub cache_symlinks: Option<Switch>,
    /// `readdirplus=`: whether a listing brings the attributes along.
    pub readdirplus: Option<Readdirplus>,
    /// `killpriv=`: the server, not the kernel, takes set-user-id bits off what is written.
    pub killpriv: Option<Switch>,
    /// `passthrough=`: the kernel reads and writes the real files by itself.
    pub passthrough: Option<Switch>,
    /// `threads=`: requests that are served at the same time.
    pub threads: Option<Threads>,
}

/// `timeout=`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Timeout {
    /// As long as there is memory: nobody but the server changes the tree.
    #[default]
    Never,
    /// This many seconds: somebody else may change the layers.
    Seconds(u32),
}

impl Timeout {
    /// The time; `None` when there is no end to it.
    pub fn duration(self) -> Option<Duration> {
        match self {
            Timeout::Never => None,
            Timeout::Seconds(seconds) => Some(Duration::from_secs(seconds.into())),
        }
    }
}

/// `readdirplus=`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readdirplus {
    /// Where somebody seems to want them.
    Auto,
    /// Always.
    Always,
    /// Never.
    Off,
}

/// `threads=`: 1 to [`Threads::MOST`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Threads(NonZeroU8);

impl Threads {
    /// The most that can be asked for.
    pub const MOST: u8 = 64;

    /// `None` for 0 and for more than [`Threads::MOST`].
    pub fn new(count: u8) -> Option<Self> {
        NonZeroU8::new(count)
            .filter(|count| count.get() <= Self::MOST)
            .map(Self)
    }

    /// How many.
    pub fn get(self) -> usize {
        usize::from(self.0.get())
    }
}

impl Tuning {
    /// Takes an option: `None` when it isn't one of these, or why its value won't do.
    pub(super) fn take(&mut self, name: &str, value: &[u8]) -> Option<Result<(), String>> {
        if let Some(switch) = self.switch(name) {
            return Some(word(value).map(|word| *switch = Some(word)));
        }
        let taken = match name {
            "readdirplus" => word(value).map(|word| self.readdirplus = Some(word)),
            "timeout" => timeout(value).map(|timeout| self.timeout = timeout),
            "threads" => number(value)
                .and_then(Threads::new)
                .map(|threads| self.threads = Some(threads))
                .ok_or_else(|| format!("a number from 1 to {}", Threads::MOST)),
            _ => return None,
        };
        Some(taken)
    }

    /// Those that are on or off.
    fn switch(&mut self, name: &str) -> Option<&mut Option<Switch>> {
        Some(match name {
            "writeback" => &mut self.writeback,
            "no_open" => &mut self.no_open,
            "no_opendir" => &mut self.no_opendir,
            "no_flush" => &mut self.no_flush,
            "cache_dirs" => &mut self.cache_dirs,
            "cache_symlinks" => &mut self.cache_symlinks,
            "killpriv" => &mut self.killpriv,
            "passthrough" => &mut self.passthrough,
            _ => return None,
        })
    }

    /// The options that were given, as they are written.
    pub(super) fn written(&self) -> Vec<String> {
        let switches = [
            ("writeback", self.writeback),
            ("no_open", self.no_open),
            ("no_opendir", self.no_opendir),
            ("no_flush", self.no_flush),
            ("cache_dirs", self.cache_dirs),
            ("cache_symlinks", self.cache_symlinks),
            ("killpriv", self.killpriv),
            ("passthrough", self.passthrough),
        ];
        let mut out: Vec<String> = switches
            .into_iter()
            .filter_map(|(name, switch)| Some(format!("{name}={}", switch?.word())))
            .collect();
        if let Timeout::Seconds(seconds) = self.timeout {
            out.push(format!("timeout={seconds}"));
        }
        if let Some(readdirplus) = self.readdirplus {
            out.push(format!("readdirplus={}", readdirplus.word()));
        }
        if let Some(threads) = self.threads {
            out.push(format!("threads={}", threads.get()));
        }
        out
    }

    /// Two of these that can't be had together.
    pub(super) fn conflict(&self) -> Option<(&'static str, &'static str)> {
        let on = Some(Switch::On);
        if self.passthrough == on && self.no_open == on {
            return Some(("passthrough=on", "no_open=on"));
        }
        if self.passthrough == on && self.writeback == on {
            return Some(("passthrough=on", "writeback=on"));
        }
        (self.cache_dirs == Some(Switch::Off) && self.no_opendir == on)
            .then_some(("cache_dirs=off", "no_opendir=on"))
    }
}

/// One of a few words, or all of them.
pub(super) fn word<T: Word>(value: &[u8]) -> Result<T, String> {
    T::from_word(value).ok_or_else(|| {
        let words: Vec<_> = T::WORDS.iter().map(|(word, _)| *word).collect();
        format!("one of {}", words.join(", "))
    })
}

fn timeout(value: &[u8]) -> Result<Timeout, String> {
    if value == b"never" {
        return Ok(Timeout::Never);
    }
    let seconds = number(value).map(Timeout::Seconds);
    seconds.ok_or_else(|| format!("a whole number of seconds up to {}, or never", u32::MAX))
}

/// Digits alone: no sign, no space.
pub(super) fn number<T: std::str::FromStr>(value: &[u8]) -> Option<T> {
    let digits = value.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(value)
        .ok()
        .filter(|_| digits)?
        .parse()
        .ok()
}
