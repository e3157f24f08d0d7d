//! A conversation as models are told it: what was said, what was answered, what came of the calls.
//! Entries are only ever added, and each has all it will ever have: so what was sent once is sent
//! in the same bytes for ever.
//! Must not know a wire format.

use dispatch_core::{
    id::KeyName,
    models::{Endpoint, Wire},
    native::{Block, Handed},
};

/// Where an answer came from. Only there are its blocks understood as they are; anywhere else its
/// texts and calls are told in that place's own words, and its thinking is left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) key: KeyName,
    pub(crate) wire: Wire,
}

impl Origin {
    pub(crate) fn of(endpoint: &Endpoint) -> Self {
        Self {
            key: endpoint.key.clone(),
            wire: endpoint.wire,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ToolResult {
    pub(crate) call: String,
    pub(crate) output: String,
    pub(crate) failed: bool,
}

/// What somebody said, and what came with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) text: String,
    pub(crate) files: Vec<Handed>,
}

impl From<&str> for Said {
    fn from(text: &str) -> Self {
        Self {
            text: text.to_owned(),
            files: Vec::new(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    Said(Said),
    Answer {
        origin: Origin,
        blocks: Vec<Block>,
        /// It broke off: what came last may lack what belongs to it.
        cut: bool,
    },
    /// One for each call of the answer before it, in the order of the calls.
    Results {
        results: Vec<ToolResult>,
        /// What somebody said meanwhile.
        said: Option<Said>,
    },
}

impl Entry {
    /// What came with what was said in it.
    pub(super) fn files(&self) -> &[Handed] {
        match self {
            Self::Said(said)
            | Self::Results {
                said: Some(said), ..
            } => &said.files,
            Self::Answer { .. } | Self::Results { said: None, .. } => &[],
        }
    }
}
