//! Runs and their supervisors: begun, followed to their end, and what follows from an end in the
//! same commit.
//! Must not do a run's own work.

use std::sync::Arc;

use dispatch_core::{
    event::{Kind, Subject, Verified},
    id::{RunId, TaskId},
    outcome::{Outcome, Stop},
    run::{RunCause, RunState},
    schedule::{self, Next},
};
use tokio::sync::{Notify, mpsc};

use super::Actor;
use crate::{
    engine::{command::StopOrder, purse::Purse},
    run::{self, Ended},
    verbs,
    view::Force,
};

impl Actor {
    pub(super) fn supervise(&mut self, run: RunId, from: run::From) {
        let Some(task) = self.state.task(run.task).cloned() else {
            return;
        };
        let recorded = match from {
            run::From::Start => 0,
            run::From::Log => self.store.recorded_offset(run).unwrap_or(0),
        };
        let complete = self.lacks(run).is_empty();
        let secrets = self.secrets.get(&run.task).cloned().unwrap_or_default();
        let (orders, told) = mpsc::channel(4);
        if let Some(RunState::Stopping { .. }) = self.state.run(run).map(|run| &run.state) {
            match orders.try_send(StopOrder { force: Force::Ask }) {
                Ok(()) | Err(_) => {}
            }
        }
        self.orders.insert(run, orders);
        let bell = Arc::new(Notify::new());
        self.bells.insert(run, Arc::clone(&bell));
        let purse = Arc::new(Purse::default());
        self.purses.insert(run, Arc::clone(&purse));
        self.fill_purse(run.task);
        let answers = self.answers_for(&task);
        let job = run::Supervised {
            task,
            run,
            purse,
            answers,
            recorded,
            secrets,
            complete,
            from,
            bell,
        };
        let ctx = self.ctx.clone();
        self.runs
            .spawn(async move { (run, run::supervise(ctx, job, told).await) });
    }

    pub(super) fn ended(&mut self, joined: Result<(RunId, Ended), tokio::task::JoinError>) {
        match joined {
            Ok((run, ended)) => {
                self.orders.remove(&run);
                self.bells.remove(&run);
                self.purses.remove(&run);
                match ended {
                    Ended::Judged => {}
                    Ended::NeedsSecrets => self.look_for_secrets(run),
                    // The engine is going away; the next one goes on.
                    Ended::Cut => {}
                }
            }
            Err(error) => {
                // A supervisor that panicked is a bug of ours; its run must not hang for ever.
                let text = format!("bug: a supervisor ended: {error}");
                self.put(Subject::Engine, Kind::Noted { text });
                let supervised: Vec<RunId> = self.orders.keys().copied().collect();
                for run in supervised {
                    if self.orders.get(&run).is_some_and(mpsc::Sender::is_closed) {
                        self.orders.remove(&run);
                        self.finish(run, Outcome::Lost);
                    }
                }
            }
        }
    }

    /// An end that nobody tries again without a person.
    pub(super) fn finish(&mut self, run: RunId, outcome: Outcome) {
        self.end(run, outcome, Verified::NotVerified, false);
    }

    /// The end of a run, and what follows from it in the same commit: another run, a pause of its pool,
    /// word for its parent.
    pub(super) fn end(&mut self, run: RunId, outcome: Outcome, verified: Verified, swept: bool) {
        let config = &self.ctx.settings.config;
        let Some(task) = self.state.task(run.task) else {
            return;
        };
        let (pool, runs_max) = (task.spec.pool.clone(), config.limits.runs_max);
        let outcome = match (outcome, task.last_run().map(|run| &run.state)) {
            // A keeper knows of persons only; the log knows who it was.
            (Outcome::Stopped(Stop::ByPerson), Some(RunState::Stopping { why })) => {
                Outcome::Stopped(why.clone())
            }
            (outcome, _) => outcome,
        };
        let next = if swept && self.shutdown.is_none() {
            schedule::next_after(task, &outcome, &config.gate, runs_max)
        } else {
            Next::Stays
        };
        let (outcome, again) = match next {
            Next::Stays => (outcome, false),
            Next::Again => (outcome, true),
            Next::GivesUp(failure) => (Outcome::Failed(failure), false),
        };
        let paused = self.gate().pause(&pool).map(|pause| pause.until);
        self.held.remove(&run);
        if !self.put(Subject::Run(run), Kind::Finished { outcome, verified }) {
            return;
        }
        if let Some(pause) = self.gate().pause(&pool)
            && paused.is_none_or(|before| before < pause.until)
        {
            let told = Kind::PoolPaused {
                pool,
                until: pause.until,
                reason: pause.reason,
            };
            self.put(Subject::Engine, told);
        }
        if again {
            let (n, by_person) = (run.n, false);
            let next = RunId { n: n + 1, ..run };
            self.queue(next, RunCause::RetryOf { n, by_person });
            return;
        }
        self.go_on(run.task);
        self.family_ended(run);
    }

    /// Retention: workspaces whose time is over are snapshotted and removed, old snapshots dropped.
    pub(super) fn clean(&mut self) {
        let retention = self.ctx.settings.config.retention.clone();
        let now = self.now();
        let put_away: Vec<TaskId> = self
            .state
            .tasks()
            .filter(|task| verbs::are_files_over(task, &retention, now))
            .map(|task| task.id)
            .collect();
        for task in put_away {
            self.put(Subject::Task(task), Kind::AttachmentsDropped);
        }
        let due = |task: &&dispatch_core::state::Task| {
            verbs::is_over(task, &retention, now) || verbs::old_snapshot(task, now).is_some()
        };
        let due: Vec<TaskId> = self.state.tasks().filter(due).map(|task| task.id).collect();
        for task in due {
            let (ctx, run) = (self.ctx.clone(), RunId { task, n: 0 });
            self.runs.spawn(async move {
                verbs::retain(&ctx, task, now).await;
                (run, Ended::Judged)
            });
        }
    }
}
