//! Messages for an agent that works: taken one by one, said, and settled at its end.
//! Must not say anything that the log has not given to this run.

use std::{collections::VecDeque, sync::Arc};

use dispatch_core::{
    drivers::{Driver, Hearing},
    event::{Kind, Subject},
    job::{Order, Part},
    message::{Delivery, Fate, Message, MessageId},
    outcome::Outcome,
};

use super::{
    Ear,
    outbox::{message_order, recall_order},
};
use crate::{
    engine::Command,
    run::{Cut, Stopped, Walk},
    sites::Site,
};

impl Walk {
    /// What an engine before this one has taken for the running agent, in order.
    pub(super) fn on_their_way(&self) -> VecDeque<(u64, Message)> {
        let of_this_run = |message: &&Message| message.is_with(self.job.run.n);
        let messages = self.job.task.messages.iter().filter(of_this_run);
        let spoken = |message: &Message| Some((message.taken?.out_offset?, message.clone()));
        messages.filter_map(spoken).collect()
    }

    /// A replay says what was said, after the same line of output: the driver comes to the same
    /// state and the same bytes, and the keeper ignores what it has.
    pub(super) async fn say_again(
        &self,
        site: &Arc<dyn Site>,
        driver: &mut dyn Driver,
        ear: &mut Ear,
    ) -> Result<(), Cut> {
        let heard = ear.heard;
        let due = |(offset, _): &mut (u64, Message)| *offset <= heard;
        while let Some((_, message)) = ear.on_their_way.pop_front_if(due) {
            self.utter(site, driver, ear, message).await?;
        }
        Ok(())
    }

    /// Says what waits, for as long as the agent can be spoken to.
    pub(super) async fn speak(
        &self,
        site: &Arc<dyn Site>,
        driver: &mut dyn Driver,
        ear: &mut Ear,
    ) -> Result<(), Cut> {
        let run = self.job.run;
        // What was taken before comes first.
        let open = !ear.done && !ear.over_budget && ear.outbox.is_empty();
        while open && ear.on_their_way.is_empty() && driver.listens() {
            let out_offset = ear.heard;
            let command = |reply| Command::Take {
                run,
                out_offset,
                reply,
            };
            let Some(message) = self.ask(command).await?.flatten() else {
                ear.awaited = false;
                return Ok(());
            };
            self.utter(site, driver, ear, message).await?;
        }
        ear.awaited = true;
        self.ask(|reply| Command::Deaf { run, reply }).await?;
        Ok(())
    }

    async fn utter(
        &self,
        site: &Arc<dyn Site>,
        driver: &mut dyn Driver,
        ear: &mut Ear,
        message: Message,
    ) -> Result<(), Cut> {
        ear.said.push(message.id);
        if message.fate == Fate::Waiting {
            ear.unsettled.insert(message.id);
        }
        let Some(bytes) = driver.say(message.saying().text()) else {
            ear.unsure.push(message.id);
            return Ok(());
        };
        let order = Order::Say {
            id: message_order(message.id),
            bytes,
        };
        let given = site.order(&self.id(Part::Agent), &order).await;
        // Who takes back tells what becomes of it.
        if message.fate != Fate::Waiting || driver.takes_back() {
            return Ok(());
        }
        match given {
            Ok(()) => self.tell_delivered(message.id).await,
            // Ended, or hung up in the middle: its keeper's own record says it at the end.
            Err(_) => {
                ear.unsure.push(message.id);
                Ok(())
            }
        }
    }

    /// Asks the agent for what somebody wants to have back.
    pub(super) async fn recall(
        &self,
        site: &Arc<dyn Site>,
        driver: &mut dyn Driver,
        ear: &mut Ear,
    ) -> Result<(), Cut> {
        let run = self.job.run;
        let wanted = self.ask(|reply| Command::Recalls { run, reply }).await?;
        for message in wanted.unwrap_or_default() {
            match ear.fates.get(&message) {
                None => {}
                // It has not got it, and this run says it no more.
                Some(Hearing::Refused) if ear.unsettled.remove(&message) => {
                    self.tell_unsaid(message).await?;
                    continue;
                }
                Some(_) => continue,
            }
            let said = ear.said.iter().position(|known| *known == message);
            let order = said.and_then(|index| driver.unsay(index + 1));
            if let Some(bytes) = order
                && ear.recalled.insert(message)
            {
                self.say(site, ear, recall_order(message), bytes).await;
            }
        }
        Ok(())
    }

    /// What the agent tells of a message: in the log once, however often it is heard.
    pub(super) async fn settle(
        &self,
        ear: &mut Ear,
        nth: usize,
        hearing: Hearing,
    ) -> Result<(), Cut> {
        let index = nth.checked_sub(1);
        let Some(message) = index.and_then(|index| ear.said.get(index)).copied() else {
            return Ok(());
        };
        ear.fates.insert(message, hearing);
        if !ear.unsettled.remove(&message) {
            return Ok(());
        }
        match hearing {
            Hearing::Heard => self.tell_delivered(message).await,
            Hearing::Unsaid => self.tell_unsaid(message).await,
            // It waits again when this run has ended: a replay says it to this one again.
            Hearing::Refused => {
                ear.unsettled.insert(message);
                Ok(())
            }
        }
    }

    async fn tell_unsaid(&self, message: MessageId) -> Result<(), Cut> {
        let task = Subject::Task(self.job.run.task);
        self.record(task, vec![Kind::MessageCancelled { message }])
            .await
    }

    async fn tell_delivered(&self, message: MessageId) -> Result<(), Cut> {
        let delivery = Delivery::Interrupt;
        self.tell(Kind::MessageDelivered { message, delivery })
            .await
    }

    /// All of it was told; what was not waits again by the fold. An engine of an earlier release took
    /// what it had given for heard.
    async fn settle_told(&self, ear: &Ear) -> Result<(), Stopped> {
        let told = |message: &MessageId| ear.fates.contains_key(message);
        let returned = ear.said.iter().copied().filter(|message| !told(message));
        let returned = returned.filter(|message| !ear.unsettled.contains(message));
        let kinds = returned.map(|message| Kind::MessageReturned { message });
        self.record(Subject::Run(self.job.run), kinds.collect())
            .await?;
        Ok(())
    }

    /// What was in its input before the end is delivered; the rest waits again, and so does what it
    /// has not taken up from there.
    pub(super) async fn settle_messages(
        &self,
        site: &Arc<dyn Site>,
        ear: &Ear,
        driver: &mut dyn Driver,
    ) -> Result<(), Stopped> {
        if driver.takes_back() {
            return self.settle_told(ear).await;
        }
        let heard = ear.said.len().saturating_sub(driver.unheard());
        if ear.unsure.is_empty() && heard == ear.said.len() {
            return Ok(());
        }
        let given = site.given(&self.id(Part::Agent)).await;
        // Not to know it is not to have seen the end.
        let given = given.map_err(|_| Stopped::Outcome(Outcome::Lost))?;
        let delivery = Delivery::Interrupt;
        let unsure = ear.unsure.iter().copied();
        let arrived = unsure.filter(|message| given.contains(&message_order(*message)));
        let arrived = arrived.map(|message| Kind::MessageDelivered { message, delivery });
        let returned = ear.said.iter().skip(heard).copied();
        let returned = returned
            .filter(|message| {
                !ear.unsure.contains(message) || given.contains(&message_order(*message))
            })
            .map(|message| Kind::MessageReturned { message });
        let kinds = arrived.chain(returned).collect();
        self.record(Subject::Run(self.job.run), kinds).await?;
        Ok(())
    }
}
