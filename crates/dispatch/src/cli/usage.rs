//! `dispatch usage`: what runs have spent, by task, pool and day, as far as their agents told.
//! Must not start an engine, and must not guess what was not told.

use std::collections::BTreeMap;

use dispatch_core::{gate::Budget, update::Usage};
use serde::Serialize;

use super::{
    Ctx,
    error::Result,
    exit::Exit,
    out,
    style::{Colour, clean_line, cut},
    tasks,
};
use crate::api::task::{Run, Task};

/// Show tokens and money by day, pool and task.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  dispatch usage\n  dispatch usage --json | jq .days")]
pub(crate) struct Args {
    /// One JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
struct Row {
    name: String,
    runs: u64,
    /// Runs whose agent told nothing: they may have spent, too.
    untold: u64,
    input_tokens: u64,
    output_tokens: u64,
    cache_read_tokens: u64,
    cache_write_tokens: u64,
    cost_usd: f64,
    #[serde(skip)]
    spent: Budget,
}

#[derive(Debug, Default, Serialize)]
struct Sums {
    days: Vec<Row>,
    pools: Vec<Row>,
    tasks: Vec<Row>,
}

impl Row {
    fn add(&mut self, usage: Option<&Usage>) {
        self.runs += 1;
        let Some(usage) = usage else {
            self.untold += 1;
            return;
        };
        for (sum, told) in [
            (&mut self.input_tokens, usage.input_tokens),
            (&mut self.output_tokens, usage.output_tokens),
            (&mut self.cache_read_tokens, usage.cache_read_tokens),
            (&mut self.cache_write_tokens, usage.cache_write_tokens),
        ] {
            *sum = sum.saturating_add(told.unwrap_or(0));
        }
        self.spent = self.spent.plus(Budget::of(usage));
        self.cost_usd = self.spent.usd.into();
    }
}

/// The day of its end, in UTC: when its spending is counted.
fn day(run: &Run) -> Option<&str> {
    run.ended_at.as_deref()?.split('T').next()
}

fn sums(tasks: &[Task]) -> Sums {
    let (mut days, mut pools) = (BTreeMap::new(), BTreeMap::new());
    let mut of_tasks = Vec::new();
    for task in tasks {
        let mut sum = Row {
            name: task.short.clone(),
            ..Row::default()
        };
        // A run that never started has spent nothing.
        for run in task.runs.iter().filter(|run| run.started_at.is_some()) {
            let (Some(day), usage) = (day(run), run.usage.as_ref()) else {
                continue;
            };
            sum.add(usage);
            let of_day: &mut Row = days.entry(day.to_owned()).or_default();
            of_day.add(usage);
            let of_pool: &mut Row = pools.entry(task.pool.clone()).or_default();
            of_pool.add(usage);
        }
        if sum.runs > 0 {
            of_tasks.push(sum);
        }
    }
    let named = |rows: BTreeMap<String, Row>| {
        let row = |(name, row)| Row { name, ..row };
        rows.into_iter().map(row).collect()
    };
    Sums {
        days: named(days),
        pools: named(pools),
        tasks: of_tasks,
    }
}

pub(crate) async fn run(ctx: &Ctx, args: &Args) -> Result<Exit> {
    let all = tasks::all(&ctx.settings).await?;
    let sums = sums(&all);
    if args.json {
        out::json(&sums)?;
        return Ok(Exit::Completed);
    }
    if sums.tasks.is_empty() {
        out::line("nothing has run yet")?;
        return Ok(Exit::Completed);
    }
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
        row.spent.usd.to_string(),
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
    use dispatch_core::run::RunState;

    use super::*;
    use crate::api::task::tests::view;

    #[test]
    fn sums_are_exact_and_what_was_not_told_is_said() {
        let told = |id, usd, tokens| {
            let mut task = Task::from(&view(id, RunState::Running));
            task.runs[0].usage = Some(Usage {
                cost_usd: Some(usd),
                input_tokens: Some(tokens),
                ..Usage::default()
            });
            task
        };
        let untold = Task::from(&view(9, RunState::Running));
        let sums = sums(&[told(1, 0.1, 5), told(2, 0.2, 6), untold]);
        assert_eq!(sums.days.len(), 1);
        let day = &sums.days[0];
        assert_eq!(
            (day.name.as_str(), day.runs, day.untold),
            ("1970-01-01", 3, 1)
        );
        assert_eq!((day.cost_usd, day.input_tokens), (0.3, 11));
        assert_eq!(
            (sums.pools[0].name.as_str(), sums.tasks.len()),
            ("default", 3)
        );
        assert!(line(day, None).contains("(1 told nothing)"));
    }
}
