//! The error of everything that happens outside a file system request: one line that says what
//! was tried, on which path, why it failed, and what to do about it.

use std::fmt::{self, Write};
use std::path::{Path, PathBuf};

use crate::sys::Errno;

/// `Result` with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, where, why, and what to do.
///
/// Displayed on one line: `STEP: PATH: WHY (ERRNO); REMEDY`, each part only where it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    class: Class,
    step: String,
    path: Option<PathBuf>,
    errno: Option<Errno>,
    why: Option<String>,
    remedy: Option<String>,
}

/// Whose fault an [`Error`] is; the command line turns it into an exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The request itself can't be carried out: a missing directory, an unknown option.
    Usage,
    /// The machine refused: a system call failed that should have worked.
    System,
}

impl Error {
    /// The request is wrong. `step` names what was being done, for example `"reading the options"`.
    pub fn usage(step: impl Into<String>) -> Self {
        Self::new(Class::Usage, step)
    }

    /// The system refused. `step` names what was being done, for example `"mounting the overlay"`.
    pub fn system(step: impl Into<String>) -> Self {
        Self::new(Class::System, step)
    }

    fn new(class: Class, step: impl Into<String>) -> Self {
        Self {
            class,
            step: step.into(),
            path: None,
            errno: None,
            why: None,
            remedy: None,
        }
    }

    /// Adds the path that the step was about.
    #[must_use]
    pub fn at(mut self, path: impl AsRef<Path>) -> Self {
        self.path = Some(path.as_ref().to_path_buf());
        self
    }

    /// Adds the error number that the system gave.
    #[must_use]
    pub fn errno(mut self, errno: Errno) -> Self {
        self.errno = Some(errno);
        self
    }

    /// Adds the cause, in words.
    #[must_use]
    pub fn because(mut self, why: impl Into<String>) -> Self {
        self.why = Some(why.into());
        self
    }

    /// Adds what the user can do about it.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// Whose fault it is.
    pub fn class(&self) -> Class {
        self.class
    }

    /// The system's error number, where there was one.
    pub fn raw_errno(&self) -> Option<Errno> {
        self.errno
    }

    /// What was being done.
    pub fn step(&self) -> &str {
        &self.step
    }

    /// What it was done to.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The cause, in words.
    pub fn why(&self) -> Option<&str> {
        self.why.as_deref()
    }

    /// What the user can do about it.
    pub fn what_to_do(&self) -> Option<&str> {
        self.remedy.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = OneLine(f);
        line.write_str(&self.step)?;
        if let Some(path) = &self.path {
            write!(line, ": {}", path.display())?;
        }
        match (&self.why, self.errno) {
            (Some(why), Some(errno)) => write!(line, ": {why} ({errno})")?,
            (Some(why), None) => write!(line, ": {why}")?,
            (None, Some(errno)) => write!(line, ": {errno}")?,
            (None, None) => {}
        }
        if let Some(remedy) = &self.remedy {
            write!(line, "; {remedy}")?;
        }
        Ok(())
    }
}

/// Writes control characters as escapes: a name with a line break in it, or with a terminal's
/// commands, must not break the line that reports it.
struct OneLine<'f, 'b>(&'f mut fmt::Formatter<'b>);

impl Write for OneLine<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for piece in text.split_inclusive(char::is_control) {
            match piece.char_indices().next_back() {
                Some((at, last)) if last.is_control() => {
                    write!(self.0, "{}{}", &piece[..at], last.escape_default())?;
                }
                _ => self.0.write_str(piece)?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

/// Turns the error of a system call into an [`Error`] where it happens.
pub(crate) trait Context<T> {
    /// `step` says what was being done, `path` what it was done to.
    fn context(self, step: &str, path: impl AsRef<Path>) -> Result<T>;
}

impl<T, E: Into<Errno>> Context<T> for std::result::Result<T, E> {
    fn context(self, step: &str, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|errno| Error::system(step).at(path).errno(errno.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_with_every_known_part() {
        let error = Error::usage("mounting the overlay")
            .at("/w")
            .because("workdir and upperdir are on different file systems")
            .remedy("put both on one");
        assert_eq!(
            error.to_string(),
            "mounting the overlay: /w: workdir and upperdir are on different file systems; put both on one"
        );
    }

    #[test]
    fn a_name_does_not_break_the_line() {
        let error = Error::usage("reading").at("/a\nb\u{1b}[1mü").because("\r");
        assert_eq!(error.to_string(), "reading: /a\\nb\\u{1b}[1mü: \\r");
    }
}
