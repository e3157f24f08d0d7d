//! `summon`: another agent does a piece of the work, by one of the definitions that there are.
//! Must not keep a person's word waiting: one that is waited for goes on by itself then.

use std::path::Path;

use dispatch_core::{
    definition::{self, REPOSITORY_FOLDER, Scope, Slug},
    grant::Tool as At,
    rules::Group,
};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

use super::{
    Place, Planned, Run, Tool, Wrong,
    kin::{Waited, text, wait},
    schema,
};

pub(super) const TOOL: Tool = Tool {
    name: "summon",
    line: "give a piece of work to another agent",
    help: "Summons an agent by its definition and waits for it; the answer has its agent_id and its \
           last words. It works in a checkout of its own, sees nothing of this conversation, and has \
           no more tools than you. With background it works beside you: you are told when it has \
           ended, and retrieve waits for it. With top_level it stands for itself: it goes on without \
           you, and cannot be retrieved.",
    group: Group::Summon,
    safe: false,
    schema: schema::<Input>,
    plan: |given| {
        let input: Input = given.parse()?;
        let group = match input.top_level {
            true => Group::UserAgent,
            false => Group::Summon,
        };
        let (scope, in_place) = whose(&given.place, &input.agent);
        let subjects = definition::subjects(&input.agent, in_place);
        let head = definition::question_head(&input.agent, scope, input.top_level);
        let planned = Planned::new(subjects, |run| summon(run, input));
        Ok(planned.in_group(group).shown_as(head))
    },
};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Input {
    /// What it is to do, in full.
    task: String,
    /// The name of its definition.
    agent: String,
    /// Only these of its tools.
    #[serde(default)]
    tools: Option<Vec<String>>,
    /// A directory of the repository to work in, below yours. Without it yours.
    #[serde(default)]
    working_directory: Option<String>,
    /// Do not wait for it.
    #[serde(default)]
    background: bool,
    /// For a definition that stands for itself.
    #[serde(default)]
    top_level: bool,
}

/// Whose definition it is, and whether the person has one of that name besides. It may have been
/// written in this run; the engine has the last word in any case.
fn whose(place: &Place, slug: &str) -> (Scope, bool) {
    let known = place.way().ok().and_then(|way| way.listed(slug));
    let here = slug
        .parse::<Slug>()
        .is_ok_and(|slug| lies_in(place.root(), &slug));
    match known {
        Some(one) if one.of_repository => (Scope::Repository, one.in_place),
        Some(_) if here => (Scope::Repository, true),
        None if here => (Scope::Repository, false),
        Some(_) | None => (Scope::Person, false),
    }
}

/// The directory that it works in may be one below the repository's root.
fn lies_in(root: &Path, slug: &Slug) -> bool {
    let folder = REPOSITORY_FOLDER.join("/");
    let files = ["md", "toml"].map(|ending| format!("{folder}/{slug}.{ending}"));
    let has = |at: &Path| files.iter().any(|file| at.join(file).is_file());
    root.ancestors().any(has)
}

async fn summon(run: Run, input: Input) -> Result<String, Wrong> {
    let way = run.place.way()?;
    let asked = json!({
        "task": input.task,
        "handle": true,
        "summon": {
            "agent": input.agent,
            "tools": input.tools,
            "working_directory": input.working_directory,
            "top_level": input.top_level,
        },
    });
    let made = way.ask(At::Dispatch, asked).await?;
    let (task, short) = (text(&made, "task")?, text(&made, "short")?);
    let name = &input.agent;
    let more = if input.top_level {
        format!(
            "{name} has begun. It stands for itself: it goes on without you and cannot be retrieved."
        )
    } else if input.background {
        format!("{name} has begun. You are told when it has ended; retrieve waits for it.")
    } else {
        match wait(&run.place, way, &task).await? {
            Waited::Ended(words) => words,
            Waited::Asks(asks) => format!("{name} waits for an answer of yours: {asks}"),
            Waited::Spoken => format!(
                "Somebody has said something, so {name} goes on by itself. You are told when it has \
                 ended; retrieve waits for it."
            ),
        }
    };
    Ok(format!("agent_id: {}\n{more}", handle(&task, &short)))
}

/// Short, and never too short to be one.
fn handle<'a>(task: &'a str, short: &'a str) -> &'a str {
    match task.get(..8) {
        Some(eight) if short.len() < eight.len() => eight,
        _ => short,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn one_that_was_written_in_this_run_is_the_repositorys() {
        let dir = tempfile::tempdir().unwrap();
        let (below, folder) = (dir.path().join("sub"), dir.path().join(".dispatch/agents"));
        fs::create_dir_all(&below).unwrap();
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("a.md"), "").unwrap();
        for (slug, there) in [("a", true), ("b", false)] {
            let slug = slug.parse().unwrap();
            assert_eq!(lies_in(&below, &slug), there, "{slug}");
        }
    }
}
