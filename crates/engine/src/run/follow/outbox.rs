//! Orders for the agent's input, in order, until its keeper has them.
//! Must not grow without limit, and must not lose the end of the input.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use dispatch_core::{
    ask::AskId,
    job::{Order, Part},
    message::MessageId,
};

use super::Ear;
use crate::{run::Walk, sites::Site};

/// Ids of orders: a driver's own are counted from 0, those that carry a message from here,
const MESSAGE_ORDERS: u64 = 1 << 32;
/// and those that carry an answer to an ask from here.
const ASK_ORDERS: u64 = 2 << 32;

/// From an order that its keeper could not be given until it is tried again; doubled each time.
const ORDER_AGAIN: Duration = Duration::from_millis(100);
const ORDER_AGAIN_MAX: Duration = Duration::from_secs(30);

/// What may wait to be given to a keeper, which itself keeps as much for an agent that does not read.
pub(super) const OUTBOX_BYTES_MAX: usize = 32 << 20;

/// and those that ask for a message back from here.
const RECALL_ORDERS: u64 = 3 << 32;

pub(super) fn recall_order(message: MessageId) -> u64 {
    RECALL_ORDERS + u64::from(message.0)
}

pub(super) fn message_order(message: MessageId) -> u64 {
    MESSAGE_ORDERS + u64::from(message.0)
}

pub(super) fn ask_order(ask: AskId) -> u64 {
    ASK_ORDERS + u64::from(ask.0)
}

/// Orders for the agent's input that its keeper has not taken yet, in order. Mostly there is none.
pub(super) struct Outbox {
    orders: VecDeque<Order>,
    bytes: usize,
    /// More than may wait was for it.
    overflowed: bool,
    pause: Duration,
    /// When the first one is tried again.
    again: Option<tokio::time::Instant>,
}

impl Default for Outbox {
    fn default() -> Self {
        Self {
            orders: VecDeque::new(),
            bytes: 0,
            overflowed: false,
            pause: ORDER_AGAIN,
            again: None,
        }
    }
}

impl Outbox {
    fn push(&mut self, order: Order) {
        let bytes = said_bytes(&order);
        // The end of the input always has room.
        if bytes > 0 && self.bytes > 0 && self.bytes + bytes > OUTBOX_BYTES_MAX {
            self.overflowed = true;
        } else {
            self.bytes += bytes;
            self.orders.push_back(order);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.orders.is_empty()
    }

    /// Whether that has happened since it was last asked.
    pub(super) fn has_overflowed(&mut self) -> bool {
        std::mem::take(&mut self.overflowed)
    }

    /// When the first one is tried again; never while none has to be.
    pub(super) async fn due(&self) {
        match self.again {
            Some(time) => tokio::time::sleep_until(time).await,
            None => std::future::pending().await,
        }
    }

    fn pop(&mut self) {
        if let Some(order) = self.orders.pop_front() {
            self.bytes -= said_bytes(&order);
        }
    }
}

fn said_bytes(order: &Order) -> usize {
    match order {
        Order::Say { bytes, .. } => bytes.len(),
        Order::CloseInput | Order::Stop { .. } | Order::Kill { .. } => 0,
    }
}

/// Whether whoever an order was for is not there to take it, now or later.
fn is_for_nobody(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::BrokenPipe)
}

impl Walk {
    pub(super) async fn say(&self, site: &Arc<dyn Site>, ear: &mut Ear, id: u64, bytes: Vec<u8>) {
        ear.outbox.push(Order::Say { id, bytes });
        self.hand_over(site, ear).await;
    }

    pub(super) async fn close_input(&self, site: &Arc<dyn Site>, ear: &mut Ear) {
        ear.outbox.push(Order::CloseInput);
        self.hand_over(site, ear).await;
    }

    /// What is for the agent's input, in order. One that its keeper cannot be given now (no descriptor
    /// is left, it does not answer in time) stays and is tried again: an agent that hears nothing waits
    /// for ever. Ids make it harmless when it did arrive.
    pub(super) async fn hand_over(&self, site: &Arc<dyn Site>, ear: &mut Ear) {
        let outbox = &mut ear.outbox;
        if outbox
            .again
            .is_some_and(|at| tokio::time::Instant::now() < at)
        {
            return;
        }
        while let Some(order) = outbox.orders.front() {
            match site.order(&self.id(Part::Agent), order).await {
                Ok(()) => {}
                // Ended, or its input is closed: what it had to say is in its output.
                Err(error) if is_for_nobody(&error) => {}
                Err(_) => {
                    outbox.again = Some(tokio::time::Instant::now() + outbox.pause);
                    outbox.pause = (outbox.pause * 2).min(ORDER_AGAIN_MAX);
                    return;
                }
            }
            outbox.pop();
        }
        (outbox.pause, outbox.again) = (ORDER_AGAIN, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_for_a_keeper_is_bounded() {
        let say = |bytes| Order::Say {
            id: 1,
            bytes: vec![0; bytes],
        };
        let mut outbox = Outbox::default();
        // One alone may be larger: its keeper decides.
        for (bytes, waiting) in [(OUTBOX_BYTES_MAX + 1, 1), (1, 1), (0, 2)] {
            outbox.push(say(bytes));
            assert_eq!(outbox.orders.len(), waiting);
        }
        assert!(outbox.overflowed);
        outbox.pop();
        outbox.push(say(1));
        outbox.push(Order::CloseInput);
        assert_eq!((outbox.orders.len(), outbox.bytes), (3, 1));
    }
}
