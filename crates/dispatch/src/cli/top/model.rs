//! What the screen of `dispatch top` shows: a fold of the tasks and of what is heard about them.
//! Must not draw, ask or read a clock.

use std::collections::HashMap;

use dispatch_core::update::{Update, Usage};

use super::editor::Editor;
use crate::{
    api::{
        event::Event,
        task::{Run, Task},
    },
    cli::{
        list::{GROUPS, group_of},
        screen::{describe, update, waits_line},
        style::{clean_line, span},
    },
    client::{Heard, fold::RunView},
};

/// What the keys mean now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    List,
    Details { id: String, from: u16 },
    ConfirmStop { id: String },
    Answer { id: String, text: Editor },
    Permit { id: String, ask: u32 },
}

/// What was heard of a task since its last run began.
#[derive(Clone, Debug, Default, PartialEq)]
struct Said {
    run: u32,
    line: String,
    usage: Option<Usage>,
    /// What is being said.
    live: RunView,
}

impl Said {
    fn look(&mut self) {
        if let Some(line) = self.live.last_line() {
            self.line = clean_line(line);
        }
    }
}

/// What has to be asked of the engine after something was heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stale {
    Nothing,
    One(String),
    /// One task's start or end moves the others' places and reasons.
    All,
}

impl Stale {
    pub(super) fn of(event: &Event) -> Self {
        match (event.kind.as_str(), &event.task) {
            ("said", _) => Self::Nothing,
            ("task_created" | "run_queued" | "admitted" | "finished", _) | (_, None) => Self::All,
            (_, Some(task)) => Self::One(task.clone()),
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Model {
    tasks: Vec<Task>,
    said: HashMap<String, Said>,
    pub(super) selected: Option<String>,
    pub(super) mode: Mode,
    pub(super) frozen: bool,
    pub(super) message: Option<String>,
    /// Why there is no engine to hear, while there is none.
    pub(super) lost: Option<String>,
}

/// A head, or a task by its place among all.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Row<'a> {
    Head { group: &'static str, count: usize },
    Task(&'a Task),
}

/// Tokens and dollars, as far as they were reported.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Spent {
    pub(super) tokens: u64,
    pub(super) usd: f64,
}

impl Spent {
    fn add(&mut self, usage: &Usage) {
        let parts = [
            usage.input_tokens,
            usage.output_tokens,
            usage.cache_write_tokens,
        ];
        self.tokens += parts.iter().flatten().sum::<u64>();
        self.usd += usage.cost_usd.unwrap_or(0.0);
    }
}

impl Model {
    pub(super) fn new(frozen: bool) -> Self {
        Self {
            tasks: Vec::new(),
            said: HashMap::new(),
            selected: None,
            mode: Mode::List,
            frozen,
            message: None,
            lost: None,
        }
    }

    /// All tasks as the engine has them.
    pub(super) fn tasks(&mut self, tasks: Vec<Task>) {
        self.tasks = tasks;
        self.tasks.retain(|task| !task.removed);
        self.lost = None;
        let ids: Vec<&String> = self.tasks.iter().map(|task| &task.id).collect();
        self.said.retain(|id, _| ids.contains(&id));
        self.settle();
    }

    /// One of them, anew or for the first time.
    pub(super) fn task(&mut self, task: Task) {
        let place = self.tasks.iter().position(|old| old.id == task.id);
        match place {
            Some(at) if task.removed => {
                self.tasks.remove(at);
            }
            // What was asked for earlier may come later.
            Some(at) if self.tasks[at].seq <= task.seq => self.tasks[at] = task,
            None if !task.removed => self.tasks.push(task),
            Some(_) | None => {}
        }
        self.settle();
    }

    pub(super) fn find(&self, id: &str) -> Option<&Task> {
        self.tasks.iter().find(|task| task.id == id)
    }

    pub(super) fn selected(&self) -> Option<&Task> {
        self.find(self.selected.as_deref()?)
    }

    /// Something is selected when there is something, and no mode is about a task that has gone.
    fn settle(&mut self) {
        if self.selected().is_none() {
            self.selected = self.ids().first().map(|id| (*id).to_owned());
        }
        let about = match &self.mode {
            Mode::List => return,
            Mode::Details { id, .. } | Mode::ConfirmStop { id } | Mode::Answer { id, .. } => {
                self.find(id).is_some()
            }
            // Whoever would answer now would answer something else.
            Mode::Permit { id, ask } => self
                .find(id)
                .is_some_and(|task| task.open_asks().any(|open| open.id == *ask)),
        };
        if !about {
            self.mode = Mode::List;
        }
    }

    pub(super) fn hear(&mut self, heard: &Heard) {
        match heard {
            Heard::Live(live) => self.keep(&live.task, live.run, |said| {
                said.live.live(live);
                said.look();
            }),
            Heard::Open(open) => self.keep(&open.task, open.run, |said| {
                said.live.open(open);
                said.look();
            }),
            Heard::Event(event) => self.event(event),
            Heard::At(_) => {}
        }
    }

    fn event(&mut self, event: &Event) {
        if event.kind == "frozen_set" {
            let all = event.body.get("scope").is_none_or(|scope| scope == "all");
            if all {
                self.frozen = event.body.get("frozen") == Some(&true.into());
            }
        }
        if let (Some(task), Some(run)) = (&event.task, event.run)
            && tells(&event.kind)
        {
            let usage = match update(event) {
                Some(Update::Usage(usage)) => Some(usage),
                _ => None,
            };
            let line = describe(event).filter(|line| !line.trim().is_empty());
            self.keep(task, run, |said| {
                said.live.event(event);
                if let Some(line) = line {
                    said.line = line;
                }
                said.usage = usage.or_else(|| said.usage.take());
            });
        }
    }

    fn keep(&mut self, task: &str, run: u32, put: impl FnOnce(&mut Said)) {
        let said = self.said.entry(task.to_owned()).or_default();
        if run > said.run {
            *said = Said {
                run,
                ..Said::default()
            };
        }
        if run == said.run {
            put(said);
        }
    }

    /// In groups, by what the person must do; the most urgent first, what is done the newest first.
    pub(super) fn rows(&self) -> Vec<Row<'_>> {
        let mut rows = Vec::new();
        for group in GROUPS {
            let mut of: Vec<&Task> = self.tasks.iter().filter(|t| group_of(t) == group).collect();
            if group == "done" {
                of.reverse();
            }
            if !of.is_empty() {
                let count = of.len();
                rows.push(Row::Head { group, count });
                rows.extend(of.into_iter().map(Row::Task));
            }
        }
        rows
    }

    fn ids(&self) -> Vec<&str> {
        let id = |row| match row {
            Row::Task(task) => Some(task.id.as_str()),
            Row::Head { .. } => None,
        };
        self.rows().into_iter().filter_map(id).collect()
    }

    /// Moves the selection up (negative) or down, and stays at the ends.
    pub(super) fn step(&mut self, by: isize) {
        let ids = self.ids();
        let Some(last) = ids.len().checked_sub(1) else {
            return;
        };
        let here = self.selected.as_deref();
        let at = ids.iter().position(|id| Some(*id) == here).unwrap_or(0);
        let to = at.saturating_add_signed(by).min(last);
        self.selected = Some(ids[to].to_owned());
    }

    pub(super) fn count(&self, group: &str) -> usize {
        let of = |task: &&Task| group_of(task) == group;
        self.tasks.iter().filter(of).count()
    }

    /// Why it waits, and for how long; else what it said last; else why it is as it is.
    pub(super) fn doing(&self, task: &Task, now: jiff::Timestamp) -> String {
        if let Some(waits) = waits_line(task) {
            let until = task.waiting.as_ref().and_then(|w| w.until.as_deref());
            let until: Option<jiff::Timestamp> = until.and_then(|until| until.parse().ok());
            return match until.and_then(|until| left(until, now)) {
                Some(left) => format!("{waits} ({left} left)"),
                None => waits,
            };
        }
        let run = task.runs.last().map_or(0, |run| run.n);
        let said = self.said.get(&task.id).filter(|said| said.run == run);
        // That it waits for an answer counts more than what it said before.
        let asks = task.open_asks().next().is_some();
        if task.is_open()
            && !asks
            && let Some(said) = said.filter(|said| !said.line.is_empty())
        {
            return said.line.clone();
        }
        let reason = task.question.as_deref().or(task.reason.as_deref());
        let last = reason.map_or("", |text| text.trim().lines().next_back().unwrap_or(""));
        clean_line(last)
    }

    /// Of all its runs; of one that still goes on, what its agent said so far.
    pub(super) fn spent(&self, task: &Task) -> Spent {
        let mut spent = Spent::default();
        for run in &task.runs {
            match (&run.usage, self.live_usage(task, run)) {
                (Some(usage), _) | (None, Some(usage)) => spent.add(usage),
                (None, None) => {}
            }
        }
        spent
    }

    fn live_usage(&self, task: &Task, run: &Run) -> Option<&Usage> {
        let said = self.said.get(&task.id)?;
        said.usage.as_ref().filter(|_| said.run == run.n)
    }
}

/// Kinds whose words say what a task does now.
fn tells(kind: &str) -> bool {
    let told = [
        "said",
        "admitted",
        "started",
        "agent_ended",
        "checks_started",
        "check_finished",
        "noted",
        "stop_requested",
    ];
    told.contains(&kind)
}

fn left(until: jiff::Timestamp, now: jiff::Timestamp) -> Option<String> {
    let seconds = u64::try_from(until.as_second() - now.as_second()).ok()?;
    (seconds > 0).then(|| span(seconds))
}

#[cfg(test)]
pub(super) mod tests {
    use dispatch_core::{
        outcome::Outcome,
        run::RunState,
        schedule::{Waiting, Why},
        update::Voice,
    };

    use super::*;
    use crate::api::{
        event::Live,
        task::{Ask, tests::view},
    };

    pub(in crate::cli::top) fn task(id: u64, short: &str, state: RunState) -> Task {
        let mut view = view(id, state);
        view.short = short.to_owned();
        view.task.runs[0].review = None;
        view.jobs[0].ended_not_judged = false;
        Task::from(&view)
    }

    pub(in crate::cli::top) fn blocked(question: &str) -> RunState {
        RunState::Finished(Outcome::Blocked {
            question: question.into(),
        })
    }

    pub(in crate::cli::top) fn waiting(id: u64, short: &str, until: Option<u64>) -> Task {
        let mut view = view(id, RunState::Queued);
        view.short = short.to_owned();
        view.waits = Some(Waiting {
            why: Why::Paused,
            text: "pool default: paused until 00:05 UTC, provider said so".into(),
            until,
        });
        view.place = Some(2);
        Task::from(&view)
    }

    /// Runs, and waits for a permission for each of these.
    pub(in crate::cli::top) fn asking(id: u64, short: &str, inputs: &[&str]) -> Task {
        let mut task = task(id, short, RunState::Running);
        let like = task.asks.remove(0);
        task.asks = (1..)
            .zip(inputs)
            .map(|(id, input)| Ask {
                id,
                input: (*input).to_owned(),
                state: "waiting".into(),
                by: None,
                why: None,
                ..like.clone()
            })
            .collect();
        task
    }

    fn stale(heard: &Heard) -> Stale {
        match heard {
            Heard::Event(event) => Stale::of(event),
            Heard::Live(_) | Heard::Open(_) | Heard::At(_) => Stale::Nothing,
        }
    }

    pub(in crate::cli::top) fn event(task: &Task, json: &str) -> Heard {
        let head = format!(r#"{{"seq":20,"at":"","task":"{}","run":1,"#, task.id);
        let event: Event = serde_json::from_str(&format!("{head}{json}")).unwrap();
        Heard::Event(Box::new(event))
    }

    #[test]
    fn rows_are_grouped_and_the_selection_follows_its_task() {
        let mut model = Model::new(false);
        let running = task(1, "1a", RunState::Running);
        model.tasks(vec![running.clone(), waiting(2, "2b", None)]);
        assert_eq!(model.selected.as_deref(), Some(&running.id[..]));
        let heads: Vec<_> = model
            .rows()
            .iter()
            .filter_map(|row| match row {
                Row::Head { group, count } => Some((*group, *count)),
                Row::Task(_) => None,
            })
            .collect();
        assert_eq!(heads, [("working", 1), ("waiting", 1)]);
        // It moves to another group and stays selected.
        model.task(task(1, "1a", blocked("Which?")));
        assert_eq!(model.selected().unwrap().state, "blocked");
        model.step(9);
        assert_eq!(model.selected().unwrap().short, "2b");
        model.step(-9);
        assert_eq!(model.selected().unwrap().short, "1a");
        let mut gone = task(1, "1a", blocked("Which?"));
        gone.removed = true;
        model.mode = Mode::ConfirmStop { id: running.id };
        model.task(gone);
        assert_eq!(
            (model.mode.clone(), model.count("needs you")),
            (Mode::List, 0)
        );
        assert_eq!(model.selected().unwrap().short, "2b");
    }

    #[test]
    fn what_is_older_than_what_is_known_changes_nothing() {
        let mut model = Model::new(false);
        let mut newer = task(1, "1a", RunState::Running);
        newer.seq = 30;
        model.tasks(vec![newer]);
        model.task(task(1, "1a", blocked("Which?")));
        assert_eq!(model.selected().unwrap().state, "running");
    }

    #[test]
    fn events_say_what_is_done_and_what_must_be_asked_for() {
        let mut model = Model::new(false);
        let one = task(1, "1a", RunState::Running);
        model.tasks(vec![one.clone()]);
        let now = jiff::Timestamp::UNIX_EPOCH;
        let said =
            r#""kind":"said","update":{"text":{"text":"reading\u001b[2J it"}},"out_offset":1}"#;
        let said = event(&one, said);
        assert_eq!(stale(&said), Stale::Nothing);
        model.hear(&said);
        assert_eq!(model.doing(&one, now), "reading [2J it");
        let usage = r#""kind":"said","update":{"usage":{"input_tokens":1000,"output_tokens":500,"cache_read_tokens":9,"cache_write_tokens":null,"cost_usd":0.25,"turns":1}},"out_offset":1}"#;
        model.hear(&event(&one, usage));
        let spent = model.spent(&one);
        assert_eq!((spent.tokens, spent.usd), (1500, 0.25));
        assert_eq!(model.doing(&one, now), "reading [2J it");
        let live = Heard::Live(Live {
            task: one.id.clone(),
            run: 1,
            chunk: 0,
            voice: Voice::Output,
            offset: 0,
            text: "line\u{7}\n".into(),
            lossy: true,
        });
        model.hear(&live);
        assert_eq!(model.doing(&one, now), "line ");
        let ready = r#""kind":"agent_ended"}"#;
        assert_eq!(stale(&event(&one, ready)), Stale::One(one.id.clone()));
        let finished = r#""kind":"finished","outcome":"lost","verified":"no"}"#;
        assert_eq!(stale(&event(&one, finished)), Stale::All);
        let frozen = r#"{"seq":21,"at":"","task":null,"run":null,"kind":"frozen_set","frozen":true,"scope":"all"}"#;
        let frozen = Heard::Event(Box::new(serde_json::from_str(frozen).unwrap()));
        assert_eq!(stale(&frozen), Stale::All);
        model.hear(&frozen);
        assert!(model.frozen);
        let pool = r#"{"seq":22,"at":"","task":null,"run":null,"kind":"frozen_set","frozen":false,"scope":{"pool":"x"}}"#;
        let pool = Heard::Event(Box::new(serde_json::from_str(pool).unwrap()));
        model.hear(&pool);
        assert!(model.frozen, "a pool's thaw is not everything's");
    }

    #[test]
    fn who_waits_says_why_and_for_how_long() {
        let model = Model::new(false);
        let now = jiff::Timestamp::from_second(100).unwrap();
        let timed = waiting(1, "1a", Some(290_000));
        assert_eq!(
            model.doing(&timed, now),
            "pool default: paused until 00:05 UTC, provider said so; place 2 (3m10s left)"
        );
        let past = waiting(1, "1a", Some(1000));
        assert!(model.doing(&past, now).ends_with("place 2"));
    }
}
