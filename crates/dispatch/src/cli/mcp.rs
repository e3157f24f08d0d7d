//! `dispatch mcp`: the tools for a program that speaks MCP, on standard input and output. Nothing else
//! may be written there.

use std::path::PathBuf;

use rmcp::{serve_server, service::ServerInitializeError, transport::stdio_pipes};

use super::{
    error::{CliError, Result, chain},
    exit::Exit,
};
use crate::{
    mcp::{
        door::{Door, Refusal},
        server::Mcp,
    },
    settings::{Env, Settings},
};

/// Where an agent finds the engine, and the file of its token.
const DOOR: &str = "DISPATCH_DOOR";
const TOKEN_FILE: &str = "DISPATCH_TOKEN_FILE";

/// Speak MCP on standard input and output, for an editor or an agent.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  claude mcp add dispatch -- dispatch mcp\n  codex mcp add dispatch -- dispatch mcp\n\ndocs/mcp.md has the tools, and more clients. Like other verbs it starts an engine when it needs one."
)]
pub(crate) struct Args {
    /// For the agent of a run, inside its fence: by the socket that DISPATCH_DOOR names, with the
    /// token in the file that DISPATCH_TOKEN_FILE names
    #[arg(long)]
    pub(crate) run: bool,
    /// Tell of starts and ends on Claude's channel, to a client that does not ask for it
    #[arg(long, conflicts_with = "run")]
    pub(crate) channel: bool,
}

/// Of whoever is at this machine.
pub(crate) async fn run(settings: &Settings, args: &Args) -> Result<Exit> {
    let server = Mcp::new(Door::own(settings.clone()));
    serve(if args.channel {
        server.with_channel()
    } else {
        server
    })
    .await
}

/// Of a run's agent: nothing of the person's settings is there, and nothing of them counts.
pub(crate) async fn of_run(env: &Env) -> Result<Exit> {
    let path = |name: &str| {
        let text = env.text(name).ok_or_else(|| {
            CliError::usage(format!("find the engine: {name} is not set"))
                .hint("`dispatch mcp --run` is for agents that Dispatch has started")
        });
        text.map(PathBuf::from)
    };
    let (socket, token) = (path(DOOR)?, path(TOKEN_FILE)?);
    let told = |refusal: Refusal| CliError::usage(refusal.what);
    serve(Mcp::new(Door::fence(&socket, token).map_err(told)?)).await
}

async fn serve(server: Mcp) -> Result<Exit> {
    let serving = match serve_server(server, stdio_pipes()).await {
        Ok(serving) => serving,
        // Whoever started us has thought better of it.
        Err(ServerInitializeError::ConnectionClosed(_)) => return Ok(Exit::Completed),
        Err(error) => {
            return Err(CliError::new(
                Exit::Failed,
                format!("speak MCP: {}", chain(&error)),
            ));
        }
    };
    match serving.waiting().await {
        Ok(_) => Ok(Exit::Completed),
        Err(error) => Err(CliError::failed("speak MCP", &error)),
    }
}
