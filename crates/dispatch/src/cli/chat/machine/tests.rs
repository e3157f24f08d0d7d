//! Ways through a chat: frames and typed lines in, lines and requests out.

use serde_json::{Value, json};

use super::*;
use crate::{
    api::{event::At, task::tests::view},
    cli::style::Style,
};
use dispatch_core::{outcome::Outcome, run::RunState, task::Effort};

/// The task of `view(0x3f, ..)`.
const ID: &str = "000000000000003f";

/// A chat, with what it wanted so far.
struct Bed {
    chat: Chat,
    seq: u64,
    now: u64,
    lines: Vec<String>,
    asked: Vec<Request>,
    hints: Vec<String>,
    left: Option<Exit>,
}

fn task(state: RunState, seq: u64) -> Task {
    let mut view = view(0x3f, state);
    view.task.messages.clear();
    view.family.children.clear();
    view.seq = seq;
    Task::from(&view)
}

fn blocked() -> RunState {
    RunState::Finished(Outcome::Blocked {
        question: "UTC?".into(),
    })
}

fn completed() -> RunState {
    RunState::Finished(Outcome::Completed {
        summary: "done".into(),
    })
}

impl Bed {
    fn new(task: Option<Task>) -> Self {
        Self {
            chat: Chat::new(task, "claude", Tune::default()),
            seq: 0,
            now: 0,
            lines: Vec::new(),
            asked: Vec::new(),
            hints: Vec::new(),
            left: None,
        }
    }

    /// On a task whose run has started, with all of that heard.
    fn running() -> Self {
        let mut bed = Self::new(Some(task(RunState::Running, 0)));
        bed.begun();
        bed.caught_up();
        bed
    }

    fn begun(&mut self) {
        self.event(
            None,
            json!({"kind": "task_created", "spec": {"text": "Fix it", "title": "Fix it"}}),
        );
        self.event(Some(1), json!({"kind": "run_queued"}));
        self.event(Some(1), json!({"kind": "admitted"}));
        self.event(Some(1), json!({"kind": "started"}));
    }

    fn caught_up(&mut self) {
        self.hear(&Frame::At(At { seq: self.seq }));
    }

    fn settle(&mut self) {
        for out in self.chat.take() {
            match out {
                Out::Line(line) => self.lines.push(line.plain()),
                Out::Hint(text) | Out::Away(text) => self.hints.push(text),
                Out::Ask(request) | Out::AskFirst(request) => self.asked.push(request),
                Out::Leave(exit) => self.left = Some(exit),
            }
        }
    }

    fn hear(&mut self, frame: &Frame) {
        self.chat.hear(frame);
        self.settle();
    }

    fn event(&mut self, run: Option<u32>, mut body: Value) -> Frame {
        self.seq += 1;
        body["seq"] = json!(self.seq);
        body["at"] = json!("1970-01-01T00:00:10Z");
        body["task"] = json!(ID);
        body["run"] = json!(run);
        let frame = Frame::Event(Box::new(serde_json::from_value(body).unwrap()));
        self.hear(&frame);
        frame
    }

    fn said(&mut self, update: &Value, chunk: Option<u32>) -> Frame {
        let mut body = json!({"kind": "said", "update": update, "out_offset": 1});
        if let Some(chunk) = chunk {
            body["chunk"] = json!(chunk);
        }
        self.event(Some(1), body)
    }

    fn text(&mut self, text: &str, chunk: Option<u32>) -> Frame {
        self.said(&json!({"text": {"text": text}}), chunk)
    }

    fn wait(&mut self, ms: u64) {
        self.now += ms;
        self.chat.tick(Now {
            ms: self.now,
            frame: 0,
        });
        self.settle();
    }

    /// And long enough for it to be printed as far as it can be.
    fn live(&mut self, voice: &str, chunk: u32, offset: usize, text: &str) {
        self.piece(voice, chunk, offset, text);
        self.wait(500);
    }

    fn piece(&mut self, voice: &str, chunk: u32, offset: usize, text: &str) {
        let live = json!({
            "task": ID, "run": 1, "chunk": chunk, "voice": voice, "offset": offset, "text": text,
            "lossy": true,
        });
        self.hear(&Frame::Live(serde_json::from_value(live).unwrap()));
    }

    fn open(&mut self, text: &Value) {
        let open = json!({
            "seq": self.seq, "task": ID, "run": 1, "text": text, "output": null, "todo": [],
            "messages": [], "asks": [],
        });
        self.hear(&Frame::Open(Box::new(
            serde_json::from_value(open).unwrap(),
        )));
    }

    fn ask(&mut self, ask: u32, command: &str) {
        let input = json!({"command": command, "description": format!("ask {ask}")}).to_string();
        self.event(
            Some(1),
            json!({
                "kind": "permission_asked", "ask": ask, "tool": "Bash", "input": input,
                "owner": "person", "until": 70_000,
            }),
        );
    }

    fn finished(&mut self, outcome: &Value) {
        self.event(
            Some(1),
            json!({"kind": "agent_ended", "report": {}, "usage": null}),
        );
        self.event(
            Some(1),
            json!({"kind": "finished", "outcome": outcome, "verified": "not_verified"}),
        );
    }

    fn types(&mut self, text: &str) {
        self.chat.typed(text);
        self.settle();
    }

    fn told(&mut self, request: Request, told: Told) {
        self.chat.answered(request, told);
        self.settle();
    }

    fn refuse(&mut self, request: Request, code: Option<&str>) {
        let error = CliError::usage("do it: it cannot be");
        let code = code.map(str::to_owned);
        self.told(request, Told::Refused { error, code });
    }

    /// Lines since the last time, without empty ones.
    fn new_lines(&mut self) -> Vec<String> {
        let mut lines = std::mem::take(&mut self.lines);
        lines.retain(|line| !line.is_empty());
        lines
    }

    fn new_asks(&mut self) -> Vec<Request> {
        std::mem::take(&mut self.asked)
    }

    /// What stands below: the open text, and the rest.
    fn below(&self) -> (Vec<String>, Vec<String>, String) {
        let now = Now {
            ms: 10_000,
            frame: 0,
        };
        let below = self.chat.below(now);
        let plain = |lines: Vec<Line>| lines.iter().map(Line::plain).collect();
        (plain(below.open), plain(below.rest), below.lead)
    }
}

fn say(text: &str) -> Request {
    Request::Say {
        text: text.into(),
        tune: Tune::default(),
        files: Vec::new(),
    }
}

fn answer(text: &str) -> Request {
    Request::Answer {
        text: text.into(),
        tune: Tune::default(),
    }
}

#[test]
fn what_is_being_said_is_printed_line_by_line_and_once() {
    let mut bed = Bed::running();
    bed.new_lines();
    bed.live("text", 1, 0, "\n\nI am");
    assert!(bed.new_lines().is_empty());
    assert_eq!(bed.below().0, ["", "I am"]);
    bed.live("text", 1, 6, " here.\nAnd");
    assert_eq!(bed.new_lines(), ["I am here."]);
    assert_eq!(bed.below().0, ["And"]);
    // Told twice.
    bed.live("text", 1, 6, " here.\nAnd");
    bed.live("text", 1, 16, " there.\n\nEnd");
    assert_eq!(bed.new_lines(), ["And there."]);
    // The whole may lack blanks at its start and end.
    bed.text("I am here.\nAnd there.\n\nEnd.", Some(1));
    assert_eq!(bed.new_lines(), ["End."]);
    assert!(bed.below().0.is_empty());
    bed.text("Another.", None);
    assert_eq!(bed.new_lines(), ["Another."]);
}

#[test]
fn what_was_lost_on_the_way_comes_with_the_whole() {
    let mut bed = Bed::running();
    bed.new_lines();
    bed.live("text", 1, 0, "one\ntw");
    bed.live("text", 1, 20, "behind the hole\nfo");
    assert_eq!(bed.new_lines(), ["one"]);
    assert_eq!(bed.below().0, ["…", "behind the hole", "fo"]);
    bed.text("one\ntwo and three\nbehind the hole\nfour", Some(1));
    assert_eq!(
        bed.new_lines(),
        ["two and three", "behind the hole", "four"]
    );
    // Whoever comes in the middle has it whole, too.
    let open = json!({"chunk": 2, "voice": "text", "offset": 5, "text": "middle\nof"});
    bed.open(&open);
    assert!(bed.new_lines().is_empty());
    bed.text("the\nmiddle\nof it", Some(2));
    assert_eq!(bed.new_lines(), ["the", "middle", "of it"]);
}

/// Pieces are told at once, what came before them when it is durable.
#[test]
fn what_is_said_stands_behind_what_was_done_before_it() {
    let mut bed = Bed::running();
    bed.new_lines();
    bed.piece("text", 1, 0, "done\nan");
    bed.wait(100);
    assert!(bed.new_lines().is_empty());
    assert_eq!(bed.below().0, ["", "done", "an"]);
    let call = json!({"tool_call": {"id": "t1", "name": "Bash", "input": "make"}});
    bed.said(&call, None);
    let result = json!({"tool_result": {"id": "t1", "output": "ok", "failed": false}});
    bed.said(&result, None);
    bed.wait(400);
    assert_eq!(bed.new_lines(), ["→ Bash make · ok", "done"]);
    bed.piece("text", 1, 5, "and more\n");
    assert_eq!(bed.new_lines(), ["and more"]);
}

/// Pieces are told at once, what is whole when it is durable.
#[test]
fn pieces_of_the_next_text_wait_for_the_whole_of_the_one_before() {
    let mut bed = Bed::running();
    bed.new_lines();
    bed.live("text", 1, 0, "one\ntwo");
    bed.live("text", 2, 0, "next\nan");
    assert_eq!(bed.new_lines(), ["one"]);
    assert_eq!(bed.below().0, ["next", "an"]);
    bed.text("one\ntwo", Some(1));
    assert_eq!(bed.new_lines(), ["two", "next"]);
    // One that is never closed does not hold up what comes after it for ever.
    bed.live("text", 3, 0, "void\n");
    bed.live("text", 4, 0, "last\n");
    assert!(bed.new_lines().is_empty());
    bed.text("next\nand", Some(2));
    assert_eq!(bed.new_lines(), ["and"]);
    bed.text("last\nof all", Some(4));
    assert_eq!(bed.new_lines(), ["last", "of all"]);
}

#[test]
fn what_a_person_says_does_not_stand_in_the_middle_of_a_text() {
    let mut bed = Bed::running();
    bed.new_lines();
    bed.live("text", 1, 0, "one\ntw");
    for (n, how) in [(1, "interrupt"), (2, "interrupt")] {
        let text = format!("text {n}");
        bed.event(
            None,
            json!({"kind": "message_queued", "message": n, "text": text, "from": "person"}),
        );
        bed.event(
            Some(1),
            json!({"kind": "message_delivered", "message": n, "delivery": how}),
        );
    }
    assert_eq!(bed.new_lines(), ["one"]);
    assert_eq!(bed.below().0, ["tw", "", "> text 1", "", "> text 2"]);
    bed.text("one\ntwo", Some(1));
    assert_eq!(bed.new_lines(), ["two", "> text 1", "> text 2"]);
    assert!(bed.below().0.is_empty());
    bed.live("text", 2, 0, "three\nfo");
    bed.event(
        None,
        json!({"kind": "message_queued", "message": 3, "text": "text 3", "from": "person"}),
    );
    bed.event(
        Some(1),
        json!({"kind": "message_delivered", "message": 3, "delivery": "interrupt"}),
    );
    bed.finished(&json!({"completed": {"summary": "three"}}));
    let lines = bed.new_lines();
    assert_eq!(lines[..3], ["three", "fo", "> text 3"]);
}

#[test]
fn after_an_engines_death_nothing_is_missing_and_nothing_comes_twice() {
    let mut bed = Bed::running();
    bed.new_lines();
    let first = bed.text("first", None);
    bed.live("text", 1, 0, "second\nthi");
    assert_eq!(bed.new_lines(), ["first", "second"]);
    bed.chat.lost("it ended".into());
    bed.chat.lost("it ended".into());
    bed.settle();
    assert_eq!(bed.hints.len(), 1, "{:?}", bed.hints);
    assert!(
        bed.below().1[0].contains("the engine is away"),
        "{:?}",
        bed.below()
    );
    // The next engine: what is heard again, what is open in it, and more.
    bed.chat.linked();
    bed.hear(&first);
    bed.caught_up();
    bed.open(&json!({"chunk": 1, "voice": "text", "offset": 0, "text": "second\nthird\nfo"}));
    assert_eq!(bed.new_lines(), ["third"]);
    bed.text("second\nthird\nfourth", Some(1));
    assert_eq!(bed.new_lines(), ["fourth"]);
}

#[test]
fn a_text_that_breaks_off_is_shown_as_far_as_it_came() {
    let mut bed = Bed::running();
    bed.new_lines();
    bed.live("thinking", 1, 0, "Hm.\nPerh");
    bed.said(
        &json!({"tool_call": {"id": "t1", "name": "Bash", "input": "ls"}}),
        None,
    );
    bed.finished(&json!({"stopped": "by_person"}));
    let lines = bed.new_lines();
    assert_eq!(lines[..3], ["Hm.", "Perh", "→ Bash ls · no result"]);
    assert!(lines[3].starts_with("stopped: "), "{lines:?}");
}

#[test]
fn tool_calls_are_one_line_each() {
    let mut bed = Bed::running();
    bed.new_lines();
    let input = json!({"command": "cargo test\n  --all", "description": "d"}).to_string();
    bed.said(
        &json!({"tool_call": {"id": "t1", "name": "Bash", "input": input}}),
        None,
    );
    bed.said(
        &json!({"tool_call": {"id": "t2", "name": "Read", "input": "{\"file_path\":\"/a\"}"}}),
        None,
    );
    assert!(bed.new_lines().is_empty());
    assert_eq!(bed.below().1[..2], ["→ Bash cargo test --all", "→ Read /a"]);
    let result = |id: &str, output: &str, failed: bool| json!({"tool_result": {"id": id, "output": output, "failed": failed}});
    bed.said(&result("t2", "\n  fn main\u{1b}[2J\nmore", false), None);
    bed.said(&result("t1", "error: no\n", true), None);
    bed.said(&result("t9", "", true), None);
    assert_eq!(
        bed.new_lines(),
        [
            "→ Read /a · fn main [2J",
            "× Bash cargo test --all · error: no",
            "× result · failed"
        ]
    );
    bed.said(&json!({"todo": {"items": [{"text": "a", "state": "done"}, {"text": "b", "state": "active"}]}}), None);
    assert_eq!(bed.new_lines(), ["1 of 2 done: b"]);
    assert_eq!(bed.below().1[..2], ["  ✓ a", "  ▸ b"]);
}

#[test]
fn an_end_says_what_it_cost() {
    let mut bed = Bed::running();
    bed.new_lines();
    bed.text("All done.", None);
    bed.event(
        Some(1),
        json!({"kind": "agent_ended", "report": {}, "usage": {
            "input_tokens": 12_000, "output_tokens": 345, "cache_read_tokens": 345,
            "cache_write_tokens": null, "cost_usd": 0.0123, "turns": 1,
        }}),
    );
    bed.event(Some(1), json!({"kind": "workspace_sealed", "sealed": {
        "commit": "c", "files": 1, "insertions": 2, "deletions": 0, "checks_touched": [], "notes": [],
    }}));
    bed.event(Some(1), json!({"kind": "finished", "outcome": {"completed": {"summary": "All done."}}, "verified": "not_verified"}));
    assert_eq!(
        bed.new_lines(),
        [
            "All done.",
            "result kept: 1 file changed, 2 insertions(+), 0 deletions(-)",
            "completed · not verified · 12.3k tokens in, 345 out · $0.0123 · 0s",
        ]
    );
    // One that has said nothing so far has an end that says something.
    let mut bed = Bed::running();
    bed.new_lines();
    bed.finished(&json!({"completed": {"summary": "It is 7.\nSo."}}));
    assert_eq!(bed.new_lines(), ["It is 7.", "So.", "completed · 0s"]);
}

#[test]
fn lines_of_a_plain_program_are_shown_once() {
    let mut bed = Bed::running();
    bed.new_lines();
    bed.live("output", 0, 0, "one\ntw");
    bed.live("output", 0, 0, "one\ntw");
    bed.live("output", 0, 6, "o\n");
    bed.live("output", 0, 100, "behind a hole\nand");
    assert_eq!(bed.new_lines(), ["one", "two", "behind a hole"]);
    assert_eq!(bed.below().0, ["and"]);
    bed.finished(&json!({"completed": {"summary": "one\ntwo"}}));
    assert_eq!(bed.new_lines(), ["and", "completed · 0s"]);
}

#[test]
fn what_a_tool_prints_is_seen_while_it_goes_on() {
    let mut bed = Bed::running();
    bed.text("I look.", None);
    let call = json!({"tool_call": {"id": "t1", "name": "run_shell", "input": "make"}});
    bed.said(&call, None);
    bed.new_lines();
    bed.live("output", 0, 0, "1\n2\n3\n4");
    assert!(bed.new_lines().is_empty());
    assert_eq!(bed.below().0, ["  │ 2", "  │ 3", "  │ 4"]);
    let output = json!({"exit": 0, "stdout": "\n1\n2", "stderr": ""}).to_string();
    let result = json!({"tool_result": {"id": "t1", "output": output, "failed": false}});
    bed.said(&result, None);
    assert_eq!(bed.new_lines(), ["→ run_shell make · 1"]);
    bed.said(&call, None);
    let nothing = json!({"exit": 0, "stdout": "", "stderr": ""}).to_string();
    let result = json!({"tool_result": {"id": "t1", "output": nothing, "failed": false}});
    bed.said(&result, None);
    assert_eq!(bed.new_lines(), ["→ run_shell make"]);
    assert!(bed.below().0.is_empty());
    bed.finished(&json!({"completed": {"summary": "I look."}}));
    assert_eq!(bed.new_lines().len(), 1, "the end alone");
}

#[test]
fn the_first_words_make_the_task_and_more_waits_for_it() {
    let mut bed = Bed::new(None);
    bed.types("/stop");
    assert!(bed.new_lines()[0].contains("there is no task yet"));
    bed.types("  ");
    bed.types("Fix it");
    bed.types("and the tests");
    bed.types("/stop");
    let begin = Request::Begin {
        text: "Fix it".into(),
        tune: Tune::default(),
        files: Vec::new(),
    };
    assert_eq!(bed.new_asks(), std::slice::from_ref(&begin));
    let (_, rest, _) = bed.below();
    assert_eq!(rest[..2], ["  sending: Fix it", "  sending: and the tests"]);
    bed.told(begin, Told::Task(Box::new(task(RunState::Queued, 1))));
    assert_eq!(
        bed.new_asks(),
        [say("and the tests"), Request::Stop { kill: false }]
    );
    bed.begun();
    let lines = bed.new_lines();
    assert!(lines[0].starts_with("3f Fix it"), "{lines:?}");
    assert_eq!(lines.last().unwrap(), "> Fix it");
}

#[test]
fn a_task_that_is_refused_leaves_the_chat_as_it_was() {
    let mut bed = Bed::new(None);
    bed.types("/model opus high");
    let tune = Tune {
        model: Some("opus".into()),
        effort: Some(Effort::High),
    };
    assert_eq!(bed.new_asks(), [Request::Check(tune.clone())]);
    bed.told(Request::Check(tune), Told::Nothing);
    assert!(bed.new_lines()[0].contains("model opus, effort high"));
    bed.types("Fix it");
    let begin = bed.new_asks().remove(0);
    bed.refuse(begin.clone(), Some("queue_full"));
    assert_eq!(bed.new_lines(), ["failed to do it: it cannot be"]);
    bed.types("Fix it");
    assert_eq!(bed.new_asks(), [begin]);
}

#[test]
fn what_is_typed_is_said_or_answers() {
    let mut bed = Bed::running();
    bed.types("use UTC");
    assert_eq!(bed.new_asks(), [say("use UTC")]);
    assert!(bed.below().1.contains(&"  sending: use UTC".to_owned()));
    bed.event(
        None,
        json!({"kind": "message_queued", "message": 1, "text": "use UTC", "from": "person"}),
    );
    assert_eq!(
        bed.below().1[0],
        "  message 1 waits for the next run: use UTC"
    );
    bed.new_lines();
    bed.event(
        Some(1),
        json!({"kind": "message_taken", "message": 1, "out_offset": 3}),
    );
    bed.event(
        Some(1),
        json!({"kind": "message_delivered", "message": 1, "delivery": "interrupt"}),
    );
    assert_eq!(bed.new_lines(), ["> use UTC"]);
    let spoken = Spoken {
        message: 1,
        how: "delivered".into(),
        task: task(RunState::Running, 3),
    };
    bed.told(say("use UTC"), Told::Spoken(Box::new(spoken)));
    assert!(bed.new_lines().is_empty());
    bed.finished(&json!({"blocked": {"question": "UTC?\nOr what?"}}));
    assert_eq!(bed.new_lines()[..2], ["? UTC?", "  Or what?"]);
    assert_eq!(bed.below().2, "answer> ");
    bed.types("UTC");
    // What comes after it is said: there is one answer.
    bed.types("please");
    assert_eq!(bed.new_asks(), [answer("UTC"), say("please")]);
    bed.event(
        None,
        json!({"kind": "answered", "text": "UTC", "by": "person"}),
    );
    assert_eq!(bed.new_lines(), ["> UTC"]);
}

#[test]
fn an_answer_that_comes_too_late_is_said_before_what_was_said_after_it() {
    let mut bed = Bed::running();
    bed.finished(&json!({"blocked": {"question": "UTC?"}}));
    bed.types("UTC");
    bed.types("please");
    bed.new_asks();
    bed.new_lines();
    bed.refuse(answer("UTC"), Some("wrong_state"));
    assert!(bed.new_lines().is_empty());
    assert_eq!(bed.new_asks(), [say("UTC")]);
    let (_, rest, _) = bed.below();
    assert_eq!(rest[..2], ["  sending: UTC", "  sending: please"]);
}

#[test]
fn history_is_told_at_its_end_and_words_wait_for_it() {
    let mut bed = Bed::new(Some(task(blocked(), 0)));
    bed.begun();
    for n in 0..HISTORY_LINES + 5 {
        bed.text(&format!("line {n}"), None);
    }
    bed.types("UTC");
    bed.finished(&json!({"blocked": {"question": "UTC?"}}));
    assert!(bed.new_asks().is_empty());
    assert_eq!(bed.new_lines().len(), 2, "the head alone");
    bed.caught_up();
    // It is known now that there is a question.
    assert_eq!(bed.new_asks(), [answer("UTC")]);
    let lines = bed.lines.clone();
    assert_eq!(lines.len(), HISTORY_LINES + 1);
    assert!(
        lines[0].contains("lines before; `dispatch logs 3f`"),
        "{lines:?}"
    );
    assert!(lines.last().unwrap().starts_with("blocked"), "{lines:?}");
}

#[test]
fn asks_are_answered_in_place() {
    let mut bed = Bed::running();
    bed.new_lines();
    bed.ask(1, "make\u{202e} 1");
    bed.ask(2, "make 2");
    let lines = bed.new_lines();
    assert_eq!(lines.len(), 2);
    assert!(
        lines[0].starts_with("? asks 1: Bash {\"command\":\"make\\u{202e} 1\""),
        "{lines:?}"
    );
    let (_, rest, lead) = bed.below();
    assert_eq!(lead, "ask 1> ");
    assert_eq!(rest[0], "? Bash make\\u{202e} 1");
    assert!(rest[1].contains("denied by itself in 1m00s"), "{rest:?}");
    bed.types("y");
    bed.types("no not that");
    // Nothing is asked any more, so it is a message.
    bed.types("y");
    let permit = |ask, allow, why: Option<&str>| Request::Permit {
        ask,
        allow,
        always: false,
        why: why.map(str::to_owned),
    };
    assert_eq!(
        bed.new_asks(),
        [
            permit(1, true, None),
            permit(2, false, Some("not that")),
            say("y")
        ]
    );
    bed.event(
        Some(1),
        json!({"kind": "permission_answered", "ask": 1, "allow": true, "by": "person"}),
    );
    assert_eq!(bed.new_lines(), ["ask 1 allowed by person"]);
    // Another answer was not taken: it is asked for again.
    bed.refuse(permit(2, false, Some("not that")), None);
    assert_eq!(bed.below().2, "ask 2> ");
    bed.types("/deny 7 why");
    assert_eq!(bed.new_asks(), [permit(7, false, Some("why"))]);
}

#[test]
fn always_is_for_the_same_again() {
    let mut bed = Bed::running();
    bed.ask(1, "make");
    bed.types("a");
    let permit = |ask, always| Request::Permit {
        ask,
        allow: true,
        always,
        why: None,
    };
    assert_eq!(bed.new_asks(), [permit(1, true)]);
    bed.event(
        Some(1),
        json!({"kind": "permission_answered", "ask": 1, "allow": true, "by": "person"}),
    );
    // What it says of itself is another text, and the command is the same.
    bed.ask(2, "make");
    assert_eq!(bed.new_asks(), [permit(2, true)]);
    bed.ask(3, "make all");
    assert!(bed.new_asks().is_empty());
    bed.ask(4, &"x".repeat(INPUT_BYTES_MAX));
    bed.types("/allow 3");
    bed.types("always");
    bed.ask(5, &"x".repeat(INPUT_BYTES_MAX));
    assert_eq!(bed.new_asks(), [permit(3, false), permit(4, true)]);
}

#[test]
fn an_always_that_is_refused_is_asked_of_the_person_and_not_again_of_the_engine() {
    let mut bed = Bed::running();
    bed.ask(1, "make");
    bed.types("a");
    let permit = |ask, always| Request::Permit {
        ask,
        allow: true,
        always,
        why: None,
    };
    assert_eq!(bed.new_asks(), [permit(1, true)]);
    bed.refuse(permit(1, true), None);
    assert_eq!(bed.new_asks(), []);
    assert_eq!(bed.below().2, "ask 1> ");
    bed.wait(1000);
    assert_eq!(bed.new_asks(), []);
    // The person may still answer it, and the next of its kind is a question of its own.
    bed.types("y");
    assert_eq!(bed.new_asks(), [permit(1, false)]);
    bed.ask(2, "make");
    assert_eq!(bed.new_asks(), [permit(2, true)]);
}

#[test]
fn the_queue_is_seen_and_taken_back_from() {
    let mut bed = Bed::running();
    bed.types("/queue");
    assert_eq!(bed.new_lines().last().unwrap(), "nothing waits");
    let queued = |n: u32, from: Value, held: bool| json!({"kind": "message_queued", "message": n, "text": format!("text {n}\nmore"), "from": from, "held": held});
    let other = json!({"task": "00000000000000aa"});
    bed.event(None, queued(1, json!("person"), false));
    bed.event(None, queued(2, other, true));
    bed.types("/queue");
    assert_eq!(
        bed.new_lines(),
        [
            "message 1 waits for the next run",
            "  text 1",
            "  more",
            "message 2 from the agent of task 00000000000000aa is held until you say something",
            "  text 2",
            "  more",
        ]
    );
    assert_eq!(
        bed.below().1[0],
        "  message 1 waits for the next run: text 1 more"
    );
    bed.types("/compact-later");
    assert_eq!(bed.new_asks(), [Request::Compact]);
    bed.types("/unsay 1");
    assert_eq!(bed.new_asks(), [Request::Unsay(MessageId(1))]);
    bed.event(None, json!({"kind": "message_cancelled", "message": 1}));
    assert_eq!(bed.new_lines(), ["message 1 taken back"]);
    for n in 3..9 {
        bed.event(None, queued(n, json!("person"), false));
    }
    let (_, rest, _) = bed.below();
    assert!(
        rest.contains(&"  and 3 more: /queue".to_owned()),
        "{rest:?}"
    );
}

#[test]
fn a_model_goes_with_the_next_words() {
    let mut bed = Bed::running();
    let tune = |model: Option<&str>, effort| Tune {
        model: model.map(str::to_owned),
        effort,
    };
    for one in [tune(Some("opus"), None), tune(None, Some(Effort::Low))] {
        bed.told(Request::Check(one), Told::Nothing);
    }
    bed.types("harder");
    let both = Request::Say {
        text: "harder".into(),
        tune: tune(Some("opus"), Some(Effort::Low)),
        files: Vec::new(),
    };
    assert_eq!(bed.new_asks(), std::slice::from_ref(&both));
    bed.refuse(both, None);
    bed.types("/resume codex");
    assert_eq!(
        bed.new_asks(),
        [Request::Resume {
            agent: Some("codex".into()),
            tune: tune(Some("opus"), Some(Effort::Low)),
        }]
    );
    bed.types("more");
    assert_eq!(bed.new_asks(), [say("more")]);
}

#[test]
fn files_go_with_the_next_message_and_what_is_typed_waits_until_they_are_looked_at() {
    let mut bed = Bed::running();
    let paths = |names: &[&str]| names.iter().map(PathBuf::from).collect::<Vec<_>>();
    let with = |text: &str, names: &[&str]| Request::Say {
        text: text.into(),
        tune: Tune::default(),
        files: paths(names),
    };
    bed.types("/attach dir/a.png");
    bed.types("look");
    let look = Request::Look(paths(&["dir/a.png"]));
    assert_eq!(bed.new_asks(), std::slice::from_ref(&look));
    bed.told(look, Told::Nothing);
    assert_eq!(
        bed.new_lines().last().unwrap(),
        "with your next message: a.png"
    );
    let said = with("look", &["dir/a.png"]);
    assert_eq!(bed.new_asks(), std::slice::from_ref(&said));
    // What was refused keeps them, and one that cannot be read is not among them.
    bed.refuse(said, None);
    bed.types("/attach b.png");
    let both = Request::Look(paths(&["dir/a.png", "b.png"]));
    assert_eq!(bed.new_asks(), std::slice::from_ref(&both));
    bed.refuse(both, None);
    assert_eq!(bed.below().1[0], "  with your next message: a.png");
    bed.types("again");
    assert_eq!(bed.new_asks(), [with("again", &["dir/a.png"])]);
    bed.types("more");
    assert_eq!(bed.new_asks(), [with("more", &[])]);
}

#[test]
fn control_c_never_stops_a_task_and_twice_leaves() {
    let mut bed = Bed::running();
    let at = |ms| Now { ms, frame: 0 };
    bed.chat.interrupt(true, at(1_000));
    bed.settle();
    assert!(bed.hints.is_empty() && bed.left.is_none());
    bed.chat.interrupt(false, at(9_000));
    bed.settle();
    assert_eq!(bed.hints, ["ctrl-c again leaves; /stop stops the task"]);
    bed.types("x");
    bed.chat.interrupt(false, at(9_100));
    bed.settle();
    assert_eq!(bed.left, None, "something was typed between");
    bed.chat.interrupt(false, at(9_100 + TWICE_MS));
    bed.settle();
    assert_eq!(bed.left, Some(Exit::Completed));
    assert!(
        bed.asked
            .iter()
            .all(|asked| !matches!(asked, Request::Stop { .. }))
    );
    let lines = bed.new_lines();
    assert!(lines.iter().any(|line| line == "not sent: x"), "{lines:?}");
    assert!(
        lines
            .last()
            .unwrap()
            .contains("`dispatch chat 3f` comes back"),
        "{lines:?}"
    );
}

#[test]
fn who_leaves_is_told_what_was_not_sent() {
    let mut bed = Bed::running();
    bed.types("x");
    bed.types("/detach");
    assert_eq!(bed.left, None);
    assert!(
        bed.hints[0].contains("1 of your messages"),
        "{:?}",
        bed.hints
    );
    bed.chat.leave();
    bed.settle();
    assert_eq!(bed.left, Some(Exit::Completed));
}

#[test]
fn a_script_ends_when_its_task_does() {
    let mut bed = Bed::running();
    bed.types("more");
    bed.chat.no_more();
    bed.settle();
    assert_eq!(bed.left, None);
    let spoken = Spoken {
        message: 1,
        how: "queued".into(),
        task: task(RunState::Running, 3),
    };
    bed.told(say("more"), Told::Spoken(Box::new(spoken)));
    assert_eq!(bed.left, None);
    bed.finished(&json!({"blocked": {"question": "UTC?"}}));
    assert_eq!(bed.left, None, "a run may follow by itself");
    let ended = task(blocked(), 90);
    bed.chat.look(ended);
    // What was asked for before it ended came late.
    bed.chat.look(task(RunState::Running, 80));
    bed.settle();
    assert_eq!(bed.left, Some(Exit::Blocked));
}

#[test]
fn a_script_that_says_nothing_ends_at_once() {
    let mut bed = Bed::new(None);
    bed.chat.no_more();
    bed.settle();
    assert_eq!(bed.left, Some(Exit::Completed));
    let mut bed = Bed::new(None);
    bed.types("Fix it");
    bed.chat.no_more();
    let begin = bed.new_asks().remove(0);
    bed.settle();
    assert_eq!(bed.left, None);
    bed.refuse(begin, None);
    assert_eq!(bed.left, Some(Exit::Usage));
}

#[test]
fn children_are_named() {
    let mut bed = Bed::running();
    let mut parent = view(0x3f, RunState::Running);
    parent.seq = 50;
    for child in &mut parent.family.children {
        (child.state, child.done) = ("running", false);
    }
    let parent = Task::from(&parent);
    bed.chat.look(parent.clone());
    bed.chat.look(parent);
    bed.settle();
    let child = Request::Child("000000000000005a".into());
    assert_eq!(bed.new_asks(), std::slice::from_ref(&child));
    bed.new_lines();
    let mut asked = task(completed(), 1);
    asked.title = "Write the tests".into();
    bed.told(child, Told::Task(Box::new(asked)));
    assert_eq!(
        bed.new_lines(),
        ["asked claude for task 5a (Write the tests)"]
    );
    let (_, rest, _) = bed.below();
    assert!(
        rest.last().unwrap().contains("tasks: 5a running"),
        "{rest:?}"
    );
    bed.event(
        Some(1),
        json!({"kind": "parked", "children": ["000000000000005a"]}),
    );
    bed.event(
        None,
        json!({"kind": "child_ended", "child": "000000000000005a", "state": "completed"}),
    );
    assert_eq!(
        bed.new_lines(),
        [
            "waits for task 5a (Write the tests)",
            "task 5a (Write the tests) has ended: completed"
        ]
    );
}

#[test]
fn a_directory_is_written_only_after_a_yes() {
    let mut folder = task(completed(), 0);
    folder.from = "folder".into();
    let mut bed = Bed::new(Some(folder));
    bed.caught_up();
    bed.new_lines();
    bed.types("/apply");
    assert!(bed.new_asks().is_empty());
    assert!(bed.new_lines()[0].contains("/apply yes"));
    bed.types("/apply yes");
    assert_eq!(bed.new_asks(), [Request::Apply { write: true }]);
    let mut bed = Bed::new(Some(task(completed(), 0)));
    bed.caught_up();
    bed.types("/apply");
    assert_eq!(bed.new_asks(), [Request::Apply { write: false }]);
    bed.new_lines();
    let many = format!("diff --git a b\n{}", "+x\n".repeat(DIFF_LINES));
    bed.told(Request::Diff, Told::Diff(many));
    let lines = bed.new_lines();
    assert_eq!(lines.len(), DIFF_LINES + 1);
    assert_eq!(lines.last().unwrap(), "… 1 lines more: `dispatch diff 3f`");
}

#[test]
fn no_row_is_wider_than_the_terminal_and_no_letter_is_an_order() {
    let mut bed = Bed::running();
    let nasty = "\u{1b}]0;x\u{7}\u{1b}[2J日本\u{202e}".repeat(40);
    bed.live("text", 1, 0, &nasty);
    bed.said(
        &json!({"tool_call": {"id": "t", "name": nasty, "input": nasty}}),
        None,
    );
    bed.said(
        &json!({"todo": {"items": [{"text": nasty, "state": "pending"}]}}),
        None,
    );
    bed.event(
        None,
        json!({"kind": "message_queued", "message": 1, "text": nasty, "from": "person"}),
    );
    bed.ask(1, &nasty);
    let below = bed.chat.below(Now::default());
    for line in below.open.iter().chain(&below.rest) {
        for row in line.rows(20, Style::plain()) {
            assert!(row.columns <= 20, "{row:?}");
            assert!(!row.text.contains(char::is_control), "{row:?}");
        }
    }
    assert!(
        bed.lines
            .iter()
            .all(|line| !line.contains(char::is_control)),
        "{:?}",
        bed.lines
    );
}
