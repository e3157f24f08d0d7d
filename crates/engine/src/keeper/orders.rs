//! What comes in over `ctl`: lines, and behind a `say` as many bytes as it names.
//! Must not do what it reads, and must not hold more than one order of the largest size.

use dispatch_core::outcome::Stop;

/// A line that gets no end is no order.
const LINE_BYTES_MAX: usize = 64 << 10;
pub(super) const SAY_BYTES_MAX: usize = 16 << 20;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Watch,
    Close,
    Say {
        id: u64,
        bytes: Vec<u8>,
    },
    Stop {
        grace_ms: u64,
        why: Stop,
    },
    /// Whole, but none of these; and why, for whoever sent it.
    Bad(&'static str),
}

/// The sender cannot be understood any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooLong;

#[derive(Debug, Default)]
pub(crate) struct Orders {
    received: Vec<u8>,
}

impl Orders {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.received.extend_from_slice(bytes);
    }

    /// The next whole order; `None`: the rest of it has not come yet.
    pub(crate) fn take(&mut self) -> Result<Option<Order>, TooLong> {
        let Some(end) = self.received.iter().position(|b| *b == b'\n') else {
            return self.rest_fits().map(|()| None);
        };
        if end > LINE_BYTES_MAX {
            return Err(TooLong);
        }
        let line = String::from_utf8_lossy(&self.received[..end]).into_owned();
        let mut body = Vec::new();
        let said = line.strip_prefix("say ");
        if let Some((_, length)) = said.and_then(|rest| rest.split_once(' ')) {
            let length = length.parse::<usize>().unwrap_or(usize::MAX);
            if length > SAY_BYTES_MAX {
                return Err(TooLong);
            }
            if self.received.len() < end + 1 + length {
                return Ok(None);
            }
            body = self.received[end + 1..end + 1 + length].to_vec();
        }
        self.received.drain(..end + 1 + body.len());
        Ok(Some(order(&line, body)))
    }

    fn rest_fits(&self) -> Result<(), TooLong> {
        if self.received.len() > LINE_BYTES_MAX {
            return Err(TooLong);
        }
        Ok(())
    }

    #[cfg(test)]
    fn left(&self) -> usize {
        self.received.len()
    }
}

fn order(line: &str, bytes: Vec<u8>) -> Order {
    let mut words = line.splitn(3, ' ');
    let why = |text: Option<&str>| text.and_then(|text| serde_json::from_str::<Stop>(text).ok());
    match (words.next(), words.next()) {
        (Some("watch"), None) => Order::Watch,
        (Some("close"), None) => Order::Close,
        (Some("say"), Some(id)) => match id.parse() {
            Ok(id) => Order::Say { id, bytes },
            Err(_) => Order::Bad("a say has a number"),
        },
        (Some("stop"), Some(grace)) => match (grace.parse(), why(words.next())) {
            (Ok(grace_ms), Some(why)) => Order::Stop { grace_ms, why },
            _ => Order::Bad("a stop has a grace in milliseconds and a reason"),
        },
        _ => Order::Bad("unknown order; there are watch, close, say, stop"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_come_whole_and_a_body_is_no_order() {
        let mut orders = Orders::default();
        orders.push(b"watch\nsay 7 11\nclose\nstop ");
        assert_eq!(orders.take(), Ok(Some(Order::Watch)));
        let bytes = b"close\nstop ".to_vec();
        assert_eq!(orders.take(), Ok(Some(Order::Say { id: 7, bytes })));
        assert_eq!((orders.take(), orders.left()), (Ok(None), 0));
        orders.push(b"stop 5 \"by_person\"\nclose\nfly\nsay x 0\nsto");
        let why = Stop::ByPerson;
        assert_eq!(orders.take(), Ok(Some(Order::Stop { grace_ms: 5, why })));
        assert_eq!(orders.take(), Ok(Some(Order::Close)));
        for _ in 0..2 {
            assert!(matches!(orders.take(), Ok(Some(Order::Bad(_)))));
        }
        assert_eq!((orders.take(), orders.left()), (Ok(None), 3));
    }

    #[test]
    fn what_could_fill_the_memory_is_cut_off() {
        for text in [
            format!("say 1 {}\n", SAY_BYTES_MAX + 1),
            "say 1 99999999999999999999999\n".to_owned(),
            "say 1 -1\n".to_owned(),
            "x".repeat(LINE_BYTES_MAX + 1),
            format!("{}\n", "x".repeat(LINE_BYTES_MAX + 1)),
        ] {
            let mut orders = Orders::default();
            orders.push(text.as_bytes());
            assert_eq!(orders.take(), Err(TooLong));
        }
    }
}
