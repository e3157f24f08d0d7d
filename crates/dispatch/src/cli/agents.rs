//! `dispatch agents`: what is configured, and how to get a program that is not there.

use std::path::Path;

use serde::Serialize;

use super::{Ctx, error::Result, exit::Exit, out, style::Colour};

/// List the configured agents.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  dispatch agents\n  dispatch agents --json")]
pub(crate) struct Args {
    /// One JSON array
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Row {
    name: String,
    driver: dispatch_core::drivers::DriverKind,
    program: String,
    found: Option<std::path::PathBuf>,
    pool: String,
    placement: String,
    default: bool,
}

/// How to install a program we know.
pub(crate) fn how_to_get(program: &str) -> &'static str {
    match Path::new(program)
        .file_name()
        .and_then(|name| name.to_str())
    {
        Some("claude") => {
            "npm install -g @anthropic-ai/claude-code, then `dispatch login claude` or set ANTHROPIC_API_KEY"
        }
        Some("codex") => {
            "npm install -g @openai/codex, then `dispatch login codex` or set CODEX_API_KEY"
        }
        _ => "install it, or set `program` in its table to where it lies",
    }
}

pub(crate) fn run(ctx: &Ctx, args: &Args) -> Result<Exit> {
    let config = &ctx.settings.config;
    let row = |(name, agent): (
        &dispatch_core::id::AgentName,
        &dispatch_core::config::AgentProfile,
    )| Row {
        name: name.to_string(),
        driver: agent.driver,
        program: agent.program.clone(),
        found: ctx.settings.find(&agent.program),
        pool: agent.pool.to_string(),
        placement: ctx.settings.config.placement_of(agent).to_string(),
        default: *name == config.task.agent,
    };
    let rows: Vec<Row> = config.agents.iter().map(row).collect();
    if args.json {
        out::json(&rows)?;
        return Ok(Exit::Completed);
    }
    for row in rows {
        let found = match &row.found {
            Some(path) => path.display().to_string(),
            None => ctx.style.paint(
                Colour::Yellow,
                &format!("{} not found: {}", row.program, how_to_get(&row.program)),
            ),
        };
        let default = if row.default { "*" } else { " " };
        out::line(&format!(
            "{default} {:<14} pool {:<10} placement {:<6} {found}",
            row.name, row.pool, row.placement
        ))?;
    }
    Ok(Exit::Completed)
}
