//! Who asked for whom: what a task's agent may do to which tasks, what is left to ask for, and which
//! ends it is owed. Pure: the fold keeps a [`Family`] with each task, and the actor asks here before it
//! does anything on an agent's behalf. This is the one place where that is decided.
//! Must not deliver anything, and must not widen what a grant says.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    Millis,
    ask::{Ask, Fate as AskFate, Permissions},
    config::{Config, list},
    container::RuntimeAsked,
    definition,
    drivers::text::asked_text,
    gate::{Budget, MicroUsd},
    grant::{self, Fence, Grant, Tool},
    id::{KeyName, RunId, TaskId},
    limits::Limit,
    message::MessageId,
    models::Choice,
    outcome::Outcome,
    prompt::untrusted,
    redact::Redactor,
    rules::{Action, Group, Rules, Subject},
    run::RunState,
    state::{Run, State, Task},
    task::{Taken, TaskSpec, Tuning, Wrap},
};

/// Settled ends of one task that are remembered.
pub const SETTLED_MAX: usize = 200;
/// The tool that asks before it dispatches.
pub const SUMMON: &str = "summon";
/// What is kept of how a child ended; the rest is for `show` and `logs`.
pub const REASON_BYTES_MAX: usize = 4096;
/// Answers to waits that are kept for a later run whose agent remembers nothing.
const HEARD_MAX: usize = 50;

/// One end of one child.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EndId {
    pub child: TaskId,
    pub run: u32,
}

/// A task that this one's agent asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Child {
    pub task: TaskId,
    /// Its asker does not wait for it.
    pub detached: bool,
    /// Nothing of it runs or waits, and it waits for nothing itself.
    pub done: bool,
}

/// How far an end has come on its way to whoever asked for the task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Owed,
    /// In a message, whose fate it shares.
    Told {
        message: MessageId,
    },
    /// It was waited for, and the answer was about to go out.
    Waited {
        run: u32,
    },
    /// Nobody waits for it.
    Detached,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    pub id: EndId,
    pub at: Millis,
    pub fate: Fate,
}

impl End {
    /// The word used in JSON.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self.fate {
            Fate::Owed => "owed",
            Fate::Told { .. } => "told",
            Fate::Waited { .. } => "waited_for",
            Fate::Detached => "detached",
        }
    }
}

/// What a task's agents have asked for, and what of it they have not heard the end of.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Family {
    /// In the order in which they were asked for.
    pub children: Vec<Child>,
    /// In order; of settled ones the newest.
    pub ends: Vec<End>,
    /// What waits were answered with, and the run whose agent waited.
    pub heard: Vec<(u32, String)>,
}

impl Family {
    #[must_use]
    pub fn child(&self, task: TaskId) -> Option<&Child> {
        self.children.iter().find(|child| child.task == task)
    }

    fn child_mut(&mut self, task: TaskId) -> Option<&mut Child> {
        self.children.iter_mut().find(|child| child.task == task)
    }

    #[must_use]
    pub fn end(&self, id: EndId) -> Option<&End> {
        self.ends.iter().find(|end| end.id == id)
    }

    fn end_mut(&mut self, id: EndId) -> Option<&mut End> {
        self.ends.iter_mut().find(|end| end.id == id)
    }

    /// Ends that nothing was done about yet.
    pub fn owed(&self) -> impl Iterator<Item = EndId> {
        let owed = self.ends.iter().filter(|end| end.fate == Fate::Owed);
        owed.map(|end| end.id)
    }

    /// Children that it waits for and that are not done.
    pub fn awaited(&self) -> impl Iterator<Item = TaskId> {
        let awaited = |child: &&Child| !child.detached && !child.done;
        self.children.iter().filter(awaited).map(|child| child.task)
    }

    pub(crate) fn asked_for(&mut self, task: TaskId, detached: bool) {
        self.children.push(Child {
            task,
            detached,
            done: false,
        });
    }

    /// It has another run.
    pub(crate) fn goes_on(&mut self, task: TaskId) {
        if let Some(child) = self.child_mut(task) {
            child.done = false;
        }
    }

    /// An end that is known already, of a run that was called off, is no other one.
    pub(crate) fn ended(&mut self, id: EndId, at: Millis) {
        let Some(child) = self.child_mut(id.child) else {
            return;
        };
        child.done = true;
        let fate = if child.detached {
            Fate::Detached
        } else {
            Fate::Owed
        };
        if self.end(id).is_none() {
            self.ends.push(End { id, at, fate });
            self.forget();
        }
    }

    /// `None`: there is no such child, or it is detached already.
    pub(crate) fn detach(&mut self, task: TaskId) -> Option<()> {
        let child = self.child_mut(task).filter(|child| !child.detached)?;
        child.detached = true;
        let owed = |end: &&mut End| end.id.child == task && end.fate == Fate::Owed;
        for end in self.ends.iter_mut().filter(owed) {
            end.fate = Fate::Detached;
        }
        Some(())
    }

    /// `None`: one of them is not owed.
    pub(crate) fn settle(&mut self, ends: &[EndId], fate: Fate) -> Option<()> {
        let owed = |id: &EndId| self.end(*id).is_some_and(|end| end.fate == Fate::Owed);
        if !ends.iter().all(owed) {
            return None;
        }
        for id in ends {
            if let Some(end) = self.end_mut(*id) {
                end.fate = fate;
            }
        }
        Some(())
    }

    pub(crate) fn hear(&mut self, run: u32, text: String) {
        self.heard.push((run, text));
        let old = self.heard.len().saturating_sub(HEARD_MAX);
        self.heard.drain(..old);
    }

    fn forget(&mut self) {
        while self.ends.len() > SETTLED_MAX {
            let settled = |end: &End| matches!(end.fate, Fate::Waited { .. } | Fate::Detached);
            let Some(index) = self.ends.iter().position(settled) else {
                return;
            };
            self.ends.remove(index);
        }
    }
}

/// What an agent can want of us. What is not here is for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    Dispatch,
    List,
    /// The log, as far as it is about its family.
    Events,
    Show(TaskId),
    Logs(TaskId),
    Wait(TaskId),
    /// For whatever it waits for.
    WaitForAll,
    Detach(TaskId),
    Say(TaskId),
    Answer(TaskId),
    /// An answer to what a child's agent asks permission for.
    Permit {
        task: TaskId,
        allow: bool,
    },
    Stop(TaskId),
    /// A verb of people's.
    Other(&'static str),
}

/// To whom something may be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whom {
    /// Itself and what it, and those, asked for.
    Family,
    Descendants,
    Children,
    /// Its descendants and whoever asked for it.
    Spoken,
}

impl Deed {
    #[must_use]
    pub fn verb(self) -> &'static str {
        match self {
            Self::Dispatch => "dispatch",
            Self::List => "list tasks",
            Self::Events => "follow events",
            Self::Show(_) => "show",
            Self::Logs(_) => "read the log of",
            Self::Wait(_) => "wait for",
            Self::WaitForAll => "wait",
            Self::Detach(_) => "detach",
            Self::Say(_) => "say to",
            Self::Answer(_) => "answer",
            Self::Permit { .. } => "answer what is asked by",
            Self::Stop(_) => "stop",
            Self::Other(verb) => verb,
        }
    }

    fn tool(self) -> Option<Tool> {
        Some(match self {
            Self::Dispatch | Self::Detach(_) => Tool::Dispatch,
            Self::List => Tool::List,
            Self::Events | Self::Show(_) => Tool::Show,
            Self::Logs(_) => Tool::Logs,
            Self::Wait(_) | Self::WaitForAll => Tool::Wait,
            Self::Say(_) => Tool::Say,
            Self::Answer(_) | Self::Permit { .. } => Tool::Answer,
            Self::Stop(_) => Tool::Stop,
            Self::Other(_) => return None,
        })
    }

    fn about(self) -> Option<(TaskId, Whom)> {
        match self {
            Self::Dispatch | Self::List | Self::Events | Self::WaitForAll | Self::Other(_) => None,
            Self::Show(task) | Self::Logs(task) => Some((task, Whom::Family)),
            Self::Wait(task)
            | Self::Answer(task)
            | Self::Permit { task, .. }
            | Self::Stop(task) => Some((task, Whom::Descendants)),
            Self::Detach(task) => Some((task, Whom::Children)),
            Self::Say(task) => Some((task, Whom::Spoken)),
        }
    }

    /// Whether it changes nothing: an agent that is being stopped may still look.
    fn looks(self) -> bool {
        match self {
            Self::List | Self::Events | Self::Show(_) | Self::Logs(_) => true,
            Self::Dispatch
            | Self::Wait(_)
            | Self::WaitForAll
            | Self::Detach(_)
            | Self::Say(_)
            | Self::Answer(_)
            | Self::Permit { .. }
            | Self::Stop(_)
            | Self::Other(_) => false,
        }
    }
}

/// Why an agent is refused. Nothing has changed then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("{verb}: your run is over, or it is being stopped")]
    Over { verb: &'static str },
    #[error(
        "{verb}: your task has no grant; a person gives one when the task is made: \
         `dispatch run --grant NAME`"
    )]
    NoGrant { verb: &'static str },
    #[error("{verb}: that is for people and not for agents; your grant has {there}")]
    People { verb: &'static str, there: String },
    #[error("{verb}: your grant does not have it; it has {there}")]
    Tool { verb: &'static str, there: String },
    #[error("{verb} task {task}: it is none of the tasks that you may do that to: {whom}")]
    NotYours {
        verb: &'static str,
        task: TaskId,
        whom: &'static str,
    },
    #[error(
        "allow what is asked by task {task}: a person answers that, because what you do yourself is \
         asked for too ({permissions}); you may deny it"
    )]
    NotLooser {
        task: TaskId,
        permissions: &'static str,
    },
    #[error("{verb}: your grant is for what your own tools ask about first, and {what}")]
    Unheard { verb: &'static str, what: String },
    #[error("dispatch: your grant does not reach so far: {}", .outside.join("; "))]
    Outside { outside: Vec<String> },
    #[error("say that with another model or effort: {what}; say it without")]
    Tuned { what: String },
    #[error("dispatch: nothing is left: {what}")]
    Spent { what: String },
    #[error(
        "dispatch: your grant is for what somebody lets you summon, one by one, and nobody has allowed \
         this: {what}"
    )]
    Unasked { what: String },
}

/// Whether the agent of that run may do that.
///
/// # Errors
/// Why not.
pub fn may(state: &State, by: RunId, deed: Deed) -> Result<(), Refusal> {
    let verb = deed.verb();
    let (Some(task), Some(run)) = (state.task(by.task), state.run(by)) else {
        return Err(Refusal::Over { verb });
    };
    let working = run.may_knock() && (deed.looks() || is_heeded(run));
    if !working {
        return Err(Refusal::Over { verb });
    }
    let Some(grant) = &task.spec.terms.grant else {
        return Err(Refusal::NoGrant { verb });
    };
    let there = || list(grant.tools.iter().map(|tool| tool.word()));
    match deed.tool() {
        Some(tool) if grant.allows(tool) => {}
        Some(_) => {
            let there = there();
            return Err(Refusal::Tool { verb, there });
        }
        None => {
            let there = there();
            return Err(Refusal::People { verb, there });
        }
    }
    if let Some((about, whom)) = deed.about()
        && !is_one_of(state, task, about, whom)
    {
        let whom = match whom {
            Whom::Family => "your own and those that you asked for",
            Whom::Descendants => "those that you asked for, and those that they asked for",
            Whom::Children => "those that you asked for yourself",
            Whom::Spoken => "those that you asked for, and whoever asked for yours",
        };
        let task = about;
        return Err(Refusal::NotYours { verb, task, whom });
    }
    // What it may not do without being asked it must not let another one do.
    if let Deed::Permit {
        task: about,
        allow: true,
    } = deed
        && !task.spec.terms.permissions.is_default()
    {
        return Err(Refusal::NotLooser {
            task: about,
            permissions: task.spec.terms.permissions.word(),
        });
    }
    if grant.asked {
        was_asked(task, deed)?;
    }
    Ok(())
}

/// What the terms of a task say before anybody is asked. `Ok(false)`: somebody is.
fn is_let(own: &Task, group: Group, subjects: &[Subject]) -> Result<bool, &'static str> {
    let terms = &own.spec.terms;
    let usual = Rules::default();
    let rules = terms.rules.as_deref().unwrap_or(&usual);
    match (rules.decide_all(group, subjects), terms.permissions) {
        (Action::Allow, _) | (Action::Ask, Permissions::Allow) => Ok(true),
        (Action::Deny, _) => Err("a rule denies it"),
        (Action::Ask, Permissions::Deny) => Err("nothing that is asked is allowed"),
        (Action::Ask, Permissions::Ask) => Ok(false),
    }
}

/// Whatever else inside the fence speaks at our door is held to what the agent's own tools were
/// allowed. How another task stands is not asked about: whoever may wait for its end may look.
fn was_asked(own: &Task, deed: Deed) -> Result<(), Refusal> {
    let verb = deed.verb();
    let no = |what: &str| {
        let what = what.to_owned();
        Err(Refusal::Unheard { verb, what })
    };
    let (group, about) = match deed {
        Deed::Detach(_) => return no("none of them does that"),
        Deed::Say(task) => (Group::SendToTab, task),
        Deed::Logs(task) if task != own.id => (Group::ReadTab, task),
        Deed::Dispatch
        | Deed::List
        | Deed::Events
        | Deed::Show(_)
        | Deed::Logs(_)
        | Deed::Wait(_)
        | Deed::WaitForAll
        | Deed::Answer(_)
        | Deed::Permit { .. }
        | Deed::Stop(_)
        | Deed::Other(_) => return Ok(()),
    };
    let id = about.to_string();
    match is_let(own, group, &[Subject::name(id.as_str())]) {
        Ok(true) => return Ok(()),
        Ok(false) => {}
        Err(why) => return no(why),
    }
    // The first line is the handle as its model wrote it.
    let is_about = |ask: &Ask| {
        let handle = ask.input.lines().next().unwrap_or_default().trim();
        !handle.is_empty() && id.starts_with(&handle.to_ascii_lowercase())
    };
    let mut asks = own.asks.iter().filter(|ask| ask.tool == group.word());
    match asks.any(|ask| is_allowed(ask) && is_about(ask)) {
        true => Ok(()),
        false => no("nobody has allowed this one"),
    }
}

fn is_allowed(ask: &Ask) -> bool {
    matches!(ask.fate, AskFate::Answered { allow: true, .. })
}

/// One that was asked to end starts nothing any more.
fn is_heeded(run: &Run) -> bool {
    matches!(run.state, RunState::Preparing | RunState::Running)
}

fn is_one_of(state: &State, own: &Task, about: TaskId, whom: Whom) -> bool {
    let asker = |id: TaskId| state.task(id).and_then(Task::asker);
    match whom {
        Whom::Family => about == own.id || state.is_below(about, own.id),
        Whom::Descendants => state.is_below(about, own.id),
        Whom::Children => asker(about) == Some(own.id),
        Whom::Spoken => state.is_below(about, own.id) || own.asker() == Some(about),
    }
}

/// What a task's agent can still ask for. `None` of a budget: it has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    pub children: u32,
    pub live: u32,
    pub tokens: Option<u64>,
    pub usd: Option<MicroUsd>,
    pub until: Option<Millis>,
}

/// What the task and all that was asked for below it have spent.
#[must_use]
pub fn spent_below(state: &State, task: &Task) -> Budget {
    let children = task.family.children.iter();
    let below = children.filter_map(|child| state.task(child.task));
    let below = below.map(|child| spent_below(state, child));
    below.fold(task.spent(), Budget::plus)
}

/// What its children have spent, and what those that are not done may still.
#[must_use]
pub fn reserved(state: &State, task: &Task) -> Budget {
    let of = |child: &Child| {
        let found = state.task(child.task)?;
        let spent = spent_below(state, found);
        Some(if child.done {
            spent
        } else {
            spent.at_least(found.budget())
        })
    };
    let children = task.family.children.iter();
    children
        .filter_map(of)
        .fold(Budget::default(), Budget::plus)
}

fn smallest<T: Ord>(one: Option<T>, other: Option<T>) -> Option<T> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

/// What is left of a budget; `None`: it is none.
fn rest(budget: u64, used: u64) -> Option<u64> {
    (budget > 0).then(|| budget.saturating_sub(used))
}

/// `now_spent`: what the task's live run has told of, besides what its runs before have.
#[must_use]
pub fn left(state: &State, task: &Task, grant: &Grant, now_spent: Budget) -> Left {
    let (mut children, mut live) = (grant.children_max, grant.children_live_max);
    let mut above = Some(task);
    while let Some(one) = above {
        if let Some(grant) = &one.spec.terms.grant {
            let (all, open) = state.below(one.id);
            children = children.min(grant.children_max.saturating_sub(all));
            live = live.min(grant.children_live_max.saturating_sub(open));
        }
        above = one.asker().and_then(|asker| state.task(asker));
    }
    let given = reserved(state, task);
    let used = task.spent().plus(now_spent).plus(given);
    let budget = task.budget();
    let first = task.runs.iter().find_map(|run| run.started_at);
    let limited = first.filter(|_| grant.wall_clock_s > 0);
    let end = limited.map(|at| at.saturating_add(grant.wall_clock_s.saturating_mul(1000)));
    Left {
        children,
        live,
        tokens: smallest(
            rest(budget.tokens, used.tokens),
            rest(grant.budget_tokens, given.tokens),
        ),
        usd: smallest(
            rest(budget.usd.0, used.usd.0),
            rest(grant.budget_usd.0, given.usd.0),
        )
        .map(MicroUsd),
        until: smallest(task.spec.terms.until, end),
    }
}

impl Left {
    fn spent(&self, now: Millis) -> Option<&'static str> {
        if self.children == 0 {
            return Some("all the tasks that may be asked for have been (children_max)");
        }
        if self.live == 0 {
            return Some("as many are at work as may be at once (children_live_max); wait for one");
        }
        if self.tokens == Some(0) || self.usd == Some(MicroUsd(0)) {
            return Some("the budget is spent or given to others");
        }
        let over = self.until.is_some_and(|until| until <= now);
        over.then_some("the time is over (wall_clock_s)")
    }
}

/// What was asked for, or an equal share of what is left for each that can still be asked for.
fn share(asked: u64, left: Option<u64>, children: u32) -> u64 {
    match left {
        None => asked,
        Some(left) if asked > 0 => asked.min(left),
        // Never 0, which would mean that there is no budget.
        Some(left) => (left / u64::from(children.max(1))).max(1),
    }
}

/// A task that the agent of run `by` asks for, with what its asker has at the most. Names that are
/// outside are refused, all of them at once; what has a measure is lowered. `masks`: the secrets of its
/// asker.
///
/// # Errors
/// What is outside of the grant, or is not left any more.
pub fn narrowed(
    state: &State,
    by: RunId,
    mut spec: TaskSpec,
    now_spent: Budget,
    now: Millis,
    masks: &Redactor,
) -> Result<TaskSpec, Refusal> {
    // As it is in the log, and as somebody was asked about it.
    spec.text = masks.redact(&spec.text);
    may(state, by, Deed::Dispatch)?;
    let verb = Deed::Dispatch.verb();
    let asker = state.task(by.task).ok_or(Refusal::Over { verb })?;
    let grant = asker.spec.terms.grant.as_deref();
    let grant = grant.ok_or(Refusal::NoGrant { verb })?;
    let outside = outside(state, asker, grant, &spec);
    if !outside.is_empty() {
        return Err(Refusal::Outside { outside });
    }
    let left = left(state, asker, grant, now_spent);
    if let Some(what) = left.spent(now) {
        let what = what.to_owned();
        return Err(Refusal::Spent { what });
    }
    if grant.asked {
        was_allowed(state, by, asker, &spec)?;
    }
    Ok(lowered(asker, grant, left, by, spec))
}

/// What a person reads before they allow that a task is summoned. `None`: it is none.
fn question(spec: &TaskSpec) -> Option<String> {
    let role = spec.terms.role.as_ref()?;
    let question = definition::question(&role.question_head(spec.terms.detached), &spec.text);
    Some(asked_text(&question))
}

/// Where a grant is only for what somebody allows, whatever inside the fence speaks at our door must
/// not get more out of it than was allowed: the asker's rules let it, or somebody has answered the
/// very question, and each answer is for one task. `always` is for the definition.
fn was_allowed(state: &State, by: RunId, asker: &Task, spec: &TaskSpec) -> Result<(), Refusal> {
    let no = |what: &str| {
        let what = what.to_owned();
        Err(Refusal::Unasked { what })
    };
    let (Some(role), Some(asked)) = (&spec.terms.role, question(spec)) else {
        return no("it is no definition; use the tool summon");
    };
    let group = match spec.terms.detached {
        true => Group::UserAgent,
        false => Group::Summon,
    };
    match is_let(asker, group, &role.subjects()) {
        Ok(true) => return Ok(()),
        Ok(false) => {}
        Err(why) => return no(why),
    }
    let head = role.question_head(spec.terms.detached);
    let always = |ask: &Ask| {
        let always = matches!(ask.fate, AskFate::Answered { always: true, .. });
        always && ask.input.lines().next() == Some(&head)
    };
    let asks = asker.asks.iter().filter(|ask| ask.tool == SUMMON);
    let allowed: Vec<&Ask> = asks.filter(|ask| is_allowed(ask)).collect();
    if allowed.iter().any(|ask| always(ask)) {
        return Ok(());
    }
    let same = |child: &&Task| question(&child.spec).as_ref() == Some(&asked);
    let children = asker.family.children.iter();
    let children = children.filter_map(|child| state.task(child.task));
    let children: Vec<&Task> = children.filter(same).collect();
    // More answers than there are tasks of them.
    let spare = |of_run: &dyn Fn(u32) -> bool| {
        let answers = allowed.iter().filter(|ask| ask.input == asked);
        let by = |child: &Task| child.spec.terms.asked_by.map(|run| run.n);
        let made = children
            .iter()
            .filter(|child| by(child).is_some_and(of_run));
        made.count() < answers.filter(|ask| of_run(ask.run)).count()
    };
    // Of all runs: one may have died over its answer. Of this one: old answers are forgotten.
    if spare(&|_| true) || spare(&|n| n == by.n) {
        return Ok(());
    }
    no("use the tool summon, which asks")
}

/// Names of a request for a task, which is not resolved yet: what an agent may not have is refused
/// before it is looked up, so that nothing tells it what is configured.
#[derive(Clone, Copy, Debug, Default)]
pub struct Names<'a> {
    pub agent: Option<&'a str>,
    pub place: Option<&'a str>,
    pub placement: Option<&'a str>,
}

impl Names<'_> {
    /// Each of them that the grant does not reach, with those it does.
    #[must_use]
    pub fn outside(&self, grant: &Grant) -> Vec<String> {
        let mut out = Vec::new();
        let mut check = |inside: bool, what: &str, name: &str, there: &dyn fmt::Display| {
            if !inside {
                out.push(format!("{what} {name} (granted: {there})"));
            }
        };
        if let Some(name) = self.agent {
            let inside = name.parse().is_ok_and(|name| grant.agents.has(&name));
            check(inside, "agent", name, &grant.agents);
        }
        if let Some(place) = self.place {
            let inside = grant.repos.has(&place.to_owned());
            check(inside, "repository", place, &grant.repos);
        }
        if let Some(name) = self.placement {
            let inside = name.parse().is_ok_and(|name| grant.placements.has(&name));
            check(inside, "placement", name, &grant.placements);
        }
        out
    }
}

/// Keys of a chain that whoever asks for it does not have itself.
fn strange<'a>(own: &'a [Choice], chain: &'a [Choice]) -> impl Iterator<Item = &'a KeyName> {
    let strange = |key: &&KeyName| !own.iter().any(|choice| choice.key == **key);
    chain.iter().map(|choice| &choice.key).filter(strange)
}

fn keys_of(chain: &[Choice]) -> String {
    list(chain.iter().map(|choice| &choice.key))
}

/// Whether the agent of that run may have another task go on with another model or effort: what was
/// looked at when it was made must not be undone by a word to it.
///
/// # Errors
/// Why not.
pub fn may_tune(state: &State, by: RunId, tuning: &Tuning) -> Result<(), Refusal> {
    if tuning.is_empty() {
        return Ok(());
    }
    let verb = "say";
    let own = state.task(by.task).ok_or(Refusal::Over { verb })?;
    let terms = &own.spec.terms;
    let grant = terms.grant.as_deref().ok_or(Refusal::NoGrant { verb })?;
    // Somebody was asked for it as it is.
    if grant.asked {
        let what = "your grant is for what somebody lets you summon, as it was summoned".to_owned();
        return Err(Refusal::Tuned { what });
    }
    let chain = tuning.chain.as_deref().unwrap_or_default();
    match strange(&terms.chain, chain).next() {
        Some(key) if !terms.chain.is_empty() => {
            let what = format!(
                "key {key} is none of yours, which are {}",
                keys_of(&terms.chain)
            );
            Err(Refusal::Tuned { what })
        }
        Some(_) | None => Ok(()),
    }
}

/// All that the grant does not reach, with what it does.
fn outside(state: &State, asker: &Task, grant: &Grant, spec: &TaskSpec) -> Vec<String> {
    // An empty directory is nobody's.
    let place = grant::place(spec);
    let names = Names {
        agent: Some(spec.agent.as_str()),
        place: place.as_deref(),
        placement: Some(spec.placement.word()),
    };
    let mut out = names.outside(grant);
    let mut check = |inside: bool, what: &dyn fmt::Display, there: &dyn fmt::Display| {
        if !inside {
            out.push(format!("{what} (granted: {there})"));
        }
    };
    let placement = &spec.placement;
    let unfenced = placement.wrap == Wrap::Host && !grant.fence.unfenced;
    check(
        !unfenced,
        &format!("placement {}, which has no fence", placement.word()),
        &"a fence",
    );
    let command = &spec.terms.command;
    let known = command.is_empty() || *command == asker.spec.terms.command;
    check(
        known,
        &format!("the command {command:?}"),
        &"configured agents",
    );
    let sites = &placement.sites;
    let here = sites.is_empty() || *sites == asker.spec.placement.sites;
    check(
        here,
        &format!("sites {}", list(sites.iter())),
        &"those of your task",
    );
    for task in &spec.terms.after {
        check(
            state.is_below(*task, asker.id),
            &format!("task {task} to wait for"),
            &"those that you asked for",
        );
    }
    if spec.turn.taken != Taken::Refuse && is_above(state, asker, spec) {
        check(
            false,
            &format!(
                "taken = \"{}\" for a workspace whose task waits for you",
                spec.turn.taken.word()
            ),
            &"a workspace of its own: leave `taken` out",
        );
    }
    // Nobody has given another key along. An agent that has no chain asks with keys of its own kind,
    // and only what a grant says holds for it; it has no definitions either.
    let own = &asker.spec.terms.chain;
    if spec.terms.role.is_some() || !own.is_empty() {
        for key in strange(own, &spec.terms.chain) {
            check(false, &format!("key {key}"), &keys_of(own));
        }
    }
    if spec.terms.grant.is_some() {
        let below = grant.below().is_some();
        check(below, &"a grant of its own", &"no further level (depth)");
    }
    out
}

/// The container engine of a child is its asker's or the configured one, whatever it says: in another
/// one the same image may have more rights.
///
/// # Errors
/// When it asks for another one.
pub fn hold_runtime(asker: &Task, config: &Config, spec: &mut TaskSpec) -> Result<(), Refusal> {
    let own = asker.spec.placement.container.as_ref();
    let own = own.map(|container| container.runtime);
    let placement = &spec.placement;
    let named = placement.name.as_ref();
    let named = named.and_then(|name| config.containers.get(name)?.runtime);
    let configured = named.or(config.container.runtime);
    let Some(container) = &mut spec.placement.container else {
        return Ok(());
    };
    let asked = container.runtime;
    if asked == RuntimeAsked::Auto {
        container.runtime = own.or(configured).unwrap_or_default();
        return Ok(());
    }
    let granted = [own, configured];
    if granted.contains(&Some(asked)) {
        return Ok(());
    }
    let there = match own.or(configured) {
        Some(runtime) => runtime.word(),
        None => "the one that is found: leave `runtime` out",
    };
    let outside = vec![format!(
        "container engine {} (granted: {there})",
        asked.word()
    )];
    Err(Refusal::Outside { outside })
}

/// Whether the asker, or whoever asked for that, works at what the task is about. These wait for it, so
/// it cannot wait for them.
fn is_above(state: &State, asker: &Task, spec: &TaskSpec) -> bool {
    let above = |task: &&Task| task.asker().and_then(|id| state.task(id));
    std::iter::successors(Some(asker), above).any(|task| task.spec.same_subject(spec))
}

fn lowered(asker: &Task, grant: &Grant, left: Left, by: RunId, mut spec: TaskSpec) -> TaskSpec {
    let fence = Fence::of(&asker.spec.placement).meet(&grant.fence);
    spec.placement = fence.around(spec.placement);
    let own = &asker.spec.terms;
    let terms = &mut spec.terms;
    let strict = grant.permissions.stricter(own.permissions);
    terms.permissions = terms.permissions.stricter(strict);
    if let (Some(rules), Some(asker)) = (&mut terms.rules, &own.rules) {
        **rules = asker.intersect(rules);
    }
    terms.tools = own.tools.meet(&terms.tools);
    terms.mcp = match (own.mcp.clone(), terms.mcp.take()) {
        (Some(own), Some(asked)) => Some(&own & &asked),
        (own, asked) => own.or(asked),
    };
    terms.priority = terms.priority.min(own.priority);
    terms.budget_tokens = share(terms.budget_tokens, left.tokens, left.children);
    let usd = share(terms.budget_usd.0, left.usd.map(|usd| usd.0), left.children);
    terms.budget_usd = MicroUsd(usd);
    terms.until = smallest(left.until, terms.until);
    terms.asked_by = Some(by);
    spec.parent = Some(by.task);
    for (limit, value) in asker.spec.limits.iter() {
        spec.limits.lower(limit, value);
    }
    if grant.wall_clock_s > 0 {
        spec.limits.lower(Limit::WallClockS, grant.wall_clock_s);
    }
    let asked = spec.terms.grant.take();
    let granted = asked.zip(grant.below());
    let granted = granted.map(|(asked, most)| most.meet(&asked).held_to(&spec));
    spec.terms.grant = granted.map(Box::new);
    spec
}

/// How a child ended, for a line of the log and for its asker.
#[must_use]
pub fn reason(outcome: &Outcome) -> String {
    let mut text = outcome.reason();
    let mut end = text.len().min(REASON_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

/// What an agent reads of the ends that it is owed, in order. What a child says of itself is quoted:
/// it is somebody else's text.
#[must_use]
pub fn words(state: &State, ends: &[EndId]) -> String {
    let told: Vec<String> = ends.iter().map(|end| end_words(state, *end)).collect();
    let lead = match ends.len() {
        1 => "A task that you asked for has ended.",
        _ => "Tasks that you asked for have ended.",
    };
    format!("{lead}\n\n{}", told.join("\n\n"))
}

/// The same as the answer to a wait, with ends that it has heard of before.
#[must_use]
pub fn words_of_wait(state: &State, new: &[EndId], known: &[EndId]) -> String {
    let mut out = Vec::new();
    if !new.is_empty() {
        out.push(words(state, new));
    }
    if !known.is_empty() {
        let known: Vec<String> = known.iter().map(|end| end_words(state, *end)).collect();
        out.push(format!(
            "You have heard of this before.\n\n{}",
            known.join("\n\n")
        ));
    }
    out.join("\n\n")
}

fn end_words(state: &State, id: EndId) -> String {
    let EndId { child, run } = id;
    let task = state.task(child);
    let known = state.run(RunId {
        task: child,
        n: run,
    });
    let (Some(task), Some(RunState::Finished(outcome))) = (task, known.map(|run| &run.state))
    else {
        return format!("Task {child}, run {run}: nothing is known of it any more.");
    };
    let result = known.and_then(|run| run.sealed.as_ref());
    let changed = result
        .filter(|sealed| sealed.commit.is_some())
        .map(|sealed| {
            format!(
                " It changed {} files (+{} -{}); its branch is {}.",
                sealed.files,
                sealed.insertions,
                sealed.deletions,
                task.branch()
            )
        });
    let title = task.spec.title.replace(['\n', '\r'], " ");
    let word = outcome.word();
    let changed = changed.unwrap_or_default();
    let said = reason(outcome);
    let quoted = match said.trim() {
        "" => String::new(),
        said => format!("\n{}", untrusted("its own words", said, REASON_BYTES_MAX)),
    };
    let asks = match outcome {
        Outcome::Blocked { .. } => " It asks you something; `answer` goes on with it.",
        Outcome::Completed { .. } | Outcome::Failed(_) | Outcome::Stopped(_) | Outcome::Lost => "",
    };
    format!("Task {child} (\"{title}\") has ended as {word} (run {run}).{changed}{asks}{quoted}")
}

#[cfg(test)]
mod tests;
