//! State = fold of the log's life events. `apply` is the only thing that changes it (I3).
//! Must not keep a count that is not derived here: slots and queue are indexes that `apply` alone
//! maintains, and a test holds them equal to a recount.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use crate::{
    Millis,
    carried::Carried,
    drivers::DriverKind,
    event::{CheckState, Event, Kind, Sealed, Subject, Verified},
    id::{CheckName, PoolName, RunId, Seq, SiteName, TaskId},
    job::{Exit, ExitReport},
    outcome::Outcome,
    review::{Range, Review},
    run::{Illegal, RunCause, RunEvent, RunState},
    task::{Taken, TaskSpec},
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
    pub state: RunState,
    pub queued_seq: Seq,
    pub queued_at: Millis,
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
    pub notes: Vec<String>,
    /// Configuration for agents in the base commit.
    pub carried: Vec<Carried>,
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
        !self.removed && (self.is_open() || blocked)
    }

    /// The newest kept result.
    #[must_use]
    pub fn result(&self) -> Option<&Sealed> {
        self.runs.iter().rev().find_map(|run| run.sealed.as_ref())
    }

    /// The session a next run can go on with.
    #[must_use]
    pub fn session(&self) -> Option<&str> {
        self.runs
            .iter()
            .rev()
            .find_map(|run| run.session.as_deref())
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
    tasks: BTreeMap<TaskId, Task>,
    created: Vec<TaskId>,
    queue: BTreeSet<(Seq, RunId)>,
    held: BTreeMap<PoolName, usize>,
    open: BTreeSet<RunId>,
}

impl State {
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
        self.held.get(pool).copied().unwrap_or(0)
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
                Taken::Supersede => other.is_open(),
                Taken::Queue | Taken::Refuse => true,
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
                Kind::FrozenSet { frozen } => self.frozen = *frozen,
                Kind::EngineStarted { .. } | Kind::Noted { .. } => {}
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
                notes: Vec::new(),
                carried: Vec::new(),
            };
            self.tasks.insert(id, task);
            self.created.push(id);
            return Ok(());
        }
        let task = self.tasks.get_mut(&id).ok_or(ApplyError::NoTask {
            seq,
            word,
            task: id,
        })?;
        match &event.kind {
            Kind::Answered { .. } | Kind::ChildEnded { .. } => {}
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
            }
            Kind::WorkspaceRemoved => {
                if let Some(workspace) = &mut task.workspace {
                    workspace.removed = true;
                }
            }
            Kind::WorkspaceRestored => {
                if let Some(workspace) = &mut task.workspace {
                    workspace.removed = false;
                }
            }
            Kind::TaskRemoved => task.removed = true,
            Kind::TaskRestored => task.removed = false,
            Kind::Noted { text } => task.notes.push(text.clone()),
            Kind::Said { .. } => {}
            _ => {
                return Err(ApplyError::WrongSubject {
                    seq,
                    word,
                    subject: event.subject,
                });
            }
        }
        task.seq = seq;
        Ok(())
    }

    fn apply_run(&mut self, event: &Event, id: RunId) -> Result<(), ApplyError> {
        let (seq, word) = (event.seq, event.kind.word());
        let Some(task) = self.tasks.get_mut(&id.task) else {
            return Err(ApplyError::NoTask {
                seq,
                word,
                task: id.task,
            });
        };
        let pool = task.spec.pool.clone();
        if let Kind::RunQueued { cause } = &event.kind {
            if id.n as usize != task.runs.len() + 1 || task.is_open() {
                return Err(ApplyError::NoRun { seq, word, run: id });
            }
            task.runs.push(Run {
                n: id.n,
                cause: cause.clone(),
                state: RunState::Queued,
                queued_seq: seq,
                queued_at: event.at,
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
            self.queue.insert((seq, id));
            return Ok(());
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
        if let Some(step) = step {
            let held = run.state.holds_slot();
            let next = run
                .state
                .next(&step)
                .map_err(|source| ApplyError::Illegal {
                    seq,
                    run: id,
                    source,
                })?;
            run.state = next;
            self.queue.remove(&(run.queued_seq, id));
            match (held, run.state.holds_slot()) {
                (false, true) => {
                    self.open.insert(id);
                    *self.held.entry(pool).or_default() += 1;
                }
                (true, false) => {
                    self.open.remove(&id);
                    if let Some(count) = self.held.get_mut(&pool) {
                        *count = count.saturating_sub(1);
                    }
                }
                (false, false) | (true, true) => {}
            }
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
            Kind::CarriedFound { carried } => task.carried.clone_from(carried),
            Kind::Noted { text } => task.notes.push(text.clone()),
            Kind::RangeSet { range } => run.range = Some(range.clone()),
            Kind::Reviewed { review } => run.review = Some(review.clone()),
            Kind::Admitted
            | Kind::Adopted
            | Kind::SiteRefused { .. }
            | Kind::StopRequested { .. }
            | Kind::Said { .. } => {}
            _ => {
                return Err(ApplyError::WrongSubject {
                    seq,
                    word,
                    subject: event.subject,
                });
            }
        }
        task.seq = seq;
        Ok(())
    }

    /// What the indexes must equal; for tests and for a check after a fold.
    #[must_use]
    pub fn indexes_hold(&self) -> bool {
        let mut held: BTreeMap<&PoolName, usize> = BTreeMap::new();
        let (mut queue, mut open) = (BTreeSet::new(), BTreeSet::new());
        for task in self.tasks.values() {
            for run in &task.runs {
                let id = RunId {
                    task: task.id,
                    n: run.n,
                };
                if run.state == RunState::Queued {
                    queue.insert((run.queued_seq, id));
                }
                if run.state.holds_slot() {
                    open.insert(id);
                    *held.entry(&task.spec.pool).or_default() += 1;
                }
            }
        }
        let stored: BTreeMap<_, _> = self
            .held
            .iter()
            .filter(|(_, n)| **n > 0)
            .map(|(pool, n)| (pool, *n))
            .collect();
        queue == self.queue && open == self.open && held == stored
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::Config,
        outcome::Stop,
        schedule::{Held, decide, waits_for},
        task::{Base, ChecksAsked, Expects, Labels, Placement, Turn, Wrap},
    };

    fn spec(pool: &str) -> TaskSpec {
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

    #[test]
    fn slots_follow_from_states_whatever_happens() {
        let mut world = World::new();
        let pools = Config::defaults().pools;
        let runs: Vec<RunId> = (0..6).map(|n| world.task(n << 32, "anthropic")).collect();
        assert_eq!(decide(&world.state, &pools, &Held::new()), runs[..3]);
        for run in &runs[..3] {
            world.put(Subject::Run(*run), Kind::Admitted).unwrap();
        }
        assert!(decide(&world.state, &pools, &Held::new()).is_empty());
        let why = waits_for(&world.state, &pools, &Held::new(), runs[3]);
        assert_eq!(why.unwrap(), "pool anthropic: 3 of 3 busy");
        world
            .put(Subject::Run(runs[1]), finished(Outcome::Lost))
            .unwrap();
        assert_eq!(decide(&world.state, &pools, &Held::new()), [runs[3]]);
        let held = Held::from([(runs[3], "needs KEY from you".to_owned())]);
        assert_eq!(decide(&world.state, &pools, &held), [runs[4]]);
        world
            .put(Subject::Engine, Kind::FrozenSet { frozen: true })
            .unwrap();
        assert!(decide(&world.state, &pools, &held).is_empty());
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
        let second = on_pr(&mut world, 2 << 60, behind(Taken::Queue, first));
        let third = on_pr(&mut world, 3 << 60, behind(Taken::Queue, second));
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
        let fourth = on_pr(&mut world, 4 << 60, behind(Taken::Supersede, third));
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
