//! `overfall check`.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;

use crate::format::Form;
use crate::options::Options;
use crate::probe::{
    self, Cause, FuseVerdict, IdsVerdict, Kernel, Outcome, Step, UpperVerdict, Verdict,
};
use crate::{Error, Result};

/// Tell whether the kernel's overlay works here, why not, and what to change
///
/// The first line on stdout is `supported` or `unsupported`, and the exit code 0 or 1; 2 says that
/// the trial itself failed.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A directory that would be a lower layer, the topmost first; it is only read
    #[arg(long, value_name = "DIR")]
    lower: Vec<PathBuf>,
    /// A directory on the file system that would hold the upper layer [default: $TMPDIR or /tmp]
    #[arg(long, value_name = "DIR")]
    upper: Option<PathBuf>,
    /// Print the whole report as JSON
    #[arg(long)]
    json: bool,
}

/// Everything there is to say. The names of its fields are part of the interface.
#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    native: Verdict,
    /// The cause, in words.
    explanation: Option<&'static str>,
    remedy: Option<&'static str>,
    instead: Option<&'static str>,
    fuse: FuseVerdict,
    upper: UpperVerdict,
    ids: IdsVerdict,
    kernel: Kernel,
}

pub(super) fn run(args: Args) -> Result<ExitCode> {
    let near = args.upper.unwrap_or_else(std::env::temp_dir);
    for (dir, what) in args
        .lower
        .iter()
        .map(|dir| (dir, "lower"))
        .chain([(&near, "upper")])
    {
        if !dir.is_dir() {
            let why = if dir.exists() {
                "is not a directory"
            } else {
                "does not exist"
            };
            return Err(Error::usage("checking the layers")
                .at(dir)
                .because(format!("the {what} directory {why}")));
        }
    }
    let wanted = Options {
        lower: args.lower,
        upper: Some(near.clone()),
        work: Some(near.clone()),
        ..Options::default()
    };
    let native = probe::trial_in(&near, &wanted)?;
    let told = |tell: fn(Cause) -> &'static str| native.cause.map(tell);
    let report = Report {
        explanation: told(Cause::words),
        remedy: told(Cause::remedy),
        instead: told(Cause::instead),
        fuse: probe::try_fuse()?,
        upper: probe::look_at_upper(&near),
        ids: probe::look_for_ids(),
        kernel: Kernel::current(),
        native,
    };
    let text = if args.json {
        json(&report)?
    } else {
        plain(&report)
    };
    super::print(&text)?;
    Ok(if report.native.supported {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}

fn json(report: &Report) -> Result<String> {
    serde_json::to_string_pretty(report)
        .map(|text| text + "\n")
        .map_err(|error| Error::system("writing the report").because(error.to_string()))
}

fn plain(report: &Report) -> String {
    let mut out = String::new();
    let supported = report.native.supported;
    out += if supported {
        "supported\n"
    } else {
        "unsupported\n"
    };
    out += "\nthe kernel's overlay:\n";
    steps(&mut out, &report.native.steps);
    for (name, text) in [
        ("cause", report.explanation),
        ("remedy", report.remedy),
        ("instead", report.instead),
    ] {
        if let Some(text) = text {
            line(&mut out, format_args!("\n{name}: {text}"));
        }
    }
    out += "\nFUSE:\n";
    steps(&mut out, &report.fuse.steps);
    line(&mut out, format_args!("\n{}", fuse_in_words(&report.fuse)));
    line(
        &mut out,
        format_args!("upper: {}", upper_in_words(&report.upper)),
    );
    line(&mut out, format_args!("ids: {}", ids_in_words(&report.ids)));
    let kernel = &report.kernel;
    line(
        &mut out,
        format_args!("kernel: {} ({})", kernel.release, kernel.version),
    );
    out
}

fn fuse_in_words(fuse: &FuseVerdict) -> String {
    match (&fuse.fusermount, fuse.usable) {
        (_, true) if fuse.direct => "overfall's FUSE server works here".to_owned(),
        (Some(helper), true) => {
            format!(
                "overfall's FUSE server should work here through {}, which was not tried",
                helper.display()
            )
        }
        _ => format!(
            "overfall's FUSE server doesn't work here: {}; {}",
            fuse.cause.map(Cause::words).unwrap_or_default(),
            fuse.remedy.unwrap_or_default()
        ),
    }
}

fn upper_in_words(upper: &UpperVerdict) -> String {
    match (upper.form, &upper.lacks) {
        (Some(Form::Kernel), _) => "the server would write it in the kernel's form".to_owned(),
        (Some(Form::Dotted), Some(lacks)) => {
            format!("the server would write it in overfall's fallback form: {lacks}")
        }
        _ => "nothing can be written there".to_owned(),
    }
}

fn ids_in_words(ids: &IdsVerdict) -> String {
    match ids.cause {
        None => "a container can have those of several users".to_owned(),
        Some(cause) => format!("{}; {}", cause.words(), cause.remedy()),
    }
}

fn steps(out: &mut String, steps: &[Step]) {
    for step in steps {
        let name = &step.name;
        match &step.outcome {
            Outcome::Ok => line(out, format_args!("  ok       {name}")),
            Outcome::Skipped { detail } => line(out, format_args!("  skipped  {name}: {detail}")),
            Outcome::Failed {
                errno,
                code,
                detail,
            } if *code != 0 => {
                let words = std::io::Error::from_raw_os_error(*code);
                line(
                    out,
                    format_args!("  FAILED   {name}: {detail}: {errno}, {words}"),
                );
            }
            Outcome::Failed { detail, .. } => {
                line(out, format_args!("  FAILED   {name}: {detail}"));
            }
        }
    }
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a string never fails.
    let _never = writeln!(out, "{text}");
}
