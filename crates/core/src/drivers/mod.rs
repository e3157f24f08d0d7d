//! How to speak to a kind of agent: sans-I/O machines (I6). Lines in; updates and bytes out.
//! Must not touch the world, read a clock or make ids up other than by counting: on re-attachment a
//! fresh driver replays the whole output and must come to the same steps.
//!
//! To add one: a file with a `Driver`, a row in [`DriverKind`], a golden transcript in `testdata/`,
//! an `[agents.*]` table in `defaults.toml`.

mod acp;
mod claude;
mod coderabbit;
mod codex;
mod codex_app;
#[cfg(test)]
mod golden;
mod native;
mod pieces;
mod plain;
pub(crate) mod text;
mod todos;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    ask::Permissions,
    id::KeyName,
    job::Stdin,
    keyring::KeyNews,
    native::Opening as Setup,
    review::Range,
    task::Effort,
    update::{ChunkId, Said, Update, Usage, Voice},
};

/// What a driver is asked to open.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    pub prompt: &'a str,
    /// The same for an agent that turns out not to remember the session of `resume`.
    pub whole: &'a str,
    pub program: &'a str,
    /// From the agent's table, put where the CLI takes options.
    pub args: &'a [String],
    /// The workspace, as an absolute path.
    pub cwd: &'a str,
    /// Where else it is to read, as absolute paths: one with rules of its own is told that it may.
    pub folders: &'a [String],
    /// The task's private home, for CLIs that have a variable of their own for it.
    pub home: &'a str,
    /// The session of an earlier run in the same workspace.
    pub resume: Option<&'a str>,
    /// One of [`DriverKind::efforts`].
    pub effort: Option<Effort>,
    /// What is to be reviewed, where that is the task.
    pub review: Option<&'a Range>,
    /// The model asked for; a plain program finds it in DISPATCH_MODEL.
    pub model: Option<&'a str>,
    /// A profile of the CLI's own.
    pub profile: Option<&'a str>,
    /// `true` where no fence of ours stands around the job, so that the CLI's own must.
    pub unfenced: bool,
    /// What becomes of its permission requests.
    pub permissions: Permissions,
    /// Our own tools, for an agent whose task has a grant. It needs nobody's permission for them: the
    /// grant is that.
    pub tools: Option<Tools<'a>>,
    /// What our own agent is to know besides; the prompt and the workspace are put in.
    pub native: Option<&'a Setup>,
}

/// A program that speaks MCP on its standard input and output, to be started by the agent.
#[derive(Clone, Copy, Debug)]
pub struct Tools<'a> {
    pub argv: &'a [String],
    /// Said again, because some agents give such programs none of theirs.
    pub env: &'a [(String, String)],
}

/// What an agent calls the server of our tools.
pub const TOOLS_NAME: &str = "dispatch";

impl Tools<'_> {
    fn program(&self) -> &str {
        self.argv.first().map_or("", String::as_str)
    }

    fn args(&self) -> &[String] {
        self.argv.get(1..).unwrap_or_default()
    }
}

/// A permission that the agent waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// As the agent names it, while it is open.
    pub id: String,
    pub tool: String,
    pub input: String,
    /// The answers, for its standard input. They need nothing of the driver's state, so it is the
    /// same whenever they are given.
    pub allow: Vec<u8>,
    pub deny: Vec<u8>,
}

/// How to start it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opening {
    pub argv: Vec<String>,
    pub env: Vec<(String, String)>,
    pub stdin: Stdin,
    /// For [`Stdin::Open`]: what is said first. Never in argv (I12).
    pub first: Option<Vec<u8>>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Whole, and kept in the log.
    Said(Update),
    /// The same of a text that came in pieces before.
    Whole(ChunkId, Update),
    /// More of a text that is being said, for whoever is looking. The whole follows, or never does.
    Piece {
        chunk: ChunkId,
        voice: Voice,
        text: String,
    },
    /// A line for whoever is looking; nothing depends on it.
    Live(String),
    /// What it has spent so far, before it tells the sum itself: for budgets, and not kept.
    Spent(Usage),
    /// For its standard input.
    Send(Vec<u8>),
    /// It waits for an answer, which is the supervisor's to give: by [`Driver::permit`].
    Ask(Request),
    /// It does not wait for that one any more; unknown ones are nobody's business.
    Withdrawn {
        id: String,
    },
    /// It says something of a key that others ask with, too.
    Key {
        key: KeyName,
        news: KeyNews,
    },
    /// What became of the message that was said to it as the `nth`, counted from 1: of an agent that
    /// [takes back](Driver::takes_back).
    Message {
        nth: usize,
        hearing: Hearing,
    },
    CloseInput,
    /// It has said its last word. The supervisor closes the input and sees that it leaves.
    Done,
}

/// What an agent tells of a message that was said to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hearing {
    /// Its model has it.
    Heard,
    /// It was taken back in time.
    Unsaid,
    /// It has no room for it.
    Refused,
}

/// How to speak to one kind of agent. Owns protocol state, touches nothing, deterministic.
pub trait Driver: Send + fmt::Debug {
    fn open(&mut self, ask: &Ask<'_>) -> Opening;
    /// One line of its standard output, without the line end.
    fn hear(&mut self, line: &str) -> Vec<Step>;
    /// Whether [`Driver::say`] has something to send at this point of the output.
    fn listens(&self) -> bool {
        false
    }
    /// A message for a running agent; `None`: it cannot be spoken to now. On re-attachment it is said
    /// again after the same line of output.
    fn say(&mut self, text: &str) -> Option<Vec<u8>>;
    /// Whether it tells what becomes of each message, and gives back what its model has not heard.
    fn takes_back(&self) -> bool {
        false
    }
    /// Asks for the `nth` message back, counted from 1. Needs nothing of the driver's state but what
    /// was said. `None`: what it was given it keeps.
    fn unsay(&self, _nth: usize) -> Option<Vec<u8>> {
        None
    }
    /// How many of the messages that were said to it, the last ones, it has not taken up so far.
    fn unheard(&self) -> usize {
        0
    }
    /// The answer to a request, for its standard input. `why` of a denial is told where the protocol
    /// has room for it.
    fn permit(&self, request: &Request, allow: bool, _why: &str) -> Vec<u8> {
        if allow {
            request.allow.clone()
        } else {
            request.deny.clone()
        }
    }
    /// The same for an agent that is to remember it ([`DriverKind::remembers`]).
    fn permit_always(&self, request: &Request) -> Vec<u8> {
        self.permit(request, true, "")
    }
    /// Its last word: the second witness. Called once, after the exit.
    fn close(&mut self) -> Said;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DriverKind {
    Plain,
    Claude,
    Codex,
    Acp,
    Coderabbit,
    CodexApp,
    Native,
}

impl DriverKind {
    #[must_use]
    pub fn driver(self) -> Box<dyn Driver> {
        match self {
            Self::Plain => Box::<plain::Plain>::default(),
            Self::Claude => Box::<claude::Claude>::default(),
            Self::Codex => Box::<codex::Codex>::default(),
            Self::Acp => Box::<acp::Acp>::default(),
            Self::Coderabbit => Box::<coderabbit::Coderabbit>::default(),
            Self::CodexApp => Box::<codex_app::CodexApp>::default(),
            Self::Native => Box::<native::Native>::default(),
        }
    }

    /// The word of the configuration.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Claude => "claude",
            Self::Codex => "codex",
            Self::Acp => "acp",
            Self::Coderabbit => "coderabbit",
            Self::CodexApp => "codex_app",
            Self::Native => "native",
        }
    }

    /// Whether this kind of agent asks for permissions in a way that can be answered.
    #[must_use]
    pub fn asks(self) -> bool {
        match self {
            Self::Claude | Self::Acp | Self::CodexApp | Self::Native => true,
            Self::Plain | Self::Codex | Self::Coderabbit => false,
        }
    }

    /// Whether it can be told that the very same needs no more asking.
    #[must_use]
    pub fn remembers(self) -> bool {
        self == Self::Native
    }

    /// Whether a message that a running one was given can be had back before its model hears it.
    #[must_use]
    pub fn takes_back(self) -> bool {
        self == Self::Native
    }

    /// Whether it can be told to make its conversation shorter.
    #[must_use]
    pub fn compacts(self) -> bool {
        self == Self::Native
    }

    /// Whether this kind of agent can be told of a door of ours. A plain program is by its environment.
    #[must_use]
    pub fn knocks(self) -> bool {
        match self {
            Self::Plain
            | Self::Claude
            | Self::Codex
            | Self::Acp
            | Self::CodexApp
            | Self::Native => true,
            Self::Coderabbit => false,
        }
    }

    /// What this kind of agent can be told about how hard to think.
    #[must_use]
    pub fn efforts(self) -> &'static [Effort] {
        use Effort::{High, Low, Max, Medium, Minimal, Xhigh};
        match self {
            Self::Plain | Self::Acp | Self::Coderabbit => &[],
            Self::Claude => &[Low, Medium, High, Xhigh, Max],
            Self::Codex | Self::CodexApp => &[Minimal, Low, Medium, High, Xhigh],
            Self::Native => &Effort::ALL,
        }
    }
}

/// The last bytes of a text that keeps growing, cut at a character.
#[derive(Debug, Default)]
struct Tail(String);

const TAIL_BYTES_MAX: usize = 4096;

impl Tail {
    fn push_line(&mut self, line: &str) {
        let mut from = line.len().saturating_sub(TAIL_BYTES_MAX);
        while !line.is_char_boundary(from) {
            from += 1;
        }
        self.0.push_str(&line[from..]);
        self.0.push('\n');
        if self.0.len() > 2 * TAIL_BYTES_MAX {
            let mut cut = self.0.len() - TAIL_BYTES_MAX;
            while !self.0.is_char_boundary(cut) {
                cut += 1;
            }
            self.0.drain(..cut);
        }
    }

    fn text(&self) -> String {
        self.0.trim().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn opened(kind: DriverKind, tools: Option<Tools<'_>>) -> (Opening, Box<dyn Driver>) {
        let mut driver = kind.driver();
        let opening = driver.open(&Ask {
            prompt: "x",
            whole: "whole",
            cwd: "/w",
            folders: &[],
            program: "agent",
            args: &[],
            home: "/h",
            resume: None,
            effort: None,
            review: None,
            unfenced: false,
            permissions: Permissions::Allow,
            tools,
            model: None,
            profile: None,
            native: None,
        });
        (opening, driver)
    }

    /// Each in its own way, and all of it: program, arguments and what they are to know.
    #[test]
    fn our_tools_are_told_in_each_agents_own_way() {
        let argv = ["/d/dis\"patch", "mcp", "--run"].map(str::to_owned);
        let env = [("DISPATCH_DOOR".to_owned(), "/run/e.sock".to_owned())];
        let tools = Tools {
            argv: &argv,
            env: &env,
        };
        let (claude, _) = opened(DriverKind::Claude, Some(tools));
        let config = claude
            .argv
            .iter()
            .find_map(|arg| arg.strip_prefix("--mcp-config="));
        let config: Value = serde_json::from_str(config.unwrap()).unwrap();
        let server = json!({
            "type": "stdio", "command": argv[0], "args": ["mcp", "--run"],
            "env": {"DISPATCH_DOOR": "/run/e.sock"},
        });
        assert_eq!(config, json!({"mcpServers": {"dispatch": server}}));
        assert!(
            claude
                .argv
                .contains(&"--allowedTools=mcp__dispatch".to_owned())
        );

        for kind in [DriverKind::Codex, DriverKind::CodexApp] {
            let (codex, _) = opened(kind, Some(tools));
            let settings = codex.argv.windows(2).filter(|pair| pair[0] == "-c");
            let settings = settings.filter(|pair| pair[1].starts_with("mcp_servers."));
            let text: Vec<&str> = settings.map(|pair| pair[1].as_str()).collect();
            let table: toml::Table = text.join("\n").parse().unwrap();
            let server = &table["mcp_servers"]["dispatch"];
            assert_eq!(server["command"].as_str(), Some(&*argv[0]));
            assert_eq!(server["args"], toml::Value::from(vec!["mcp", "--run"]));
            assert_eq!(server["env"]["DISPATCH_DOOR"].as_str(), Some("/run/e.sock"));
        }

        let (_, mut acp) = opened(DriverKind::Acp, Some(tools));
        let hello =
            r#"{"jsonrpc":"2.0","id":1,"result":{"protocolVersion":1,"agentCapabilities":{}}}"#;
        let steps = acp.hear(hello);
        let sent = steps.iter().find_map(|step| match step {
            Step::Send(bytes) => serde_json::from_slice::<Value>(bytes).ok(),
            _ => None,
        });
        let sent = sent.unwrap();
        assert_eq!(sent["method"], "session/new");
        let server = json!({
            "name": "dispatch", "command": argv[0], "args": ["mcp", "--run"],
            "env": [{"name": "DISPATCH_DOOR", "value": "/run/e.sock"}],
        });
        assert_eq!(sent["params"]["mcpServers"], json!([server]));
    }

    #[test]
    fn who_takes_back_says_so_before_and_while_it_runs() {
        for kind in [
            DriverKind::Plain,
            DriverKind::Claude,
            DriverKind::Codex,
            DriverKind::Acp,
            DriverKind::Coderabbit,
            DriverKind::CodexApp,
            DriverKind::Native,
        ] {
            let (_, mut driver) = opened(kind, None);
            assert_eq!(driver.takes_back(), kind.takes_back(), "{kind:?}");
            driver.say("x");
            assert_eq!(driver.unsay(1).is_some(), kind.takes_back(), "{kind:?}");
        }
    }

    /// Nothing of it where there is no grant.
    #[test]
    fn without_a_grant_nothing_is_told() {
        for kind in [
            DriverKind::Plain,
            DriverKind::Claude,
            DriverKind::Codex,
            DriverKind::Acp,
            DriverKind::CodexApp,
        ] {
            assert!(kind.knocks());
            let (opening, _) = opened(kind, None);
            assert!(!format!("{opening:?}").contains("mcp__"), "{kind:?}");
            assert!(!format!("{opening:?}").contains("mcp_servers"), "{kind:?}");
        }
        assert!(!DriverKind::Coderabbit.knocks());
    }
}
