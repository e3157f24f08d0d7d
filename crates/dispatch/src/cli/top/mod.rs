//! `dispatch top`: all tasks, live, on the whole terminal. One loop hears keys, news of the engine,
//! signals and the second hand, and draws after each.
//! Must not change anything but by the API, and must not leave a terminal as it was not.
//!
//! * `model` what is shown; `draw` how; `keys` what a key means; `editor` a line being typed
//! * `feed` what the engine says; `terminal` taking it and giving it back

mod draw;
mod editor;
mod feed;
mod keys;
mod model;
mod terminal;

use std::{
    io::{self, IsTerminal},
    time::Duration,
};

use crossterm::event::{Event as Input, EventStream, KeyCode};
use futures_util::{FutureExt, StreamExt, future::LocalBoxFuture, stream::FuturesUnordered};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc::{Receiver, channel},
    time::{MissedTickBehavior, interval},
};

use self::{
    draw::{Paint, draw},
    feed::News,
    keys::{Act, press},
    model::{Mode, Model},
    terminal::Screen,
};
use super::{
    Ctx,
    error::{CliError, Result},
    exit::Exit,
    logs, out,
    run::{Whom, agent_secrets},
    tasks,
};
use crate::{
    api::{request, task::Task},
    client::{Client, start},
    settings::Settings,
};

const NEWS_MAX: usize = 256;
/// Ages grow by themselves.
const SECOND: Duration = Duration::from_secs(1);

/// Watch all tasks, live, and act on them.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  dispatch top\n\nKeys: up and down select, enter shows, l follows the output, s stops, a answers or permits, f freezes or thaws,\nq quits. Without a terminal use `dispatch list` and `dispatch events -f`."
)]
pub(crate) struct Args {}

pub(crate) async fn run(ctx: &Ctx) -> Result<Exit> {
    if !ctx.style.tty || !io::stdin().is_terminal() {
        let what = "draw on the terminal: standard input and output are not one that takes it";
        let hint = "`dispatch list` prints the same once, `dispatch events -f` what happens";
        return Err(CliError::usage(what).hint(hint));
    }
    let failed = |error: io::Error| CliError::failed("use the terminal", &error);
    let frozen = match tasks::reader(&ctx.settings)? {
        Some(reader) => reader
            .state()
            .map_err(|error| CliError::failed("read the log", &error))?
            .frozen(),
        None => false,
    };
    let mut signals = Signals::new().map_err(failed)?;
    let (tell, news) = channel(NEWS_MAX);
    let feeding = tokio::spawn(feed::run(ctx.settings.clone(), tell));
    let screen = Screen::enter().map_err(failed)?;
    let mut top = Top {
        ctx,
        model: Model::new(frozen),
        paint: Paint {
            colour: ctx.style.colours(),
        },
        screen,
        asked: FuturesUnordered::new(),
    };
    let ended = top.watch(news, &mut signals).await;
    feeding.abort();
    // Before anything is printed.
    drop(top);
    ended
}

/// Ends that come from outside; Ctrl-C is a key here, but somebody may send its signal.
struct Signals {
    int: Signal,
    term: Signal,
    hup: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            int: signal(SignalKind::interrupt())?,
            term: signal(SignalKind::terminate())?,
            hup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.int.recv() => {}
            _ = self.term.recv() => {}
            _ = self.hup.recv() => {}
        }
    }
}

struct Top<'a> {
    ctx: &'a Ctx,
    model: Model,
    paint: Paint,
    screen: Screen,
    /// Requests under way, each ending in what to say of it.
    asked: FuturesUnordered<LocalBoxFuture<'static, String>>,
}

impl Top<'_> {
    async fn watch(&mut self, mut news: Receiver<News>, signals: &mut Signals) -> Result<Exit> {
        let mut keys = EventStream::new();
        let mut tick = interval(SECOND);
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            self.draw()?;
            tokio::select! {
                input = keys.next() => match input {
                    Some(Ok(input)) => {
                        if let Some(act) = self.input(&input)
                            && let Some(exit) = self.act(act, &mut keys, signals).await?
                        {
                            return Ok(exit);
                        }
                    }
                    Some(Err(error)) => return Err(CliError::failed("read the keys", &error)),
                    None => return Ok(Exit::Completed),
                },
                Some(told) = news.recv() => {
                    self.news(told);
                    // What has come meanwhile is drawn together.
                    while let Ok(told) = news.try_recv() {
                        self.news(told);
                    }
                }
                Some(text) = self.asked.next() => self.model.message = Some(text),
                () = signals.next() => return Ok(Exit::Stopped),
                _ = tick.tick() => {}
            }
        }
    }

    fn draw(&mut self) -> Result<()> {
        let (model, paint) = (&self.model, self.paint);
        let now = jiff::Timestamp::now();
        self.screen
            .terminal
            .draw(|frame| draw(frame, model, now, paint))?;
        Ok(())
    }

    fn news(&mut self, news: News) {
        match news {
            News::All(tasks) => self.model.tasks(tasks),
            News::One(task) => self.model.task(*task),
            News::Heard(heard) => self.model.hear(&heard),
            News::Lost(why) => self.model.lost = Some(why),
        }
    }

    fn input(&mut self, input: &Input) -> Option<Act> {
        match input {
            Input::Key(key) => press(&mut self.model, *key),
            Input::Paste(text) => {
                if let Mode::Answer { text: line, .. } = &mut self.model.mode {
                    text.chars().for_each(|c| line.put(c));
                }
                None
            }
            Input::Resize(..) | Input::FocusGained | Input::FocusLost | Input::Mouse(_) => None,
        }
    }

    /// The exit, when that was the last.
    async fn act(
        &mut self,
        act: Act,
        keys: &mut EventStream,
        signals: &mut Signals,
    ) -> Result<Option<Exit>> {
        match act {
            Act::Quit => return Ok(Some(Exit::Completed)),
            Act::Logs { id } => return self.logs(&id, keys, signals).await,
            Act::Stop { id } => self.ask("stop", move |settings| async move {
                let path = format!("/v1/tasks/{id}/stop");
                let asked = request::Stop::default();
                let ask = async |client: &Client| client.post::<_, Task>(&path, &asked).await;
                let (_, task) = start::ask(&settings, ask).await?;
                Ok(format!("{}: {}", task.short, task.state))
            }),
            Act::Permit { id, ask, allow } => self.ask("answer", move |settings| async move {
                let path = format!("/v1/tasks/{id}/asks/{ask}");
                let asked = request::Permit {
                    allow,
                    why: None,
                    always: false,
                };
                let send = async |client: &Client| client.post::<_, Task>(&path, &asked).await;
                let (_, task) = start::ask(&settings, send).await?;
                let word = if allow { "allowed" } else { "denied" };
                Ok(format!("{}: ask {ask} {word}", task.short))
            }),
            Act::Freeze { frozen } => self.ask("freeze", move |settings| async move {
                let asked = request::Freeze {
                    frozen,
                    ..request::Freeze::default()
                };
                let ask = async |client: &Client| client.post("/v1/freeze", &asked).await;
                let (_, ()) = start::ask(&settings, ask).await?;
                let word = if frozen {
                    "frozen: nothing new starts"
                } else {
                    "thawed"
                };
                Ok(word.to_owned())
            }),
            Act::Answer { id, text } => {
                let Some(task) = self.model.find(&id).cloned() else {
                    return Ok(None);
                };
                self.ask("answer", move |settings| async move {
                    answer(settings, task, text).await
                });
            }
        }
        Ok(None)
    }

    /// Whom the engine beside the screen, which goes on meanwhile and says how it went.
    fn ask<F>(&self, verb: &'static str, request: impl FnOnce(Settings) -> F)
    where
        F: Future<Output = Result<String>> + 'static,
    {
        let asked = request(self.ctx.settings.clone());
        let told = asked.map(move |ended| match ended {
            Ok(text) => text,
            Err(error) => format!("failed to {verb}: {}", error.what),
        });
        self.asked.push(told.boxed_local());
    }

    /// The agent's output in ordinary lines, until its end or Ctrl-C.
    async fn logs(
        &mut self,
        id: &str,
        keys: &mut EventStream,
        signals: &mut Signals,
    ) -> Result<Option<Exit>> {
        let left = |error| CliError::failed("use the terminal", &error);
        self.screen.leave().map_err(left)?;
        out::aside("[Ctrl-C goes back]");
        let args = logs::Args::follow(id);
        let followed = tokio::select! {
            followed = logs::run(self.ctx, &args) => Some(followed),
            _ = signals.int.recv() => None,
            _ = signals.term.recv() => return Ok(Some(Exit::Stopped)),
            _ = signals.hup.recv() => return Ok(Some(Exit::Stopped)),
        };
        let mut message = None;
        match followed {
            None => {}
            Some(Err(error)) => message = Some(format!("failed to {}", error.what)),
            Some(Ok(_)) => {
                out::aside("[the end of the output; enter goes back]");
                tokio::select! {
                    () = enter(keys) => {}
                    () = signals.next() => {}
                }
            }
        }
        // What was typed at the log is not meant for the list.
        while keys.next().now_or_never().flatten().is_some() {}
        self.screen.enter_again().map_err(left)?;
        self.model.message = message;
        Ok(None)
    }
}

async fn enter(keys: &mut EventStream) {
    while let Some(Ok(input)) = keys.next().await {
        if matches!(&input, Input::Key(key) if key.code == KeyCode::Enter) {
            return;
        }
    }
}

async fn answer(settings: Settings, task: Task, text: String) -> Result<String> {
    let (given, id) = (settings.clone(), task.id.clone());
    // A secret's program may take its time, and the screen goes on.
    let taken =
        tokio::task::spawn_blocking(move || agent_secrets(&given, &task.agent, Whom::of(&task)))
            .await;
    let secrets =
        taken.map_err(|error| CliError::failed("take the secrets of the agent", &error))??;
    let asked = request::Answer {
        text,
        secrets,
        ..request::Answer::default()
    };
    let path = format!("/v1/tasks/{id}/answer");
    let ask = async |client: &Client| client.post::<_, Task>(&path, &asked).await;
    let (_, task) = start::ask(&settings, ask).await?;
    let n = task.runs.last().map_or(0, |run| run.n);
    Ok(format!("{}: answered, run {n} {}", task.short, task.state))
}
