//! HTTP as it goes over the wire, written by hand, and an engine that listens.
//! Must not be a library's idea of HTTP: what it would not send is what some tests are about.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::TcpStream,
};

use serde_json::Value;

use super::world::{Done, Followed, TestWorld};

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// Of a connection that was closed behind it.
    #[track_caller]
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let end = bytes
            .windows(4)
            .position(|four| four == b"\r\n\r\n")
            .unwrap();
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap();
        let header = |line: &str| {
            let (name, value) = line.split_once(": ").unwrap();
            (name.to_ascii_lowercase(), value.to_owned())
        };
        Self {
            status: status.parse().unwrap(),
            headers: lines.map(header).collect(),
            body: bytes[end + 4..].to_vec(),
        }
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    /// What a program looks at when it was refused.
    pub(crate) fn refusal(&self) -> (u16, String) {
        let code = self.json()["code"].as_str().unwrap_or_default().to_owned();
        (self.status, code)
    }

    #[track_caller]
    pub(crate) fn good(self) -> Self {
        assert!(
            (200..300).contains(&self.status),
            "{} {}",
            self.status,
            self.text()
        );
        self
    }
}

/// One request with these headers and this body; `host` and `content-length` come by themselves.
#[track_caller]
pub(crate) fn ask(address: &str, line: &str, headers: &[&str], body: &str) -> Answer {
    let mut request = format!("{line} HTTP/1.1\r\nconnection: close\r\n");
    if !headers.iter().any(|header| header.starts_with("host:")) {
        request.push_str(&format!("host: {address}\r\n"));
    }
    for header in headers {
        request.push_str(&format!("{header}\r\n"));
    }
    if !body.is_empty() {
        request.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    let bytes = send(address, format!("{request}\r\n{body}").as_bytes());
    Answer::of(&bytes)
}

/// Whatever comes back until the other side closes.
#[track_caller]
pub(crate) fn send(address: &str, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).unwrap();
    let mut answer = Vec::new();
    // A server that will not read on may close before all is written, and reset what it has answered.
    stream.write_all(bytes).ok();
    stream.read_to_end(&mut answer).ok();
    answer
}

/// An engine in the foreground that listens, and a token for everything there.
pub(crate) struct Door {
    serve: Followed,
    pub(crate) address: String,
    pub(crate) token: String,
}

impl Door {
    #[track_caller]
    pub(crate) fn open(world: &TestWorld) -> Self {
        let token = token(world, &["--scope", "read,dispatch,answer,admin"]);
        Self::with(world, token)
    }

    #[track_caller]
    pub(crate) fn with(world: &TestWorld, token: String) -> Self {
        let mut serve = world.follow(&["serve", "--listen", "127.0.0.1:0", "--json"]);
        serve.until("url");
        let told: Value = serde_json::from_str(serve.last()).unwrap();
        let url = told["url"].as_str().unwrap();
        Self {
            address: url.strip_prefix("http://").unwrap().to_owned(),
            serve,
            token,
        }
    }

    #[track_caller]
    pub(crate) fn get(&self, path: &str) -> Answer {
        ask(&self.address, &format!("GET {path}"), &[&self.token], "")
    }

    #[track_caller]
    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        let line = format!("POST {path}");
        ask(&self.address, &line, &[&self.token], &body.to_string())
    }

    #[track_caller]
    pub(crate) fn close(self) -> Done {
        self.post("/v1/shutdown", &serde_json::json!({})).good();
        self.serve.end()
    }

    /// The next one, as if the machine's memory had run out under this one.
    #[track_caller]
    pub(crate) fn killed(self, world: &TestWorld) -> Self {
        self.serve.signal(rustix::process::Signal::KILL);
        self.serve.end();
        Self::with(world, self.token)
    }
}

/// The header of a new token.
#[track_caller]
pub(crate) fn token(world: &TestWorld, args: &[&str]) -> String {
    let all = [&["token", "new", "--json"][..], args].concat();
    let made = world.dispatch(&all).exits(0).json();
    format!("authorization: Bearer {}", made["token"].as_str().unwrap())
}
