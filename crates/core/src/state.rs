//! State = fold of the log's life events. `apply` is the only thing that changes it (I3).
//! Must not keep a count that is not derived here: slots and queue are indexes that `apply` alone
//! maintains, and a test holds them equal to a recount.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use crate::{
    Millis,
    ask::{self, Ask, AskId, Fate as AskFate},
    attach::Attached,
    carried::Carried,
    drivers::DriverKind,
    event::{CheckState, Event, Kind, PromptMade, Scope, Sealed, Subject, Verified},
    family::{self, EndId, Family},
    gate::Budget,
    id::{CheckName, PoolName, RunId, Seq, SiteName, TaskId},
    job::{Exit, ExitReport},
    keys::{Keys, Made},
    ledger::Ledger,
    letter::{LetterId, Letterbox},
    message::{Chain, Fate, Message, MessageId, SETTLED_MAX, Sender, Taken},
    naming,
    outcome::{Again, Outcome},
    prompt::Told,
    review::{Range, Review},
    run::{Illegal, RunCause, RunEvent, RunState},
    task::{self, TaskSpec, Tuning},
    update::Usage,
};

#[derive(Clone, Debug, PartialEq)]
pub struct Check {
    pub name: CheckName,
    pub state: CheckState,
    pub exit: Option<Exit>,
    pub note: String,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    pub n: u32,
    pub cause: RunCause,
    /// To which it belongs: that of what started it, or of what it has heard since.
    pub chain: Chain,
    pub state: RunState,
    pub queued_seq: Seq,
    pub queued_at: Millis,
    pub prompt: Option<PromptMade>,
    pub site: Option<SiteName>,
    pub driver: Option<DriverKind>,
    pub enforced: Option<String>,
    pub started_at: Option<Millis>,
    pub ended_at: Option<Millis>,
    pub session: Option<String>,
    pub report: Option<ExitReport>,
    pub usage: Option<Usage>,
    pub sealed: Option<Sealed>,
    pub checks: Vec<Check>,
    pub verified: Verified,
    /// The commits under review.
    pub range: Option<Range>,
    pub review: Option<Review>,
    /// Its end was not its task's: that waited for what it had asked for.
    pub parked: bool,
}

impl Run {
    /// Whether its agent can be at work: started or about to be, and not seen to have ended.
    #[must_use]
    pub fn may_knock(&self) -> bool {
        match self.state {
            RunState::Preparing | RunState::Running | RunState::Stopping { .. } => {
                self.report.is_none()
            }
            RunState::Queued | RunState::Checking | RunState::Finished(_) => false,
        }
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
        self.spec.terms.asked_by.map(|run| run.task)
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
                    told.before.push(message.words());
                }
                Some(taken) if taken.run == n && taken.out_offset.is_none() => {
                    told.now.push(message.words());
                }
                Some(_) | None => {}
            }
        }
        let heard = self.family.heard.iter().filter(|(run, _)| *run < n);
        told.before.extend(heard.map(|(_, text)| text.clone()));
        told
    }

    /// Its workspace is gone and nothing is left to bring it back from.
    #[must_use]
    pub fn is_beyond_recall(&self) -> bool {
        self.snapshots.is_empty() && self.workspace.as_ref().is_some_and(|w| w.removed)
    }

    /// One that cannot run again needs no files, and nobody will read them.
    fn forget_attached(&mut self) {
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

    #[must_use]
    pub fn ask(&self, id: AskId) -> Option<&Ask> {
        self.asks.iter().find(|ask| ask.id == id)
    }

    /// Asks that wait for an answer, in order.
    pub fn open_asks(&self) -> impl Iterator<Item = &Ask> {
        self.asks.iter().filter(|ask| ask.is_open())
    }

    /// Nobody is there to hear an answer.
    fn close_asks(&mut self) {
        for ask in self.asks.iter_mut().filter(|ask| ask.is_open()) {
            ask.fate = AskFate::Closed;
        }
    }

    fn message_mut(&mut self, id: MessageId) -> Option<&mut Message> {
        self.messages.iter_mut().find(|message| message.id == id)
    }

    /// Lets go of the oldest settled ones that no replay of an open run needs.
    fn forget_messages(&mut self) {
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
    fn take(&mut self, id: MessageId, taken: Taken) -> Option<()> {
        let message = self.message_mut(id).filter(|message| message.is_due())?;
        message.taken = Some(taken);
        let chain = message.chain;
        // What it does from now on may be because of this.
        if let Some(run) = self.runs.last_mut() {
            run.chain = run.chain.max(chain);
        }
        Some(())
    }

    fn settle(&mut self, id: MessageId, run: u32, fate: Fate) -> Option<()> {
        let message = self.message_mut(id)?;
        let due = message.fate == Fate::Waiting && message.is_with(run);
        due.then(|| message.fate = fate)
    }
}

/// Why an event cannot be applied: a bug or a damaged log, never luck.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ApplyError {
    #[error("apply event {seq} ({word}): task {task} is not known")]
    NoTask {
        seq: Seq,
        word: &'static str,
        task: TaskId,
    },
    #[error("apply event {seq} ({word}): run {run} is not known")]
    NoRun {
        seq: Seq,
        word: &'static str,
        run: RunId,
    },
    #[error("apply event {seq} ({word}): it is about {subject:?}")]
    WrongSubject {
        seq: Seq,
        word: &'static str,
        subject: Subject,
    },
    #[error("apply event {seq}: the last one was {last}")]
    OutOfOrder { seq: Seq, last: Seq },
    #[error("apply event {seq} ({word}): message {message} of task {task} is not where it must be")]
    Message {
        seq: Seq,
        word: &'static str,
        task: TaskId,
        message: MessageId,
    },
    #[error("apply event {seq} ({word}): ask {ask} of task {task} is not where it must be")]
    Ask {
        seq: Seq,
        word: &'static str,
        task: TaskId,
        ask: AskId,
    },
    #[error("apply event {seq} ({word}): letter {letter} of {workspace} is not where it must be")]
    Letter {
        seq: Seq,
        word: &'static str,
        workspace: String,
        letter: LetterId,
    },
    #[error("apply event {seq} ({word}): an end that is told to task {task} is not owed to it")]
    End {
        seq: Seq,
        word: &'static str,
        task: TaskId,
    },
    #[error("apply event {seq}: task {task} exists already")]
    Twice { seq: Seq, task: TaskId },
    #[error("apply event {seq} to run {run}")]
    Illegal {
        seq: Seq,
        run: RunId,
        source: Illegal,
    },
}

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
    /// What requests that may come again have made.
    #[must_use]
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// The last event applied or stepped over.
    #[must_use]
    pub fn seq(&self) -> Seq {
        self.seq
    }

    #[must_use]
    pub fn frozen(&self) -> bool {
        self.frozen
    }

    #[must_use]
    pub fn pool_frozen(&self, pool: &PoolName) -> bool {
        self.frozen_pools.contains(pool)
    }

    #[must_use]
    pub fn repo_frozen(&self, repo: &str) -> bool {
        self.frozen_repos.contains(repo)
    }

    #[must_use]
    pub fn is_frozen(&self, scope: &Scope) -> bool {
        match scope {
            Scope::All => self.frozen,
            Scope::Pool(pool) => self.pool_frozen(pool),
            Scope::Repo(repo) => self.repo_frozen(repo),
        }
    }

    #[must_use]
    pub fn pool(&self, pool: &PoolName) -> Option<&Ledger> {
        self.pools.get(pool)
    }

    /// Every pool that has had a run.
    pub fn pools(&self) -> impl Iterator<Item = (&PoolName, &Ledger)> {
        self.pools.iter()
    }

    /// The tasks that it waits for and that have not completed.
    pub fn unmet<'a>(&'a self, task: &'a Task) -> impl Iterator<Item = TaskId> + 'a {
        let met = |id: &TaskId| self.tasks.get(id).is_some_and(Task::has_completed);
        task.spec
            .terms
            .after
            .iter()
            .copied()
            .filter(move |id| !met(id))
    }

    /// Queued runs that wait for a task which will not complete, and that task.
    pub fn hopeless(&self) -> impl Iterator<Item = (RunId, TaskId)> + '_ {
        let waiting = |id: &TaskId| self.waited_for.get(id).map(|runs| (*id, runs));
        self.hopeless
            .iter()
            .filter_map(waiting)
            .flat_map(|(id, runs)| runs.iter().map(move |run| (*run, id)))
    }

    #[must_use]
    pub fn task(&self, id: TaskId) -> Option<&Task> {
        self.tasks.get(&id)
    }

    #[must_use]
    pub fn run(&self, id: RunId) -> Option<&Run> {
        self.tasks
            .get(&id.task)?
            .runs
            .get(usize::try_from(id.n).ok()?.checked_sub(1)?)
    }

    /// The letters of a workspace, if there were any.
    #[must_use]
    pub fn letterbox(&self, workspace: &str) -> Option<&Letterbox> {
        self.letterboxes.get(workspace)
    }

    /// The newest task whose workspace has that name.
    #[must_use]
    pub fn at_workspace(&self, name: &str) -> Option<&Task> {
        let has = |task: &&Task| naming::workspace_name(&task.spec, &task.short) == name;
        self.tasks().rev().find(has)
    }

    /// Messages of agents that it has led to.
    #[must_use]
    pub fn chain_messages(&self, chain: Chain) -> u32 {
        self.chains.get(&chain).copied().unwrap_or(0)
    }

    /// The chain that a task's agent works in.
    #[must_use]
    pub fn chain_of(&self, task: TaskId) -> Chain {
        let run = self.tasks.get(&task).and_then(Task::last_run);
        run.map_or(Chain::default(), |run| run.chain)
    }

    /// Whether agents of `above` asked for it, or those of tasks that they asked for.
    #[must_use]
    pub fn is_below(&self, id: TaskId, above: TaskId) -> bool {
        let asker = |id: &TaskId| self.tasks.get(id).and_then(Task::asker);
        std::iter::successors(asker(&id), asker).any(|asker| asker == above)
    }

    /// How many tasks were asked for below it, and how many of them are not done.
    #[must_use]
    pub fn below(&self, id: TaskId) -> (u32, u32) {
        let (mut all, mut open) = (0_u32, 0_u32);
        let children = self.tasks.get(&id).map(|task| &task.family.children);
        for child in children.into_iter().flatten() {
            let (below, open_below) = self.below(child.task);
            all = all.saturating_add(1).saturating_add(below);
            let own = u32::from(!child.done);
            open = open.saturating_add(own).saturating_add(open_below);
        }
        (all, open)
    }

    fn family_of(&mut self, asker: Option<TaskId>) -> Option<&mut Family> {
        let asker = self.tasks.get_mut(&asker?)?;
        Some(&mut asker.family)
    }

    /// Oldest first.
    pub fn tasks(&self) -> impl DoubleEndedIterator<Item = &Task> {
        self.created.iter().filter_map(|id| self.tasks.get(id))
    }

    /// Runs that wait, oldest first.
    pub fn queue(&self) -> impl ExactSizeIterator<Item = RunId> {
        self.queue.iter().map(|(_, run)| *run)
    }

    #[must_use]
    pub fn slots_held(&self, pool: &PoolName) -> usize {
        self.pools.get(pool).map_or(0, Ledger::slots_held)
    }

    /// Runs that hold a slot.
    pub fn live(&self) -> impl ExactSizeIterator<Item = RunId> {
        self.open.iter().copied()
    }

    /// Tasks whose id starts with `prefix`, oldest first.
    #[must_use]
    pub fn find(&self, prefix: &str) -> Vec<&Task> {
        self.tasks()
            .filter(|task| task.id.to_string().starts_with(prefix))
            .collect()
    }

    /// Tasks that hold the workspace a task like this would work in, oldest first.
    pub fn holders<'a>(&'a self, spec: &'a TaskSpec) -> impl Iterator<Item = &'a Task> {
        let same = move |task: &&Task| task.holds_workspace() && task.spec.same_workspace(spec);
        // Most tasks have a workspace of their own, and need not look at the others.
        let shared = spec.leaf().map(|_| self.tasks());
        shared.into_iter().flatten().filter(same)
    }

    /// The older task that a task which was queued behind it, or supersedes it, still waits for.
    #[must_use]
    pub fn waits_behind(&self, id: TaskId) -> Option<&Task> {
        let task = self.tasks.get(&id)?;
        task.spec.turn.behind?;
        // Its first run waits; whoever has begun has the workspace.
        let waits = matches!(&task.runs[..], [run] if run.state == RunState::Queued);
        let mut older = self
            .holders(&task.spec)
            .take_while(|other| other.id != id)
            .filter(|other| match task.spec.turn.taken {
                task::Taken::Supersede => other.is_open(),
                task::Taken::Queue | task::Taken::Refuse => true,
            });
        older.next().filter(|_| waits)
    }

    /// The newer task that has this one's workspace now.
    #[must_use]
    pub fn taken_over(&self, id: TaskId) -> Option<TaskId> {
        let task = self.tasks.get(&id)?;
        let mut newer = self.holders(&task.spec).filter(|other| {
            let mut order = self
                .created
                .iter()
                .filter(|one| [id, other.id].contains(one));
            other.id != id && order.next() == Some(&id) && self.waits_behind(other.id).is_none()
        });
        newer.next().map(|other| other.id)
    }

    /// The shortest prefix of `id` that no other task has; at least two digits.
    #[must_use]
    pub fn short(&self, id: TaskId) -> String {
        let text = id.to_string();
        let shared = |other: &TaskId| {
            let other = other.to_string();
            text.bytes()
                .zip(other.bytes())
                .take_while(|(a, b)| a == b)
                .count()
        };
        // Neighbours in sorted order share the longest prefixes.
        let before = self
            .tasks
            .range(..id)
            .next_back()
            .map_or(0, |(other, _)| shared(other));
        let next = self.tasks.range(id..).find(|(other, _)| **other != id);
        let after = next.map_or(0, |(other, _)| shared(other));
        let length = (before.max(after) + 1).clamp(2, TaskId::HEX_DIGITS);
        text[..length].to_owned()
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

    /// A run that has just been queued waits for its turn, or for other tasks first.
    fn enqueue(&mut self, seq: Seq, id: RunId) {
        self.queue.insert((seq, id));
        self.hopeless.remove(&id.task);
        let Some(task) = self.tasks.get(&id.task) else {
            return;
        };
        let unmet: Vec<TaskId> = self.unmet(task).collect();
        if unmet.is_empty() {
            let ledger = self.pools.entry(task.spec.pool.clone()).or_default();
            ledger.queued(seq, id, &task.spec);
            return;
        }
        self.parked.insert(id);
        for other in unmet {
            self.waited_for.entry(other).or_default().insert(id);
            self.look_at_hope(other);
        }
    }

    fn look_at_hope(&mut self, id: TaskId) {
        let hopeless = self.tasks.get(&id).is_none_or(Task::is_hopeless);
        if hopeless && self.waited_for.contains_key(&id) {
            self.hopeless.insert(id);
        } else {
            self.hopeless.remove(&id);
        }
    }

    /// A queued run waits no longer for other tasks.
    fn unpark(&mut self, id: RunId) -> bool {
        if !self.parked.remove(&id) {
            return false;
        }
        let after = self.tasks.get(&id.task).map(|t| &t.spec.terms.after);
        for other in after.into_iter().flatten() {
            if let Some(runs) = self.waited_for.get_mut(other) {
                runs.remove(&id);
                if runs.is_empty() {
                    self.waited_for.remove(other);
                    self.hopeless.remove(other);
                }
            }
        }
        true
    }

    /// Runs that waited for this task only get their turn now.
    fn let_go(&mut self, seq: Seq, completed: TaskId) {
        let runs = self.waited_for.get(&completed).cloned();
        for run in runs.into_iter().flatten() {
            let Some(task) = self.tasks.get(&run.task) else {
                continue;
            };
            if self.unmet(task).next().is_some() {
                continue;
            }
            let (pool, spec) = (task.spec.pool.clone(), task.spec.clone());
            if self.unpark(run) {
                self.pools.entry(pool).or_default().queued(seq, run, &spec);
            }
        }
        self.waited_for.remove(&completed);
    }

    /// What a step of a run's life means for its pool and for those that wait for it.
    fn account(&mut self, event: &Event, id: RunId, before: &RunState) {
        let Some(task) = self.tasks.get(&id.task) else {
            return;
        };
        let Some(run) = task.runs.get((id.n as usize).wrapping_sub(1)) else {
            return;
        };
        let (seq, at) = (event.seq, event.at);
        let (started_at, queued_seq) = (run.started_at, run.queued_seq);
        let (held, holds) = (before.holds_slot(), run.state.holds_slot());
        let ledger = self.pools.entry(task.spec.pool.clone()).or_default();
        match (&run.state, held, holds) {
            (_, false, true) => {
                ledger.admitted(seq, at, id, &task.spec);
                self.open.insert(id);
            }
            (RunState::Finished(outcome), true, false) => {
                ledger.ended(seq, at, id, started_at, outcome);
                self.open.remove(&id);
            }
            (RunState::Finished(_), false, false) => ledger.withdrawn(id, &task.spec),
            (_, true, _) | (_, false, false) => {}
        }
        if *before == RunState::Queued {
            self.queue.remove(&(queued_seq, id));
            self.unpark(id);
        }
        self.look_at_end(seq, id.task);
        self.look_at_hope(id.task);
    }

    /// A task that has ended well and waits for nothing lets go of those that wait for it.
    fn look_at_end(&mut self, seq: Seq, id: TaskId) {
        let Some(task) = self.tasks.get_mut(&id) else {
            return;
        };
        let well = matches!(task.outcome(), Some(Outcome::Completed { .. }));
        if well && task.is_done() {
            task.completed = true;
            self.let_go(seq, id);
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
                // Those of the agent before; what the next one has comes with it, or from its table.
                terms.chain.clear();
                terms.rules = None;
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

    /// What the indexes must equal; for tests and for a check after a fold.
    #[must_use]
    pub fn indexes_hold(&self) -> bool {
        let (mut queue, mut open) = (BTreeSet::new(), BTreeSet::new());
        let mut parked = BTreeSet::new();
        let mut pools: BTreeMap<&PoolName, (BTreeSet<RunId>, BTreeMap<RunId, _>)> = BTreeMap::new();
        for task in self.tasks.values() {
            let waits = self.unmet(task).next().is_some();
            for run in &task.runs {
                let id = RunId {
                    task: task.id,
                    n: run.n,
                };
                let (waiting, live) = pools.entry(&task.spec.pool).or_default();
                if run.state == RunState::Queued {
                    queue.insert((run.queued_seq, id));
                    if waits {
                        parked.insert(id);
                    } else {
                        waiting.insert(id);
                    }
                }
                if run.state.holds_slot() {
                    open.insert(id);
                    live.insert(id, task.spec.terms.model.clone());
                }
            }
        }
        let empty = Ledger::default();
        let mut ledgers = pools
            .iter()
            .map(|(pool, recount)| (self.pools.get(*pool).unwrap_or(&empty), recount));
        queue == self.queue
            && open == self.open
            && parked == self.parked
            && ledgers.all(|(ledger, (waiting, live))| ledger.holds(waiting, live))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{
        config::Config,
        outcome::Stop,
        schedule::{Held, Host, View},
        task::{Base, ChecksAsked, Expects, Labels, Placement, Terms, Turn, Wrap},
    };

    pub(crate) fn spec(pool: &str) -> TaskSpec {
        TaskSpec {
            title: "t".into(),
            text: "t".into(),
            repo: "/r".into(),
            base: Base::Head,
            agent: "a".parse().unwrap(),
            pool: pool.parse().unwrap(),
            placement: Placement::of(Wrap::Host),
            expects: Expects::Change,
            checks: ChecksAsked::Detect,
            review_base: None,
            workspace: None,
            turn: Turn::default(),
            parent: None,
            labels: Labels::default(),
            terms: Terms::default(),
            limits: crate::limits::Lowered::default(),
            guide: Default::default(),
        }
    }

    struct World {
        state: State,
    }

    impl World {
        fn new() -> Self {
            Self {
                state: State::default(),
            }
        }

        fn put(&mut self, subject: Subject, kind: Kind) -> Result<(), ApplyError> {
            let event = Event {
                seq: self.state.seq() + 1,
                at: 5,
                subject,
                kind,
            };
            let result = self.state.apply(&event);
            assert!(self.state.indexes_hold(), "after {event:?}");
            result
        }

        fn task(&mut self, bits: u64, pool: &str) -> RunId {
            let task = TaskId::from_bits(bits);
            let created = Kind::TaskCreated {
                spec: Box::new(spec(pool)),
                short: "3f".into(),
            };
            self.put(Subject::Task(task), created).unwrap();
            let run = RunId { task, n: 1 };
            self.put(
                Subject::Run(run),
                Kind::RunQueued {
                    cause: RunCause::Dispatched,
                },
            )
            .unwrap();
            run
        }
    }

    fn finished(outcome: Outcome) -> Kind {
        Kind::Finished {
            outcome,
            verified: Verified::NotVerified,
        }
    }

    fn look<'a>(world: &'a World, config: &'a Config, held: &'a Held) -> View<'a> {
        View {
            state: &world.state,
            gate: &config.gate,
            pools: &config.pools,
            disk_free_min_bytes: 0,
            held,
            host: Host::default(),
            now: 5,
        }
    }

    /// One after the other, as the engine does.
    fn admit(world: &mut World, config: &Config, held: &Held) -> Vec<RunId> {
        let mut all = Vec::new();
        loop {
            let admit = look(world, config, held).decide().admit;
            if admit.is_empty() {
                return all;
            }
            for run in admit {
                world.put(Subject::Run(run), Kind::Admitted).unwrap();
                all.push(run);
            }
        }
    }

    #[test]
    fn slots_follow_from_states_whatever_happens() {
        let mut world = World::new();
        let (config, none) = (Config::defaults(), Held::new());
        let runs: Vec<RunId> = (0..6).map(|n| world.task(n << 32, "anthropic")).collect();
        assert_eq!(admit(&mut world, &config, &none), runs[..3]);
        let why = look(&world, &config, &none).waits_for(runs[3]).unwrap();
        assert_eq!(why.text, "pool anthropic: 3 of 3 busy");
        world
            .put(Subject::Run(runs[1]), finished(Outcome::Lost))
            .unwrap();
        assert_eq!(look(&world, &config, &none).decide().admit, [runs[3]]);
        let held = Held::from([(runs[3], "needs KEY from you".to_owned())]);
        assert_eq!(look(&world, &config, &held).decide().admit, [runs[4]]);
        let frozen = Kind::FrozenSet {
            frozen: true,
            scope: Scope::All,
        };
        world.put(Subject::Engine, frozen).unwrap();
        assert!(look(&world, &config, &held).decide().admit.is_empty());
    }

    /// As format 1 wrote them: no terms, no scope, nobody who asked for a retry.
    #[test]
    fn logs_of_the_first_format_are_read() {
        let old = [
            r#"{"seq":1,"at":5,"subject":"engine","kind":{"frozen_set":{"frozen":true}}}"#,
            r#"{"seq":2,"at":5,"subject":{"task":"0000000000000001"},"kind":{"task_created":{"spec":{
                "title":"t","text":"t","repo":"/r","base":"head","agent":"a","pool":"p",
                "placement":{"sites":[],"wrap":"host"},"expects":"change","checks":"detect",
                "workspace":null,"parent":null,
                "labels":{"org":null,"issue":null,"pr":null,"tag":null}},"short":"00"}}}"#,
            r#"{"seq":3,"at":5,"subject":{"run":{"task":"0000000000000001","n":1}},
                "kind":{"run_queued":{"cause":"dispatched"}}}"#,
            r#"{"seq":4,"at":5,"subject":{"run":{"task":"0000000000000001","n":1}},
                "kind":{"finished":{"outcome":"lost","verified":"not_verified"}}}"#,
            r#"{"seq":5,"at":5,"subject":{"run":{"task":"0000000000000001","n":2}},
                "kind":{"run_queued":{"cause":{"retry_of":{"n":1}}}}}"#,
        ];
        let mut state = State::default();
        for line in old {
            let event: Event = serde_json::from_str(line).unwrap();
            state.apply(&event).unwrap();
        }
        assert!(state.frozen() && state.indexes_hold());
        let task = state.task(TaskId::from_bits(1)).unwrap();
        assert_eq!(task.spec.terms, Terms::default());
        assert_eq!(task.own_retries(), 1);
    }

    /// A task for pull request 7.
    fn on_pr(world: &mut World, bits: u64, turn: Turn) -> RunId {
        let task = TaskId::from_bits(bits);
        let mut spec = spec("default");
        spec.base = Base::Pr { number: 7 };
        spec.turn = turn;
        let short = world.state.short(task);
        let spec = Box::new(spec);
        world
            .put(Subject::Task(task), Kind::TaskCreated { spec, short })
            .unwrap();
        let run = RunId { task, n: 1 };
        let cause = RunCause::Dispatched;
        world
            .put(Subject::Run(run), Kind::RunQueued { cause })
            .unwrap();
        run
    }

    #[test]
    fn whoever_is_queued_waits_for_every_older_holder() {
        let mut world = World::new();
        let behind = |taken, other: RunId| Turn {
            taken,
            behind: Some(other.task),
        };
        let first = on_pr(&mut world, 1 << 60, Turn::default());
        let second = on_pr(&mut world, 2 << 60, behind(task::Taken::Queue, first));
        let third = on_pr(&mut world, 3 << 60, behind(task::Taken::Queue, second));
        let waits = |world: &World, run: RunId| world.state.waits_behind(run.task).map(|t| t.id);
        assert_eq!(waits(&world, first), None);
        assert_eq!(waits(&world, second), Some(first.task));
        // The second gives up, and the third still waits for the first.
        world
            .put(
                Subject::Run(second),
                finished(Outcome::Stopped(Stop::ByPerson)),
            )
            .unwrap();
        assert_eq!(waits(&world, third), Some(first.task));
        assert_eq!(world.state.taken_over(first.task), None);
        let question = "which?".to_owned();
        world
            .put(Subject::Run(first), finished(Outcome::Blocked { question }))
            .unwrap();
        assert_eq!(
            waits(&world, third),
            Some(first.task),
            "it waits for an answer"
        );
        // Who supersedes does not wait for an answer that nobody gives, but for those that run.
        let fourth = on_pr(&mut world, 4 << 60, behind(task::Taken::Supersede, third));
        assert_eq!(waits(&world, fourth), Some(third.task));
        world
            .put(
                Subject::Run(third),
                finished(Outcome::Stopped(Stop::ByPerson)),
            )
            .unwrap();
        assert_eq!(waits(&world, fourth), None);
        assert_eq!(world.state.taken_over(first.task), Some(fourth.task));
        world
            .put(Subject::Task(first.task), Kind::TaskRemoved)
            .unwrap();
        let spec = world.state.task(fourth.task).unwrap().spec.clone();
        let holders: Vec<TaskId> = world.state.holders(&spec).map(|t| t.id).collect();
        assert_eq!(holders, [fourth.task]);
    }

    fn said(world: &mut World, run: RunId, n: u32, fresh: bool) -> Result<(), ApplyError> {
        let queued = Kind::MessageQueued {
            message: MessageId(n),
            text: "m".into(),
            from: Sender::Person,
            fresh,
            held: false,
            ends: Vec::new(),
        };
        world.put(Subject::Task(run.task), queued)
    }

    fn attached(message: Option<u32>, folder: u32) -> Kind {
        let attached = Attached {
            folder,
            files: Vec::new(),
            message: message.map(MessageId),
        };
        Kind::Attached { attached }
    }

    /// Each run is given what came with its task and with what was said to it so far.
    #[test]
    fn files_go_with_what_they_came_with() {
        let mut world = World::new();
        let run = world.task(1, "default");
        let about = Subject::Task(run.task);
        world.put(about, attached(None, 1)).unwrap();
        world.put(Subject::Run(run), Kind::Admitted).unwrap();
        for (n, fresh) in [(1, true), (2, true), (3, false)] {
            said(&mut world, run, n, fresh).unwrap();
        }
        world.put(about, attached(Some(1), 2)).unwrap();
        world.put(about, attached(Some(2), 3)).unwrap();
        assert!(world.put(about, attached(Some(4), 4)).is_err(), "no such");
        let task = |world: &World| world.state.task(run.task).unwrap().clone();
        let barred = |m: &Message| m.is_barred_from(1);
        let all: Vec<bool> = task(&world).messages.iter().map(barred).collect();
        assert_eq!(all, [true, true, false]);
        let message = MessageId(2);
        world
            .put(about, Kind::MessageCancelled { message })
            .unwrap();
        world
            .put(Subject::Run(run), finished(Outcome::Lost))
            .unwrap();
        let next = RunId { n: 2, ..run };
        let cause = RunCause::Said { by_person: true };
        world
            .put(Subject::Run(next), Kind::RunQueued { cause })
            .unwrap();
        let taken = Kind::MessageTaken {
            message: MessageId(1),
            out_offset: None,
        };
        world.put(Subject::Run(next), taken).unwrap();
        let given = |n: u32| {
            let task = task(&world);
            let given = task.attached_for(n).map(|(a, new)| (a.folder, new));
            given.collect::<Vec<_>>()
        };
        assert_eq!(given(1), [(1, true)]);
        assert_eq!(given(2), [(1, false), (2, true)]);
        assert_eq!(given(3), [(1, false), (2, false)]);
        // What is for this run is withdrawn no more.
        assert!(world.put(about, attached(Some(1), 9)).is_err());
    }

    /// When nothing can run any more, nobody will read them.
    #[test]
    fn files_go_when_nothing_can_run_any_more() {
        let kept = |refname: &str| Kind::Snapshotted {
            refname: refname.into(),
            commit: "c".into(),
            keep_until: 9,
        };
        let dropped = |refname: &str| Kind::SnapshotDropped {
            refname: refname.into(),
        };
        let ready = Kind::WorkspaceReady {
            path: "/w".into(),
            base: "b".into(),
            base_branch: None,
            how: String::new(),
        };
        let removed = Kind::WorkspaceRemoved;
        // All but the last keep them.
        for steps in [
            vec![removed.clone()],
            vec![kept("a"), removed.clone(), dropped("a")],
            vec![kept("a"), kept("b"), removed, dropped("a"), dropped("b")],
            vec![Kind::TaskRemoved, Kind::AttachmentsDropped],
        ] {
            let mut world = World::new();
            let run = world.task(1, "default");
            let about = Subject::Task(run.task);
            world.put(about, attached(None, 1)).unwrap();
            assert!(world.put(about, Kind::AttachmentsDropped).is_err());
            world.put(Subject::Run(run), Kind::Admitted).unwrap();
            world.put(Subject::Run(run), ready.clone()).unwrap();
            let lost = finished(Outcome::Lost);
            world.put(Subject::Run(run), lost).unwrap();
            let (last, before) = steps.split_last().unwrap();
            for step in before {
                world.put(about, step.clone()).unwrap();
            }
            let left = |world: &World| world.state.task(run.task).unwrap().attached.len();
            assert_eq!(left(&world), 1, "{steps:?}");
            world.put(about, last.clone()).unwrap();
            assert_eq!(left(&world), 0, "{steps:?}");
            let task = world.state.task(run.task).unwrap();
            let dropped = *last == Kind::AttachmentsDropped;
            assert_eq!(task.attached_dropped, dropped);
            assert_eq!(task.removed_at.is_some(), dropped);
        }
    }

    /// A run that waits for the gate changes its model; one that was let in keeps it to its end.
    #[test]
    fn another_model_holds_from_the_next_run_on() {
        let mut world = World::new();
        let (config, none) = (Config::defaults(), Held::new());
        let run = world.task(1, "default");
        let about = Subject::Task(run.task);
        let set = |model: &str, effort| Kind::TuningSet {
            tuning: Tuning {
                model: model.parse().ok(),
                effort,
                chain: None,
            },
        };
        let has = |world: &World| {
            let task = world.state.task(run.task).unwrap();
            let model = task.spec.terms.model.as_ref().map(ToString::to_string);
            (model, task.spec.guide.effort)
        };
        world.put(about, set("one", None)).unwrap();
        assert_eq!(has(&world), (Some("one".into()), None));
        assert_eq!(admit(&mut world, &config, &none), [run]);
        world.put(about, set("two", None)).unwrap();
        let high = Some(task::Effort::High);
        world.put(about, set("", high)).unwrap();
        assert_eq!(has(&world), (Some("one".into()), None));
        world
            .put(Subject::Run(run), finished(Outcome::Lost))
            .unwrap();
        assert_eq!(has(&world), (Some("two".into()), high));
        world.put(about, set("three", None)).unwrap();
        assert_eq!(has(&world), (Some("three".into()), high));
        let next = RunId { n: 2, ..run };
        let cause = RunCause::Said { by_person: true };
        world
            .put(Subject::Run(next), Kind::RunQueued { cause })
            .unwrap();
        world.put(about, set("four", None)).unwrap();
        assert_eq!(admit(&mut world, &config, &none), [next]);
        assert_eq!(has(&world), (Some("four".into()), high));
    }

    #[test]
    fn illegal_events_change_nothing() {
        let mut world = World::new();
        let run = world.task(1, "default");
        let before = world.state.clone();
        let stop = Kind::StopRequested {
            why: Stop::ByPerson,
        };
        assert!(matches!(
            world.put(Subject::Run(run), stop),
            Err(ApplyError::Illegal { .. })
        ));
        let other = RunId { n: 2, ..run };
        assert!(world.put(Subject::Run(other), Kind::Admitted).is_err());
        let again = Kind::RunQueued {
            cause: RunCause::Dispatched,
        };
        assert!(
            world.put(Subject::Run(other), again).is_err(),
            "the first run is still open"
        );
        assert_eq!(world.state, before);
    }

    fn running(world: &mut World) -> RunId {
        let run = world.task(1, "default");
        let started = Kind::Started {
            site: "local".parse().unwrap(),
            driver: DriverKind::Claude,
            enforced: String::new(),
        };
        world.put(Subject::Run(run), Kind::Admitted).unwrap();
        world.put(Subject::Run(run), started).unwrap();
        run
    }

    fn asked(n: u32) -> Kind {
        Kind::PermissionAsked {
            ask: AskId(n),
            tool: "Bash".into(),
            input: "make".into(),
            owner: Sender::Person,
            until: 605,
        }
    }

    fn permitted(n: u32, allow: bool) -> Kind {
        Kind::PermissionAnswered {
            ask: AskId(n),
            allow,
            by: ask::By::Person,
            reason: None,
        }
    }

    fn words(world: &World, run: RunId) -> Vec<&'static str> {
        let task = world.state.task(run.task).unwrap();
        task.asks.iter().map(Ask::word).collect()
    }

    #[test]
    fn an_ask_is_answered_once_and_ends_with_its_run() {
        let stop = Kind::StopRequested {
            why: Stop::ByPerson,
        };
        let report = ExitReport {
            exit: Exit::Code(0),
            stopped: None,
            started_at: 1,
            ended_at: 2,
            out_bytes: 3,
            err_bytes: 4,
            leftovers: 0,
            problems: Vec::new(),
        };
        let ended = Kind::AgentEnded {
            report,
            usage: None,
        };
        for end in [stop, ended, finished(Outcome::Lost)] {
            let mut world = World::new();
            let run = running(&mut world);
            let about = Subject::Run(run);
            for wrong in [asked(0), asked(2), permitted(1, true)] {
                assert!(matches!(
                    world.put(about, wrong),
                    Err(ApplyError::Ask { .. })
                ));
            }
            for n in 1..=3 {
                world.put(about, asked(n)).unwrap();
            }
            world.put(about, permitted(2, true)).unwrap();
            world.put(about, permitted(3, false)).unwrap();
            assert!(world.put(about, permitted(2, false)).is_err());
            assert_eq!(words(&world, run), ["waiting", "allowed", "denied"]);
            let over = matches!(end, Kind::Finished { .. });
            world.put(about, end.clone()).unwrap();
            assert_eq!(words(&world, run), ["closed", "allowed", "denied"]);
            assert!(world.put(about, permitted(1, true)).is_err());
            // One that is on its way out may ask; nobody is troubled with it.
            let again = world.put(about, asked(4));
            assert_eq!(again.is_err(), over, "{end:?}");
            let task = world.state.task(run.task).unwrap();
            assert_eq!(task.open_asks().count(), 0);
        }
    }

    /// What was said to a denial had another name in the first logs.
    #[test]
    fn a_reason_is_read_under_either_name() {
        let read = |name: &str| {
            let answer =
                r#"{"permission_answered":{"ask":1,"allow":false,"by":"person","NAME":"no"}}"#;
            serde_json::from_str::<Kind>(&answer.replace("NAME", name)).unwrap()
        };
        assert_eq!(read("why"), read("reason"));
        assert!(
            matches!(read("why"), Kind::PermissionAnswered { reason, .. } if reason.as_deref() == Some("no"))
        );
    }

    /// All of an open run's are there for a replay; then only the newest.
    #[test]
    fn asks_are_forgotten_when_no_replay_needs_them() {
        let mut world = World::new();
        let run = running(&mut world);
        let all = u32::try_from(ask::SETTLED_MAX).unwrap() + 5;
        for n in 1..=all {
            world.put(Subject::Run(run), asked(n)).unwrap();
            world.put(Subject::Run(run), permitted(n, true)).unwrap();
        }
        assert_eq!(words(&world, run).len(), all as usize);
        world
            .put(Subject::Run(run), finished(Outcome::Lost))
            .unwrap();
        let task = world.state.task(run.task).unwrap();
        assert_eq!(task.asks.len(), ask::SETTLED_MAX);
        assert_eq!(task.asks[0].id, AskId(6));
        assert_eq!(task.asks_count, all);
    }

    #[test]
    fn prefixes_are_as_short_as_they_can_be() {
        let mut world = World::new();
        for bits in [
            0x3f10_0000_0000_0000,
            0x3f1a_0000_0000_0000,
            0x9900_0000_0000_0000,
        ] {
            world.task(bits, "default");
        }
        let short = |bits| world.state.short(TaskId::from_bits(bits));
        assert_eq!(short(0x3f10_0000_0000_0000), "3f10");
        assert_eq!(short(0x9900_0000_0000_0000), "99");
        assert_eq!(world.state.find("3f").len(), 2);
    }
}
