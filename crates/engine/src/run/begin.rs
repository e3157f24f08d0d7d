//! From an admitted run to a started agent: workspace, prompt, sidecar, and the sites in order.
//! Must not try the next site while the one before may have started it.

use std::sync::Arc;

use dispatch_core::{
    cage,
    config::AgentProfile,
    drivers::Driver,
    event::{Kind, Subject},
    id::SiteName,
    job::Part,
    message::{Delivery, Fate},
    outcome::{Failure, Outcome, Stop},
    prompt,
    task::{Expects, Wrap},
};

use super::{Cut, Stopped, Walk, prepare_failed};
use crate::{
    engine::{Command, StopOrder},
    prompts::{self, Words},
    sites::{Enforced, Site, Start},
    trees::Trees,
};

impl Walk {
    /// Prepares the workspace and starts the agent.
    pub(super) async fn begin(
        &mut self,
        driver: &mut dyn Driver,
        profile: &AgentProfile,
    ) -> Result<Arc<dyn Site>, Stopped> {
        self.in_time()?;
        let ready = self
            .blocking(Trees::prepare)
            .await?
            .map_err(|error| prepare_failed(&error))?;
        if let Some(old) = ready.old_question {
            let text = format!(
                "{} of an earlier run was moved out: {old}",
                prompt::BLOCKED_FILE
            );
            self.tell(Kind::Noted { text }).await?;
        }
        for text in ready.notes {
            self.tell(Kind::Noted { text }).await?;
        }
        let workspace = Kind::WorkspaceReady {
            path: ready.workspace.path.clone(),
            base: ready.workspace.base.clone(),
            base_branch: ready.workspace.base_branch.clone(),
            how: ready.how,
        };
        let kept = self
            .job
            .task
            .workspace
            .as_ref()
            .is_some_and(|before| !before.removed);
        self.job.task.workspace = Some(ready.workspace);
        self.tell(workspace).await?;
        let carried = self
            .blocking(Trees::carried)
            .await?
            .map_err(|error| prepare_failed(&error))?;
        if !carried.is_empty() {
            self.tell(Kind::CarriedFound { carried }).await?;
        }
        self.set_range().await?;
        if !kept {
            self.refill();
        }
        self.asked_to_stop()?;
        if let Some(container) = &self.job.task.spec.placement.container
            && let Some(text) = container.image.warning()
        {
            self.tell(Kind::Noted { text }).await?;
        }
        let home = self.ctx.trees.home(&self.job.task);
        let start = |reason: String| Stopped::from(Failure::Start { reason });
        self.prepare_fence().await?.map_err(start)?;
        self.take_first_words().await?;
        let words = self.words().await?;
        let (at, moved) = self.works_in(profile).map_err(start)?;
        if let Some(text) = moved {
            self.tell(Kind::Noted { text }).await?;
        }
        let known = self.known_keys(profile).await?;
        let job = self.id(Part::Agent);
        let mut refused = Vec::new();
        for (name, site) in self.sites() {
            let aid = match self.start_sidecar(&site, profile).await {
                Ok(aid) => aid,
                Err(why) => {
                    self.clear_sidecar().await?;
                    let reason = format!("start the run's sidecar: {why}");
                    refused.push(format!("{name}: {reason}"));
                    self.tell(Kind::SiteRefused { site: name, reason }).await?;
                    continue;
                }
            };
            let (invocation, first) =
                self.open(driver, profile, &at, (aid.as_ref(), known.clone()), &words)?;
            self.link_login(profile)?;
            self.open_door().map_err(start)?;
            let relays = self.relays(Some(profile));
            let invocation = self.fence(invocation, &home, Some(profile), Part::Agent, relays);
            let invocation = invocation.map_err(start)?;
            let reason = match site.start(&job, &invocation).await {
                // Unknown may be running: ask this one until it is known, and never the next.
                Start::Started | Start::Unknown(_) => {
                    self.tell_started_at(&name, profile).await?;
                    self.first = first;
                    return Ok(site);
                }
                Start::Declined(reason) => format!("declined: {reason}"),
                Start::NotStarted(reason) => {
                    self.forget_fence();
                    reason
                }
            };
            if aid.is_some() {
                self.clear_sidecar().await?;
            }
            refused.push(format!("{name}: {reason}"));
            self.tell(Kind::SiteRefused { site: name, reason }).await?;
        }
        if refused.is_empty() {
            let asked: Vec<String> = self
                .job
                .task
                .spec
                .placement
                .sites
                .iter()
                .map(ToString::to_string)
                .collect();
            refused.push(format!("no site named {} is registered", asked.join(", ")));
        }
        Err(Failure::Start {
            reason: refused.join("; "),
        }
        .into())
    }

    /// Of a review: the commits it is about.
    async fn set_range(&mut self) -> Result<(), Stopped> {
        if self.job.task.spec.expects != Expects::Review || self.range.is_some() {
            return Ok(());
        }
        let range = self
            .blocking(Trees::review_range)
            .await?
            .map_err(|error| prepare_failed(&error))?;
        self.range = Some(range.clone());
        self.tell(Kind::RangeSet { range }).await?;
        Ok(())
    }

    fn asked_to_stop(&mut self) -> Result<(), Stopped> {
        if let Ok(StopOrder { force }) = self.orders.try_recv() {
            self.stop = Some(force);
            return Err(Stopped::Outcome(Outcome::Stopped(Stop::ByPerson)));
        }
        Ok(())
    }

    /// What it belongs to has an end, after which nothing of it begins.
    fn in_time(&self) -> Result<(), Stopped> {
        let until = self.job.task.spec.terms.until;
        if until.is_none_or(|until| until > self.ctx.settings.clock.now()) {
            return Ok(());
        }
        let reason = "the time is over in which the task that asked for it wanted it done \
                      (wall_clock_s of its grant)";
        let reason = reason.to_owned();
        Err(Failure::Start { reason }.into())
    }

    /// A prepared tree for the next task, made while this one's agent works.
    fn refill(&self) {
        let (trees, task) = (Arc::clone(&self.ctx.trees), self.job.task.clone());
        // Nobody waits for it: a pool that is not filled costs the next task some time, no more.
        drop(tokio::task::spawn_blocking(move || trees.refill(&task)));
    }

    pub(super) async fn tell_started(
        &self,
        site: &Arc<dyn Site>,
        profile: &AgentProfile,
    ) -> Result<(), Cut> {
        let same = |other: &&(SiteName, Arc<dyn Site>)| Arc::ptr_eq(&other.1, site);
        match self.sites().iter().find(same) {
            Some((name, _)) => self.tell_started_at(name, profile).await,
            None => Ok(()),
        }
    }

    async fn tell_started_at(&self, site: &SiteName, profile: &AgentProfile) -> Result<(), Cut> {
        let placement = &self.job.task.spec.placement;
        let mut enforced = Enforced::default();
        for (_, known) in self.sites().iter().filter(|(name, _)| name == site) {
            match known.enforced(&self.id(Part::Agent)).await {
                Ok(Some(found)) => enforced = found,
                Ok(None) => {}
                Err(error) => enforced.layers = vec![format!("unknown ({error})")],
            }
        }
        let enforced = match placement.wrap {
            Wrap::Host => "nothing (host)".to_owned(),
            Wrap::Cage | Wrap::Container => {
                cage::enforced(&enforced.layers, &enforced.limits, &placement.network)
            }
        };
        let brokered: Vec<&str> = profile.brokers().map(|broker| &*broker.key).collect();
        let enforced = match brokered.is_empty() {
            false => format!("{enforced}; {} by the broker", brokered.join(", ")),
            true => enforced,
        };
        let started = Kind::Started {
            site: site.clone(),
            driver: profile.driver,
            enforced,
        };
        let words = self.job.task.messages.iter().filter(|message| {
            let first = message
                .taken
                .is_some_and(|taken| taken.out_offset.is_none());
            first && message.is_with(self.job.run.n) && message.fate == Fate::Waiting
        });
        let heard = words.map(|message| Kind::MessageDelivered {
            message: message.id,
            delivery: Delivery::Continuation,
        });
        let kinds = std::iter::once(started).chain(heard).collect();
        self.record(Subject::Run(self.job.run), kinds).await
    }

    /// What waits for this run is said with its first words. Fixed in the log before the start, so
    /// that the next engine opens with the same ones.
    async fn take_first_words(&mut self) -> Result<(), Cut> {
        let run = self.job.run;
        let taken = self.ask(|reply| Command::TakeAll { run, reply }).await?;
        self.job.task.messages = taken.unwrap_or_default();
        Ok(())
    }

    /// Makes the prompt and keeps it before anything is started.
    async fn words(&self) -> Result<Words, Stopped> {
        let (settings, redactor) = (Arc::clone(&self.ctx.settings), self.redactor.clone());
        let (n, remembers) = (self.job.run.n, self.resume().is_some());
        let range = self.range.clone();
        let made = self
            .blocking(move |trees, task| {
                prompts::make(
                    trees,
                    task,
                    n,
                    remembers,
                    range.as_ref(),
                    &settings.config,
                    &redactor,
                )
            })
            .await?;
        let (words, made) = made.map_err(|error| Failure::Prepare {
            reason: error.to_string(),
        })?;
        if self.run().and_then(|run| run.prompt.as_ref()) != Some(&made) {
            self.tell(Kind::PromptMade { made }).await?;
        }
        Ok(words)
    }

    /// What the agent of this run was given, or was about to be.
    pub(super) async fn words_again(&self) -> Result<Words, Stopped> {
        let run = self.job.run;
        let kept = self
            .blocking(move |trees, _| prompts::kept(trees.data(), run))
            .await?;
        match kept {
            Ok(Some(words)) => Ok(words),
            Ok(None) | Err(_) => self.words().await,
        }
    }
}
