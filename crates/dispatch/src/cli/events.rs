//! `dispatch events`: the audit, one line per event. Without `-f` it reads the log and starts
//! nothing; with `-f` it follows an engine.

use std::time::Duration;

use tokio::time::sleep;

use super::{
    Ctx,
    error::{CliError, Result},
    exit::Exit,
    out,
    screen::describe,
    tasks,
};
use crate::{
    api::event::Event,
    client::{ClientError, Heard, start},
};

const PAGE_EVENTS: usize = 1000;
const TRIES_MAX: u32 = 5;
const TRY_AGAIN: Duration = Duration::from_millis(500);

/// Print what happened, one line per event.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  dispatch events --task 3f\n  dispatch events --after 120 -f --json"
)]
pub(crate) struct Args {
    /// Only what came after this number
    #[arg(long, default_value_t = 0, value_name = "SEQ")]
    after: u64,
    /// Only of this task
    #[arg(long, value_name = "ID")]
    task: Option<String>,
    /// Go on with what happens
    #[arg(short, long)]
    follow: bool,
    /// One JSON object per line
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(ctx: &Ctx, args: &Args) -> Result<Exit> {
    let task = match &args.task {
        Some(prefix) => Some(tasks::one(&ctx.settings, prefix).await?.id),
        None => None,
    };
    if args.follow {
        return follow(ctx, args, task.as_deref()).await;
    }
    let Some(reader) = tasks::reader(&ctx.settings)? else {
        return Ok(Exit::Completed);
    };
    let mut after = args.after;
    loop {
        let page = reader
            .events(after, PAGE_EVENTS)
            .map_err(|error| CliError::failed("read the log", &error))?;
        let Some(last) = page.last() else {
            return Ok(Exit::Completed);
        };
        after = last.seq;
        for event in page.iter().map(Event::from) {
            if task.is_none() || event.task == task {
                print(args, &event)?;
            }
        }
    }
}

async fn follow(ctx: &Ctx, args: &Args, task: Option<&str>) -> Result<Exit> {
    let (mut after, mut tries) = (args.after, 0);
    loop {
        let client = start::connect(&ctx.settings).await?;
        match client.events(after, task).await {
            Ok(mut events) => {
                while let Ok(Some(heard)) = events.next().await {
                    match heard {
                        Heard::Event(event) => {
                            (after, tries) = (after.max(event.seq), 0);
                            print(args, &event)?;
                        }
                        Heard::At(at) => after = after.max(at.seq),
                        Heard::Live(_) | Heard::Open(_) => {}
                    }
                }
            }
            Err(error) if error.nothing_happened() => {}
            Err(error @ ClientError::Refused(_)) => return Err(error.into()),
            Err(_) => {}
        }
        tries += 1;
        if tries > TRIES_MAX {
            return Err(CliError::new(
                Exit::Unreachable,
                "follow the log: the engine went away",
            ));
        }
        sleep(TRY_AGAIN).await;
    }
}

fn print(args: &Args, event: &Event) -> Result<()> {
    if args.json {
        return out::json(event);
    }
    let about = match (&event.task, event.run) {
        (Some(task), Some(run)) => format!("{}-{run}", &task[..task.len().min(8)]),
        (Some(task), None) => task[..task.len().min(8)].to_owned(),
        (None, _) => "engine".into(),
    };
    let told = describe(event).unwrap_or_default();
    out::line(&format!(
        "{:>6} {} {about:<11} {:<17} {told}",
        event.seq, event.at, event.kind
    ))
}
