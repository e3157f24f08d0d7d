//! Which run begins: what the gate decides is applied here, and what it must know is laid before
//! it.
//! Must not decide itself: `core::schedule` does.

use dispatch_core::{
    event::{Kind, Scope, Subject},
    id::RunId,
    outcome::Outcome,
    run::RunState,
    schedule::{View, Waiting},
};

use super::Actor;
use crate::{pressure, run, view::VerbError};

impl Actor {
    pub(super) fn decide(&mut self) {
        self.wake_at = None;
        if self.shutdown.is_some() || self.state.queue().len() == 0 {
            self.fresh.clear();
            return;
        }
        if !self.state.frozen() {
            self.host = pressure::host(&self.ctx.settings.data);
        }
        loop {
            self.look_at_turns();
            // What one start changes for the next is in the state by then.
            let decision = self.gate().decide();
            let mut settled = decision.admit.is_empty() && decision.fail.is_empty();
            for (run, failure) in decision.fail {
                self.finish(run, Outcome::Failed(failure));
                // A decision that cannot be applied is a bug, noted; it must not be made for ever.
                settled |= self
                    .state
                    .run(run)
                    .is_some_and(|run| run.state == RunState::Queued);
            }
            for run in decision.admit {
                let admitted = self.put(Subject::Run(run), Kind::Admitted);
                settled |= !admitted;
                if admitted {
                    self.effects.push(Box::new(move |actor| {
                        actor.supervise(run, run::From::Start);
                    }));
                }
            }
            if settled {
                self.wake_at = decision.wake_at;
                break;
            }
        }
        for run in std::mem::take(&mut self.fresh) {
            let waiting = self.gate().waits_for(run);
            if let Some(Waiting { text, until, .. }) = waiting {
                let reason = text;
                self.put(Subject::Run(run), Kind::Waits { reason, until });
            }
        }
    }

    /// Those that wait for a workspace look again whether it is free.
    fn look_at_turns(&mut self) {
        if !std::mem::take(&mut self.turns_changed) {
            return;
        }
        let behind = |run: &&RunId| {
            let task = self.state.task(run.task);
            task.is_some_and(|task| task.spec.turn.behind.is_some())
        };
        let held: Vec<RunId> = self.held.keys().filter(behind).copied().collect();
        for run in held {
            self.look_for_secrets(run);
        }
    }

    pub(super) fn gate(&self) -> View<'_> {
        let config = &self.ctx.settings.config;
        View {
            state: &self.state,
            gate: &config.gate,
            pools: &config.pools,
            disk_free_min_bytes: config.limits.disk_free_min_bytes,
            held: &self.held,
            host: self.host,
            now: self.now(),
        }
    }

    pub(super) fn freeze(&mut self, frozen: bool, scope: Scope) -> Result<(), VerbError> {
        if let Scope::Pool(pool) = &scope {
            let pools = &self.ctx.settings.config.pools;
            // One that is not configured any more can still be thawed.
            if frozen && !pools.contains_key(pool) {
                let there = dispatch_core::config::list(pools.keys());
                let what = format!("freeze pool {pool}: it is not configured; there are {there}");
                return Err(VerbError::BadInput { what });
            }
        }
        if self.state.is_frozen(&scope) != frozen {
            self.put(Subject::Engine, Kind::FrozenSet { frozen, scope });
        }
        Ok(())
    }
}
