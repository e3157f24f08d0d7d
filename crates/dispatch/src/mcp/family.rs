//! Tools as an agent of a run has them: only those of its grant, and a wait that delivers ends.
//! Must not decide what it may: the routes do, and a tool that is not shown is refused all the same.

use dispatch_core::id::TaskId;

use super::{
    door::{Door, Refusal},
    find, own,
    table::{Call, Row},
};
use crate::api::{
    family::{Door as Granted, Waited},
    mcp::{Handle, Until, WAIT_S, WAIT_S_MAX, WaitInput, WaitOutput},
    request::{Wait, WaitFor},
};

/// The rows that are of use to whoever is behind this door.
pub(super) async fn shown(
    door: &Door,
    rows: impl Iterator<Item = &'static Row>,
) -> Result<Vec<&'static Row>, Refusal> {
    if !door.is_an_agents() {
        return Ok(rows.collect());
    }
    let granted: Granted = door.get("/v1/door").await?;
    if granted.run.is_none() {
        // A person's program that came this way: its token says what it may.
        return Ok(rows.collect());
    }
    let has = |row: &&Row| {
        let grant = granted.grant.as_ref();
        grant.is_some_and(|grant| grant.tools.iter().any(|tool| tool.word() == row.name))
    };
    Ok(own::TOOLS.iter().filter(has).collect())
}

/// Delivers what it answers: an end is in one answer, or told by us, and never lost between the two.
pub(super) async fn wait(call: &Call, input: WaitInput) -> Result<WaitOutput, Refusal> {
    let mut tasks = Vec::new();
    for id in &input.tasks {
        let id = id.trim().to_ascii_lowercase();
        // A whole id needs no tool but this one.
        tasks.push(match id.parse::<TaskId>() {
            Ok(whole) => whole.to_string(),
            Err(_) => find::by_id(&call.door, &id).await?.id,
        });
    }
    let asked = Wait {
        tasks,
        mode: match input.mode {
            Until::All => WaitFor::All,
            Until::Any => WaitFor::Any,
        },
        timeout_s: Some(input.timeout_s.unwrap_or(WAIT_S).min(WAIT_S_MAX)),
    };
    let waited: Waited = call.door.look("/v1/wait", &asked).await?;
    Ok(WaitOutput {
        done: waited.done,
        tasks: waited
            .tasks
            .iter()
            .map(|one| Handle::from(&one.task))
            .collect(),
        words: waited.words,
    })
}
