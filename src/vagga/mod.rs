//! `overfall vagga …`: what a project of vagga's needs from an overlay, for an unpatched vagga.
//!
//! A project is a directory with a `vagga.yaml`; below it is `.vagga`, where vagga keeps the
//! containers that it has built. This module reads the one and follows the layout of the other:
//!
//! ```text
//! .vagga/NAME                     link to .roots/NAME.VERSION/root
//! .vagga/.roots/NAME.VERSION/     root, uid_map, gid_map, last_use
//! .vagga/.transient/NAME.VERSION.PID/   the changes of a writable run
//! .vagga/.layers/                 what each step of a build changed (see `steps`)
//! .vagga/.cache, .vagga/.volumes  directories that containers share
//! ```

mod build;
mod clean;
mod config;
mod environ;
mod idmaps;
mod lowers;
mod marker;
mod project;
mod run;
mod settings;
mod show;
mod transient;
mod volumes;
mod yaml;

pub use build::{BuildOptions, Built, StepState, build, steps};
pub use clean::{Cleaned, clean_layers, clean_unused, parse_age};
pub use config::{Config, Container};
pub use environ::Wishes;
pub(crate) use environ::variable_name;
pub use project::{Project, Root};
pub use run::{Outcome, RunPlan, Writing};
pub use show::show;
pub use transient::{Removal, clean_transient};
