//! Tasks for reading verbs: from the engine that lives, else from the log itself.
//! Must not start an engine.

use dispatch_engine::{clock::Clock, reader::Reader};

use super::{
    error::{CliError, Result},
    ids,
};
use crate::{api::task::Task, client::start, settings::Settings};

/// `None` when nothing has ever been dispatched from here.
pub(crate) fn reader(settings: &Settings) -> Result<Option<Reader>> {
    if !settings.paths.data.is_dir() {
        return Ok(None);
    }
    Reader::open(&settings.paths.data)
        .map(Some)
        .map_err(|error| CliError::failed("read the log", &error))
}

/// All tasks, removed ones too, oldest first.
pub(crate) async fn all(settings: &Settings) -> Result<Vec<Task>> {
    if let Some(client) = start::living(settings)? {
        match client.tasks().await {
            Ok((tasks, _)) => return Ok(tasks),
            // It has just left, or is just coming: the log knows.
            Err(error) if error.nothing_happened() => {}
            Err(error) => return Err(error.into()),
        }
    }
    let Some(reader) = reader(settings)? else {
        return Ok(Vec::new());
    };
    let views = reader
        .tasks_at_gate(&settings.config, Clock::System.now())
        .map_err(|error| CliError::failed("read the log", &error))?;
    Ok(views.iter().map(Task::from).collect())
}

pub(crate) async fn one(settings: &Settings, prefix: &str) -> Result<Task> {
    ids::resolve(&all(settings).await?, prefix).cloned()
}
