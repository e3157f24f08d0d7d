//! The checks, each a job in the task's placement, in order.
//! Must not vouch for anything that could not be run.

use std::sync::Arc;

use dispatch_core::{
    checks::{self, Planned},
    event::{CheckState, Kind, Verified},
    job::{Exit, Invocation, Output, Part, Stdin},
    outcome::{Failure, Outcome, Stop},
    secret::Secret,
};

use crate::{
    run::{Stopped, Walk, prepare_failed},
    sidecar,
    sites::Site,
};

impl Walk {
    pub(super) async fn planned(&self) -> Result<Vec<Planned>, Stopped> {
        let config = self.ctx.settings.config.checks.clone();
        let asked = self.job.task.spec.checks.clone();
        let root = self
            .blocking(move |trees, task| trees.root_files(task, &checks::marker_files(&config)))
            .await?
            .map_err(|error| prepare_failed(&error))?;
        Ok(checks::plan(
            &self.ctx.settings.config.checks,
            &asked,
            &root,
        ))
    }

    /// In order; the first failure ends the chain. What could not be run vouches for nothing.
    pub(super) async fn check(
        &mut self,
        site: &Arc<dyn Site>,
        planned: &[Planned],
        outcome: Outcome,
    ) -> Result<(Outcome, Verified), Stopped> {
        let home = self.ctx.trees.check_home(&self.job.task);
        let mut masked: Vec<Secret> = self.job.secrets.values().cloned().collect();
        masked.extend(self.login_secrets(&self.profile()?));
        let base_env = self
            .job_env(&home)
            .map_err(|reason| Failure::Start { reason })?;
        let mut verified = Verified::Yes;
        let mut failed = Vec::new();
        for check in planned {
            if self.stop.is_some() {
                return Ok((Outcome::Stopped(Stop::ByPerson), Verified::NotVerified));
            }
            let ended = |state, exit, note: String| Kind::CheckFinished {
                check: check.name.clone(),
                state,
                exit,
                note,
            };
            if !failed.is_empty() || verified == Verified::NotVerified {
                let note = "an earlier one did not pass".into();
                let kind = ended(CheckState::NotRun, None, note);
                self.tell(kind).await?;
                continue;
            }
            let program = check.argv.first().map_or("", String::as_str);
            let program = match self.program(program, &base_env) {
                Ok(program) => program,
                Err(reason) => {
                    verified = Verified::NotVerified;
                    let kind = ended(CheckState::NotRun, None, reason);
                    self.tell(kind).await?;
                    continue;
                }
            };
            let mut env = base_env.clone();
            env.extend(check.env.clone());
            for (name, value) in sidecar::proxy_env(&self.job.task.spec.placement.network) {
                env.insert(name.to_owned(), value);
            }
            let mut argv = check.argv.clone();
            if let Some(first) = argv.first_mut() {
                *first = program;
            }
            let what = Invocation {
                argv,
                env,
                secrets: Vec::new(),
                masked: masked.clone(),
                output: Output::Text,
                cwd: self.workspace(),
                stdin: Stdin::Null,
                limits: self.limits().check_job(),
                ..Invocation::default()
            };
            self.prepare_fence()
                .await?
                .map_err(|reason| Failure::Start { reason })?;
            let part = Part::Check(check.name.clone());
            let what = self
                .fence(what, &home, None, part, self.relays(None))
                .map_err(|reason| Failure::Start { reason })?;
            let (state, exit, note) = self.check_one(site, check, &what).await?;
            if state != CheckState::Passed {
                failed.push(if note.is_empty() {
                    check.name.to_string()
                } else {
                    format!("{} ({note})", check.name)
                });
            }
            let kind = ended(state, exit, note);
            self.tell(kind).await?;
        }
        if self.stop.is_some() {
            return Ok((Outcome::Stopped(Stop::ByPerson), Verified::NotVerified));
        }
        if failed.is_empty() {
            return Ok((outcome, verified));
        }
        Ok((Outcome::Failed(Failure::Checks { failed }), Verified::No))
    }

    async fn check_one(
        &mut self,
        site: &Arc<dyn Site>,
        check: &Planned,
        what: &Invocation,
    ) -> Result<(CheckState, Option<Exit>, String), Stopped> {
        let mut name = check.name.clone();
        // A check whose keeper died has shown nothing: it may run once more, under a new name.
        for _ in 0..2 {
            let ended = self
                .job_to_its_end(site, Part::Check(name.clone()), what)
                .await?;
            let report = match ended {
                Ok(report) => report,
                Err(reason) if reason == "its keeper died" => {
                    let Ok(again) = format!("{}.again", check.name).parse() else {
                        break;
                    };
                    name = again;
                    continue;
                }
                Err(reason) => return Ok((CheckState::Failed, None, reason)),
            };
            let note = report
                .stopped
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default();
            let passed = report.exit == Exit::Code(0) && report.stopped.is_none();
            let state = if passed {
                CheckState::Passed
            } else {
                CheckState::Failed
            };
            return Ok((state, Some(report.exit), note));
        }
        Ok((CheckState::Failed, None, "its keeper died twice".into()))
    }
}
