//! `youtube_transcribe`: what is said in a film, from a transcriber of the settings, which is asked
//! again until it is done. Must not keep a person's message waiting.

use std::time::Duration;

use dispatch_core::{
    address::Address,
    rules::{Group, Subject},
    web::TranscribeTable,
};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{
    Given, Outside, Planned, Run, Tool, Wrong, schema,
    web::{Service, cut},
    web_fetch,
};

pub(super) const TOOL: Tool = Tool {
    name: "youtube_transcribe",
    line: "read what is said in a film on YouTube",
    help: "Answers with the whole transcript of a film and then with its parts and their times. That \
           can take minutes: with background it is only asked for, and the same call later tells \
           how far it is.",
    group: Group::YoutubeTranscribe,
    safe: true,
    schema: schema::<Input>,
    plan,
};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Input {
    /// The address of the film.
    url: String,
    /// Do not wait for it.
    #[serde(default)]
    background: bool,
}

const PAUSE_MAX: Duration = Duration::from_secs(60);

enum State {
    Ready(String),
    /// It asks for as much time.
    Working(Duration),
}

fn plan(given: &Given) -> Result<Planned, Wrong> {
    let input: Input = given.parse()?;
    let film = Address::parse(&input.url).map_err(|error| Wrong::new(error.to_string()))?;
    let subject = Subject::Url(film.clone());
    let background = input.background;
    Ok(Planned::new(vec![subject], move |run| {
        transcribe(run, film, background)
    }))
}

async fn transcribe(run: Run, film: Address, background: bool) -> Result<String, Wrong> {
    let outside = &run.place.outside;
    outside.granted("transcribe a film")?;
    let Some(table) = &outside.web.transcribe else {
        return Err(Wrong::new(
            "transcribe a film: no transcriber is configured; whoever runs Dispatch can name one in \
             [web.transcribe]",
        ));
    };
    let url = film.to_string();
    let limit = Duration::from_millis(table.wait_ms_max);
    let until = Instant::now() + limit;
    loop {
        let pause = match ask(outside, table, &url).await? {
            State::Ready(mut text) => {
                cut(&mut text, outside.web.text_chars_max);
                return Ok(text);
            }
            State::Working(pause) => pause,
        };
        let later = "it is being transcribed; call youtube_transcribe with the same url again";
        if background {
            return Ok(format!("{later} later"));
        }
        if Instant::now() + pause > until {
            return Err(Wrong::new(format!(
                "transcribe {url}: it takes longer than {limit:?}; try again later"
            )));
        }
        tokio::select! {
            () = sleep(pause) => {}
            () = run.place.spoken_to() => {
                return Ok(format!("Somebody has said something, so nobody waits now; {later}"));
            }
        }
    }
}

async fn ask(outside: &Outside, table: &TranscribeTable, url: &str) -> Result<State, Wrong> {
    let doing = format!("transcribe {url}");
    let order = Service {
        doing: &doing,
        url: table.url.clone(),
        key_name: "web.transcribe",
        key: table.key.as_ref(),
        body: Some(json!({"url": url})),
    };
    let answer = outside.service(order).await?;
    match answer["status"].as_str() {
        Some("ready") => Ok(State::Ready(told(&answer))),
        Some("working") => Ok(State::Working(pause(&answer, table))),
        Some("failed") => {
            let kind = answer["error"]["type"].as_str().unwrap_or("it failed");
            let why = web_fetch::why(&answer).unwrap_or_default();
            Err(Wrong::new(format!("{doing}: {kind}: {why}")))
        }
        _ => Err(Wrong::new(format!(
            "{doing}: its status is {}, which is not known",
            answer["status"]
        ))),
    }
}

/// Before it is asked again: as long as it says it takes, within limits.
fn pause(answer: &Value, table: &TranscribeTable) -> Duration {
    let least = Duration::from_millis(table.pause_ms_min);
    let seconds = answer["estimate_seconds"].as_f64();
    let asked = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    asked.map_or(least, |asked| asked.min(PAUSE_MAX).max(least))
}

/// The text, then its parts with their times.
fn told(answer: &Value) -> String {
    let segments = answer["segments"].as_array();
    let segments = segments.map(Vec::as_slice).unwrap_or_default();
    let words = |segment: &Value| {
        segment["text"]
            .as_str()
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    let text = match answer["text"].as_str() {
        Some(text) => text.trim().to_owned(),
        None => segments.iter().map(words).collect::<Vec<_>>().join(" "),
    };
    let mut told = text;
    if !segments.is_empty() {
        told.push_str("\n\n");
    }
    for segment in segments {
        let time = clock(segment["start"].as_f64().unwrap_or_default());
        told.push_str(&format!("[{time}] {}\n", words(segment)));
    }
    told.trim_end().to_owned()
}

fn clock(seconds: f64) -> String {
    let all = Duration::try_from_secs_f64(seconds).unwrap_or_default();
    let all = all.as_secs();
    let (hours, minutes, seconds) = (all / 3600, all / 60 % 60, all % 60);
    format!("{hours}:{minutes:02}:{seconds:02}")
}
