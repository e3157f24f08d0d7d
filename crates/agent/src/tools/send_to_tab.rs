//! `send_to_tab`: a word to another agent of the same family, which hears it as this one's.
//! Must not reach anybody else: the door says who that is.

use dispatch_core::{
    grant::Tool as At,
    rules::{Group, Subject},
};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

use super::{Planned, Run, Tool, Wrong, kin::text, schema};

pub(super) const TOOL: Tool = Tool {
    name: "send_to_tab",
    line: "say something to another agent",
    help: "Says something to an agent that you summoned, or to the one that summoned you. It hears it \
           while it works, or is started for it. What it does is not waited for.",
    group: Group::SendToTab,
    safe: false,
    schema: schema::<Input>,
    plan: |given| {
        let input: Input = given.parse()?;
        let subjects = vec![Subject::name(&input.tab_id)];
        Ok(Planned::new(subjects, |run| send(run, input)))
    },
};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Input {
    /// Its agent_id, or the first characters of it, at least 4.
    tab_id: String,
    /// What to say.
    message: String,
}

async fn send(run: Run, input: Input) -> Result<String, Wrong> {
    if input.message.trim().is_empty() {
        return Err(Wrong::new("the message is empty"));
    }
    let way = run.place.way()?;
    let task = way.find_to_speak_to(&input.tab_id).await?;
    let said = json!({"task": task, "text": input.message});
    let spoken = way.ask(At::Say, said).await?;
    let how = text(&spoken, "how")?;
    Ok(format!("said to {}: {how}", input.tab_id))
}
