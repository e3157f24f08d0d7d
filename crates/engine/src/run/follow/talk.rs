//! Messages for an agent that works: taken one by one, said, and settled at its end.
//! Must not say anything that the log has not given to this run.

use std::{collections::VecDeque, sync::Arc};

use dispatch_core::{
    drivers::Driver,
    event::{Kind, Subject},
    job::{Order, Part},
    message::{Delivery, Fate, Message, MessageId},
    outcome::Outcome,
};

use super::{Ear, outbox::message_order};
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
        let Some(bytes) = driver.say(message.saying().text()) else {
            ear.unsure.push(message.id);
            return Ok(());
        };
        let order = Order::Say {
            id: message_order(message.id),
            bytes,
        };
        let given = site.order(&self.id(Part::Agent), &order).await;
        if message.fate != Fate::Waiting {
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

    async fn tell_delivered(&self, message: MessageId) -> Result<(), Cut> {
        let delivery = Delivery::Interrupt;
        self.tell(Kind::MessageDelivered { message, delivery })
            .await
    }

    /// What was in its input before the end is delivered; the rest waits again, and so does what it
    /// has not taken up from there.
    pub(super) async fn settle_messages(
        &self,
        site: &Arc<dyn Site>,
        ear: &Ear,
        unheard: usize,
    ) -> Result<(), Stopped> {
        let heard = ear.said.len().saturating_sub(unheard);
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
