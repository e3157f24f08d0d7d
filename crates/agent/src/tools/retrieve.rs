//! `retrieve`: what an agent that was summoned came to, waited for where it still works.
//! Must not tell of one that is not this one's: the door says whose it is.

use dispatch_core::rules::{Group, Subject};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    Planned, Run, Tool, Wrong,
    kin::{Waited, text, wait},
    schema,
};

pub(super) const TOOL: Tool = Tool {
    name: "retrieve",
    line: "wait for an agent that was summoned",
    help: "Waits until an agent that you summoned has ended its turn, and answers with its last words. \
           One that ended before is told again. Commands of run_shell are for shell_jobs.",
    // Whoever was allowed to summon it may hear what came of it.
    group: Group::Read,
    safe: false,
    schema: schema::<Input>,
    plan: |given| {
        let input: Input = given.parse()?;
        let subjects = vec![Subject::name(&input.agent_id)];
        Ok(Planned::new(subjects, |run| retrieve(run, input)))
    },
};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Input {
    /// As summon said it, or its first characters, at least 4.
    agent_id: String,
}

async fn retrieve(run: Run, input: Input) -> Result<String, Wrong> {
    let way = run.place.way()?;
    let found = way.find(&input.agent_id).await?;
    let task = text(&found, "id")?;
    if found["detached"] == true {
        return Err(Wrong::new(format!(
            "retrieve {}: it stands for itself, and nobody retrieves it; read_tab shows how it stands",
            input.agent_id
        )));
    }
    Ok(match wait(&run.place, way, &task).await? {
        Waited::Ended(words) => words,
        Waited::Asks(asks) => format!("It waits for an answer of yours: {asks}"),
        Waited::Spoken => {
            "Somebody has said something, and it still works. You are told when it has \
                           ended; retrieve waits for it."
                .to_owned()
        }
    })
}
