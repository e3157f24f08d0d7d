//! `dispatch chat`, through a pipe and on a terminal of its own. The agent is a script that speaks as
//! Claude Code does, and waits where a test wants to look.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::{
    asks,
    seat::{ALTERNATE, Seat},
    world::TestWorld,
};

/// Thinks, uses tools and says two lines, the second one only when the gate has been opened. Then it
/// answers each message in a line, and writes all of them down.
const TALKING: &str = r#"#!/bin/sh
tell() { printf '%s\n' "$1"; }
piece() {
  tell '{"type":"stream_event","parent_tool_use_id":null,"event":{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"'"$1"'"}}}'
}
block() {
  tell '{"type":"assistant","parent_tool_use_id":null,"message":{"id":"m","role":"assistant","content":['"$1"']}}'
}
result() {
  tell '{"type":"user","parent_tool_use_id":null,"message":{"role":"user","content":[{"type":"tool_result","tool_use_id":"'"$1"'","content":"'"$2"'","is_error":'"$3"'}]}}'
}
turn() {
  printf '%s\n' "$line" >> "$HEARD"
  tell '{"type":"system","subtype":"init","session_id":"5e551011-0000-4000-8000-000000000001"}'
  tell '{"isReplay":true,'"${line#?}"
}
end() {
  tell '{"type":"result","subtype":"success","is_error":false,"result":"done","num_turns":1,"total_cost_usd":0.0125,"usage":{"input_tokens":1200,"output_tokens":34}}'
}
read -r line
turn
block '{"type":"thinking","thinking":"Let me see."}'
block '{"type":"tool_use","id":"t1","name":"Read","input":{"file_path":"/w/a.rs"}}'
result t1 'fn main() {}' false
block '{"type":"tool_use","id":"t2","name":"Bash","input":{"command":"make"}}'
result t2 'make: no rule' true
piece 'first line \u001b]0;pwned\u0007\n'
piece 'sec'
read -r go < "$GATE"
piece 'ond line'
block '{"type":"text","text":"first line \u001b]0;pwned\u0007\nsecond line"}'
end
while read -r line; do
  turn
  block '{"type":"text","text":"I hear you."}'
  end
done
"#;

fn installed(world: &TestWorld) {
    let path = world.path("talking");
    fs::write(&path, TALKING).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// With an agent `talking`.
fn world() -> TestWorld {
    let world = TestWorld::with_config("");
    installed(&world);
    let config = world.home().join("dispatch.toml");
    let text = fs::read_to_string(&config).unwrap();
    let more = format!(
        "[agents.talking]\ndriver = \"claude\"\nprogram = {:?}\npool = \"default\"\n\
         placement = \"host\"\nenv = {{ GATE = {:?}, HEARD = {:?} }}\n",
        world.path("talking"),
        world.path("gate"),
        world.path("heard"),
    );
    fs::write(config, format!("{text}\n{more}")).unwrap();
    world
}

fn heard(world: &TestWorld, text: &str) -> usize {
    let heard = fs::read_to_string(world.path("heard")).unwrap();
    heard.matches(text).count()
}

/// The id of the only task there is.
fn only(world: &TestWorld) -> String {
    let all = world.dispatch(&["list", "--all", "--json"]).exits(0).json();
    let all = all.as_array().unwrap();
    assert_eq!(all.len(), 1, "{all:#?}");
    all[0]["id"].as_str().unwrap().to_owned()
}

fn count(out: &str, line: &str) -> usize {
    out.lines().filter(|known| *known == line).count()
}

#[test]
fn a_conversation_survives_its_engine_and_every_word_is_heard_once() {
    let world = world();
    let mut chat = world.talk(&["chat", "--agent", "talking", "--no-checks"]);
    chat.tell("Fix it");
    chat.until("first line");
    world.kill_engine();
    chat.tell("said meanwhile");
    let id = only(&world);
    world
        .follow(&["events", "-f", "--task", &id])
        .until("message 1 delivered");
    world.open_gate();
    chat.until("I hear you.");
    chat.hush();
    let done = chat.end().exits(0);
    for line in [
        "> Fix it",
        "Let me see.",
        "→ Read /w/a.rs · fn main() {}",
        "× Bash make · make: no rule",
        "first line ]0;pwned",
        "second line",
        "> said meanwhile",
        "I hear you.",
    ] {
        assert_eq!(count(&done.out, line), 1, "{line:?} in {}", done.out);
    }
    assert!(!done.out.contains('\u{1b}'), "{:?}", done.out);
    assert!(
        done.out.contains("completed · 2 tool calls · "),
        "{}",
        done.out
    );
    assert!(done.out.contains("· $0.01"), "{}", done.out);
    assert_eq!(heard(&world, "said meanwhile"), 1);
    assert_eq!(world.engines(), 2);
    assert_eq!(
        world.show(&only(&world))["runs"].as_array().unwrap().len(),
        1
    );
}

#[test]
fn who_comes_back_sees_what_was_and_goes_on_in_the_same_workspace() {
    let world = TestWorld::new();
    let mut chat = world.talk(&["chat", "--no-checks"]);
    chat.tell("> write a.txt one");
    chat.until("completed");
    chat.tell("/diff");
    chat.until("+one");
    chat.hush();
    chat.end().exits(0);
    let id = only(&world);
    let chat = world.dispatch_fed("> write b.txt two\n", &["chat", &id]);
    let out = chat.exits(0).out;
    // Once as what was, and once as what is now.
    assert_eq!(out.matches("\n> > write ").count(), 2, "{out}");
    assert_eq!(out.matches("completed · ").count(), 2, "{out}");
    let task = world.show(&id);
    assert_eq!(task["runs"][1]["cause"], "said");
    let diff = world.dispatch(&["diff", &id]).exits(0).out;
    assert!(diff.contains("+one") && diff.contains("+two"), "{diff}");
}

#[test]
fn a_question_is_answered_by_typing_and_a_result_is_applied() {
    let world = TestWorld::new();
    let args = ["chat", "--no-checks"];
    let mut chat = world.talk(&args);
    chat.tell("> ask Which zone?");
    chat.until("? Which zone?");
    chat.until("blocked");
    chat.tell("> write zone.txt UTC");
    chat.until("> > write zone.txt UTC");
    chat.until("completed");
    chat.tell("/apply");
    chat.until("git -C");
    chat.tell("/nonsense");
    chat.until("there is no such command");
    chat.hush();
    chat.end().exits(0);
    let causes: Vec<Value> = world.show(&only(&world))["runs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|run| run["cause"].clone())
        .collect();
    assert_eq!(causes, [json!("dispatched"), json!("answer")]);
    assert!(
        world
            .git(&["branch", "--list", "dispatch/*"])
            .contains("dispatch/")
    );
}

#[test]
fn asks_are_answered_where_they_are_seen() {
    let world = asks::world("");
    asks::installed(&world);
    let mut chat = world.talk(&["chat", "--agent", "asking", "--no-checks"]);
    chat.tell("Build it");
    chat.until("? asks 1: Bash {\"command\":\"make 1\"}");
    chat.until("? asks 2: Bash");
    chat.tell("y");
    chat.until("ask 1 allowed by person");
    chat.tell("n not today");
    chat.until("ask 2 denied by person");
    chat.hush();
    chat.end().exits(0);
    let task = world.show(&only(&world));
    assert_eq!(task["asks"][1]["why"], "not today");
    let workspace = task["workspace"].as_str().unwrap();
    let answers = fs::read_to_string(Path::new(workspace).join("answers.txt")).unwrap();
    assert!(answers.contains("not today"), "{answers}");
}

#[test]
fn messages_that_wait_are_seen_and_taken_back() {
    let world = TestWorld::new();
    let mut chat = world.talk(&["chat", "--agent", "gated", "--no-checks"]);
    chat.tell("Wait for it");
    chat.until("begun");
    chat.tell("/model other");
    chat.until("from your next message on: model other");
    chat.tell("and by colour");
    chat.until("comes with the next run, after run 1");
    chat.tell("/queue");
    chat.until("message 1 waits for the next run");
    chat.tell("/unsay 1");
    chat.until("message 1 taken back");
    // An agent that nobody can tell is no reason for a message that only looks like a command.
    chat.tell("/compact-later");
    chat.until("keeps its conversation by itself");
    chat.tell("/unsay 1");
    chat.until("failed to");
    chat.tell("/stop");
    chat.until("stopping");
    chat.until("stopped: ");
    chat.hush();
    chat.end().exits(4);
    assert_eq!(world.counted(), 0);
}

#[test]
fn an_interrupted_chat_leaves_its_task_alone() {
    let world = TestWorld::new();
    let id = world.begun(&[]);
    let mut chat = world.talk(&["chat", &id]);
    chat.until("begun");
    chat.signal(Signal::INT);
    chat.until_aside("ctrl-c again leaves; /stop stops the task");
    chat.signal(Signal::INT);
    let done = chat.end().exits(0);
    assert!(done.out.contains("comes back to it"), "{}", done.out);
    assert_eq!(world.show(&id)["state"], "running");
    let chat = world.talk(&["chat", &id]);
    chat.signal(Signal::TERM);
    assert_eq!(world.show(&id)["state"], "running");
    chat.end();
    world.open_gate();
    world.dispatch(&["wait", &id]).exits(0);
}

#[test]
fn what_cannot_be_is_said_before_anything_is_typed() {
    let world = TestWorld::new();
    let refused = |args: &[&str], word: &str| {
        let args = [&["chat"], args].concat();
        world.dispatch_fed("x\n", &args).exits(2).says(&[word]);
    };
    refused(&["--agent", "nobody"], "nobody");
    refused(&["--repo", "nowhere/at/all"], "nowhere/at/all");
    refused(&["3f", "--agent", "scripted"], "cannot be used with");
    refused(&["3f"], "3f");
    refused(&["--placement", "nowhere"], "nowhere");
    assert!(
        !world.home().join("data/log.sqlite").exists(),
        "nothing was started"
    );
    world.dispatch_fed("", &["chat"]).exits(0);
}

/// Finished lines once, in the terminal's own scroll-back; below them what changes.
#[test]
fn on_a_terminal_only_the_bottom_is_drawn_again() {
    let world = world();
    let mut seat = Seat::new(world.command(&["chat", "--agent", "talking", "--no-checks"]));
    seat.until("your first message makes a task");
    assert!(seat.is_raw());
    seat.press("Fix  it");
    seat.until("> Fix  it");
    seat.press("\u{1b}[D\u{1b}[D\u{1b}[D\u{7f}\r");
    seat.until("first line ]0;pwned");
    seat.until("sec");
    seat.until("running · talking");
    // Several lines pasted are one message, and are not sent by their line ends.
    seat.press("\u{1b}[200~uno\rdos\u{1b}[201~");
    seat.until("  dos");
    seat.resize(60);
    seat.press("\u{3}");
    seat.press("and more\r");
    seat.until("> and more");
    world
        .follow(&["events", "-f", "--task", &only(&world)])
        .until("message 1 delivered");
    world.open_gate();
    seat.until("I hear you.");
    seat.until("type to go on");
    seat.press("\u{1b}[A");
    seat.until("> and more");
    seat.press("\u{3}\u{3}");
    seat.until("goes on with it");
    assert_eq!(seat.child.wait().unwrap().code(), Some(0));
    assert!(!seat.is_raw(), "the terminal is as it was");
    for line in [
        "> Fix it",
        "Let me see.",
        "first line ]0;pwned",
        "second line",
        "I hear you.",
    ] {
        assert_eq!(seat.count(line), 1, "{line:?} in\n{}", seat.grid.history());
    }
    assert_eq!(seat.count("running · "), 0, "{}", seat.grid.history());
    assert!(
        !seat.raw.contains(ALTERNATE) && !seat.raw.contains("\u{1b}]"),
        "{:?}",
        seat.raw
    );
    assert_eq!((heard(&world, "and more"), heard(&world, "uno")), (1, 0));
}

#[test]
fn a_terminal_that_goes_away_leaves_the_task_alone() {
    let world = TestWorld::new();
    let id = world.begun(&[]);
    let mut seat = Seat::new(world.command(&["chat", &id]));
    seat.until("running");
    kill_process(Pid::from_child(&seat.child), Signal::HUP).unwrap();
    assert_eq!(seat.child.wait().unwrap().code(), Some(4));
    assert!(!seat.is_raw());
    assert_eq!(world.show(&id)["state"], "running");
}

#[test]
fn a_long_conversation_does_not_end_by_a_limit_of_runs() {
    let world = TestWorld::with_config("[limits]\nruns_max = 2\n");
    let task = world.dispatch(&["run", "--json", "First\n> write a.txt one"]);
    let id = task.exits(0).json()["id"].as_str().unwrap().to_owned();
    for n in 1..4 {
        let words = format!("> write b.txt {n}\n");
        let say = ["say", &id, "--follow", "--json", "-"];
        world.dispatch_fed(&words, &say).exits(0);
    }
    assert_eq!(world.show(&id)["runs"].as_array().unwrap().len(), 4);
}

#[test]
fn a_file_goes_along_with_what_is_typed_next() {
    let world = world();
    fs::write(world.path("notes.txt"), "mine").unwrap();
    let notes = world.path("notes.txt").display().to_string();
    let args = [
        "chat",
        "--agent",
        "scripted",
        "--no-checks",
        "--attach",
        &notes,
    ];
    let words = "> write a.txt one\n";
    world.dispatch_fed(words, &args).exits(0);
    let id = only(&world);
    let more = format!("/attach {notes}x\n/attach {notes}\n> write b.txt two\n");
    world
        .dispatch_fed(&more, &["chat", &id])
        .exits(0)
        .says(&["failed to attach", "with your next message: notes.txt"]);
    let task = world.show(&id);
    let from: Vec<&Value> = task["attachments"]
        .as_array()
        .unwrap()
        .iter()
        .map(|file| &file["message"])
        .collect();
    assert_eq!(from, [&Value::Null, &json!(1)], "{task}");
}
