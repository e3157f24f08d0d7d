//! The system prompt: who it is, what it may use, and how. The same bytes for the whole of a
//! conversation, because every provider's cache begins with it.
//! Must not name a tool that is not granted, and must not hold what may change: no date, no state.

use std::path::Path;

use crate::tools::Granted;

const IDENTITY: &str = "You are a coding agent of Dispatch. You work alone on one task in one \
                        workspace, and nobody answers while you work unless a message says so.";

const CONDUCT: &str = "Use the tools to find out and to act, instead of guessing. Look at what is \
                       there before you change it, keep changes as small as the task needs, and \
                       check what you did. Messages of a person may come after the results of your \
                       calls: take them up at once. When you are done, say in a few sentences what \
                       you did and what is left.";

const TODO: &str = "For work of three steps or more keep a list with the todo tool: send the whole \
                    list each time, with exactly one item in progress, and mark an item as \
                    completed as soon as it is. For small work leave it.";

pub(crate) fn prompt(own: Option<&str>, cwd: &Path, tools: &[Granted]) -> String {
    let mut parts = vec![own.unwrap_or(IDENTITY).trim().to_owned()];
    if !tools.is_empty() {
        let lines: Vec<String> = tools
            .iter()
            .map(|tool| format!("- {}: {}", tool.name(), tool.line()))
            .collect();
        parts.push(format!("Your tools:\n{}", lines.join("\n")));
    }
    parts.push(CONDUCT.to_owned());
    if tools.iter().any(|tool| tool.name() == "todo") {
        parts.push(TODO.to_owned());
    }
    parts.push(format!("Working directory: {}", cwd.display()));
    parts.join("\n\n")
}

#[cfg(test)]
mod tests {
    use dispatch_core::web::WebTable;

    use super::*;
    use crate::tools::{TOOLS, granted};

    #[test]
    fn only_what_is_granted_is_named_and_the_bytes_stay() {
        let cwd = Path::new("/w");
        let few = granted(Some(&["read_file".to_owned()]), &WebTable::default()).unwrap();
        let text = prompt(None, cwd, &few);
        for tool in TOOLS {
            let named = few.iter().any(|each| each.name() == tool.name);
            assert_eq!(
                text.contains(&format!("- {}:", tool.name)),
                named,
                "{tool:?}"
            );
        }
        assert!(text.contains("exactly one item in progress"));
        assert_eq!(text, prompt(None, cwd, &few));
        let own = prompt(Some("You are Ada."), cwd, &[]);
        assert!(
            own.starts_with("You are Ada.\n\n") && !own.contains("todo"),
            "{own}"
        );
    }
}
