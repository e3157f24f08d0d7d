//! What a chat hears: its task, then the events of it, from engine to engine, each once. What an event
//! makes stale is asked for again, a little later and once.
//! Must not draw, and must not end because the engine did: it waits for the next one.

use std::time::Duration;

use tokio::{
    sync::mpsc::Sender,
    time::{Instant, sleep},
};

use crate::{
    api::task::Task,
    cli::error::CliError,
    client::{Client, ClientError, Heard, start},
    settings::Settings,
};

/// Events come in bundles; one request answers for all of a bundle.
const GATHER: Duration = Duration::from_millis(150);
const TRY_AGAIN: Duration = Duration::from_millis(200);
const TRY_AGAIN_MAX: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) enum News {
    Linked,
    Lost(String),
    Task(Box<Task>),
    Heard(Heard),
}

/// Nobody listens any more.
struct Over;

struct Feed {
    settings: Settings,
    id: String,
    news: Sender<News>,
    /// The last event that was heard.
    after: u64,
    pause: Duration,
}

pub(super) async fn run(settings: Settings, id: String, news: Sender<News>) {
    let mut feed = Feed {
        settings,
        id,
        news,
        after: 0,
        pause: TRY_AGAIN,
    };
    loop {
        let Ok(why) = feed.session().await else {
            return;
        };
        if feed.tell(News::Lost(why)).await.is_err() {
            return;
        }
        sleep(feed.pause).await;
        feed.pause = (feed.pause * 2).min(TRY_AGAIN_MAX);
    }
}

impl Feed {
    /// With one engine, until it is gone and why.
    async fn session(&mut self) -> Result<String, Over> {
        let client = match start::connect(&self.settings).await {
            Ok(client) => client,
            Err(error) => return Ok(CliError::from(error).what),
        };
        let mut events = match client.events(self.after, Some(&self.id)).await {
            Ok(events) => events,
            Err(error) => return Ok(error.to_string()),
        };
        self.tell(News::Linked).await?;
        // The task itself is asked for when there is something to hear, so also now.
        let mut stale = Some(Instant::now());
        loop {
            match events.next_before(stale).await {
                None => {
                    stale = None;
                    if let Err(error) = self.look(&client).await? {
                        return Ok(error.to_string());
                    }
                }
                Some(Ok(Some(heard))) => {
                    // What it waits for may be a key that we have.
                    if matches!(&heard, Heard::Event(event) if event.kind == "waits")
                        && let Err(error) = start::provide(&client, &self.settings).await
                    {
                        return Ok(error.to_string());
                    }
                    if self.hear(heard).await? {
                        stale.get_or_insert_with(|| Instant::now() + GATHER);
                    }
                }
                Some(Ok(None)) => return Ok("it ended".to_owned()),
                Some(Err(error)) => return Ok(error.to_string()),
            }
        }
    }

    /// Whether the task is another one now.
    async fn hear(&mut self, heard: Heard) -> Result<bool, Over> {
        let stale = match &heard {
            Heard::Event(event) => {
                self.after = self.after.max(event.seq);
                // It serves, and there is news.
                self.pause = TRY_AGAIN;
                event.kind != "said" || event.body.get("update").is_some_and(is_result)
            }
            Heard::At(at) => {
                self.after = self.after.max(at.seq);
                false
            }
            Heard::Live(_) | Heard::Open(_) => false,
        };
        self.tell(News::Heard(heard)).await?;
        Ok(stale)
    }

    async fn look(&mut self, client: &Client) -> Result<Result<(), ClientError>, Over> {
        let path = format!("/v1/tasks/{}", self.id);
        match client.get(&path).await {
            Ok(task) => Ok(Ok(self.tell(News::Task(task)).await?)),
            Err(error) => Ok(Err(error)),
        }
    }

    async fn tell(&self, what: News) -> Result<(), Over> {
        self.news.send(what).await.map_err(|_| Over)
    }
}

/// The agent may have asked for a task.
fn is_result(update: &serde_json::Value) -> bool {
    update.get("tool_result").is_some()
}
