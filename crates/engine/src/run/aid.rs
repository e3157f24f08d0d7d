//! The sidecar of a run: started before its agent, found again after a crash, ended before the
//! run's end is recorded. What one is and says is in `crate::sidecar`.
//! Must not outlive the run.

use std::sync::Arc;

use dispatch_core::{
    cage::Relay,
    config::AgentProfile,
    event::{Kind, Verified},
    outcome::{Failure, Outcome},
};

use super::{Stopped, Walk};
use crate::{
    door,
    sidecar::{self, Aid},
    sites::Site,
};

impl Walk {
    /// For the agent, and with `None` for a check.
    pub(super) fn relays(&self, agent: Option<&AgentProfile>) -> Vec<Relay> {
        let placement = &self.job.task.spec.placement;
        sidecar::relays(&self.ctx.settings.data, self.job.run, placement, agent)
    }

    /// `None`: this run needs none.
    pub(super) async fn start_sidecar(
        &mut self,
        site: &Arc<dyn Site>,
        profile: &AgentProfile,
    ) -> Result<Option<Aid>, String> {
        let spec = &self.job.task.spec;
        if !sidecar::needed(&spec.placement, profile) {
            return Ok(None);
        }
        let keys = |variable: &str| {
            let key = profile.env.get(variable)?.key(&spec.agent, variable)?;
            let secret = self.job.secrets.get(&key)?;
            Some(secret.expose().to_owned())
        };
        let what = sidecar::invocation(&self.ctx, self.job.run, &spec.placement, profile, &keys)?;
        sidecar::start(site, self.job.run, &what).await?;
        let (followed, answer) = sidecar::follow(site, &self.watcher).await;
        self.aided = Some(followed);
        sidecar::ready(answer).await.map(Some)
    }

    /// Follows the sidecar of an agent that an engine before us started.
    pub(super) async fn find_sidecar(&mut self, site: &Arc<dyn Site>, profile: &AgentProfile) {
        if !self.has_sidecar() && !sidecar::needed(&self.job.task.spec.placement, profile) {
            return;
        }
        // The agent has what it needs of it since its start, so nobody waits for the answer.
        let (followed, _) = sidecar::follow(site, &self.watcher).await;
        self.aided = Some(followed);
    }

    /// Whether anything of one lies in the data directory, whoever put it there.
    fn has_sidecar(&self) -> bool {
        let (data, run) = (&self.ctx.settings.data, self.job.run);
        let job = crate::jobdir::JobDir::of(data, &sidecar::id(run));
        job.path().exists() || sidecar::directory(data, run).exists()
    }

    /// Ends a sidecar whose agent never was, so that another can be started.
    pub(super) async fn clear_sidecar(&mut self) -> Result<(), Stopped> {
        if let Some(followed) = self.aided.take() {
            followed.end(self.job.run).await;
        } else if !self.has_sidecar() {
            return Ok(());
        }
        let sites = self.sites();
        let sites = sites.iter().map(|(_, site)| site);
        sidecar::clear(&self.ctx, self.job.run, sites)
            .await
            .map_err(|reason| Failure::Start { reason }.into())
    }

    /// The sidecar ends before the run's end is recorded: then no process of it is left.
    pub(super) async fn walk_and_end_sidecar(&mut self) -> Result<(Outcome, Verified), Stopped> {
        let walked = self.walk().await;
        if let Err(Stopped::Cut) = walked {
            return walked;
        }
        let closed = door::take_away(&self.ctx.settings.data, self.job.run);
        if let Err(text) = closed {
            self.tell(Kind::Noted { text }).await?;
        }
        let cleared = match self.aided.take() {
            Some(followed) => {
                followed.end(self.job.run).await;
                let dir = sidecar::directory(&self.ctx.settings.data, self.job.run);
                sidecar::forget(&dir)
            }
            // Lost before anything of it was found: then its sidecar was not, either.
            None if self.has_sidecar() => {
                let sites = self.sites();
                let sites = sites.iter().map(|(_, site)| site);
                sidecar::clear(&self.ctx, self.job.run, sites).await
            }
            None => Ok(()),
        };
        if let Err(text) = cleared {
            self.tell(Kind::Noted { text }).await?;
        }
        walked
    }
}
