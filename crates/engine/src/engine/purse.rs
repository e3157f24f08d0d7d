//! What a live run has spent, and what is given to those it asked for.
//! Must not be believed after the run's end: then the log has it.

use std::sync::{Mutex, PoisonError};

use dispatch_core::gate::Budget;

/// What a live run has spent so far and what is given to tasks that it asked for: told by the run
/// and by the actor to each other, because neither is in the log before its end.
#[derive(Debug, Default)]
pub(crate) struct Purse {
    inner: Mutex<(Budget, Budget)>,
}

impl Purse {
    fn with<T>(&self, look: impl FnOnce(&mut (Budget, Budget)) -> T) -> T {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        look(&mut inner)
    }

    /// What the run itself has spent so far.
    pub(crate) fn spend(&self, spent: Budget) {
        self.with(|(own, _)| *own = spent);
    }

    pub(super) fn spent(&self) -> Budget {
        self.with(|(own, _)| *own)
    }

    /// What its children have spent, and may still.
    pub(crate) fn given(&self) -> Budget {
        self.with(|(_, given)| *given)
    }

    pub(super) fn give(&self, given: Budget) {
        self.with(|(_, known)| *known = given);
    }
}
