//! What the screen hears: the tasks once, then the event stream of the API; what an event makes
//! stale is asked for again, a little later and once. No event, no request.
//! Must not draw, and must not end because the engine did: it waits for the next one.

use std::{collections::BTreeSet, time::Duration};

use tokio::{
    sync::mpsc::Sender,
    time::{Instant, sleep},
};

use super::model::Stale;
use crate::{
    api::task::Task,
    cli::error::CliError,
    client::{Client, ClientError, Heard, start},
    settings::Settings,
};

/// Events before the list that are heard again, for what was said last.
const BACK_EVENTS: u64 = 2000;
/// Events come in bundles; one request answers for all of a bundle.
const GATHER: Duration = Duration::from_millis(150);
const TRY_AGAIN: Duration = Duration::from_millis(300);
const TRY_AGAIN_MAX: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) enum News {
    All(Vec<Task>),
    One(Box<Task>),
    Heard(Heard),
    Lost(String),
}

/// Nobody draws any more.
struct Over;

/// What has to be asked for, and when.
#[derive(Debug, Default)]
struct Asks {
    all: bool,
    ids: BTreeSet<String>,
    at: Option<Instant>,
}

impl Asks {
    fn add(&mut self, stale: Stale) {
        match stale {
            Stale::Nothing => return,
            Stale::One(id) => {
                self.ids.insert(id);
            }
            Stale::All => self.all = true,
        }
        self.at.get_or_insert_with(|| Instant::now() + GATHER);
    }
}

pub(super) async fn run(settings: Settings, news: Sender<News>) {
    let mut pause = TRY_AGAIN;
    loop {
        let why = match session(&settings, &news, &mut pause).await {
            Ok(why) => why,
            Err(Over) => return,
        };
        if news.send(News::Lost(why)).await.is_err() {
            return;
        }
        sleep(pause).await;
        pause = (pause * 2).min(TRY_AGAIN_MAX);
    }
}

/// With one engine, until it is gone and why.
async fn session(
    settings: &Settings,
    news: &Sender<News>,
    pause: &mut Duration,
) -> Result<String, Over> {
    let client = match start::connect(settings).await {
        Ok(client) => client,
        Err(error) => return Ok(CliError::from(error).what),
    };
    let (tasks, seq) = match client.tasks().await {
        Ok(begun) => begun,
        Err(error) => return Ok(error.to_string()),
    };
    tell(news, News::All(tasks)).await?;
    *pause = TRY_AGAIN;
    let mut events = match client.events(seq.saturating_sub(BACK_EVENTS), None).await {
        Ok(events) => events,
        Err(error) => return Ok(error.to_string()),
    };
    let mut asks = Asks::default();
    loop {
        match events.next_before(asks.at).await {
            None => match ask(&client, std::mem::take(&mut asks), news).await? {
                Ok(()) => {}
                Err(error) => return Ok(error.to_string()),
            },
            Some(Ok(Some(heard))) => {
                // What is older is in the list already.
                if let Heard::Event(event) = &heard
                    && event.seq > seq
                {
                    asks.add(Stale::of(event));
                }
                tell(news, News::Heard(heard)).await?;
            }
            Some(Ok(None)) => return Ok("the engine ended".to_owned()),
            Some(Err(error)) => return Ok(error.to_string()),
        }
    }
}

async fn ask(
    client: &Client,
    asks: Asks,
    news: &Sender<News>,
) -> Result<Result<(), ClientError>, Over> {
    if asks.all {
        return Ok(match client.tasks().await {
            Ok((tasks, _)) => Ok(tell(news, News::All(tasks)).await?),
            Err(error) => Err(error),
        });
    }
    for id in asks.ids {
        match client.get(&format!("/v1/tasks/{id}")).await {
            Ok(task) => tell(news, News::One(Box::new(task))).await?,
            Err(error) => return Ok(Err(error)),
        }
    }
    Ok(Ok(()))
}

async fn tell(news: &Sender<News>, what: News) -> Result<(), Over> {
    news.send(what).await.map_err(|_| Over)
}
