//! `dispatch notify`: tries a hook by hand. Must not touch the hook's position in the log, and needs
//! no engine.

use dispatch_core::{config::list, id::HookName};
use dispatch_engine::clock::Clock;
use serde::Serialize;

use super::{
    Ctx,
    error::{CliError, Result, chain},
    exit::Exit,
    out,
};
use crate::{
    api::notice::Notice,
    notify::send::{SendError, Sender},
};

/// Try a notification hook.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  dispatch notify test phone")]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Send one notice now, from here: one try
    Test {
        /// A [notify.NAME] of the configuration
        name: String,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Serialize)]
struct Sent {
    hook: String,
    kind: String,
    id: String,
}

pub(crate) async fn run(ctx: &Ctx, args: &Args) -> Result<Exit> {
    let What::Test { name, json } = &args.what;
    let hooks = &ctx.settings.config.notify;
    let found = hooks.iter().find(|(hook, _)| hook.as_str() == name);
    let Some((name, hook)) = found else {
        let there = if hooks.is_empty() {
            "there is none".to_owned()
        } else {
            format!("there are {}", list(hooks.keys()))
        };
        let what = format!("use hook {name}: it is not configured; {there}");
        return Err(CliError::usage(what).hint("`[notify.NAME]` in dispatch.toml makes one"));
    };
    let notice = Notice::test(name, Clock::System.now());
    let sender = Sender::new(name.clone(), hook.clone(), ctx.settings.clone());
    sender
        .send(&notice)
        .await
        .map_err(|error| failed(name, &error))?;
    if *json {
        out::json(&Sent {
            hook: name.to_string(),
            kind: hook.way.word().to_owned(),
            id: notice.id,
        })?;
    } else {
        out::line(&format!("{name} ({}): sent", hook.way.word()))?;
    }
    Ok(Exit::Completed)
}

fn failed(name: &HookName, error: &SendError) -> CliError {
    let told = CliError::new(Exit::Failed, chain(error));
    let hint = match error {
        SendError::Secret { source, .. } => source.hint(),
        _ => None,
    };
    told.hint(hint.unwrap_or_else(|| {
        format!("`dispatch config show --sources` has what [notify.{name}] is made of")
    }))
}
