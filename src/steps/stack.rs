//! What a step is, and what it is built on.

use std::path::PathBuf;

use super::Digest;

/// A step of a build: what it is called, and what its result depends on beside the layers below.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub(super) name: String,
    pub(super) bytes: Vec<u8>,
}

impl Step {
    /// `name` is for people to read and counts for nothing; `bytes` are what is digested.
    pub fn new(name: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        Self {
            name: name.into(),
            bytes: bytes.into(),
        }
    }
}

/// How a layer came into a stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was there already.
    Hit,
    /// It was made.
    Built,
}

/// Directories that lie below a build's layers, and the layers; what a step is built on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stack {
    /// Topmost first.
    pub(super) base: Vec<PathBuf>,
    pub(super) base_digest: Digest,
    /// Bottom first.
    pub(super) layers: Vec<(Digest, Outcome)>,
}

impl Stack {
    /// Nothing. `seed` stands for what all steps depend on.
    pub fn empty(seed: Digest) -> Self {
        Self::on([], seed)
    }

    /// Finished directories (topmost first), such as the root of a container that was built
    /// elsewhere. They must not change; `digest` stands for what is in them.
    pub fn on(base: impl IntoIterator<Item = PathBuf>, digest: Digest) -> Self {
        Self {
            base: base.into_iter().collect(),
            base_digest: digest,
            layers: Vec::new(),
        }
    }

    /// The digest of the topmost layer; of the base where there is none.
    pub fn digest(&self) -> Digest {
        self.layers.last().map_or(self.base_digest, |layer| layer.0)
    }

    /// The layers, the lowest first, and how each got here.
    pub fn layers(&self) -> &[(Digest, Outcome)] {
        &self.layers
    }

    /// The directories below the layers, topmost first.
    pub fn base(&self) -> &[PathBuf] {
        &self.base
    }

    /// This one with a layer more.
    pub(super) fn with(&self, digest: Digest, outcome: Outcome) -> Self {
        let mut stack = self.clone();
        stack.layers.push((digest, outcome));
        stack
    }
}
