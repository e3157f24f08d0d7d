//! What an event about a task does to it.
//! Must not change anything when it refuses.

use super::{
    CHAINS_MAX, State,
    error::ApplyError,
    of_task::{Snapshot, Task},
};
use crate::{
    event::{Event, Kind},
    family::{self, EndId, Family},
    id::{RunId, TaskId},
    keys::Made,
    letter::{LetterId, Letterbox},
    message::{Chain, Fate, Message, MessageId, Sender},
    naming,
    prompt::Rank,
    run::RunState,
    task::Tuning,
};

impl State {
    pub(super) fn apply_task(&mut self, event: &Event, id: TaskId) -> Result<(), ApplyError> {
        let (seq, word) = (event.seq, event.kind.word());
        if let Kind::TaskCreated { spec, short } = &event.kind {
            if self.tasks.contains_key(&id) {
                return Err(ApplyError::Twice { seq, task: id });
            }
            let task = Task {
                id,
                short: short.clone(),
                spec: (**spec).clone(),
                created_at: event.at,
                seq,
                runs: Vec::new(),
                workspace: None,
                snapshots: Vec::new(),
                applied: None,
                removed: false,
                removed_at: None,
                notes: Vec::new(),
                carried: Vec::new(),
                messages: Vec::new(),
                messages_count: 0,
                asks: Vec::new(),
                asks_count: 0,
                attached: Vec::new(),
                attached_dropped: false,
                compacts: 0,
                tuning: Tuning::default(),
                wakes: 0,
                foreign_runs: 0,
                family: Family::default(),
                completed: false,
            };
            // It is there first, so nobody is below himself.
            if let Some(asker) = task.asker() {
                let family = self.family_of(Some(asker));
                let family = family.ok_or(ApplyError::NoTask {
                    seq,
                    word,
                    task: asker,
                })?;
                family.asked_for(id, task.spec.terms.detached);
            }
            self.tasks.insert(id, task);
            self.created.push(id);
            return Ok(());
        }
        let said_in = match &event.kind {
            Kind::MessageQueued { from, .. } => match from {
                Sender::Person => Chain(seq),
                Sender::Task(other) => self.chain_of(*other),
                Sender::Dispatch => self.chain_of(id),
            },
            _ => Chain::default(),
        };
        let task = self.tasks.get_mut(&id).ok_or(ApplyError::NoTask {
            seq,
            word,
            task: id,
        })?;
        let refused = |message: MessageId| ApplyError::Message {
            seq,
            word,
            task: id,
            message,
        };
        match &event.kind {
            Kind::Keyed {
                key,
                message: Some(message),
            } => {
                let message = *message;
                task.message(message).ok_or_else(|| refused(message))?;
                let made = Made::Message { task: id, message };
                self.keys.keep(key, made, event.at);
            }
            Kind::LetterSent {
                letter,
                written,
                from,
            } => {
                let workspace = naming::workspace_name(&task.spec, &task.short);
                // A refused event leaves nothing behind, an empty box neither.
                let known = self.letterboxes.get(&workspace).map(Letterbox::next_id);
                if *letter != known.unwrap_or(LetterId::FIRST) {
                    return Err(ApplyError::Letter {
                        seq,
                        word,
                        workspace,
                        letter: *letter,
                    });
                }
                let post = self.letterboxes.entry(workspace).or_default();
                post.put(written.clone(), *from, event.at);
            }
            Kind::LettersRead { letters } => {
                let workspace = naming::workspace_name(&task.spec, &task.short);
                let post = self.letterboxes.get_mut(&workspace);
                let read = post.and_then(|post| post.read(letters, event.at));
                read.ok_or_else(|| ApplyError::Letter {
                    seq,
                    word,
                    workspace,
                    letter: letters.first().copied().unwrap_or_default(),
                })?;
            }
            Kind::ChildEnded {
                child, child_run, ..
            } => {
                let end = EndId {
                    child: *child,
                    run: *child_run,
                };
                // Of a task that nobody's agent asked for nothing is owed.
                task.family.ended(end, event.at);
            }
            Kind::Detached { child } => {
                let detached = task.family.detach(*child);
                detached.ok_or(ApplyError::End {
                    seq,
                    word,
                    task: id,
                })?;
                task.seq = seq;
                self.look_at_end(seq, id);
            }
            Kind::Answered { by, .. } => match by {
                Sender::Person => task.wakes = 0,
                Sender::Task(_) | Sender::Dispatch => {}
            },
            Kind::MessageQueued {
                message,
                text,
                from,
                fresh,
                held,
                ends,
            } => {
                if message.0 != task.messages_count.saturating_add(1) {
                    return Err(refused(*message));
                }
                let told = family::Fate::Told { message: *message };
                let told = task.family.settle(ends, told);
                told.ok_or_else(|| refused(*message))?;
                task.messages_count = message.0;
                if *from == Sender::Person {
                    task.wakes = 0;
                    task.messages.iter_mut().for_each(|m| m.held = false);
                }
                // Who else may speak to it has asked for it, or for whoever did.
                let below =
                    matches!(from, Sender::Task(other) if task.family.child(*other).is_some());
                let rank = if below { Rank::Below } else { Rank::Above };
                let begun = task.last_run().filter(|run| run.state.holds_slot());
                let barred = begun.map(|run| run.n).filter(|_| *fresh);
                task.messages.push(Message {
                    id: *message,
                    text: text.clone(),
                    from: *from,
                    rank,
                    at: event.at,
                    taken: None,
                    barred,
                    chain: said_in,
                    held: *held,
                    fate: Fate::Waiting,
                });
                task.forget_messages();
                if let (Sender::Task(_), false) = (from, held) {
                    self.count(said_in);
                }
            }
            Kind::MessageCancelled { message } => {
                // What a run's agent has given back stays with that run: a replay says it again.
                let open = |found: &&mut Message| found.fate == Fate::Waiting;
                let found = task.message_mut(*message).filter(open);
                found.ok_or_else(|| refused(*message))?.fate = Fate::Cancelled;
                task.attached
                    .retain(|attached| attached.message != Some(*message));
            }
            Kind::Attached { attached } => {
                if let Some(message) = attached.message {
                    let waits = task.message(message).is_some_and(Message::waits);
                    waits.then_some(()).ok_or_else(|| refused(message))?;
                }
                task.attached.push(attached.clone());
            }
            Kind::TuningSet { tuning } => {
                let waits = task.last_run().filter(|run| run.state == RunState::Queued);
                let waits = waits.map(|run| run.n);
                if task.is_open() && waits.is_none() {
                    task.tuning = std::mem::take(&mut task.tuning).then(tuning);
                } else {
                    let before = task.spec.terms.model.clone();
                    task.spec.tune(tuning.clone());
                    let now = &task.spec.terms.model;
                    let ledger = self.pools.get_mut(&task.spec.pool);
                    if let (Some(n), Some(ledger)) = (waits, ledger) {
                        ledger.tuned(RunId { task: id, n }, &before, now);
                    }
                }
            }
            Kind::CompactAsked => task.compacts = task.compacts.saturating_add(1),
            Kind::AgentSet {
                agent,
                pool,
                model,
                profile,
                command,
                permissions,
            } => {
                if task.is_open() {
                    return Err(ApplyError::WrongSubject {
                        seq,
                        word,
                        subject: event.subject,
                    });
                }
                if task.spec.agent != *agent {
                    task.foreign_runs = u32::try_from(task.runs.len()).unwrap_or(u32::MAX);
                }
                task.spec.agent = agent.clone();
                task.spec.pool = pool.clone();
                let terms = &mut task.spec.terms;
                terms.model.clone_from(model);
                // That of the agent before; what the next one has comes with it, or from its table. The
                // rules stay: what they take away, nobody's next agent has.
                terms.chain.clear();
                terms.profile.clone_from(profile);
                terms.command.clone_from(command);
                if let Some(permissions) = permissions {
                    terms.permissions = terms.permissions.stricter(*permissions);
                }
            }
            Kind::Applied { repo, branch, .. } => {
                task.applied = Some((repo.clone(), branch.clone()));
            }
            Kind::Snapshotted {
                refname,
                commit,
                keep_until,
            } => task.snapshots.push(Snapshot {
                refname: refname.clone(),
                commit: commit.clone(),
                keep_until: *keep_until,
            }),
            Kind::SnapshotDropped { refname } => {
                task.snapshots
                    .retain(|snapshot| snapshot.refname != *refname);
                task.forget_attached();
            }
            Kind::WorkspaceRemoved => {
                if let Some(workspace) = &mut task.workspace {
                    workspace.removed = true;
                }
                task.forget_attached();
            }
            Kind::AttachmentsDropped => {
                if task.is_open() {
                    return Err(ApplyError::WrongSubject {
                        seq,
                        word,
                        subject: event.subject,
                    });
                }
                task.attached.clear();
                task.attached_dropped = true;
            }
            Kind::WorkspaceRestored => {
                if let Some(workspace) = &mut task.workspace {
                    workspace.removed = false;
                }
            }
            Kind::TaskRemoved | Kind::TaskRestored => {
                task.removed = event.kind == Kind::TaskRemoved;
                task.removed_at = Some(event.at).filter(|_| task.removed);
                self.look_at_hope(id);
            }
            Kind::Noted { text } => task.notes.push(text.clone()),
            Kind::Said { .. } | Kind::BudgetWarned { .. } | Kind::Parked { .. } => {}
            _ => {
                return Err(ApplyError::WrongSubject {
                    seq,
                    word,
                    subject: event.subject,
                });
            }
        }
        if let Some(task) = self.tasks.get_mut(&id) {
            task.seq = seq;
        }
        Ok(())
    }

    /// One more message of an agent.
    fn count(&mut self, chain: Chain) {
        let count = self.chains.entry(chain).or_default();
        *count = count.saturating_add(1);
        while self.chains.len() > CHAINS_MAX {
            self.chains.pop_first();
        }
    }

    pub(super) fn family_of(&mut self, asker: Option<TaskId>) -> Option<&mut Family> {
        let asker = self.tasks.get_mut(&asker?)?;
        Some(&mut asker.family)
    }
}
