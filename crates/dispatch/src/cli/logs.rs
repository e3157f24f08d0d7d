//! `dispatch logs`: the bytes an agent wrote. Must not start an engine: the files and the keeper's
//! lock say everything, live or not.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    time::Duration,
};

use dispatch_engine::jobdir::{JobDir, Probe};
use tokio::time::sleep;

use super::{
    Ctx,
    error::{CliError, Result},
    exit::Exit,
    out,
    style::clean_text,
    tasks,
};
use crate::api::task::{Check, Task};

const CHUNK_BYTES: usize = 64 << 10;
/// While following; a person does not see faster than this.
const LOOK_AGAIN: Duration = Duration::from_millis(150);

/// Print what the agent wrote.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  dispatch logs 3f\n  dispatch logs 3f -f\n  dispatch logs 3f --err --run 1\n  dispatch logs 3f --check test"
)]
pub(crate) struct Args {
    /// A task, by a prefix of its id
    id: String,
    /// Go on until the run has ended
    #[arg(short, long)]
    follow: bool,
    /// Its standard error instead
    #[arg(long)]
    err: bool,
    /// Of this run instead of the last one
    #[arg(long, value_name = "N")]
    run: Option<u32>,
    /// Of a check instead of the agent
    #[arg(long, value_name = "NAME")]
    check: Option<String>,
}

impl Args {
    /// What its agent prints, for as long as it lives.
    #[cfg(feature = "tui")]
    pub(super) fn follow(id: &str) -> Self {
        Self {
            id: id.to_owned(),
            follow: true,
            err: false,
            run: None,
            check: None,
        }
    }
}

pub(crate) async fn run(ctx: &Ctx, args: &Args) -> Result<Exit> {
    let mut task = tasks::one(&ctx.settings, &args.id).await?;
    // A queued run has no directory yet.
    let dir = loop {
        match directory(&task, args)? {
            Some(dir) if dir.is_dir() => break dir,
            _ if args.follow && task.is_open() => sleep(LOOK_AGAIN).await,
            _ => {
                let what = format!(
                    "read the log of task {}: its job has not started",
                    task.short
                );
                return Err(CliError::usage(what).hint(task.reason.unwrap_or_default()));
            }
        }
        task = tasks::one(&ctx.settings, &task.id).await?;
    };
    let file = dir.join(if args.err { "err" } else { "out" });
    let fail = |error: io::Error| CliError::failed(format!("read {}", file.display()), &error);
    let mut log = loop {
        match File::open(&file) {
            Ok(log) => break log,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // The directory is made before a keeper holds its lock.
                let comes = args.follow
                    && (alive(&dir) || tasks::one(&ctx.settings, &task.id).await?.is_open());
                if !comes {
                    return Ok(Exit::Completed);
                }
                sleep(LOOK_AGAIN).await;
            }
            Err(error) => return Err(fail(error)),
        }
    };
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        // Asked before the read: what is written after the end is nothing.
        let alive = args.follow && alive(&dir);
        loop {
            let n = log.read(&mut buffer).map_err(fail)?;
            if n == 0 {
                break;
            }
            if ctx.style.tty {
                let text = String::from_utf8_lossy(&buffer[..n]).into_owned();
                out::bytes(clean_text(&text).as_bytes())?;
            } else {
                out::bytes(&buffer[..n])?;
            }
        }
        if !alive {
            return Ok(Exit::Completed);
        }
        sleep(LOOK_AGAIN).await;
    }
}

fn directory(task: &Task, args: &Args) -> Result<Option<PathBuf>> {
    let run = match args.run {
        None => task.runs.last(),
        Some(n) => Some(task.runs.iter().find(|run| run.n == n).ok_or_else(|| {
            let what = format!("find run {n}: task {} has {}", task.short, task.runs.len());
            CliError::usage(what)
        })?),
    };
    let agent = run
        .and_then(|run| run.log.as_deref())
        .and_then(Path::parent);
    let Some(name) = &args.check else {
        return Ok(agent.map(Path::to_path_buf));
    };
    let checks = run.map_or(&[][..], |run| &run.checks);
    let Some(name) = whole_name(checks, name) else {
        // Which checks there will be is known when the agent is done.
        if args.follow && task.is_open() {
            return Ok(None);
        }
        let names: Vec<&str> = checks.iter().map(|check| check.name.as_str()).collect();
        let there = if names.is_empty() {
            "none ran".to_owned()
        } else {
            format!("there are {}", names.join(", "))
        };
        let what = format!("find check {name} of task {}: {there}", task.short);
        return Err(CliError::usage(what));
    };
    Ok(agent
        .and_then(Path::parent)
        .map(|run| run.join(format!("check.{name}"))))
}

/// `rust.test` is also `test`, as long as no other check's step is called so.
fn whole_name<'a>(checks: &'a [Check], wanted: &str) -> Option<&'a str> {
    let names = || checks.iter().map(|check| check.name.as_str());
    let step = |name: &&str| {
        name.rsplit_once('.')
            .is_some_and(|(_, step)| step == wanted)
    };
    names().find(|name| *name == wanted).or_else(|| {
        let mut steps = names().filter(step);
        steps.next().filter(|_| steps.next().is_none())
    })
}

fn alive(dir: &Path) -> bool {
    let probe = JobDir::at(dir.to_path_buf()).probe();
    matches!(probe, Ok(Probe::Alive | Probe::Starting))
}
