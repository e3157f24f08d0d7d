//! The lines between the native agent and its driver: what it says on its standard output, one
//! closed chunk a line, and what it hears on its standard input.
//! The output is the only durable copy of a conversation: what a new run of the same task needs is
//! in it. Must not change a meaning once released; a new word is a new variant.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::PathBuf,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use serde_json::value::RawValue;

use crate::{
    Millis,
    attach::Media,
    grant::Tool,
    id::{KeyName, ServerName},
    models::{Choice, KeyTable, Wire},
    rules::{Group, Rules, Subject},
    servers::ServerTable,
    toolset::Toolset,
    web::{Reach, WebTable},
};

/// Of these lines. A reader refuses a newer one.
pub const VERSION: u32 = 1;

/// JSON kept as it was written: what a provider must get back byte for byte.
#[derive(Clone)]
pub struct Raw(Box<RawValue>);

impl Raw {
    /// # Errors
    /// When the text is no JSON.
    pub fn parse(text: String) -> Result<Self, serde_json::Error> {
        RawValue::from_string(text).map(Self)
    }

    #[must_use]
    pub fn text(&self) -> &str {
        self.0.get()
    }
}

impl From<Box<RawValue>> for Raw {
    fn from(value: Box<RawValue>) -> Self {
        Self(value)
    }
}

impl PartialEq for Raw {
    fn eq(&self, other: &Self) -> bool {
        self.text() == other.text()
    }
}

impl Eq for Raw {}

impl fmt::Debug for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl Serialize for Raw {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(to)
    }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Box::<RawValue>::deserialize(from).map(Self)
    }
}

/// One question to a model and what came of it, within one answer to what somebody said. Both count
/// from 1 and are never used again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StepId {
    pub turn: u32,
    pub step: u32,
}

impl fmt::Display for StepId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.turn, self.step)
    }
}

impl Serialize for StepId {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for StepId {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let parts = text
            .split_once('.')
            .map(|(turn, step)| (turn.parse(), step.parse()));
        match parts {
            Some((Ok(turn), Ok(step))) => Ok(Self { turn, step }),
            _ => Err(D::Error::custom("a step is TURN.STEP")),
        }
    }
}

/// One line of its output.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// From 1, in each process.
    pub n: u64,
    pub step: StepId,
    pub chunk: Chunk,
}

/// What somebody says to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Given by whoever sent it; 0 is the prompt.
    pub id: u64,
    pub text: String,
    /// What was handed over with it. Never its bytes: they are read again for each request.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<Handed>,
}

/// A file that was handed over, where the agent can read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handed {
    pub path: PathBuf,
    pub bytes: u64,
    /// In hexadecimal.
    pub sha256: String,
    /// As what a model is shown it. None: it was not looked at yet, or is only told of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shown: Option<Media>,
}

/// Tokens of one step. What a provider does not tell is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tokens {
    /// Of the prompt, without those that a cache had or took.
    pub input: u64,
    pub cache_read: u64,
    pub cache_write: u64,
    /// Thinking included.
    pub output: u64,
    pub reasoning: u64,
}

/// A limit at the provider, as the headers of an answer told it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    pub name: String,
    pub limit: Option<u64>,
    pub remaining: Option<u64>,
    pub resets_at: Option<Millis>,
}

/// What other runs have said of a key before this one asks it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// It is of no use before that. A time that is over: nobody knows whether it works again.
    pub out_until: Option<Millis>,
    #[serde(default)]
    pub windows: Vec<Window>,
    /// When they were told.
    pub told_at: Option<Millis>,
}

pub type KnownKeys = BTreeMap<KeyName, Known>;

/// A tool of an MCP server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServedTool {
    /// As the model knows it: `SERVER__TOOL`.
    pub name: String,
    /// As its server does.
    pub tool: String,
    pub help: String,
    pub schema: Raw,
    /// It changes nothing, its server says.
    #[serde(default)]
    pub safe: bool,
}

/// How a step ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepEnd {
    /// It said all it had to say.
    Done,
    /// It waits for the results of its calls.
    Calls,
    /// Its answer was longer than it may be.
    Full,
    /// The provider would not let it answer.
    Refused,
    /// The connection broke in the middle of it, or the agent was ended.
    Cut { why: String },
}

/// What a failure is, for whoever decides what comes after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    RateLimited,
    /// Nothing is left on the account.
    Exhausted,
    Overloaded,
    Auth,
    BadRequest,
    ContextTooLong,
    Network,
    Timeout,
    /// What came back is not what the wire format promises.
    Protocol,
    /// The key cannot be had.
    Key,
    Refused,
}

/// How a turn ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TurnEnd {
    Done,
    Failed {
        fault: Fault,
        message: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_at: Option<Millis>,
    },
    /// It was told to.
    Stopped,
    /// One of its own limits, by name.
    Limit {
        name: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TodoStatus {
    Pending,
    InProgress,
    Completed,
    Cancelled,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Todo {
    pub content: String,
    pub status: TodoStatus,
}

/// For whoever is looking, and lossy: nothing is ever rebuilt from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Live {
    Text(String),
    Thinking(String),
    /// What a running tool prints.
    Output {
        call: String,
        text: String,
    },
    /// What was shown of the block that was open will not be closed.
    Void,
}

/// A closed piece of a model's answer. `raw` is what its provider must get back, the rest is for
/// everybody else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Block {
    Text {
        text: String,
        raw: Raw,
    },
    Thinking {
        text: String,
        raw: Raw,
    },
    Call {
        id: String,
        name: String,
        /// As the model wrote it; not always JSON.
        input: String,
        raw: Raw,
    },
    /// Nothing for a person, and yet a part of the answer.
    Other {
        raw: Raw,
    },
}

impl Block {
    #[must_use]
    pub fn raw(&self) -> &Raw {
        match self {
            Self::Text { raw, .. }
            | Self::Thinking { raw, .. }
            | Self::Call { raw, .. }
            | Self::Other { raw } => raw,
        }
    }
}

/// Something that is closed, or happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Chunk {
    Hello {
        version: u32,
        session: String,
    },
    /// Where it works, as its prompt tells it in all runs of the conversation.
    Around {
        text: String,
    },
    /// A turn begins with these.
    Turn {
        said: Vec<Message>,
    },
    /// These came while it worked, and are told to the model after the results of its calls.
    Said {
        said: Vec<Message>,
    },
    /// A message was taken back before the model had it.
    Unsaid {
        id: u64,
    },
    /// A message is not taken, and the model will never have it from here.
    Refused {
        id: u64,
        why: String,
    },
    /// The model is asked. Again, with nothing closed in between: this one is the one.
    Step {
        model: Choice,
        wire: Wire,
    },
    Block(Block),
    StepEnded(StepEnd),
    Usage {
        tokens: Tokens,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cost_usd: Option<f64>,
    },
    Windows {
        key: KeyName,
        windows: Vec<Window>,
        /// When they were told.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        at: Option<Millis>,
    },
    /// The tools of an MCP server, as the model is told of them for the whole conversation.
    Served {
        server: ServerName,
        tools: Vec<ServedTool>,
    },
    /// A tool is about to run: from here on it may have had its effects.
    Running {
        call: String,
    },
    Result {
        call: String,
        output: String,
        failed: bool,
    },
    /// All before `from` is told as this text from here on. What was said stays in the record.
    Compacted {
        /// A step or the beginning of a turn, so that no call is without its result.
        from: StepId,
        text: String,
        /// What it took to write it.
        tokens: Tokens,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cost_usd: Option<f64>,
        /// The wish of a person that is met with it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        wish: Option<u32>,
    },
    /// A person wanted it shorter, and it could not be.
    NotCompacted {
        wish: u32,
    },
    Plan {
        todos: Vec<Todo>,
    },
    /// A permission is waited for.
    Asked {
        id: u64,
        call: String,
        tool: String,
        group: Group,
        /// What it would touch, as a person reads it.
        subject: String,
        /// One by one, for an answer that is to hold for the same again.
        #[serde(default)]
        subjects: Vec<Subject>,
        input: String,
    },
    Answered {
        id: u64,
        allowed: bool,
        /// For the same again, too, until the task's end.
        always: bool,
        why: String,
    },
    /// Nothing is asked of the model before `at`.
    Waiting {
        at: Millis,
        attempt: u32,
        fault: Fault,
        why: String,
    },
    ModelChanged {
        from: Choice,
        to: Choice,
        why: String,
    },
    /// A key that is of no use before `until`, as far as that is known.
    KeyOut {
        key: KeyName,
        until: Option<Millis>,
        why: String,
    },
    KeyBack {
        key: KeyName,
    },
    Notice {
        text: String,
    },
    TurnEnded {
        end: TurnEnd,
        text: String,
    },
    Live(Live),
}

impl Chunk {
    /// Whether a conversation is rebuilt from it.
    #[must_use]
    pub fn lasts(&self) -> bool {
        !matches!(self, Self::Live(_))
    }
}

/// What one turn may use. 0 means no limit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TurnLimits {
    pub steps_max: u32,
    /// Input and output of all its steps.
    pub tokens_max: u64,
    pub cost_usd_max: f64,
    pub wall_clock_ms: u64,
    /// From a first failure to the second try; later ones wait for many times that.
    pub retry_ms: u64,
    /// All waits for keys and providers of a turn together.
    pub wait_ms_max: u64,
    /// From a permission request to its denial; 0 denies at once.
    pub ask_wait_ms: u64,
}

/// A definition of an agent, as a model is told of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    pub slug: String,
    pub description: String,
    /// It works for whoever summons it; else it stands for itself.
    pub subagent: bool,
    /// A repository's, and not the person's own.
    pub of_repository: bool,
    /// The same where the person has one of that name, too.
    #[serde(default)]
    pub in_place: bool,
}

/// Whom it may summon, and by which way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kin {
    /// Its own task, and the one that asked for it, by their whole ids.
    pub task: String,
    #[serde(default)]
    pub asker: Option<String>,
    /// What its grant has.
    pub tools: BTreeSet<Tool>,
    /// The grant is for what its own tools ask: those at our door are not its model's.
    #[serde(default)]
    pub asked: bool,
    /// As they were at the start of the run.
    #[serde(default)]
    pub listed: Vec<Listed>,
    /// Definitions that are of no use, and why.
    #[serde(default)]
    pub faults: Vec<String>,
    /// The server with the tools at our door.
    #[serde(default)]
    pub door: Option<ServerTable>,
}

impl Kin {
    /// What a grant allows that is a permission by itself. Not what a repository has put in the place
    /// of a person's.
    pub fn granted(&self) -> impl Iterator<Item = (Group, &str)> {
        let own = self.listed.iter().filter(|one| !one.in_place);
        own.map(|one| {
            let group = match one.subagent {
                true => Group::Summon,
                false => Group::UserAgent,
            };
            (group, one.slug.as_str())
        })
    }
}

/// The first line it hears: all it is to know.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Opening {
    pub version: u32,
    /// The same in all runs of one conversation: a cache at the provider is found by it.
    pub session: String,
    /// Where it works: the workspace, or a directory of it.
    pub cwd: PathBuf,
    /// The whole workspace, which rules speak of wherever in it the agent works. None: `cwd` is all
    /// of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkout: Option<PathBuf>,
    /// Where results go that are too long, and nothing else.
    pub spill: PathBuf,
    /// The output of earlier runs of the conversation, oldest first: read, never written.
    #[serde(default)]
    pub resume: Vec<PathBuf>,
    /// None: only go on.
    #[serde(default)]
    pub prompt: Option<String>,
    /// How often a person has wanted the conversation to become shorter; what the record knows was met.
    #[serde(default)]
    pub compact: u32,
    /// All that was handed over until now; those that the record knows were told before.
    #[serde(default)]
    pub files: Vec<Handed>,
    /// Instead of our own identity.
    #[serde(default)]
    pub system: Option<String>,
    pub chain: Vec<Choice>,
    pub keys: BTreeMap<KeyName, KeyTable>,
    /// What is known of them by now. None: what the conversation knows itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub known: Option<KnownKeys>,
    /// Names of tools; all that are known where there is none.
    #[serde(default)]
    pub tools: Option<Vec<String>>,
    /// What the task was made with, which holds besides.
    #[serde(default)]
    pub within: Toolset,
    /// What it was summoned as, in words for its model.
    #[serde(default)]
    pub role: Option<String>,
    /// What it may summon. None: nothing, and its tools for that are not there.
    #[serde(default)]
    pub kin: Option<Kin>,
    #[serde(default)]
    pub rules: Rules,
    #[serde(default)]
    pub reach: Reach,
    #[serde(default)]
    pub web: WebTable,
    /// Those whose tools this task has.
    #[serde(default)]
    pub servers: BTreeMap<ServerName, ServerTable>,
    pub limits: TurnLimits,
    /// Whether what is not closed yet is shown while it comes.
    #[serde(default)]
    pub live: bool,
}

/// What it hears, one line each. The end of its input means that nothing more will come.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    Open(Box<Opening>),
    Say(Message),
    /// Takes a message back that the model has not got.
    Unsay {
        id: u64,
    },
    Answer {
        id: u64,
        allow: bool,
        /// For all of the kind, until the task's end.
        #[serde(default)]
        always: bool,
        #[serde(default)]
        why: String,
    },
    Stop {},
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(chunk: Chunk) -> Line {
        let step = StepId { turn: 2, step: 5 };
        Line { n: 7, step, chunk }
    }

    #[test]
    fn what_a_provider_gets_back_keeps_every_byte() {
        // Spaces, an order of members, an escape and a number that a parser would write otherwise.
        let raw = r#"{ "b":1.50e2,"a" : "\u00e9","b":[ ]}"#;
        let chunk = Chunk::Block(Block::Thinking {
            text: "hm".into(),
            raw: Raw::parse(raw.into()).unwrap(),
        });
        let text = serde_json::to_string(&line(chunk)).unwrap();
        assert!(text.contains(raw), "{text}");
        let back: Line = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_string(&back).unwrap(), text);
        assert_eq!(back.step, StepId { turn: 2, step: 5 });
    }

    #[test]
    fn an_order_is_one_word_with_what_belongs_to_it() {
        let say: Order = serde_json::from_str(r#"{"say":{"id":3,"text":"hi"}}"#).unwrap();
        let message = Message {
            id: 3,
            text: "hi".into(),
            files: Vec::new(),
        };
        assert_eq!(say, Order::Say(message));
        let stop: Order = serde_json::from_str(r#"{"stop":{}}"#).unwrap();
        assert_eq!(stop, Order::Stop {});
        for bad in ["{}", r#"{"jump":{}}"#, r#"{"answer":{"id":1}}"#] {
            assert!(serde_json::from_str::<Order>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_what_is_shown_meanwhile_does_not_last() {
        assert!(!Chunk::Live(Live::Void).lasts());
        assert!(Chunk::Notice { text: "x".into() }.lasts());
    }
}
