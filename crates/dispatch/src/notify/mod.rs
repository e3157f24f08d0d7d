//! Notification hooks: each follows the log from its own cursor and tells what it is for, in order.
//! The log is the queue, so nothing grows in memory and a slow hook slows only itself.
//! Must not hold the engine up, and must not tell anything that is not durable yet.

pub(crate) mod cursor;
pub(crate) mod send;

use std::{path::PathBuf, time::Duration};

use dispatch_core::{
    event::Event,
    id::{HookName, Seq},
    notify::{Hook, Occasion, is_over, pause_ms},
};
use dispatch_engine::{
    clock::Clock,
    engine::Engine,
    events::EventStream,
    reader::Reader,
    view::{TaskView, Told, VerbError},
};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};

use self::{
    cursor::{Cursor, Failure},
    send::{Sender, told},
};
use crate::{api::notice::Notice, cli::out::aside, settings::Settings};

/// Events that are nobody's business, after which the position is written all the same, so that the
/// next engine does not read them again.
const PASSED_MAX: u64 = 1000;
/// How long an engine that ends waits for tries that are under way.
const LAST_TRIES: Duration = Duration::from_secs(2);

/// How long an engine with nothing else to do stays for hooks that fail.
const STAY_MAX: Duration = Duration::from_secs(300);

/// All hooks of an engine. They end with it.
#[derive(Debug)]
pub(crate) struct Hooks {
    data: PathBuf,
    reached: Vec<watch::Receiver<Seq>>,
    closing: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

/// Where the hooks begin: taken before the engine opens its log, so that what it finds out first is
/// news to a hook that has never been served.
pub(crate) fn before(settings: &Settings) -> Seq {
    if settings.config.notify.is_empty() {
        return 0;
    }
    // A log that cannot be read ends the engine, which says so.
    Reader::open(&settings.paths.data).map_or(0, |reader| reader.last())
}

impl Hooks {
    pub(crate) fn start(settings: &Settings, engine: &Engine, before: Seq) -> Self {
        let data = settings.paths.data.clone();
        let hooks = &settings.config.notify;
        let known = |name: &str| hooks.keys().any(|hook| hook.as_str() == name);
        if let Err(error) = cursor::forget(&data, known) {
            aside(&format!("warning: failed to forget old hooks: {error}"));
        }
        let (closing, close) = watch::channel(false);
        let (mut tasks, mut all) = (JoinSet::new(), Vec::new());
        for (name, hook) in hooks {
            let cursor = begin(&data, name, before);
            let (reached, seen) = watch::channel(cursor.seq);
            all.push(seen);
            let follower = Follower {
                name: name.clone(),
                hook: hook.clone(),
                sender: Sender::new(name.clone(), hook.clone(), settings.clone()),
                events: engine.events(cursor.seq),
                engine: engine.clone(),
                settings: settings.clone(),
                written: cursor.seq,
                cursor,
                reached,
                closing: close.clone(),
            };
            tasks.spawn(follower.run());
        }
        Self {
            data,
            reached: all,
            closing,
            tasks,
        }
    }

    /// Resolves when everything that is in the log now has been told or given up: an engine that has
    /// nothing else to do does not leave before, within reason. The rest is the next engine's.
    pub(crate) async fn told_all(&self) {
        if self.reached.is_empty() {
            return;
        }
        match timeout(STAY_MAX, self.all_reached()).await {
            Ok(()) | Err(_) => {}
        }
    }

    async fn all_reached(&self) {
        let Ok(last) = Reader::open(&self.data).map(|reader| reader.last()) else {
            return;
        };
        for reached in &self.reached {
            let mut reached = reached.clone();
            // One that has ended tells nothing more.
            match reached.wait_for(|seq| *seq >= last).await {
                Ok(_) | Err(_) => {}
            }
        }
    }

    /// Lets tries that are under way end; what is left is the next engine's.
    pub(crate) async fn close(mut self) {
        self.closing.send_replace(true);
        let all = async { while self.tasks.join_next().await.is_some() {} };
        match timeout(LAST_TRIES, all).await {
            Ok(()) | Err(_) => {}
        }
    }
}

/// The position of a hook that is known, or that of the log for one that is new.
fn begin(data: &std::path::Path, name: &HookName, before: Seq) -> Cursor {
    let new = Cursor {
        seq: before,
        ..Cursor::default()
    };
    let cursor = match cursor::read(data, name) {
        // A log that ends before it is another log.
        Ok(Some(cursor)) if cursor.seq <= before => return cursor,
        Ok(Some(_) | None) => new,
        Err(error) => {
            aside(&format!(
                "warning: failed to read the position of notify.{name}: {error}; it goes on from now"
            ));
            new
        }
    };
    keep(data, name, &cursor);
    cursor
}

fn keep(data: &std::path::Path, name: &HookName, cursor: &Cursor) {
    if let Err(error) = cursor::write(data, name, cursor) {
        aside(&format!(
            "warning: failed to write the position of notify.{name}: {error}; the next engine may \
             tell something again"
        ));
    }
}

/// One hook on its way through the log.
struct Follower {
    name: HookName,
    hook: Hook,
    sender: Sender,
    events: EventStream,
    engine: Engine,
    settings: Settings,
    cursor: Cursor,
    /// The position that is on disk.
    written: Seq,
    reached: watch::Sender<Seq>,
    closing: watch::Receiver<bool>,
}

/// Whether there is more to tell.
enum Step {
    On,
    End,
}

impl Follower {
    async fn run(mut self) {
        loop {
            let told = tokio::select! {
                biased;
                _ = self.closing.changed() => break,
                told = self.events.next() => told,
            };
            match told {
                None => break,
                Some(Told::Live(_) | Told::Open { .. } | Told::At(_)) => {}
                Some(Told::Event(event)) => {
                    if let Step::End = self.event(&event).await {
                        break;
                    }
                    self.reached.send_replace(event.seq);
                }
            }
        }
        if self.cursor.seq > self.written {
            self.write();
        }
    }

    async fn event(&mut self, event: &Event) -> Step {
        let Some((notice, at)) = (match self.notice(event).await {
            Ok(notice) => notice.map(|notice| (notice, event.at)),
            Err(VerbError::Gone) => return Step::End,
            Err(error) => {
                aside(&format!("warning: notify.{}: failed to {error}", self.name));
                None
            }
        }) else {
            self.cursor.seq = event.seq;
            if event.seq - self.written >= PASSED_MAX {
                self.write();
            }
            return Step::On;
        };
        let late_ms = self
            .settings
            .config
            .limits
            .notify_late_s
            .saturating_mul(1000);
        if Clock::System.now().saturating_sub(at) > late_ms {
            let text = format!(
                "notify.{}: dropped what happened at event {}: it is older than limits.notify_late_s",
                self.name, event.seq
            );
            self.give_up(text);
        } else if let Step::End = self.deliver(&notice).await {
            return Step::End;
        }
        self.cursor.seq = event.seq;
        self.write();
        Step::On
    }

    /// What this hook has to tell of an event, if anything.
    async fn notice(&self, event: &Event) -> Result<Option<Notice>, VerbError> {
        let Some(occasion) = Occasion::of(&event.kind) else {
            return Ok(None);
        };
        if !self.hook.on.contains(&occasion) {
            return Ok(None);
        }
        let view: Option<TaskView> = match event.subject.task() {
            Some(task) => Some(self.engine.task(task).await?),
            None => None,
        };
        let task = view.as_ref().map(|view| &view.task);
        let run = event.subject.run().map(|run| run.n);
        if !self.hook.wants(occasion, task, run) || is_over(&event.kind, task) {
            return Ok(None);
        }
        Ok(Notice::of(&self.name, event, view.as_ref()))
    }

    /// Until it is taken or given up. `End`: the engine ends first, and the next one tries again.
    async fn deliver(&mut self, notice: &Notice) -> Step {
        let limits = self.settings.config.limits.clone();
        let mut tries = 0;
        loop {
            let error = match self.sender.send(notice).await {
                Ok(()) => {
                    if self.cursor.failure.take().is_some() {
                        aside(&format!("notify.{}: delivers again", self.name));
                    }
                    return Step::On;
                }
                Err(error) => error,
            };
            tries += 1;
            if error.lasts() || tries >= limits.notify_tries_max {
                self.give_up(told(&self.name, &error));
                return Step::On;
            }
            self.failed(told(&self.name, &error));
            let pause = Duration::from_millis(pause_ms(limits.notify_retry_ms, tries));
            tokio::select! {
                biased;
                _ = self.closing.changed() => return Step::End,
                () = sleep(pause) => {}
            }
        }
    }

    fn give_up(&mut self, text: String) {
        self.cursor.dropped += 1;
        self.failed(text);
    }

    /// Said once: a hook that stays broken would fill the engine's log with the same line.
    fn failed(&mut self, what: String) {
        if self.cursor.failure.is_none() {
            aside(&format!(
                "warning: {what}; `dispatch doctor` shows the hooks, `dispatch notify test {}` tries it",
                self.name
            ));
        }
        let at = Clock::System.now();
        self.cursor.failure = Some(Failure { at, what });
        self.write();
    }

    fn write(&mut self) {
        keep(&self.settings.paths.data, &self.name, &self.cursor);
        self.written = self.cursor.seq;
    }
}
