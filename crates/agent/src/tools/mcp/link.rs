//! A connection to a server: a program of its own group, or an address.
//! Must not leave a process behind, and must not give a server a secret that is not its own.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use dispatch_core::{
    id::ServerName,
    servers::{ServerTable, Way},
    web::Reach,
};
use hyper::header::{HeaderName, HeaderValue};
use rmcp::{
    ClientLifecycleMode, ClientServiceExt, Peer, RoleClient,
    model::{
        ClientCapabilities, ClientConfig, Implementation, PaginatedRequestParams, ProtocolVersion,
        Tool,
    },
    service::{ClientInitializeError, RunningService},
    transport::{
        StreamableHttpClientTransport, async_rw::AsyncRwTransport,
        streamable_http_client::StreamableHttpClientTransportConfig,
    },
};
use tokio::{
    io::AsyncReadExt,
    process::{ChildStderr, ChildStdin, ChildStdout},
    sync::{Mutex as Held, watch},
    time::timeout,
};

use super::{Around, given, http::Http};
use crate::tools::group::{Group, Pipes};

/// One message of a server.
const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// A list of tools comes in pages; a server that always has another one is not waited for.
const PAGES_MAX: usize = 32;
/// From the end of its input to its end by force.
const CLOSE_LIMIT: Duration = Duration::from_millis(300);
const GRACE: Duration = Duration::from_millis(300);
/// Of what it said on its standard error.
const WORDS_BYTES: usize = 1_000;
const LAST_WORDS: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Link {
    peer: Peer<RoleClient>,
    session: Held<Option<RunningService<RoleClient, ClientConfig>>>,
    group: Held<Option<Group>>,
    words: Words,
}

/// The last of what a program said beside its messages.
#[derive(Clone, Debug)]
struct Words {
    kept: Arc<Mutex<VecDeque<u8>>>,
    /// Its other end is gone when there is no more to hear.
    open: watch::Receiver<()>,
}

impl Words {
    /// Where there is nothing to hear.
    fn none() -> Self {
        Self::kept(watch::channel(()).1)
    }

    fn kept(open: watch::Receiver<()>) -> Self {
        let kept = Arc::default();
        Self { kept, open }
    }

    fn hear(mut from: ChildStderr) -> Self {
        let (end, open) = watch::channel(());
        let words = Self::kept(open);
        let kept = Arc::clone(&words.kept);
        tokio::spawn(async move {
            let mut bytes = [0; 4096];
            while let Ok(n @ 1..) = from.read(&mut bytes).await {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.extend(&bytes[..n]);
                let over = kept.len().saturating_sub(WORDS_BYTES);
                kept.drain(..over);
            }
            drop(end);
        });
        words
    }

    /// All of them, if that is at its end, or will be soon.
    async fn told(&self) -> String {
        let mut open = self.open.clone();
        match timeout(LAST_WORDS, open.changed()).await {
            Ok(_) | Err(_) => {}
        }
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let (a, b) = kept.as_slices();
        let text = String::from_utf8_lossy(&[a, b].concat()).trim().to_owned();
        if text.is_empty() {
            text
        } else {
            format!("; it said: {text}")
        }
    }
}

impl Link {
    pub(super) fn peer(&self) -> &Peer<RoleClient> {
        &self.peer
    }

    /// What a program said last, where it said something.
    pub(super) async fn last_words(&self) -> String {
        self.words.told().await
    }

    pub(super) async fn end(&self) {
        if let Some(mut session) = self.session.lock().await.take() {
            match session.close_with_timeout(CLOSE_LIMIT).await {
                // However it ended: its group is ended next.
                Ok(_) | Err(_) => {}
            }
        }
        if let Some(mut group) = self.group.lock().await.take() {
            group.end(GRACE).await;
        }
    }
}

pub(super) async fn open(
    name: &ServerName,
    table: &ServerTable,
    around: &Around,
) -> Result<(Link, Vec<Tool>), String> {
    let way = table.way(name).map_err(|error| error.to_string())?;
    if matches!(way, Way::Http(_)) && around.reach == Reach::Nothing {
        return Err("it is reached over HTTP, and this task has no network".to_owned());
    }
    // The older generation is what most servers speak; one that does not says so.
    let older = ClientLifecycleMode::Initialize;
    let newer = ClientLifecycleMode::Discover {
        preferred_versions: vec![ProtocolVersion::NO_INITIALIZE],
    };
    let link = match once(name, table, way, around, older).await {
        Err(NotOpen::Other(first)) => match once(name, table, way, around, newer).await {
            Ok(link) => link,
            Err(NotOpen::Other(_) | NotOpen::Failed(_)) => return Err(first),
        },
        Err(NotOpen::Failed(why)) => return Err(why),
        Ok(link) => link,
    };
    match tools(&link).await {
        Ok(tools) => Ok((link, tools)),
        Err(why) => {
            let why = format!("{why}{}", link.last_words().await);
            link.end().await;
            Err(why)
        }
    }
}

enum NotOpen {
    /// It is there and speaks another generation, as it seems.
    Other(String),
    Failed(String),
}

async fn once(
    name: &ServerName,
    table: &ServerTable,
    way: Way<'_>,
    around: &Around,
    mode: ClientLifecycleMode,
) -> Result<Link, NotOpen> {
    let version = env!("CARGO_PKG_VERSION");
    let us = Implementation::new("dispatch-agent", version);
    let us = ClientConfig::new(ClientCapabilities::default(), us);
    let (session, group, words) = match way {
        Way::Program(argv) => {
            let program = program(name, table, argv, around).await;
            let Program {
                group,
                from,
                to,
                words,
            } = program.map_err(NotOpen::Failed)?;
            let speaks =
                AsyncRwTransport::new_client(from, to).with_max_line_length(MESSAGE_BYTES_MAX);
            let session = us.serve_with_lifecycle(speaks, mode).await;
            (session, Some(group), words)
        }
        Way::Http(url) => {
            let speaks = address(name, table, url, around)
                .await
                .map_err(NotOpen::Failed)?;
            let session = us.serve_with_lifecycle(speaks, mode).await;
            (session, None, Words::none())
        }
    };
    let session = match session {
        Ok(session) => session,
        Err(error) => {
            // Ended, it has no more to say.
            drop(group);
            let why = format!("{error}{}", words.told().await);
            return Err(match error {
                ClientInitializeError::JsonRpcError(_)
                | ClientInitializeError::NoCompatibleProtocolVersion { .. } => NotOpen::Other(why),
                _ => NotOpen::Failed(why),
            });
        }
    };
    Ok(Link {
        peer: session.peer().clone(),
        session: Held::new(Some(session)),
        group: Held::new(group),
        words,
    })
}

struct Program {
    group: Group,
    from: ChildStdout,
    to: ChildStdin,
    words: Words,
}

/// Started beside us, inside the same fence, with no secret but its own.
async fn program(
    name: &ServerName,
    table: &ServerTable,
    argv: &[String],
    around: &Around,
) -> Result<Program, String> {
    let mut env = Vec::new();
    for (variable, value) in &table.env {
        env.push((variable.clone(), given(name, value).await?));
    }
    let program = argv.first().map_or("", String::as_str);
    let started = Group::program(argv, &around.cwd, &around.hidden, &env);
    let (group, pipes) = started.map_err(|error| format!("start {program}: {error}"))?;
    let Pipes {
        stdin: Some(to),
        stdout: Some(from),
        stderr,
    } = pipes
    else {
        return Err(format!("start {program}: it has no pipes"));
    };
    let words = stderr.map_or_else(Words::none, Words::hear);
    Ok(Program {
        group,
        from,
        to,
        words,
    })
}

async fn address(
    name: &ServerName,
    table: &ServerTable,
    url: &str,
    around: &Around,
) -> Result<StreamableHttpClientTransport<Http>, String> {
    let mut headers = std::collections::HashMap::new();
    for (header, value) in &table.headers {
        let bad = || format!("{header} is no header, or its value is none");
        let value = given(name, value).await?;
        let mut value = HeaderValue::from_str(&value).map_err(|_| bad())?;
        value.set_sensitive(true);
        let header = HeaderName::from_bytes(header.as_bytes()).map_err(|_| bad())?;
        headers.insert(header, value);
    }
    let config = StreamableHttpClientTransportConfig::with_uri(url).custom_headers(headers);
    let http = Http::new(around.connector.clone());
    Ok(StreamableHttpClientTransport::with_client(http, config))
}

async fn tools(link: &Link) -> Result<Vec<Tool>, String> {
    let mut tools = Vec::new();
    let mut params = None;
    for _ in 0..PAGES_MAX {
        let page = link.peer.list_tools(params).await;
        let page = page.map_err(|error| format!("list its tools: {error}"))?;
        tools.extend(page.tools);
        let Some(next) = page.next_cursor else {
            return Ok(tools);
        };
        params = Some(PaginatedRequestParams::default().with_cursor(Some(next)));
    }
    Err(format!(
        "list its tools: there are more than {PAGES_MAX} pages"
    ))
}
