//! A chat without its terminal and its engine: frames, typed lines, answers and times in; lines and
//! requests out.
//! Must not read a clock, print or ask by itself, so that every way through it can be tested.

mod below;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::{Path, PathBuf},
};

use dispatch_core::{
    ask::{AskId, INPUT_BYTES_MAX, shown},
    message::MessageId,
};

use super::{
    line::Line,
    tale::{CUT_MARK_BYTES_MAX, Tale, subject},
    words::{self, HELP, Word},
};
use crate::{
    api::{
        Applied, Spoken,
        event::{Event, Frame, MessageState},
        task::Task,
    },
    cli::{
        attach::Tune,
        error::CliError,
        exit::Exit,
        say::spoken_line,
        style::{Colour, clean_line, cut},
    },
    client::{
        fold::RunView,
        view::{Asking, TaskView, View, Waiting},
    },
};

pub(super) use self::below::Below;

/// Lines of what was before that are shown when a chat is opened.
const HISTORY_LINES: usize = 100;
/// A second Ctrl-C within it leaves.
pub(super) const TWICE_MS: u64 = 1500;
/// Of a diff; the whole is there for `dispatch diff`.
const DIFF_LINES: usize = 400;
const TITLE_CHARS: usize = 60;
/// The engine's word for a verb that the state of the task does not allow.
const WRONG_STATE: &str = "wrong_state";

/// What is asked of the engine.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Request {
    Begin {
        text: String,
        tune: Tune,
        /// Files that go along.
        files: Vec<PathBuf>,
    },
    Say {
        text: String,
        tune: Tune,
        files: Vec<PathBuf>,
    },
    Answer {
        text: String,
        tune: Tune,
    },
    Resume {
        agent: Option<String>,
        tune: Tune,
    },
    Permit {
        ask: u32,
        allow: bool,
        /// Where the agent itself knows it again.
        always: bool,
        why: Option<String>,
    },
    Stop {
        kill: bool,
    },
    Unsay(MessageId),
    Compact,
    /// Whether the task's agent takes that.
    Check(Tune),
    /// Whether these can be read, and the task's agent takes them.
    Look(Vec<PathBuf>),
    Diff,
    Apply {
        write: bool,
    },
    /// A task that the agent asked for: what it is called.
    Child(String),
}

impl Request {
    /// These are carried out one after the other, in the order of the person's words.
    pub(super) fn is_word(&self) -> bool {
        matches!(
            self,
            Self::Begin { .. } | Self::Say { .. } | Self::Answer { .. } | Self::Resume { .. }
        )
    }
}

/// What came of it.
#[derive(Debug)]
pub(super) enum Told {
    Spoken(Box<Spoken>),
    /// The task as it is now, or the one that was asked for.
    Task(Box<Task>),
    Diff(String),
    Applied(Applied),
    Nothing,
    Refused {
        error: CliError,
        /// The engine's word for it, if it was the engine.
        code: Option<String>,
    },
}

#[derive(Debug)]
pub(super) enum Out {
    Line(Line),
    /// For the person, and not a part of the conversation.
    Hint(String),
    /// The engine is away, and why: once, for whoever does not see what stands below.
    Away(String),
    Ask(Request),
    /// Before what is not asked yet.
    AskFirst(Request),
    Leave(Exit),
}

/// What is under way to the engine.
#[derive(Debug)]
struct Sending {
    text: String,
    /// The engine has it: an event says so.
    heard: bool,
}

/// The moment it is looked at.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Now {
    /// Since 1970.
    pub(super) ms: u64,
    /// Grows while it is looked at.
    pub(super) frame: usize,
}

#[derive(Debug)]
pub(super) struct Chat {
    task: Option<Task>,
    /// Who will do it, while there is no task.
    agent: String,
    making: bool,
    view: View,
    tale: Tale,
    /// Lines of what was before, until all of it is there.
    before: Option<Vec<Line>>,
    sending: VecDeque<Sending>,
    /// Requests that have not been answered.
    under_way: usize,
    /// Typed while the task was being made, or before it was known.
    typed: VecDeque<String>,
    tune: Tune,
    /// Files that go with the next message.
    files: Vec<PathBuf>,
    /// Files are looked at, and what was typed after them waits for that.
    looking: bool,
    /// Asks that have been answered, as far as we are concerned.
    answered: BTreeSet<u32>,
    /// Asks whose answer was refused: only the person answers them again, or there would be no end.
    by_hand: BTreeSet<u32>,
    /// Tools and what they are used on that are always allowed, while this chat is open.
    always: BTreeSet<(String, String)>,
    /// Tasks that the agent asked for, and what they are called.
    children: BTreeMap<String, Option<String>>,
    /// Why there is no engine.
    lost: Option<String>,
    interrupted: Option<u64>,
    now_ms: u64,
    warned: bool,
    /// Nobody types any more: it ends when the task does.
    eof: bool,
    left: bool,
    refused: Option<Exit>,
    out: Vec<Out>,
}

impl Chat {
    /// On a task, or on one that the first words will make.
    pub(super) fn new(task: Option<Task>, agent: &str, tune: Tune) -> Self {
        let mut chat = Self {
            task: None,
            agent: agent.to_owned(),
            making: false,
            view: View::default(),
            tale: Tale::default(),
            before: None,
            sending: VecDeque::new(),
            under_way: 0,
            typed: VecDeque::new(),
            tune,
            files: Vec::new(),
            looking: false,
            answered: BTreeSet::new(),
            by_hand: BTreeSet::new(),
            always: BTreeSet::new(),
            children: BTreeMap::new(),
            lost: None,
            interrupted: None,
            now_ms: 0,
            warned: false,
            eof: false,
            left: false,
            refused: None,
            out: Vec::new(),
        };
        if let Some(task) = task {
            chat.begin(task);
            chat.before = Some(Vec::new());
        }
        chat
    }

    /// Files for the first message, which have been looked at.
    pub(super) fn take_along(&mut self, files: Vec<PathBuf>) {
        self.files = files;
    }

    /// What there is to print, to ask and to do, in this order.
    pub(super) fn take(&mut self) -> Vec<Out> {
        self.settle();
        self.flush();
        std::mem::take(&mut self.out)
    }

    fn flush(&mut self) {
        let lines = self.tale.take();
        match &mut self.before {
            Some(before) => before.extend(lines),
            None => self.out.extend(lines.into_iter().map(Out::Line)),
        }
    }

    fn ask(&mut self, request: Request) {
        self.under_way += 1;
        self.out.push(Out::Ask(request));
    }

    fn hint(&mut self, text: impl Into<String>) {
        self.out.push(Out::Hint(text.into()));
    }

    /// About something that the person wanted.
    fn failed(&mut self, what: &str) {
        self.tale
            .note(&format!("failed to {what}"), Some(Colour::Red));
    }

    pub(super) fn task(&self) -> Option<&Task> {
        self.task.as_ref()
    }

    pub(super) fn id(&self) -> Option<&str> {
        self.task.as_ref().map(|task| task.id.as_str())
    }

    pub(super) fn agent(&self) -> &str {
        self.task.as_ref().map_or(&self.agent, |task| &task.agent)
    }

    fn seen(&self) -> Option<&TaskView> {
        self.view.tasks.get(self.id()?)
    }

    fn run(&self) -> Option<(u32, &RunView)> {
        let (n, run) = self.seen()?.runs.last_key_value()?;
        Some((*n, run))
    }

    fn state(&self) -> &str {
        self.run().map_or("", |(_, run)| &run.state)
    }

    fn is_blocked(&self) -> bool {
        self.state() == "blocked"
    }

    /// The ask that an answer is about.
    fn asking(&self) -> Option<&Asking> {
        let asks = &self.seen()?.asks;
        asks.iter().find(|ask| !self.answered.contains(&ask.ask))
    }

    fn begin(&mut self, task: Task) {
        let words = [
            Some(task.agent.clone()),
            task.model.clone(),
            Some(task.placement.clone()),
        ];
        let words: Vec<String> = words.into_iter().flatten().collect();
        let line = Line::new("", &task.short, Some(Colour::Bold))
            .and(&format!(" {}", clean_line(&task.title)), None)
            .and(&format!("  {}", words.join(" · ")), Some(Colour::Dim));
        self.out.push(Out::Line(line.folded()));
        if task.placement == "host" {
            let text = "the agent runs as you, with no fence around it";
            self.out
                .push(Out::Line(Line::new("", text, Some(Colour::Yellow))));
        }
        self.look(task);
    }

    /// The task as the engine has it. What came late is not taken for what is.
    pub(super) fn look(&mut self, task: Task) {
        if self.task.as_ref().is_some_and(|known| known.seq > task.seq) {
            return;
        }
        for child in task.children.iter().filter(|child| !child.done) {
            if !self.children.contains_key(&child.id) {
                self.children.insert(child.id.clone(), None);
                self.under_way += 1;
                self.out.push(Out::Ask(Request::Child(child.id.clone())));
            }
        }
        self.task = Some(task);
    }

    pub(super) fn linked(&mut self) {
        self.lost = None;
    }

    pub(super) fn lost(&mut self, why: String) {
        if self.lost.is_none() {
            let text = format!("the engine is away: {why}; trying again");
            self.out.push(Out::Away(text));
        }
        self.lost = Some(why);
    }

    /// Time goes on, also when nothing is heard.
    pub(super) fn tick(&mut self, now: Now) {
        self.now_ms = now.ms;
        self.heard_more();
    }

    pub(super) fn hear(&mut self, frame: &Frame) {
        match frame {
            Frame::Event(event) => {
                if event.seq > self.view.seq {
                    self.event(event);
                    // What comes after a text that is whole now may be there already.
                    self.heard_more();
                }
            }
            Frame::Live(_) | Frame::Open(_) => {
                self.view.hear(frame);
                self.heard_more();
            }
            Frame::At(_) => {
                self.view.hear(frame);
                self.caught_up();
            }
        }
    }

    fn heard_more(&mut self) {
        let run = self.id().and_then(|id| self.view.tasks.get(id));
        let run = run.and_then(|task| task.runs.last_key_value());
        if let Some((n, run)) = run {
            self.tale.open(*n, run, self.now_ms);
        }
    }

    /// All that was before is there: the end of it is shown.
    fn caught_up(&mut self) {
        self.flush();
        let Some(before) = self.before.take() else {
            return;
        };
        let left_out = before.len().saturating_sub(HISTORY_LINES);
        if left_out > 0 {
            let short = self.task.as_ref().map_or("", |task| &task.short);
            let text = format!("… {left_out} lines before; `dispatch logs {short}` has all of it");
            self.out
                .push(Out::Line(Line::new("", &text, Some(Colour::Dim))));
        }
        let shown = before.into_iter().skip(left_out);
        self.out.extend(shown.map(Out::Line));
        self.typed_meanwhile();
    }

    fn typed_meanwhile(&mut self) {
        for text in std::mem::take(&mut self.typed) {
            self.typed(&text);
        }
    }

    fn event(&mut self, event: &Event) {
        let ends = matches!(event.kind.as_str(), "agent_ended" | "finished");
        let run = self.id().and_then(|id| self.view.tasks.get(id));
        let run = run.and_then(|task| Some((event.run?, task.runs.get(&event.run?)?)));
        if let Some((n, run)) = run.filter(|_| ends) {
            self.tale.close(n, run);
        }
        self.view.hear(&Frame::Event(Box::new(event.clone())));
        if event.task.as_deref() != self.id() {
            return;
        }
        match event.kind.as_str() {
            "task_created" => {
                let spec = event.body.get("spec");
                let text = spec.and_then(|spec| spec.get("text")?.as_str());
                self.told(None, text.unwrap_or_default());
            }
            "answered" => {
                let from = event.body.get("by").and_then(|by| self.name(by));
                self.told(from.as_deref(), event.text("text").unwrap_or_default());
            }
            "message_queued" if event.text("from") == Some("person") => {
                self.is_there(event.text("text").unwrap_or_default());
            }
            "message_delivered" => self.delivered(event),
            "run_queued" => self.tale.run_queued(),
            "permission_answered" => {
                self.forget_ask(event);
                self.tale.event(event);
            }
            "parked" => {
                let children = event.body.get("children").and_then(|all| all.as_array());
                let ids = children.into_iter().flatten().filter_map(|id| id.as_str());
                let names: Vec<String> = ids.map(|id| self.child(id)).collect();
                let text = format!("waits for {}", names.join(", "));
                self.tale.note(&text, Some(Colour::Dim));
            }
            "child_ended" => {
                let child = self.child(event.text("child").unwrap_or_default());
                let state = event.text("state").unwrap_or_default();
                let text = format!("{child} has ended: {state}");
                self.tale.note(&text, Some(Colour::Dim));
            }
            _ => self.tale.event(event),
        }
    }

    fn forget_ask(&mut self, event: &Event) {
        let ask = event.body.get("ask").and_then(serde_json::Value::as_u64);
        if let Some(ask) = ask.and_then(|ask| u32::try_from(ask).ok()) {
            self.answered.remove(&ask);
            self.by_hand.remove(&ask);
        }
    }

    /// Somebody else than the person.
    fn name(&self, sender: &serde_json::Value) -> Option<String> {
        match sender.as_str() {
            Some("person") => None,
            Some(other) => Some(other.to_owned()),
            None => {
                let task = sender.get("task")?.as_str()?;
                Some(format!("the agent of {}", self.child(task)))
            }
        }
    }

    /// A task by its name, where it is known.
    fn child(&self, id: &str) -> String {
        let known = self.task.as_ref().map_or(&[][..], |task| &task.children);
        let short = known.iter().find(|child| child.id == id);
        let short = short.map_or(id, |child| &child.short);
        match self.children.get(id) {
            Some(Some(title)) => format!("task {short} ({title})"),
            Some(None) | None => format!("task {short}"),
        }
    }

    /// What the agent is told now.
    fn told(&mut self, from: Option<&str>, text: &str) {
        if from.is_none() {
            self.is_there(text);
        }
        self.tale.told(from, text);
    }

    fn is_there(&mut self, text: &str) {
        let mut sending = self.sending.iter_mut();
        let same = |sent: &&mut Sending| !sent.heard && sent.text.trim() == text.trim();
        if let Some(sent) = sending.find(same) {
            sent.heard = true;
        }
    }

    fn delivered(&mut self, event: &Event) {
        let message = event
            .body
            .get("message")
            .and_then(serde_json::Value::as_u64);
        let messages = self.seen().map_or(&[][..], |task| &task.messages);
        let mut known = messages.iter();
        let known = known.find(|known| Some(u64::from(known.message)) == message);
        let Some(known) = known else {
            return;
        };
        let (from, text) = (self.name(&known.from), known.text.clone());
        self.tale.told(from.as_deref(), &text);
    }

    /// A line that a person has typed, or a script.
    pub(super) fn typed(&mut self, text: &str) {
        (self.interrupted, self.warned) = (None, false);
        if text.trim().is_empty() {
            return;
        }
        // What it means depends on what is not known yet.
        if self.making || self.looking || self.before.is_some() {
            self.typed.push_back(text.to_owned());
            return;
        }
        let asked = self.asking().is_some();
        match words::parse(text, asked) {
            Ok(word) => self.word(word),
            Err(what) => self.failed(&what),
        }
    }

    fn word(&mut self, word: Word) {
        match word {
            Word::Say(text) => self.say(text),
            Word::Help => self.help(),
            Word::Detach => self.leave(),
            Word::Tune(tune) => self.ask(Request::Check(tune)),
            Word::Attach(path) => self.look_at(path),
            Word::AttachNone => self.leave_files(),
            _ if self.task.is_none() => {
                self.failed("do that: there is no task yet; your first message makes one");
            }
            Word::Permit {
                ask,
                allow,
                always,
                why,
            } => self.permit(ask, allow, always, why),
            Word::Stop { kill } => self.ask(Request::Stop { kill }),
            Word::Resume { agent } => {
                let tune = std::mem::take(&mut self.tune);
                self.send(String::new(), Request::Resume { agent, tune });
            }
            Word::Queue => self.queue(),
            Word::Unsay(message) => self.ask(Request::Unsay(message)),
            Word::CompactLater => self.ask(Request::Compact),
            Word::Diff => self.ask(Request::Diff),
            Word::Apply { yes } => self.apply(yes),
        }
    }

    fn send(&mut self, text: String, request: Request) {
        let heard = text.is_empty();
        self.sending.push_back(Sending { text, heard });
        self.ask(request);
    }

    /// To a blocked task it is the answer, unless something was said already, or files go along, which
    /// no answer has.
    fn say(&mut self, text: String) {
        let tune = std::mem::take(&mut self.tune);
        let files = std::mem::take(&mut self.files);
        let said = text.clone();
        let request = if self.task.is_none() {
            self.making = true;
            Request::Begin { text, tune, files }
        } else if self.is_blocked() && self.sending.is_empty() && files.is_empty() {
            Request::Answer { text, tune }
        } else {
            Request::Say { text, tune, files }
        };
        self.send(said, request);
    }

    /// The limits are for all that go along together.
    fn look_at(&mut self, path: PathBuf) {
        let mut files = self.files.clone();
        files.push(path);
        self.looking = true;
        self.ask(Request::Look(files));
    }

    fn looked_at(&mut self, files: Vec<PathBuf>) {
        self.files = files;
        let names: Vec<String> = self.files.iter().map(|file| name(file)).collect();
        let text = format!("with your next message: {}", names.join(", "));
        self.tale.note(&text, Some(Colour::Dim));
    }

    fn leave_files(&mut self) {
        let text = match std::mem::take(&mut self.files).len() {
            0 => "no file was to go along".to_owned(),
            count => format!("{count} file(s) stay here"),
        };
        self.tale.note(&text, Some(Colour::Dim));
    }

    fn help(&mut self) {
        let lines = HELP.iter().map(|(name, what)| {
            Line::new("", &format!("{name:<21}"), Some(Colour::Bold)).and(what, None)
        });
        let first =
            "what you type is said to the agent, or answers it; alt-enter begins a new line";
        let lines = std::iter::once(Line::new("", first, None)).chain(lines);
        self.tale.put(lines.collect::<Vec<_>>());
    }

    fn permit(&mut self, named: Option<AskId>, allow: bool, always: bool, why: Option<String>) {
        let found = match named {
            None => self.asking().cloned(),
            Some(named) => {
                let asks = self.seen().map_or(&[][..], |task| &task.asks);
                asks.iter().find(|ask| ask.ask == named.0).cloned()
            }
        };
        let ask = match (found, named) {
            (Some(ask), _) => {
                if always {
                    self.allow_from_now_on(&ask);
                }
                ask.ask
            }
            // The engine says what it knows of that.
            (None, Some(named)) => named.0,
            (None, None) => return self.failed("answer: the agent asks for nothing now"),
        };
        self.answered.insert(ask);
        self.ask(Request::Permit {
            ask,
            allow,
            always,
            why,
        });
    }

    fn allow_from_now_on(&mut self, ask: &Asking) {
        let text = match key(ask) {
            Some(key) => {
                let (tool, subject) = (shown(&key.0), shown(&key.1));
                let text = format!("allowed from now on: {tool} {subject}");
                self.always.insert(key);
                text
            }
            None => "allowed this once: it is too long to be known again".to_owned(),
        };
        self.tale.note(&text, Some(Colour::Dim));
    }

    fn queue(&mut self) {
        let lines: Vec<Line> = self
            .waiting()
            .iter()
            .flat_map(|one| self.waiting_lines(one))
            .collect();
        if lines.is_empty() {
            self.tale.note("nothing waits", Some(Colour::Dim));
        } else {
            self.tale.put(lines);
        }
    }

    /// Messages that the agent has not heard, by what is newer: the last answer or the last event.
    fn waiting(&self) -> Vec<Waiting> {
        let answered = self.task.as_ref().filter(|task| task.seq > self.view.seq);
        let mut messages: Vec<Waiting> = match answered {
            Some(task) => task.messages.iter().filter_map(Waiting::of).collect(),
            None => self.seen().map_or(Vec::new(), |task| task.messages.clone()),
        };
        messages.retain(|one| one.state != MessageState::Delivered);
        messages
    }

    /// In full.
    fn waiting_lines(&self, one: &Waiting) -> Vec<Line> {
        let mut lines = Line::all("  ", one.text.trim(), None);
        let head = Line::new("", &self.waits_as(one), Some(Colour::Dim));
        lines.insert(0, head);
        lines
    }

    fn waits_as(&self, one: &Waiting) -> String {
        let how = match one.state {
            MessageState::Held => "is held until you say something",
            MessageState::Waiting => "waits for the next run",
            MessageState::OnItsWay | MessageState::Delivered => "is on its way",
        };
        let from = self.name(&one.from);
        let from = from.map(|from| format!(" from {from}")).unwrap_or_default();
        format!("message {}{from} {how}", one.message)
    }

    fn apply(&mut self, yes: bool) {
        let Some(task) = &self.task else {
            return;
        };
        let write = matches!(task.from.as_str(), "folder" | "nothing");
        if write && !yes && task.changed {
            let files = task.diffstat.map_or(0, |stat| stat.files);
            let text = format!(
                "it would write {files} file(s) into {}: /apply yes does it, /diff shows what",
                clean_line(&task.repo)
            );
            return self.tale.note(&text, Some(Colour::Yellow));
        }
        self.ask(Request::Apply { write });
    }

    /// What came of a request.
    pub(super) fn answered(&mut self, request: Request, told: Told) {
        self.under_way = self.under_way.saturating_sub(1);
        if request.is_word() {
            self.sending.pop_front();
        }
        let looked = matches!(request, Request::Look(_));
        match told {
            Told::Refused { error, code } => self.refused(request, &error, code.as_deref()),
            Told::Spoken(spoken) => {
                // That a run begins with it is seen.
                let begins = spoken.task.runs.last();
                let begins = begins.is_some_and(|run| run.started_at.is_none());
                if spoken.how == "held" || (spoken.how == "queued" && !begins) {
                    self.tale.note(&spoken_line(&spoken), Some(Colour::Dim));
                }
                self.look(spoken.task);
            }
            Told::Task(task) => match request {
                Request::Begin { .. } => self.made(*task),
                Request::Child(id) => self.named(&id, &task),
                _ => self.look(*task),
            },
            Told::Diff(diff) => self.diff(&diff),
            Told::Applied(done) => self.applied(&done),
            Told::Nothing => match request {
                Request::Check(tune) => self.tuned(tune),
                Request::Look(files) => self.looked_at(files),
                _ => {}
            },
        }
        if looked {
            self.looking = false;
            self.typed_meanwhile();
        }
    }

    fn made(&mut self, task: Task) {
        self.making = false;
        self.begin(task);
        self.typed_meanwhile();
    }

    fn named(&mut self, id: &str, task: &Task) {
        let title = cut(&clean_line(&task.title), TITLE_CHARS);
        self.children.insert(id.to_owned(), Some(title));
        let text = format!("asked {} for {}", task.agent, self.child(id));
        self.tale.note(&text, Some(Colour::Dim));
    }

    fn tuned(&mut self, tune: Tune) {
        self.tune.model = tune.model.or(self.tune.model.take());
        self.tune.effort = tune.effort.or(self.tune.effort);
        let model = self
            .tune
            .model
            .as_ref()
            .map(|model| format!("model {model}"));
        let effort = self.tune.effort;
        let effort = effort.map(|effort| format!("effort {}", effort.word()));
        let words: Vec<String> = [model, effort].into_iter().flatten().collect();
        let text = format!("from your next message on: {}", words.join(", "));
        self.tale.note(&text, Some(Colour::Dim));
    }

    fn refused(&mut self, request: Request, error: &CliError, code: Option<&str>) {
        match request {
            // Somebody else has answered it, or it goes on already: then it is said.
            Request::Answer { text, tune } if code == Some(WRONG_STATE) => {
                let request = Request::Say {
                    text: text.clone(),
                    tune,
                    files: Vec::new(),
                };
                // In front of what was said after it.
                self.sending.push_front(Sending { text, heard: false });
                self.under_way += 1;
                self.out.push(Out::AskFirst(request));
                return;
            }
            Request::Permit { ask, .. } => {
                self.answered.remove(&ask);
                self.by_hand.insert(ask);
            }
            Request::Begin { tune, files, .. } => {
                self.making = false;
                self.typed.clear();
                (self.tune, self.files) = (tune, files);
            }
            Request::Say { tune, files, .. } => (self.tune, self.files) = (tune, files),
            Request::Answer { tune, .. } | Request::Resume { tune, .. } => self.tune = tune,
            Request::Child(_) => return,
            Request::Stop { .. }
            | Request::Unsay(_)
            | Request::Compact
            | Request::Check(_)
            | Request::Look(_)
            | Request::Diff
            | Request::Apply { .. } => {}
        }
        self.refused = Some(error.exit);
        self.failed(&error.what);
        if let Some(hint) = &error.hint {
            self.tale.note(&format!("hint: {hint}"), Some(Colour::Dim));
        }
    }

    fn diff(&mut self, diff: &str) {
        let all = diff.lines().count();
        if all == 0 {
            return self.tale.note("nothing has changed", Some(Colour::Dim));
        }
        let lines = diff.lines().take(DIFF_LINES).map(|line| {
            let colour = match line.as_bytes().first() {
                Some(b'+') => Some(Colour::Green),
                Some(b'-') => Some(Colour::Red),
                Some(b'@') => Some(Colour::Dim),
                Some(b'd') => Some(Colour::Bold),
                _ => None,
            };
            Line::new("", line, colour)
        });
        self.tale.put(lines.collect::<Vec<_>>());
        if let Some(more) = all.checked_sub(DIFF_LINES).filter(|more| *more > 0) {
            let short = self.task.as_ref().map_or("", |task| &task.short);
            let text = format!("… {more} lines more: `dispatch diff {short}`");
            self.tale.note(&text, Some(Colour::Dim));
        }
    }

    fn applied(&mut self, done: &Applied) {
        let repo = done.repo.display();
        let lines = match done.files {
            Some(files) => format!("{files} file(s) in {repo}"),
            None => {
                let short: String = done.commit.chars().take(12).collect();
                let branch = &done.branch;
                format!("branch {branch} at {short} in {repo}\n  git -C {repo} merge {branch}")
            }
        };
        self.tale.note(&lines, None);
    }

    /// Ctrl-C: never an end of the task. Twice within a moment it leaves.
    pub(super) fn interrupt(&mut self, cleared: bool, now: Now) {
        let before = self.interrupted.replace(now.ms);
        if before.is_some_and(|before| now.ms.saturating_sub(before) <= TWICE_MS) {
            self.warned = true;
            return self.leave();
        }
        if !cleared {
            let open = self.task.as_ref().is_some_and(Task::is_open);
            let stop = if open { "; /stop stops the task" } else { "" };
            self.hint(format!("ctrl-c again leaves{stop}"));
        }
    }

    /// Nobody types any more. A script's chat goes on until its task has ended.
    pub(super) fn no_more(&mut self) {
        self.eof = true;
    }

    pub(super) fn leave(&mut self) {
        let unsent = self.unsent().count();
        if unsent > 0 && !std::mem::replace(&mut self.warned, true) {
            let text = format!(
                "{unsent} of your messages have not reached the engine; again leaves without them"
            );
            return self.hint(text);
        }
        self.left = true;
        let unsent: Vec<String> = self.unsent().map(str::to_owned).collect();
        for text in unsent {
            let text = format!("not sent: {text}");
            self.tale.note(&text, Some(Colour::Yellow));
        }
        if let Some(task) = &self.task {
            let short = &task.short;
            let text = if task.is_open() {
                format!("the task goes on; `dispatch chat {short}` comes back to it")
            } else {
                format!("`dispatch chat {short}` goes on with it")
            };
            self.tale.note(&text, Some(Colour::Dim));
        }
        self.before = None;
        self.flush();
        self.out.push(Out::Leave(Exit::Completed));
    }

    /// What the engine does not have yet.
    fn unsent(&self) -> impl Iterator<Item = &str> {
        let sending = self.sending.iter().filter(|sent| !sent.heard);
        let sending = sending.map(|sent| sent.text.as_str());
        sending.chain(self.typed.iter().map(String::as_str))
    }

    /// What follows by itself.
    fn settle(&mut self) {
        if self.before.is_none() {
            self.allow_always();
        }
        if self.eof && !self.left && self.is_at_rest() {
            self.left = true;
            self.flush();
            let exit = match &self.task {
                Some(task) => Exit::of(task),
                None => self.refused.unwrap_or(Exit::Completed),
            };
            self.out.push(Out::Leave(exit));
        }
    }

    fn allow_always(&mut self) {
        let asks = self.seen().map_or(&[][..], |task| &task.asks);
        let left =
            |ask: &&Asking| !self.answered.contains(&ask.ask) && !self.by_hand.contains(&ask.ask);
        let open = asks.iter().filter(left);
        let known = open.filter(|ask| key(ask).is_some_and(|key| self.always.contains(&key)));
        let known: Vec<u32> = known.map(|ask| ask.ask).collect();
        for ask in known {
            self.answered.insert(ask);
            self.ask(Request::Permit {
                ask,
                allow: true,
                always: true,
                why: None,
            });
        }
    }

    /// Nothing is under way, and nothing comes by itself.
    fn is_at_rest(&self) -> bool {
        if self.under_way > 0 || self.before.is_some() || !self.typed.is_empty() {
            return false;
        }
        let Some(task) = &self.task else {
            return true;
        };
        let heard = match (task.runs.last(), self.run()) {
            (Some(last), Some((n, run))) => last.n == n && run.state == last.state,
            (None, _) | (_, None) => false,
        };
        (heard && !task.is_open()) || task.needs_you()
    }

    /// What a person has said to the task so far, for the keys that bring it back.
    pub(super) fn said_before(task: &Task) -> Vec<String> {
        let said = task
            .messages
            .iter()
            .filter(|message| message.from == "person");
        let said = said.map(|message| message.text.clone());
        std::iter::once(task.task.clone()).chain(said).collect()
    }
}

/// Of a file, for a person to read.
pub(super) fn name(file: &Path) -> String {
    let name = file.file_name().unwrap_or(file.as_os_str());
    clean_line(&name.to_string_lossy())
}

/// What is allowed again with the same words. An input that may have been cut has none.
fn key(ask: &Asking) -> Option<(String, String)> {
    let whole = ask.input.len() + CUT_MARK_BYTES_MAX < INPUT_BYTES_MAX;
    whole.then(|| (ask.tool.clone(), subject(&ask.input)))
}
