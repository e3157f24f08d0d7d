//! What is said to the agent: orders on its standard input, taken up one by one, and messages kept
//! until the model may have them.
//! Must not drop a message: it waits here until it is told or taken back, and whoever sent it sees
//! in our output which.

use std::{
    collections::{BTreeMap, VecDeque},
    io::{self, BufRead, BufReader, Read},
    thread,
};

use dispatch_core::native::{Chunk, Message, Order, StepId};
use tokio::{
    signal::unix::Signal,
    sync::{mpsc, watch},
};

use crate::record::Record;

/// One order. The first one holds a prompt and all settings.
const LINE_BYTES_MAX: u64 = 32 << 20;
const ORDERS_MAX: usize = 64;
/// Messages that wait. One more is refused, by its id.
const WAITING_MAX: usize = 256;

/// An answer to a question for permission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Permit {
    pub(crate) allow: bool,
    pub(crate) always: bool,
    pub(crate) why: String,
}

#[derive(Debug)]
pub(crate) struct Inbox {
    orders: mpsc::Receiver<Result<Order, String>>,
    /// The polite request to end, as every program gets it.
    signal: Option<Signal>,
    waiting: VecDeque<Message>,
    permits: BTreeMap<u64, Permit>,
    /// What a person is asked now.
    asked: Option<u64>,
    /// What could not be read, for the record.
    problems: Vec<String>,
    /// What became of messages that are not told, for the record.
    untold: VecDeque<Chunk>,
    /// Says so at once where it can; else whoever has the record asks for it.
    record: Option<Record>,
    stopped: bool,
    closed: bool,
    /// How many wait, for tools that make room when somebody speaks.
    count: watch::Sender<usize>,
}

impl Inbox {
    /// Reads on a thread of its own: standard input cannot be asked whether it has something.
    pub(crate) fn start(input: impl Read + Send + 'static) -> io::Result<Self> {
        let (sender, orders) = mpsc::channel(ORDERS_MAX);
        thread::Builder::new()
            .name("orders".into())
            .stack_size(256 << 10)
            .spawn(move || read_all(BufReader::new(input), &sender))?;
        Ok(Self {
            orders,
            signal: None,
            waiting: VecDeque::new(),
            permits: BTreeMap::new(),
            asked: None,
            problems: Vec::new(),
            untold: VecDeque::new(),
            record: None,
            stopped: false,
            closed: false,
            count: watch::channel(0).0,
        })
    }

    /// A signal is an order to stop, too.
    pub(crate) fn listen_to(&mut self, signal: Signal) {
        self.signal = Some(signal);
    }

    /// What is taken back is told of at once, whatever goes on.
    pub(crate) fn tells(&mut self, record: Record) {
        self.record = Some(record);
    }

    /// The first order, before there is anything else.
    pub(crate) async fn first(&mut self) -> Option<Result<Order, String>> {
        self.orders.recv().await
    }

    /// Takes up the next order. May be dropped while it waits; waits for ever when nothing more can
    /// come.
    pub(crate) async fn hear(&mut self) {
        let signalled = async {
            match &mut self.signal {
                Some(signal) => signal.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            _ = signalled => self.stopped = true,
            order = self.orders.recv(), if !self.closed => match order {
                None => self.closed = true,
                Some(order) => self.take(order),
            },
        }
    }

    fn take(&mut self, order: Result<Order, String>) {
        match order {
            Ok(Order::Say(message)) if self.waiting.len() >= WAITING_MAX => {
                let (id, why) = (message.id, format!("{WAITING_MAX} messages wait"));
                self.untold.push_back(Chunk::Refused { id, why });
            }
            Ok(Order::Say(message)) => self.waiting.push_back(message),
            Ok(Order::Unsay { id }) => {
                let before = self.waiting.len();
                self.waiting.retain(|message| message.id != id);
                if self.waiting.len() < before {
                    self.untold.push_back(Chunk::Unsaid { id });
                }
            }
            Ok(Order::Answer {
                id,
                allow,
                always,
                why,
            }) => {
                let permit = Permit { allow, always, why };
                // The first answer counts, and none to what nobody has been asked yet.
                if self.asked == Some(id) {
                    self.permits.entry(id).or_insert(permit);
                }
            }
            Ok(Order::Stop {}) => self.stopped = true,
            Ok(Order::Open(_)) => self.problems.push("it was opened before".into()),
            Err(problem) => self.problems.push(problem),
        }
        self.count.send_replace(self.waiting.len());
        self.tell();
    }

    fn tell(&mut self) {
        let Some(record) = &self.record else {
            return;
        };
        while let Some(chunk) = self.untold.front() {
            // What cannot be written now is asked for at the next line that must be.
            let Ok(true) = record.put_aside(StepId::default(), chunk) else {
                return;
            };
            self.untold.pop_front();
        }
    }

    pub(crate) fn stopped(&self) -> bool {
        self.stopped
    }

    /// Nothing more will be said.
    pub(crate) fn closed(&self) -> bool {
        self.closed
    }

    pub(crate) fn count(&self) -> watch::Receiver<usize> {
        self.count.subscribe()
    }

    /// All that wait, in the order in which they came.
    pub(crate) fn messages(&mut self) -> Vec<Message> {
        let all = self.waiting.drain(..).collect();
        self.count.send_replace(0);
        all
    }

    /// From here on an answer to this one is taken.
    pub(crate) fn asks(&mut self, id: u64) {
        self.asked = Some(id);
    }

    pub(crate) fn permit(&mut self, id: u64) -> Option<Permit> {
        self.permits.remove(&id)
    }

    pub(crate) fn untold(&mut self) -> VecDeque<Chunk> {
        std::mem::take(&mut self.untold)
    }

    pub(crate) fn problems(&mut self) -> Vec<String> {
        std::mem::take(&mut self.problems)
    }
}

fn read_all(mut input: impl BufRead, orders: &mpsc::Sender<Result<Order, String>>) {
    loop {
        let mut line = Vec::new();
        let read = (&mut input)
            .take(LINE_BYTES_MAX)
            .read_until(b'\n', &mut line);
        let order = match read {
            Ok(0) => return,
            Ok(_) if line.iter().all(u8::is_ascii_whitespace) => continue,
            Ok(_) if line.len() as u64 == LINE_BYTES_MAX => {
                Err(format!("an order has more than {LINE_BYTES_MAX} bytes"))
            }
            Ok(_) => {
                serde_json::from_slice(&line).map_err(|error| format!("read an order: {error}"))
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        if orders.blocking_send(order).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn heard(input: &str) -> Inbox {
        let mut inbox = Inbox::start(io::Cursor::new(input.as_bytes().to_vec())).unwrap();
        while !inbox.closed() {
            inbox.hear().await;
        }
        inbox
    }

    #[tokio::test]
    async fn messages_wait_in_their_order_and_can_be_taken_back() {
        let mut inbox = heard(
            "{\"say\":{\"id\":1,\"text\":\"a\"}}\n\n{\"say\":{\"id\":2,\"text\":\"b\"}}\n\
             {\"say\":{\"id\":3,\"text\":\"c\"}}\n{\"unsay\":{\"id\":2}}\n{\"unsay\":{\"id\":9}}\n",
        )
        .await;
        let count = inbox.count();
        assert_eq!(*count.borrow(), 2);
        assert_eq!(inbox.untold(), [Chunk::Unsaid { id: 2 }]);
        let ids: Vec<u64> = inbox.messages().iter().map(|message| message.id).collect();
        assert_eq!(ids, [1, 3]);
        assert_eq!(*count.borrow(), 0);
        assert!(inbox.messages().is_empty() && !inbox.stopped());
    }

    #[tokio::test]
    async fn the_first_answer_counts_and_nonsense_is_told() {
        let mut inbox = heard(
            "{\"answer\":{\"id\":1,\"allow\":true}}\n{\"answer\":{\"id\":1,\"allow\":false}}\n\
             {\"dance\":{}}\nnot json\n{\"stop\":{}}",
        )
        .await;
        assert_eq!(inbox.permit(1), None, "nobody was asked");
        inbox.asks(1);
        for allow in [true, false] {
            inbox.take(Ok(Order::Answer {
                id: 1,
                allow,
                always: false,
                why: String::new(),
            }));
        }
        assert!(inbox.permit(1).unwrap().allow);
        assert_eq!(inbox.permit(1), None);
        assert!(inbox.stopped());
        assert_eq!(inbox.problems().len(), 2);
    }

    #[tokio::test]
    async fn there_is_room_for_so_many() {
        let all: String = (0..300)
            .map(|id| format!("{{\"say\":{{\"id\":{id},\"text\":\"x\"}}}}\n"))
            .collect();
        let mut inbox = heard(&all).await;
        let refused: Vec<u64> = inbox
            .untold()
            .into_iter()
            .filter_map(|chunk| match chunk {
                Chunk::Refused { id, .. } => Some(id),
                _ => None,
            })
            .collect();
        let too_many: Vec<u64> = (WAITING_MAX as u64..300).collect();
        assert_eq!(refused, too_many);
        assert_eq!(inbox.messages().len(), WAITING_MAX);
    }
}
