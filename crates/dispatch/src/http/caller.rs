//! Who asks, and what such a caller may do. Every request that reaches a route carries a [`Caller`].
//! Must not know how one is told: `door` does that, and no header reaches this file.

use std::{fmt, str::FromStr};

use axum::{extract::FromRequestParts, http::request::Parts};
use dispatch_core::id::RunId;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::{Code, Problem};

/// One of the things a token can be for. None includes another.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Scope {
    /// See tasks, events, usage.
    Read,
    /// Make tasks, speak to them, try them again, stop them.
    Dispatch,
    /// Answer a task's question, and what an agent asks permission for.
    Answer,
    /// Everything that changes the machine or the engine itself.
    Admin,
}

impl Scope {
    pub(crate) const ALL: [Self; 4] = [Self::Read, Self::Dispatch, Self::Answer, Self::Admin];

    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Dispatch => "dispatch",
            Self::Answer => "answer",
            Self::Admin => "admin",
        }
    }

    fn bit(self) -> u8 {
        1 << self as u8
    }
}

impl FromStr for Scope {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|scope| scope.word() == text);
        found.ok_or_else(|| {
            let there = Self::ALL.map(Self::word).join(", ");
            format!("use scope {text:?}: there are {there}")
        })
    }
}

/// A set of scopes; never empty where it belongs to a token.
#[derive(Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<Scope>", into = "Vec<Scope>")]
pub(crate) struct Scopes(u8);

impl Scopes {
    pub(crate) fn has(self, scope: Scope) -> bool {
        self.0 & scope.bit() != 0
    }

    pub(crate) fn words(self) -> Vec<&'static str> {
        let mine = Scope::ALL.into_iter().filter(|scope| self.has(*scope));
        mine.map(Scope::word).collect()
    }
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        Self(scopes.into_iter().fold(0, |all, scope| all | scope.bit()))
    }
}

impl From<Vec<Scope>> for Scopes {
    fn from(scopes: Vec<Scope>) -> Self {
        scopes.into_iter().collect()
    }
}

impl From<Scopes> for Vec<Scope> {
    fn from(scopes: Scopes) -> Self {
        let all = Scope::ALL.into_iter();
        all.filter(|scope| scopes.has(*scope)).collect()
    }
}

impl fmt::Debug for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.words()).finish()
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words().join(","))
    }
}

/// Whose request it is. Put into a request by a door, or by whoever calls the routes in this process;
/// nothing that comes over a wire can make one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    /// Our own user on the unix socket: may do everything.
    Own,
    /// Whoever has a token of `dispatch token new`.
    Token {
        id: String,
        name: String,
        scopes: Scopes,
    },
    /// The agent of a live run: only what its run grants, only its own family of tasks.
    Run(RunId),
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own => f.write_str("person"),
            Self::Token { name, .. } => write!(f, "token {name}"),
            Self::Run(run) => write!(f, "run {run}"),
        }
    }
}

/// Who may call a route. There is no route without one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// People and programs with this scope; no agent.
    Needs(Scope),
    /// Agents of live runs too: the handler takes the [`Caller`] and looks at what the run grants.
    AgentsToo(Scope),
    /// Whoever is known, agents too: for a route that only hands on to other routes.
    Known,
}

impl Access {
    pub(crate) fn scope(self) -> Option<Scope> {
        match self {
            Self::Needs(scope) | Self::AgentsToo(scope) => Some(scope),
            Self::Known => None,
        }
    }

    pub(crate) fn for_agents(self) -> bool {
        match self {
            Self::Needs(_) => false,
            Self::AgentsToo(_) | Self::Known => true,
        }
    }

    /// Whether this caller may go on to the handler.
    pub(crate) fn admits(self, caller: &Caller) -> Result<(), Problem> {
        match (caller, self.scope()) {
            (Caller::Own, _) | (Caller::Token { .. }, None) => Ok(()),
            (Caller::Token { scopes, .. }, Some(needed)) if scopes.has(needed) => Ok(()),
            (Caller::Token { name, scopes, .. }, Some(needed)) => {
                let needed = needed.word();
                let detail = format!(
                    "do that with token {name}: it is for {scopes}, and this needs {needed}; \
                     `dispatch token new --scope {needed}` makes one"
                );
                Err(Problem::new(Code::WrongScope, detail))
            }
            (Caller::Run(_), _) if self.for_agents() => Ok(()),
            (Caller::Run(_), _) => {
                let detail = "do that as an agent: it is for people and their programs; an agent \
                              may look after the tasks that it asked for itself";
                Err(Problem::new(Code::NotForAgents, detail))
            }
        }
    }
}

/// For handlers. A request without one has come past every door, which only a bug can do.
impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        of(parts)
    }
}

pub(crate) fn of(parts: &Parts) -> Result<Caller, Problem> {
    let caller = parts.extensions.get::<Caller>().cloned();
    caller.ok_or_else(|| {
        Problem::new(
            Code::NoToken,
            "do that: nobody has said whose request it is",
        )
    })
}

#[cfg(test)]
mod tests {
    use dispatch_core::id::TaskId;

    use super::*;

    fn token(scopes: &[Scope]) -> Caller {
        Caller::Token {
            id: "1a2b3c4d".into(),
            name: "ci".into(),
            scopes: scopes.iter().copied().collect(),
        }
    }

    #[test]
    fn scopes_are_a_set_and_none_includes_another() {
        for scope in Scope::ALL {
            assert_eq!(scope.word().parse(), Ok(scope));
            let caller = token(&[scope]);
            for needed in Scope::ALL {
                let admitted = Access::Needs(needed).admits(&caller).is_ok();
                assert_eq!(admitted, needed == scope, "{scope:?} for {needed:?}");
            }
        }
        let told = "write".parse::<Scope>().unwrap_err();
        assert!(told.contains("read, dispatch, answer, admin"), "{told}");
        let two: Scopes = [Scope::Admin, Scope::Read].into_iter().collect();
        assert_eq!(two.to_string(), "read,admin");
        let json = serde_json::to_string(&two).unwrap();
        assert_eq!(json, r#"["read","admin"]"#);
        assert_eq!(serde_json::from_str::<Scopes>(&json).unwrap(), two);
    }

    #[test]
    fn agents_come_where_a_row_says_so_and_nowhere_else() {
        let task = TaskId::from_bits(1);
        let agent = Caller::Run(RunId { task, n: 1 });
        let refused = Access::Needs(Scope::Read).admits(&agent).unwrap_err();
        assert_eq!(refused.code(), Code::NotForAgents);
        assert!(Access::AgentsToo(Scope::Read).admits(&agent).is_ok());
        assert!(Access::Known.admits(&agent).is_ok());
        assert!(Access::Known.admits(&token(&[Scope::Answer])).is_ok());
        assert!(
            Access::AgentsToo(Scope::Read)
                .admits(&token(&[Scope::Admin]))
                .is_err()
        );
        for access in [Access::Needs(Scope::Admin), Access::Known] {
            assert!(access.admits(&Caller::Own).is_ok());
        }
    }
}
