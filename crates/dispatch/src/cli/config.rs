//! `dispatch config`: what is in force and where it comes from.

use super::{Ctx, error::Result, exit::Exit, out};

/// Show or check the configuration.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  dispatch config show --sources\n  dispatch config check")]
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
}

pub(crate) fn run(ctx: &Ctx, args: &Args) -> Result<Exit> {
    let settings = &ctx.settings;
    match args.what {
        // Whoever comes this far has settings without a problem.
        What::Check => out::line(&format!("ok: {}", settings.paths.config.display()))?,
        What::Show { json: true, .. } => {
            let row = |one: &dispatch_core::config::Sourced| serde_json::json!({"key": one.key, "value": one.value, "source": one.source});
            out::json(&settings.sourced.iter().map(row).collect::<Vec<_>>())?;
        }
        What::Show { sources, .. } => {
            for one in &settings.sourced {
                let source = if sources {
                    format!("  # {}", one.source)
                } else {
                    String::new()
                };
                out::line(&format!("{} = {}{source}", one.key, one.value))?;
            }
            if sources {
                out::line(&format!("# config {}", settings.paths.config.display()))?;
                out::line(&format!("# data   {}", settings.paths.data.display()))?;
                out::line(&format!("# socket {}", settings.paths.socket().display()))?;
            }
        }
    }
    Ok(Exit::Completed)
}
