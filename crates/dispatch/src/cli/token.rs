//! `dispatch token`: what programs show at the door. Works on the file, without an engine: a running
//! one sees the change at the next request. Must not print a token's text but when it is made.

use dispatch_core::Millis;
use dispatch_engine::clock::Clock;
use serde::Serialize;

use super::{
    Ctx, duration,
    error::{CliError, Result},
    exit::Exit,
    out,
};
use crate::{
    api::time,
    http::{
        caller::{Scope, Scopes},
        tokens::{Row, TokenError, Tokens},
    },
};

/// Make, list and revoke tokens for programs.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  dispatch token new --scope read,dispatch\n  dispatch token new --scope read --name ci --expires 30d --json\n  dispatch token list\n  dispatch token revoke ci\n\nScopes, none of which includes another:\n  read      see tasks, events, logs, usage\n  dispatch  make tasks, speak to them, try them again, stop them\n  answer    answer a task's question, and what an agent asks permission for\n  admin     freeze, apply, put away, shut down, read the configuration\n\nWho may dispatch can have an agent read every repository and directory that you can."
)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Make one and print it: this once, it is kept as a hash only
    New {
        /// What it is for: read, dispatch, answer, admin; several with commas
        #[arg(long, required = true, value_delimiter = ',', value_name = "SCOPE")]
        scope: Vec<Scope>,
        /// What it is called, instead of its id
        #[arg(long)]
        name: Option<String>,
        /// How long it is good: 30d, 12h
        #[arg(long, value_parser = duration::parse, value_name = "TIME")]
        expires: Option<Millis>,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Show which there are
    List {
        /// One JSON array
        #[arg(long)]
        json: bool,
    },
    /// Take one away, by its name or id; it is refused from the next request on
    Revoke {
        #[arg(value_name = "NAME")]
        which: String,
    },
}

#[derive(Debug, Serialize)]
struct Shown {
    /// Only when it is made.
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
    id: String,
    name: String,
    scopes: Scopes,
    made_at: String,
    expires_at: Option<String>,
    expired: bool,
}

impl Shown {
    fn new(row: &Row, token: Option<String>, now: Millis) -> Self {
        Self {
            token,
            id: row.id.clone(),
            name: row.name.clone(),
            scopes: row.scopes,
            made_at: time(row.made_at),
            expires_at: row.expires_at.map(time),
            expired: row.is_expired(now),
        }
    }
}

impl From<TokenError> for CliError {
    fn from(error: TokenError) -> Self {
        let exit = match &error {
            TokenError::File { .. } | TokenError::Random(_) => Exit::Failed,
            TokenError::Open { .. }
            | TokenError::Name { .. }
            | TokenError::Taken { .. }
            | TokenError::TooMany
            | TokenError::NoSuch(_) => Exit::Usage,
        };
        Self::new(exit, error.to_string())
    }
}

pub(crate) fn run(ctx: &Ctx, args: Args) -> Result<Exit> {
    let tokens = Tokens::of(&ctx.settings.paths.data);
    let now = Clock::System.now();
    match args.what {
        What::New {
            scope,
            name,
            expires,
            json,
        } => {
            let scopes = scope.into_iter().collect();
            let (text, row) = tokens.make(name.as_deref(), scopes, expires, now)?;
            if json {
                out::json(&Shown::new(&row, Some(text), now))?;
            } else {
                // The token alone, for `TOKEN=$(dispatch token new ..)`.
                out::line(&text)?;
                out::aside(&format!(
                    "{}: for {}; it is not shown again",
                    row.name, row.scopes
                ));
            }
        }
        What::List { json } => {
            let rows = tokens.list()?;
            if json {
                let all = rows.iter().map(|row| Shown::new(row, None, now));
                out::json(&all.collect::<Vec<_>>())?;
            } else {
                rows.iter().try_for_each(|row| out::line(&line(row, now)))?;
            }
        }
        What::Revoke { which } => {
            let row = tokens.revoke(&which)?;
            out::aside(&format!("{} is revoked", row.name));
        }
    }
    Ok(Exit::Completed)
}

fn line(row: &Row, now: Millis) -> String {
    let until = match row.expires_at {
        None => "does not expire".to_owned(),
        Some(at) if row.is_expired(now) => format!("expired {}", time(at)),
        Some(at) => format!("until {}", time(at)),
    };
    let scopes = row.scopes.to_string();
    format!(
        "{:<20} {scopes:<28} made {}  {until}",
        row.name,
        time(row.made_at)
    )
}
