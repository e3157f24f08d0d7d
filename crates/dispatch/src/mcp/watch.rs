//! Looking after tasks for one call: until they have ended or need something, or its time is over.
//! Must not wait longer than it was told, and must not ask the engine again and again: it follows the
//! log.

use std::{collections::BTreeSet, time::Duration};

use rmcp::model::InputRequiredResult;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::{
    door::Refusal,
    needs::{self, Asking, Need},
    table::Call,
};
use crate::{
    api::{event::Event, mcp::Until, task::Task},
    client::{Events, Heard},
};

pub(crate) enum Waited {
    Seen {
        done: bool,
        tasks: Vec<Task>,
    },
    /// Somebody has to enter something first; the client asks and calls again.
    Needs(InputRequiredResult),
}

/// What a call waits for.
pub(crate) struct Watch {
    pub(crate) tasks: Vec<Task>,
    pub(crate) until: Until,
    pub(crate) limit: Duration,
    /// Whether whoever sits before the client is asked what a task needs.
    pub(crate) asking: Asking,
    pub(crate) tell: Tell,
}

/// Of what a client is told while it waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tell {
    /// Each change of a state.
    Changes,
    /// That one more of them rests.
    Ends,
}

/// Whether it goes no further by itself.
fn rests(task: &Task) -> bool {
    !task.is_open() || task.open_asks().next().is_some()
}

/// Events that change whether a task rests. What agents say is not among them.
const MATTERS: &str = "started,checks_started,finished,parked,run_queued,stop_requested,\
                       permission_asked,permission_answered";
/// As many as one stream may name.
const NAMED_MAX: usize = 100;

impl Watch {
    fn is_over(&self) -> bool {
        match self.until {
            Until::All => self.tasks.iter().all(rests),
            Until::Any => self.tasks.iter().any(rests),
        }
    }

    /// Until it is over, or the time is.
    pub(crate) async fn run(mut self, call: &Call) -> Result<Waited, Refusal> {
        let mut log = Log::until(Instant::now() + self.limit);
        for task in &mut self.tasks {
            if let Some(now) = needs::enter(call, task, &call.entered).await? {
                *task = now;
            }
        }
        let mut asked = BTreeSet::new();
        loop {
            match self.asking {
                Asking::Never => {}
                Asking::Request => {
                    while let Some((about, need)) = self.next_need(&mut asked) {
                        if !self.ask(call, (about, &need), &mut log).await? {
                            break;
                        }
                    }
                }
                Asking::Result => {
                    let open = self.unanswered(call)?;
                    if !open.is_empty() {
                        let needed = InputRequiredResult::new(Some(open), None);
                        return Ok(Waited::Needs(needed));
                    }
                }
            }
            if self.is_over() {
                return Ok(self.seen(true));
            }
            if Instant::now() >= log.deadline {
                return Ok(self.seen(false));
            }
            match timeout_at(log.deadline, self.next(call, &mut log)).await {
                Err(_) => return Ok(self.seen(false)),
                Ok(event) => self.heard(call, event?.as_ref(), &mut log).await?,
            }
        }
    }

    /// The next event that matters. `None`: the engine went away; the next one has the same log. Safe to
    /// cancel.
    async fn next(&self, call: &Call, log: &mut Log) -> Result<Option<Event>, Refusal> {
        let events = match &mut log.events {
            Some(events) => events,
            None => {
                let from = self.tasks.iter().map(|task| task.seq).min();
                let events = call.door.events(from.unwrap_or(0), &self.query()).await?;
                log.events.insert(events)
            }
        };
        let event = next(events).await;
        if event.is_none() {
            log.events = None;
        }
        Ok(event)
    }

    fn query(&self) -> String {
        let kinds = format!("&kinds={MATTERS}");
        if self.tasks.len() > NAMED_MAX {
            return kinds;
        }
        let ids: Vec<&str> = self.tasks.iter().map(|task| task.id.as_str()).collect();
        format!("{kinds}&task={}", ids.join(","))
    }

    fn seen(self, done: bool) -> Waited {
        Waited::Seen {
            done,
            tasks: self.tasks,
        }
    }

    async fn heard(
        &mut self,
        call: &Call,
        event: Option<&Event>,
        log: &mut Log,
    ) -> Result<(), Refusal> {
        let Some(event) = event else {
            return Ok(());
        };
        let about = |task: &&mut Task| Some(&task.id) == event.task.as_ref();
        let Some(task) = self.tasks.iter_mut().find(about) else {
            return Ok(());
        };
        if event.seq <= task.seq {
            return Ok(());
        }
        let before = (task.state.clone(), rests(task));
        *task = call.door.get(&format!("/v1/tasks/{}", task.id)).await?;
        let now = (task.state.clone(), rests(task));
        let told = format!("{} {}: {}", task.short, task.state, task.title);
        match self.tell {
            // Progress always grows.
            Tell::Changes if before != now => {
                log.changes += 1;
                call.progress(log.changes, None, told).await;
            }
            Tell::Ends if now.1 && !before.1 => {
                let settled = self.tasks.iter().filter(|task| rests(task)).count();
                call.progress(settled, Some(self.tasks.len()), told).await;
            }
            Tell::Changes | Tell::Ends => {}
        }
        Ok(())
    }

    /// What tasks need and nobody has declined in this call.
    fn unanswered(&self, call: &Call) -> Result<rmcp::model::InputRequests, Refusal> {
        let mut open = needs::requests(&self.tasks)?;
        open.retain(|key, _| !call.entered.contains_key(key));
        Ok(open)
    }

    /// What nobody was asked for in this call, and of which task it is.
    fn next_need(&self, asked: &mut BTreeSet<String>) -> Option<(usize, Need)> {
        let each = self.tasks.iter().enumerate();
        let mut needs = each.flat_map(|(about, task)| {
            let needs = needs::of(task).into_iter();
            needs.map(move |need| (about, need.key(task), need))
        });
        let (about, _, need) = needs.find(|(_, key, _)| asked.insert(key.clone()))?;
        Some((about, need))
    }

    /// Asks for one thing and hears meanwhile what happens: it may be needed no more, and another task
    /// may be all that is waited for. Whether there is more to ask for.
    async fn ask(
        &mut self,
        call: &Call,
        (about, need): (usize, &Need),
        log: &mut Log,
    ) -> Result<bool, Refusal> {
        let Some(task) = self.tasks.get(about) else {
            return Ok(true);
        };
        let (id, deadline) = (task.id.clone(), log.deadline);
        let Some(mut form) = need.put(call, task).await? else {
            return Ok(true);
        };
        loop {
            let entered = tokio::select! {
                biased;
                entered = form.entered() => entered,
                event = self.next(call, log) => {
                    let event = event?;
                    self.heard(call, event.as_ref(), log).await?;
                    let open = |task: &Task| needs::of(task).contains(need);
                    let (asked, others): (Vec<&Task>, Vec<&Task>) =
                        self.tasks.iter().partition(|task| task.id == id);
                    if !asked.into_iter().any(open) {
                        form.withdraw("it is answered").await;
                        return Ok(true);
                    }
                    let happened = event.and_then(|event| event.task);
                    let another = |task: &&Task| Some(&task.id) == happened.as_ref() && rests(task);
                    if self.until == Until::Any && others.iter().any(another) {
                        form.withdraw("another task has ended").await;
                        return Ok(false);
                    }
                    continue;
                }
                () = sleep_until(deadline) => {
                    form.withdraw("the time of the wait is over").await;
                    return Ok(false);
                }
            };
            let Some((entered, task)) = entered.zip(self.tasks.get_mut(about)) else {
                return Ok(true);
            };
            if let Some(now) = need.meet(call, task, &entered).await? {
                *task = now;
            }
            return Ok(true);
        }
    }
}

/// What a wait hears of the log, and for how long.
struct Log {
    deadline: Instant,
    events: Option<Events>,
    /// Told so far.
    changes: usize,
}

impl Log {
    fn until(deadline: Instant) -> Self {
        Self {
            deadline,
            events: None,
            changes: 0,
        }
    }
}

/// The next durable event; `None` when the stream has ended.
async fn next(events: &mut Events) -> Option<Event> {
    loop {
        match events.next().await {
            Ok(Some(Heard::Event(event))) => return Some(*event),
            Ok(Some(Heard::Live(_) | Heard::Open(_) | Heard::At(_))) => {}
            Ok(None) | Err(_) => return None,
        }
    }
}
