//! The fake agent in Claude Code's stream-json, for what is said to a running agent: it writes down
//! every message it hears, so that a test can count. `@hear PATH N` waits for N of them, `@ask PATH TOOL
//! INPUT` asks for a permission, waits, and writes the answer down; `@asks` does not wait, `@unask` takes
//! back what it asked last.
//! Must not answer anything that its orders do not ask for.

use std::{
    io::{self, BufRead, Write},
    process::ExitCode,
    sync::mpsc::{Receiver, channel},
    thread,
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

const SESSION: &str = "5e551011-0000-4000-8000-000000000001";

/// What comes on its standard input, as it comes: texts of messages, and answers to what it asked.
fn input() -> (Receiver<String>, Receiver<Value>) {
    let (heard, messages) = channel();
    let (answered, answers) = channel();
    thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            let message: Value = serde_json::from_str(&line).unwrap_or_default();
            if message["type"] == "control_response" {
                // The one who would hear it is gone with the whole.
                drop(answered.send(message["response"].clone()));
            }
            let text = message["message"]["content"][0]["text"].as_str();
            if let Some(text) = text.filter(|_| message["type"] == "user")
                && heard.send(text.to_owned()).is_err()
            {
                return;
            }
        }
    });
    (messages, answers)
}

fn tell(value: &Value) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{value}")?;
    Ok(out.flush()?)
}

pub(super) fn follow() -> Result<ExitCode> {
    let (messages, answers) = input();
    let mut ears = Ears {
        messages,
        answers,
        heard: None,
        asked: None,
        asks: 0,
    };
    let prompt = ears.messages.recv().context("wait for the prompt")?;
    ears.turn(&prompt)?;
    // What comes later is a turn of its own, until the input ends.
    while let Ok(text) = ears.messages.recv() {
        if let Some(path) = &ears.heard {
            note(path, &text)?;
        }
        ears.turn(&text)?;
    }
    // An answer to nothing it waits for: given twice, or too late.
    while let Ok(stray) = ears.answers.recv() {
        if let Some(path) = &ears.asked {
            note(path, &format!("stray {stray}"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

struct Ears {
    messages: Receiver<String>,
    answers: Receiver<Value>,
    /// Where messages, and where answers, are written down.
    heard: Option<String>,
    asked: Option<String>,
    asks: u32,
}

fn note(path: &str, text: &str) -> Result<()> {
    super::append(path, &text.replace('\n', " "))
}

/// As the real one does when it takes a message into its conversation.
fn say_back(text: &str) -> Result<()> {
    let content = json!([{"type": "text", "text": text}]);
    let message = json!({"role": "user", "content": content});
    tell(&json!({"type": "user", "message": message, "isReplay": true, "session_id": SESSION}))
}

impl Ears {
    fn turn(&mut self, prompt: &str) -> Result<()> {
        tell(&json!({"type": "system", "subtype": "init", "session_id": SESSION}))?;
        say_back(prompt)?;
        for line in super::orders(prompt) {
            let (order, rest) = line.split_once(' ').unwrap_or((line, ""));
            let done = || format!("obey @{line}");
            if order == "hear" {
                let (path, count) = rest.split_once(' ').with_context(done)?;
                self.heard = Some(path.to_owned());
                for _ in 0..count.parse::<u32>().with_context(done)? {
                    let text = self.messages.recv().with_context(done)?;
                    note(path, &text)?;
                    say_back(&text)?;
                }
            } else if order == "ask" {
                let (path, rest) = rest.split_once(' ').with_context(done)?;
                self.ask(path, rest)?;
                self.hear_answer(path).with_context(done)?;
            } else if order == "asks" {
                let (path, rest) = rest.split_once(' ').with_context(done)?;
                self.ask(path, rest)?;
            } else if order == "answers" {
                let (path, count) = rest.split_once(' ').with_context(done)?;
                for _ in 0..count.parse::<u32>().with_context(done)? {
                    self.hear_answer(path).with_context(done)?;
                }
            } else if order == "unask" {
                let id = format!("ask-{}", self.asks);
                tell(&json!({"type": "control_cancel_request", "request_id": id}))?;
            } else if order == "attached" {
                super::read_attached(prompt, rest).with_context(done)?;
            } else if let Some(code) = super::obey(order, rest).with_context(done)? {
                anyhow::ensure!(code == ExitCode::SUCCESS, "it is told to fail");
            }
        }
        tell(&json!({
            "type": "result", "subtype": "success", "is_error": false, "result": "done",
            "session_id": SESSION, "num_turns": 1,
        }))
    }

    fn ask(&mut self, path: &str, what: &str) -> Result<()> {
        let (tool, input) = what.split_once(' ').unwrap_or((what, ""));
        self.asks += 1;
        self.asked = Some(path.to_owned());
        let request = json!({
            "subtype": "can_use_tool", "tool_name": tool, "input": {"command": input},
            "tool_use_id": format!("toolu-{}", self.asks),
        });
        let id = format!("ask-{}", self.asks);
        tell(&json!({"type": "control_request", "request_id": id, "request": request}))
    }

    /// `ask-1 allow INPUT` or `ask-1 deny MESSAGE`.
    fn hear_answer(&mut self, path: &str) -> Result<()> {
        let answer = self.answers.recv()?;
        let (id, said) = (&answer["request_id"], &answer["response"]);
        let word = said["behavior"].as_str().unwrap_or("nothing");
        let more = match word {
            "allow" => &said["updatedInput"]["command"],
            _ => &said["message"],
        };
        let text = [id, more].map(|value| value.as_str().unwrap_or_default());
        note(path, &format!("{} {word} {}", text[0], text[1]))
    }
}
