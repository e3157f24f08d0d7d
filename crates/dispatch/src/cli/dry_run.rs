//! `dispatch run --dry-run`: what a task would be, shown.
//! Must not start an engine.

use dispatch_core::task::TaskSpec;

use super::{Ctx, error::Result, exit::Exit, out, style::clean_text};
use crate::{api::request::Attach, plan::plan};

pub(crate) fn run(ctx: &Ctx, spec: &TaskSpec, files: &[Attach], json: bool) -> Result<Exit> {
    let plan = plan(&ctx.settings, spec, files)?;
    if json {
        out::json(&plan)?;
        return Ok(Exit::Completed);
    }
    let base = match &plan.base {
        Some(base) => format!("{}, now {base}", plan.from),
        None => format!("{}, which is not known before it is fetched", plan.from),
    };
    let takes = plan.takes.join(", ");
    for (name, value) in [
        ("title", plan.title.as_str()),
        ("repo", &plan.repo),
        ("from", &base),
        ("branch", &plan.branch),
        ("workspace", &plan.workspace_name),
        ("directory", &plan.workspace_dir.to_string_lossy()),
        ("agent", &plan.agent),
        ("argv", &plan.argv.join(" ")),
        ("takes", &takes),
        ("pool", &format!("{} ({} slots)", plan.pool, plan.slots)),
        ("placement", &plan.placement),
        ("fence", &plan.would_enforce),
        ("prompt", &plan.prompt),
    ] {
        if !value.is_empty() {
            let value = clean_text(value).replace('\n', "\n             ");
            out::line(&format!("  {name:<10} {value}"))?;
        }
    }
    out::line("nothing was started, and nothing was written")?;
    Ok(Exit::Completed)
}
