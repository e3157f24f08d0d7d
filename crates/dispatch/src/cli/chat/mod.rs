//! `dispatch chat`: a task in conversation. One loop hears keys or lines, the engine, its answers,
//! signals and the time, and tells all of it to a machine that says what to print and what to ask.
//! Must not change anything but by the API, and must not end a task because somebody leaves.
//!
//! * `machine` what a chat is; `tale` events as lines; `words` what a typed line means
//! * `line` rows and colours; `editor` and `keys` what is being typed; `screen` the terminal
//! * `feed` what the engine says; `desk` what it is asked

mod desk;
mod editor;
mod feed;
mod keys;
mod line;
mod machine;
mod screen;
mod tale;
mod words;

use std::{
    io::{self, BufRead as _, IsTerminal as _, Read as _},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use crossterm::event::{Event as Input, EventStream};
use dispatch_core::task::Effort;
use futures_util::StreamExt as _;
use rustix::process::Signal as Unix;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc::{Receiver, Sender, channel},
    task::JoinHandle,
    time::{MissedTickBehavior, interval},
};

use self::{
    desk::{About, Desk},
    editor::Editor,
    feed::News,
    keys::{Act, press},
    line::Line,
    machine::{Chat, Now, Out},
    screen::Screen,
};
use super::{
    Ctx,
    attach::{self, Tune},
    error::{CliError, Result},
    exit::Exit,
    out,
    run::{self, effort},
    tasks,
};

use crate::api::request;

const NEWS_MAX: usize = 256;
const LINES_MAX: usize = 64;
/// Of one line of standard input; what is longer is several.
const LINE_BYTES_MAX: u64 = 256 << 10;
/// From the signal that stops us to our stop.
const STOPPED: Duration = Duration::from_millis(200);
/// Something moves while an agent works.
const FRAME: Duration = Duration::from_millis(120);

/// Talk with a task's agent, live; without an ID your first message makes the task.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  dispatch chat\n  dispatch chat --repo ../api --agent codex-app\n  dispatch chat 3f\n  echo \"and the tests?\" | dispatch chat 3f\n\nWhat you type is said to the agent, or answers what it asks; /help lists the commands. Ctrl-D or /detach\nleaves and the task goes on; Ctrl-C clears the line, and twice leaves. In a pipe each line of standard\ninput is a message, and the chat ends when the task has, with its exit code."
)]
pub(crate) struct Args {
    /// A task, by a prefix of its id
    #[arg(conflicts_with_all = [
        "repo", "dir", "no_repo", "branch", "agent", "placement", "permissions", "grant", "check",
        "no_checks",
    ])]
    id: Option<String>,
    /// A path in a git repository, a URL, or a name of the configuration (default: here)
    #[arg(long, value_name = "PATH|URL|NAME", conflicts_with_all = ["dir", "no_repo"])]
    repo: Option<String>,
    /// Work without git on a private copy of this directory; /apply writes back
    #[arg(long, value_name = "PATH", conflicts_with = "no_repo")]
    dir: Option<PathBuf>,
    /// Work in an empty directory
    #[arg(long)]
    no_repo: bool,
    /// Start from this branch instead of what the repository has checked out
    #[arg(long, value_name = "NAME", conflicts_with_all = ["dir", "no_repo"])]
    branch: Option<String>,
    /// One of `dispatch agents`
    #[arg(long)]
    agent: Option<String>,
    /// The model, as the agent's program calls it; of a task from your next message on
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// How hard to think: none, minimal, low, medium, high, xhigh or max; of a task from your next message on
    #[arg(long, value_name = "LEVEL", value_parser = effort)]
    effort: Option<Effort>,
    /// A placement of the configuration: cage (the default), container, host (no fence), your own
    #[arg(long, value_name = "NAME")]
    placement: Option<String>,
    /// What becomes of the agent's permission requests, instead of what its table says
    #[arg(long, value_parser = ["allow", "ask", "deny"])]
    permissions: Option<String>,
    /// What the agent may do at Dispatch's own door: a name of `[grants]`, or none
    #[arg(long, value_name = "NAME")]
    grant: Option<String>,
    /// A check that must pass after each turn, instead of what the repository suggests
    #[arg(long, value_name = "NAME")]
    check: Vec<String>,
    /// No checks: results are then not verified
    #[arg(long, conflicts_with = "check")]
    no_checks: bool,
    /// A file that goes with your first message (may be given several times); /attach does it later
    #[arg(long, value_name = "FILE")]
    attach: Vec<PathBuf>,
}

pub(crate) async fn run(ctx: &Ctx, args: Args) -> Result<Exit> {
    let tty = ctx.style.tty && io::stdin().is_terminal();
    let (chat, desk, said) = match &args.id {
        Some(id) => of_task(ctx, id, &args).await?,
        None => Box::pin(of_nothing(ctx, args)).await?,
    };
    let failed = |error: io::Error| CliError::failed("use the terminal", &error);
    let (face, input) = if tty {
        let screen = Screen::enter(ctx.style).map_err(failed)?;
        let mut editor = Editor::default();
        said.iter().for_each(|text| editor.remember(text));
        let face = Face::Terminal {
            screen,
            editor,
            hint: None,
        };
        (face, From::from(EventStream::new()))
    } else {
        (Face::Lines, Source::Lines(stdin_lines()))
    };
    let (tell, news) = channel(NEWS_MAX);
    let session = Session {
        ctx,
        chat,
        desk,
        face,
        tell,
        feeding: None,
        frame: 0,
        suspended: false,
        back: None,
    };
    session.talk(input, news).await
}

type Opened = (Chat, Desk, Vec<String>);

async fn of_task(ctx: &Ctx, id: &str, args: &Args) -> Result<Opened> {
    let task = tasks::one(&ctx.settings, id).await?;
    let tune = Tune {
        model: args.model.clone(),
        effort: args.effort,
    };
    tune.check(&ctx.settings, &task.agent)?;
    let (agent, said) = (task.agent.clone(), Chat::said_before(&task));
    look_at(ctx, &agent, &args.attach)?;
    let mut chat = Chat::new(Some(task), &agent, tune);
    chat.take_along(args.attach.clone());
    Ok((chat, Desk::new(ctx.settings.clone(), None), said))
}

/// All but the words is looked at before a person types any.
async fn of_nothing(ctx: &Ctx, args: Args) -> Result<Opened> {
    let files = args.attach;
    let asked = run::chat_request(
        ctx,
        run::Talk {
            repo: args.repo,
            dir: args.dir,
            no_repo: args.no_repo,
            branch: args.branch,
            agent: args.agent,
            model: args.model,
            effort: args.effort,
            placement: args.placement,
            permissions: args.permissions,
            grant: args.grant,
            check: args.check,
            no_checks: args.no_checks,
        },
    );
    let asked = Box::pin(asked).await?;
    let agent = asked.agent.clone().unwrap_or_default();
    look_at(ctx, &agent, &files)?;
    let mut chat = Chat::new(None, &agent, Tune::default());
    chat.take_along(files);
    let desk = Desk::new(ctx.settings.clone(), Some(Box::new(asked)));
    Ok((chat, desk, Vec::new()))
}

/// What could not be sent later is told before a person types.
fn look_at(ctx: &Ctx, agent: &str, files: &[PathBuf]) -> Result<()> {
    let files = attach::read(&ctx.settings, files)?;
    let agent = run::agent_of(&ctx.settings, agent)?;
    Ok(request::check_attachments(
        &ctx.settings.config,
        &agent,
        &files,
    )?)
}

/// Where the person's words come from.
enum Source {
    Keys(Box<EventStream>),
    Lines(Receiver<String>),
}

impl From<EventStream> for Source {
    fn from(keys: EventStream) -> Self {
        Self::Keys(Box::new(keys))
    }
}

enum Came {
    Input(Input),
    Line(String),
    Nothing,
}

impl Source {
    /// Safe to cancel.
    async fn next(&mut self) -> Result<Came> {
        match self {
            Self::Keys(keys) => match keys.next().await {
                Some(Ok(input)) => Ok(Came::Input(input)),
                Some(Err(error)) => Err(CliError::failed("read the keys", &error)),
                None => Ok(Came::Nothing),
            },
            Self::Lines(lines) => Ok(lines.recv().await.map_or(Came::Nothing, Came::Line)),
        }
    }
}

/// Standard input, line by line. A thread of its own waits for it: nothing else can.
fn stdin_lines() -> Receiver<String> {
    let (tell, lines) = channel(LINES_MAX);
    thread::spawn(move || {
        let mut input = io::stdin().lock();
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = (&mut input)
                .take(LINE_BYTES_MAX)
                .read_until(b'\n', &mut line);
            if !matches!(read, Ok(1..)) {
                return;
            }
            let text = String::from_utf8_lossy(&line);
            let text = text.trim_end_matches(['\n', '\r']).to_owned();
            if tell.blocking_send(text).is_err() {
                return;
            }
        }
    });
    lines
}

/// What the person looks at.
enum Face {
    Terminal {
        screen: Screen,
        editor: Editor,
        /// Until the next key.
        hint: Option<String>,
    },
    Lines,
}

struct Signals {
    int: Signal,
    cont: Signal,
    term: Signal,
    hup: Signal,
}

enum Sign {
    Interrupt,
    /// It was stopped, and somebody may have used the terminal.
    Continued,
    End,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            int: signal(SignalKind::interrupt())?,
            cont: signal(SignalKind::from_raw(Unix::CONT.as_raw()))?,
            term: signal(SignalKind::terminate())?,
            hup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Sign {
        tokio::select! {
            _ = self.int.recv() => Sign::Interrupt,
            _ = self.cont.recv() => Sign::Continued,
            _ = self.term.recv() => Sign::End,
            _ = self.hup.recv() => Sign::End,
        }
    }
}

struct Session<'a> {
    ctx: &'a Ctx,
    chat: Chat,
    desk: Desk,
    face: Face,
    /// For the feed, once there is a task.
    tell: Sender<News>,
    feeding: Option<JoinHandle<()>>,
    frame: usize,
    /// To be stopped, as the shell's other jobs are.
    suspended: bool,
    /// The last time that it came back.
    back: Option<Instant>,
}

impl Session<'_> {
    async fn talk(mut self, mut input: Source, mut news: Receiver<News>) -> Result<Exit> {
        let mut signals =
            Signals::new().map_err(|error| CliError::failed("listen for signals", &error))?;
        let mut tick = interval(FRAME);
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut open = true;
        loop {
            self.chat.tick(self.now());
            if let Some(exit) = self.obey()? {
                self.end();
                return Ok(exit);
            }
            if std::mem::take(&mut self.suspended) {
                self.suspend(&mut signals).await?;
                continue;
            }
            tokio::select! {
                came = input.next(), if open => match came? {
                    Came::Input(input) => self.input(&input)?,
                    Came::Line(line) => self.chat.typed(&line),
                    Came::Nothing => {
                        open = false;
                        self.chat.no_more();
                    }
                },
                Some(told) = news.recv() => {
                    self.news(told);
                    // What has come meanwhile is drawn together.
                    while let Ok(told) = news.try_recv() {
                        self.news(told);
                    }
                }
                (request, told) = self.desk.next() => self.chat.answered(request, told),
                sign = signals.next() => match sign {
                    Sign::Interrupt => self.chat.interrupt(false, self.now()),
                    // It may be heard after the time.
                    Sign::Continued if self.is_just_back() => {}
                    Sign::Continued => self.come_back()?,
                    Sign::End => {
                        self.end();
                        return Ok(Exit::Stopped);
                    }
                },
                _ = tick.tick() => self.frame += 1,
            }
        }
    }

    /// Ctrl-Z: the terminal is the shell's until it lets us go on. The task and what is typed stay.
    async fn suspend(&mut self, signals: &mut Signals) -> Result<()> {
        if let Face::Terminal { screen, .. } = &mut self.face {
            let failed = |error: io::Error| CliError::failed("give the terminal back", &error);
            screen.let_go().map_err(failed)?;
            // The whole job, as the terminal does it when it is not ours.
            rustix::process::kill_current_process_group(Unix::TSTP)
                .map_err(|error| failed(error.into()))?;
            // Without a shell that could let us go on nothing stops us, and nobody says so.
            tokio::select! {
                biased;
                _ = signals.cont.recv() => {}
                () = tokio::time::sleep(STOPPED) => {}
            }
        }
        self.come_back()
    }

    fn is_just_back(&self) -> bool {
        self.back.is_some_and(|back| back.elapsed() < 2 * STOPPED)
    }

    fn come_back(&mut self) -> Result<()> {
        self.back = Some(Instant::now());
        if let Face::Terminal { screen, .. } = &mut self.face {
            let failed = |error: io::Error| CliError::failed("use the terminal", &error);
            screen.take_again().map_err(failed)?;
        }
        Ok(())
    }

    fn end(&mut self) {
        if let Some(feeding) = self.feeding.take() {
            feeding.abort();
        }
    }

    fn now(&self) -> Now {
        let ms = jiff::Timestamp::now().as_millisecond();
        Now {
            ms: ms.try_into().unwrap_or_default(),
            frame: self.frame,
        }
    }

    fn news(&mut self, news: News) {
        match news {
            News::Linked => self.chat.linked(),
            News::Lost(why) => self.chat.lost(why),
            News::Task(task) => self.chat.look(*task),
            News::Heard(heard) => self.chat.hear(&heard),
        }
    }

    fn input(&mut self, input: &Input) -> Result<()> {
        let now = self.now();
        let Face::Terminal {
            screen,
            editor,
            hint,
        } = &mut self.face
        else {
            return Ok(());
        };
        match input {
            Input::Key(key) => {
                *hint = None;
                match press(editor, *key) {
                    None => {}
                    Some(Act::Send) => self.chat.typed(&editor.take()),
                    Some(Act::Interrupt { cleared }) => self.chat.interrupt(cleared, now),
                    Some(Act::Leave) => self.chat.leave(),
                    Some(Act::Redraw) => screen.forget()?,
                    Some(Act::Suspend) => self.suspended = true,
                }
            }
            Input::Paste(text) => editor.put(text),
            Input::Resize(columns, rows) => screen.resize(*columns, *rows),
            Input::FocusGained | Input::FocusLost | Input::Mouse(_) => {}
        }
        Ok(())
    }

    /// Does what the machine wants. The exit, when that is to leave.
    fn obey(&mut self) -> Result<Option<Exit>> {
        let mut lines = Vec::new();
        for out in self.chat.take() {
            match out {
                Out::Line(line) => lines.push(line),
                Out::Hint(text) => self.hint(text),
                Out::Away(text) => {
                    if matches!(self.face, Face::Lines) {
                        self.hint(text);
                    }
                }
                Out::Ask(request) => {
                    let about = self.about();
                    self.desk.ask(request, about);
                }
                Out::AskFirst(request) => {
                    let about = self.about();
                    self.desk.ask_first(request, about);
                }
                Out::Leave(exit) => {
                    self.leave(&lines)?;
                    return Ok(Some(exit));
                }
            }
        }
        self.feed();
        self.show(&lines)?;
        Ok(None)
    }

    fn about(&self) -> About {
        About {
            task: self.chat.task().cloned(),
            agent: self.chat.agent().to_owned(),
        }
    }

    /// As soon as there is a task to hear of.
    fn feed(&mut self) {
        if let (Some(id), None) = (self.chat.id(), &self.feeding) {
            let feed = feed::run(self.ctx.settings.clone(), id.to_owned(), self.tell.clone());
            self.feeding = Some(tokio::spawn(feed));
        }
    }

    fn hint(&mut self, text: String) {
        match &mut self.face {
            Face::Terminal { hint, .. } => *hint = Some(text),
            Face::Lines => out::aside(&super::style::clean_text(&text)),
        }
    }

    fn show(&mut self, lines: &[Line]) -> Result<()> {
        let now = self.now();
        match &mut self.face {
            Face::Terminal {
                screen,
                editor,
                hint,
            } => screen.draw(lines, &self.chat.below(now), hint.as_deref(), editor)?,
            Face::Lines => {
                for line in lines {
                    out::line(&line.plain())?;
                }
            }
        }
        Ok(())
    }

    fn leave(&mut self, lines: &[Line]) -> Result<()> {
        match std::mem::replace(&mut self.face, Face::Lines) {
            Face::Terminal { screen, .. } => screen.leave(lines)?,
            Face::Lines => {
                for line in lines {
                    out::line(&line.plain())?;
                }
            }
        }
        Ok(())
    }
}
