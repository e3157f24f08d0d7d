//! The way of our tools that summon to our own door: the server that every agent with a grant finds
//! there, started when it is used for the first time.
//! Must not know a way past that door, and must not decide what it lets through.

use std::{sync::Arc, time::Duration};

use dispatch_core::{
    grant::Tool,
    native::{Kin, Listed, Opening},
    prompt::untrusted,
    servers::ServerTable,
};
use serde_json::{Value, json};
use tokio::{sync::Mutex, time::timeout};

use super::{Granted, Place, Wrong, mcp};

/// One wait at the door. An engine that goes away meanwhile is waited for by the server.
const WAIT_S: u64 = 300;
/// From the end of a wait that a word has ended to that word.
const WORD_LIMIT: Duration = Duration::from_secs(1);
const HANDLE_CHARS_MIN: usize = 4;
const HANDLE_CHARS_MAX: usize = 16;

/// What each of them asks of the door, by name.
const NEEDS: [(&str, &[Tool]); 4] = [
    ("summon", &[Tool::Dispatch, Tool::Wait]),
    ("retrieve", &[Tool::Wait, Tool::Show, Tool::List]),
    ("send_to_tab", &[Tool::Say, Tool::Show, Tool::List]),
    ("read_tab", &[Tool::Show, Tool::Logs, Tool::List]),
];

/// Those of our tools that this agent has: what the task was made with, and of those that summon only
/// where there is something to summon and a grant that lets it.
pub(crate) fn offered(mut tools: Vec<Granted>, opening: &Opening) -> Vec<Granted> {
    let kin = opening.kin.as_ref();
    let kin = kin.filter(|kin| kin.door.is_some() && !kin.listed.is_empty());
    let has = |name: &str| match NEEDS.iter().find(|(own, _)| *own == name) {
        None => true,
        Some((_, needs)) => kin.is_some_and(|kin| needs.iter().all(|one| kin.tools.contains(one))),
    };
    tools.retain(|tool| has(tool.name()) && opening.within.has(tool.name()));
    tools
}

/// What a model is told of what it is, and of whom it may summon. Empty: nothing.
pub(crate) fn words(role: Option<&str>, kin: Option<&Kin>, tools: &[Granted]) -> String {
    let mut parts: Vec<String> = role.map(str::to_owned).into_iter().collect();
    let summons = tools.iter().any(|tool| tool.name() == "summon");
    if let Some(kin) = kin.filter(|_| summons) {
        parts.push(catalogue(&kin.listed));
    }
    parts.join("\n\n")
}

/// A line each. What a repository says of its own is cut to a line, too, and said to be its.
fn catalogue(listed: &[Listed]) -> String {
    let lines = |subagent: bool| -> Vec<String> {
        let own = listed.iter().filter(|one| one.subagent == subagent);
        own.map(|one| {
            let whose = if one.of_repository {
                " (the repository's)"
            } else {
                ""
            };
            let dash = if one.description.is_empty() { "" } else { ": " };
            format!("- {}{whose}{dash}{}", one.slug, one.description)
        })
        .collect()
    };
    let mut parts = vec![
        "You may give work to other agents with the tool summon, each in a checkout of its own that \
         begins where yours did. Summon one where its work stands by itself, and say in full what it \
         is to do: it sees nothing of this conversation."
            .to_owned(),
    ];
    for (subagent, head) in [
        (true, "Agents that work for you:"),
        (
            false,
            "Agents that stand for themselves (top_level), which nobody retrieves:",
        ),
    ] {
        let lines = lines(subagent);
        if !lines.is_empty() {
            parts.push(format!("{head}\n{}", lines.join("\n")));
        }
    }
    parts.join("\n\n")
}

/// To our own door.
#[derive(Debug)]
pub(crate) struct Way {
    table: ServerTable,
    around: mcp::Around,
    /// The task that this is, by its whole id.
    own: String,
    /// The task that asked for it.
    asker: Option<String>,
    /// As they were at the start of the run.
    listed: Vec<Listed>,
    there: Mutex<Option<Arc<mcp::Server>>>,
}

impl Way {
    /// `None`: there is no door.
    pub(crate) fn of(opening: &Opening, around: mcp::Around) -> Option<Self> {
        let kin = opening.kin.as_ref()?;
        Some(Self {
            table: kin.door.clone()?,
            around,
            own: kin.task.clone(),
            asker: kin.asker.clone(),
            listed: kin.listed.clone(),
            there: Mutex::default(),
        })
    }

    /// `None`: there was no such definition.
    pub(super) fn listed(&self, slug: &str) -> Option<&Listed> {
        self.listed.iter().find(|one| one.slug == slug)
    }

    async fn server(&self) -> Result<Arc<mcp::Server>, Wrong> {
        let mut there = self.there.lock().await;
        if let Some(server) = there.as_ref().filter(|server| server.is_open()) {
            return Ok(Arc::clone(server));
        }
        let started = mcp::one(OURS, &self.table, &self.around).await;
        let started = started.map_err(|why| Wrong::new(format!("reach Dispatch: {why}")))?;
        Ok(Arc::clone(there.insert(started)))
    }

    /// One of the tools at the door, and what it answered.
    pub(super) async fn ask(&self, tool: Tool, input: Value) -> Result<Value, Wrong> {
        let server = self.server().await?;
        let answer = server.call(tool.word(), &input.to_string()).await?;
        serde_json::from_str(&answer)
            .map_err(|error| Wrong::new(format!("read what Dispatch answered: {error}: {answer}")))
    }

    pub(crate) async fn end(&self) {
        if let Some(server) = self.there.lock().await.take() {
            server.end().await;
        }
    }

    /// The task of a handle: one below this one. Digits that are none are no handle.
    pub(super) async fn find(&self, handle: &str) -> Result<Value, Wrong> {
        let handle = digits(handle)?;
        if self.own.starts_with(&handle) {
            return Err(Wrong::new(format!("{handle} is yourself")));
        }
        self.ask(Tool::Show, json!({"task": handle})).await
    }

    /// The same, or whoever asked for this one.
    pub(super) async fn find_to_speak_to(&self, handle: &str) -> Result<String, Wrong> {
        let digits = digits(handle)?;
        let asker = self.asker.as_ref();
        let asker = asker.filter(|asker| asker.starts_with(&digits));
        match (self.find(handle).await, asker) {
            (Ok(found), None) => text(&found, "id"),
            (Err(_), Some(asker)) => Ok(asker.clone()),
            (Ok(_), Some(_)) => Err(Wrong::new(format!(
                "{digits} may be one that you asked for or the one that asked for you; give more digits"
            ))),
            (Err(wrong), None) => Err(wrong),
        }
    }
}

/// What the server is called in what goes wrong.
const OURS: &str = "dispatch";

fn digits(handle: &str) -> Result<String, Wrong> {
    let handle = handle.trim().to_ascii_lowercase();
    let good = handle.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !good || !(HANDLE_CHARS_MIN..=HANDLE_CHARS_MAX).contains(&handle.len()) {
        return Err(Wrong::new(format!(
            "{handle:?} is no handle: those are {HANDLE_CHARS_MIN} to {HANDLE_CHARS_MAX} of 0-9 and \
             a-f, the first ones of an agent_id"
        )));
    }
    Ok(handle)
}

pub(super) fn text(of: &Value, name: &str) -> Result<String, Wrong> {
    let text = of[name].as_str().map(str::to_owned);
    text.ok_or_else(|| Wrong::new(format!("read what Dispatch answered: no {name} in {of}")))
}

/// How waiting for one came to its end.
pub(super) enum Waited {
    /// In the words that its caller is owed.
    Ended(String),
    /// Somebody has said something to us.
    Spoken,
    /// It waits for an answer that is ours to give.
    Asks(String),
}

/// Until it has ended, or somebody speaks. A wait is never broken off by us: the door ends it when there
/// is a word for us, so that no end is told to a call that nobody hears any more.
pub(super) async fn wait(place: &Place, way: &Way, task: &str) -> Result<Waited, Wrong> {
    loop {
        // Whoever is spoken to looks and does not wait: what was said may be this very end.
        let spoken = place.is_spoken_to();
        let timeout_s = if spoken { 0 } else { WAIT_S };
        let asked = json!({"tasks": [task], "timeout_s": timeout_s});
        let answer = way.ask(Tool::Wait, asked).await?;
        let found = &answer["tasks"][0];
        if answer["done"] == true && found["open"] == false {
            return Ok(Waited::Ended(whole(&text(&answer, "words")?, found)));
        }
        if answer["done"] == true {
            return Ok(Waited::Asks(found["asks"].to_string()));
        }
        if spoken {
            return Ok(Waited::Spoken);
        }
        match timeout(WORD_LIMIT, place.spoken_to()).await {
            // It may have been its own time that was over.
            Ok(()) | Err(_) => {}
        }
    }
}

const ITS_WORDS: &str = "its own words";

/// The words of an end are cut for a log; whoever waits for it hears all of it.
fn whole(words: &str, found: &Value) -> String {
    let cut = words.contains("\n[Cut: ");
    let quoted = words.split_once(&format!("\n[Quoted text: {ITS_WORDS}."));
    match (cut, quoted, found["reason"].as_str()) {
        (true, Some((head, _)), Some(said)) => {
            format!("{head}\n{}", untrusted(ITS_WORDS, said, usize::MAX))
        }
        _ => words.to_owned(),
    }
}
