//! `dispatch agents`: what is configured, and how to get a program that is not there.

use std::path::Path;

use super::{Ctx, error::Result, exit::Exit, out, style::Colour};
use crate::api::overview::Agent;

/// List the configured agents.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  dispatch agents\n  dispatch agents --json")]
pub(crate) struct Args {
    /// One JSON array
    #[arg(long)]
    json: bool,
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
        Some("gemini") => "npm install -g @google/gemini-cli, then set GEMINI_API_KEY",
        Some("opencode") => "npm install -g opencode-ai, then set a provider's key",
        Some("claude-agent-acp") => "npm install -g @agentclientprotocol/claude-agent-acp",
        Some("codex-acp") => "npm install -g @zed-industries/codex-acp",
        Some("qwen") => "npm install -g @qwen-code/qwen-code",
        Some("copilot") => "npm install -g @github/copilot",
        Some("acp") => "name its command with the task: --agent \"acp:COMMAND ARGUMENT\"",
        _ => "install it, or set `program` in its table to where it lies",
    }
}

pub(crate) fn run(ctx: &Ctx, args: &Args) -> Result<Exit> {
    let settings = &ctx.settings;
    let rows = Agent::all(&settings.config, |program| settings.find(program));
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
