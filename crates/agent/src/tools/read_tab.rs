//! `read_tab`: how another agent of the same family stands, and what it said last.
//! Must not wait, and must not take what it says for more than data.

use dispatch_core::{
    grant::Tool as At,
    native::{Block, Chunk, Line},
    prompt::untrusted,
    rules::{Group, Subject},
};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

use super::{Planned, Run, Tool, Wrong, kin::text, schema};

/// Of its log, from the end.
const LOG_BYTES: u64 = 64 << 10;
/// Of a log that is none of our own agent's.
const TAIL_CHARS: usize = 2_000;

pub(super) const TOOL: Tool = Tool {
    name: "read_tab",
    line: "see how another agent stands and what it said last",
    help: "Tells how an agent that you summoned stands and what it said last, and does not wait for it.",
    group: Group::ReadTab,
    safe: true,
    schema: schema::<Input>,
    plan: |given| {
        let input: Input = given.parse()?;
        let subjects = vec![Subject::name(&input.tab_id)];
        Ok(Planned::new(subjects, |run| read(run, input)))
    },
};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Input {
    /// Its agent_id, or the first characters of it, at least 4.
    tab_id: String,
}

async fn read(run: Run, input: Input) -> Result<String, Wrong> {
    let way = run.place.way()?;
    let found = way.find(&input.tab_id).await?;
    let state = text(&found, "state")?;
    let said = match found["reason"].as_str() {
        Some(said) => said.to_owned(),
        None if found["runs"].as_array().is_none_or(Vec::is_empty) => String::new(),
        None => {
            let asked = json!({"task": text(&found, "id")?, "bytes": LOG_BYTES});
            let log = way.ask(At::Logs, asked).await?;
            last(&text(&log, "text")?)
        }
    };
    let title = text(&found, "title")?;
    let head = format!("{} ({title:?}) is {state}.", input.tab_id);
    Ok(match said.trim() {
        "" => format!("{head} It has said nothing yet."),
        said => format!(
            "{head}\n{}",
            untrusted("what it said last", said, usize::MAX)
        ),
    })
}

/// The newest text of a log of our own agent; of another one its end.
fn last(log: &str) -> String {
    let lines = log.lines().rev();
    let mut known = false;
    for line in lines.filter_map(|line| serde_json::from_str::<Line>(line).ok()) {
        known = true;
        if let Chunk::Block(Block::Text { text, .. }) = line.chunk {
            return text;
        }
    }
    if known {
        return String::new();
    }
    let skipped = log.chars().count().saturating_sub(TAIL_CHARS);
    log.chars().skip(skipped).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_text_is_what_it_said_last() {
        let block = |text: &str| json!({"n": 1, "step": "1.1", "chunk": {"block": {"text": {"text": text, "raw": {}}}}});
        let running = json!({"n": 2, "step": "1.1", "chunk": {"running": {"call": "c"}}});
        let log = format!(
            "half a line\n{}\n{}\n{running}\n",
            block("one"),
            block("two")
        );
        assert_eq!(last(&log), "two");
        assert_eq!(last(&running.to_string()), "");
        assert_eq!(last("some\nother agent"), "some\nother agent");
    }
}
