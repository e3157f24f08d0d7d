//! The fake agent in Claude Code's stream-json, for what is said to a running agent: it writes down
//! every message it hears, so that a test can count. `@hear PATH N` waits for N of them.
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

/// Texts of the messages on its standard input, as they come.
fn messages() -> Receiver<String> {
    let (heard, messages) = channel();
    thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            let message: Value = serde_json::from_str(&line).unwrap_or_default();
            let text = message["message"]["content"][0]["text"].as_str();
            if let Some(text) = text.filter(|_| message["type"] == "user")
                && heard.send(text.to_owned()).is_err()
            {
                return;
            }
        }
    });
    messages
}

fn tell(value: &Value) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{value}")?;
    Ok(out.flush()?)
}

pub(super) fn follow() -> Result<ExitCode> {
    let messages = messages();
    let mut path = None;
    let prompt = messages.recv().context("wait for the prompt")?;
    turn(&prompt, &messages, &mut path)?;
    // What comes later is a turn of its own, until the input ends.
    while let Ok(text) = messages.recv() {
        if let Some(path) = &path {
            note(path, &text)?;
        }
        turn(&text, &messages, &mut path)?;
    }
    Ok(ExitCode::SUCCESS)
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

fn turn(prompt: &str, messages: &Receiver<String>, heard: &mut Option<String>) -> Result<()> {
    tell(&json!({"type": "system", "subtype": "init", "session_id": SESSION}))?;
    say_back(prompt)?;
    for line in prompt.lines().filter_map(|line| line.strip_prefix('@')) {
        let (order, rest) = line.split_once(' ').unwrap_or((line, ""));
        let done = || format!("obey @{line}");
        if order == "hear" {
            let (path, count) = rest.split_once(' ').with_context(done)?;
            *heard = Some(path.to_owned());
            for _ in 0..count.parse::<u32>().with_context(done)? {
                let text = messages.recv().with_context(done)?;
                note(path, &text)?;
                say_back(&text)?;
            }
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
