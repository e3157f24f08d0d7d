//! What the actor shows of tasks: a page of them, and one with what only the schedule knows.
//! Must not change anything.

use std::collections::HashMap;

use dispatch_core::{
    id::{RunId, TaskId},
    run::RunState,
    schedule::{Waiting, Why},
    state::Task,
};

use super::Actor;
use crate::{
    reads::{self, Listed, Listing},
    view::{TaskView, VerbError, Who},
};

impl Actor {
    pub(super) fn all(&self, who: Who) -> Result<Vec<TaskView>, VerbError> {
        let seen = |task: &&Task| match who {
            Who::Person => true,
            Who::Run(run) => task.id == run.task || self.state.is_below(task.id, run.task),
        };
        let ids: Vec<TaskId> = self.state.tasks().filter(seen).map(|t| t.id).collect();
        self.views(&ids)
    }

    pub(super) fn list(&self, who: Who, mut listing: Listing) -> Result<Listed, VerbError> {
        if let Who::Run(run) = who {
            listing.family = Some(run.task);
        }
        let (page, next) = reads::page(&self.gate(), &listing);
        Ok(Listed {
            seq: self.state.seq(),
            tasks: self.views(&page)?,
            next,
        })
    }

    pub(super) fn views(&self, tasks: &[TaskId]) -> Result<Vec<TaskView>, VerbError> {
        let queued = |id: &TaskId| {
            let last = self.state.task(*id).and_then(|task| task.last_run());
            last.is_some_and(|run| run.state == RunState::Queued)
        };
        // All places at once, where somebody waits: each on its own counts those before it.
        let places: HashMap<RunId, usize> = if tasks.iter().any(queued) {
            let pools = self.state.pools().map(|(_, ledger)| ledger.places());
            pools.flatten().collect()
        } else {
            HashMap::new()
        };
        let place = |run: RunId| places.get(&run).copied();
        tasks.iter().map(|task| self.view(*task, place)).collect()
    }

    pub(super) fn view(
        &self,
        task: TaskId,
        place: impl Fn(RunId) -> Option<usize>,
    ) -> Result<TaskView, VerbError> {
        let mut view = crate::reader::view(&self.state, &self.ctx.settings.data, task)
            .ok_or(VerbError::NoSuchTask { task })?;
        if let Some(run) = view.task.last_run() {
            let id = RunId { task, n: run.n };
            let held = |text: &String| Waiting {
                why: Why::NeedsYou,
                text: text.clone(),
                until: None,
            };
            view.waits = self
                .gate()
                .waits_for(id)
                .or_else(|| self.held.get(&id).map(held));
            view.place = place(id);
            // While we live, we judge.
            for job in &mut view.jobs {
                job.ended_not_judged = false;
            }
        }
        Ok(view)
    }
}
