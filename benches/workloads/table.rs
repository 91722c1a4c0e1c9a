//! What was measured, as ratios to the kernel's overlay.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::Outcome;
use crate::bed::Carrier;
use crate::cases::Case;
use crate::place::Place;

/// The time of one run.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Sample {
    carrier: Carrier,
    round: usize,
    seconds: f64,
}

impl Sample {
    pub(crate) fn new(carrier: Carrier, round: usize, time: Duration) -> Self {
        Self {
            carrier,
            round,
            seconds: time.as_secs_f64(),
        }
    }
}

/// All that is known about one case.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Row {
    name: String,
    target: f64,
    is_workload: bool,
    samples: Vec<Sample>,
    failures: Vec<(Carrier, String)>,
    /// What our server served in one run.
    requests: Vec<(String, u64)>,
}

/// Ratios to the kernel's overlay, each within one round.
#[derive(Debug, Clone, Copy)]
struct Ratio {
    median: f64,
    least: f64,
    most: f64,
}

impl std::fmt::Display for Ratio {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.2} ({:.2}-{:.2})", self.median, self.least, self.most)
    }
}

impl Row {
    pub(crate) fn new(case: &Case) -> Self {
        Self {
            name: case.name.to_owned(),
            target: case.target,
            is_workload: case.is_workload(),
            samples: Vec::new(),
            failures: Vec::new(),
            requests: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, sample: Sample, requests: Vec<(String, u64)>) {
        if sample.carrier == Carrier::Overfall {
            self.requests = requests;
        }
        self.samples.push(sample);
    }

    pub(crate) fn fail(&mut self, carrier: Carrier, why: String) {
        self.failures.push((carrier, why));
    }

    pub(crate) fn has_failed(&self, carrier: Carrier) -> bool {
        self.failures.iter().any(|(failed, _)| *failed == carrier)
    }

    /// Whether overfall did what it was asked for.
    pub(crate) fn is_good(&self) -> bool {
        !self.has_failed(Carrier::Overfall)
    }

    fn seconds(&self, carrier: Carrier, round: usize) -> Option<f64> {
        let of = |sample: &&Sample| sample.carrier == carrier && sample.round == round;
        self.samples.iter().find(of).map(|sample| sample.seconds)
    }

    fn ratio(&self, carrier: Carrier) -> Option<Ratio> {
        let rounds = self.samples.iter().map(|sample| sample.round).max()? + 1;
        let mut ratios: Vec<f64> = (0..rounds)
            .filter_map(|round| {
                let kernel = self.seconds(Carrier::Kernel, round)?;
                Some(self.seconds(carrier, round)? / kernel)
            })
            .collect();
        ratios.sort_by(f64::total_cmp);
        let (least, most) = (*ratios.first()?, *ratios.last()?);
        let middle = ratios.len() / 2;
        let median = if ratios.len() % 2 == 1 {
            ratios[middle]
        } else {
            (ratios[middle - 1] + ratios[middle]) / 2.0
        };
        Some(Ratio {
            median,
            least,
            most,
        })
    }

    fn cell(&self, carrier: Carrier) -> String {
        if self.has_failed(carrier) {
            return "failed".to_owned();
        }
        self.ratio(carrier)
            .map_or_else(|| "-".to_owned(), |ratio| ratio.to_string())
    }

    /// The requests that count, the most frequent first.
    fn requests(&self) -> String {
        let mut all: Vec<_> = self.requests.iter().collect();
        all.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let most = all.first().map_or(0, |(_, count)| *count);
        let mut text = String::new();
        for (op, count) in all.iter().take(6) {
            // Single requests beside thousands say nothing.
            if op == "FORGET" || *count * 200 < most {
                continue;
            }
            let separator = if text.is_empty() { "" } else { ", " };
            let _ = write!(text, "{separator}{op} {count}");
        }
        text
    }

    /// One line while the run goes on.
    pub(crate) fn brief(&self) -> String {
        format!(
            "{:28} overfall {:20} plain {:20} fuse-overlayfs {:20} [{}]",
            self.name,
            self.cell(Carrier::Overfall),
            self.cell(Carrier::Plain),
            self.cell(Carrier::FuseOverlayfs),
            self.requests(),
        )
    }
}

/// The table of one place.
pub(crate) fn render(place: Place, rows: &[Row]) -> String {
    let mut text = format!(
        "\n### {}\n\nTimes relative to the kernel's overlay: median (least-most). `!` marks what \
         is over its target.\n\n\
         | case | target | overfall | plain directory | fuse-overlayfs | requests to overfall |\n\
         |---|---|---|---|---|---|\n",
        capitalised(place.name()),
    );
    for row in rows {
        let over = row
            .ratio(Carrier::Overfall)
            .is_some_and(|ratio| ratio.median > row.target);
        let _ = writeln!(
            text,
            "| {} | {} | {}{} | {} | {} | {} |",
            row.name,
            row.target,
            row.cell(Carrier::Overfall),
            if over { " !" } else { "" },
            row.cell(Carrier::Plain),
            row.cell(Carrier::FuseOverlayfs),
            row.requests(),
        );
    }
    let workloads: Vec<f64> = rows
        .iter()
        .filter(|row| row.is_workload)
        .filter_map(|row| Some(row.ratio(Carrier::Overfall)?.median.ln()))
        .collect();
    if !workloads.is_empty() {
        let mean = (workloads.iter().sum::<f64>() / workloads.len() as f64).exp();
        let _ = writeln!(text, "\nPrograms, geometric mean: {mean:.2} (target 1.25).");
    }
    text
}

fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| {
        first.to_uppercase().chain(chars).collect()
    })
}

/// Appends the tables, with their date and what they were measured on, to docs/benchmarks.md.
pub(crate) fn record(quick: bool, base: &Path, tables: &str) -> Outcome<()> {
    let said = |program: &str, args: &[&str]| -> Outcome<String> {
        let output = Command::new(program).args(args).output()?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let date = said("date", &["--utc", "+%Y-%m-%d"])?;
    let release = said("uname", &["-r"])?;
    // What a distributor adds may name the machine.
    let kernel = release.split('-').next().unwrap_or_default();
    let cores = std::thread::available_parallelism()?;
    let file_system = said(
        "stat",
        &["--file-system", "--format=%T", &base.to_string_lossy()],
    )?;
    let size = if quick { "quick" } else { "full" };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/benchmarks.md");
    let mut text = fs::read_to_string(&path).unwrap_or_default();
    let _ = write!(
        text,
        "\n## {date}, {size} run\n\nLinux {kernel}, {cores} cores, layers on {file_system}.\n{tables}"
    );
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(&path, text)?;
    Ok(())
}
