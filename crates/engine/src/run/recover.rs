//! What an engine before this one has left of a run: found, gone on with, or ended.
//! Must not start anything: what cannot be asked is lost.

use std::sync::Arc;

use dispatch_core::{
    config::AgentProfile,
    drivers::Driver,
    event::Kind,
    job::{Offset, Order, Part},
    outcome::{Outcome, Stop},
};

use super::{Cut, FAR, Stopped, Walk};
use crate::sites::{JobEvent, Site};

impl Walk {
    /// The site that has this run's agent already, if any has: the one question of recovery.
    pub(super) async fn attach(&self, from_log: bool) -> Result<Option<Arc<dyn Site>>, Stopped> {
        if !from_log {
            return Ok(None);
        }
        let known = self.run().and_then(|run| run.site.clone());
        for (name, site) in self.sites() {
            if known.as_ref().is_some_and(|known| *known != name) {
                continue;
            }
            let job = self.id(Part::Agent);
            let asked = match site.follow(&job, Offset::default()).await {
                Ok(mut follow) => follow.next().await,
                Err(error) => Err(error),
            };
            return match asked {
                Ok(JobEvent::NeverStarted) => continue,
                Ok(_) => Ok(Some(site)),
                // The one question of recovery has no answer.
                Err(_) => Err(Stopped::Outcome(Outcome::Lost)),
            };
        }
        match known {
            // It was started and now it says it never was: that is not an end we saw.
            Some(_) => Err(Stopped::Outcome(Outcome::Lost)),
            None => Ok(None),
        }
    }

    /// Goes on with an agent that an engine before us started.
    pub(super) async fn adopt(
        &mut self,
        site: &Arc<dyn Site>,
        untold: bool,
    ) -> Result<(AgentProfile, Box<dyn Driver>), Stopped> {
        let profile = self.profile()?;
        let mut driver = profile.driver.driver();
        if untold {
            self.tell_started(site, &profile).await?;
        }
        self.tell(Kind::Adopted).await?;
        self.find_sidecar(site, &profile).await;
        // The same first words as before: the keeper ignores what it has heard.
        let words = self.words_again().await?;
        // It may have moved its directory since, which is no reason to end it: it knows where it is.
        let at = match self.works_in(&profile) {
            Ok((at, _)) => at,
            Err(_) => self.workspace(),
        };
        self.first = self
            .open(driver.as_mut(), &profile, &at, (None, None), &words)?
            .1;
        Ok((profile, driver))
    }

    /// Ends an agent that nobody can follow, and waits until it is gone.
    pub(super) async fn abandon(&mut self, site: &Arc<dyn Site>) -> Result<(), Cut> {
        let job = self.id(Part::Agent);
        let kill = Order::Kill {
            why: Stop::Shutdown,
        };
        match site.order(&job, &kill).await {
            // Gone already; the wait below is the judge.
            Ok(()) | Err(_) => {}
        }
        let from = Offset {
            out: FAR,
            err: FAR,
            input: 0,
        };
        let Ok(mut follow) = site.follow(&job, from).await else {
            return Ok(());
        };
        let last = loop {
            match follow.next().await {
                Ok(JobEvent::Out(_) | JobEvent::Err(_) | JobEvent::Alive) => {}
                last => break last,
            }
        };
        self.swept = matches!(last, Ok(JobEvent::Exited(_) | JobEvent::Gone));
        let text = "the agent was ended: this engine could not go on with it".to_owned();
        self.tell(Kind::Noted { text }).await
    }
}
