//! The command line: one verb, one file. Parses, runs the verb, words its error, exits.
//! Must not reach around the API: a verb that changes something is a client, like any other.

mod agents;
mod allow;
mod answer;
mod apply;
mod attach;
#[cfg(feature = "tui")]
mod chat;
mod clean;
mod compact;
mod completions;
mod config;
mod detach;
mod diff;
mod doctor;
mod dry_run;
mod duration;
pub(crate) mod error;
mod events;
pub(crate) mod exit;
mod follow;
mod freeze;
pub(crate) mod ids;
mod list;
mod login;
mod logs;
mod mcp;
mod notify;
pub(crate) mod out;
mod repo;
mod resume;
mod retry;
mod rm;
pub(crate) mod run;
mod say;
mod screen;
mod serve;
mod show;
mod stop;
mod style;
mod tasks;
mod token;
#[cfg(feature = "tui")]
mod top;
mod undo;
mod usage;
mod wait;

use std::{ffi::OsString, process::ExitCode};

use clap::{Parser, Subcommand};

use self::{
    error::{CliError, Result},
    exit::Exit,
    style::Style,
};
use crate::settings::{Env, Settings};

const EXAMPLES: &str = "\
Examples:
  dispatch run --repo . \"Fix the failing test in parser.rs\"
  dispatch list
  dispatch diff 3f
  dispatch apply 3f

Exit codes: 0 completed, 1 failed or lost, 2 usage or config, 3 blocked, 4 stopped,
5 engine unreachable, 70 a bug of ours.
Hidden programs in this file: `dispatch job` (the keeper), `dispatch agent` (agents of our own).";

/// Hands tasks to coding agents: a task in, a branch out, nothing lost.
#[derive(Debug, Parser)]
#[command(name = "dispatch", version, after_help = EXAMPLES, max_term_width = 100)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Run(Box<run::Args>),
    #[cfg(feature = "tui")]
    Chat(Box<chat::Args>),
    List(list::Args),
    #[cfg(feature = "tui")]
    Top(top::Args),
    Show(show::Args),
    Logs(logs::Args),
    Diff(diff::Args),
    Answer(answer::Args),
    Allow(allow::Args),
    Deny(allow::DenyArgs),
    Say(say::Args),
    Unsay(say::UnsayArgs),
    Compact(compact::Args),
    Retry(retry::Args),
    Resume(resume::Args),
    Stop(stop::Args),
    Wait(wait::Args),
    Detach(detach::Args),
    Apply(apply::Args),
    Undo(undo::Args),
    Rm(rm::Args),
    Clean(clean::Args),
    Events(events::Args),
    Usage(usage::Args),
    Notify(notify::Args),
    Freeze(freeze::FreezeArgs),
    Thaw(freeze::ThawArgs),
    Mcp(mcp::Args),
    Serve(serve::Args),
    Token(token::Args),
    Doctor(doctor::Args),
    Agents(agents::Args),
    Login(login::Args),
    Config(config::Args),
    Completions(completions::Args),
}

/// What every verb gets.
#[derive(Debug)]
pub(crate) struct Ctx {
    pub(crate) settings: Settings,
    pub(crate) style: Style,
}

pub(crate) fn main(args: Vec<OsString>) -> ExitCode {
    out::tell_panics();
    // Clap prints help, versions and usage errors itself, with codes 0 and 2.
    let args = match Args::try_parse_from(args) {
        Ok(args) => args,
        Err(error) => {
            let code = if error.use_stderr() {
                Exit::Usage
            } else {
                Exit::Completed
            };
            drop(error.print());
            return code.into();
        }
    };
    match dispatch(args.verb) {
        Ok(exit) => exit.into(),
        Err(error) => {
            if !error.quiet {
                tell(&error);
            }
            error.exit.into()
        }
    }
}

fn tell(error: &CliError) {
    out::aside(&format!(
        "error: failed to {}",
        style::clean_text(&error.what)
    ));
    if let Some(hint) = &error.hint {
        out::aside(&format!("hint: {}", style::clean_text(hint)));
    }
}

fn dispatch(verb: Verb) -> Result<Exit> {
    if let Verb::Completions(args) = &verb {
        return completions::run(args);
    }
    if let Verb::Serve(args) = &verb {
        serve::own_session(args)?;
    }
    let env = Env::read();
    if let Verb::Mcp(args) = &verb
        && args.run
    {
        return in_runtime(true, mcp::of_run(&env));
    }
    let ctx = Ctx {
        style: Style::detect(env.text("NO_COLOR"), env.text("TERM")),
        settings: Settings::read()?,
    };
    let serves = match &verb {
        Verb::Serve(_) => true,
        Verb::Run(args) => args.here,
        // The screen goes on while the engine is asked.
        #[cfg(feature = "tui")]
        Verb::Top(_) | Verb::Chat(_) => true,
        // Calls go on side by side, and some of them ask git or a command of the person's.
        Verb::Mcp(_) => true,
        _ => false,
    };
    in_runtime(serves, Box::pin(perform(&ctx, verb)))
}

/// A client waits for one thing at a time; threads would only cost its start.
fn in_runtime(serves: bool, work: impl Future<Output = Result<Exit>>) -> Result<Exit> {
    let runtime = if serves {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
    } else {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
    };
    let runtime = runtime.map_err(|error| CliError::failed("start the runtime", &error))?;
    let exit = runtime.block_on(work);
    // What still reads a pipe in the background must not hold the prompt back.
    runtime.shutdown_background();
    exit
}

async fn perform(ctx: &Ctx, verb: Verb) -> Result<Exit> {
    match verb {
        Verb::Run(args) => Box::pin(run::run(ctx, *args)).await,
        #[cfg(feature = "tui")]
        Verb::Chat(args) => Box::pin(chat::run(ctx, *args)).await,
        Verb::List(args) => list::run(ctx, &args).await,
        #[cfg(feature = "tui")]
        Verb::Top(_) => top::run(ctx).await,
        Verb::Show(args) => show::run(ctx, &args).await,
        Verb::Logs(args) => logs::run(ctx, &args).await,
        Verb::Diff(args) => diff::run(ctx, &args).await,
        Verb::Answer(args) => Box::pin(answer::run(ctx, args)).await,
        Verb::Allow(args) => allow::allow(ctx, &args).await,
        Verb::Deny(args) => allow::deny(ctx, &args).await,
        Verb::Say(args) => Box::pin(say::run(ctx, args)).await,
        Verb::Unsay(args) => say::unsay(ctx, &args).await,
        Verb::Compact(args) => compact::run(ctx, &args).await,
        Verb::Resume(args) => Box::pin(resume::run(ctx, args)).await,
        Verb::Retry(args) => Box::pin(retry::run(ctx, args)).await,
        Verb::Stop(args) => Box::pin(stop::run(ctx, &args)).await,
        Verb::Wait(args) => Box::pin(wait::run(ctx, &args)).await,
        Verb::Detach(args) => detach::run(ctx, &args).await,
        Verb::Apply(args) => apply::run(ctx, &args).await,
        Verb::Undo(args) => undo::run(ctx, &args).await,
        Verb::Rm(args) => rm::run(ctx, &args).await,
        Verb::Clean(args) => clean::run(ctx, args).await,
        Verb::Events(args) => events::run(ctx, &args).await,
        Verb::Usage(args) => usage::run(ctx, &args).await,
        Verb::Notify(args) => notify::run(ctx, &args).await,
        Verb::Freeze(args) => freeze::freeze(ctx, &args).await,
        Verb::Thaw(args) => freeze::thaw(ctx, &args).await,
        Verb::Mcp(args) => mcp::run(&ctx.settings, &args).await,
        Verb::Serve(args) => serve::run(ctx, &args).await,
        Verb::Token(args) => token::run(ctx, args),
        Verb::Doctor(args) => doctor::run(ctx, &args).await,
        Verb::Agents(args) => agents::run(ctx, &args),
        Verb::Login(args) => login::run(ctx, &args),
        Verb::Config(args) => config::run(ctx, &args),
        Verb::Completions(args) => completions::run(&args),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound_and_every_verb_shows_an_example() {
        let mut command = Args::command();
        command.clone().debug_assert();
        for verb in command.get_subcommands_mut() {
            let help = verb.render_long_help().to_string();
            assert!(help.contains("Example"), "{}", verb.get_name());
        }
    }
}
