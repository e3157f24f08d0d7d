//! What a task's events come to as lines of a chat, each made once: what the person and the agent said,
//! tool calls with how they went, a turn's end.
//! Must not ask for anything, and must not say anything twice that comes live first and whole later.

use std::collections::VecDeque;

use dispatch_core::{
    ask::shown,
    outcome::Outcome,
    update::{Update, Usage, Voice},
};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::line::Line;
use crate::{
    api::{
        event::{Event, OpenText},
        task::Diffstat,
    },
    cli::{
        screen::{describe, said as said_line, update},
        style::{Colour, cut, span},
    },
    client::fold::RunView,
};

/// Of what a tool is given, where its result stands behind it.
const INPUT_CHARS: usize = 72;
/// What may stand at the end of a text that was cut, and is not in its pieces.
pub(super) const CUT_MARK_BYTES_MAX: usize = 256;
/// Texts that an agent began and never ended.
const FLOWS_MAX: usize = 16;
/// Pieces are told at once, and what was said before them when it is durable: so a text is printed as
/// it comes only after a while, and stands behind what came before it.
const SETTLED_MS: u64 = 500;
/// Tool calls that have no result yet; an agent that never tells results has no more of them.
const CALLS_MAX: usize = 32;

/// What the last line belongs to: between two of them is an empty line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Block {
    #[default]
    Nothing,
    Person,
    Text,
    Thinking,
    Work,
    End,
}

fn block_of(voice: Voice) -> Block {
    match voice {
        Voice::Thinking => Block::Thinking,
        Voice::Text | Voice::Output => Block::Text,
    }
}

/// A text that comes in pieces, as far as it has been printed.
#[derive(Clone, Debug)]
struct Flow {
    run: u32,
    chunk: u32,
    voice: Voice,
    /// When its first piece came.
    since: u64,
    /// Whole lines, from its start.
    printed: String,
    begun: bool,
    /// Empty lines that are printed when something follows them.
    blanks: usize,
}

impl Flow {
    fn new(run: u32, chunk: u32, voice: Voice, since: u64) -> Self {
        Self {
            run,
            chunk,
            voice,
            since,
            printed: String::new(),
            begun: false,
            blanks: 0,
        }
    }

    fn is(&self, run: u32, chunk: u32) -> bool {
        (self.run, self.chunk) == (run, chunk)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Call {
    id: String,
    name: String,
    input: String,
}

/// What is said of a run at its end.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    pub(super) tools: usize,
    pub(super) usage: Option<Usage>,
    pub(super) started: Option<Timestamp>,
    spoke: bool,
    changed: bool,
}

#[derive(Debug, Default)]
pub(super) struct Tale {
    lines: Vec<Line>,
    block: Block,
    /// Texts that are open, the oldest first. Pieces of the next one may come before the whole of the
    /// one before: only the first is printed.
    flows: Vec<Flow>,
    /// Lines that wait for the end of a text that has begun.
    later: Vec<Line>,
    /// Bytes of what is kept in no event that have been printed.
    output_read: u64,
    output_since: Option<u64>,
    /// Its agent has a protocol: what is kept in no event is then what its tools print.
    speaks: bool,
    calls: VecDeque<Call>,
    pub(super) tally: Tally,
}

impl Tale {
    pub(super) fn take(&mut self) -> Vec<Line> {
        std::mem::take(&mut self.lines)
    }

    fn begin(&mut self, block: Block) {
        if self.block != block && self.block != Block::Nothing {
            self.lines.push(Line::empty());
        }
        self.block = block;
    }

    /// Whether an empty line comes before more of that.
    pub(super) fn stands_apart(&self, voice: Voice) -> bool {
        let begun = self.flows.first().filter(|flow| flow.begun);
        let other = self.block != Block::Nothing && self.block != block_of(voice);
        other || begun.is_some_and(|flow| flow.blanks > 0)
    }

    /// Of ours, between what others said.
    pub(super) fn note(&mut self, text: &str, colour: Option<Colour>) {
        self.begin(Block::Work);
        self.lines.extend(Line::all("", text, colour));
    }

    pub(super) fn put(&mut self, lines: impl IntoIterator<Item = Line>) {
        self.begin(Block::Work);
        self.lines.extend(lines);
    }

    /// What the task's agent was told. `from`: nobody, or whoever else it was.
    pub(super) fn told(&mut self, from: Option<&str>, text: &str) {
        let mut lines = vec![Line::empty()];
        if let Some(from) = from {
            lines.push(Line::new("", &format!("from {from}:"), Some(Colour::Dim)));
        }
        lines.extend(Line::all("> ", text.trim(), Some(Colour::Bold)));
        self.later.extend(lines);
        self.tell_later();
    }

    /// What the agent was told in the middle of a text stands behind it.
    fn tell_later(&mut self) {
        if self.later.is_empty() || self.flows.iter().any(|flow| flow.begun) {
            return;
        }
        let nothing_before = self.block == Block::Nothing;
        self.block = Block::Person;
        let lines = std::mem::take(&mut self.later);
        self.lines
            .extend(lines.into_iter().skip(usize::from(nothing_before)));
    }

    pub(super) fn later(&self) -> impl Iterator<Item = Line> {
        self.later.iter().cloned()
    }

    /// A run that begins has said nothing yet.
    pub(super) fn run_queued(&mut self) {
        self.tally = Tally::default();
        self.flows.clear();
        self.tell_later();
        (self.output_read, self.output_since, self.speaks) = (0, None, false);
    }

    pub(super) fn event(&mut self, event: &Event) {
        match event.kind.as_str() {
            "said" => self.said(event),
            "started" => self.tally.started = event.at.parse().ok(),
            "permission_asked" => self.asked(event),
            "agent_ended" => {
                let usage = member::<Usage>(event, "usage");
                self.tally.usage = usage.or(self.tally.usage.take());
            }
            "workspace_sealed" => {
                let stat = member::<Diffstat>(event, "sealed");
                self.tally.changed = stat.is_some_and(|stat| stat.files > 0);
                if self.tally.changed {
                    self.described(event);
                }
            }
            "check_finished" if event.text("state") == Some("running") => {}
            "finished" => self.finished(event),
            kind if TOLD.contains(&kind) => self.described(event),
            _ => {}
        }
    }

    fn described(&mut self, event: &Event) {
        let colour = match event.kind.as_str() {
            "noted" | "carried_found" | "site_refused" | "message_returned" => Colour::Yellow,
            "check_finished" if event.text("state") == Some("failed") => Colour::Red,
            _ => Colour::Dim,
        };
        if let Some(text) = describe(event) {
            self.note(&text, Some(colour));
        }
    }

    fn said(&mut self, event: &Event) {
        let chunk = member::<u32>(event, "chunk");
        let run = event.run.unwrap_or_default();
        self.speaks = true;
        match update(event) {
            Some(Update::Text { text }) => self.whole(run, chunk, Voice::Text, &text),
            Some(Update::Thinking { text }) => self.whole(run, chunk, Voice::Thinking, &text),
            Some(Update::ToolCall { id, name, input }) => {
                self.tally.tools += 1;
                self.calls.push_back(Call { id, name, input });
                if self.calls.len() > CALLS_MAX {
                    self.unanswered(1);
                }
            }
            Some(Update::ToolResult { id, output, failed }) => self.result(&id, &output, failed),
            Some(Update::Usage(usage)) => self.tally.usage = Some(usage),
            // That it was granted is in the call that follows.
            Some(Update::Asked { allowed: true, .. }) | None => {}
            Some(update @ Update::Retrying { .. }) => self.said_in_a_line(&update, Colour::Yellow),
            Some(update) => self.said_in_a_line(&update, Colour::Dim),
        }
    }

    fn said_in_a_line(&mut self, update: &Update, colour: Colour) {
        if let Some(text) = said_line(update) {
            self.put([Line::new("", &text, Some(colour))]);
        }
    }

    /// What is being said, as far as it has come: whole lines of it are printed.
    pub(super) fn open(&mut self, run: u32, view: &RunView, now_ms: u64) {
        let settled = |since: u64| now_ms.saturating_sub(since) >= SETTLED_MS;
        if let Some(open) = &view.output {
            let settled = settled(*self.output_since.get_or_insert(now_ms));
            if self.speaks && self.calls.is_empty() {
                self.output_read = open.offset + open.text.len() as u64;
            } else if settled && !self.speaks {
                self.output(open, false);
            }
        }
        let Some(open) = &view.text else {
            return;
        };
        if !self.flows.iter().any(|flow| flow.is(run, open.chunk)) {
            self.flows
                .push(Flow::new(run, open.chunk, open.voice, now_ms));
            if self.flows.len() > FLOWS_MAX {
                self.flows.remove(0);
            }
        }
        let first = self.flows.first();
        let first = first.filter(|flow| flow.is(run, open.chunk) && settled(flow.since));
        let Some(flow) = first else {
            return;
        };
        if let Some(new) = unprinted(open, flow.printed.len())
            && let Some(end) = new.rfind('\n')
        {
            let mut flow = self.flows.remove(0);
            flow.printed.push_str(&new[..=end]);
            self.flow_lines(&mut flow, &new[..=end]);
            self.flows.insert(0, flow);
        }
    }

    /// What of it is not printed yet, and whether something is missing before that.
    pub(super) fn rest<'a>(&self, run: u32, open: &'a OpenText) -> (&'a str, bool) {
        let flow = self.flows.iter().find(|flow| flow.is(run, open.chunk));
        let printed = flow.map_or(0, |flow| flow.printed.len());
        match unprinted(open, printed) {
            Some(new) => (new, false),
            None => (&open.text, open.offset > printed as u64),
        }
    }

    /// What its tools print now, rather than it.
    pub(super) fn speaks(&self) -> bool {
        self.speaks
    }

    /// What of that which is kept in no event is not printed: the last line while it is not whole, or
    /// what the tools that go on have printed.
    pub(super) fn output_rest<'a>(&self, open: &'a OpenText) -> &'a str {
        let from = self.output_read.saturating_sub(open.offset);
        let from = usize::try_from(from).unwrap_or(usize::MAX);
        open.text.get(from..).unwrap_or_default()
    }

    /// A text is whole: what of it has not been printed.
    fn whole(&mut self, run: u32, chunk: Option<u32>, voice: Voice, text: &str) {
        let chunk = chunk.unwrap_or_default();
        let known = self.closed(run, chunk);
        let mut flow = known.unwrap_or_else(|| Flow::new(run, chunk, voice, 0));
        let rest = behind(text, &flow.printed).to_owned();
        self.flow_lines(&mut flow, &rest);
        self.tell_later();
    }

    /// Those before it will not be closed any more: events come in order.
    fn closed(&mut self, run: u32, chunk: u32) -> Option<Flow> {
        let closed = self.flows.iter().position(|flow| flow.is(run, chunk))?;
        self.flows.drain(..=closed).next_back()
    }

    fn flow_lines(&mut self, flow: &mut Flow, text: &str) {
        let block = block_of(flow.voice);
        let colour = (block == Block::Thinking).then_some(Colour::Dim);
        for line in Line::all("", text, colour) {
            if line.is_blank() {
                flow.blanks += 1;
                continue;
            }
            self.begin(block);
            let blanks = std::mem::take(&mut flow.blanks);
            if flow.begun {
                self.lines
                    .extend(std::iter::repeat_n(Line::empty(), blanks));
            }
            flow.begun = true;
            self.tally.spoke |= block == Block::Text;
            self.lines.push(line);
        }
    }

    fn output(&mut self, open: &OpenText, to_the_end: bool) {
        let rest = self.output_rest(open);
        let end = match rest.rfind('\n') {
            _ if to_the_end => rest.len(),
            Some(end) => end + 1,
            None => return,
        };
        let lines = Line::all("", &rest[..end], None);
        if !lines.is_empty() {
            self.begin(Block::Text);
            self.lines.extend(lines);
            self.tally.spoke = true;
        }
        self.output_read = self.output_read.max(open.offset) + end as u64;
    }

    /// Before its agent has ended and what was open is not there any more: no event will have it.
    pub(super) fn close(&mut self, run: u32, view: &RunView) {
        if let Some(open) = view.output.as_ref().filter(|_| !self.speaks) {
            self.output(open, true);
        }
        if let Some(open) = &view.text {
            let rest = self.rest(run, open).0.to_owned();
            if let Some(mut flow) = self.closed(run, open.chunk) {
                self.flow_lines(&mut flow, &rest);
            }
        }
        self.flows.clear();
        self.tell_later();
        self.unanswered(self.calls.len());
    }

    fn result(&mut self, id: &str, output: &str, failed: bool) {
        let known = self.calls.iter().position(|call| call.id == id);
        let call = known.and_then(|n| self.calls.remove(n));
        let call = call.unwrap_or_else(|| Call {
            id: id.to_owned(),
            name: "result".to_owned(),
            input: String::new(),
        });
        let first = first_line(output);
        let (lead, colour) = if failed {
            ("× ", Colour::Red)
        } else {
            ("→ ", Colour::Dim)
        };
        let name = failed.then_some(Colour::Red);
        let mut line = Line::new(lead, &call.name, name);
        if !call.input.is_empty() {
            line = line.and(" ", None).and(&brief(&call.input), name);
        }
        let first = match (first.as_str(), failed) {
            ("", true) => "failed",
            (first, _) => first,
        };
        if !first.is_empty() {
            line = line.and(" · ", Some(Colour::Dim)).and(first, Some(colour));
        }
        self.put([line.folded()]);
    }

    /// The oldest calls will have no result.
    fn unanswered(&mut self, count: usize) {
        for call in self.calls.drain(..count).collect::<Vec<_>>() {
            let line = call_line(&call).and(" · no result", Some(Colour::Dim));
            self.put([line.folded()]);
        }
    }

    /// Calls that go on.
    pub(super) fn calls(&self) -> impl Iterator<Item = Line> {
        self.calls.iter().map(|call| call_line(call).folded())
    }

    /// All of it: whoever answers reads it.
    fn asked(&mut self, event: &Event) {
        let ask = member::<u32>(event, "ask").unwrap_or_default();
        let text = |key: &str| event.text(key).map(shown).unwrap_or_default();
        let line = Line::new("? ", &format!("asks {ask}: "), Some(Colour::Yellow))
            .and(&text("tool"), Some(Colour::Bold))
            .and(" ", None)
            .and(&text("input"), None);
        self.put([line]);
    }

    fn finished(&mut self, event: &Event) {
        let outcome = member::<Outcome>(event, "outcome");
        let (word, reason) = match &outcome {
            Some(outcome) => (outcome.word(), outcome.reason()),
            None => ("ended", String::new()),
        };
        let mut told = String::new();
        match &outcome {
            // Else its end is in what was said.
            Some(Outcome::Completed { summary }) if !self.tally.spoke => {
                self.begin(Block::Text);
                self.lines.extend(Line::all("", summary.trim(), None));
            }
            Some(Outcome::Completed { .. }) | None => {}
            Some(Outcome::Blocked { .. }) => {
                self.begin(Block::End);
                let question = Line::all("? ", reason.trim(), Some(Colour::Yellow));
                self.lines.extend(question);
            }
            Some(Outcome::Failed(_) | Outcome::Stopped(_) | Outcome::Lost) => {
                told = format!(": {}", reason.trim());
            }
        }
        self.begin(Block::End);
        let facts = self.facts(event);
        let mut line = Line::new("", word, Some(colour_of(word))).and(&told, None);
        if !facts.is_empty() {
            line = line.and(&format!(" · {}", facts.join(" · ")), Some(Colour::Dim));
        }
        self.lines.push(line);
    }

    fn facts(&self, event: &Event) -> Vec<String> {
        let mut facts = Vec::new();
        match event.text("verified") {
            Some("yes") => facts.push("verified".to_owned()),
            Some("no") => facts.push("checks failed".to_owned()),
            Some(_) if self.tally.changed => facts.push("not verified".to_owned()),
            Some(_) | None => {}
        }
        facts.extend(spent(&self.tally));
        let ended = event.at.parse::<Timestamp>().ok();
        if let Some((started, ended)) = self.tally.started.zip(ended) {
            let seconds = ended.as_second().saturating_sub(started.as_second());
            facts.push(span(seconds.try_into().unwrap_or_default()));
        }
        facts
    }
}

/// Events that are told in the words that `events` has for them.
const TOLD: &[&str] = &[
    "agent_set",
    "attached",
    "budget_warned",
    "carried_found",
    "check_finished",
    "compact_asked",
    "detached",
    "ends_delivered",
    "message_cancelled",
    "message_returned",
    "noted",
    "permission_answered",
    "range_set",
    "reviewed",
    "site_refused",
    "stop_requested",
    "tuning_set",
    "waits",
];

pub(super) fn colour_of(word: &str) -> Colour {
    match word {
        "completed" => Colour::Green,
        "failed" | "lost" => Colour::Red,
        "blocked" | "stopped" => Colour::Yellow,
        _ => Colour::Bold,
    }
}

/// Tool calls, tokens and money.
pub(super) fn spent(tally: &Tally) -> Vec<String> {
    let mut facts = Vec::new();
    match tally.tools {
        0 => {}
        1 => facts.push("1 tool call".to_owned()),
        more => facts.push(format!("{more} tool calls")),
    }
    let Some(usage) = &tally.usage else {
        return facts;
    };
    let read = [
        usage.input_tokens,
        usage.cache_read_tokens,
        usage.cache_write_tokens,
    ];
    let read: u64 = read.iter().flatten().sum();
    let written = usage.output_tokens.unwrap_or_default();
    if read + written > 0 {
        facts.push(format!("{} tokens in, {} out", short(read), short(written)));
    }
    facts.extend(usage.cost_usd.map(money));
    facts
}

/// `950`, `12.3k`, `1.2M`.
fn short(tokens: u64) -> String {
    match tokens {
        0..1_000 => tokens.to_string(),
        1_000..1_000_000 => format!("{}.{}k", tokens / 1_000, tokens % 1_000 / 100),
        _ => format!("{}.{}M", tokens / 1_000_000, tokens % 1_000_000 / 100_000),
    }
}

fn money(usd: f64) -> String {
    if usd < 1.0 {
        format!("${usd:.4}")
    } else {
        format!("${usd:.2}")
    }
}

fn call_line(call: &Call) -> Line {
    let line = Line::new("→ ", &call.name, None);
    match call.input.is_empty() {
        true => line,
        false => line.and(" ", None).and(&brief(&call.input), None),
    }
}

/// Members that say what a call is about.
const SUBJECTS: &[&str] = &[
    "command",
    "cmd",
    "file_path",
    "path",
    "pattern",
    "query",
    "url",
    "task",
    "prompt",
    "description",
];

/// What a tool is used on: the member that says so, where what it was given has one.
pub(super) fn subject(input: &str) -> String {
    let given: Option<Value> = serde_json::from_str(input).ok();
    let member = given.as_ref().and_then(|given| {
        let mut members = SUBJECTS.iter().filter_map(|name| given.get(name));
        members.find_map(Value::as_str)
    });
    member.unwrap_or(input).to_owned()
}

/// Members of a result that say how it went.
const RESULTS: &[&str] = &[
    "error", "stdout", "stderr", "output", "result", "content", "text", "message",
];

/// The first line that says something, of a result as it is or of the member that has it.
fn first_line(output: &str) -> String {
    let given: Option<Value> = match output.trim_start().starts_with('{') {
        true => serde_json::from_str(output).ok(),
        false => None,
    };
    let line = |text: &str| {
        let mut lines = text.lines().map(str::trim);
        lines.find(|line| !line.is_empty()).map(str::to_owned)
    };
    let given = given.iter().flat_map(|given| {
        let members = RESULTS.iter().filter_map(|name| given.get(name)?.as_str());
        members.collect::<Vec<_>>()
    });
    let members: Vec<&str> = given.collect();
    let found = match members.is_empty() {
        true => line(output),
        false => members.into_iter().find_map(line),
    };
    found.unwrap_or_default()
}

fn brief(input: &str) -> String {
    let subject = subject(input);
    let lines: Vec<&str> = subject.trim().lines().map(str::trim).collect();
    cut(&lines.join(" "), INPUT_CHARS)
}

/// What comes behind the bytes that are printed; `None` where bytes are missing between.
fn unprinted(open: &OpenText, printed: usize) -> Option<&str> {
    let from = (printed as u64).checked_sub(open.offset)?;
    open.text.get(usize::try_from(from).ok()?..)
}

/// What a whole text has behind the pieces that are printed. Blanks at its start and end may not be in
/// it, and where it was cut they have more.
fn behind<'a>(whole: &'a str, printed: &str) -> &'a str {
    let (text, known) = (whole.trim_start(), printed.trim_start());
    if known.trim_end().is_empty() {
        return whole;
    }
    if let Some(rest) = text.strip_prefix(known) {
        return rest;
    }
    let alike = text.bytes().zip(known.bytes());
    let alike = alike.take_while(|(a, b)| a == b).count();
    let was_cut = known.len() >= text.len() && alike + CUT_MARK_BYTES_MAX >= text.len();
    if was_cut && alike > text.len() / 2 {
        return "";
    }
    whole
}

fn member<T: DeserializeOwned>(event: &Event, key: &str) -> Option<T> {
    T::deserialize(event.body.get(key)?).ok()
}
