//! `dispatch usage`: what runs have spent, by task, pool and day, as far as their agents told.
//! Must not start an engine, and must not guess what was not told.

use std::collections::BTreeMap;

use dispatch_core::{gate::MicroUsd, spending::Spending};

use super::{
    Ctx,
    error::{CliError, Result},
    exit::Exit,
    out,
    style::{Colour, clean_line, cut},
    tasks,
};
use crate::{
    api::overview::{Row, Spent},
    client::start,
    settings::Settings,
};

/// Show tokens and money by day, pool and task.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  dispatch usage\n  dispatch usage --json | jq .days")]
pub(crate) struct Args {
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// From the engine that lives, else from the log.
async fn spent(settings: &Settings) -> Result<Spent> {
    if let Some(client) = start::living(settings)? {
        match client.get("/v1/usage").await {
            Ok(spent) => return Ok(spent),
            // It has just left, or is just coming: the log knows.
            Err(error) if error.nothing_happened() => {}
            Err(error) => return Err(error.into()),
        }
    }
    let Some(reader) = tasks::reader(settings)? else {
        return Ok(Spent::default());
    };
    let state = reader.state();
    let state = state.map_err(|error| CliError::failed("read the log", &error))?;
    Ok(Spent::from(&Spending::of(&state)))
}

pub(crate) async fn run(ctx: &Ctx, args: &Args) -> Result<Exit> {
    let sums = spent(&ctx.settings).await?;
    if args.json {
        out::json(&sums)?;
        return Ok(Exit::Completed);
    }
    if sums.tasks.is_empty() {
        out::line("nothing has run yet")?;
        return Ok(Exit::Completed);
    }
    let all = tasks::all(&ctx.settings).await?;
    let titles: BTreeMap<&str, &str> = all
        .iter()
        .map(|task| (task.short.as_str(), task.title.as_str()))
        .collect();
    for (head, rows) in [
        ("days", &sums.days),
        ("pools", &sums.pools),
        ("tasks", &sums.tasks),
    ] {
        out::line(&ctx.style.paint(Colour::Bold, head))?;
        for row in rows {
            let title = titles.get(row.name.as_str()).filter(|_| head == "tasks");
            out::line(&line(row, title.copied()))?;
        }
    }
    Ok(Exit::Completed)
}

fn line(row: &Row, title: Option<&str>) -> String {
    let mut line = format!(
        "  {:<12} {:>4} runs  ${:<9} {:>10} in {:>9} out {:>10} cached",
        cut(&clean_line(&row.name), 12),
        row.runs,
        MicroUsd::try_from(row.cost_usd)
            .unwrap_or_default()
            .to_string(),
        row.input_tokens,
        row.output_tokens,
        row.cache_read_tokens.saturating_add(row.cache_write_tokens),
    );
    if row.untold > 0 {
        line.push_str(&format!("  ({} told nothing)", row.untold));
    }
    if let Some(title) = title {
        line.push_str(&format!("  {}", cut(&clean_line(title), 40)));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_told_is_said() {
        let row = Row {
            name: "1970-01-01".into(),
            runs: 3,
            untold: 1,
            cost_usd: 0.3,
            ..Row::default()
        };
        let line = line(&row, None);
        assert!(
            line.contains("$0.30") && line.contains("(1 told nothing)"),
            "{line}"
        );
    }
}
