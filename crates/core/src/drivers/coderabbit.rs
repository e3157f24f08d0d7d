//! `coderabbit review --agent`: a reviewer that takes no prompt and says one JSON object a line
//! (<https://docs.coderabbit.ai/cli/agent-mode>). It reads commits; it changes nothing.
//! Must not take silence for praise: findings that are empty because it came to a limit are not
//! clean, and only its `complete` is an end.

use serde_json::Value;

use super::{
    Ask, Driver, Opening, Step, Tail,
    text::{
        AUTH_MARKS, LIMIT_MARKS, duration_ms, has_any, kept_text, notice, plain, retry_after_ms,
        str_at, tool_text,
    },
};
use crate::{
    job::Stdin,
    review::{self, Finding, Severity, Verdict},
    update::{LastWord, Said, Update},
};

const FINDINGS_MAX: usize = 500;
/// Ends that say that the review was made.
const DONE: [&str; 4] = ["", "review_completed", "completed", "success"];

#[derive(Debug, Default)]
pub(super) struct Coderabbit {
    findings: Vec<Finding>,
    /// There were more than we keep.
    cut: bool,
    /// Its `error`, or why its `complete` is none.
    error: String,
    tail: Tail,
    last: Option<LastWord>,
}

impl Driver for Coderabbit {
    fn open(&mut self, ask: &Ask<'_>) -> Opening {
        let mut argv: Vec<String> = [ask.program, "review", "--agent", "--committed"]
            .map(str::to_owned)
            .to_vec();
        if let Some(range) = ask.review {
            argv.extend(["--base-commit".to_owned(), range.base.clone()]);
        }
        // `coderabbit:T` was a type of review before it could have been a model.
        if let Some(kind) = ask.model {
            argv.extend(["--type".to_owned(), kind.to_owned()]);
        }
        argv.extend(ask.args.iter().cloned());
        Opening {
            argv,
            env: Vec::new(),
            stdin: Stdin::Null,
            first: None,
        }
    }

    fn hear(&mut self, line: &str) -> Vec<Step> {
        if line.trim().is_empty() {
            return Vec::new();
        }
        let event = match serde_json::from_str::<Value>(line) {
            Ok(event) if event.is_object() => event,
            Ok(_) | Err(_) => {
                self.tail.push_line(line);
                return vec![Step::Live(line.to_owned())];
            }
        };
        match str_at(&event, "type") {
            "finding" => self.finding(&event),
            "error" => self.error(&event),
            "complete" => self.complete(&event),
            "status" => vec![Step::Live(kept_text(first_text(
                &event,
                &["message", "status", "phase"],
            )))],
            // `review_context`, `heartbeat`, and whatever comes.
            _ => Vec::new(),
        }
    }

    fn say(&mut self, _text: &str) -> Option<Vec<u8>> {
        None
    }

    fn close(&mut self) -> Said {
        let last = self.last.take().unwrap_or(LastWord::Missing {
            expected: "a complete event",
        });
        let text = if last == LastWord::Done {
            let blocking = self.findings.iter().any(|found| found.severity.blocks());
            let verdict = match blocking {
                true => Verdict::Fail,
                false => Verdict::Pass,
            };
            let note = if self.cut {
                format!("only the first {FINDINGS_MAX} findings are kept")
            } else {
                format!("{} findings", self.findings.len())
            };
            review::block(verdict, &self.findings, &note)
        } else if self.error.is_empty() {
            self.tail.text()
        } else {
            std::mem::take(&mut self.error)
        };
        Said {
            last,
            text,
            session: None,
            usage: None,
        }
    }
}

impl Coderabbit {
    fn finding(&mut self, event: &Value) -> Vec<Step> {
        if self.findings.len() >= FINDINGS_MAX {
            self.cut = true;
            return Vec::new();
        }
        let file = str_at(event, "fileName");
        let text = first_text(event, &["codegenInstructions", "comment", "title"]);
        let text = if text.is_empty() {
            plain(event)
        } else {
            text.to_owned()
        };
        let found = Finding {
            severity: Severity::of(str_at(event, "severity")),
            file: (!file.is_empty()).then(|| tool_text(file)),
            line: event["startLine"].as_u64().or(event["line"].as_u64()),
            text: tool_text(&text),
        };
        let told = found.to_string();
        self.findings.push(found);
        vec![Step::Said(Update::Text { text: told })]
    }

    fn error(&mut self, event: &Value) -> Vec<Step> {
        let message = first_text(event, &["message", "error", "details"]);
        let message = if message.is_empty() {
            plain(event)
        } else {
            message.to_owned()
        };
        self.error = kept_text(&message);
        self.last = Some(last_word(event, &message));
        vec![Step::Said(notice(&message))]
    }

    fn complete(&mut self, event: &Value) -> Vec<Step> {
        // An error before it is the truth; what is complete then is the attempt.
        if self.last.is_some() {
            return vec![Step::Done];
        }
        let status = str_at(event, "status");
        if DONE.contains(&status) && event["error"].is_null() {
            self.last = Some(LastWord::Done);
            return vec![Step::Done];
        }
        let message = first_text(event, &["message", "reason", "error"]);
        self.error = kept_text(&format!("the review was not made: {status} {message}"));
        self.last = Some(last_word(event, message));
        vec![Step::Said(notice(&self.error)), Step::Done]
    }
}

fn first_text<'a>(event: &'a Value, names: &[&str]) -> &'a str {
    let mut texts = names.iter().map(|name| str_at(event, name));
    texts
        .find(|text| !text.trim().is_empty())
        .unwrap_or_default()
}

fn last_word(event: &Value, message: &str) -> LastWord {
    let lower = event.to_string().to_ascii_lowercase();
    if has_any(&lower, LIMIT_MARKS) || lower.contains("rate-limit") {
        let wait = str_at(&event["metadata"], "waitTime").to_ascii_lowercase();
        return LastWord::RateLimited {
            retry_after_ms: retry_after_ms(message).or_else(|| duration_ms(&wait)),
            retry_at: None,
        };
    }
    if has_any(&lower, AUTH_MARKS)
        || lower.contains("\"auth")
        || lower.contains("not authenticated")
    {
        return LastWord::Auth;
    }
    LastWord::Model
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ask::Permissions;
    use crate::review::Range;

    fn range() -> Range {
        Range {
            base: "a".repeat(40),
            head: "b".repeat(40),
        }
    }

    fn heard(lines: &[&str]) -> Said {
        let mut rabbit = Coderabbit::default();
        for line in lines {
            rabbit.hear(line);
        }
        rabbit.close()
    }

    #[test]
    fn it_is_asked_for_the_range_and_gets_no_prompt() {
        let range = range();
        let opening = Coderabbit::default().open(&Ask {
            prompt: "p",
            whole: "p",
            program: "coderabbit",
            args: &["--type".to_owned(), "committed".to_owned()],
            cwd: "/w",
            folders: &[],
            home: "/h",
            resume: None,
            effort: None,
            review: Some(&range),
            model: None,
            profile: None,
            native: None,
            unfenced: false,
            permissions: Permissions::Allow,
            tools: None,
        });
        let want = format!(
            "coderabbit review --agent --committed --base-commit {} --type committed",
            range.base
        );
        assert_eq!(opening.argv.join(" "), want);
        assert_eq!(opening.stdin, Stdin::Null);
    }

    #[test]
    fn what_it_found_is_a_review() {
        let complete = r#"{"type":"complete","status":"review_completed","findings":1}"#;
        for (severity, verdict) in [("critical", Verdict::Fail), ("trivial", Verdict::Pass)] {
            let finding = format!(
                r#"{{"type":"finding","severity":"{severity}","fileName":"a.rs","codegenInstructions":"","comment":"Off by one"}}"#
            );
            let said = heard(&[r#"{"type":"heartbeat"}"#, &finding, complete]);
            assert_eq!(said.last, LastWord::Done);
            let review = review::read(&said.text, range());
            assert_eq!(review.verdict, verdict);
            assert_eq!(review.findings[0].file.as_deref(), Some("a.rs"));
            assert_eq!(review.findings[0].text, "Off by one");
        }
        let said = heard(&[complete]);
        assert_eq!(review::read(&said.text, range()).verdict, Verdict::Pass);
    }

    /// ai-dev-framework-template #1385: a limit and no findings was read as clean.
    #[test]
    fn a_limit_without_findings_is_not_clean() {
        let limited = |ms| LastWord::RateLimited {
            retry_after_ms: ms,
            retry_at: None,
        };
        for (lines, want) in [
            (
                vec![
                    r#"{"type":"error","errorType":"rate_limit","message":"Rate limit exceeded, please try after 12 minutes","metadata":{"waitTime":"12 minutes and 5 seconds"}}"#,
                    r#"{"type":"complete","findings":0}"#,
                ],
                limited(Some(725_000)),
            ),
            (
                vec![
                    r#"{"type":"complete","status":"rate_limited","message":"rate limit: retry in 2 minutes","findings":0}"#,
                ],
                limited(Some(120_000)),
            ),
            (
                vec![r#"{"type":"complete","status":"review_skipped","findings":0}"#],
                LastWord::Model,
            ),
            (
                vec![r#"{"type":"error","errorType":"auth","message":"Not logged in"}"#],
                LastWord::Auth,
            ),
            (
                vec![r#"{"type":"finding","severity":"info","comment":"x"}"#],
                LastWord::Missing {
                    expected: "a complete event",
                },
            ),
        ] {
            let said = heard(&lines);
            assert_eq!(said.last, want, "{lines:?}");
            let review = review::read(&said.text, range());
            assert_eq!(review.verdict, Verdict::NotVerified, "{lines:?}");
        }
    }
}
