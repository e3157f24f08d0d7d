//! One run watched to its end, whatever happens to the engine meanwhile; Ctrl-C stops the task.
//! Must not end a task when the watcher goes away.

use std::time::Duration;

use tokio::{
    signal::unix::{SignalKind, signal},
    time::{MissedTickBehavior, interval, sleep},
};

use super::{
    Ctx,
    error::{CliError, Result},
    exit::Exit,
    out,
    screen::{Screen, checks_line, diffstat_line, next_lines},
    style::{Colour, clean_line, clean_text, cut},
    tasks,
};
use crate::{
    api::{request, task::Task},
    client::{Client, ClientError, Events, Heard, start},
};

/// Reconnections without hearing anything new in between.
const TRIES_MAX: u32 = 5;
const TRY_AGAIN: Duration = Duration::from_millis(200);
const REDRAW: Duration = Duration::from_millis(120);

/// Follows the last run of `task` until it has finished, and those that come after it by themselves:
/// tries of Dispatch's own, and the run that hears how the task's children have ended. One that waits
/// for a person alone is left to that person.
pub(crate) async fn to_end(ctx: &Ctx, client: Client, task: &Task, screen: Screen) -> Result<Task> {
    let mut following = Following {
        ctx,
        client,
        id: &task.id,
        n: task.runs.last().map_or(1, |run| run.n),
        after: 0,
        parked: false,
        interrupts: 0,
        screen,
    };
    following.park(task);
    loop {
        let ended = following.watch().await;
        following.screen.clear()?;
        ended?;
        let path = format!("/v1/tasks/{}", task.id);
        let task: Task = match following.client.get(&path).await {
            Ok(task) => task,
            // It left as soon as it had nothing to do; the log has it all.
            Err(_) => tasks::one(&ctx.settings, &task.id).await?,
        };
        let next = task.runs.last().map_or(0, |run| run.n);
        let goes_on = next > following.n || (task.is_parked() && !task.needs_you());
        if !task.is_open() || !goes_on {
            return Ok(task);
        }
        following.n = next;
        // From the start: what is told of this run may have come before the end of the other.
        following.after = 0;
        following.park(&task);
    }
}

struct Following<'a> {
    ctx: &'a Ctx,
    client: Client,
    id: &'a str,
    n: u32,
    after: u64,
    /// The run has ended and the task has not: whatever happens to that is looked at anew.
    parked: bool,
    interrupts: u32,
    screen: Screen,
}

enum Step {
    Heard(std::result::Result<Option<Heard>, ClientError>),
    Redraw,
    Interrupt,
}

impl Following<'_> {
    fn park(&mut self, task: &Task) {
        self.parked = task.is_parked();
        if self.parked {
            self.after = task.seq;
        }
    }

    async fn watch(&mut self) -> Result<()> {
        let mut interrupt = signal(SignalKind::interrupt())
            .map_err(|error| CliError::failed("listen for signals", &error))?;
        let mut tick = interval(REDRAW);
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut tries = 0;
        loop {
            let mut events = match self.client.events(self.after, Some(self.id)).await {
                Ok(events) => events,
                Err(error) => {
                    self.reconnect(&mut tries, error.to_string()).await?;
                    continue;
                }
            };
            let lost = loop {
                let step = step(
                    &mut events,
                    &mut tick,
                    &mut interrupt,
                    self.screen.redraws(),
                );
                match step.await {
                    Step::Redraw => self.screen.draw()?,
                    Step::Interrupt => self.interrupted().await?,
                    Step::Heard(Ok(None)) => break "the engine ended".to_owned(),
                    Step::Heard(Err(error)) => break error.to_string(),
                    Step::Heard(Ok(Some(heard))) => {
                        // That it serves is not yet news.
                        if let Heard::Event(_) | Heard::Live(_) = heard {
                            tries = 0;
                        }
                        if self.hear(&heard)? {
                            return Ok(());
                        }
                        if let Err(error) = self.provide(&heard).await {
                            break error.to_string();
                        }
                    }
                }
            };
            self.reconnect(&mut tries, lost).await?;
        }
    }

    /// Whether this was the end of the run.
    fn hear(&mut self, heard: &Heard) -> Result<bool> {
        let run = match heard {
            Heard::Event(event) => {
                self.after = self.after.max(event.seq);
                event.run
            }
            Heard::Live(live) => Some(live.run),
            Heard::Open(open) => Some(open.run),
            Heard::At(at) => {
                self.after = self.after.max(at.seq);
                None
            }
        };
        if self.parked {
            self.screen.hear(heard)?;
            return Ok(matches!(heard, Heard::Event(_)));
        }
        // History of earlier runs is not news.
        if run.is_some_and(|run| run != self.n) {
            return Ok(false);
        }
        self.screen.hear(heard)?;
        Ok(matches!(heard, Heard::Event(event) if event.kind == "finished"))
    }

    /// What it waits for may be a key that we have, and that no engine was given since the last one.
    async fn provide(&self, heard: &Heard) -> std::result::Result<(), ClientError> {
        match heard {
            Heard::Event(event) if event.kind == "waits" => {
                start::provide(&self.client, &self.ctx.settings).await
            }
            _ => Ok(()),
        }
    }

    /// Tries the lock, then the socket, and starts an engine when nobody has the lock.
    async fn reconnect(&mut self, tries: &mut u32, why: String) -> Result<()> {
        *tries += 1;
        if *tries > TRIES_MAX {
            let what = format!("follow task {}: {why}", self.id);
            return Err(CliError::new(Exit::Unreachable, what)
                .hint("the task lives on; `dispatch show` tells how it is"));
        }
        sleep(TRY_AGAIN).await;
        self.client = start::connect(&self.ctx.settings).await?;
        Ok(())
    }

    async fn interrupted(&mut self) -> Result<()> {
        self.interrupts += 1;
        let (force, text) = match self.interrupts {
            1 => (request::Force::Ask, "stopping; again to kill it"),
            2 => (request::Force::Kill, "killing; again to leave it alone"),
            _ => {
                return Err(CliError::new(
                    Exit::Stopped,
                    "wait for the end: interrupted",
                ));
            }
        };
        self.screen.clear()?;
        out::aside(text);
        let path = format!("/v1/tasks/{}/stop", self.id);
        let told: std::result::Result<Task, ClientError> =
            self.client.post(&path, &request::Stop { force }).await;
        // It may have ended by itself just now; its end is heard either way.
        if let Err(error) = told {
            out::aside(&format!("warning: failed to {error}"));
        }
        Ok(())
    }
}

async fn step(
    events: &mut Events,
    tick: &mut tokio::time::Interval,
    interrupt: &mut tokio::signal::unix::Signal,
    redraws: bool,
) -> Step {
    tokio::select! {
        _ = interrupt.recv() => Step::Interrupt,
        heard = events.next() => Step::Heard(heard),
        _ = tick.tick(), if redraws => Step::Redraw,
    }
}

const SUMMARY_CHARS: usize = 100;
const TAIL_LINES: usize = 5;

/// `3f completed: summary`, on one line.
pub(crate) fn summary(ctx: &Ctx, task: &Task) -> String {
    let state = ctx.style.state(&task.state);
    match &task.reason {
        Some(reason) => {
            // The end of what it said says most; `show` has all of it.
            let last = reason.trim().lines().next_back().unwrap_or("");
            format!(
                "{} {state}: {}",
                task.short,
                cut(&clean_line(last), SUMMARY_CHARS)
            )
        }
        None => format!("{} {state}", task.short),
    }
}

/// Where there is a change to look at, the last lines are enough; a report is shown whole.
fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(TAIL_LINES);
    let mark = if from > 0 { "… " } else { "" };
    format!("{mark}{}", lines[from..].join("\n"))
}

/// What is printed when a run has ended, and the exit code.
pub(crate) fn finish(ctx: &Ctx, task: &Task, json: bool) -> Result<Exit> {
    if json {
        out::json(task)?;
        return Ok(Exit::of(task));
    }
    let state = ctx.style.state(&task.state);
    let reason = clean_text(task.reason.as_deref().unwrap_or(&task.title));
    let reason = if task.changed {
        tail(reason.trim())
    } else {
        reason.trim().to_owned()
    };
    out::line(&format!("{} {state}: {reason}", task.short))?;
    if let Some(diffstat) = diffstat_line(task) {
        out::line(&format!("  {diffstat}"))?;
    }
    out::line(&format!("  {}", checks_line(task)))?;
    for note in &task.notes {
        let note = format!("  note: {}", clean_line(note));
        out::line(&ctx.style.paint(Colour::Yellow, &note))?;
    }
    for line in next_lines(task) {
        out::line(&line)?;
    }
    Ok(Exit::of(task))
}
