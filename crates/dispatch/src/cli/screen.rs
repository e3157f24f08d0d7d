//! What a person sees of a run: redrawn lines on a terminal, plain lines elsewhere, nothing for
//! scripts. Must not decide how a run ended.

use std::{
    collections::VecDeque,
    io::{self, Write},
    time::Instant,
};

use dispatch_core::{
    ask::shown,
    review::Review,
    update::{TodoState, Update},
};

use super::{
    show,
    style::{Colour, Style, clean_line, clean_text, cut, span},
};
use crate::{
    api::{
        event::{Event, OpenText},
        task::{Diffstat, Task},
        time,
    },
    client::{Heard, fold::RunView},
};

const LINES_SHOWN: usize = 5;
const LINE_CHARS: usize = 160;
const WIDTH_DEFAULT: usize = 80;
const SPINNER: [&str; 10] = ["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Redraw,
    Lines,
    Silent,
}

#[derive(Debug)]
pub(crate) struct Screen {
    mode: Mode,
    style: Style,
    name: String,
    doing: String,
    begun: Instant,
    last: VecDeque<String>,
    /// What is being said, as far as it has come.
    live: RunView,
    /// The lines that are kept nowhere else, up to the last whole one.
    output: Lines,
    tools: usize,
    cost: Option<f64>,
    frame: usize,
    drawn: usize,
}

impl Screen {
    pub(crate) fn new(style: Style, json: bool, task: &Task) -> Self {
        let mode = match (json, style.tty) {
            (true, _) => Mode::Silent,
            (false, true) => Mode::Redraw,
            (false, false) => Mode::Lines,
        };
        let doing = match (waits_line(task), &task.reason) {
            (Some(waits), _) => format!("{} ({waits})", task.state),
            (None, Some(reason)) => format!("{} ({})", task.state, clean_line(reason)),
            (None, None) => task.state.clone(),
        };
        Self {
            mode,
            style,
            name: format!("{} {}", task.short, clean_line(&task.title)),
            doing,
            begun: Instant::now(),
            last: VecDeque::new(),
            live: RunView::default(),
            output: Lines::default(),
            tools: 0,
            cost: None,
            frame: 0,
            drawn: 0,
        }
    }

    pub(crate) fn silent() -> Self {
        Self {
            mode: Mode::Silent,
            style: Style::detect(Some("1"), Some("dumb")),
            name: String::new(),
            doing: String::new(),
            begun: Instant::now(),
            last: VecDeque::new(),
            live: RunView::default(),
            output: Lines::default(),
            tools: 0,
            cost: None,
            frame: 0,
            drawn: 0,
        }
    }

    pub(crate) fn redraws(&self) -> bool {
        self.mode == Mode::Redraw
    }

    pub(crate) fn hear(&mut self, heard: &Heard) -> io::Result<()> {
        if self.mode == Mode::Silent {
            return Ok(());
        }
        match heard {
            Heard::Event(event) => {
                self.count(event);
                self.live.event(event);
                // The person has just typed the one, and the other is told in full at the end.
                let told = matches!(event.kind.as_str(), "task_created" | "finished");
                let line = describe(event).filter(|_| !told);
                self.show(line, event.kind == "said")
            }
            Heard::Live(live) => {
                self.live.live(live);
                self.show_output()
            }
            Heard::Open(open) => {
                self.live.open(open);
                self.show_output()
            }
            Heard::At(_) => Ok(()),
        }
    }

    fn show_output(&mut self) -> io::Result<()> {
        for line in self.output.new_ones(self.live.output.as_ref()) {
            self.show(Some(clean_line(&line)), true)?;
        }
        Ok(())
    }

    fn show(&mut self, line: Option<String>, is_said: bool) -> io::Result<()> {
        let Some(line) = line.filter(|line| !line.trim().is_empty()) else {
            return Ok(());
        };
        if !is_said {
            self.doing.clone_from(&line);
        }
        match self.mode {
            Mode::Silent => Ok(()),
            Mode::Lines => writeln!(io::stdout().lock(), "{}", cut(&line, LINE_CHARS)),
            Mode::Redraw => {
                if is_said {
                    self.last.push_back(line);
                    if self.last.len() > LINES_SHOWN {
                        self.last.pop_front();
                    }
                }
                Ok(())
            }
        }
    }

    fn count(&mut self, event: &Event) {
        match update(event) {
            Some(Update::ToolCall { .. }) => self.tools += 1,
            Some(Update::Usage(usage)) => self.cost = usage.cost_usd.or(self.cost),
            _ => {}
        }
    }

    fn frame_lines(&self, width: usize) -> Vec<String> {
        let spinner = SPINNER[self.frame % SPINNER.len()];
        let mut head = format!("{spinner} {}", self.name);
        let mut facts = vec![self.doing.clone(), span(self.begun.elapsed().as_secs())];
        if self.tools > 0 {
            facts.push(format!("{} tool calls", self.tools));
        }
        if let Some(cost) = self.cost {
            facts.push(format!("${cost:.2}"));
        }
        head = cut(&head, width);
        let facts = cut(&format!("  {}", facts.join(" · ")), width);
        // What is being said stands where its whole will stand.
        let open = self
            .live
            .text
            .as_ref()
            .map(|open| clean_line(open.text.trim()));
        let open = open.filter(|open| !open.is_empty());
        let all = self.last.iter().chain(&open);
        let all = all.skip((self.last.len() + open.iter().len()).saturating_sub(LINES_SHOWN));
        let said = all.map(|line| {
            let line = cut(&format!("  │ {line}"), width);
            self.style.paint(Colour::Dim, &line)
        });
        [self.style.paint(Colour::Bold, &head), facts]
            .into_iter()
            .chain(said)
            .collect()
    }

    pub(crate) fn draw(&mut self) -> io::Result<()> {
        if self.mode != Mode::Redraw {
            return Ok(());
        }
        self.frame += 1;
        let width = rustix::termios::tcgetwinsize(io::stdout())
            .map_or(WIDTH_DEFAULT, |size| usize::from(size.ws_col).max(20));
        // One column stays free: a full line would wrap and spoil the count of lines.
        let lines = self.frame_lines(width - 1);
        let mut out = self.erase();
        for line in &lines {
            out.push_str(line);
            out.push('\n');
        }
        self.drawn = lines.len();
        let mut stdout = io::stdout().lock();
        stdout.write_all(out.as_bytes())?;
        stdout.flush()
    }

    fn erase(&mut self) -> String {
        match std::mem::take(&mut self.drawn) {
            0 => String::new(),
            up => format!("\x1b[{up}A\r\x1b[J"),
        }
    }

    /// Leaves the place as if nothing had been drawn.
    pub(crate) fn clear(&mut self) -> io::Result<()> {
        let out = self.erase();
        let mut stdout = io::stdout().lock();
        stdout.write_all(out.as_bytes())?;
        stdout.flush()
    }
}

/// Whole lines out of a text that grows at its end.
#[derive(Debug, Default)]
struct Lines {
    /// Bytes of the text up to the last whole line.
    read: u64,
}

impl Lines {
    /// What has become whole since; a line with a hole in it is shown from behind the hole.
    fn new_ones(&mut self, text: Option<&OpenText>) -> Vec<String> {
        let Some(open) = text else {
            return Vec::new();
        };
        let from = self.read.saturating_sub(open.offset);
        let from = usize::try_from(from).unwrap_or(usize::MAX);
        let Some((whole, _)) = open.text.get(from..).and_then(|new| new.rsplit_once('\n')) else {
            return Vec::new();
        };
        self.read = self.read.max(open.offset) + whole.len() as u64 + 1;
        whole.lines().map(str::to_owned).collect()
    }
}

pub(super) fn update(event: &Event) -> Option<Update> {
    if event.kind != "said" {
        return None;
    }
    serde_json::from_value(event.body.get("update")?.clone()).ok()
}

/// One line for a person, or nothing worth one.
pub(crate) fn describe(event: &Event) -> Option<String> {
    let text = |key: &str| event.text(key).map(clean_line).unwrap_or_default();
    let number = |key: &str| {
        let number = event.body.get(key).and_then(serde_json::Value::as_u64);
        number.unwrap_or_default()
    };
    Some(match event.kind.as_str() {
        "engine_started" => format!("version {}", text("version")),
        "frozen_set" => {
            let frozen = event.body.get("frozen") == Some(&true.into());
            let word = if frozen { "frozen" } else { "thawed" };
            match event.body.get("scope").and_then(|scope| scope.as_object()) {
                Some(scope) => {
                    let (what, name) = scope.iter().next()?;
                    format!(
                        "{word}: {} {}",
                        clean_line(what),
                        clean_line(name.as_str()?)
                    )
                }
                None => word.into(),
            }
        }
        "pool_paused" => format!("pool {} paused: {}", text("pool"), text("reason")),
        "budget_warned" => format!("budget of the {}: {} spent", text("what"), text("spent")),
        "key_heard" => key_news(event, &text("key"))?,
        "waits" => format!("waits: {}", text("reason")),
        "task_created" => clean_line(event.body.get("spec")?.get("title")?.as_str()?),
        "finished" => match event.body.get("outcome")? {
            serde_json::Value::Object(outcome) => outcome.keys().next()?.clone(),
            other => other.as_str()?.to_owned(),
        },
        "run_queued" => format!("run {} queued", event.run.unwrap_or(0)),
        "admitted" => "preparing the workspace".into(),
        "workspace_ready" => format!("workspace {} ({})", text("path"), text("how")),
        "carried_found" => {
            let count = event
                .body
                .get("carried")
                .and_then(|all| all.as_array())
                .map_or(0, Vec::len);
            format!(
                "{count} files that configure agents are in the repository: `dispatch show` names them"
            )
        }
        "range_set" => {
            let range = event.body.get("range")?;
            let short = |key: &str| range.get(key)?.as_str()?.get(..12);
            format!("to review: {}..{}", short("base")?, short("head")?)
        }
        "reviewed" => {
            let review: Review = serde_json::from_value(event.body.get("review")?.clone()).ok()?;
            let lines = show::review_lines(&review);
            clean_text(&format!("review: {}", lines.join("\n  ")))
        }
        "site_refused" => format!("site {} refused: {}", text("site"), text("reason")),
        "started" => format!("agent started on {} ({})", text("site"), text("enforced")),
        // What is long is cut at its end, and what can be done about it must be seen.
        "permission_asked" => format!(
            "asks {} for {} (`dispatch allow`, `deny`): {}",
            number("ask"),
            event.text("tool").map(shown).unwrap_or_default(),
            event.text("input").map(shown).unwrap_or_default()
        ),
        "permission_answered" => {
            let allowed = event.body.get("allow") == Some(&true.into());
            let word = if allowed { "allowed" } else { "denied" };
            let by = match event.body.get("by")? {
                serde_json::Value::Object(by) => clean_line(by.values().next()?.as_str()?),
                by => clean_line(by.as_str()?),
            };
            format!("ask {} {word} by {by}", number("ask"))
        }
        "stop_requested" => "stopping".into(),
        "agent_ended" => "agent ended; looking at what it did".into(),
        "workspace_sealed" => {
            let sealed = event.body.get("sealed")?;
            let stat: Diffstat = serde_json::from_value(sealed.clone()).ok()?;
            format!("result kept: {}", stat_line(stat))
        }
        "checks_started" => "checking".into(),
        "check_finished" => {
            let note = Some(text("note")).filter(|note| !note.is_empty());
            let note = note.map(|note| format!(" ({note})")).unwrap_or_default();
            format!("check {}: {}{note}", text("check"), text("state"))
        }
        "answered" => format!("answered: {}", text("text")),
        "applied" if text("branch").is_empty() => format!("written into {}", text("repo")),
        "message_queued" => format!("message {}: {}", number("message"), text("text")),
        "attached" => {
            let files = event.body.get("attached")?.get("files")?.as_array()?;
            let names = files.iter().filter_map(|file| file.get("name")?.as_str());
            format!("attached: {}", names.collect::<Vec<_>>().join(", "))
        }
        "tuning_set" => {
            let tuning = event.body.get("tuning")?;
            let word = |name: &str| Some(format!("{name} {}", tuning.get(name)?.as_str()?));
            let words = ["model", "effort"].into_iter().filter_map(word);
            let words = words.collect::<Vec<_>>().join(", ");
            format!("from the next run on: {words}")
        }
        "compact_asked" => "before its next turn its conversation becomes shorter".to_owned(),
        "message_cancelled" => format!("message {} taken back", number("message")),
        "message_delivered" => {
            format!(
                "message {} delivered ({})",
                number("message"),
                text("delivery")
            )
        }
        "message_returned" => {
            let number = number("message");
            format!("message {number} was not taken up before the end; it waits again")
        }
        "parked" => {
            let children = event.body.get("children")?.as_array()?;
            let names = children.iter().filter_map(|child| child.as_str());
            format!(
                "waits for {}",
                names.map(clean_line).collect::<Vec<_>>().join(", ")
            )
        }
        "child_ended" => format!("task {} ended: {}", text("child"), text("state")),
        "detached" => format!("task {} is waited for no more", text("child")),
        "ends_delivered" => {
            let ends = event.body.get("ends")?.as_array()?;
            let names = ends.iter().filter_map(|end| end.get("child")?.as_str());
            let names = names.map(clean_line).collect::<Vec<_>>().join(", ");
            format!("its agent has heard the end of {names}")
        }
        "agent_set" => format!("goes on with {}", text("agent")),
        "applied" => format!("applied to {} as {}", text("repo"), text("branch")),
        "noted" => format!("note: {}", text("text")),
        "said" => said(&update(event)?)?,
        _ => return None,
    })
}

/// What an agent says, in one line, where that is worth one.
pub(super) fn said(update: &Update) -> Option<String> {
    Some(match update {
        Update::Text { text } => clean_line(text.trim()),
        Update::Thinking { .. } | Update::Session { .. } | Update::Usage(_) => return None,
        Update::ToolCall { name, input, .. } => {
            format!(
                "→ {} {}",
                clean_line(name),
                cut(&clean_line(input), LINE_CHARS)
            )
        }
        Update::ToolResult {
            failed: true,
            output,
            ..
        } => format!("× {}", clean_line(output.trim())),
        Update::ToolResult { .. } => return None,
        Update::Asked { tool, allowed, .. } => {
            let word = if *allowed { "allowed" } else { "refused" };
            format!("? {} {word}", clean_line(tool))
        }
        Update::Retrying {
            attempt, reason, ..
        } => format!("trying again ({attempt}): {}", clean_line(reason)),
        Update::Waiting {
            until,
            attempt,
            reason,
        } => {
            let until = time(*until);
            format!("waiting until {until} ({attempt}): {}", clean_line(reason))
        }
        Update::ModelChanged { from, to, reason } => {
            let (from, to) = (clean_line(from), clean_line(to));
            format!("model changed from {from} to {to}: {}", clean_line(reason))
        }
        Update::KeyOut { key, until, reason } => {
            let until = until.map(|at| format!(" until {}", time(at)));
            let (key, reason) = (clean_line(key), clean_line(reason));
            format!("key {key} is out{}: {reason}", until.unwrap_or_default())
        }
        Update::Notice { text } => clean_line(text),
        Update::Todo { items } => {
            let done = items.iter().filter(|item| item.state == TodoState::Done);
            let now = items.iter().find(|item| item.state == TodoState::Active);
            let now = now.map(|item| format!(": {}", clean_line(&item.text)));
            let (done, all) = (done.count(), items.len());
            format!("{done} of {all} done{}", now.unwrap_or_default())
        }
    })
}

fn stat_line(stat: Diffstat) -> String {
    let files = if stat.files == 1 { "file" } else { "files" };
    format!(
        "{} {files} changed, {} insertions(+), {} deletions(-)",
        stat.files, stat.insertions, stat.deletions
    )
}

/// Why it waits, and its place among those that wait for the same pool.
pub(crate) fn waits_line(task: &Task) -> Option<String> {
    let waiting = task.waiting.as_ref()?;
    let text = clean_line(&waiting.text);
    Some(match waiting.place {
        Some(place) => format!("{text}; place {place}"),
        None => text,
    })
}

pub(crate) fn diffstat_line(task: &Task) -> Option<String> {
    task.diffstat.filter(|stat| stat.files > 0).map(stat_line)
}

/// Which checks said what, or that nothing vouches for the result.
pub(crate) fn checks_line(task: &Task) -> String {
    let checks = task.runs.last().map_or(&[][..], |run| &run.checks);
    let each: Vec<String> = checks
        .iter()
        .map(|check| format!("{} {}", check.name, check.state))
        .collect();
    let mut line = match (task.verified.as_str(), each.is_empty()) {
        ("yes", _) => format!("verified: {}", each.join(", ")),
        ("no", _) => format!("checks failed: {}", each.join(", ")),
        (_, true) => "not verified: no check ran".into(),
        (_, false) => format!("not verified: {}", each.join(", ")),
    };
    if !task.checks_touched.is_empty() {
        let files = cut(&clean_line(&task.checks_touched.join(", ")), LINE_CHARS);
        line.push_str(&format!(
            "; the agent changed what the checks consist of: {files}"
        ));
    }
    line
}

/// What can be done next.
pub(crate) fn next_lines(task: &Task) -> Vec<String> {
    let short = &task.short;
    let verbs: &[&str] = match (task.state.as_str(), task.changed) {
        _ if task.open_asks().next().is_some() => &["show", "allow", "deny"],
        ("blocked", _) => &["answer"],
        ("completed", true) => &["diff", "apply"],
        ("failed" | "stopped" | "lost", true) => &["diff", "logs", "retry"],
        ("failed" | "stopped" | "lost", false) => &["logs", "retry"],
        ("completed", false) => &["show"],
        _ => &["logs", "wait"],
    };
    let line = |verb: &&str| {
        let more = match *verb {
            "answer" => " \"...\"",
            "logs" if task.is_open() => " -f",
            _ => "",
        };
        format!("  dispatch {verb} {short}{more}")
    };
    verbs.iter().map(line).collect()
}

/// What was heard of a key. What is left of its limits is for `usage`.
fn key_news(event: &Event, key: &str) -> Option<String> {
    let news = event.body.get("news")?;
    if news.as_str() == Some("back") {
        return Some(format!("key {key} can be used again"));
    }
    let out = news.get("out")?;
    let reason = clean_line(out.get("reason")?.as_str()?);
    Some(format!("key {key} is out: {reason}"))
}

#[cfg(test)]
mod tests {
    use dispatch_core::{outcome::Outcome, run::RunState};

    use super::*;
    use crate::api::task::tests::view;

    fn event(json: &str) -> Event {
        let head = r#"{"seq":1,"at":"","task":"a","run":1,"#;
        serde_json::from_str(&format!("{head}{json}")).unwrap()
    }

    fn live(voice: &str, chunk: u32, offset: usize, text: &str) -> Heard {
        let live = serde_json::json!({
            "task": "a", "run": 1, "chunk": chunk, "voice": voice, "offset": offset, "text": text,
            "lossy": true,
        });
        Heard::Live(serde_json::from_value(live).unwrap())
    }

    #[test]
    fn whole_lines_are_shown_once_and_what_is_being_said_stands_last() {
        let task = Task::from(&view(0x3f, RunState::Running));
        let mut screen = Screen::new(Style::plain(), false, &task);
        screen.mode = Mode::Redraw;
        for heard in [
            live("output", 0, 0, "one\ntw"),
            live("output", 0, 0, "one\ntw"),
            live("output", 0, 6, "o\n"),
            live("output", 0, 100, "behind a hole\nand"),
            live("text", 1, 0, "I am "),
            live("text", 1, 5, "saying it"),
        ] {
            screen.hear(&heard).unwrap();
        }
        let said = |screen: &Screen| screen.frame_lines(40)[2..].to_vec();
        let whole = ["one", "two", "behind a hole"].map(|line| format!("  \u{2502} {line}"));
        let mut open = whole.to_vec();
        open.push("  \u{2502} I am saying it".to_owned());
        assert_eq!(said(&screen), open);
        let closed = r#""kind":"said","update":{"text":{"text":"I am saying it."}},"out_offset":1,"chunk":1}"#;
        screen.hear(&Heard::Event(Box::new(event(closed)))).unwrap();
        open[3].push('.');
        assert_eq!(said(&screen), open);
    }

    #[test]
    fn plain_lines() {
        let cases = [
            (r#""kind":"admitted"}"#, Some("preparing the workspace")),
            (
                r#""kind":"said","update":{"tool_call":{"id":"1","name":"Bash","input":"ls\u001b[2J"}},"out_offset":1}"#,
                Some("→ Bash ls [2J"),
            ),
            (
                r#""kind":"check_finished","check":"test","state":"failed","exit":{"code":1},"note":""}"#,
                Some("check test: failed"),
            ),
            (
                r#""kind":"workspace_sealed","sealed":{"commit":null,"files":1,"insertions":2,"deletions":0,"checks_touched":[],"notes":[]}}"#,
                Some("result kept: 1 file changed, 2 insertions(+), 0 deletions(-)"),
            ),
            (
                r#""kind":"said","update":{"session":{"id":"x"}},"out_offset":1}"#,
                None,
            ),
            (
                r#""kind":"permission_asked","ask":2,"tool":"Bash","input":"ls\u001b[2J","owner":"person","until":9}"#,
                Some("asks 2 for Bash (`dispatch allow`, `deny`): ls\\u{1b}[2J"),
            ),
            (
                r#""kind":"permission_answered","ask":2,"allow":false,"by":{"task":"3f"},"reason":"no"}"#,
                Some("ask 2 denied by 3f"),
            ),
            (
                r#""kind":"permission_answered","ask":2,"allow":true,"by":"person"}"#,
                Some("ask 2 allowed by person"),
            ),
            (
                r#""kind":"finished","outcome":{"completed":{"summary":"x"}},"verified":"yes"}"#,
                Some("completed"),
            ),
            (
                r#""kind":"finished","outcome":"lost","verified":"no"}"#,
                Some("lost"),
            ),
            (r#""kind":"from_the_future"}"#, None),
        ];
        for (json, want) in cases {
            assert_eq!(describe(&event(json)).as_deref(), want, "{json}");
        }
    }

    #[test]
    fn the_end_says_what_is_known_and_what_can_be_done() {
        let completed = RunState::Finished(Outcome::Completed {
            summary: "done".into(),
        });
        let task = Task::from(&view(0x3f, completed));
        assert_eq!(
            next_lines(&task),
            ["  dispatch diff 3f", "  dispatch apply 3f"]
        );
        assert_eq!(
            checks_line(&task),
            "checks failed: test failed; the agent changed what the checks consist of: tests/a.rs"
        );
        let running = Task::from(&view(0x3f, RunState::Running));
        assert_eq!(
            next_lines(&running),
            ["  dispatch logs 3f -f", "  dispatch wait 3f"]
        );
    }

    #[test]
    fn a_frame_never_wraps() {
        let task = Task::from(&view(0x3f, RunState::Running));
        let mut screen = Screen::new(Style::plain(), false, &task);
        screen.mode = Mode::Redraw;
        for n in 0..9 {
            let said = format!(
                r#""kind":"said","update":{{"text":{{"text":"line {n} {}"}}}},"out_offset":1}}"#,
                "x".repeat(99)
            );
            screen.hear(&Heard::Event(Box::new(event(&said)))).unwrap();
        }
        let lines = screen.frame_lines(40);
        assert_eq!(lines.len(), 2 + LINES_SHOWN);
        assert!(
            lines.iter().all(|line| line.chars().count() <= 40),
            "{lines:?}"
        );
        assert!(lines[2].contains("line 4"));
    }
}
