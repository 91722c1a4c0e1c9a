//! The log: one line for each message, on stderr.

use std::fmt::Write as _;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

use env_logger::{Builder, Env};
use log::LevelFilter;

use crate::server::REQUESTS;

/// The variable that says what is logged, in env_logger's words.
const VARIABLE: &str = "OVERFALL_LOG";

/// Whether lines begin with the time: those in a file do.
static DATED: AtomicBool = AtomicBool::new(false);

/// Starts logging up to `level`, unless the environment says otherwise or there is a logger.
pub(crate) fn start(level: LevelFilter) {
    let chosen = Env::new().filter_or(VARIABLE, level.as_str());
    let wanted = Builder::from_env(chosen).build().filter();
    let chosen = Env::new().filter_or(VARIABLE, "trace");
    let mut builder = Builder::from_env(chosen);
    if level < LevelFilter::Trace && std::env::var_os(VARIABLE).is_none() {
        // It would tell of each request once more, by numbers.
        builder.filter_module("fuser", LevelFilter::Info);
    }
    let started = builder
        // What of it comes through is decided by the level alone: a server raises that.
        .filter_module(REQUESTS, LevelFilter::Trace)
        .format(|out, record| {
            if DATED.load(Ordering::Relaxed) {
                let now = out.timestamp_millis();
                write!(out, "{now} {} ", std::process::id())?;
            }
            let level = record.level().as_str().to_ascii_lowercase();
            let line = one_line(&record.args().to_string());
            writeln!(out, "overfall: {level}: {line}")
        })
        .try_init();
    if started.is_ok() {
        log::set_max_level(wanted);
    }
}

/// Logs at least up to `level` from now on, and says when what happened if stderr is a file.
pub(crate) fn raise(level: LevelFilter) {
    if log::max_level() == LevelFilter::Off {
        start(level);
    }
    log::set_max_level(log::max_level().max(level));
}

/// Begins each line with the time and the process.
pub(crate) fn with_dates() {
    DATED.store(true, Ordering::Relaxed);
}

/// A name with a line break in it, or with a terminal's commands, must not break the log.
fn one_line(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        if letter.is_control() {
            // Writing to a string never fails.
            let _never = write!(out, "{}", letter.escape_default());
        } else {
            out.push(letter);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_does_not_break_the_log() {
        assert_eq!(one_line("a\nb\u{1b}[1mü"), "a\\nb\\u{1b}[1mü");
    }
}
