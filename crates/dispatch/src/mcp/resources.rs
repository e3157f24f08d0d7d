//! Tasks as resources: the list, one task, its log, its diff, its prompt.
//! Must not read a file: what a caller may see, the routes decide.

use std::fmt;

use dispatch_core::id::TaskId;
use rmcp::model::{Resource, ResourceContents, ResourceTemplate};
use serde::Serialize;

use super::{
    door::{Door, Refusal},
    find, logs,
};
use crate::api::{
    mcp::{Handle, LISTED, LISTED_MAX, LOG_BYTES_MAX, ListOutput},
    task::Task,
};

const TASKS: &str = "dispatch://tasks";
/// As the Go dispatcher's monitor calls it.
const AGENTS: &str = "status://agents";
const JSON: &str = "application/json";

/// A part of a task that can be read on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    Log,
    Diff,
    Prompt,
}

impl Part {
    pub(crate) const ALL: [Self; 3] = [Self::Log, Self::Diff, Self::Prompt];

    fn word(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Diff => "diff",
            Self::Prompt => "prompt",
        }
    }

    fn about(self) -> (&'static str, &'static str) {
        match self {
            Self::Log => (
                "The end of what its agent wrote in its last run",
                "text/plain",
            ),
            Self::Diff => ("Its result as a patch", "text/x-diff"),
            Self::Prompt => ("Exactly what its agent was given to read", "text/markdown"),
        }
    }
}

/// What an address means. The id is as it was written: a prefix is an address too.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Address {
    Tasks,
    Agents,
    Task(String),
    Part(String, Part),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tasks => f.write_str(TASKS),
            Self::Agents => f.write_str(AGENTS),
            Self::Task(id) => write!(f, "{TASKS}/{id}"),
            Self::Part(id, part) => write!(f, "{TASKS}/{id}/{}", part.word()),
        }
    }
}

impl Address {
    /// `None`: it is none of ours.
    pub(crate) fn of(uri: &str) -> Option<Self> {
        match uri {
            TASKS => return Some(Self::Tasks),
            AGENTS => return Some(Self::Agents),
            _ => {}
        }
        let rest = uri.strip_prefix(TASKS)?.strip_prefix('/')?;
        let (id, part) = match rest.split_once('/') {
            Some((id, part)) => (id, Some(part)),
            None => (rest, None),
        };
        let hex = (1..=TaskId::HEX_DIGITS).contains(&id.len())
            && id.bytes().all(|byte| byte.is_ascii_hexdigit());
        let id = hex.then(|| id.to_ascii_lowercase())?;
        let Some(part) = part else {
            return Some(Self::Task(id));
        };
        let found = Part::ALL.into_iter().find(|known| known.word() == part)?;
        Some(Self::Part(id, found))
    }
}

/// Those that are there without being asked for by name: the list, and the newest tasks.
pub(crate) async fn listed(door: &Door) -> Result<Vec<Resource>, Refusal> {
    let (tasks, _) = door.tasks("", LISTED).await?;
    let fixed = [
        (
            Address::Tasks,
            "tasks",
            "All tasks in short, the newest first",
        ),
        (
            Address::Agents,
            "agents",
            "Agents that work or wait, by workspace",
        ),
    ];
    let fixed = fixed.map(|(address, name, about)| {
        Resource::new(address.to_string(), name)
            .with_description(about)
            .with_mime_type(JSON)
    });
    let newest = tasks.iter().filter(|task| !task.removed);
    let newest = newest.map(|task| {
        let state = task.reason.as_deref().unwrap_or_default();
        let about = format!("{} {state}", task.state);
        Resource::new(Address::Task(task.id.clone()).to_string(), &task.short)
            .with_title(&task.title)
            .with_description(about.trim_end())
            .with_mime_type(JSON)
    });
    Ok(fixed.into_iter().chain(newest).collect())
}

pub(crate) fn templates() -> Vec<ResourceTemplate> {
    let one = ResourceTemplate::new(format!("{TASKS}/{{id}}"), "task")
        .with_description("Everything about one task; an id or a prefix of it")
        .with_mime_type(JSON);
    let parts = Part::ALL.map(|part| {
        let (about, kind) = part.about();
        let uri = format!("{TASKS}/{{id}}/{}", part.word());
        let name = format!("task {}", part.word());
        ResourceTemplate::new(uri, name)
            .with_description(about)
            .with_mime_type(kind)
    });
    [one].into_iter().chain(parts).collect()
}

/// What lies at an address, under the address that was asked for.
pub(crate) async fn read(
    door: &Door,
    uri: &str,
    address: &Address,
) -> Result<ResourceContents, Refusal> {
    let (text, kind) = match address {
        Address::Tasks => (json(&tasks(door).await?)?, JSON),
        Address::Agents => (json(&agents(door).await?)?, JSON),
        Address::Task(id) => (json(&find::by_id(door, id).await?)?, JSON),
        Address::Part(id, part) => {
            let task = find::by_id(door, id).await?;
            let text = match part {
                Part::Log => end_of_log(door, &task).await?,
                Part::Diff => door.text(&format!("/v1/tasks/{}/diff", task.id)).await?,
                Part::Prompt => door.text(&format!("/v1/tasks/{}/prompt", task.id)).await?,
            };
            (text, part.about().1)
        }
    };
    Ok(ResourceContents::text(text, uri).with_mime_type(kind))
}

async fn tasks(door: &Door) -> Result<ListOutput, Refusal> {
    let (tasks, more) = door.tasks("", LISTED_MAX).await?;
    let there = tasks.iter().filter(|task| !task.removed);
    Ok(ListOutput {
        tasks: there.map(Handle::from).collect(),
        more,
    })
}

/// As the Go dispatcher's monitor has it.
#[derive(Debug, Serialize)]
struct Agent {
    name: String,
    status: String,
    repo: String,
    agent: String,
    pr_url: String,
}

async fn agents(door: &Door) -> Result<Vec<Agent>, Refusal> {
    let (all, _) = door.tasks("", LISTED_MAX).await?;
    let there = all.into_iter().filter(|task| !task.removed);
    let agent = |task: Task| Agent {
        name: task.workspace_name,
        status: task.state,
        repo: task.repo,
        agent: task.agent,
        // None is made yet.
        pr_url: String::new(),
    };
    Ok(there.map(agent).collect())
}

async fn end_of_log(door: &Door, task: &Task) -> Result<String, Refusal> {
    let Some(run) = task.runs.last() else {
        return Ok(String::new());
    };
    let read = logs::read(door, task, run, None, Some(LOG_BYTES_MAX)).await?;
    Ok(read.text)
}

fn json(value: &impl Serialize) -> Result<String, Refusal> {
    serde_json::to_string(value).map_err(|error| Refusal::new(format!("write it down: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_written() {
        let id = || "00000000000000aa".to_owned();
        for address in [
            Address::Tasks,
            Address::Agents,
            Address::Task(id()),
            Address::Task("3f".into()),
            Address::Part(id(), Part::Log),
            Address::Part(id(), Part::Diff),
            Address::Part(id(), Part::Prompt),
        ] {
            assert_eq!(Address::of(&address.to_string()), Some(address));
        }
        for foreign in [
            "",
            "dispatch://task",
            "dispatch://tasks/",
            "dispatch://tasks/xyz",
            "dispatch://tasks/3f/",
            "dispatch://tasks/3f/../log",
            "dispatch://tasks/00000000000000aa0",
            "dispatch://tasks/3f/log/more",
            "file:///etc/passwd",
        ] {
            assert_eq!(Address::of(foreign), None, "{foreign}");
        }
    }
}
