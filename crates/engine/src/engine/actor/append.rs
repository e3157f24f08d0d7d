//! The one place where events are written: masked, applied, kept for the commit; and what leaves
//! the disk with them.
//! Must not let an effect out: that is for after the commit.

use dispatch_core::{
    attach,
    event::{Event, Kind, Subject},
    gate::Budget,
    id::TaskId,
    redact::Redactor,
    secret::Secret,
    update::Usage,
};

use super::Actor;
use crate::attachments;

impl Actor {
    /// Applies an event in memory and keeps it for the commit. An illegal one is a bug: it is noted
    /// instead, and changes nothing. The one place where events are written, so where secrets are
    /// masked in them: neither the log nor the state has one.
    pub(super) fn put(&mut self, subject: Subject, kind: Kind) -> bool {
        let kind = match self.redactor(subject.task()).event(kind) {
            Ok(kind) => kind,
            Err(error) => Kind::Noted {
                text: format!("bug: an event cannot be written: {error}"),
            },
        };
        let event = Event {
            seq: self.state.seq() + 1,
            at: self.now(),
            subject,
            kind,
        };
        let before = self.may_let_go(&event);
        match self.state.apply(&event) {
            Ok(()) => {
                self.remove_let_go(subject, before);
                let spent = match (&event.subject, &event.kind) {
                    (
                        Subject::Run(run),
                        Kind::AgentEnded {
                            usage: Some(usage), ..
                        },
                    ) => Some((run.task, usage.clone())),
                    _ => None,
                };
                self.turns_changed |= matches!(
                    event.kind,
                    Kind::Finished { .. }
                        | Kind::RunQueued { .. }
                        | Kind::StopRequested { .. }
                        | Kind::TaskRemoved
                        | Kind::TaskRestored
                );
                self.pending.push(event);
                if let Some((task, usage)) = spent {
                    self.warn_of_budgets(task, &usage);
                }
                true
            }
            Err(error) => {
                let mut text = format!("bug: {error}");
                if let Some(source) = std::error::Error::source(&error) {
                    text.push_str(&format!(": {source}"));
                }
                let text = self.redactor(subject.task()).redact(&text);
                let kind = Kind::Noted { text };
                let note = Event {
                    seq: self.state.seq() + 1,
                    at: self.now(),
                    subject: Subject::Engine,
                    kind,
                };
                if self.state.apply(&note).is_ok() {
                    self.pending.push(note);
                }
                false
            }
        }
    }

    /// What masks the secrets of a task, or of nobody in particular.
    pub(super) fn redactor(&self, task: Option<TaskId>) -> Redactor {
        let known = task.and_then(|task| self.secrets.get(&task));
        match known {
            Some(known) if !known.is_empty() => Redactor::new(known.values().map(Secret::expose)),
            Some(_) | None => Redactor::shapes(),
        }
    }

    /// The attachments of a task that this event may be the last of.
    fn may_let_go(&self, event: &Event) -> Vec<attach::Attached> {
        let lets_go = matches!(
            event.kind,
            Kind::MessageCancelled { .. }
                | Kind::SnapshotDropped { .. }
                | Kind::WorkspaceRemoved
                | Kind::AttachmentsDropped
        );
        let task = event.subject.task().filter(|_| lets_go);
        let task = task.and_then(|task| self.state.task(task));
        task.map(|task| task.attached.clone()).unwrap_or_default()
    }

    /// Of these, what the state has no more goes from the disk. After the commit: what the log tells of
    /// is there.
    fn remove_let_go(&mut self, subject: Subject, mut before: Vec<attach::Attached>) {
        let Some(task) = subject.task().and_then(|task| self.state.task(task)) else {
            return;
        };
        before.retain(|attached| !task.attached.contains(attached));
        if before.is_empty() {
            return;
        }
        let id = task.id;
        self.effects.push(Box::new(move |actor| {
            for attached in &before {
                attachments::remove(&actor.ctx.settings.data, id, attached);
            }
        }));
    }

    /// Tells of the budgets of a day that this usage has brought near their end.
    fn warn_of_budgets(&mut self, task: TaskId, usage: &Usage) {
        let config = &self.ctx.settings.config;
        let Some(pool) = self.state.task(task).map(|task| &task.spec.pool) else {
            return;
        };
        let (now, percent) = (self.now(), config.gate.warn_percent);
        let spent = Budget::of(usage);
        let mut warnings = Vec::new();
        let mut look = |what: String, budget: Budget, after: Budget| {
            if let Some(spent) = budget.crossed(after.less(spent), after, percent) {
                warnings.push(Kind::BudgetWarned { what, spent });
            }
        };
        if let (Some(limits), Some(ledger)) = (config.pools.get(pool), self.state.pool(pool)) {
            let reset = limits.reset_utc.unwrap_or(config.gate.reset_utc);
            let after = ledger.spent(reset.before(now), now);
            look(format!("day of pool {pool}"), limits.day_budget(), after);
        }
        let from = config.gate.reset_utc.before(now);
        let pools = self
            .state
            .pools()
            .map(|(_, ledger)| ledger.spent(from, now));
        let after = pools.fold(Budget::default(), Budget::plus);
        look("day".to_owned(), config.gate.day_budget(), after);
        for warning in warnings {
            self.put(Subject::Engine, warning);
        }
    }
}
