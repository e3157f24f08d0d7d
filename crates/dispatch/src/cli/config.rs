//! `dispatch config`: what is in force and where it comes from.

use std::{
    fs::{self, File},
    io::{ErrorKind, Read as _, Write as _},
    path::{Path, PathBuf},
};

use dispatch_core::config::{self, Layer};

use super::{
    Ctx,
    error::{CliError, Result, chain},
    exit::Exit,
    out,
};
use crate::import;

/// No such file is longer; a wrong one must not fill memory.
const IMPORT_BYTES_MAX: u64 = 1 << 20;

/// Show or check the configuration.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  dispatch config show --sources\n  dispatch config check\n  dispatch config import ~/conf/agents.yaml --write"
)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Print every value in force
    Show {
        /// And where it comes from
        #[arg(long)]
        sources: bool,
        /// One JSON array of key, value, source
        #[arg(long)]
        json: bool,
    },
    /// Read everything and report all problems at once (exit 2)
    Check,
    /// Print the numbers of an older agents.yaml as tables of this configuration
    Import {
        /// The agents.yaml
        file: PathBuf,
        /// And add them to the configuration file
        #[arg(long)]
        write: bool,
    },
}

pub(crate) fn run(ctx: &Ctx, args: &Args) -> Result<Exit> {
    let settings = &ctx.settings;
    match &args.what {
        What::Import { file, write } => import(ctx, file, *write)?,
        // Whoever comes this far has settings without a problem.
        What::Check => out::line(&format!("ok: {}", settings.paths.config.display()))?,
        What::Show { json: true, .. } => {
            let row = |one: &dispatch_core::config::Sourced| serde_json::json!({"key": one.key, "value": one.value, "source": one.source});
            out::json(&settings.sourced.iter().map(row).collect::<Vec<_>>())?;
        }
        What::Show { sources, .. } => {
            for one in &settings.sourced {
                let source = if *sources {
                    format!("  # {}", one.source)
                } else {
                    String::new()
                };
                out::line(&format!("{} = {}{source}", one.key, one.value))?;
            }
            if *sources {
                out::line(&format!("# config {}", settings.paths.config.display()))?;
                out::line(&format!("# data   {}", settings.paths.data.display()))?;
                out::line(&format!("# socket {}", settings.paths.socket().display()))?;
            }
        }
    }
    Ok(Exit::Completed)
}

fn import(ctx: &Ctx, file: &Path, write: bool) -> Result<()> {
    let what = format!("import {}", file.display());
    let mut text = String::new();
    File::open(file)
        .and_then(|file| file.take(IMPORT_BYTES_MAX).read_to_string(&mut text))
        .map_err(|error| CliError::usage(format!("{what}: {error}")))?;
    let imported = import::agents_yaml(&text, &ctx.settings.config)
        .map_err(|error| CliError::usage(format!("{what}: {}", chain(&error))))?;
    for note in &imported.notes {
        out::aside(&format!("note: {note}"));
    }
    if !write {
        return out::line(imported.toml.trim_end());
    }
    let path = &ctx.settings.paths.config;
    let before = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        Err(error) => return Err(CliError::failed(&what, &error)),
    };
    // What a person wrote is never rewritten, so a table that is there already is theirs to merge.
    let there: toml::Table = before
        .parse()
        .map_err(|error: toml::de::Error| CliError::usage(format!("{what}: {error}")))?;
    let taken: Vec<&str> = imported
        .tables
        .iter()
        .map(String::as_str)
        .filter(|name| has_table(&there, name))
        .collect();
    if !taken.is_empty() {
        let tables = taken.join("], [");
        let text = format!("{what}: [{tables}] are in {} already", path.display());
        return Err(CliError::usage(text)
            .hint("run it without --write, and bring the numbers over by hand"));
    }
    let gap = if before.is_empty() { "" } else { "\n" };
    let after = format!("{before}{gap}{}", imported.toml);
    let layer = Layer {
        source: "the result",
        text: &after,
    };
    if let Err(problems) = config::load(&[layer]) {
        let all: Vec<String> = problems.iter().map(ToString::to_string).collect();
        return Err(CliError::usage(format!("{what}: {}", all.join("; "))));
    }
    replace(path, &after).map_err(|error| CliError::failed(&what, &error))?;
    out::line(&format!("added to {}", path.display()))
}

fn has_table(there: &toml::Table, dotted: &str) -> bool {
    match dotted.split_once('.') {
        Some((table, name)) => there
            .get(table)
            .and_then(toml::Value::as_table)
            .is_some_and(|table| table.contains_key(name)),
        None => there.contains_key(dotted),
    }
}

/// Whole or not at all.
fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    let new = path.with_extension("toml.new");
    let mut file = File::create(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)
}
