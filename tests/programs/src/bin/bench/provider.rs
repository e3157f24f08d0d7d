//! A model server for measuring: it tells when the first byte of a question came and when the first of
//! its answer goes, and answers with bytes that were made before.
//! Must not parse what it is asked: that would be measured as well.

use std::{
    collections::VecDeque,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, Receiver, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use serde_json::{Value, json};

/// Of a rival that does not ask at all.
const ASKED_WITHIN: Duration = Duration::from_secs(60);
const HEAD: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";

/// The body of an answer, in the pieces in which it is sent.
#[derive(Clone)]
pub(crate) struct Answer {
    pieces: Arc<[Vec<u8>]>,
    pause: Option<Duration>,
}

impl Answer {
    /// A text of so many tokens; with a pace, so many of them in each piece.
    pub(crate) fn tokens(count: usize, pace: Option<(usize, Duration)>) -> Self {
        let frame = frame(&json!({"content": "token "}), None);
        let each = pace.map_or(count, |(each, _)| each);
        let mut pieces: Vec<Vec<u8>> = (0..count / each).map(|_| frame.repeat(each)).collect();
        pieces.extend([end("stop")]);
        Self {
            pieces: pieces.into(),
            pause: pace.map(|(_, pause)| pause),
        }
    }

    pub(crate) fn call(tool: &str, input: &Value) -> Self {
        let call = json!({"tool_calls": [{"index": 0, "id": "call", "type": "function",
            "function": {"name": tool, "arguments": input.to_string()}}]});
        Self {
            pieces: [frame(&call, None), end("tool_calls")].into(),
            pause: None,
        }
    }
}

fn frame(delta: &Value, finish: Option<&str>) -> Vec<u8> {
    let data = json!({"id": "a", "object": "chat.completion.chunk", "model": "m",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]});
    format!("data: {data}\n\n").into_bytes()
}

fn end(finish: &str) -> Vec<u8> {
    let mut end = frame(&json!({}), Some(finish));
    end.extend(b"data: [DONE]\n\n");
    end
}

#[derive(Default)]
struct Answers(Mutex<VecDeque<Answer>>);

pub(crate) struct Provider {
    address: SocketAddr,
    answers: Arc<Answers>,
    asked: Receiver<Instant>,
    sending: Receiver<Instant>,
}

impl Provider {
    pub(crate) fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let answers = Arc::new(Answers::default());
        let (asked_to, asked) = mpsc::channel();
        let (sending_to, sending) = mpsc::channel();
        let for_thread = Arc::clone(&answers);
        thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let (asked, sending) = (asked_to.clone(), sending_to.clone());
                let answers = Arc::clone(&for_thread);
                // Whoever asks may go away at any moment.
                thread::spawn(move || drop(serve(&stream, &answers, &asked, &sending)));
            }
        });
        Ok(Self {
            address,
            answers,
            asked,
            sending,
        })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// For a question that is to come. One for which there is none is never answered.
    pub(crate) fn answer(&self, answer: Answer) {
        let mut answers = self
            .answers
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        answers.push_back(answer);
    }

    /// When the next question began to come. What came before and nobody asked about is forgotten.
    pub(crate) fn first_byte(&self) -> Result<Instant> {
        Ok(self.asked.recv_timeout(ASKED_WITHIN)?)
    }

    pub(crate) fn sending(&self) -> Result<Instant> {
        Ok(self.sending.recv_timeout(ASKED_WITHIN)?)
    }
}

fn serve(
    mut stream: &TcpStream,
    answers: &Answers,
    asked: &Sender<Instant>,
    sending: &Sender<Instant>,
) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut input = BufReader::new(stream);
    input.fill_buf()?;
    let at = Instant::now();
    let (mut line, mut length) = (String::new(), 0);
    let mut first = true;
    loop {
        line.clear();
        if input.read_line(&mut line)? == 0 {
            return Ok(());
        }
        // A question to a model is a POST; whatever else a client looks at is none.
        if std::mem::take(&mut first) && line.starts_with("POST") {
            asked.send(at)?;
        }
        if line == "\r\n" {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse()?;
        }
    }
    std::io::copy(&mut input.by_ref().take(length), &mut std::io::sink())?;
    let answer = {
        let mut answers = answers.0.lock().unwrap_or_else(PoisonError::into_inner);
        answers.pop_front()
    };
    let Some(answer) = answer else {
        // Held open: whoever asked waits, until it goes.
        std::io::copy(&mut input, &mut std::io::sink())?;
        return Ok(());
    };
    sending.send(Instant::now())?;
    stream.write_all(HEAD)?;
    let begun = Instant::now();
    for (n, piece) in (0..).zip(answer.pieces.iter()) {
        if let Some(pause) = answer.pause {
            thread::sleep((pause * n).saturating_sub(begun.elapsed()));
        }
        stream.write_all(piece)?;
    }
    Ok(())
}
