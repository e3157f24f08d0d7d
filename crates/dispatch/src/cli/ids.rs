//! Which task a person means by a prefix, as in git.
//! Must not pick one of several.

use super::{
    error::{CliError, Result},
    style::clean_line,
};
use crate::api::task::Task;

const LISTED_MAX: usize = 10;

fn listed<'a>(tasks: impl Iterator<Item = &'a Task>) -> String {
    let row = |task: &Task| {
        format!(
            "\n  {}  {}  {}",
            task.short,
            task.state,
            clean_line(&task.title)
        )
    };
    tasks.take(LISTED_MAX).map(row).collect()
}

pub(crate) fn resolve<'a>(tasks: &'a [Task], prefix: &str) -> Result<&'a Task> {
    let wanted = prefix.to_ascii_lowercase();
    let hex = !wanted.is_empty() && wanted.bytes().all(|b| b.is_ascii_hexdigit());
    let hits: Vec<&Task> = if hex {
        tasks
            .iter()
            .filter(|task| task.id.starts_with(&wanted))
            .collect()
    } else {
        Vec::new()
    };
    match hits[..] {
        [one] => Ok(one),
        [] => {
            let open = listed(tasks.iter().filter(|task| task.is_open()));
            let error = CliError::usage(format!("find task {prefix:?}: there is none"));
            Err(if open.is_empty() {
                error.hint("no task is open; `dispatch list --all` shows every one")
            } else {
                error.hint(format!("open tasks:{open}"))
            })
        }
        _ => {
            let several = listed(hits.iter().copied());
            Err(
                CliError::usage(format!("find task {prefix:?}: it may be any of{several}"))
                    .hint("give more digits"),
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use dispatch_core::{outcome::Outcome, run::RunState};

    use super::*;
    use crate::{api::task::tests::view, cli::exit::Exit};

    #[test]
    fn prefixes_are_unique_or_refused() {
        let mut tasks: Vec<Task> = [0x3f11 << 48, 0x3f22 << 48, 0xa0 << 56]
            .map(|id| Task::from(&view(id, RunState::Running)))
            .into();
        tasks[2] = Task::from(&view(0xa0 << 56, RunState::Finished(Outcome::Lost)));
        assert_eq!(resolve(&tasks, "A").unwrap().id, tasks[2].id);
        assert_eq!(resolve(&tasks, &tasks[0].id).unwrap().id, tasks[0].id);

        let ambiguous = resolve(&tasks, "3f").unwrap_err();
        assert_eq!(ambiguous.exit, Exit::Usage);
        assert_eq!(
            ambiguous.what.matches("Fix it").count(),
            2,
            "{}",
            ambiguous.what
        );

        let unknown = resolve(&tasks, "77").unwrap_err();
        assert_eq!(
            unknown.hint.unwrap().matches("Fix it").count(),
            2,
            "only open ones"
        );
        assert!(resolve(&tasks, "").is_err() && resolve(&tasks, "xyz").is_err());
    }
}
