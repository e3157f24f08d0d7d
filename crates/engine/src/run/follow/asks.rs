//! What an agent asks permission for: put into the log, answered once, denied in the end.
//! Must not answer an ask before its answer is durable.

use std::{collections::BTreeMap, sync::Arc};

use dispatch_core::{
    Millis,
    ask::{ASKS_MAX, AskId, By, Fate as AskFate},
    drivers::{Driver, Request},
    event::Kind,
    job::Part,
    update::Update,
};

use super::{Asking, Ear, outbox::ask_order};
use crate::{
    engine::Command,
    run::{Cut, Walk},
    sites::Site,
    view::Who,
};

impl Walk {
    /// The agent waits for an answer. A replay finds what it asked, by its order, and gives the answers
    /// that were given; the keeper ignores what it has.
    pub(super) async fn asked(
        &self,
        site: &Arc<dyn Site>,
        driver: &mut dyn Driver,
        ear: &mut Ear,
        request: Request,
        out_offset: u64,
    ) -> Option<Kind> {
        let run = self.job.run.n;
        let mut known = self.job.task.asks.iter().filter(|ask| ask.run == run);
        let known = known.nth(ear.asked);
        ear.asked += 1;
        if let Some(ask) = known {
            let (id, until) = (ask.id, ask.until);
            let asking = Asking { id, until, request };
            match &ask.fate {
                AskFate::Open => ear.asks.push(asking),
                AskFate::Closed => {}
                fate @ AskFate::Answered { .. } => {
                    self.give(site, driver, ear, &asking, fate).await;
                }
            }
            return None;
        }
        let Request { tool, input, .. } = request.clone();
        if ear.asked > ASKS_MAX {
            // By counting, as the driver's own answers are.
            let id = ear.says;
            ear.says += 1;
            let why = format!("This run has asked {ASKS_MAX} times, which is all it may ask.");
            let bytes = driver.permit(&request, false, &why);
            self.say(site, ear, id, bytes).await;
            let allowed = false;
            let update = Update::Asked {
                tool,
                input,
                allowed,
            };
            return ear.said(update, out_offset, None);
        }
        ear.asks_count = ear.asks_count.saturating_add(1);
        let ask = AskId(ear.asks_count);
        let since = self.silent_since(site, ear).await;
        let until = since.saturating_add(self.limits().ask_wait_ms());
        ear.asks.push(Asking {
            id: ask,
            until,
            request,
        });
        Some(Kind::PermissionAsked {
            ask,
            tool,
            input,
            owner: self.job.answers,
            until,
        })
    }

    /// From when an ask that is heard now has waited. Its keeper counts the silence from when the agent
    /// wrote it, which no engine may have heard.
    async fn silent_since(&self, site: &Arc<dyn Site>, ear: &Ear) -> Millis {
        let now = self.ctx.settings.clock.now();
        if ear.live {
            return now;
        }
        match site.grew_at(&self.id(Part::Agent)).await {
            Ok(Some(at)) => at.min(now),
            // As well as it is known.
            Ok(None) | Err(_) => now,
        }
    }

    /// Gives the agent what was answered, after what nobody has answered in time was denied.
    pub(super) async fn look_at_asks(
        &self,
        site: &Arc<dyn Site>,
        driver: &mut dyn Driver,
        ear: &mut Ear,
    ) -> Result<(), Cut> {
        let now = self.ctx.settings.clock.now();
        for asking in ear.asks.iter().filter(|asking| asking.until <= now) {
            self.answer_ask(asking.id, By::Deadline).await?;
        }
        if ear.asks.is_empty() {
            return Ok(());
        }
        let run = self.job.run;
        let fates = self.ask(|reply| Command::Asks { run, reply }).await?;
        let fates: BTreeMap<AskId, AskFate> = fates.into_iter().flatten().collect();
        for asking in std::mem::take(&mut ear.asks) {
            match fates.get(&asking.id) {
                Some(AskFate::Open) => ear.asks.push(asking),
                Some(fate @ AskFate::Answered { .. }) => {
                    self.give(site, driver, ear, &asking, fate).await;
                }
                // Nobody is there to hear it.
                Some(AskFate::Closed) | None => {}
            }
        }
        Ok(())
    }

    /// An answer that is durable, under an id of its own: however often it is given, it is heard once.
    async fn give(
        &self,
        site: &Arc<dyn Site>,
        driver: &mut dyn Driver,
        ear: &mut Ear,
        asking: &Asking,
        fate: &AskFate,
    ) {
        let AskFate::Answered {
            allow,
            by,
            why,
            always,
        } = fate
        else {
            return;
        };
        if *by == By::Agent {
            return;
        }
        let why = by.refusal(why.as_deref());
        let bytes = match always {
            true => driver.permit_always(&asking.request),
            false => driver.permit(&asking.request, *allow, &why),
        };
        self.say(site, ear, ask_order(asking.id), bytes).await;
    }

    /// The agent does not wait for it any more.
    pub(super) async fn withdraw(&self, ear: &mut Ear, id: &str) -> Result<(), Cut> {
        let at = ear.asks.iter().position(|asking| asking.request.id == id);
        if let Some(at) = at {
            let asking = ear.asks.remove(at);
            self.answer_ask(asking.id, By::Agent).await?;
        }
        Ok(())
    }

    /// A denial that is nobody's. Whoever was first has answered it.
    pub(super) async fn answer_ask(&self, ask: AskId, by: By) -> Result<(), Cut> {
        let answered = self.ask(|reply| Command::Permit {
            who: Who::Person,
            task: self.job.run.task,
            ask,
            allow: false,
            always: false,
            by,
            why: None,
            reply,
        });
        answered.await.map(|_| ())
    }
}
