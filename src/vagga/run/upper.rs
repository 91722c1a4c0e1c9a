//! The directory of a writable run: a new one of its own, or one that was kept.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::Path;

use super::record::{self, Form, Record};
use crate::container::{End, Scratch, Standing};
use crate::snapshot::Means;
use crate::sys::random;
use crate::vagga::project::{Project, Root};
use crate::{Error, Result};

/// Which directory of `.vagga/.transient` a run works in.
#[derive(Debug)]
pub(super) enum Upper {
    /// A new one.
    Fresh {
        container: String,
        /// The run's, which is behind the last dot of the name.
        process: u32,
        end: End,
    },
    /// This one.
    Resumed { name: OsString, form: Form },
}

/// How many names are tried for a new directory.
const TRIES: usize = 16;

impl Upper {
    /// For a run of the calling process.
    pub(super) fn fresh(container: &str, end: End) -> Self {
        Upper::Fresh {
            container: container.to_owned(),
            process: std::process::id(),
            end,
        }
    }

    /// The copy `name`, which must be one of `built`, in the form that it has.
    pub(super) fn resumed(
        project: &Project,
        built: &Root,
        name: &OsStr,
        means: Means,
    ) -> Result<Self> {
        let step = "looking for the kept copy";
        let path = project.transient().join(name);
        let refused = |why: String| Error::usage(step).at(&path).because(why);
        let is_name = Path::new(name).file_name() == Some(name);
        if !is_name || !path.join("upper").is_dir() {
            return Err(refused("there is none of this name".into()));
        }
        let Some(record) = record::read(&path)? else {
            return Err(refused(
                "its run was ended before the command began, so nothing is in it".into(),
            ));
        };
        if built.name() != record.base.as_str() {
            return Err(refused(format!(
                "it lies on another version than {}",
                built.name().display()
            )));
        }
        match (record.form, means) {
            (Form::Overlay, Means::Copy) => {
                return Err(
                    refused("it is an overlay, which no copy can go on in".into())
                        .remedy("leave --overlay copy out"),
                );
            }
            (Form::Copy, Means::Kernel | Means::Fuse) => {
                return Err(refused(
                    "it is a copy of everything, which no overlay can go on in".into(),
                )
                .remedy("say --overlay copy, or leave --overlay out"));
            }
            (Form::Overlay, _) if record.made != built.made()? => {
                return Err(refused(format!(
                    "it lies on a former build of {}",
                    built.name().display()
                )));
            }
            (Form::Overlay | Form::Copy, _) => {}
        }
        Ok(Upper::Resumed {
            name: name.to_os_string(),
            form: record.form,
        })
    }

    /// The form that a run goes on in; `None` for a new one, which is free to choose.
    pub(super) fn form(&self) -> Option<Form> {
        match self {
            Upper::Fresh { .. } => None,
            Upper::Resumed { form, .. } => Some(*form),
        }
    }

    /// Writes down what `scratch` is, for those who resume it.
    pub(super) fn describe(&self, scratch: &Scratch, form: Form, built: &Root) -> Result<()> {
        match self {
            Upper::Fresh { end: End::Keep, .. } => record::write(
                scratch.directory(),
                &Record {
                    form,
                    base: built.name().to_string_lossy().into_owned(),
                    made: built.made()?,
                },
            ),
            Upper::Fresh { .. } | Upper::Resumed { .. } => Ok(()),
        }
    }

    /// Makes it, or takes it, for a run in `built`.
    pub(super) fn open(&self, project: &Project, built: &Root) -> Result<Scratch> {
        let step = "making the directory of the run";
        let all = project.transient();
        let standing = Standing::NamespaceRoot;
        let (container, process, end) = match self {
            Upper::Resumed { name, .. } => return Scratch::resumed(&all.join(name), standing),
            Upper::Fresh {
                container,
                process,
                end,
            } => (container, process, *end),
        };
        fs::create_dir_all(&all)
            .map_err(|error| Error::system(step).at(&all).because(error.to_string()))?;
        let mut name = built.name().to_os_string();
        name.push(format!(".{process}"));
        for _ in 0..TRIES {
            if let Some(scratch) = Scratch::named(&all.join(&name), end, standing)? {
                return Ok(scratch);
            }
            // A copy that was kept by a process which had the same number. The number has to be
            // the run's: vagga goes by it.
            let other = random::number().map_err(|errno| Error::system(step).errno(errno))?;
            name = format!("{container}.{:08x}.{process}", other >> 32).into();
        }
        Err(Error::system(step)
            .at(all.join(&name))
            .because("there is something of this name"))
    }
}
