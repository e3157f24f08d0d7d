//! What the fold knows of a task.
//! Must not change but by `State::apply`.

use std::path::PathBuf;

use super::of_run::Run;
use crate::{
    Millis,
    ask::{Ask, AskId, Fate as AskFate},
    attach::Attached,
    carried::Carried,
    event::Sealed,
    family::{self, Family},
    gate::Budget,
    id::{Seq, TaskId},
    message::{Fate, Message, MessageId, SETTLED_MAX, Sender, Taken},
    outcome::{Again, Outcome},
    prompt::{Saying, Told},
    run::{RunCause, RunState},
    task::{TaskSpec, Tuning},
};

/// Runs of one task, whoever began them: each is kept with it.
const RUNS_MAX: usize = 2000;

#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    pub id: TaskId,
    pub short: String,
    pub spec: TaskSpec,
    pub created_at: Millis,
    /// The last event about it.
    pub seq: Seq,
    pub runs: Vec<Run>,
    pub workspace: Option<Workspace>,
    pub snapshots: Vec<Snapshot>,
    pub applied: Option<(PathBuf, String)>,
    pub removed: bool,
    /// When that was.
    pub removed_at: Option<Millis>,
    pub notes: Vec<String>,
    /// Configuration for agents in the base commit.
    pub carried: Vec<Carried>,
    /// What was said to it, in order; of settled ones the newest.
    pub messages: Vec<Message>,
    /// How many there were.
    pub messages_count: u32,
    /// What its agents asked permission for, in order; of earlier runs the newest.
    pub asks: Vec<Ask>,
    /// How many there were.
    pub asks_count: u32,
    /// Files that were handed over with it and with what was said to it.
    pub attached: Vec<Attached>,
    /// They were let go of: it cannot run again as if there had been none.
    pub attached_dropped: bool,
    /// For the next run, while one goes on.
    pub tuning: Tuning,
    /// How often a person wanted its agent's conversation to become shorter.
    pub compacts: u32,
    /// Runs that messages of agents have started since a person said something.
    pub wakes: u32,
    /// Sessions of runs up to this one belong to an agent it had before.
    pub foreign_runs: u32,
    /// What its agents have asked for.
    pub family: Family,
    /// It has ended well at least once, and waited for nothing then.
    pub completed: bool,
}

impl Task {
    #[must_use]
    pub fn branch(&self) -> String {
        self.spec.branch(&self.short)
    }

    /// A task always has a run: it is created with one.
    #[must_use]
    pub fn last_run(&self) -> Option<&Run> {
        self.runs.last()
    }

    #[must_use]
    pub fn is_open(&self) -> bool {
        self.last_run()
            .is_some_and(|run| !matches!(run.state, RunState::Finished(_)))
    }

    #[must_use]
    pub fn outcome(&self) -> Option<&Outcome> {
        match &self.last_run()?.state {
            RunState::Finished(outcome) => Some(outcome),
            RunState::Queued
            | RunState::Preparing
            | RunState::Running
            | RunState::Stopping { .. }
            | RunState::Checking => None,
        }
    }

    /// Whether nobody else may have its workspace: it works there, waits to, or waits for an answer.
    #[must_use]
    pub fn holds_workspace(&self) -> bool {
        let blocked = matches!(self.outcome(), Some(Outcome::Blocked { .. }));
        !self.removed && (!self.is_done() || blocked)
    }

    /// A task that waits for it may go on.
    #[must_use]
    pub fn has_completed(&self) -> bool {
        self.completed
    }

    /// It has ended, and without a person it will not complete any more.
    #[must_use]
    pub fn is_hopeless(&self) -> bool {
        !self.has_completed()
            && match self.outcome() {
                None => false,
                // One that has completed and is not done waits for what it asked for.
                Some(Outcome::Blocked { .. } | Outcome::Completed { .. }) => self.removed,
                Some(_) => true,
            }
    }

    /// The task whose agent asked for it.
    #[must_use]
    pub fn asker(&self) -> Option<TaskId> {
        self.spec.asker()
    }

    /// Something it asked for is not done, or it has not heard how that ended.
    #[must_use]
    pub fn is_owed(&self) -> bool {
        let owed = |end: &family::End| match end.fate {
            family::Fate::Owed => true,
            family::Fate::Told { message } => {
                let message = self.message(message);
                message.is_some_and(|message| message.fate == Fate::Waiting)
            }
            family::Fate::Waited { .. } | family::Fate::Detached => false,
        };
        self.family.awaited().next().is_some() || self.family.ends.iter().any(owed)
    }

    /// Its last run has ended well and it has not: it waits for what it asked for. It holds no slot.
    #[must_use]
    pub fn is_parked(&self) -> bool {
        matches!(self.outcome(), Some(Outcome::Completed { .. })) && self.is_owed()
    }

    /// Nothing of it runs or waits, and nothing that it waits for does.
    #[must_use]
    pub fn is_done(&self) -> bool {
        !self.is_open() && !self.is_parked()
    }

    /// What all its runs have spent, as far as their agents told.
    #[must_use]
    pub fn spent(&self) -> Budget {
        let spent = self.runs.iter().filter_map(|run| run.usage.as_ref());
        spent.map(Budget::of).fold(Budget::default(), Budget::plus)
    }

    #[must_use]
    pub fn budget(&self) -> Budget {
        Budget {
            tokens: self.spec.terms.budget_tokens,
            usd: self.spec.terms.budget_usd,
        }
    }

    /// Whether it may have another run: of those that no person's word began there are `runs_max`, and of
    /// all of them `RUNS_MAX`.
    #[must_use]
    pub fn has_runs_left(&self, runs_max: u32, by_person: bool) -> bool {
        let by_itself = self.runs.iter().filter(|run| !run.cause.is_persons());
        self.runs.len() < RUNS_MAX && (by_person || by_itself.count() < runs_max as usize)
    }

    /// How often in a row, the last run included, Dispatch has tried again what may be tried a few
    /// times.
    #[must_use]
    pub fn own_retries(&self) -> u32 {
        let own = |run: &&Run| {
            let before = (run.n as usize)
                .checked_sub(2)
                .and_then(|index| self.runs.get(index));
            let again = match before.map(|run| &run.state) {
                Some(RunState::Finished(outcome)) => outcome.again(),
                Some(_) | None => None,
            };
            again == Some(Again::AFewTimes)
                && matches!(
                    run.cause,
                    RunCause::RetryOf {
                        by_person: false,
                        ..
                    }
                )
        };
        let count = self.runs.iter().rev().take_while(own).count();
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    /// The newest kept result.
    #[must_use]
    pub fn result(&self) -> Option<&Sealed> {
        self.runs.iter().rev().find_map(|run| run.sealed.as_ref())
    }

    /// The session that run `n` can go on with.
    #[must_use]
    pub fn session_for(&self, n: u32) -> Option<&str> {
        let own = |run: &&Run| run.n < n && run.n > self.foreign_runs;
        let mut earlier = self.runs.iter().rev().filter(own);
        earlier.find_map(|run| run.session.as_deref())
    }

    /// What the prompt of run `n` says of it.
    #[must_use]
    pub fn told(&self, n: u32) -> Told {
        let mut told = Told::default();
        for message in &self.messages {
            match message.taken {
                Some(taken) if taken.run < n && message.fate != Fate::Cancelled => {
                    told.before.push(message.saying());
                }
                Some(taken) if taken.run == n && taken.out_offset.is_none() => {
                    told.now.push(message.saying());
                }
                Some(_) | None => {}
            }
        }
        let heard = self.family.heard.iter().filter(|(run, _)| *run < n);
        let heard = heard.map(|(_, text)| Saying::Own(text.clone()));
        told.before.extend(heard);
        told
    }

    /// Its workspace is gone and nothing is left to bring it back from.
    #[must_use]
    pub fn is_beyond_recall(&self) -> bool {
        self.snapshots.is_empty() && self.workspace.as_ref().is_some_and(|w| w.removed)
    }

    /// One that cannot run again needs no files, and nobody will read them.
    pub(super) fn forget_attached(&mut self) {
        if self.is_beyond_recall() {
            self.attached.clear();
        }
    }

    /// Its files are all that is kept of it: it was put away and never had a workspace.
    #[must_use]
    pub fn is_put_away_with_files(&self) -> bool {
        self.removed && self.workspace.is_none() && !self.attached.is_empty()
    }

    /// The files that run `n` is given, and whether they are new to it: an earlier one had the rest.
    pub fn attached_for(&self, n: u32) -> impl Iterator<Item = (&Attached, bool)> {
        self.attached.iter().filter_map(move |attached| {
            // Of messages those that are forgotten here were settled long ago.
            let message = attached.message.and_then(|id| self.message(id));
            let run = match (attached.message, message) {
                (None, _) => 1,
                (Some(_), None) => 0,
                (Some(_), Some(message)) => message.taken?.run,
            };
            (run <= n).then_some((attached, run == n))
        })
    }

    #[must_use]
    pub fn message(&self, id: MessageId) -> Option<&Message> {
        self.messages.iter().find(|message| message.id == id)
    }

    /// Messages that no run has, in order.
    pub fn waiting(&self) -> impl Iterator<Item = &Message> {
        self.messages.iter().filter(|message| message.waits())
    }

    /// Those that run `n` may have, in order. One that is for a later run holds back what the same one
    /// says after it, and nobody else: whoever sends it would silence all the others.
    pub fn due_for(&self, n: u32) -> impl Iterator<Item = &Message> {
        let mut later: Vec<Sender> = Vec::new();
        let due = self.waiting().filter(|message| message.is_due());
        due.filter(move |message| {
            if message.is_barred_from(n) {
                later.push(message.from);
            }
            !later.contains(&message.from)
        })
    }

    #[must_use]
    pub fn ask(&self, id: AskId) -> Option<&Ask> {
        self.asks.iter().find(|ask| ask.id == id)
    }

    /// Asks that wait for an answer, in order.
    pub fn open_asks(&self) -> impl Iterator<Item = &Ask> {
        self.asks.iter().filter(|ask| ask.is_open())
    }

    /// Nobody is there to hear an answer.
    pub(super) fn close_asks(&mut self) {
        for ask in self.asks.iter_mut().filter(|ask| ask.is_open()) {
            ask.fate = AskFate::Closed;
        }
    }

    pub(super) fn message_mut(&mut self, id: MessageId) -> Option<&mut Message> {
        self.messages.iter_mut().find(|message| message.id == id)
    }

    /// Lets go of the oldest settled ones that no replay of an open run needs.
    pub(super) fn forget_messages(&mut self) {
        let open = self.is_open().then_some(self.runs.len());
        while self.messages.len() > SETTLED_MAX {
            let gone = |message: &Message| {
                let replayed = message.taken.map(|taken| taken.run as usize);
                message.fate != Fate::Waiting && (open.is_none() || replayed != open)
            };
            let Some(index) = self.messages.iter().position(gone) else {
                return;
            };
            self.messages.remove(index);
        }
    }

    /// `None`: no such message may do that now.
    pub(super) fn take(&mut self, id: MessageId, taken: Taken) -> Option<()> {
        let message = self.message_mut(id).filter(|message| message.is_due())?;
        message.taken = Some(taken);
        let chain = message.chain;
        // What it does from now on may be because of this.
        if let Some(run) = self.runs.last_mut() {
            run.chain = run.chain.max(chain);
        }
        Some(())
    }

    pub(super) fn settle(&mut self, id: MessageId, run: u32, fate: Fate) -> Option<()> {
        let message = self.message_mut(id)?;
        let due = message.fate == Fate::Waiting && message.is_with(run);
        due.then(|| message.fate = fate)
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Workspace {
    pub path: PathBuf,
    pub base: String,
    pub base_branch: Option<String>,
    pub removed: bool,
}

/// Content kept under a ref in the vault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    pub refname: String,
    pub commit: String,
    pub keep_until: Millis,
}
