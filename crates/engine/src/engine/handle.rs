//! What whoever holds the handle can have done: each verb looks whether its caller may, makes ready
//! what takes long, and tells the actor.
//! Must not change anything itself: the actor may refuse, and then nothing has changed.

use std::{sync::Arc, time::Duration};

use dispatch_core::{
    ask::{AskId, By},
    attach,
    config::{Config, Selection},
    event::{Kind, Scope, Subject},
    family::{self, Deed},
    id::{RunId, TaskId},
    keys::RequestKey,
    message::{MessageId, Sender},
    task::{TaskSpec, Tuning},
};

use super::{Engine, Secrets, command::Command, random_id, takes_files};
use crate::{
    attachments::{self, Kept, NewFile},
    view::{Force, Given, Spoken, VerbError, Who},
};

/// For an agent that is asked for a message; it hears that whatever it does.
const GIVEN_BACK: Duration = Duration::from_secs(10);

impl Engine {
    /// Queues a task. Durable when it returns.
    ///
    /// # Errors
    /// See [`VerbError`]; nothing has changed then.
    pub async fn dispatch(
        &self,
        spec: TaskSpec,
        given: impl Into<Given>,
    ) -> Result<RunId, VerbError> {
        let Given {
            secrets,
            files,
            tuning,
            key,
        } = given.into();
        self.may(Deed::Dispatch).await?;
        if self.who != Who::Person {
            agents_bring_no_secrets("dispatch", &secrets)?;
        }
        let mut spec = spec;
        if let Who::Run(run) = self.who {
            let own = self.look(run.task).await?.task;
            family::hold_runtime(&own, self.config(), &mut spec)?;
        }
        let mut spec = self.resolved(spec).await?;
        spec.tune(tuning);
        let kept = if files.is_empty() {
            None
        } else {
            can_attach(self.config(), &spec, &[], &files)?;
            let id = self.unused_id()?;
            Some((id, self.keep(id, files).await?))
        };
        let who = self.who;
        self.ask(|reply| Command::Dispatch {
            who,
            spec: Box::new(spec),
            kept,
            secrets,
            key,
            reply,
        })
        .await
    }

    /// For a task whose files come before itself: nothing on the disk has that name either.
    fn unused_id(&self) -> Result<TaskId, VerbError> {
        let tasks = self.shared.settings.data.join("tasks");
        loop {
            let id = random_id()?;
            if !tasks.join(id.to_string()).exists() {
                return Ok(id);
            }
        }
    }

    /// Off the runtime: what is handed over is durable before the log tells of it.
    async fn keep(&self, task: TaskId, files: Vec<NewFile>) -> Result<Kept, VerbError> {
        let data = self.shared.settings.data.clone();
        let keep = move || attachments::keep(&data, task, &files);
        let kept = tokio::task::spawn_blocking(keep).await;
        kept?.map_err(|source| VerbError::Failed {
            doing: format!("keep what is attached to task {task}"),
            source: Box::new(source),
        })
    }

    /// A task says which container engine it goes to, and is refused while none answers.
    async fn resolved(&self, mut spec: TaskSpec) -> Result<TaskSpec, VerbError> {
        let Some(container) = &mut spec.placement.container else {
            return Ok(spec);
        };
        let (fences, asked) = (Arc::clone(&self.shared.fences), container.runtime);
        let chosen = tokio::task::spawn_blocking(move || fences.containers().choose(asked)).await;
        let client = chosen?.map_err(|what| VerbError::BadInput { what })?;
        container.runtime = client.runtime.into();
        Ok(spec)
    }

    /// Answers the question of a blocked task: queues a run that goes on with it.
    ///
    /// # Errors
    /// When the task is not blocked.
    pub async fn answer(
        &self,
        task: TaskId,
        text: String,
        given: impl Into<Given>,
    ) -> Result<RunId, VerbError> {
        self.may(Deed::Answer(task)).await?;
        let (secrets, tuning, key) = without_files("answer", given)?;
        self.speaker("answer", &secrets)?;
        let who = self.who;
        let _busy = self.hold("answer", task).await?;
        self.ask(|reply| Command::Answer {
            who,
            task,
            text,
            tuning,
            secrets,
            key,
            reply,
        })
        .await
    }

    /// Tries a task again that failed, was stopped or was lost: queues a run that goes on in the same
    /// workspace, and in the same session where the agent can.
    ///
    /// # Errors
    /// When it has not ended so, or cannot run again.
    pub async fn retry(&self, task: TaskId, given: impl Into<Given>) -> Result<RunId, VerbError> {
        self.may(Deed::Other("retry")).await?;
        let (secrets, tuning, key) = without_files("retry", given)?;
        let _busy = self.hold("retry", task).await?;
        self.ask(|reply| Command::Retry {
            task,
            tuning,
            secrets,
            key,
            reply,
        })
        .await
    }

    /// Goes on with a task that has ended, however it did: queues a run in the same workspace. With
    /// another agent it is a new session, which is told everything.
    ///
    /// # Errors
    /// When it has not ended, cannot run again, or the agent is not configured.
    pub async fn resume(
        &self,
        task: TaskId,
        agent: Option<Selection>,
        given: impl Into<Given>,
    ) -> Result<RunId, VerbError> {
        self.may(Deed::Other("resume")).await?;
        let (secrets, tuning, key) = without_files("resume", given)?;
        let _busy = self.hold("resume", task).await?;
        self.bring_back("resume", task).await?;
        self.ask(|reply| Command::Resume {
            task,
            agent,
            tuning,
            secrets,
            key,
            reply,
        })
        .await
    }

    /// Says something to a task. Durable when it returns; each message is heard once, in order: by
    /// the running agent if it can be spoken to, else with the first words of the next run, which an
    /// ended task is given for it. With files, another model or another effort it is for a run that
    /// has not begun.
    ///
    /// # Errors
    /// When the task was put away or cannot run again, or too much waits for it already.
    pub async fn say(
        &self,
        task: TaskId,
        text: String,
        from: Sender,
        given: impl Into<Given>,
    ) -> Result<Spoken, VerbError> {
        let Given {
            secrets,
            files,
            tuning,
            key,
        } = given.into();
        self.may(Deed::Say(task)).await?;
        let found = self.look(task).await?.task;
        let from = match self.speaker("say", &secrets)? {
            Sender::Person => from,
            agent => agent,
        };
        let busy = if found.is_open() {
            None
        } else {
            let busy = self.hold("say to", task).await?;
            self.bring_back("say to", task).await?;
            Some(busy)
        };
        let kept = if files.is_empty() {
            None
        } else {
            can_attach(self.config(), &found.spec, &found.attached, &files)?;
            Some(self.keep(task, files).await?)
        };
        let who = self.who;
        let spoken = self
            .ask(|reply| Command::Say {
                who,
                task,
                text,
                from,
                kept,
                tuning,
                secrets,
                key,
                reply,
            })
            .await;
        drop(busy);
        spoken
    }

    /// Who says something with this handle. An agent brings no secrets: those that it has are ours.
    fn speaker(&self, verb: &str, secrets: &Secrets) -> Result<Sender, VerbError> {
        match self.who {
            Who::Person => Ok(Sender::Person),
            Who::Run(run) => {
                agents_bring_no_secrets(verb, secrets)?;
                Ok(Sender::Task(run.task))
            }
        }
    }

    /// Withdraws a message that no agent has heard yet.
    ///
    /// # Errors
    /// When there is none, or it is delivered, or on its way to an agent that does not give it back.
    pub async fn unsay(&self, task: TaskId, message: MessageId) -> Result<(), VerbError> {
        self.may(Deed::Other("unsay")).await?;
        let withdrawn = self.ask(|reply| Command::Unsay {
            task,
            message,
            reply,
        });
        match tokio::time::timeout(GIVEN_BACK, withdrawn).await {
            Ok(withdrawn) => withdrawn,
            Err(_) => Err(VerbError::Nothing {
                verb: "unsay to",
                task,
                hint: format!(
                    "message {message} is with the agent, which is asked for it and has not \
                     answered yet; `dispatch show` tells what becomes of it"
                ),
            }),
        }
    }

    /// Has the conversation of its agent made shorter, before its next turn.
    ///
    /// # Errors
    /// When the task was put away, or its agent cannot be told.
    pub async fn compact(&self, task: TaskId) -> Result<(), VerbError> {
        self.may(Deed::Other("compact")).await?;
        self.ask(|reply| Command::Compact { task, reply }).await
    }

    /// Answers what the agent of a task asks permission for. Durable when it returns; the agent gets
    /// it once.
    ///
    /// # Errors
    /// When that is not asked, was answered, or its time is over.
    pub async fn permit(
        &self,
        task: TaskId,
        ask: AskId,
        allow: bool,
        why: Option<String>,
    ) -> Result<(), VerbError> {
        self.give(task, ask, (allow, false), why).await
    }

    /// Allows it, and the very same again until the task's end.
    ///
    /// # Errors
    /// As of [`Engine::permit`], and when the task's agent cannot remember it.
    pub async fn permit_always(&self, task: TaskId, ask: AskId) -> Result<(), VerbError> {
        self.give(task, ask, (true, true), None).await
    }

    async fn give(
        &self,
        task: TaskId,
        ask: AskId,
        (allow, always): (bool, bool),
        why: Option<String>,
    ) -> Result<(), VerbError> {
        self.may(Deed::Permit { task, allow }).await?;
        let by = match self.who {
            Who::Person => By::Person,
            Who::Run(run) => By::Task(run.task),
        };
        let who = self.who;
        self.ask(|reply| Command::Permit {
            who,
            task,
            ask,
            allow,
            always,
            by,
            why,
            reply,
        })
        .await
    }

    /// Asks the run of every open task to end, or kills it; which tasks those were.
    ///
    /// # Errors
    /// When the engine has ended.
    pub async fn stop_all(&self, force: Force) -> Result<Vec<TaskId>, VerbError> {
        self.may(Deed::Other("stop all tasks")).await?;
        self.ask(|reply| Command::StopAll { force, reply }).await
    }

    /// Asks a task's run to end, and those of the tasks that it asked for; with force they are killed.
    ///
    /// # Errors
    /// When nothing of them runs or waits.
    pub async fn stop(&self, task: TaskId, force: Force) -> Result<(), VerbError> {
        self.stop_once(task, force, None).await
    }

    /// The same for a request that may come again: with its key it is one stop, of what ran when it
    /// came first.
    ///
    /// # Errors
    /// As [`Engine::stop`].
    pub async fn stop_once(
        &self,
        task: TaskId,
        force: Force,
        key: Option<RequestKey>,
    ) -> Result<(), VerbError> {
        self.may(Deed::Stop(task)).await?;
        let who = self.who;
        self.ask(|reply| Command::Stop {
            who,
            task,
            force,
            key,
            reply,
        })
        .await
    }

    /// Starts nothing new of all, of a pool or of a repository; or does again.
    ///
    /// # Errors
    /// When there is no such pool, or the engine has ended.
    pub async fn set_frozen(&self, frozen: bool, scope: Scope) -> Result<(), VerbError> {
        self.may(Deed::Other("freeze")).await?;
        self.ask(|reply| Command::Freeze {
            frozen,
            scope,
            reply,
        })
        .await
    }

    /// Gives what queued runs lack.
    ///
    /// # Errors
    /// When the engine has ended.
    pub async fn provide(&self, secrets: Secrets) -> Result<(), VerbError> {
        self.may(Deed::Other("hand over secrets")).await?;
        self.ask(|reply| Command::Provide { secrets, reply }).await
    }

    /// Ends the engine; jobs live on with their keepers.
    ///
    /// # Errors
    /// When it has ended already.
    pub async fn shutdown(&self) -> Result<(), VerbError> {
        self.may(Deed::Other("shut the engine down")).await?;
        self.ask(|reply| Command::Shutdown { reply }).await
    }

    pub(crate) async fn record(&self, subject: Subject, kinds: Vec<Kind>) -> Result<(), VerbError> {
        self.ask(|reply| Command::Record {
            subject,
            kinds,
            reply,
        })
        .await
    }
}

fn can_attach(
    config: &Config,
    spec: &TaskSpec,
    there: &[attach::Attached],
    files: &[NewFile],
) -> Result<(), VerbError> {
    let sizes = files.iter().map(|file| file.bytes.len() as u64);
    let agent = takes_files(config, spec)?;
    Ok(attach::allowed(&config.limits, agent, there, sizes)?)
}

/// What an agent was given is handed on by us; anything else would be a way to point a child at
/// another provider.
fn agents_bring_no_secrets(verb: &str, secrets: &Secrets) -> Result<(), VerbError> {
    if secrets.is_empty() {
        return Ok(());
    }
    let what =
        format!("{verb} with secrets: a task that an agent asks for gets those of its asker");
    Err(VerbError::BadInput { what })
}

type WithoutFiles = (Secrets, Tuning, Option<RequestKey>);

fn without_files(verb: &str, given: impl Into<Given>) -> Result<WithoutFiles, VerbError> {
    let given = given.into();
    if given.files.is_empty() {
        return Ok((given.secrets, given.tuning, given.key));
    }
    let what = format!("{verb} with files: they come with a task or a message");
    Err(VerbError::BadInput { what })
}
