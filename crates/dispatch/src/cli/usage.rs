//! `dispatch usage`: what runs have spent, by task, pool and day, and what is left of the keys of models,
//! as far as their agents told.
//! Must not start an engine, and must not guess what was not told.

use std::collections::BTreeMap;

use dispatch_core::{gate::MicroUsd, spending::Spending};
use jiff::Timestamp;

use super::{
    Ctx,
    error::{CliError, Result},
    exit::Exit,
    out,
    style::{Colour, clean_line, cut, span},
    tasks,
};
use crate::{
    api::overview::{Key, Row, Spent},
    client::start,
    settings::Settings,
};

/// Show tokens and money by day, pool and task, and what is left of the keys of models.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  dispatch usage\n  dispatch usage --json | jq .days")]
pub(crate) struct Args {
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// Of what a provider says.
const REASON_CHARS: usize = 80;

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
    if sums.tasks.is_empty() && sums.keys.is_empty() {
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
        if rows.is_empty() {
            continue;
        }
        out::line(&ctx.style.paint(Colour::Bold, head))?;
        for row in rows {
            let title = titles.get(row.name.as_str()).filter(|_| head == "tasks");
            out::line(&line(row, title.copied()))?;
        }
    }
    if !sums.keys.is_empty() {
        out::line(&ctx.style.paint(Colour::Bold, "keys"))?;
        let now = Timestamp::now();
        for line in sums.keys.iter().flat_map(|key| key_lines(key, now)) {
            out::line(&line)?;
        }
    }
    Ok(Exit::Completed)
}

/// A key and its limits, with the age of what is said: nobody is asked for it.
fn key_lines(key: &Key, now: Timestamp) -> Vec<String> {
    let ago = |at: &str| {
        let at = at.parse::<Timestamp>().unwrap_or(now);
        let seconds = now.as_second().saturating_sub(at.as_second());
        format!("{} ago", span(seconds.try_into().unwrap_or_default()))
    };
    let state = match &key.out {
        None => "in use".to_owned(),
        Some(out) => {
            let until = match &out.until {
                Some(until) => format!("out until {until}"),
                None => "refused".to_owned(),
            };
            let reason = cut(&clean_line(&out.reason), REASON_CHARS);
            format!("{until}, said {}: {reason}", ago(&out.since))
        }
    };
    let mut lines = vec![format!("  {:<12} {state}", cut(&clean_line(&key.name), 12))];
    let told = key.told_at.as_deref().map(ago).unwrap_or_default();
    lines.extend(key.windows.iter().map(|window| {
        let number = |number: Option<u64>| number.map_or("?".to_owned(), |n| n.to_string());
        let (left, limit) = (number(window.remaining), number(window.limit));
        let name = cut(&clean_line(&window.name), REASON_CHARS);
        let resets = window.resets_at.as_ref();
        let resets = resets
            .map(|at| format!(", resets {at}"))
            .unwrap_or_default();
        format!("    {name}: {left} of {limit} left{resets} (cached, {told})")
    }));
    lines
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
    use crate::api::overview::{KeyOut, Window};

    #[test]
    fn what_is_known_of_a_key_has_its_age() {
        let key = Key {
            name: "main".into(),
            out: Some(KeyOut {
                since: "2026-11-21T10:00:00Z".into(),
                until: Some("2026-11-21T11:00:00Z".into()),
                reason: "used up".into(),
            }),
            windows: vec![Window {
                name: "tokens".into(),
                limit: Some(100),
                remaining: Some(7),
                resets_at: None,
            }],
            told_at: Some("2026-11-21T09:59:00Z".into()),
        };
        let lines = key_lines(&key, "2026-11-21T10:02:00Z".parse().unwrap());
        assert_eq!(
            lines,
            [
                "  main         out until 2026-11-21T11:00:00Z, said 2m00s ago: used up",
                "    tokens: 7 of 100 left (cached, 3m00s ago)",
            ]
        );
    }

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
