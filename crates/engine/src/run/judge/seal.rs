//! The result of a run, kept: the agent's commits by a bundle job, the rest by a snapshot.
//! Must not read the agent's `.git` by our git.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use dispatch_core::{
    event::{Kind, Sealed},
    job::{Exit, ExitReport, Invocation, Output, Part, Stdin},
    task::Wrap,
};

use crate::{
    run::{Stopped, Walk},
    sites::Site,
    trees::Trees,
};

const BUNDLE_MS_MAX: u64 = 120_000;

impl Walk {
    /// The agent's commits come out by a job in the task's own placement, the rest by a snapshot.
    pub(super) async fn seal(
        &mut self,
        site: &Arc<dyn Site>,
    ) -> Result<Result<(Sealed, Option<String>), String>, Stopped> {
        if let Some(sealed) = self.run().and_then(|run| run.sealed.clone()) {
            let question = self.blocking(|trees, task| trees.question(task)).await?;
            return Ok(Ok((sealed, question)));
        }
        let wanted = self.blocking(Trees::bundle_job).await?;
        let mut bundle = None;
        let mut notes = Vec::new();
        if let Some(job) = wanted {
            match self.bundle(site, job).await? {
                Ok(path) => bundle = Some(path),
                Err(reason) => {
                    let note = format!("the agent's own commits could not be kept: {reason}");
                    notes.push(format!(
                        "{note}; what the tree held at the end is in the result"
                    ));
                }
            }
        }
        let n = self.job.run.n;
        let config = self.ctx.settings.config.checks.clone();
        let sealed = self
            .blocking(move |trees, task| trees.seal(task, n, bundle.as_deref(), &config))
            .await?;
        Ok(match sealed {
            Ok((mut sealed, question)) => {
                sealed.notes.extend(notes);
                let kind = Kind::WorkspaceSealed {
                    sealed: sealed.clone(),
                };
                self.tell(kind).await?;
                Ok((sealed, question))
            }
            Err(error) => Err(error.to_string()),
        })
    }

    async fn bundle(
        &mut self,
        site: &Arc<dyn Site>,
        (argv, env): (Vec<String>, BTreeMap<String, String>),
    ) -> Result<Result<PathBuf, String>, Stopped> {
        let limits = &self.ctx.settings.config.limits;
        let mut job_limits = limits.check_job();
        job_limits.output_bytes = limits.snapshot_bytes;
        job_limits.wall_clock_ms = job_limits.wall_clock_ms.min(BUNDLE_MS_MAX);
        let what = Invocation {
            argv,
            env,
            secrets: Vec::new(),
            masked: Vec::new(),
            output: Output::Bytes,
            cwd: self.workspace(),
            stdin: Stdin::Null,
            limits: job_limits,
            ..Invocation::default()
        };
        // The agent's home holds its configuration of git, so this job does not see it.
        let home = self.ctx.trees.check_home(&self.job.task);
        let mut what = what;
        if let Some(first) = what.argv.first_mut()
            && self.job.task.spec.placement.wrap == Wrap::Container
        {
            // This host's git is not the image's.
            *first = "git".into();
        }
        if let Err(reason) = self.prepare_fence().await? {
            return Ok(Err(reason));
        }
        let what = match self.fence(what, &home, None, Part::Seal, Vec::new()) {
            Ok(what) => what,
            Err(reason) => return Ok(Err(reason)),
        };
        let ended = self.job_to_its_end(site, Part::Seal, &what).await?;
        Ok(match ended {
            Ok(ExitReport {
                exit: Exit::Code(0),
                stopped: None,
                ..
            }) => {
                let job = self.id(Part::Seal);
                let dir = crate::jobdir::JobDir::of(&self.ctx.settings.data, &job);
                Ok(dir.file("out"))
            }
            Ok(report) => Err(format!("git bundle ended with {:?}", report.exit)),
            Err(reason) => Err(reason),
        })
    }
}
