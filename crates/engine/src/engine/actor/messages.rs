//! What is said to a task: queued, withdrawn, taken by a run, and the run that it starts.
//! Must not let a message be heard twice, or be lost while its task can still run.

use dispatch_core::{
    attach,
    event::{Kind, Subject},
    id::{RunId, TaskId},
    message::{Fate, Message, MessageId, SETTLED_MAX, Sender},
    run::{RunCause, RunState},
    state::Task,
    task::Tuning,
};

use super::{Actor, secrets::names_no_secret};
use crate::{
    attachments::Kept,
    engine::{Secrets, command::Reply, takes_files},
    view::VerbError,
};

/// Messages that their agents are asked for, of all tasks.
const RECALLS_MAX: usize = 256;

/// Who waits for a message that an agent is asked to give back. Not in the log: what the agent answers
/// is, and whoever has heard nothing asks again.
pub(super) struct Recall {
    task: TaskId,
    message: MessageId,
    reply: Reply<()>,
}

enum Withdrawn {
    Done,
    /// Its agent has it, and is asked for it.
    Asked,
}

impl Actor {
    pub(super) fn say(
        &mut self,
        task: TaskId,
        text: String,
        from: Sender,
        (kept, tuning): (Option<Kept>, Tuning),
        secrets: Secrets,
    ) -> Result<MessageId, VerbError> {
        let limits = &self.ctx.settings.config.limits;
        let found = self
            .state
            .task(task)
            .ok_or(VerbError::NoSuchTask { task })?;
        let nothing = |hint: String| VerbError::Nothing {
            verb: "say to",
            task,
            hint,
        };
        if text.trim().is_empty() || text.len() > limits.task_bytes {
            let what = format!(
                "say to task {task}: a message has 1 to {} bytes (limits.task_bytes)",
                limits.task_bytes
            );
            return Err(VerbError::BadInput { what });
        }
        if found.removed {
            let hint = "it was put away; bring it back with `dispatch undo` first";
            return Err(nothing(hint.to_owned()));
        }
        let unheard = |message: &&Message| message.fate == Fate::Waiting;
        let waiting = found.messages.iter().filter(unheard).count();
        if waiting >= limits.messages_max {
            return Err(nothing(format!(
                "{waiting} messages wait for it already (limits.messages_max); \
                 `dispatch unsay` withdraws one"
            )));
        }
        // What a person says to an ended task starts a run, however it ended; refused, nothing has
        // changed. An agent's message does not go on after a stop or a hard failure.
        let ended = found.outcome();
        let held = self.is_held(from);
        let starts = ended.is_some_and(|outcome| from == Sender::Person || outcome.goes_on());
        if from == Sender::Person && ended.is_some() {
            self.can_run_again("say to", found, true)?;
        }
        let message = MessageId(found.messages_count.saturating_add(1));
        if let Some(kept) = &kept {
            let sizes = kept.files().iter().map(|file| file.bytes);
            let agent = takes_files(&self.ctx.settings.config, &found.spec)?;
            attach::allowed(limits, agent, &found.attached, sizes)?;
            let known = self.secrets.get(&task);
            names_no_secret(kept, known.unwrap_or(&secrets))?;
            names_no_secret(kept, &secrets)?;
        }
        self.tunes_no_secret(task, &tuning, &secrets)?;
        self.takes_effort(&found.spec.agent, tuning.effort)?;
        self.secrets.entry(task).or_default().extend(secrets);
        let queued = Kind::MessageQueued {
            message,
            text,
            from,
            fresh: kept.is_some() || !tuning.is_empty(),
            held,
            ends: Vec::new(),
        };
        self.put(Subject::Task(task), queued);
        if let Some(kept) = kept {
            self.attach(task, kept, Some(message));
        }
        self.tune(task, tuning);
        if held {
            self.tell_held(task, from);
        } else if starts {
            self.start_for_messages(task);
        } else {
            self.ring(task);
        }
        Ok(message)
    }

    /// Tells the supervisor of a running agent that there is a message or an answer.
    pub(super) fn ring(&mut self, task: TaskId) {
        self.effects.push(Box::new(move |actor| {
            let run = actor.state.task(task).and_then(|task| task.last_run());
            let bell = run.and_then(|run| actor.bells.get(&RunId { task, n: run.n }));
            if let Some(bell) = bell {
                bell.notify_one();
            }
        }));
    }

    /// What waits when a run ends starts the next one, if that end allows it.
    pub(super) fn go_on(&mut self, id: TaskId) {
        let Some(task) = self.state.task(id) else {
            return;
        };
        let due = task.waiting().any(Message::is_due);
        let outcome = task.outcome().filter(|_| due);
        match outcome {
            Some(outcome) if outcome.goes_on() => self.start_for_messages(id),
            Some(outcome) => {
                let word = outcome.word();
                let text =
                    format!("it ended as {word}: its messages wait until a person says something");
                self.put(Subject::Task(id), Kind::Noted { text });
            }
            None => {}
        }
    }

    /// The next run of an ended task, for the messages that wait. Where there cannot be one, they are
    /// kept and a person sees why.
    fn start_for_messages(&mut self, id: TaskId) {
        let Some(task) = self.state.task(id) else {
            return;
        };
        let by_person = task.waiting().any(|message| message.from == Sender::Person);
        let wakes_max = self.ctx.settings.config.limits.wakes_max;
        let able = self.can_run_again("say to", task, by_person);
        let text = match able {
            Err(error) => format!("its messages wait: {error}"),
            Ok(()) if !by_person && task.wakes >= wakes_max => format!(
                "messages of agents wait: they have started {wakes_max} runs since a person said \
                 something (limits.wakes_max)"
            ),
            Ok(()) => {
                let n = u32::try_from(task.runs.len() + 1).unwrap_or(u32::MAX);
                self.queue(RunId { task: id, n }, RunCause::Said { by_person });
                return;
            }
        };
        self.put(Subject::Task(id), Kind::Noted { text });
    }

    /// Withdraws it, or asks the agent that has it for it: then the answer comes when that has told.
    pub(super) fn unsay(&mut self, task: TaskId, message: MessageId, reply: Reply<()>) {
        match self.withdraw(task, message) {
            Ok(Withdrawn::Done) => self.reply_later(reply, Ok(())),
            Ok(Withdrawn::Asked) => {
                self.recalls.push(Recall {
                    task,
                    message,
                    reply,
                });
                self.ring(task);
            }
            Err(error) => self.reply_later(reply, Err(error)),
        }
    }

    /// What the agent of this run is asked to give back.
    pub(super) fn recalled(&self, run: RunId) -> Vec<MessageId> {
        let theirs = self.recalls.iter().filter(|recall| recall.task == run.task);
        theirs.map(|recall| recall.message).collect()
    }

    /// Answers those who wait for a message that has come to its end, one way or the other.
    pub(super) fn answer_recalls(&mut self) {
        for recall in std::mem::take(&mut self.recalls) {
            let task = self.state.task(recall.task);
            let message = task.and_then(|task| task.message(recall.message));
            let goes_on = message.is_some_and(|known| known.fate == Fate::Waiting);
            let with_agent = goes_on && message.is_some_and(|known| known.taken.is_some());
            if with_agent && !recall.reply.is_closed() {
                self.recalls.push(recall);
                continue;
            }
            let (task, id) = (recall.task, recall.message);
            let answer = match message.map(|known| known.fate) {
                Some(Fate::Cancelled) => Ok(()),
                // Its run has ended without having told of it.
                Some(Fate::Waiting) if !with_agent => self.withdraw(task, id).map(|_| ()),
                Some(_) | None => Err(VerbError::Nothing {
                    verb: "unsay to",
                    task,
                    hint: format!("message {id} is delivered already"),
                }),
            };
            self.reply_later(recall.reply, answer);
        }
    }

    /// Whether the task's agent tells what becomes of each message, and gives it back.
    pub(super) fn takes_back(&self, task: &Task) -> bool {
        let agents = &self.ctx.settings.config.agents;
        let profile = agents.get(&task.spec.agent);
        profile.is_some_and(|profile| profile.driver.takes_back())
    }

    fn withdraw(&mut self, task: TaskId, message: MessageId) -> Result<Withdrawn, VerbError> {
        let found = self
            .state
            .task(task)
            .ok_or(VerbError::NoSuchTask { task })?;
        let nothing = |hint: String| VerbError::Nothing {
            verb: "unsay to",
            task,
            hint,
        };
        let Some(known) = found.message(message) else {
            let hint = if message.0 <= found.messages_count {
                "delivered long ago"
            } else {
                "not known; `dispatch show` lists them"
            };
            return Err(nothing(format!("message {message} is {hint}")));
        };
        if known.from == Sender::Dispatch {
            return Err(nothing(format!(
                "message {message} tells how tasks have ended that it asked for"
            )));
        }
        let given = known.taken.is_some_and(|taken| taken.out_offset.is_some());
        if given && known.fate == Fate::Waiting && self.takes_back(found) {
            return match self.recalls.len() < RECALLS_MAX {
                true => Ok(Withdrawn::Asked),
                false => Err(nothing(format!(
                    "{RECALLS_MAX} others are asked for already; try again"
                ))),
            };
        }
        if !known.waits() {
            let word = match known.word() {
                "on_its_way" => "on its way to the agent",
                word => word,
            };
            return Err(nothing(format!("message {message} is {word} already")));
        }
        self.put(Subject::Task(task), Kind::MessageCancelled { message });
        self.call_off(task);
        Ok(Withdrawn::Done)
    }

    /// The conversation of its agent becomes shorter before its next turn, which is the next run's: it is
    /// told with its opening.
    pub(super) fn compact(&mut self, task: TaskId) -> Result<(), VerbError> {
        let found = self
            .state
            .task(task)
            .ok_or(VerbError::NoSuchTask { task })?;
        if found.removed {
            let hint = "it was put away; bring it back with `dispatch undo` first".to_owned();
            return Err(VerbError::Nothing {
                verb: "compact",
                task,
                hint,
            });
        }
        let agent = &found.spec.agent;
        let profile = self.ctx.settings.config.agents.get(agent);
        if !profile.is_some_and(|profile| profile.driver.compacts()) {
            let what = format!(
                "compact task {task}: agent {agent} keeps its conversation by itself and cannot be told"
            );
            return Err(VerbError::BadInput { what });
        }
        self.put(Subject::Task(task), Kind::CompactAsked);
        Ok(())
    }

    /// A run that was queued for messages only, which are all withdrawn, ends before it began, and
    /// the task is as it was.
    fn call_off(&mut self, id: TaskId) {
        let Some(task) = self.state.task(id) else {
            return;
        };
        let [.., before, last] = task.runs.as_slice() else {
            return;
        };
        let idle = last.state == RunState::Queued
            && matches!(last.cause, RunCause::Said { .. })
            && !task.waiting().any(Message::is_due);
        if let (true, RunState::Finished(outcome)) = (idle, &before.state) {
            let (outcome, verified, before) = (outcome.clone(), before.verified, before.n);
            let run = RunId {
                task: id,
                n: last.n,
            };
            self.call_off_run(run, before, outcome, verified);
        }
    }

    pub(super) fn take_all(&mut self, run: RunId) -> Vec<Message> {
        let waiting = |task: &dispatch_core::state::Task| {
            let due = task.due_for(run.n);
            due.map(|message| message.id).collect::<Vec<_>>()
        };
        self.put_ends(run.task);
        let out_offset = None;
        for message in self.state.task(run.task).map(waiting).unwrap_or_default() {
            let taken = Kind::MessageTaken {
                message,
                out_offset,
            };
            self.put(Subject::Run(run), taken);
        }
        let task = self.state.task(run.task);
        task.map(|task| task.messages.clone()).unwrap_or_default()
    }

    /// The next message for a running agent; none for one that has been asked to end.
    pub(super) fn take(&mut self, run: RunId, out_offset: u64) -> Option<Message> {
        let task = self.state.task(run.task)?;
        let running = self.state.run(run)?.state == RunState::Running;
        // What one run has heard is kept until its end, for a replay.
        let heard = task.messages.iter().filter(|m| m.is_with(run.n)).count();
        let hears = running && heard < SETTLED_MAX;
        if !hears {
            return None;
        }
        let next = task.due_for(run.n).next().map(|message| message.id);
        let message = match next {
            Some(message) => message,
            None => self.put_ends(run.task)?,
        };
        let taken = Kind::MessageTaken {
            message,
            out_offset: Some(out_offset),
        };
        let taken = self.put(Subject::Run(run), taken);
        let task = self.state.task(run.task).filter(|_| taken)?;
        task.message(message).cloned()
    }
}
