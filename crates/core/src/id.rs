//! Names of things: parsed once at the edge, correct from then on.
//! Must not make ids up (that needs randomness, which is I/O): the engine does.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Why a text is not the id or name it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("read {what} from {text:?}: {rule}")]
pub struct BadId {
    pub what: &'static str,
    pub text: String,
    pub rule: &'static str,
}

/// A task: 16 hex digits. Random and not time-sorted, because people type prefixes of it and
/// time-sorted ids share theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TaskId(u64);

impl TaskId {
    pub const HEX_DIGITS: usize = 16;

    #[must_use]
    pub fn from_bits(bits: u64) -> Self {
        Self(bits)
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for TaskId {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        let bad = || BadId {
            what: "a task id",
            text: text.into(),
            rule: "16 lowercase hex digits",
        };
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if text.len() != Self::HEX_DIGITS || !text.bytes().all(hex) {
            return Err(bad());
        }
        u64::from_str_radix(text, 16).map(Self).map_err(|_| bad())
    }
}

impl TryFrom<String> for TaskId {
    type Error = BadId;
    fn try_from(text: String) -> Result<Self, BadId> {
        text.parse()
    }
}

impl From<TaskId> for String {
    fn from(id: TaskId) -> String {
        id.to_string()
    }
}

/// One attempt at a task. Numbers start at 1 and are never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RunId {
    pub task: TaskId,
    pub n: u32,
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.task, self.n)
    }
}

impl FromStr for RunId {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        let bad = || BadId {
            what: "a run id",
            text: text.into(),
            rule: "TASK-NUMBER",
        };
        let (task, n) = text.split_once('-').ok_or_else(bad)?;
        let run = Self {
            task: task.parse()?,
            n: n.parse().map_err(|_| bad())?,
        };
        // `+1` and `01` are numbers too, but no name of ours.
        if run.to_string() == text {
            Ok(run)
        } else {
            Err(bad())
        }
    }
}

/// Position of an event in the log. The first one is 1; 0 means "before everything".
pub type Seq = u64;

const NAME_BYTES_MAX: usize = 64;

fn name_ok(text: &str) -> bool {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    !text.is_empty()
        && text.len() <= NAME_BYTES_MAX
        && text.bytes().all(good)
        && text.as_bytes()[0].is_ascii_alphanumeric()
        && !text.contains("..")
}

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident = $what:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl FromStr for $name {
            type Err = BadId;
            fn from_str(text: &str) -> Result<Self, BadId> {
                Self::try_from(text.to_owned())
            }
        }
        impl TryFrom<String> for $name {
            type Error = BadId;
            fn try_from(text: String) -> Result<Self, BadId> {
                if name_ok(&text) {
                    return Ok(Self(text));
                }
                let rule = "1 to 64 of letters, digits, '-', '_', '.', the first a letter or digit, no '..'";
                Err(BadId { what: $what, text, rule })
            }
        }
        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }
    )*};
}

names! {
    /// A configured program that can do a task: `[agents.NAME]`.
    AgentName = "an agent's name";
    /// Runs that share a limit: `[pools.NAME]`.
    PoolName = "a pool's name";
    PlacementName = "a placement's name";
    /// A repository that the configuration knows: `[repos.NAME]`.
    RepoName = "a repository's name";
    /// Where issues are read from: `[forges.NAME]`.
    ForgeName = "a forge's name";
    /// One account at a provider, whose login several tasks use.
    AccountName = "an account's name";
    /// A machine that can hold jobs.
    SiteName = "a site's name";
    /// A command that must pass after the agent is done: `[checks.NAME]`.
    CheckName = "a check's name";
    /// What a task's agent may do at our door: `[grants.NAME]`.
    GrantName = "a grant's name";
    /// Who is told of what happens: `[notify.NAME]`.
    HookName = "a hook's name";
    /// An account at a model's provider: `[keys.NAME]`.
    KeyName = "a key's name";
    /// Whose tools the native agent may use: `[mcp.NAME]`.
    ServerName = "an MCP server's name";
    /// The name of a workspace; two live tasks never share one.
    WorkspaceName = "a workspace's name";
}

impl GrantName {
    /// The word for no grant at all.
    pub const NONE: &str = "none";

    #[must_use]
    pub fn is_none(&self) -> bool {
        self.0 == Self::NONE
    }
}

/// A model as its agent's CLI or endpoint calls it; never part of a path of ours.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ModelName(String);

const MODEL_BYTES_MAX: usize = 128;

impl ModelName {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ModelName {
    type Err = BadId;
    fn from_str(text: &str) -> Result<Self, BadId> {
        Self::try_from(text.to_owned())
    }
}

impl TryFrom<String> for ModelName {
    type Error = BadId;
    fn try_from(text: String) -> Result<Self, BadId> {
        let good = |b: u8| b.is_ascii_alphanumeric() || b"-_./:@+[]".contains(&b);
        let first = text.bytes().next();
        // It becomes an argument of a program: the first byte makes it no option.
        if first.is_some_and(|b| b.is_ascii_alphanumeric())
            && text.len() <= MODEL_BYTES_MAX
            && text.bytes().all(good)
        {
            return Ok(Self(text));
        }
        let rule = "1 to 128 of letters, digits and -_./:@+[], the first a letter or digit";
        Err(BadId {
            what: "a model's name",
            text,
            rule,
        })
    }
}

impl From<ModelName> for String {
    fn from(name: ModelName) -> String {
        name.0
    }
}

/// A short, lowercase, path-safe and ref-safe rendering of free text: letters, digits and dashes.
#[must_use]
pub fn slug(text: &str, chars_max: usize) -> String {
    let mut out = String::new();
    for c in text.chars() {
        if out.len() >= chars_max {
            break;
        }
        if c.is_ascii_alphanumeric() {
            out.push(c.to_ascii_lowercase());
        } else if !out.is_empty() && !out.ends_with('-') {
            out.push('-');
        }
    }
    let trimmed = out.trim_matches('-');
    if trimmed.is_empty() {
        "task".into()
    } else {
        trimmed.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_round_trip_and_refuse_near_misses() {
        let id = TaskId::from_bits(0x3f);
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in [
            "",
            "3f",
            "000000000000003F",
            "00000000000000zz",
            "+00000000000003f",
        ] {
            assert!(bad.parse::<TaskId>().is_err(), "{bad}");
        }
        let run = RunId { task: id, n: 2 };
        assert_eq!(run.to_string().parse(), Ok(run));
        // Found by the fuzz target `names`.
        for bad in ["000000000000003f-02", "000000000000003f-+2"] {
            assert!(bad.parse::<RunId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn names_cannot_travel() {
        for bad in ["", "..", ".hidden", "-rf", "a/b", "a..b", "a b", "ü"] {
            assert!(bad.parse::<WorkspaceName>().is_err(), "{bad}");
        }
        assert!("claude-3.5_x".parse::<AgentName>().is_ok());
        for good in ["opus", "qwen2.5-coder:32b", "openai/gpt-5", "opus[1m]"] {
            assert!(good.parse::<ModelName>().is_ok(), "{good}");
        }
        for bad in ["", "-x", "--model", "a b", "a\n", "$(x)"] {
            assert!(bad.parse::<ModelName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn slugs_are_safe_for_paths_and_refs() {
        assert_eq!(
            slug("Fix the failing test in parser.rs", 24),
            "fix-the-failing-test-in"
        );
        assert_eq!(slug("../../etc", 24), "etc");
        assert_eq!(slug("日本", 24), "task");
    }
}
