//! A call before it runs: its arguments read and what they name found, once. What rules are asked
//! about and what is then touched are the same values, so no spelling lies between them.
//! Must not do anything yet, and must not tell of what is there more than that it can be named.

use std::{fmt, sync::Arc};

use dispatch_core::rules::{Action, Group, Rules, Subject};
use serde::de::DeserializeOwned;

use super::{Place, Run, Running, Wrong};

/// A call as a model made it.
#[derive(Clone, Debug)]
pub(crate) struct Given {
    pub(crate) input: String,
    pub(crate) place: Arc<Place>,
    pub(crate) judge: Judge,
}

impl Given {
    pub(super) fn parse<T: DeserializeOwned>(&self) -> Result<T, Wrong> {
        let input = self.input.trim();
        let input = if input.is_empty() { "{}" } else { input };
        serde_json::from_str(input)
            .map_err(|error| Wrong(format!("the arguments do not fit: {error}")))
    }
}

type Work = Box<dyn FnOnce(Run) -> Running + Send + Sync>;

/// A call that can run: what it would touch, and the work on exactly that.
pub(crate) struct Planned {
    pub(crate) subjects: Vec<Subject>,
    /// Where it is not its tool's: one tool has two.
    pub(crate) group: Option<Group>,
    /// In words for a person; without them its subjects are.
    shown: Option<String>,
    work: Work,
}

impl fmt::Debug for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a call about {:?}", self.subjects)
    }
}

impl Planned {
    pub(super) fn new<F>(
        subjects: Vec<Subject>,
        work: impl FnOnce(Run) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<String, Wrong>> + Send + 'static,
    {
        let work = Box::new(|run| -> Running { Box::pin(work(run)) });
        Self {
            subjects,
            group: None,
            shown: None,
            work,
        }
    }

    pub(super) fn in_group(self, group: Group) -> Self {
        let group = Some(group);
        Self { group, ..self }
    }

    pub(super) fn shown_as(self, text: String) -> Self {
        let shown = Some(text);
        Self { shown, ..self }
    }

    /// As a person reads it.
    pub(crate) fn shown(&self) -> String {
        let texts = || self.subjects.iter().map(Subject::to_string);
        let shown = self.shown.clone();
        shown.unwrap_or_else(|| texts().collect::<Vec<_>>().join(" "))
    }

    pub(crate) fn run(self, run: Run) -> Running {
        (self.work)(run)
    }
}

/// What the rules say of one group of tools: for what turns up only while a call runs.
#[derive(Clone, Debug)]
pub(crate) struct Judge {
    group: Group,
    rules: Arc<Rules>,
}

impl Judge {
    pub(crate) fn new(group: Group, rules: Arc<Rules>) -> Self {
        Self { group, rules }
    }

    pub(super) fn of(&self, group: Group) -> Self {
        Self {
            group,
            rules: Arc::clone(&self.rules),
        }
    }

    pub(super) fn decide(&self, subject: &Subject) -> Action {
        self.rules.decide(self.group, subject)
    }

    pub(super) fn may_be_stricter(&self, than: Action) -> bool {
        self.rules.may_be_stricter(self.group, than)
    }
}
