//! State = fold of the log's life events. `apply` is the only thing that changes it (I3).
//! Must not keep a count that is not derived here: slots and queue are indexes that `apply` alone
//! maintains, and a test holds them equal to a recount.

mod error;
mod looks;
mod of_run;
mod of_task;
mod turns;

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    ask::{self, Ask, AskId, Fate as AskFate},
    event::{CheckState, Event, Kind, Scope, Subject, Verified},
    family::{self, EndId, Family},
    gate::Budget,
    id::{CheckName, PoolName, RunId, Seq, TaskId},
    keys::{Keys, Made},
    ledger::Ledger,
    letter::{LetterId, Letterbox},
    message::{Chain, Fate, Message, MessageId, Sender, Taken},
    naming,
    run::{RunCause, RunEvent, RunState},
    task::Tuning,
};

pub use self::{
    error::ApplyError,
    of_run::{Check, Run},
    of_task::{Snapshot, Task, Workspace},
};

/// The fold. Cheap to ask, changed by [`State::apply`] only.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    seq: Seq,
    frozen: bool,
    frozen_pools: BTreeSet<PoolName>,
    frozen_repos: BTreeSet<String>,
    tasks: BTreeMap<TaskId, Task>,
    created: Vec<TaskId>,
    queue: BTreeSet<(Seq, RunId)>,
    open: BTreeSet<RunId>,
    pools: BTreeMap<PoolName, Ledger>,
    /// Queued runs that wait for other tasks, and those that wait for each of them.
    parked: BTreeSet<RunId>,
    waited_for: BTreeMap<TaskId, BTreeSet<RunId>>,
    /// Those of them that will not complete any more.
    hopeless: BTreeSet<TaskId>,
    keys: Keys,
    /// By the names of workspaces, which tasks that follow each other share.
    letterboxes: BTreeMap<String, Letterbox>,
    /// Messages of agents that each chain has led to; of the newest chains.
    chains: BTreeMap<Chain, u32>,
}

/// Chains of which is remembered how much they have led to. An older one is as good as over.
const CHAINS_MAX: usize = 10_000;

impl State {
    fn family_of(&mut self, asker: Option<TaskId>) -> Option<&mut Family> {
        let asker = self.tasks.get_mut(&asker?)?;
        Some(&mut asker.family)
    }

    /// Says that events up to `seq` which are not folded have been passed.
    pub fn step_over(&mut self, seq: Seq) {
        self.seq = self.seq.max(seq);
    }

    /// Applies one life event; update events only move the position.
    ///
    /// # Errors
    /// [`ApplyError`]; the state is then unchanged.
    pub fn apply(&mut self, event: &Event) -> Result<(), ApplyError> {
        let (seq, word) = (event.seq, event.kind.word());
        if seq <= self.seq {
            return Err(ApplyError::OutOfOrder {
                seq,
                last: self.seq,
            });
        }
        match event.subject {
            Subject::Engine => match &event.kind {
                Kind::FrozenSet { frozen, scope } => self.freeze(*frozen, scope),
                Kind::EngineStarted { .. }
                | Kind::PoolPaused { .. }
                | Kind::BudgetWarned { .. }
                | Kind::Noted { .. } => {}
                _ => {
                    return Err(ApplyError::WrongSubject {
                        seq,
                        word,
                        subject: event.subject,
                    });
                }
            },
            Subject::Task(id) => self.apply_task(event, id)?,
            Subject::Run(id) => self.apply_run(event, id)?,
        }
        self.seq = seq;
        Ok(())
    }

    fn freeze(&mut self, frozen: bool, scope: &Scope) {
        match (scope, frozen) {
            (Scope::All, _) => self.frozen = frozen,
            (Scope::Pool(pool), true) => {
                self.frozen_pools.insert(pool.clone());
            }
            (Scope::Pool(pool), false) => {
                self.frozen_pools.remove(pool);
            }
            (Scope::Repo(repo), true) => {
                self.frozen_repos.insert(repo.clone());
            }
            (Scope::Repo(repo), false) => {
                self.frozen_repos.remove(repo);
            }
        }
    }

    /// Which chain a run belongs to that is queued now.
    fn chain_for(&self, seq: Seq, id: RunId, cause: &RunCause) -> Chain {
        let task = self.tasks.get(&id.task);
        match cause {
            // Asked for by an agent, it belongs to what that agent works on.
            RunCause::Dispatched => match task.and_then(Task::asker) {
                Some(asker) => self.chain_of(asker),
                None => Chain(seq),
            },
            RunCause::Answer { by, .. } => match by {
                Sender::Task(other) => self.chain_of(*other),
                Sender::Person | Sender::Dispatch => Chain(seq),
            },
            RunCause::Said { .. } => {
                let due = task.into_iter().flat_map(Task::waiting);
                let due = due.filter(|message| message.is_due());
                let newest = due.map(|message| message.chain).max();
                newest.unwrap_or(self.chain_of(id.task))
            }
            RunCause::RetryOf {
                by_person: false, ..
            }
            | RunCause::Ends => self.chain_of(id.task),
            RunCause::RetryOf {
                by_person: true, ..
            }
            | RunCause::Resumed { .. } => Chain(seq),
        }
    }

    /// One more message of an agent.
    fn count(&mut self, chain: Chain) {
        let count = self.chains.entry(chain).or_default();
        *count = count.saturating_add(1);
        while self.chains.len() > CHAINS_MAX {
            self.chains.pop_first();
        }
    }

    fn apply_task(&mut self, event: &Event, id: TaskId) -> Result<(), ApplyError> {
        let (seq, word) = (event.seq, event.kind.word());
        if let Kind::TaskCreated { spec, short } = &event.kind {
            if self.tasks.contains_key(&id) {
                return Err(ApplyError::Twice { seq, task: id });
            }
            let task = Task {
                id,
                short: short.clone(),
                spec: (**spec).clone(),
                created_at: event.at,
                seq,
                runs: Vec::new(),
                workspace: None,
                snapshots: Vec::new(),
                applied: None,
                removed: false,
                removed_at: None,
                notes: Vec::new(),
                carried: Vec::new(),
                messages: Vec::new(),
                messages_count: 0,
                asks: Vec::new(),
                asks_count: 0,
                attached: Vec::new(),
                attached_dropped: false,
                tuning: Tuning::default(),
                wakes: 0,
                foreign_runs: 0,
                family: Family::default(),
                completed: false,
            };
            // It is there first, so nobody is below himself.
            if let Some(asker) = task.asker() {
                let family = self.family_of(Some(asker));
                let family = family.ok_or(ApplyError::NoTask {
                    seq,
                    word,
                    task: asker,
                })?;
                family.asked_for(id, task.spec.terms.detached);
            }
            self.tasks.insert(id, task);
            self.created.push(id);
            return Ok(());
        }
        let said_in = match &event.kind {
            Kind::MessageQueued { from, .. } => match from {
                Sender::Person => Chain(seq),
                Sender::Task(other) => self.chain_of(*other),
                Sender::Dispatch => self.chain_of(id),
            },
            _ => Chain::default(),
        };
        let task = self.tasks.get_mut(&id).ok_or(ApplyError::NoTask {
            seq,
            word,
            task: id,
        })?;
        let refused = |message: MessageId| ApplyError::Message {
            seq,
            word,
            task: id,
            message,
        };
        match &event.kind {
            Kind::Keyed {
                key,
                message: Some(message),
            } => {
                let message = *message;
                task.message(message).ok_or_else(|| refused(message))?;
                let made = Made::Message { task: id, message };
                self.keys.keep(key, made, event.at);
            }
            Kind::LetterSent {
                letter,
                written,
                from,
            } => {
                let workspace = naming::workspace_name(&task.spec, &task.short);
                // A refused event leaves nothing behind, an empty box neither.
                let known = self.letterboxes.get(&workspace).map(Letterbox::next_id);
                if *letter != known.unwrap_or(LetterId::FIRST) {
                    return Err(ApplyError::Letter {
                        seq,
                        word,
                        workspace,
                        letter: *letter,
                    });
                }
                let post = self.letterboxes.entry(workspace).or_default();
                post.put(written.clone(), *from, event.at);
            }
            Kind::LettersRead { letters } => {
                let workspace = naming::workspace_name(&task.spec, &task.short);
                let post = self.letterboxes.get_mut(&workspace);
                let read = post.and_then(|post| post.read(letters, event.at));
                read.ok_or_else(|| ApplyError::Letter {
                    seq,
                    word,
                    workspace,
                    letter: letters.first().copied().unwrap_or_default(),
                })?;
            }
            Kind::ChildEnded { child, run, .. } => {
                let end = EndId {
                    child: *child,
                    run: *run,
                };
                // Of a task that nobody's agent asked for nothing is owed.
                task.family.ended(end, event.at);
            }
            Kind::Detached { child } => {
                let detached = task.family.detach(*child);
                detached.ok_or(ApplyError::End {
                    seq,
                    word,
                    task: id,
                })?;
                task.seq = seq;
                self.look_at_end(seq, id);
            }
            Kind::Answered { by, .. } => match by {
                Sender::Person => task.wakes = 0,
                Sender::Task(_) | Sender::Dispatch => {}
            },
            Kind::MessageQueued {
                message,
                text,
                from,
                fresh,
                held,
                ends,
            } => {
                if message.0 != task.messages_count.saturating_add(1) {
                    return Err(refused(*message));
                }
                let told = family::Fate::Told { message: *message };
                let told = task.family.settle(ends, told);
                told.ok_or_else(|| refused(*message))?;
                task.messages_count = message.0;
                if *from == Sender::Person {
                    task.wakes = 0;
                    task.messages.iter_mut().for_each(|m| m.held = false);
                }
                let begun = task.last_run().filter(|run| run.state.holds_slot());
                let barred = begun.map(|run| run.n).filter(|_| *fresh);
                task.messages.push(Message {
                    id: *message,
                    text: text.clone(),
                    from: *from,
                    at: event.at,
                    taken: None,
                    barred,
                    chain: said_in,
                    held: *held,
                    fate: Fate::Waiting,
                });
                task.forget_messages();
                if let (Sender::Task(_), false) = (from, held) {
                    self.count(said_in);
                }
            }
            Kind::MessageCancelled { message } => {
                let found = task.message_mut(*message).filter(|found| found.waits());
                found.ok_or_else(|| refused(*message))?.fate = Fate::Cancelled;
                task.attached
                    .retain(|attached| attached.message != Some(*message));
            }
            Kind::Attached { attached } => {
                if let Some(message) = attached.message {
                    let waits = task.message(message).is_some_and(Message::waits);
                    waits.then_some(()).ok_or_else(|| refused(message))?;
                }
                task.attached.push(attached.clone());
            }
            Kind::TuningSet { tuning } => {
                let waits = task.last_run().filter(|run| run.state == RunState::Queued);
                let waits = waits.map(|run| run.n);
                if task.is_open() && waits.is_none() {
                    task.tuning = std::mem::take(&mut task.tuning).then(tuning);
                } else {
                    let before = task.spec.terms.model.clone();
                    task.spec.tune(tuning.clone());
                    let now = &task.spec.terms.model;
                    let ledger = self.pools.get_mut(&task.spec.pool);
                    if let (Some(n), Some(ledger)) = (waits, ledger) {
                        ledger.tuned(RunId { task: id, n }, &before, now);
                    }
                }
            }
            Kind::AgentSet {
                agent,
                pool,
                model,
                profile,
                command,
                permissions,
            } => {
                if task.is_open() {
                    return Err(ApplyError::WrongSubject {
                        seq,
                        word,
                        subject: event.subject,
                    });
                }
                if task.spec.agent != *agent {
                    task.foreign_runs = u32::try_from(task.runs.len()).unwrap_or(u32::MAX);
                }
                task.spec.agent = agent.clone();
                task.spec.pool = pool.clone();
                let terms = &mut task.spec.terms;
                terms.model.clone_from(model);
                terms.profile.clone_from(profile);
                terms.command.clone_from(command);
                if let Some(permissions) = permissions {
                    terms.permissions = terms.permissions.stricter(*permissions);
                }
            }
            Kind::Applied { repo, branch, .. } => {
                task.applied = Some((repo.clone(), branch.clone()));
            }
            Kind::Snapshotted {
                refname,
                commit,
                keep_until,
            } => task.snapshots.push(Snapshot {
                refname: refname.clone(),
                commit: commit.clone(),
                keep_until: *keep_until,
            }),
            Kind::SnapshotDropped { refname } => {
                task.snapshots
                    .retain(|snapshot| snapshot.refname != *refname);
                task.forget_attached();
            }
            Kind::WorkspaceRemoved => {
                if let Some(workspace) = &mut task.workspace {
                    workspace.removed = true;
                }
                task.forget_attached();
            }
            Kind::AttachmentsDropped => {
                if task.is_open() {
                    return Err(ApplyError::WrongSubject {
                        seq,
                        word,
                        subject: event.subject,
                    });
                }
                task.attached.clear();
                task.attached_dropped = true;
            }
            Kind::WorkspaceRestored => {
                if let Some(workspace) = &mut task.workspace {
                    workspace.removed = false;
                }
            }
            Kind::TaskRemoved | Kind::TaskRestored => {
                task.removed = event.kind == Kind::TaskRemoved;
                task.removed_at = Some(event.at).filter(|_| task.removed);
                self.look_at_hope(id);
            }
            Kind::Noted { text } => task.notes.push(text.clone()),
            Kind::Said { .. } | Kind::BudgetWarned { .. } | Kind::Parked { .. } => {}
            _ => {
                return Err(ApplyError::WrongSubject {
                    seq,
                    word,
                    subject: event.subject,
                });
            }
        }
        if let Some(task) = self.tasks.get_mut(&id) {
            task.seq = seq;
        }
        Ok(())
    }

    fn apply_run(&mut self, event: &Event, id: RunId) -> Result<(), ApplyError> {
        let (seq, word) = (event.seq, event.kind.word());
        let chain = match &event.kind {
            Kind::RunQueued { cause } => self.chain_for(seq, id, cause),
            _ => Chain::default(),
        };
        let heard = match &event.kind {
            Kind::EndsDelivered { ends } => family::words(self, ends),
            _ => String::new(),
        };
        let Some(task) = self.tasks.get_mut(&id.task) else {
            return Err(ApplyError::NoTask {
                seq,
                word,
                task: id.task,
            });
        };
        if let Kind::RunQueued { cause } = &event.kind {
            if id.n as usize != task.runs.len() + 1 || task.is_open() {
                return Err(ApplyError::NoRun { seq, word, run: id });
            }
            match cause {
                RunCause::Said { by_person: false } | RunCause::Ends => {
                    task.wakes = task.wakes.saturating_add(1);
                }
                RunCause::Said { by_person: true }
                | RunCause::RetryOf {
                    by_person: true, ..
                }
                | RunCause::Resumed { .. } => task.wakes = 0,
                RunCause::Dispatched | RunCause::Answer { .. } | RunCause::RetryOf { .. } => {}
            }
            let asker = task.asker();
            task.runs.push(Run {
                n: id.n,
                cause: cause.clone(),
                chain,
                parked: false,
                state: RunState::Queued,
                queued_seq: seq,
                queued_at: event.at,
                prompt: None,
                site: None,
                driver: None,
                enforced: None,
                started_at: None,
                ended_at: None,
                session: None,
                report: None,
                usage: None,
                sealed: None,
                checks: Vec::new(),
                range: None,
                review: None,
                verified: Verified::NotVerified,
            });
            task.seq = seq;
            if let Some(family) = self.family_of(asker) {
                family.goes_on(id.task);
            }
            self.enqueue(seq, id);
            return Ok(());
        }
        if let Kind::Keyed { key, message: None } = &event.kind
            && task.last_run().is_some_and(|run| run.n == id.n)
        {
            self.keys.keep(key, Made::Run(id), event.at);
            task.seq = seq;
            return Ok(());
        }
        let refused = |message: MessageId| ApplyError::Message {
            seq,
            word,
            task: id.task,
            message,
        };
        let unasked = |ask: AskId| ApplyError::Ask {
            seq,
            word,
            task: id.task,
            ask,
        };
        match &event.kind {
            Kind::PermissionAsked {
                ask,
                tool,
                input,
                owner,
                until,
            } => {
                let last = task.last_run().filter(|run| run.n == id.n);
                let next = ask.0 == task.asks_count.saturating_add(1);
                let Some(run) = last.filter(|_| next && task.is_open()) else {
                    return Err(unasked(*ask));
                };
                // One that is being stopped may still ask, and is not answered any more.
                let hears = run.state == RunState::Running && run.report.is_none();
                task.asks_count = ask.0;
                task.asks.push(Ask {
                    id: *ask,
                    run: id.n,
                    tool: tool.clone(),
                    input: input.clone(),
                    owner: *owner,
                    at: event.at,
                    until: *until,
                    fate: if hears {
                        AskFate::Open
                    } else {
                        AskFate::Closed
                    },
                });
            }
            Kind::PermissionAnswered {
                ask,
                allow,
                by,
                reason,
            } => {
                let mut asks = task.asks.iter_mut();
                let found = asks.find(|known| known.id == *ask && known.run == id.n);
                let found = found.filter(|known| known.is_open());
                found.ok_or_else(|| unasked(*ask))?.fate = AskFate::Answered {
                    allow: *allow,
                    by: *by,
                    why: reason.clone(),
                };
            }
            Kind::MessageTaken {
                message,
                out_offset,
            } => {
                let open = task.last_run().is_some_and(|run| run.n == id.n) && task.is_open();
                let taken = Taken {
                    run: id.n,
                    out_offset: *out_offset,
                };
                let taken = open.then(|| task.take(*message, taken)).flatten();
                taken.ok_or_else(|| refused(*message))?;
            }
            Kind::MessageDelivered { message, delivery } => {
                let settled = task.settle(*message, id.n, Fate::Delivered(*delivery));
                settled.ok_or_else(|| refused(*message))?;
            }
            Kind::MessageReturned { message } => {
                let delivered = |found: &&mut Message| {
                    matches!(found.fate, Fate::Delivered(_)) && found.is_with(id.n)
                };
                let found = task.message_mut(*message).filter(delivered);
                let found = found.ok_or_else(|| refused(*message))?;
                (found.taken, found.barred) = (None, Some(id.n));
                found.fate = Fate::Waiting;
            }
            Kind::EndsDelivered { ends } => {
                let working = task.last_run().is_some_and(|run| run.n == id.n);
                let waited = family::Fate::Waited { run: id.n };
                let waited = working.then(|| task.family.settle(ends, waited)).flatten();
                waited.ok_or(ApplyError::End {
                    seq,
                    word,
                    task: id.task,
                })?;
                task.family.hear(id.n, heard);
            }
            _ => {}
        }
        let index = (id.n as usize).wrapping_sub(1);
        let Some(run) = task.runs.get_mut(index) else {
            return Err(ApplyError::NoRun { seq, word, run: id });
        };
        let step = match &event.kind {
            Kind::Admitted => Some(RunEvent::Admitted),
            Kind::Started { .. } => Some(RunEvent::Started),
            Kind::StopRequested { why } => Some(RunEvent::StopRequested(why.clone())),
            Kind::ChecksStarted { .. } => Some(RunEvent::ChecksStarted),
            Kind::Finished { outcome, .. } => Some(RunEvent::Finished(outcome.clone())),
            _ => None,
        };
        let mut before = None;
        if let Some(step) = step {
            let next = run
                .state
                .next(&step)
                .map_err(|source| ApplyError::Illegal {
                    seq,
                    run: id,
                    source,
                })?;
            before = Some(std::mem::replace(&mut run.state, next));
        }
        match &event.kind {
            Kind::Started {
                site,
                driver,
                enforced,
            } => {
                run.site = Some(site.clone());
                run.driver = Some(*driver);
                run.enforced = Some(enforced.clone());
                run.started_at = Some(event.at);
            }
            Kind::SessionSeen { session } => run.session = Some(session.clone()),
            Kind::AgentEnded { report, usage } => {
                run.report = Some(report.clone());
                run.usage.clone_from(usage);
                if let Some(usage) = usage {
                    let pool = task.spec.pool.clone();
                    let ledger = self.pools.entry(pool).or_default();
                    ledger.spent_by(event.at, Budget::of(usage));
                }
            }
            Kind::WorkspaceSealed { sealed } => run.sealed = Some(sealed.clone()),
            Kind::ChecksStarted { checks } => {
                let running = |name: &CheckName| Check {
                    name: name.clone(),
                    state: CheckState::Running,
                    exit: None,
                    note: String::new(),
                };
                run.checks = checks.iter().map(running).collect();
            }
            Kind::CheckFinished {
                check,
                state,
                exit,
                note,
            } => {
                if let Some(slot) = run.checks.iter_mut().find(|slot| slot.name == *check) {
                    (slot.state, slot.exit, slot.note) = (*state, *exit, note.clone());
                }
            }
            Kind::Finished { verified, .. } => {
                run.ended_at = Some(event.at);
                run.verified = *verified;
                let left =
                    |message: &&mut Message| message.fate == Fate::Waiting && message.is_with(id.n);
                for message in task.messages.iter_mut().filter(left) {
                    message.taken = None;
                }
                // No replay needs them any more.
                let old = task.asks.len().saturating_sub(ask::SETTLED_MAX);
                task.asks.drain(..old);
                task.spec.tune(std::mem::take(&mut task.tuning));
                let parked = task.is_parked();
                if let Some(run) = task.runs.get_mut(index) {
                    run.parked = parked;
                }
            }
            Kind::WorkspaceReady {
                path,
                base,
                base_branch,
                ..
            } => {
                task.workspace = Some(Workspace {
                    path: path.clone(),
                    base: base.clone(),
                    base_branch: base_branch.clone(),
                    removed: false,
                });
            }
            Kind::PromptMade { made } => run.prompt = Some(made.clone()),
            Kind::CarriedFound { carried } => task.carried.clone_from(carried),
            Kind::Noted { text } => task.notes.push(text.clone()),
            Kind::RangeSet { range } => run.range = Some(range.clone()),
            Kind::Reviewed { review } => run.review = Some(review.clone()),
            Kind::Admitted
            | Kind::Adopted
            | Kind::SiteRefused { .. }
            | Kind::StopRequested { .. }
            | Kind::PermissionAsked { .. }
            | Kind::PermissionAnswered { .. }
            | Kind::Waits { .. }
            | Kind::BudgetWarned { .. }
            | Kind::MessageTaken { .. }
            | Kind::MessageDelivered { .. }
            | Kind::MessageReturned { .. }
            | Kind::EndsDelivered { .. }
            | Kind::Said { .. } => {}
            _ => {
                return Err(ApplyError::WrongSubject {
                    seq,
                    word,
                    subject: event.subject,
                });
            }
        }
        if let Kind::StopRequested { .. } | Kind::AgentEnded { .. } | Kind::Finished { .. } =
            event.kind
        {
            task.close_asks();
        }
        task.seq = seq;
        if let Some(before) = before {
            self.account(event, id, &before);
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests;
