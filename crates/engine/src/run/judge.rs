//! How a run ended: the result is kept, the witnesses are heard, the checks or the reviewer speak.
//! Must not take the agent's word for anything that the tree or an exit can show.

mod checks;
mod seal;

use std::sync::Arc;

use dispatch_core::{
    event::{Kind, Verified},
    job::{ExitReport, Invocation, Offset, Part},
    outcome::{Failure, Outcome, Stop},
    review::{self, Range, Verdict},
    task::Expects,
    verdict::{self, Tree},
};

use super::{Cut, FAR, Heard, Stopped, Walk};
use crate::{
    engine::{Command, StopOrder},
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
}
