//! `overfall list`.

use std::collections::BTreeMap;
use std::process::ExitCode;

use indicatif::HumanBytes;
use serde::Serialize;

use crate::backend::{self, Listed, Place};
use crate::{Error, Result};

/// List your overlays: where, who carries them, since when, how much they were asked for
///
/// Root sees those of all users. The views of `overfall run` are there, too: their place is a process
/// in whose mount namespace they are. Of the kernel's overlays only those that overfall mounted are
/// listed; nobody counts their requests.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print everything there is to know as JSON
    #[arg(long)]
    json: bool,
}

/// An overlay. The names of its fields are part of the interface.
#[derive(Debug, Serialize)]
struct Row {
    target: String,
    backend: String,
    /// `here`, `elsewhere`, `hidden` or `dead`.
    place: &'static str,
    /// A process in the mount namespace that it is in, if that isn't ours.
    holder: Option<u32>,
    user: Option<u32>,
    pid: Option<u32>,
    age_seconds: Option<u64>,
    memory_bytes: Option<u64>,
    requests: Option<u64>,
    requests_by_kind: Option<BTreeMap<String, u64>>,
    lower: Vec<String>,
    upper: Option<String>,
    work: Option<String>,
}

impl From<Listed> for Row {
    fn from(listed: Listed) -> Self {
        let (place, holder) = match listed.place {
            Place::Here => ("here", None),
            Place::Elsewhere(process) => ("elsewhere", Some(process)),
            Place::Hidden => ("hidden", None),
            Place::Dead => ("dead", None),
        };
        Self {
            target: listed.target.display().to_string(),
            backend: listed.backend.to_string(),
            place,
            holder,
            user: listed.user,
            pid: listed.pid,
            age_seconds: listed.age,
            memory_bytes: listed.memory,
            requests: listed.requests.as_ref().map(|kinds| kinds.values().sum()),
            requests_by_kind: listed.requests,
            lower: listed.lower,
            upper: listed.upper,
            work: listed.work,
        }
    }
}

pub(super) fn run(args: Args) -> Result<ExitCode> {
    let rows: Vec<Row> = backend::list()?.into_iter().map(Row::from).collect();
    let text = if args.json {
        serde_json::to_string_pretty(&rows)
            .map_err(|error| Error::system("writing the list").because(error.to_string()))?
            + "\n"
    } else {
        table(&rows)
    };
    super::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

const HEAD: [&str; 9] = [
    "TARGET", "BACKEND", "PLACE", "USER", "PID", "AGE", "REQUESTS", "MEMORY", "LAYERS",
];

/// Columns, with a head if there is anything below it.
fn table(rows: &[Row]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let mut lines = vec![HEAD.map(str::to_owned)];
    lines.extend(rows.iter().map(cells));
    let width = |column: usize| {
        let widths = lines.iter().map(|line| line[column].chars().count());
        widths.max().unwrap_or_default()
    };
    let widths: [usize; HEAD.len()] = std::array::from_fn(width);
    lines.iter().map(|line| joined(line, &widths)).collect()
}

fn joined(line: &[String], widths: &[usize]) -> String {
    let columns: Vec<String> = line
        .iter()
        .zip(widths)
        .map(|(cell, width)| format!("{cell:width$}"))
        .collect();
    columns.join("  ").trim_end().to_owned() + "\n"
}

fn cells(row: &Row) -> [String; HEAD.len()] {
    let number = |number: Option<u64>| number.map_or("-".to_owned(), |number| number.to_string());
    let id = |id: Option<u32>| number(id.map(u64::from));
    let place = match row.holder {
        Some(process) => format!("of {process}"),
        None => row.place.to_owned(),
    };
    [
        plain(&row.target),
        row.backend.clone(),
        place,
        id(row.user),
        id(row.pid),
        row.age_seconds.map_or("-".to_owned(), age),
        number(row.requests),
        row.memory_bytes
            .map_or("-".to_owned(), |bytes| HumanBytes(bytes).to_string()),
        plain(&layers(row)),
    ]
}

/// As many lower layers as fit into a line; `--json` has them all.
fn layers(row: &Row) -> String {
    const MOST: usize = 3;
    let mut out = row
        .upper
        .as_ref()
        .map_or(String::new(), |upper| format!("{upper} over "));
    let shown: Vec<&str> = row.lower.iter().take(MOST).map(String::as_str).collect();
    out += &shown.join(", ");
    match row.lower.len().checked_sub(MOST) {
        None | Some(0) => out,
        Some(more) => format!("{out} and {more} more"),
    }
}

/// Control characters as escapes: a name must not speak to the terminal.
fn plain(name: &str) -> String {
    name.chars()
        .map(|letter| match letter.is_control() {
            true => letter.escape_default().to_string(),
            false => letter.to_string(),
        })
        .collect()
}

/// `42s`, `7m05s`, `3h20m`, `9d04h`.
fn age(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{:02}s", seconds % 60),
        (0, _, _) => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{days}d{:02}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages() {
        for (seconds, text) in [
            (0, "0s"),
            (59, "59s"),
            (65, "1m05s"),
            (3600, "1h00m"),
            (90_000, "1d01h"),
        ] {
            assert_eq!(age(seconds), text);
        }
    }

    #[test]
    fn a_name_does_not_break_the_table() {
        assert_eq!(plain("a\nb\u{1b}[1m"), "a\\nb\\u{1b}[1m");
    }
}
