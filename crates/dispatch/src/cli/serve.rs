//! `dispatch serve`: the engine, in this process, until it is told to end or has nothing to do.
//! Must not start a second one: the data directory's lock decides.

use std::{
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};

use dispatch_engine::engine::OpenError;
use serde::Serialize;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::sleep,
};

use super::{
    Ctx,
    error::{CliError, Result, chain},
    exit::Exit,
    out,
};
use crate::{
    client::start,
    http::server::{Net, ServeError, Server},
    settings::Settings,
};

/// From asking an engine to leave until it must have left.
const LEAVE_MAX: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Run the engine in the foreground; jobs outlive it.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  dispatch serve\n  dispatch serve --listen 127.0.0.1:7717\n  dispatch serve --listen 127.0.0.1:0 --json\n\nOther verbs start one by themselves when they need it; this one takes its place. Ctrl-C ends the engine; jobs live on and\nthe next engine picks them up."
)]
pub(crate) struct Args {
    /// Listen there too, for programs with a token (`dispatch token new`); port 0 takes a free one
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// Tokens may cross the network in the clear: for an address that other machines reach, without TLS
    #[arg(long)]
    insecure_plain_http: bool,
    /// Print one JSON object when it serves: `url` is null without an address to listen at
    #[arg(long)]
    json: bool,
    /// End when nothing is live, queued or paused
    #[arg(long)]
    until_idle: bool,
    /// Leave the session of whoever started us
    #[arg(long, hide = true)]
    own_session: bool,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Serving<'a> {
    url: Option<&'a str>,
    socket: &'a Path,
}

/// Before anything else, so that a Ctrl-C or hang-up of the starter's terminal never comes here.
pub(crate) fn own_session(args: &Args) -> Result<()> {
    if args.own_session {
        rustix::process::setsid()
            .map_err(|error| CliError::failed("leave the session", &std::io::Error::from(error)))?;
    }
    Ok(())
}

async fn open(settings: &Settings, args: &Args) -> Result<Server> {
    let net = Net {
        listen: args.listen,
        insecure_plain_http: args.insecure_plain_http,
        // Whoever started it wants an engine; an address that is taken is no reason to have none.
        or_without: args.own_session,
        on_demand: args.own_session,
    };
    let deadline = Instant::now() + LEAVE_MAX;
    let opened = loop {
        match Server::open(settings, net).await {
            // One that a verb has started has no reason to stay when somebody serves.
            Err(error) if is_busy(&error) && !args.own_session && Instant::now() < deadline => {
                if !start::asked_to_leave(settings).await {
                    break Err(error);
                }
                sleep(LOOK_AGAIN).await;
            }
            opened => break opened,
        }
    };
    opened.map_err(|error| {
        let told = CliError::new(Exit::Unreachable, chain(&error));
        match &error {
            _ if is_busy(&error) && args.listen.is_some() => told.hint(
                "an engine runs already, without that address; end it first, or name the address \
                 in dispatch.toml, as server.listen",
            ),
            _ if is_busy(&error) => {
                told.hint("an engine runs already and serves this data directory; verbs find it")
            }
            ServeError::Exposed { .. } => CliError::usage(chain(&error)),
            _ => told,
        }
    })
}

fn is_busy(error: &ServeError) -> bool {
    matches!(error, ServeError::Open(OpenError::Busy { .. }))
}

/// For `run --here`: an engine in this process, or `None` when one serves already.
pub(crate) async fn open_unless_served(settings: &Settings) -> Result<Option<Server>> {
    let net = Net {
        or_without: true,
        ..Net::default()
    };
    match Server::open(settings, net).await {
        Ok(server) => Ok(Some(server)),
        Err(error) if is_busy(&error) => {
            out::aside("an engine serves this data directory already; the task goes there");
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

pub(crate) async fn run(ctx: &Ctx, args: &Args) -> Result<Exit> {
    let hook = |kind| signal(kind).map_err(|error| CliError::failed("listen for signals", &error));
    let (mut int, mut term) = (
        hook(SignalKind::interrupt())?,
        hook(SignalKind::terminate())?,
    );
    let server = open(&ctx.settings, args).await?;
    let socket = ctx.settings.paths.socket();
    let at = server.url().map(|url| format!(" and {url}"));
    out::aside(&format!(
        "dispatch {} serves {}{}",
        env!("CARGO_PKG_VERSION"),
        socket.display(),
        at.unwrap_or_default()
    ));
    if args.json {
        out::json(&Serving {
            url: server.url(),
            socket: &socket,
        })?;
    }
    let why = tokio::select! {
        _ = int.recv() => "interrupted",
        _ = term.recv() => "terminated",
        reason = server.failed() => {
            let told = CliError::new(Exit::Failed, format!("go on as the engine: {reason}"));
            return Err(told.hint("jobs live on; the next engine goes on from the log"));
        }
        () = server.stopped() => "asked to end",
        () = server.idle(), if args.until_idle => "nothing left to do",
    };
    out::aside(&format!("ending: {why}; jobs live on"));
    server
        .close()
        .await
        .map_err(|error| CliError::failed("end the engine", &error))?;
    Ok(Exit::Completed)
}
