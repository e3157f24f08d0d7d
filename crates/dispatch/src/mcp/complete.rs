//! What an argument can be completed with while somebody types it: tasks, repositories, agents.
//! Must not guess: everything comes from what this caller may see.

use rmcp::model::{CompleteResult, CompletionInfo};

use super::door::{Door, Refusal};
use crate::api::{overview::Agent, task::Task};

/// Tasks whose names are offered.
const LOOKED_MAX: usize = 1_000;

/// What an argument is a name of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Of {
    Nothing,
    Tasks,
    Repos,
    Branches,
    Agents,
}

/// The best first, and no more than the protocol lets through.
pub(crate) async fn complete(door: &Door, of: Of, typed: &str) -> Result<CompleteResult, Refusal> {
    let all = match of {
        Of::Nothing => Vec::new(),
        Of::Agents => {
            let agents: Vec<Agent> = door.get("/v1/agents").await?;
            agents.into_iter().map(|agent| agent.name).collect()
        }
        Of::Tasks | Of::Repos | Of::Branches => {
            let (newest, _) = door.tasks("", LOOKED_MAX).await?;
            names(&newest, of)
        }
    };
    let fitting = fitting(all, typed);
    let (total, most) = (fitting.len(), CompletionInfo::MAX_VALUES);
    let values: Vec<String> = fitting.into_iter().take(most).collect();
    let total = u32::try_from(total).ok();
    let more = total.is_some_and(|total| total as usize > values.len());
    let info = CompletionInfo::with_pagination(values, total, more);
    info.map(CompleteResult::new)
        .map_err(|error| Refusal::new(format!("complete it: {error}")))
}

fn names(tasks: &[Task], of: Of) -> Vec<String> {
    let name = |task: &Task| match of {
        Of::Tasks => task.id.clone(),
        Of::Repos => task.repo.clone(),
        Of::Branches => task.branch.clone(),
        Of::Nothing | Of::Agents => String::new(),
    };
    tasks.iter().map(name).collect()
}

/// Each once. What begins with what was typed goes before what only holds it.
fn fitting(all: Vec<String>, typed: &str) -> Vec<String> {
    let typed = typed.to_lowercase();
    let mut begin: Vec<String> = Vec::new();
    let mut hold: Vec<String> = Vec::new();
    for name in all.into_iter().filter(|name| !name.is_empty()) {
        let lower = name.to_lowercase();
        let place = if lower.starts_with(&typed) {
            &mut begin
        } else if lower.contains(&typed) {
            &mut hold
        } else {
            continue;
        };
        if !place.contains(&name) {
            place.push(name);
        }
    }
    begin.append(&mut hold);
    begin
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_begins_so_comes_first_and_each_once() {
        let all = ["web", "api", "Apiary", "my-api", "api", ""].map(str::to_owned);
        let got = fitting(all.to_vec(), "AP");
        assert_eq!(got, ["api", "Apiary", "my-api"]);
        assert_eq!(fitting(all.to_vec(), "").len(), 4);
    }
}
