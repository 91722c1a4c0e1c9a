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
    lead: Option<f64>,
    is_workload: bool,
    rounds: usize,
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
    pub(crate) fn new(case: &Case, rounds: usize) -> Self {
        Self {
            name: case.name.to_owned(),
            target: case.target,
            lead: case.lead,
            is_workload: case.is_workload(),
            rounds,
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

    /// Whether overfall did what it was asked for, and what can be had without it.
    pub(crate) fn is_good(&self) -> bool {
        !self.has_failed(Carrier::Overfall) || self.has_failed(Carrier::Plain)
    }

    fn seconds(&self, carrier: Carrier, round: usize) -> Option<f64> {
        let of = |sample: &&Sample| sample.carrier == carrier && sample.round == round;
        self.samples.iter().find(of).map(|sample| sample.seconds)
    }

    /// To the kernel's overlay; of overfall in another form, to overfall.
    fn ratio(&self, carrier: Carrier) -> Option<Ratio> {
        match carrier {
            Carrier::Other => self.ratio_between(carrier, Carrier::Overfall),
            _ => self.ratio_between(carrier, Carrier::Kernel),
        }
    }

    fn ratio_between(&self, carrier: Carrier, base: Carrier) -> Option<Ratio> {
        let mut ratios: Vec<f64> = (0..self.rounds)
            .filter_map(|round| Some(self.seconds(carrier, round)? / self.seconds(base, round)?))
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
        let of = |sample: &&Sample| sample.carrier == carrier;
        match self.ratio(carrier) {
            None => "-".to_owned(),
            Some(ratio) if self.rounds > 1 && self.samples.iter().filter(of).count() == 1 => {
                format!("{:.2} (once)", ratio.median)
            }
            Some(ratio) => ratio.to_string(),
        }
    }

    /// How many times as long as overfall fuse-overlayfs 2 takes, and as it should take.
    fn lead(&self) -> String {
        let Some(ratio) = self.ratio_between(Carrier::Fuse2, Carrier::Overfall) else {
            return "-".to_owned();
        };
        let median = ratio.median;
        match self.lead {
            Some(least) if median < least => format!("{median:.2} of {least} !"),
            Some(least) => format!("{median:.2} of {least}"),
            None => format!("{median:.2}"),
        }
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
            "{:28} overfall {:20} otherwise {:20} plain {:20} fuse-overlayfs 2 {:20} 1 {:20} lead {} [{}]",
            self.name,
            self.cell(Carrier::Overfall),
            self.cell(Carrier::Other),
            self.cell(Carrier::Plain),
            self.cell(Carrier::Fuse2),
            self.cell(Carrier::Fuse1),
            self.lead(),
            self.requests(),
        )
    }
}

/// All that was found in one place.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Findings {
    pub(crate) rows: Vec<Row>,
    /// Cases that can't run here, and why.
    pub(crate) skipped: Vec<(String, String)>,
    /// The releases of fuse-overlayfs.
    versions: Vec<String>,
}

impl Findings {
    pub(crate) fn new(versions: Vec<String>) -> Self {
        Self {
            rows: Vec::new(),
            skipped: Vec::new(),
            versions,
        }
    }

    /// The columns beside overfall's.
    fn others(&self) -> Vec<Carrier> {
        let mut all = vec![Carrier::Plain, Carrier::Fuse2, Carrier::Fuse1];
        let other = |sample: &Sample| sample.carrier == Carrier::Other;
        if self.rows.iter().any(|row| row.samples.iter().any(other)) {
            all.insert(0, Carrier::Other);
        }
        all
    }

    /// The table.
    pub(crate) fn render(&self, place: Place) -> String {
        let others = self.others();
        let names: Vec<_> = others.iter().map(|carrier| carrier.name()).collect();
        let mut text = format!(
            "\n### {}\n\nTimes relative to the kernel's overlay: median (least-most). `!` marks \
             what is over its target. \"Lead\" is how many times as long as overfall fuse-overlayfs 2 \
             takes, of how many it should. {}\n\n\
             | case | target | overfall | {} | lead | requests to overfall |\n|---|---|---|{}---|---|\n",
            capitalised(place.name()),
            match self.versions.is_empty() {
                true => "No fuse-overlayfs is installed.".to_owned(),
                false => format!("fuse-overlayfs is {}.", self.versions.join(" and ")),
            },
            names.join(" | "),
            "---|".repeat(others.len()),
        );
        for row in &self.rows {
            let over = row
                .ratio(Carrier::Overfall)
                .is_some_and(|ratio| ratio.median > row.target);
            let cells: Vec<_> = others.iter().map(|carrier| row.cell(*carrier)).collect();
            let _ = writeln!(
                text,
                "| {} | {} | {}{} | {} | {} | {} |",
                row.name,
                row.target,
                row.cell(Carrier::Overfall),
                if over { " !" } else { "" },
                cells.join(" | "),
                row.lead(),
                row.requests(),
            );
        }
        self.conclude(&mut text);
        text
    }

    /// What belongs below the table.
    fn conclude(&self, text: &mut String) {
        let workloads = || self.rows.iter().filter(|row| row.is_workload);
        let mean = |ratios: Vec<f64>| {
            let logarithms: f64 = ratios.iter().map(|ratio| ratio.ln()).sum();
            (logarithms / ratios.len() as f64).exp()
        };
        let ours: Vec<f64> = workloads()
            .filter_map(|row| Some(row.ratio(Carrier::Overfall)?.median))
            .collect();
        if !ours.is_empty() {
            let _ = write!(
                text,
                "\nPrograms, geometric mean: {:.2} (target 1.25)",
                mean(ours)
            );
            let leads: Vec<f64> = workloads()
                .filter_map(|row| {
                    let lead = row.ratio_between(Carrier::Fuse2, Carrier::Overfall)?;
                    Some(lead.median)
                })
                .collect();
            if !leads.is_empty() {
                let _ = write!(text, ", lead {:.2}", mean(leads));
            }
            text.push_str(".\n");
        }
        for (name, why) in &self.skipped {
            let _ = writeln!(text, "\nSkipped: {name}, {why}.");
        }
    }
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
