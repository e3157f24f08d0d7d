//! A provider for tests: answers requests on 127.0.0.1 one after the other with what it was told to,
//! and keeps what it was asked.
//! Must not be used outside tests, and must not know more of a wire format than an answer's bytes.

use std::sync::{Arc, Mutex};

use dispatch_core::models::{Endpoint, KeyTable};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Notify,
};

#[derive(Clone, Debug)]
pub(crate) enum Reply {
    /// A stream of events, to its end.
    Events(String),
    /// The same, and then nothing more, and no end.
    Stalls(String),
    /// The same, and then the connection is closed before the end that was announced.
    Breaks(String),
    Error {
        status: u16,
        headers: Vec<(&'static str, String)>,
        body: String,
    },
    /// Nothing at all.
    Hangs,
}

impl Reply {
    pub(crate) fn error(status: u16) -> Self {
        Self::Error {
            status,
            headers: Vec::new(),
            body: r#"{"error":{"message":"as told"}}"#.to_owned(),
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) head: String,
    pub(crate) text: String,
    /// Which connection it came on, counted from 0.
    pub(crate) connection: usize,
}

impl Asked {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (known, value) = line.split_once(':')?;
            known.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

#[derive(Debug)]
pub(crate) struct Provider {
    pub(crate) url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    came: Arc<Notify>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Provider {
    /// Each request gets the next reply; the last one is for all that follow.
    pub(crate) async fn start(replies: Vec<Reply>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let kept = Arc::clone(&asked);
        let came: Arc<Notify> = Arc::default();
        let tell = Arc::clone(&came);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            for number in 0.. {
                let (stream, _) = listener.accept().await.unwrap();
                let (replies, kept) = (replies.clone(), Arc::clone(&kept));
                connections.spawn(serve(stream, number, replies, kept, Arc::clone(&tell)));
            }
        });
        Self {
            url,
            asked,
            came,
            task,
        }
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    pub(crate) async fn until_asked(&self, times: usize) {
        loop {
            let came = self.came.notified();
            if self.asked.lock().unwrap().len() >= times {
                return;
            }
            came.await;
        }
    }

    /// What to ask it for, in this provider's wire format.
    pub(crate) fn endpoint(&self, provider: &str) -> Endpoint {
        let table: KeyTable = serde_json::from_value(self.table(provider)).unwrap();
        table
            .endpoint(&"k".parse().unwrap(), &"m".parse().unwrap())
            .unwrap()
    }

    pub(crate) fn table(&self, provider: &str) -> Value {
        json!({"provider": provider, "base_url": self.url, "auth": "none"})
    }
}

async fn serve(
    mut stream: TcpStream,
    connection: usize,
    replies: Vec<Reply>,
    asked: Arc<Mutex<Vec<Asked>>>,
    came: Arc<Notify>,
) {
    while let Some((head, text)) = request(&mut stream).await {
        let number = {
            let mut asked = asked.lock().unwrap();
            asked.push(Asked {
                head,
                text,
                connection,
            });
            asked.len() - 1
        };
        came.notify_waiters();
        let reply = &replies[number.min(replies.len() - 1)];
        if !answer(&mut stream, reply).await {
            return;
        }
    }
}

async fn request(stream: &mut TcpStream) -> Option<(String, String)> {
    let mut bytes = Vec::new();
    loop {
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8(bytes[..at].to_vec()).unwrap();
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                let ours = name.eq_ignore_ascii_case("content-length");
                ours.then(|| value.trim().parse::<usize>().unwrap())
            });
            let end = at + 4 + length.unwrap_or(0);
            while bytes.len() < end {
                if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
                    return None;
                }
            }
            return Some((
                head,
                String::from_utf8(bytes[at + 4..end].to_vec()).unwrap(),
            ));
        }
        if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            return None;
        }
    }
}

const STREAM: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
                      anthropic-ratelimit-requests-remaining: 7\r\ntransfer-encoding: chunked\r\n\r\n";

/// Whether the connection can have another request.
async fn answer(stream: &mut TcpStream, reply: &Reply) -> bool {
    let (text, end) = match reply {
        Reply::Events(text) => (format!("{STREAM}{}0\r\n\r\n", chunk(text)), true),
        Reply::Stalls(text) => (format!("{STREAM}{}", chunk(text)), false),
        Reply::Breaks(text) => {
            let sent = stream
                .write_all(format!("{STREAM}{}", chunk(text)).as_bytes())
                .await;
            return sent.is_ok() && stream.shutdown().await.is_err();
        }
        Reply::Error {
            status,
            headers,
            body,
        } => {
            let headers: Vec<String> = headers
                .iter()
                .map(|(name, value)| format!("{name}: {value}\r\n"))
                .collect();
            let length = body.len();
            (
                format!(
                    "HTTP/1.1 {status} As Told\r\ncontent-length: {length}\r\n{}\r\n{body}",
                    headers.concat()
                ),
                true,
            )
        }
        Reply::Hangs => (String::new(), false),
    };
    if stream.write_all(text.as_bytes()).await.is_err() {
        return false;
    }
    if !end {
        // Until the client leaves.
        let mut rest = Vec::new();
        while stream.read_buf(&mut rest).await.unwrap_or(0) > 0 {}
    }
    end
}

fn chunk(text: &str) -> String {
    if text.is_empty() {
        return String::new();
    }
    format!("{:x}\r\n{text}\r\n", text.len())
}

/// Answers in the wire formats, as short as they can be.
pub(crate) mod say {
    use serde_json::{Value, json};

    fn events(list: &[Value]) -> String {
        list.iter()
            .map(|data| format!("data: {data}\n\n"))
            .collect()
    }

    pub(crate) fn anthropic(text: &str, calls: &[(&str, &str, Value)]) -> String {
        let mut list = vec![json!({"type": "message_start", "message": {"usage":
            {"input_tokens": 10, "cache_read_input_tokens": 5, "output_tokens": 1}}})];
        let thinking = json!({"type": "thinking", "thinking": "hm", "signature": "s=="});
        let mut blocks = vec![thinking];
        if !text.is_empty() {
            blocks.push(json!({"type": "text", "text": text}));
        }
        for (id, name, input) in calls {
            blocks.push(json!({"type": "tool_use", "id": id, "name": name, "input": input}));
        }
        for (index, block) in blocks.into_iter().enumerate() {
            list.push(
                json!({"type": "content_block_start", "index": index, "content_block": block}),
            );
            list.push(json!({"type": "content_block_stop", "index": index}));
        }
        let reason = if calls.is_empty() {
            "end_turn"
        } else {
            "tool_use"
        };
        list.push(
            json!({"type": "message_delta", "delta": {"stop_reason": reason},
            "usage": {"output_tokens": 20}}),
        );
        list.push(json!({"type": "message_stop"}));
        events(&list)
    }

    pub(crate) fn responses(text: &str, calls: &[(&str, &str, Value)]) -> String {
        let mut list = Vec::new();
        let thought =
            json!({"type": "reasoning", "id": "rs", "summary": [], "encrypted_content": "gAA="});
        let mut items = vec![thought];
        if !text.is_empty() {
            items.push(json!({"type": "message", "id": "msg", "role": "assistant",
                "content": [{"type": "output_text", "text": text, "annotations": []}]}));
        }
        for (id, name, input) in calls {
            items.push(
                json!({"type": "function_call", "id": format!("fc_{id}"), "call_id": id,
                "name": name, "arguments": input.to_string()}),
            );
        }
        for item in &items {
            list.push(json!({"type": "response.output_item.done", "item": item}));
        }
        list.push(
            json!({"type": "response.completed", "response": {"status": "completed",
            "usage": {"input_tokens": 15, "output_tokens": 20}}}),
        );
        events(&list)
    }

    pub(crate) fn chat(text: &str, calls: &[(&str, &str, Value)]) -> String {
        let chunk = |delta: Value, finish: Option<&str>| json!({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]});
        let mut list = vec![chunk(
            json!({"role": "assistant", "reasoning_content": "hm"}),
            None,
        )];
        if !text.is_empty() {
            list.push(chunk(json!({"content": text}), None));
        }
        for (index, (id, name, input)) in calls.iter().enumerate() {
            list.push(chunk(
                json!({"tool_calls": [{"index": index, "id": id, "type": "function",
                    "function": {"name": name, "arguments": input.to_string()}}]}),
                None,
            ));
        }
        let reason = if calls.is_empty() {
            "stop"
        } else {
            "tool_calls"
        };
        list.push(chunk(json!({}), Some(reason)));
        list.push(json!({"choices": [], "usage": {"prompt_tokens": 15, "completion_tokens": 20}}));
        events(&list) + "data: [DONE]\n\n"
    }

    pub(crate) fn any(provider: &str, text: &str, calls: &[(&str, &str, Value)]) -> String {
        match provider {
            "anthropic" => anthropic(text, calls),
            "openai" => responses(text, calls),
            _ => chat(text, calls),
        }
    }
}
