//! What an event about a run does to it and to its task.
//! Must not change anything when it refuses.

use super::{
    State,
    error::ApplyError,
    of_run::{Check, Run},
    of_task::{Task, Workspace},
};
use crate::{
    ask::{self, Ask, AskId, Fate as AskFate},
    event::{CheckState, Event, Kind, Verified},
    family,
    gate::Budget,
    id::{CheckName, RunId, Seq},
    keys::Made,
    message::{Chain, Fate, Message, MessageId, Sender, Taken},
    run::{RunCause, RunEvent, RunState},
};

impl State {
    pub(super) fn apply_run(&mut self, event: &Event, id: RunId) -> Result<(), ApplyError> {
        let (seq, word) = (event.seq, event.kind.word());
        let chain = match &event.kind {
            Kind::RunQueued { cause } => self.chain_for(seq, id, cause),
            _ => Chain::default(),
        };
        let heard = match &event.kind {
            Kind::EndsDelivered { ends } => family::words(self, ends),
            _ => String::new(),
        };
        let Some(task) = self.tasks.get_mut(&id.task) else {
            return Err(ApplyError::NoTask {
                seq,
                word,
                task: id.task,
            });
        };
        if let Kind::RunQueued { cause } = &event.kind {
            if id.n as usize != task.runs.len() + 1 || task.is_open() {
                return Err(ApplyError::NoRun { seq, word, run: id });
            }
            match cause {
                RunCause::Said { by_person: false } | RunCause::Ends => {
                    task.wakes = task.wakes.saturating_add(1);
                }
                RunCause::Said { by_person: true }
                | RunCause::RetryOf {
                    by_person: true, ..
                }
                | RunCause::Resumed { .. } => task.wakes = 0,
                RunCause::Dispatched | RunCause::Answer { .. } | RunCause::RetryOf { .. } => {}
            }
            let asker = task.asker();
            task.runs.push(Run {
                n: id.n,
                cause: cause.clone(),
                chain,
                parked: false,
                state: RunState::Queued,
                queued_seq: seq,
                queued_at: event.at,
                prompt: None,
                site: None,
                driver: None,
                enforced: None,
                started_at: None,
                ended_at: None,
                session: None,
                report: None,
                usage: None,
                sealed: None,
                checks: Vec::new(),
                range: None,
                review: None,
                verified: Verified::NotVerified,
            });
            task.seq = seq;
            if let Some(family) = self.family_of(asker) {
                family.goes_on(id.task);
            }
            self.enqueue(seq, id);
            return Ok(());
        }
        if let Kind::Keyed { key, message: None } = &event.kind
            && task.last_run().is_some_and(|run| run.n == id.n)
        {
            self.keys.keep(key, Made::Run(id), event.at);
            task.seq = seq;
            return Ok(());
        }
        let refused = |message: MessageId| ApplyError::Message {
            seq,
            word,
            task: id.task,
            message,
        };
        let unasked = |ask: AskId| ApplyError::Ask {
            seq,
            word,
            task: id.task,
            ask,
        };
        match &event.kind {
            Kind::PermissionAsked {
                ask,
                tool,
                input,
                owner,
                until,
            } => {
                let last = task.last_run().filter(|run| run.n == id.n);
                let next = ask.0 == task.asks_count.saturating_add(1);
                let Some(run) = last.filter(|_| next && task.is_open()) else {
                    return Err(unasked(*ask));
                };
                // One that is being stopped may still ask, and is not answered any more.
                let hears = run.state == RunState::Running && run.report.is_none();
                task.asks_count = ask.0;
                task.asks.push(Ask {
                    id: *ask,
                    run: id.n,
                    tool: tool.clone(),
                    input: input.clone(),
                    owner: *owner,
                    at: event.at,
                    until: *until,
                    fate: if hears {
                        AskFate::Open
                    } else {
                        AskFate::Closed
                    },
                });
            }
            Kind::PermissionAnswered {
                ask,
                allow,
                by,
                reason,
                always,
            } => {
                let mut asks = task.asks.iter_mut();
                let found = asks.find(|known| known.id == *ask && known.run == id.n);
                let found = found.filter(|known| known.is_open());
                found.ok_or_else(|| unasked(*ask))?.fate = AskFate::Answered {
                    allow: *allow,
                    by: *by,
                    why: reason.clone(),
                    always: *always,
                };
            }
            Kind::MessageTaken {
                message,
                out_offset,
            } => {
                let open = task.last_run().is_some_and(|run| run.n == id.n) && task.is_open();
                let taken = Taken {
                    run: id.n,
                    out_offset: *out_offset,
                };
                let taken = open.then(|| task.take(*message, taken)).flatten();
                taken.ok_or_else(|| refused(*message))?;
            }
            Kind::MessageDelivered { message, delivery } => {
                let settled = task.settle(*message, id.n, Fate::Delivered(*delivery));
                settled.ok_or_else(|| refused(*message))?;
            }
            Kind::MessageReturned { message } => {
                let delivered = |found: &&mut Message| {
                    matches!(found.fate, Fate::Delivered(_)) && found.is_with(id.n)
                };
                let found = task.message_mut(*message).filter(delivered);
                let found = found.ok_or_else(|| refused(*message))?;
                (found.taken, found.barred) = (None, Some(id.n));
                found.fate = Fate::Waiting;
            }
            Kind::EndsDelivered { ends } => {
                let working = task.last_run().is_some_and(|run| run.n == id.n);
                let waited = family::Fate::Waited { run: id.n };
                let waited = working.then(|| task.family.settle(ends, waited)).flatten();
                waited.ok_or(ApplyError::End {
                    seq,
                    word,
                    task: id.task,
                })?;
                task.family.hear(id.n, heard);
            }
            _ => {}
        }
        let index = (id.n as usize).wrapping_sub(1);
        let Some(run) = task.runs.get_mut(index) else {
            return Err(ApplyError::NoRun { seq, word, run: id });
        };
        let step = match &event.kind {
            Kind::Admitted => Some(RunEvent::Admitted),
            Kind::Started { .. } => Some(RunEvent::Started),
            Kind::StopRequested { why } => Some(RunEvent::StopRequested(why.clone())),
            Kind::ChecksStarted { .. } => Some(RunEvent::ChecksStarted),
            Kind::Finished { outcome, .. } => Some(RunEvent::Finished(outcome.clone())),
            _ => None,
        };
        let mut before = None;
        if let Some(step) = step {
            let next = run
                .state
                .next(&step)
                .map_err(|source| ApplyError::Illegal {
                    seq,
                    run: id,
                    source,
                })?;
            before = Some(std::mem::replace(&mut run.state, next));
        }
        match &event.kind {
            Kind::Started {
                site,
                driver,
                enforced,
            } => {
                run.site = Some(site.clone());
                run.driver = Some(*driver);
                run.enforced = Some(enforced.clone());
                run.started_at = Some(event.at);
            }
            Kind::SessionSeen { session } => run.session = Some(session.clone()),
            Kind::AgentEnded { report, usage } => {
                run.report = Some(report.clone());
                run.usage.clone_from(usage);
                if let Some(usage) = usage {
                    let pool = task.spec.pool.clone();
                    let ledger = self.pools.entry(pool).or_default();
                    ledger.spent_by(event.at, Budget::of(usage));
                }
            }
            Kind::WorkspaceSealed { sealed } => run.sealed = Some(sealed.clone()),
            Kind::ChecksStarted { checks } => {
                let running = |name: &CheckName| Check {
                    name: name.clone(),
                    state: CheckState::Running,
                    exit: None,
                    note: String::new(),
                };
                run.checks = checks.iter().map(running).collect();
            }
            Kind::CheckFinished {
                check,
                state,
                exit,
                note,
            } => {
                if let Some(slot) = run.checks.iter_mut().find(|slot| slot.name == *check) {
                    (slot.state, slot.exit, slot.note) = (*state, *exit, note.clone());
                }
            }
            Kind::Finished { verified, .. } => {
                run.ended_at = Some(event.at);
                run.verified = *verified;
                let left =
                    |message: &&mut Message| message.fate == Fate::Waiting && message.is_with(id.n);
                for message in task.messages.iter_mut().filter(left) {
                    message.taken = None;
                }
                // No replay needs them any more.
                let old = task.asks.len().saturating_sub(ask::SETTLED_MAX);
                task.asks.drain(..old);
                task.spec.tune(std::mem::take(&mut task.tuning));
                let parked = task.is_parked();
                if let Some(run) = task.runs.get_mut(index) {
                    run.parked = parked;
                }
            }
            Kind::WorkspaceReady {
                path,
                base,
                base_branch,
                ..
            } => {
                task.workspace = Some(Workspace {
                    path: path.clone(),
                    base: base.clone(),
                    base_branch: base_branch.clone(),
                    removed: false,
                });
            }
            Kind::KeyHeard { key, news } => self.keyring.hear(key, news, event.at),
            Kind::PromptMade { made } => run.prompt = Some(made.clone()),
            Kind::CarriedFound { carried } => task.carried.clone_from(carried),
            Kind::Noted { text } => task.notes.push(text.clone()),
            Kind::RangeSet { range } => run.range = Some(range.clone()),
            Kind::Reviewed { review } => run.review = Some(review.clone()),
            Kind::Admitted
            | Kind::Adopted
            | Kind::SiteRefused { .. }
            | Kind::StopRequested { .. }
            | Kind::PermissionAsked { .. }
            | Kind::PermissionAnswered { .. }
            | Kind::Waits { .. }
            | Kind::BudgetWarned { .. }
            | Kind::MessageTaken { .. }
            | Kind::MessageDelivered { .. }
            | Kind::MessageReturned { .. }
            | Kind::EndsDelivered { .. }
            | Kind::Said { .. } => {}
            _ => {
                return Err(ApplyError::WrongSubject {
                    seq,
                    word,
                    subject: event.subject,
                });
            }
        }
        if let Kind::StopRequested { .. } | Kind::AgentEnded { .. } | Kind::Finished { .. } =
            event.kind
        {
            task.close_asks();
        }
        task.seq = seq;
        if let Some(before) = before {
            self.account(event, id, &before);
        }
        Ok(())
    }

    /// Which chain a run belongs to that is queued now.
    fn chain_for(&self, seq: Seq, id: RunId, cause: &RunCause) -> Chain {
        let task = self.tasks.get(&id.task);
        match cause {
            // Asked for by an agent, it belongs to what that agent works on.
            RunCause::Dispatched => match task.and_then(Task::asker) {
                Some(asker) => self.chain_of(asker),
                None => Chain(seq),
            },
            RunCause::Answer { by, .. } => match by {
                Sender::Task(other) => self.chain_of(*other),
                Sender::Person | Sender::Dispatch => Chain(seq),
            },
            RunCause::Said { .. } => {
                let due = task.into_iter().flat_map(Task::waiting);
                let due = due.filter(|message| message.is_due());
                let newest = due.map(|message| message.chain).max();
                newest.unwrap_or(self.chain_of(id.task))
            }
            RunCause::RetryOf {
                by_person: false, ..
            }
            | RunCause::Ends => self.chain_of(id.task),
            RunCause::RetryOf {
                by_person: true, ..
            }
            | RunCause::Resumed { .. } => Chain(seq),
        }
    }
}
