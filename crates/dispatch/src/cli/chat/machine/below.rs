//! What stands below the finished lines of a chat: what is being said, the calls that go on, things to
//! do, the queue, what is asked, how the run is.
//! Must not change the chat: it is looked at as often as somebody draws.

use dispatch_core::{
    ask::shown,
    update::{Todo, TodoState, Voice},
};

use super::{
    super::{
        line::Line,
        tale::{colour_of, spent, subject},
    },
    Chat, Now,
};
use crate::{
    api::task::Task,
    cli::{
        screen::{diffstat_line, waits_line},
        style::{Colour, span},
    },
    client::fold::RunView,
};

/// Of the list of things to do, of the queue and of running calls that stand above the prompt.
const TODO_SHOWN: usize = 6;
const QUEUE_SHOWN: usize = 4;
const CALLS_SHOWN: usize = 4;
/// Lines of what a tool prints while it goes on.
const OUTPUT_SHOWN: usize = 3;
/// Of a text that is being said: no terminal shows more at once.
const OPEN_BYTES: usize = 16 << 10;
const SPINNER: [&str; 10] = ["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"];

/// What stands below the lines that are finished.
#[derive(Debug, Default)]
pub(in crate::cli::chat) struct Below {
    pub(in crate::cli::chat) open: Vec<Line>,
    pub(in crate::cli::chat) rest: Vec<Line>,
    /// In front of what is typed.
    pub(in crate::cli::chat) lead: String,
}

impl Chat {
    /// What stands below the finished lines.
    pub(in crate::cli::chat) fn below(&self, now: Now) -> Below {
        let mut rest = Vec::new();
        let mut open = Vec::new();
        if let Some((n, run)) = self.run()
            && self.before.is_none()
        {
            open = self.open_lines(n, run);
            let calls: Vec<Line> = self.tale.calls().collect();
            let shown = calls.len().saturating_sub(CALLS_SHOWN);
            rest.extend(calls.into_iter().skip(shown));
            if !run.ended {
                rest.extend(todo_lines(&run.todo));
            }
        }
        rest.extend(self.queue_lines());
        rest.extend(self.ask_lines(now));
        rest.push(self.status(now));
        let lead = match self.asking() {
            Some(ask) => format!("ask {}> ", ask.ask),
            None if self.is_blocked() && self.sending.is_empty() => "answer> ".to_owned(),
            None => "> ".to_owned(),
        };
        Below { open, rest, lead }
    }

    fn open_lines(&self, n: u32, run: &RunView) -> Vec<Line> {
        let mut lines = Vec::new();
        if let Some(output) = &run.output {
            let rest = tail(self.tale.output_rest(output));
            if self.tale.speaks() {
                let printed: Vec<&str> = rest.lines().collect();
                let from = printed.len().saturating_sub(OUTPUT_SHOWN);
                let line = |line: &&str| Line::new("  │ ", line, Some(Colour::Dim)).folded();
                lines.extend(printed[from..].iter().map(line));
            } else {
                lines.extend(Line::all("", rest, None));
            }
        }
        if let Some(text) = &run.text {
            let (rest, hole) = self.tale.rest(n, text);
            let colour = (text.voice == Voice::Thinking).then_some(Colour::Dim);
            if self.tale.stands_apart(text.voice) && !rest.trim().is_empty() {
                lines.push(Line::empty());
            }
            if hole {
                lines.push(Line::new("", "…", colour));
            }
            lines.extend(Line::all("", tail(rest), colour));
        }
        lines.extend(self.tale.later());
        lines
    }

    fn queue_lines(&self) -> Vec<Line> {
        let dim = Some(Colour::Dim);
        let waiting = self.waiting();
        let waiting = waiting.iter().map(|one| {
            let head = format!("{}: ", self.waits_as(one));
            Line::new("  ", &head, dim).and(&one_line(&one.text), None)
        });
        let word = match self.lost {
            Some(_) => "not sent yet: ",
            None => "sending: ",
        };
        let sending = self
            .unsent()
            .map(|text| Line::new("  ", word, dim).and(&one_line(text), None));
        let files = self.files.iter().map(|file| {
            let name = super::name(file);
            Line::new("  ", "with your next message: ", dim).and(&name, None)
        });
        let all = waiting.chain(sending).chain(files);
        let all: Vec<Line> = all.map(Line::folded).collect();
        let more = all.len().saturating_sub(QUEUE_SHOWN);
        let mut lines: Vec<Line> = all.into_iter().take(QUEUE_SHOWN).collect();
        if more > 0 {
            lines.push(Line::new("  ", &format!("and {more} more: /queue"), dim));
        }
        lines
    }

    fn ask_lines(&self, now: Now) -> Vec<Line> {
        let Some(ask) = self.asking() else {
            return Vec::new();
        };
        let subject = shown(&subject(&ask.input));
        let line = Line::new("? ", &shown(&ask.tool), Some(Colour::Yellow));
        let line = line.and(" ", None).and(&subject, None);
        let left = span(ask.until.saturating_sub(now.ms) / 1000);
        let hint = format!("y allows, a this always, n [WHY] denies; denied by itself in {left}");
        let hint = Line::new("  ", &hint, Some(Colour::Dim));
        vec![line.folded(), hint.folded()]
    }

    fn status(&self, now: Now) -> Line {
        let dim = Some(Colour::Dim);
        if let Some(why) = &self.lost {
            let text = format!("the engine is away ({why}); trying again");
            return Line::new("", &text, Some(Colour::Yellow)).folded();
        }
        let Some(task) = &self.task else {
            let text = match self.making {
                true => "making the task".to_owned(),
                false => format!("{}: your first message makes a task · /help", self.agent),
            };
            return Line::new("", &text, dim).folded();
        };
        if self.before.is_some() {
            return Line::new("", "reading what was before", dim);
        }
        let state = match (self.state(), task.is_open()) {
            ("", _) | (_, true) => task.state.as_str(),
            (state, false) => state,
        };
        if !task.is_open() {
            let what = match self.is_blocked() {
                true => "your answer goes on",
                false => "type to go on",
            };
            let facts = [what, "/help", "ctrl-d leaves"].map(str::to_owned);
            let facts: Vec<String> = diffstat_line(task).into_iter().chain(facts).collect();
            return Line::new("", &facts.join(" · "), dim).folded();
        }
        let spinner = format!("{} ", SPINNER[now.frame % SPINNER.len()]);
        let mut facts = vec![self.agent().to_owned()];
        facts.extend(waits_line(task));
        facts.extend(self.lasted(now));
        facts.extend(spent(&self.tale.tally));
        facts.extend(self.family(task));
        Line::new("", &spinner, dim)
            .and(state, Some(colour_of(state)))
            .and(&format!(" · {}", facts.join(" · ")), dim)
            .folded()
    }

    fn lasted(&self, now: Now) -> Option<String> {
        let started = self.tale.tally.started?.as_millisecond();
        let now = i64::try_from(now.ms).ok()?;
        let seconds = now.saturating_sub(started).max(0) / 1000;
        Some(span(seconds.try_into().unwrap_or_default()))
    }

    /// Tasks that the agent has asked for and that go on.
    fn family(&self, task: &Task) -> Option<String> {
        let open = task.children.iter().filter(|child| !child.done);
        let names: Vec<String> = open
            .map(|child| format!("{} {}", child.short, child.state))
            .collect();
        (!names.is_empty()).then(|| format!("tasks: {}", names.join(", ")))
    }
}

fn one_line(text: &str) -> String {
    let lines: Vec<&str> = text.trim().lines().map(str::trim).collect();
    lines.join(" ")
}

fn tail(text: &str) -> &str {
    let mut from = text.len().saturating_sub(OPEN_BYTES);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    &text[from..]
}

/// Around the one that is being done.
fn todo_lines(items: &[Todo]) -> Vec<Line> {
    let now = items.iter().position(|item| item.state != TodoState::Done);
    let last = items.len().saturating_sub(TODO_SHOWN);
    let from = now.unwrap_or(last).saturating_sub(1).min(last);
    let shown = items.iter().skip(from).take(TODO_SHOWN);
    let line = |item: &Todo| {
        let (lead, colour) = match item.state {
            TodoState::Done => ("  ✓ ", Some(Colour::Dim)),
            TodoState::Active => ("  ▸ ", Some(Colour::Bold)),
            TodoState::Pending => ("  ○ ", None),
        };
        Line::new(lead, &item.text, colour).folded()
    };
    shown.map(line).collect()
}
