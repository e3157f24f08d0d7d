//! Errors for the person: one line that says what failed, its causes, a hint; and the exit code.
//! Must not be used by the HTTP door, which has its own.

use std::{error::Error, io};

pub(crate) use dispatch_core::causes::chain;

use super::exit::Exit;
use crate::{
    api::request::BadRequest,
    client::{ClientError, start::StartError},
    http::server::ServeError,
    plan::PlanError,
    settings::SettingsError,
};

/// `what` goes on from "failed to".
#[derive(Debug)]
pub(crate) struct CliError {
    pub(crate) exit: Exit,
    pub(crate) what: String,
    pub(crate) hint: Option<String>,
    /// The reader of our output has gone; there is nobody to tell.
    pub(crate) quiet: bool,
}

pub(crate) type Result<T> = std::result::Result<T, CliError>;

impl CliError {
    pub(crate) fn new(exit: Exit, what: impl Into<String>) -> Self {
        Self {
            exit,
            what: what.into(),
            hint: None,
            quiet: false,
        }
    }

    pub(crate) fn usage(what: impl Into<String>) -> Self {
        Self::new(Exit::Usage, what)
    }

    pub(crate) fn failed(doing: impl std::fmt::Display, error: &dyn Error) -> Self {
        Self::new(Exit::Failed, format!("{doing}: {}", chain(error)))
    }

    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl From<SettingsError> for CliError {
    fn from(error: SettingsError) -> Self {
        let hint = match &error {
            SettingsError::NoHome => "set HOME, or DISPATCH_HOME to a directory of its own",
            SettingsError::Read { .. } => "the file must be readable UTF-8 text",
            SettingsError::Problems(_) => "`dispatch config show --sources` once it is mended",
        };
        Self::usage(chain(&error)).hint(hint)
    }
}

impl From<BadRequest> for CliError {
    fn from(error: BadRequest) -> Self {
        Self::usage(error.to_string())
    }
}

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> Self {
        let exit = match &error {
            ClientError::Unreachable(_) | ClientError::Lost(_) | ClientError::Token(_) => {
                Exit::Unreachable
            }
            ClientError::Refused(problem) if problem.code == "engine_gone" => Exit::Unreachable,
            ClientError::Refused(problem) if problem.code == "queue_full" => Exit::Failed,
            ClientError::Refused(problem) if problem.status < 500 => Exit::Usage,
            ClientError::Refused(_) => Exit::Failed,
        };
        let made = Self::new(exit, error.to_string());
        match exit {
            Exit::Unreachable => made.hint(
                "`dispatch list` shows what was accepted; `dispatch doctor` looks for causes",
            ),
            _ => made,
        }
    }
}

impl From<StartError> for CliError {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Client(error) => error.into(),
            other => Self::new(Exit::Unreachable, chain(&other))
                .hint("`dispatch serve` in another terminal shows what is wrong"),
        }
    }
}

impl From<PlanError> for CliError {
    fn from(error: PlanError) -> Self {
        let exit = match error {
            PlanError::Agent(_) | PlanError::Base(_) => Exit::Usage,
            PlanError::Git(_) | PlanError::Prompt(_) => Exit::Failed,
        };
        Self::new(exit, chain(&error))
    }
}

impl From<ServeError> for CliError {
    fn from(error: ServeError) -> Self {
        Self::new(Exit::Unreachable, chain(&error))
    }
}

/// Writing our own output is the only I/O that comes here unworded.
impl From<io::Error> for CliError {
    fn from(error: io::Error) -> Self {
        let mut made = Self::new(Exit::Failed, format!("write the output: {error}"));
        made.quiet = error.kind() == io::ErrorKind::BrokenPipe;
        made
    }
}

impl From<serde_json::Error> for CliError {
    fn from(error: serde_json::Error) -> Self {
        io::Error::from(error).into()
    }
}
