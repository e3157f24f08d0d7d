//! Finds the engine of the data directory or starts one, bounded in time.
//! Must not guess: a live engine is one that has the lock, and a child that died says why.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use dispatch_core::causes::chain;
use dispatch_engine::{lock, random};
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::sleep;

use super::{
    Client, ClientError,
    again::{Patience, Twice},
};
use crate::{
    api::{Health, request::Secrets},
    cli::out::aside,
    settings::{Paths, Settings},
};

/// From the first look to giving up.
const START_MAX: Duration = Duration::from_secs(10);
const LOOK_AGAIN_FIRST: Duration = Duration::from_millis(5);
const LOOK_AGAIN_MAX: Duration = Duration::from_millis(200);
/// Of a request that is sent again under the same name.
const KEY_BYTES: usize = 16;
const LOG_TAIL_BYTES: u64 = 2048;

#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("start the engine")]
    Spawn(#[source] io::Error),
    #[error("start the engine: it ended with {status}:\n{tail}")]
    Died { status: String, tail: String },
    #[error(
        "reach the engine within {} s: {last}",
        START_MAX.as_secs()
    )]
    Silent { last: String },
    #[error("ask whether an engine is alive")]
    Lock(#[source] io::Error),
    #[error("make a key for the request: the system gives no random bytes")]
    Random(#[source] io::Error),
    #[error("{0}")]
    Client(#[from] ClientError),
}

/// A client of the engine that lives, or none.
pub(crate) fn living(settings: &Settings) -> Result<Option<Client>, StartError> {
    let held = lock::is_held(&settings.paths.data).map_err(StartError::Lock)?;
    Ok(held.then(|| Client::new(settings.paths.clone())))
}

/// Whether the engine that has the lock makes room: one that was started on demand does, its jobs live
/// on. One that cannot be asked is on its way, in or out.
pub(crate) async fn asked_to_leave(settings: &Settings) -> bool {
    let client = Client::new(settings.paths.clone());
    match client.get::<Health>("/v1/health").await {
        Ok(health) if !health.on_demand => false,
        Ok(_) => {
            let nothing = serde_json::json!({});
            let told: Result<(), ClientError> = client.post("/v1/shutdown", &nothing).await;
            // What comes of it is seen by the lock.
            matches!(told, Ok(()) | Err(_))
        }
        Err(_) => true,
    }
}

/// A client of an engine that answers; starts one when nobody has the lock.
pub(crate) async fn connect(settings: &Settings) -> Result<Client, StartError> {
    let client = Client::new(settings.paths.clone());
    let deadline = Instant::now() + START_MAX;
    let (mut child, mut pause) = (None::<Child>, LOOK_AGAIN_FIRST);
    loop {
        let last = match greet(&client, settings).await {
            Ok(()) => return Ok(client),
            Err(error) => error.to_string(),
        };
        if let Some(started) = &mut child
            && let Some(status) = started.try_wait().map_err(StartError::Spawn)?
        {
            // It loses the race when two start at once; then the other one has the lock.
            if !lock::is_held(&settings.paths.data).map_err(StartError::Lock)? {
                return Err(StartError::Died {
                    status: status.to_string(),
                    tail: log_tail(&settings.paths),
                });
            }
            child = None;
        } else if child.is_none()
            && !lock::is_held(&settings.paths.data).map_err(StartError::Lock)?
        {
            child = Some(spawn(settings).map_err(StartError::Spawn)?);
        }
        if Instant::now() >= deadline {
            return Err(StartError::Silent { last });
        }
        sleep(pause).await;
        pause = (pause * 2).min(LOOK_AGAIN_MAX);
    }
}

/// An engine that is just leaving refuses and nothing has happened; the next one is asked.
pub(crate) async fn ask<T>(
    settings: &Settings,
    request: impl AsyncFn(&Client) -> Result<T, ClientError>,
) -> Result<(Client, T), StartError> {
    let mut patience = Patience::new(Twice::Unsafe);
    loop {
        let client = connect(settings).await?;
        match request(&client).await {
            Ok(answer) => return Ok((client, answer)),
            Err(error) => patience.again(error).await?,
        }
    }
}

/// Asks for something to be made, once: also when an engine dies before it has answered, because the
/// next one is asked with the same key and says what came of it.
pub(crate) async fn make<B: Serialize + Sync, T: DeserializeOwned>(
    settings: &Settings,
    path: &str,
    body: &B,
) -> Result<(Client, T), StartError> {
    make_as(settings, path, body, &random_key()?).await
}

/// The same under a key of the caller's, who may ask again with it.
pub(crate) async fn make_as<B: Serialize + Sync, T: DeserializeOwned>(
    settings: &Settings,
    path: &str,
    body: &B,
    key: &str,
) -> Result<(Client, T), StartError> {
    let mut patience = Patience::new(Twice::Safe);
    loop {
        let client = connect(settings).await?;
        match client.post_once(path, body, key).await {
            Ok(answer) => return Ok((client, answer)),
            Err(error) => patience.again(error).await?,
        }
    }
}

/// For a request that may be sent again.
pub(crate) fn random_key() -> Result<String, StartError> {
    random::hex::<KEY_BYTES>().map_err(StartError::Random)
}

/// It may leave between any two of these; then the next one is greeted.
async fn greet(client: &Client, settings: &Settings) -> Result<(), ClientError> {
    client.get::<Health>("/v1/health").await?;
    provide(client, settings).await
}

/// Gives the engine what queued runs lack and we have.
pub(crate) async fn provide(client: &Client, settings: &Settings) -> Result<(), ClientError> {
    let needs: Vec<String> = client.get("/v1/needs").await?;
    // Only what an agent's table names: an engine cannot ask for anything else of ours.
    let mut secrets = Secrets::default();
    for key in needs {
        match settings.secret(&key) {
            Ok(Some(secret)) => {
                secrets.0.insert(key, secret);
            }
            Ok(None) => {}
            // It stays queued and says what it needs; what was asked for now is another thing.
            Err(error) => aside(&format!(
                "warning: a queued run needs a key: {}",
                chain(&error)
            )),
        }
    }
    if secrets.0.is_empty() {
        return Ok(());
    }
    client.post("/v1/secrets", &secrets).await
}

fn spawn(settings: &Settings) -> io::Result<Child> {
    let data = &settings.paths.data;
    DirBuilder::new().recursive(true).mode(0o700).create(data)?;
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(settings.paths.engine_log())?;
    // Our own file, whatever has been put in its place on disk since we started.
    let program = if cfg!(target_os = "linux") {
        "/proc/self/exe".into()
    } else {
        std::env::current_exe()?
    };
    let mut command = Command::new(program);
    command
        .args(["serve", "--until-idle", "--own-session"])
        .current_dir(data)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    if settings.env.text("DISPATCH_HOME").is_some()
        && let Some(home) = settings.paths.config.parent()
    {
        // It may have been relative to where we are.
        command.env("DISPATCH_HOME", home);
    }
    // For this call, and it goes with the request.
    for name in Settings::container_variable_names() {
        command.env_remove(name);
    }
    // They go over the socket and stay in memory; an environment can be read from outside.
    for name in settings.secret_variables() {
        command.env_remove(name);
    }
    command.spawn()
}

pub(crate) fn log_tail(paths: &Paths) -> String {
    let read = || -> io::Result<String> {
        let mut file = File::open(paths.engine_log())?;
        let length = fs::metadata(paths.engine_log())?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    };
    read().unwrap_or_default()
}
