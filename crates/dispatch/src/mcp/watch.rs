//! Looking after tasks for one call: until they have ended or need something, or its time is over.
//! Must not wait longer than it was told, and must not ask the engine again and again: it follows the
//! log.

use std::{collections::BTreeSet, time::Duration};

use rmcp::model::InputRequiredResult;
use tokio::time::{Instant, timeout_at};

use super::{
    door::Refusal,
    needs::{self, Asking},
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
        let deadline = Instant::now() + self.limit;
        for task in &mut self.tasks {
            if let Some(now) = needs::enter(call, task, &call.entered).await? {
                *task = now;
            }
        }
        let mut declined = BTreeSet::new();
        let (mut following, mut changes) = (None, 0);
        loop {
            match self.asking {
                Asking::Never => {}
                Asking::Request => self.ask(call, deadline, &mut declined).await?,
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
            if Instant::now() >= deadline {
                return Ok(self.seen(false));
            }
            let events = match &mut following {
                Some(events) => events,
                None => {
                    let from = self.tasks.iter().map(|task| task.seq).min();
                    let query = self.query();
                    following.insert(call.door.events(from.unwrap_or(0), &query).await?)
                }
            };
            match timeout_at(deadline, next(events)).await {
                Err(_) => return Ok(self.seen(false)),
                Ok(Some(event)) => self.heard(call, &event, &mut changes).await?,
                // The engine went away; the next one has the same log.
                Ok(None) => following = None,
            }
        }
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
        event: &Event,
        changes: &mut usize,
    ) -> Result<(), Refusal> {
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
                *changes += 1;
                call.progress(*changes, None, told).await;
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

    async fn ask(
        &mut self,
        call: &Call,
        deadline: Instant,
        declined: &mut BTreeSet<String>,
    ) -> Result<(), Refusal> {
        for task in &mut self.tasks {
            for need in needs::of(task) {
                if declined.contains(&need.key(task)) {
                    continue;
                }
                let patience = deadline.saturating_duration_since(Instant::now());
                let entered = need.ask(call, task, patience).await?;
                let met = match &entered {
                    Some(entered) => need.meet(call, task, entered).await?,
                    None => None,
                };
                match met {
                    Some(now) => *task = now,
                    None => {
                        declined.insert(need.key(task));
                    }
                }
            }
        }
        Ok(())
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
