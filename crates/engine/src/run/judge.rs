//! How a run ended: the result is kept, the witnesses are heard, the checks or the reviewer speak.
//! Must not take the agent's word for anything that the tree or an exit can show.

mod seal;

use std::sync::Arc;

use dispatch_core::{
    checks::{self, Planned},
    event::{CheckState, Kind, Verified},
    job::{Exit, ExitReport, Invocation, Offset, Output, Part, Stdin},
    outcome::{Failure, Outcome, Stop},
    review::{self, Range, Verdict},
    secret::Secret,
    task::Expects,
    verdict::{self, Tree},
};

use super::{Cut, FAR, Heard, Stopped, Walk, prepare_failed};
use crate::{
    engine::{Command, StopOrder},
    sidecar,
    sites::{JobEvent, Site, Start},
};

impl Walk {
    /// Keeps the result, hears the three witnesses, and lets the checks speak.
    pub(super) async fn judge(
        &mut self,
        site: &Arc<dyn Site>,
        heard: Heard,
        checking: bool,
    ) -> Result<(Outcome, Verified), Stopped> {
        let spec = self.job.task.spec.clone();
        let sealed = self.seal(site).await?;
        let (sealed, question) = match sealed {
            Ok(sealed) => sealed,
            Err(reason) => return Err(Failure::Seal { reason }.into()),
        };
        let tree = Tree {
            changed: sealed.commit.is_some(),
            question,
        };
        let ended_at = heard.report.as_ref().map_or(0, |report| report.ended_at);
        // Where what it asked for goes on, this is not the end that something is expected of.
        let owed = self.is_owed().await?;
        let expects = if owed { Expects::Either } else { spec.expects };
        let outcome =
            verdict::verdict(heard.report.as_ref(), &heard.said, &tree, expects, ended_at);
        let outcome = match outcome {
            Outcome::Failed(Failure::NothingSaid) if owed => Outcome::Completed {
                summary: String::new(),
            },
            outcome => outcome,
        };
        if self.stop.is_some() {
            return Ok((Outcome::Stopped(Stop::ByPerson), Verified::NotVerified));
        }
        if owed || !matches!(outcome, Outcome::Completed { .. }) {
            return Ok((outcome, Verified::NotVerified));
        }
        if let Some(range) = self.range.clone() {
            return self.review(&heard.said.text, range).await;
        }
        let planned = self.planned().await?;
        if planned.is_empty() {
            return Ok((outcome, Verified::NotVerified));
        }
        if !checking {
            let names = planned.iter().map(|check| check.name.clone()).collect();
            self.tell(Kind::ChecksStarted { checks: names }).await?;
        }
        self.check(site, &planned, outcome).await
    }

    async fn is_owed(&self) -> Result<bool, Cut> {
        let run = self.job.run;
        let owed = self.ask(|reply| Command::Owed { run, reply }).await?;
        Ok(owed.unwrap_or(false))
    }

    /// The reviewer's word, which stands where checks stand otherwise.
    async fn review(&self, said: &str, range: Range) -> Result<(Outcome, Verified), Stopped> {
        let known = self.run().and_then(|run| run.review.clone());
        let review = match known {
            Some(review) => review,
            None => {
                let review = review::read(said, range);
                let told = review.clone();
                self.tell(Kind::Reviewed { review: told }).await?;
                review
            }
        };
        let findings = review.findings.len();
        Ok(match review.verdict {
            Verdict::Pass => {
                let summary = format!("the review passes, with {findings} findings");
                (Outcome::Completed { summary }, Verified::Yes)
            }
            Verdict::Fail => {
                let note = review.note;
                (Failure::Review { findings, note }.into(), Verified::No)
            }
            Verdict::NotVerified => {
                let reason = review.note;
                (
                    Failure::NotReviewed { reason }.into(),
                    Verified::NotVerified,
                )
            }
        })
    }

    async fn planned(&self) -> Result<Vec<Planned>, Stopped> {
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

    /// Runs a job that is not the agent; adopts it when it has a body already.
    async fn job_to_its_end(
        &mut self,
        site: &Arc<dyn Site>,
        part: Part,
        what: &Invocation,
    ) -> Result<Result<ExitReport, String>, Stopped> {
        let job = self.id(part.clone());
        if let Start::Declined(reason) | Start::NotStarted(reason) = site.start(&job, what).await {
            return Ok(Err(reason));
        }
        let mut follow = match site
            .follow(
                &job,
                Offset {
                    out: FAR,
                    err: FAR,
                    input: 0,
                },
            )
            .await
        {
            Ok(follow) => follow,
            Err(error) => return Ok(Err(format!("follow it: {error}"))),
        };
        loop {
            tokio::select! {
                event = follow.next() => match event {
                    Ok(JobEvent::Out(_) | JobEvent::Err(_) | JobEvent::Alive) => {}
                    Ok(JobEvent::Exited(report)) => return Ok(Ok(report)),
                    Ok(JobEvent::NeverStarted | JobEvent::Gone) => {
                        return Ok(Err("its keeper died".into()));
                    }
                    Err(error) => return Ok(Err(format!("follow it: {error}"))),
                },
                Some(StopOrder { force }) = self.orders.recv() => {
                    self.order_stop(site, part.clone(), force).await;
                }
            }
        }
    }

    /// In order; the first failure ends the chain. What could not be run vouches for nothing.
    async fn check(
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
