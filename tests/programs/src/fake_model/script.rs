//! Scripts: reading, checking and stepping through them. A script that is wrong in any way is an
//! error that says where and what would be right; nothing in it is guessed or ignored. It must not
//! know any wire format.

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use hyper::header::{HeaderName, HeaderValue};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::{collections::BTreeMap, io::Read as _, path::Path};

const MAX_BYTES: u64 = 4 << 20;
const MAX_STEPS: usize = 1000;
const MAX_BLOCKS: usize = 100;
const MAX_TIMES: u32 = 100_000;
const MAX_SLOW_MS: u64 = 60_000;

/// One step as it is written in the file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WrittenStep {
    thinking: Option<String>,
    text: Option<String>,
    tool: Option<String>,
    command: Option<String>,
    path: Option<String>,
    content: Option<String>,
    args: Option<Map<String, Value>>,
    blocks: Vec<WrittenBlock>,
    usage: Option<Usage>,
    status: Option<u16>,
    message: Option<String>,
    error_type: Option<String>,
    retry_after_s: Option<u64>,
    headers: BTreeMap<String, String>,
    hang: bool,
    stall: bool,
    malformed: bool,
    cut: Option<Cut>,
    cut_after_bytes: Option<usize>,
    slow_ms: Option<u64>,
    repeat: bool,
    times: Option<u32>,
}

/// One entry of a step's `blocks`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WrittenBlock {
    thinking: Option<String>,
    text: Option<String>,
    tool: Option<String>,
    command: Option<String>,
    path: Option<String>,
    content: Option<String>,
    args: Option<Map<String, Value>>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Cut {
    BeforeAnswer,
    MidStream,
}

/// The token counts that an answer reports. `input` leaves out what came from or went to a cache.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Usage {
    pub(super) input: u64,
    pub(super) output: u64,
    pub(super) cache_read: u64,
    pub(super) cache_write: u64,
    pub(super) reasoning: u64,
}

impl Default for Usage {
    fn default() -> Self {
        Self {
            input: 100,
            output: 20,
            cache_read: 0,
            cache_write: 0,
            reasoning: 0,
        }
    }
}

/// A tool that the script wants called. `name` is `shell`, `write` or the name of an offered tool.
#[derive(Debug, Clone, Default)]
pub(super) struct Wish {
    pub(super) name: String,
    pub(super) command: Option<String>,
    pub(super) path: Option<String>,
    pub(super) content: Option<String>,
    pub(super) args: Map<String, Value>,
}

#[derive(Debug, Clone)]
pub(super) enum Block {
    Thinking(String),
    Text(String),
    Tool(Wish),
}

/// Where a connection is dropped while an answer is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Break {
    Nowhere,
    /// Not a byte of an answer, not even its status line.
    BeforeAnswer,
    /// After this many bytes of the body.
    AfterBytes(usize),
    /// After half of the body's bytes.
    HalfWay,
}

#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) blocks: Vec<Block>,
    pub(super) usage: Usage,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) slow_ms: u64,
    pub(super) breaks: Break,
    pub(super) stall: bool,
    pub(super) malformed: bool,
}

#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub(super) status: u16,
    pub(super) message: String,
    pub(super) error_type: Option<String>,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) slow_ms: u64,
}

#[derive(Debug, Clone)]
pub(super) enum Action {
    Answer(Answer),
    Fail(Failure),
    Hang,
}

#[derive(Debug)]
struct Step {
    action: Action,
    /// How many requests this step answers; none means all that follow.
    times: Option<u32>,
}

/// A checked script.
#[derive(Debug)]
pub struct Script {
    steps: Vec<Step>,
}

impl Script {
    /// Reads and checks a script file.
    pub fn read(path: &Path) -> Result<Self> {
        let inner = || {
            let mut text = String::new();
            std::fs::File::open(path)?
                .take(MAX_BYTES + 1)
                .read_to_string(&mut text)?;
            ensure!(
                text.len() as u64 <= MAX_BYTES,
                "a script has at most {MAX_BYTES} bytes"
            );
            Self::parse(&text)
        };
        inner().with_context(|| format!("script {}", path.display()))
    }

    pub(super) fn parse(text: &str) -> Result<Self> {
        let written: Vec<Value> =
            serde_json::from_str(text).context("a script is a JSON list of steps")?;
        ensure!(!written.is_empty(), "a script has at least one step");
        ensure!(
            written.len() <= MAX_STEPS,
            "a script has at most {MAX_STEPS} steps"
        );
        let last = written.len();
        let steps = written
            .into_iter()
            .zip(1..)
            .map(|(step, number)| {
                let inner = || {
                    let step: WrittenStep = serde_json::from_value(step)?;
                    ensure!(
                        !step.repeat || number == last,
                        "only the last step may `repeat`"
                    );
                    step.check()
                };
                inner().map_err(|error: anyhow::Error| anyhow!("step {number}: {error:#}"))
            })
            .collect::<Result<_>>()?;
        Ok(Self { steps })
    }

    /// The step (counted from 1) that answers the request after `served` others.
    pub(super) fn step(&self, served: u64) -> Option<(usize, &Action)> {
        let mut left = served;
        for (step, number) in self.steps.iter().zip(1..) {
            match step.times {
                Some(times) if left >= u64::from(times) => left -= u64::from(times),
                _ => return Some((number, &step.action)),
            }
        }
        None
    }

    pub(super) fn len(&self) -> usize {
        self.steps.len()
    }
}

impl WrittenStep {
    fn check(mut self) -> Result<Step> {
        ensure!(
            !(self.repeat && self.times.is_some()),
            "`repeat` and `times` exclude each other"
        );
        let times = match self.times {
            _ if self.repeat => None,
            Some(times) => {
                ensure!(
                    (1..=MAX_TIMES).contains(&times),
                    "`times` is 1 to {MAX_TIMES}"
                );
                Some(times)
            }
            None => Some(1),
        };
        let slow_ms = self.slow_ms.unwrap_or(0);
        ensure!(slow_ms <= MAX_SLOW_MS, "`slow_ms` is at most {MAX_SLOW_MS}");
        let headers = self.headers()?;
        let blocks = self.blocks()?;
        let breaks = match (self.cut, self.cut_after_bytes) {
            (None, None) => Break::Nowhere,
            (Some(Cut::BeforeAnswer), None) => Break::BeforeAnswer,
            (Some(Cut::MidStream), None) => Break::HalfWay,
            (None, Some(bytes)) => Break::AfterBytes(bytes),
            (Some(_), Some(_)) => bail!("`cut` and `cut_after_bytes` exclude each other"),
        };
        let fault = self.stall || self.malformed || breaks != Break::Nowhere;
        let answers = !blocks.is_empty() || self.usage.is_some() || fault;
        let fails = self.status.is_some();
        ensure!(
            fails || (self.message.is_none() && self.error_type.is_none()),
            "`message` and `error_type` belong to a `status`"
        );
        ensure!(
            fails || self.retry_after_s.is_none(),
            "`retry_after_s` belongs to a `status`; use `headers` otherwise"
        );
        ensure!(
            u8::from(answers) + u8::from(fails) + u8::from(self.hang) == 1,
            "a step has just one of: an answer (thinking, text, tool or blocks, with usage, cut, \
             cut_after_bytes, stall or malformed), a `status`, or `hang`"
        );
        let action = if let Some(status) = self.status {
            ensure!((400..=599).contains(&status), "`status` is 400 to 599");
            let message = self
                .message
                .unwrap_or_else(|| format!("Scripted failure {status}"));
            Action::Fail(Failure {
                status,
                message,
                error_type: self.error_type,
                headers,
                slow_ms,
            })
        } else if self.hang {
            ensure!(headers.is_empty(), "`hang` has no `headers`");
            ensure!(slow_ms == 0, "`hang` has no `slow_ms`");
            Action::Hang
        } else {
            ensure!(
                !(self.stall && self.malformed),
                "`stall` and `malformed` exclude each other"
            );
            ensure!(
                !(self.stall || self.malformed) || breaks == Break::Nowhere,
                "`cut` excludes `stall` and `malformed`"
            );
            let blocks = if blocks.is_empty() {
                vec![Block::Text(
                    "An answer that nobody should get whole.".to_owned(),
                )]
            } else {
                blocks
            };
            Action::Answer(Answer {
                blocks,
                usage: self.usage.unwrap_or_default(),
                headers,
                slow_ms,
                breaks,
                stall: self.stall,
                malformed: self.malformed,
            })
        };
        Ok(Step { action, times })
    }

    fn headers(&self) -> Result<Vec<(HeaderName, HeaderValue)>> {
        let mut headers = Vec::new();
        if let Some(seconds) = self.retry_after_s {
            headers.push((
                HeaderName::from_static("retry-after"),
                HeaderValue::from(seconds),
            ));
        }
        for (name, value) in &self.headers {
            let parsed = HeaderName::try_from(name.as_str())
                .with_context(|| format!("`headers`: {name:?} is no header name"))?;
            ensure!(
                !["content-length", "transfer-encoding", "connection"].contains(&parsed.as_str()),
                "`headers`: {name} is set by the server itself"
            );
            let value = HeaderValue::try_from(value.as_str())
                .with_context(|| format!("`headers`: the value of {name} cannot be sent"))?;
            headers.push((parsed, value));
        }
        Ok(headers)
    }

    fn blocks(&mut self) -> Result<Vec<Block>> {
        let mut blocks = Vec::new();
        WrittenBlock {
            thinking: self.thinking.take(),
            text: self.text.take(),
            tool: self.tool.take(),
            command: self.command.take(),
            path: self.path.take(),
            content: self.content.take(),
            args: self.args.take(),
        }
        .check(&mut blocks)?;
        ensure!(
            blocks.is_empty() || self.blocks.is_empty(),
            "`blocks` excludes thinking, text and tool beside it"
        );
        ensure!(
            self.blocks.len() <= MAX_BLOCKS,
            "`blocks` has at most {MAX_BLOCKS} entries"
        );
        for (block, number) in std::mem::take(&mut self.blocks).into_iter().zip(1..) {
            let before = blocks.len();
            block
                .check(&mut blocks)
                .with_context(|| format!("block {number}"))?;
            ensure!(
                blocks.len() > before,
                "block {number} has no thinking, text or tool"
            );
        }
        Ok(blocks)
    }
}

impl WrittenBlock {
    fn check(self, into: &mut Vec<Block>) -> Result<()> {
        into.extend(self.thinking.map(Block::Thinking));
        into.extend(self.text.map(Block::Text));
        let Some(name) = self.tool else {
            ensure!(
                self.command.is_none()
                    && self.path.is_none()
                    && self.content.is_none()
                    && self.args.is_none(),
                "`command`, `path`, `content` and `args` belong to a `tool`"
            );
            return Ok(());
        };
        let args = self.args.unwrap_or_default();
        match name.as_str() {
            "shell" => ensure!(self.command.is_some(), "the tool `shell` needs a `command`"),
            "write" => ensure!(
                self.path.is_some() && self.content.is_some(),
                "the tool `write` needs a `path` and a `content`"
            ),
            _ => {}
        }
        into.push(Block::Tool(Wish {
            name,
            command: self.command,
            path: self.path,
            content: self.content,
            args,
        }));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        format!("{:#}", Script::parse(text).unwrap_err())
    }

    #[test]
    fn steps_are_served_in_order_and_the_last_may_repeat() {
        let script = Script::parse(
            r#"[{"status":429,"times":2},{"text":"a"},{"thinking":"t","text":"b","repeat":true}]"#,
        )
        .unwrap();
        let served: Vec<_> = (0..6).map(|n| script.step(n).unwrap().0).collect();
        assert_eq!(served, [1, 1, 2, 3, 3, 3]);
        assert!(
            Script::parse(r#"[{"text":"a"}]"#)
                .unwrap()
                .step(1)
                .is_none()
        );
    }

    #[test]
    fn an_unknown_field_is_named_with_those_that_exist() {
        let said = refusal(r#"[{"text":"a"},{"txt":"b"}]"#);
        assert!(said.starts_with("step 2: unknown field `txt`, expected one of `thinking`"));
        assert!(said.contains("`cut_after_bytes`"));
        assert!(refusal(r#"[{"blocks":[{"slow":1}]}]"#).contains("expected one of"));
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        for (text, part) in [
            ("[]", "at least one step"),
            ("{}", "JSON list"),
            ("[{}]", "just one of"),
            (r#"[{"text":"a","status":500}]"#, "just one of"),
            (
                r#"[{"text":"a","repeat":true},{"text":"b"}]"#,
                "only the last",
            ),
            (r#"[{"status":200}]"#, "400 to 599"),
            (r#"[{"tool":"shell"}]"#, "needs a `command`"),
            (
                r#"[{"tool":"write","path":"x"}]"#,
                "needs a `path` and a `content`",
            ),
            (r#"[{"command":"x"}]"#, "belong to a `tool`"),
            (
                r#"[{"text":"x","retry_after_s":1}]"#,
                "belongs to a `status`",
            ),
            (
                r#"[{"status":500,"headers":{"content-length":"1"}}]"#,
                "server itself",
            ),
            (
                r#"[{"cut":"mid_stream","cut_after_bytes":1}]"#,
                "exclude each other",
            ),
            (
                r#"[{"cut":"later"}]"#,
                "expected `before_answer` or `mid_stream`",
            ),
            (r#"[{"blocks":[{}]}]"#, "has no thinking"),
        ] {
            let said = refusal(text);
            assert!(said.contains(part), "{text}: {said}");
        }
    }
}
