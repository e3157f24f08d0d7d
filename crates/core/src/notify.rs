//! Notification hooks: which events a hook is told of, in which words, and when it is tried again.
//! Must not deliver anything and must not keep a position in the log; that is I/O.
//!
//! To add a way: a variant of [`Way`] with its keys in `Hook::try_from`, and an arm in
//! `dispatch::notify::send`.

use serde::{Deserialize, Serialize};

use crate::{
    ask::{Ask, shown},
    config::EnvValue,
    event::Kind,
    id::AgentName,
    outcome::Outcome,
    run::RunCause,
    state::Task,
};

const TITLE_CHARS: usize = 120;
/// More is for `dispatch show`: a notice is read on a lock screen.
const TEXT_CHARS: usize = 600;
/// Longer pauses help nobody: what comes late is dropped anyway.
const PAUSE_MS_MAX: u64 = 300_000;

/// What a hook can be told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Occasion {
    Completed,
    Blocked,
    Failed,
    Stopped,
    Lost,
    /// A pool pauses because its provider said so, or its runs fail in a row.
    Paused,
    /// Most of a budget is used.
    Budget,
    /// An agent waits for a permission.
    Asked,
}

impl Occasion {
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Blocked => "blocked",
            Self::Failed => "failed",
            Self::Stopped => "stopped",
            Self::Lost => "lost",
            Self::Paused => "paused",
            Self::Budget => "budget",
            Self::Asked => "asked",
        }
    }

    /// What an event is an occasion for; most are none.
    #[must_use]
    pub fn of(kind: &Kind) -> Option<Self> {
        match kind {
            Kind::Finished { outcome, .. } => Some(match outcome {
                Outcome::Completed { .. } => Self::Completed,
                Outcome::Blocked { .. } => Self::Blocked,
                Outcome::Failed(_) => Self::Failed,
                Outcome::Stopped(_) => Self::Stopped,
                Outcome::Lost => Self::Lost,
            }),
            Kind::PoolPaused { .. } => Some(Self::Paused),
            Kind::BudgetWarned { .. } => Some(Self::Budget),
            Kind::PermissionAsked { .. } => Some(Self::Asked),
            _ => None,
        }
    }
}

/// How a notice gets out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// `notify-send` on this machine.
    Desktop,
    /// A text to `url/topic`, as ntfy takes it.
    Ntfy {
        url: EnvValue,
        topic: String,
        token: Option<EnvValue>,
    },
    /// JSON, signed when there is a secret.
    Webhook {
        url: EnvValue,
        secret: Option<EnvValue>,
    },
    /// A program of the person's, outside any fence, with JSON on its standard input.
    Command { argv: Vec<String> },
}

impl Way {
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Desktop => "desktop",
            Self::Ntfy { .. } => "ntfy",
            Self::Webhook { .. } => "webhook",
            Self::Command { .. } => "command",
        }
    }
}

/// One `[notify.NAME]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Table")]
pub struct Hook {
    pub way: Way,
    pub on: Vec<Occasion>,
    /// Only tasks of these: a whole path or URL, or its last part. Empty: all.
    pub repos: Vec<String>,
    pub agents: Vec<AgentName>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum KindWord {
    Desktop,
    Ntfy,
    Webhook,
    Command,
}

/// As it is written.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    kind: KindWord,
    on: Vec<Occasion>,
    #[serde(default)]
    repos: Vec<String>,
    #[serde(default)]
    agents: Vec<AgentName>,
    url: Option<EnvValue>,
    topic: Option<String>,
    token: Option<EnvValue>,
    secret: Option<EnvValue>,
    command: Option<Vec<String>>,
}

impl Table {
    /// Keys that are there and belong to another kind.
    fn foreign(&self, own: &[&str]) -> Option<&'static str> {
        let given = [
            ("url", self.url.is_some()),
            ("topic", self.topic.is_some()),
            ("token", self.token.is_some()),
            ("secret", self.secret.is_some()),
            ("command", self.command.is_some()),
        ];
        let foreign = |(key, there): &(&'static str, bool)| *there && !own.contains(key);
        given.into_iter().find(foreign).map(|(key, _)| key)
    }
}

impl TryFrom<Table> for Hook {
    type Error = String;

    fn try_from(table: Table) -> Result<Self, String> {
        let (word, own): (_, &[&str]) = match table.kind {
            KindWord::Desktop => ("desktop", &[]),
            KindWord::Ntfy => ("ntfy", &["url", "topic", "token"]),
            KindWord::Webhook => ("webhook", &["url", "secret"]),
            KindWord::Command => ("command", &["command"]),
        };
        if let Some(key) = table.foreign(own) {
            return Err(format!("kind {word} takes no `{key}`"));
        }
        if table.on.is_empty() {
            return Err("`on` is empty, so it would never be told anything".to_owned());
        }
        let way = match table.kind {
            KindWord::Desktop => Way::Desktop,
            KindWord::Ntfy => Way::Ntfy {
                url: url(table.url)?,
                topic: topic(table.topic)?,
                token: secret("token", table.token)?,
            },
            KindWord::Webhook => Way::Webhook {
                url: url(table.url)?,
                secret: secret("secret", table.secret)?,
            },
            KindWord::Command => Way::Command {
                argv: table
                    .command
                    .filter(|argv| argv.first().is_some_and(|program| !program.is_empty()))
                    .ok_or("`command` is missing: an array of a program and its arguments")?,
            },
        };
        Ok(Self {
            way,
            on: table.on,
            repos: table.repos,
            agents: table.agents,
        })
    }
}

fn url(value: Option<EnvValue>) -> Result<EnvValue, String> {
    let value = value.ok_or("`url` is missing")?;
    if let EnvValue::Literal(text) = &value {
        check_url(text)?;
    }
    Ok(value)
}

/// What a hook may post to. The text itself is never quoted: many webhooks are a secret as a whole.
///
/// # Errors
/// With the rule that it breaks.
pub fn check_url(text: &str) -> Result<(), String> {
    let rest = ["https://", "http://"]
        .iter()
        .find_map(|scheme| text.strip_prefix(scheme));
    let Some(rest) = rest else {
        return Err("`url` begins with neither https:// nor http://".to_owned());
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.is_empty() {
        return Err("`url` names no host".to_owned());
    }
    if authority.contains('@') {
        return Err("`url` holds a login; give it as `token` or in the path".to_owned());
    }
    if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err("`url` holds a blank or a control character".to_owned());
    }
    Ok(())
}

/// The part of a path that ntfy allows.
fn topic(text: Option<String>) -> Result<String, String> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    match text {
        Some(topic) if !topic.is_empty() && topic.chars().all(good) => Ok(topic),
        Some(_) => Err("`topic` is made of letters, digits, '-' and '_'".to_owned()),
        None => Err("`topic` is missing".to_owned()),
    }
}

/// A secret is never written into the configuration itself.
fn secret(key: &str, value: Option<EnvValue>) -> Result<Option<EnvValue>, String> {
    match value {
        Some(EnvValue::Literal(_)) => Err(format!(
            "`{key}` is a secret: {{ from = \"VAR\" }}, {{ file = \"/absolute/path\" }} or \
             {{ command = [\"program\"] }}"
        )),
        other => Ok(other),
    }
}

impl Hook {
    /// Whether it is told. An end that Dispatch itself tries again is none: nobody has to act.
    #[must_use]
    pub fn wants(&self, occasion: Occasion, task: Option<&Task>, run: Option<u32>) -> bool {
        if !self.on.contains(&occasion) {
            return false;
        }
        let Some(task) = task else {
            return self.repos.is_empty() && self.agents.is_empty();
        };
        let repo = task.spec.repo.trim_end_matches('/');
        let last = repo.rsplit(['/', ':']).next().unwrap_or(repo);
        let last = last.strip_suffix(".git").unwrap_or(last);
        let named = |name: &String| {
            let name = name.trim_end_matches('/');
            name == repo || name == last
        };
        (self.repos.is_empty() || self.repos.iter().any(named))
            && (self.agents.is_empty() || self.agents.contains(&task.spec.agent))
            && !run.is_some_and(|run| tried_again(task, run) || parked(task, run))
    }
}

/// Its task waits for what it has asked for, and goes on by itself.
fn parked(task: &Task, run: u32) -> bool {
    task.runs.iter().any(|one| one.n == run && one.parked)
}

/// The run after it is one that nobody asked for.
fn tried_again(task: &Task, run: u32) -> bool {
    task.runs.iter().any(|next| match next.cause {
        RunCause::RetryOf { n, by_person } => n == run && !by_person,
        RunCause::Dispatched
        | RunCause::Answer { .. }
        | RunCause::Said { .. }
        | RunCause::Ends
        | RunCause::Resumed { .. } => false,
    })
}

/// Nothing is left to do about it: it was answered before anybody could be told.
#[must_use]
pub fn is_over(kind: &Kind, task: Option<&Task>) -> bool {
    match kind {
        Kind::PermissionAsked { ask, .. } => {
            let found = task.and_then(|task| task.ask(*ask));
            !found.is_some_and(Ask::is_open)
        }
        _ => false,
    }
}

/// A notice in words: one line that says what happened, and what there is to read about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Words {
    /// ASCII, so that a header can carry it.
    pub title: String,
    pub text: String,
}

/// What a person reads. `short` names the task.
#[must_use]
pub fn words(kind: &Kind, task: Option<(&Task, &str)>) -> Option<Words> {
    let about = |text: String| match task {
        Some((task, _)) => format!("{}\n{text}", one_line(&task.spec.title, TITLE_CHARS)),
        None => text,
    };
    let of_task = |what: &str| match task {
        Some((_, short)) => format!("dispatch: {short} {what}"),
        None => format!("dispatch: {what}"),
    };
    let (title, text) = match kind {
        Kind::Finished { outcome, .. } => (
            of_task(outcome.word()),
            about(one_line(&outcome.reason(), TEXT_CHARS)),
        ),
        Kind::PoolPaused { pool, reason, .. } => (
            format!("dispatch: pool {pool} paused"),
            one_line(reason, TEXT_CHARS),
        ),
        Kind::PermissionAsked {
            ask, tool, input, ..
        } => (
            of_task("asks for permission"),
            about(one_line(
                &shown(&format!("{ask}: {tool} {input}")),
                TEXT_CHARS,
            )),
        ),
        Kind::BudgetWarned { what, spent } => (
            of_task("budget"),
            about(one_line(
                &format!("budget of the {what}: {spent} spent"),
                TEXT_CHARS,
            )),
        ),
        _ => return None,
    };
    let text = text.trim_end().to_owned();
    Some(Words { title, text })
}

/// Without control characters: what an agent wrote goes to terminals and notification servers.
fn one_line(text: &str, chars: usize) -> String {
    let mut out = String::new();
    for (n, c) in text.trim().chars().enumerate() {
        if n == chars {
            out.push('…');
            break;
        }
        out.push(if c.is_control() { ' ' } else { c });
    }
    out
}

/// The pause after the n-th try that failed, the first being 1.
#[must_use]
pub fn pause_ms(retry_ms: u64, tries: u32) -> u64 {
    let doubled = 2_u64.saturating_pow(tries.saturating_sub(1));
    retry_ms.saturating_mul(doubled).min(PAUSE_MS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::{Config, Layer, load},
        event::{Event, Subject, Verified},
        id::{RunId, TaskId},
        outcome::{Failure, Stop},
        state::State,
        task::{Base, ChecksAsked, Expects, Labels, Placement, TaskSpec, Terms, Wrap},
    };

    fn loaded(text: &str) -> Result<Config, String> {
        let layer = Layer {
            source: "mine",
            text,
        };
        load(&[layer]).map(|(config, _)| config).map_err(|all| {
            let lines: Vec<String> = all.iter().map(ToString::to_string).collect();
            lines.join("\n")
        })
    }

    fn hook(more: &str) -> Hook {
        let text = format!("[notify.me]\nkind = \"desktop\"\non = [\"failed\", \"lost\"]\n{more}");
        let config = loaded(&text).unwrap();
        config.notify[&"me".parse().unwrap()].clone()
    }

    /// One task whose first run has ended, and what came after.
    fn ended(outcome: Outcome, more: Vec<(u32, Kind)>) -> State {
        let task = TaskId::from_bits(0x3f);
        let spec = TaskSpec {
            title: "Mend \u{1b}[2Jit".into(),
            text: "Mend it".into(),
            repo: "https://forge.invalid/org/api.git".into(),
            base: Base::Head,
            agent: "claude".parse().unwrap(),
            pool: "default".parse().unwrap(),
            placement: Placement::of(Wrap::Host),
            expects: Expects::Either,
            checks: ChecksAsked::None,
            review_base: None,
            workspace: None,
            parent: None,
            labels: Labels::default(),
            terms: Terms::default(),
            guide: crate::prompt::Guide::default(),
            turn: crate::task::Turn::default(),
            limits: crate::limits::Lowered::default(),
        };
        let created = Kind::TaskCreated {
            spec: Box::new(spec),
            short: "3f".into(),
        };
        let mut kinds = vec![(0, created)];
        let cause = RunCause::Dispatched;
        kinds.push((1, Kind::RunQueued { cause }));
        let verified = Verified::NotVerified;
        kinds.push((1, Kind::Finished { outcome, verified }));
        kinds.extend(more);
        let mut state = State::default();
        for (seq, (n, kind)) in (1..).zip(kinds) {
            let subject = match n {
                0 => Subject::Task(task),
                n => Subject::Run(RunId { task, n }),
            };
            let event = Event {
                seq,
                at: 1,
                subject,
                kind,
            };
            state.apply(&event).unwrap();
        }
        state
    }

    fn only(state: &State) -> &Task {
        state.tasks().next().unwrap()
    }

    #[test]
    fn a_hook_is_told_what_it_asked_for() {
        let state = ended(Outcome::Lost, Vec::new());
        let task = only(&state);
        assert!(hook("").wants(Occasion::Lost, Some(task), Some(1)));
        assert!(!hook("").wants(Occasion::Completed, Some(task), Some(1)));
        for (more, wanted) in [
            ("repos = [\"api\"]", true),
            ("repos = [\"https://forge.invalid/org/api.git/\"]", true),
            ("repos = [\"web\"]", false),
            ("agents = [\"claude\"]", true),
            ("agents = [\"codex\"]", false),
            ("repos = [\"api\"]\nagents = [\"codex\"]", false),
        ] {
            let got = hook(more).wants(Occasion::Lost, Some(task), Some(1));
            assert_eq!(got, wanted, "{more}");
        }
        // What is about no task is about no repository either.
        assert!(hook("").wants(Occasion::Failed, None, None));
        assert!(!hook("repos = [\"api\"]").wants(Occasion::Failed, None, None));
    }

    #[test]
    fn an_ask_is_told_while_it_waits() {
        use crate::{
            ask::{AskId, By},
            drivers::DriverKind,
            message::Sender,
        };
        let asked = Kind::PermissionAsked {
            ask: AskId(1),
            tool: "Bash".into(),
            input: "make\u{1b}[2J".into(),
            owner: Sender::Person,
            until: 9,
        };
        let cause = RunCause::Said { by_person: true };
        let started = Kind::Started {
            site: "local".parse().unwrap(),
            driver: DriverKind::Claude,
            enforced: String::new(),
        };
        let mut kinds = vec![
            (2, Kind::RunQueued { cause }),
            (2, Kind::Admitted),
            (2, started),
            (2, asked.clone()),
        ];
        let state = ended(Outcome::Lost, kinds.clone());
        let task = only(&state);
        assert!(!is_over(&asked, Some(task)));
        assert_eq!(Occasion::of(&asked), Some(Occasion::Asked));
        let words = words(&asked, Some((task, "3f"))).unwrap();
        assert_eq!(words.title, "dispatch: 3f asks for permission");
        assert!(
            words.text.ends_with("1: Bash make\\u{1b}[2J"),
            "{}",
            words.text
        );
        let answered = Kind::PermissionAnswered {
            ask: AskId(1),
            allow: true,
            by: By::Person,
            reason: None,
            always: false,
        };
        kinds.push((2, answered));
        let state = ended(Outcome::Lost, kinds);
        assert!(is_over(&asked, Some(only(&state))));
        assert!(!is_over(&Kind::Admitted, None));
    }

    #[test]
    fn an_end_that_is_tried_again_by_itself_is_nobodys_business() {
        let retry = |by_person| {
            let cause = RunCause::RetryOf { n: 1, by_person };
            vec![(2, Kind::RunQueued { cause })]
        };
        for (by_person, wanted) in [(false, false), (true, true)] {
            let state = ended(Outcome::Lost, retry(by_person));
            let got = hook("").wants(Occasion::Lost, Some(only(&state)), Some(1));
            assert_eq!(got, wanted, "by a person: {by_person}");
        }
    }

    #[test]
    fn every_end_is_an_occasion_with_words_that_move_no_cursor() {
        let ends = [
            (
                Outcome::Completed {
                    summary: "done".into(),
                },
                "completed",
            ),
            (
                Outcome::Blocked {
                    question: "UTC\u{1b}]0;x\u{7}?".into(),
                },
                "blocked",
            ),
            (Outcome::Failed(Failure::NothingSaid), "failed"),
            (Outcome::Stopped(Stop::ByPerson), "stopped"),
            (Outcome::Lost, "lost"),
        ];
        for (outcome, word) in ends {
            let state = ended(outcome.clone(), Vec::new());
            let verified = Verified::NotVerified;
            let kind = Kind::Finished { outcome, verified };
            assert_eq!(Occasion::of(&kind).unwrap().word(), word);
            let words = words(&kind, Some((only(&state), "3f"))).unwrap();
            assert_eq!(words.title, format!("dispatch: 3f {word}"));
            assert!(words.text.starts_with("Mend  [2Jit\n"), "{:?}", words.text);
            let control = |c: char| c.is_control() && c != '\n';
            assert!(!words.text.contains(control), "{:?}", words.text);
        }
        assert_eq!(Occasion::of(&Kind::Admitted), None);
        assert_eq!(words(&Kind::Admitted, None), None);
    }

    #[test]
    fn long_words_are_cut() {
        let verified = Verified::NotVerified;
        let summary = "x".repeat(TEXT_CHARS + 9);
        let outcome = Outcome::Completed { summary };
        let words = words(&Kind::Finished { outcome, verified }, None).unwrap();
        assert_eq!(words.text.chars().count(), TEXT_CHARS + 1);
        assert!(words.text.ends_with('…'));
    }

    #[test]
    fn pauses_grow_to_a_limit() {
        let got: Vec<u64> = [1, 2, 3, 4, 60].map(|n| pause_ms(2000, n)).to_vec();
        assert_eq!(got, [2000, 4000, 8000, 16000, PAUSE_MS_MAX]);
    }

    #[test]
    fn what_is_wrong_with_a_table_is_said() {
        for (table, part) in [
            ("kind = \"desktop\"", "missing field `on`"),
            ("kind = \"desktop\"\non = []", "`on` is empty"),
            (
                "kind = \"desktop\"\non = [\"sometimes\"]",
                "unknown variant",
            ),
            (
                "kind = \"pigeon\"\non = [\"lost\"]",
                "unknown variant `pigeon`",
            ),
            (
                "kind = \"ntfy\"\non = [\"lost\"]\ntopic = \"t\"",
                "`url` is missing",
            ),
            (
                "kind = \"ntfy\"\non = [\"lost\"]\nurl = \"https://n.invalid\"\ntopic = \"a/b\"",
                "`topic` is made of",
            ),
            (
                "kind = \"ntfy\"\non = [\"lost\"]\nurl = \"https://n.invalid\"\ntopic = \"t\"\ntoken = \"tk_1\"",
                "`token` is a secret",
            ),
            (
                "kind = \"webhook\"\non = [\"lost\"]\nurl = \"ftp://n.invalid\"",
                "neither https://",
            ),
            (
                "kind = \"webhook\"\non = [\"lost\"]\nurl = \"https://me:pw@n.invalid\"",
                "holds a login",
            ),
            (
                "kind = \"webhook\"\non = [\"lost\"]\nurl = \"https:///x\"",
                "names no host",
            ),
            (
                "kind = \"webhook\"\non = [\"lost\"]\nurl = \"https://n.invalid\"\ntopic = \"t\"",
                "kind webhook takes no `topic`",
            ),
            (
                "kind = \"command\"\non = [\"lost\"]\ncommand = []",
                "`command` is missing",
            ),
            (
                "kind = \"desktop\"\non = [\"lost\"]\nagents = [\"nobody\"]",
                "agent nobody is not configured",
            ),
        ] {
            let told = loaded(&format!("[notify.me]\n{table}\n")).unwrap_err();
            assert!(told.contains(part), "{part} not in: {told}");
            assert!(!told.contains("tk_1") && !told.contains("me:pw"), "{told}");
        }
        let told = loaded("[notify.\"../up\"]\nkind = \"desktop\"\non = [\"lost\"]\n");
        assert!(told.unwrap_err().contains("a hook's name"));
    }

    #[test]
    fn a_later_layer_replaces_a_secret_as_a_whole() {
        let base = "[notify.me]\nkind = \"webhook\"\non = [\"lost\"]\n\
                    url = { from = \"URL\" }\nsecret = { file = \"/a\" }\n";
        let over = "[notify.me]\nsecret = { from = \"KEY\" }\n";
        let layers = [base, over].map(|text| Layer {
            source: "mine",
            text,
        });
        let config = load(&layers).unwrap().0;
        let Way::Webhook { secret, .. } = &config.notify[&"me".parse().unwrap()].way else {
            panic!("not a webhook");
        };
        assert!(matches!(secret, Some(EnvValue::Taken { .. })), "{secret:?}");
    }
}
