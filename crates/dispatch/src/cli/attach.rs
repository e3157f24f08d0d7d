//! Files of a person's that go along with a task or a message, and what they say of its next run.
//! Must not send or keep them: it reads, and says what cannot be read before anything is asked.

use std::{
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
};

use dispatch_core::task::Effort;

use super::{
    error::{CliError, Result},
    run::{agent_of, effort},
};
use crate::{
    api::request::{self, Attach, Content, Tuned},
    settings::Settings,
};

/// Another model or effort, for verbs that lead to a run.
#[derive(Clone, Debug, Default, PartialEq, clap::Args)]
pub(super) struct Tune {
    /// The model from the next run on, as the agent's program calls it
    #[arg(long, value_name = "NAME")]
    pub(super) model: Option<String>,
    /// How hard to think from the next run on: none, minimal, low, medium, high, xhigh or max
    #[arg(long, value_name = "LEVEL", value_parser = effort)]
    pub(super) effort: Option<Effort>,
}

impl Tune {
    /// What the engine would refuse is refused before one is started for it.
    pub(super) fn check(&self, settings: &Settings, agent: &str) -> Result<()> {
        let tuned = self.tuned();
        if tuned.is_empty() {
            return Ok(());
        }
        let agent = agent_of(settings, agent)?;
        request::tuning(&settings.config, &agent, tuned)?;
        Ok(())
    }

    pub(super) fn tuned(&self) -> Tuned<'_> {
        Tuned {
            model: self.model.as_deref(),
            effort: self.effort,
            chain: None,
        }
    }
}

/// The files in the order given, under their last names.
pub(super) fn read(settings: &Settings, paths: &[PathBuf]) -> Result<Vec<Attach>> {
    let mut left = settings.config.limits.attach_bytes;
    let mut files = Vec::new();
    for path in paths {
        let bytes = read_one(path, left)?;
        if bytes.len() as u64 > left {
            let max = settings.config.limits.attach_bytes;
            let what = format!(
                "attach {}: the files of a task have {max} bytes together at most \
                 (limits.attach_bytes)",
                path.display()
            );
            return Err(CliError::usage(what).hint("leave some out, or raise it in dispatch.toml"));
        }
        left -= bytes.len() as u64;
        let name = path.file_name().unwrap_or_default();
        files.push(Attach {
            name: name.to_string_lossy().into_owned(),
            base64: Content(bytes),
        });
    }
    Ok(files)
}

/// One byte more than `max` says that there is more.
fn read_one(path: &Path, max: u64) -> Result<Vec<u8>> {
    let failed = |what: &dyn std::fmt::Display| {
        CliError::usage(format!("attach {}: {what}", path.display()))
    };
    let meta = path.metadata().map_err(|error| failed(&error))?;
    if meta.is_dir() {
        let hint = "attach its files one by one, or pack it into one";
        return Err(failed(&"it is a directory").hint(hint));
    }
    if !meta.is_file() {
        return Err(failed(&"it is no regular file"));
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|error| failed(&error))?;
    let read = file.take(max.saturating_add(1)).read_to_end(&mut bytes);
    read.map_err(|error| failed(&error))?;
    Ok(bytes)
}
