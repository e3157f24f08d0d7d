//! Verbs that work on a finished task's workspace and results: remove, undo, clean, apply, diff.
//! Must keep the content under a ref before anything is taken away (I14).

use std::{path::PathBuf, sync::Arc};

use dispatch_core::{
    Millis,
    config::Retention,
    event::{Kind, Subject},
    family::Deed,
    id::TaskId,
    outcome::Outcome,
    state::{Snapshot, Task},
    task::Base,
};
use tokio::sync::oneshot;

use crate::{
    engine::{Command, Desk, Engine, Holder, now},
    run::Ctx,
    trees::{TreeError, Trees},
    view::{Applied, Force, TaskView, VerbError, Who, Written},
};

const DAY_MS: u64 = 24 * 3600 * 1000;

fn failed(doing: &str, task: TaskId) -> impl FnOnce(TreeError) -> VerbError {
    let doing = format!("{doing} task {task}");
    move |source| VerbError::Failed {
        doing,
        source: Box::new(source),
    }
}

/// What has been done on the disk stays done where the log can be told of it no more: that is not an
/// engine that was never asked.
fn untold(doing: &str, task: TaskId) -> impl FnOnce(VerbError) -> VerbError {
    let doing = format!("{doing} task {task}: it is done on the disk, and the log does not say so");
    move |error| match error {
        VerbError::Gone => VerbError::Failed {
            doing,
            source: Box::new(error),
        },
        other => other,
    }
}

impl Engine {
    async fn blocking<T: Send + 'static>(
        &self,
        task: Task,
        work: impl FnOnce(&Trees, &Task) -> T + Send + 'static,
    ) -> Result<T, VerbError> {
        let trees = self.trees();
        tokio::task::spawn_blocking(move || work(&trees, &task))
            .await
            .map_err(VerbError::from)
    }

    /// Stops a live task, keeps what its workspace holds, removes the workspace, puts the task away.
    ///
    /// # Errors
    /// When the content could not be kept; then nothing was removed.
    pub async fn remove(&self, task: TaskId) -> Result<(), VerbError> {
        self.may(Deed::Other("remove")).await?;
        let _busy = self.hold("remove", task).await?;
        let view = self.stopped(task).await?;
        if view.task.removed {
            return Err(VerbError::WrongState {
                verb: "remove",
                task,
                state: "removed",
                hint: "it was put away before; `dispatch undo` brings it back",
            });
        }
        if let Some(kinds) = self.put_away(view.task).await? {
            let told = self.record(Subject::Task(task), kinds).await;
            told.map_err(untold("remove the workspace of", task))?;
        }
        self.record(Subject::Task(task), vec![Kind::TaskRemoved])
            .await
    }

    /// Keeps and removes the workspace. `None`: there was none.
    async fn put_away(&self, task: Task) -> Result<Option<Vec<Kind>>, VerbError> {
        let id = task.id;
        if task
            .workspace
            .as_ref()
            .is_none_or(|workspace| workspace.removed)
        {
            return Ok(None);
        }
        let kept = self
            .blocking(task.clone(), Trees::keep)
            .await?
            .map_err(failed("keep", id))?;
        let keep_ms = self.config().retention.snapshots_d.saturating_mul(DAY_MS);
        let keep_until = if keep_ms == 0 {
            u64::MAX
        } else {
            now().saturating_add(keep_ms)
        };
        // Durable before the removal: whoever starts after a crash knows where the content is.
        if let Some((refname, commit)) = kept {
            let snapshotted = Kind::Snapshotted {
                refname,
                commit,
                keep_until,
            };
            self.record(Subject::Task(id), vec![snapshotted]).await?;
        }
        self.blocking(task, Trees::remove)
            .await?
            .map_err(failed("remove", id))?;
        Ok(Some(vec![Kind::WorkspaceRemoved]))
    }

    /// Waits for the end of a live run, which it asks for.
    async fn stopped(&self, task: TaskId) -> Result<TaskView, VerbError> {
        let view = self.task(task).await?;
        if view.task.is_done() {
            return Ok(view);
        }
        let mut events = self.events(view.seq);
        match self.stop(task, Force::Ask).await {
            Ok(()) | Err(VerbError::WrongState { .. }) => {}
            Err(error) => return Err(error),
        }
        loop {
            let view = self.task(task).await?;
            if view.task.is_done() {
                return Ok(view);
            }
            events.next().await.ok_or(VerbError::Gone)?;
        }
    }

    /// A workspace that retention has removed is there again for the next run; what a person put
    /// away stays away.
    pub(crate) async fn bring_back(
        &self,
        verb: &'static str,
        task: TaskId,
    ) -> Result<(), VerbError> {
        let view = self.look(task).await?;
        let gone = view.task.workspace.as_ref().is_some_and(|w| w.removed);
        if view.task.removed || view.task.is_open() || !gone {
            return Ok(());
        }
        let restored = self.blocking(view.task, Trees::restore).await?;
        let doing = format!("{verb} task {task}: bring its workspace back");
        restored.map_err(|source| VerbError::Failed {
            doing,
            source: Box::new(source),
        })?;
        self.record(Subject::Task(task), vec![Kind::WorkspaceRestored])
            .await
    }

    /// Brings a removed workspace back as it was.
    ///
    /// # Errors
    /// When nothing was removed, or its content is not kept any more.
    pub async fn undo(&self, task: TaskId) -> Result<PathBuf, VerbError> {
        self.may(Deed::Other("undo")).await?;
        let _busy = self.hold("undo", task).await?;
        let view = self.task(task).await?;
        let nothing = |hint: &str| VerbError::Nothing {
            verb: "undo",
            task,
            hint: hint.into(),
        };
        let workspace = view.task.workspace.clone();
        let workspace = match workspace {
            Some(workspace) if workspace.removed => workspace,
            Some(workspace) if view.task.removed => {
                self.record(Subject::Task(task), vec![Kind::TaskRestored])
                    .await?;
                return Ok(workspace.path);
            }
            Some(_) => return Err(nothing("its workspace is there; nothing was removed")),
            None if view.task.removed => {
                self.record(Subject::Task(task), vec![Kind::TaskRestored])
                    .await?;
                let hint = if view.task.attached_dropped {
                    "it is back in the list; it never had a workspace, and its attachments are not \
                     kept any more, so it cannot run again"
                } else {
                    "it is back in the list; it never had a workspace"
                };
                return Err(nothing(hint));
            }
            None => return Err(nothing("it never had a workspace")),
        };
        let restored = self.blocking(view.task.clone(), Trees::restore).await?;
        restored.map_err(failed("undo the removal of", task))?;
        let mut kinds = vec![Kind::WorkspaceRestored];
        if view.task.removed {
            kinds.push(Kind::TaskRestored);
        }
        let told = self.record(Subject::Task(task), kinds).await;
        told.map_err(untold("bring back the workspace of", task))?;
        Ok(workspace.path)
    }

    /// Removes finished tasks in one of `states` that ended longer ago than that.
    ///
    /// # Errors
    /// The first removal that fails; those before it are done.
    pub async fn clean(
        &self,
        states: Vec<String>,
        older_than_ms: u64,
    ) -> Result<Vec<TaskId>, VerbError> {
        self.may(Deed::Other("clean")).await?;
        let now = now();
        let mut removed = Vec::new();
        for view in self.tasks().await? {
            let Some((outcome, run)) = view.task.outcome().zip(view.task.last_run()) else {
                continue;
            };
            let old = now.saturating_sub(run.ended_at.unwrap_or(now)) >= older_than_ms;
            if !view.task.removed
                && view.task.is_done()
                && old
                && states.iter().any(|state| state == outcome.word())
            {
                self.remove(view.task.id).await?;
                removed.push(view.task.id);
            }
        }
        Ok(removed)
    }

    /// Brings the result into a person's repository as a branch; never touches a checkout.
    ///
    /// # Errors
    /// When there is no result, or the branch there is in the way.
    pub async fn apply(&self, task: TaskId, to: Option<PathBuf>) -> Result<Applied, VerbError> {
        self.may(Deed::Other("apply")).await?;
        let _busy = self.hold("apply", task).await?;
        let view = self.task(task).await?;
        let commit = result_of("apply", &view)?;
        if let Some(hint) = no_branch(&view.task.spec.base) {
            return Err(VerbError::Nothing {
                verb: "apply",
                task,
                hint,
            });
        }
        let repo = match to {
            Some(repo) => repo,
            None if view.task.spec.repo.starts_with('/') => PathBuf::from(&view.task.spec.repo),
            None => {
                let hint = "its repository is a URL; say where to with --to PATH".to_owned();
                return Err(VerbError::Nothing {
                    verb: "apply",
                    task,
                    hint,
                });
            }
        };
        let (into, from) = (repo.clone(), commit.clone());
        let branch = view.task.branch();
        let applied = self
            .blocking(view.task, move |trees, task| {
                trees.apply(task, &into, &from)
            })
            .await?;
        applied.map_err(failed("apply the result of", task))?;
        let kind = Kind::Applied {
            repo: repo.clone(),
            branch: branch.clone(),
            commit: commit.clone(),
        };
        let told = self.record(Subject::Task(task), vec![kind]).await;
        told.map_err(untold("apply the result of", task))?;
        Ok(Applied {
            repo,
            branch,
            commit,
        })
    }

    /// Writes the result of a task without git into the directory it was copied from, or another.
    ///
    /// # Errors
    /// When there is no result, or something there has changed since; then nothing was written.
    pub async fn write_back(
        &self,
        task: TaskId,
        to: Option<PathBuf>,
    ) -> Result<Written, VerbError> {
        self.may(Deed::Other("apply")).await?;
        let _busy = self.hold("apply", task).await?;
        let view = self.task(task).await?;
        let commit = result_of("apply", &view)?;
        let nothing = |hint: &str| VerbError::Nothing {
            verb: "apply",
            task,
            hint: hint.into(),
        };
        let folder = match (&view.task.spec.base, to) {
            (Base::Folder | Base::Nothing, Some(folder)) => folder,
            (Base::Folder, None) => PathBuf::from(&view.task.spec.repo),
            (Base::Nothing, None) => {
                return Err(nothing(
                    "it started from nothing; say where to with --to PATH",
                ));
            }
            _ => return Err(nothing("it has a repository, where it becomes a branch")),
        };
        let (into, from) = (folder.clone(), commit.clone());
        let written = self
            .blocking(view.task, move |trees, task| {
                trees.write_back(task, &into, &from)
            })
            .await?;
        let files = written.map_err(failed("apply the result of", task))?;
        let kind = Kind::Applied {
            repo: folder.clone(),
            branch: String::new(),
            commit: commit.clone(),
        };
        let told = self.record(Subject::Task(task), vec![kind]).await;
        told.map_err(untold("apply the result of", task))?;
        Ok(Written {
            folder,
            commit,
            files,
        })
    }

    /// The result as a patch; of a live task, what its workspace shows now.
    ///
    /// # Errors
    /// When there is nothing to show.
    pub async fn diff(&self, task: TaskId) -> Result<String, VerbError> {
        let view = self.task(task).await?;
        let sealed = view.task.last_run().and_then(|run| run.sealed.clone());
        let there = view.task.workspace.as_ref().is_some_and(|w| !w.removed);
        let commit = match sealed {
            Some(sealed) => sealed.commit,
            None if there => {
                let alone = self.turn_to_look(task).await;
                let live = self.blocking(view.task, move |trees, task| {
                    let diff = trees.live_diff(task);
                    drop(alone);
                    diff
                });
                return live
                    .await?
                    .map_err(failed("look at the workspace of", task));
            }
            None => view.task.result().and_then(|sealed| sealed.commit.clone()),
        };
        let Some(commit) = commit else {
            return Ok(String::new());
        };
        let diff = self
            .blocking(view.task, move |trees, task| trees.diff(task, &commit))
            .await?;
        diff.map_err(failed("show the changes of", task))
    }
}

/// Why a result cannot become a branch.
fn no_branch(base: &Base) -> Option<String> {
    match base {
        Base::Tag { name } => Some(format!(
            "it started from the tag {name}, and a tag is not a place to go on from; its result is \
             kept and `dispatch diff` shows it; start from a branch to apply one"
        )),
        Base::Folder | Base::Nothing => {
            Some("it has no repository; its files are written after you said so".into())
        }
        Base::Head | Base::Branch { .. } | Base::Default { .. } | Base::Pr { .. } => None,
    }
}

fn result_of(verb: &'static str, view: &TaskView) -> Result<String, VerbError> {
    let task = view.task.id;
    if view.task.is_open() {
        return Err(VerbError::WrongState {
            verb,
            task,
            state: view
                .task
                .last_run()
                .map_or("queued", |run| run.state.word()),
            hint: "wait for its end, or stop it",
        });
    }
    let commit = view.task.result().and_then(|sealed| sealed.commit.clone());
    commit.ok_or_else(|| VerbError::Nothing {
        verb,
        task,
        hint: "it changed nothing".into(),
    })
}

/// Whether the workspace of an ended task has been there long enough.
pub(crate) fn is_over(task: &Task, retention: &Retention, now: Millis) -> bool {
    let Some((outcome, run)) = task.outcome().zip(task.last_run()) else {
        return false;
    };
    let days = match outcome {
        Outcome::Completed { .. } => retention.completed_d,
        Outcome::Blocked { .. } => retention.blocked_d,
        Outcome::Failed(_) => retention.failed_d,
        Outcome::Stopped(_) => retention.stopped_d,
        Outcome::Lost => retention.lost_d,
    };
    let there = task.workspace.as_ref().is_some_and(|w| !w.removed);
    there && is_past(days, run.ended_at.unwrap_or(now), now)
}

/// Whether the files of a task that was put away, and has nothing else, were kept as long as a snapshot
/// would have been.
pub(crate) fn are_files_over(task: &Task, retention: &Retention, now: Millis) -> bool {
    let since = task.removed_at.unwrap_or(now);
    task.is_put_away_with_files() && is_past(retention.snapshots_d, since, now)
}

/// 0 days: for ever.
fn is_past(days: u64, since: Millis, now: Millis) -> bool {
    let keep_ms = days.saturating_mul(DAY_MS);
    keep_ms > 0 && now.saturating_sub(since) > keep_ms
}

pub(crate) fn old_snapshot(task: &Task, now: Millis) -> Option<&Snapshot> {
    let mut kept = task.snapshots.iter();
    kept.find(|snapshot| snapshot.keep_until < now)
}

/// Retention of one task, alone with it and by what it is now: a verb may have changed it since. One
/// that somebody works on is left to the next turn.
pub(crate) async fn retain(ctx: &Ctx, id: TaskId, now: Millis) {
    let Ok(_busy) = Desk::take(&ctx.desk, id, Holder::Retention) else {
        return;
    };
    while let Some(task) = current(ctx, id).await
        && let Some(snapshot) = old_snapshot(&task, now)
    {
        if !forget(ctx, &task, snapshot).await {
            return;
        }
    }
    if let Some(task) = current(ctx, id).await
        && is_over(&task, &ctx.settings.config.retention, now)
    {
        retire(ctx, &task).await;
    }
}

async fn current(ctx: &Ctx, task: TaskId) -> Option<Task> {
    let (reply, answer) = oneshot::channel();
    let sent = ctx
        .commands
        .send(Command::Task {
            who: Who::Person,
            task,
            reply,
        })
        .await;
    sent.ok()?;
    Some(answer.await.ok()?.ok()?.task)
}

/// Retention of one task: its content is kept under a ref, its workspace removed. Told as events;
/// what fails is noted and tried again at the next turn.
async fn retire(ctx: &Ctx, task: &Task) {
    let trees = Arc::clone(&ctx.trees);
    let keep_ms = ctx
        .settings
        .config
        .retention
        .snapshots_d
        .saturating_mul(DAY_MS);
    let owned = task.clone();
    let kept = tokio::task::spawn_blocking(move || trees.keep(&owned)).await;
    let mut kinds = Vec::new();
    let mut remove = false;
    match kept {
        Ok(Ok(None)) => remove = true,
        Ok(Ok(Some((refname, commit)))) => {
            let keep_until = if keep_ms == 0 {
                u64::MAX
            } else {
                now().saturating_add(keep_ms)
            };
            kinds.push(Kind::Snapshotted {
                refname,
                commit,
                keep_until,
            });
            remove = true;
        }
        Ok(Err(error)) => {
            kinds.push(Kind::Noted {
                text: format!("its old workspace stays: {error}"),
            });
        }
        Err(_) => return,
    }
    if !record(ctx, task.id, kinds).await || !remove {
        return;
    }
    let (trees, owned) = (Arc::clone(&ctx.trees), task.clone());
    let kind = match tokio::task::spawn_blocking(move || trees.remove(&owned)).await {
        Ok(Ok(())) => Kind::WorkspaceRemoved,
        Ok(Err(error)) => Kind::Noted {
            text: format!("its old workspace stays: {error}"),
        },
        Err(_) => return,
    };
    record(ctx, task.id, vec![kind]).await;
}

/// Drops a snapshot whose time is over. Its commit stays reachable by nothing of ours from then on; the
/// event is written first, so that `undo` never promises what is gone. Whether it is written.
async fn forget(ctx: &Ctx, task: &Task, snapshot: &Snapshot) -> bool {
    let refname = snapshot.refname.clone();
    let kind = Kind::SnapshotDropped {
        refname: refname.clone(),
    };
    if !record(ctx, task.id, vec![kind]).await {
        return false;
    }
    let (trees, owned) = (Arc::clone(&ctx.trees), task.clone());
    let dropped = tokio::task::spawn_blocking(move || trees.forget(&owned, &refname)).await;
    if let Ok(Err(error)) = dropped {
        let text = format!("an old snapshot stays: {error}");
        record(ctx, task.id, vec![Kind::Noted { text }]).await;
    }
    true
}

async fn record(ctx: &Ctx, task: TaskId, kinds: Vec<Kind>) -> bool {
    let (reply, answer) = oneshot::channel();
    let command = Command::Record {
        subject: Subject::Task(task),
        kinds,
        reply,
    };
    ctx.commands.send(command).await.is_ok() && matches!(answer.await, Ok(Ok(())))
}
