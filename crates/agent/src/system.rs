//! The system prompt: who it is, what it may use, and how. The same bytes for the whole of a
//! conversation, because every provider's cache begins with it.
//! Must not name a tool that is not granted, and must not hold what may change: what was found where
//! it works comes from the record.

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

#[derive(Clone, Copy, Debug)]
pub(crate) struct Parts<'a> {
    /// Instead of our own.
    pub(crate) identity: Option<&'a str>,
    pub(crate) tools: &'a [Granted],
    /// What it was summoned as, and whom it may summon. Empty: nothing.
    pub(crate) family: &'a str,
    /// Of where it works, as the record has it.
    pub(crate) around: &'a str,
}

pub(crate) fn prompt(parts: &Parts<'_>) -> String {
    let Parts {
        identity,
        tools,
        family,
        around,
    } = *parts;
    let has = |name: &str| tools.iter().any(|tool| tool.name() == name);
    let mut paragraphs = vec![identity.unwrap_or(IDENTITY).trim().to_owned()];
    if !tools.is_empty() {
        let lines: Vec<String> = tools
            .iter()
            .map(|tool| format!("- {}: {}", tool.name(), tool.line()))
            .collect();
        paragraphs.push(format!("Your tools:\n{}", lines.join("\n")));
    }
    paragraphs.push(CONDUCT.to_owned());
    if has("todo") {
        paragraphs.push(TODO.to_owned());
    }
    if !family.is_empty() {
        paragraphs.push(family.to_owned());
    }
    // What others wrote comes last, behind all words of ours.
    if !around.is_empty() {
        paragraphs.push(around.to_owned());
    }
    paragraphs.join("\n\n")
}

#[cfg(test)]
mod tests {
    use dispatch_core::web::WebTable;

    use super::*;
    use crate::tools::{TOOLS, granted};

    #[test]
    fn only_what_is_granted_is_named_and_the_bytes_stay() {
        for names in [&["read_file"][..], &["todo", "run_shell"]] {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let few = granted(Some(&names), &WebTable::default()).unwrap();
            let parts = Parts {
                identity: None,
                tools: &few,
                family: "",
                around: "Working directory: /w",
            };
            let text = prompt(&parts);
            let is_granted = |tool: &str| few.iter().any(|each| each.name() == tool);
            for tool in TOOLS {
                let named = text.contains(&format!("- {}:", tool.name));
                assert_eq!(named, is_granted(tool.name), "{tool:?}");
            }
            let guided = text.contains("exactly one item in progress");
            assert_eq!(guided, is_granted("todo"));
            assert!(text.ends_with("\n\nWorking directory: /w"), "{text}");
            assert_eq!(text, prompt(&parts));
        }
        let own = prompt(&Parts {
            identity: Some("You are Ada."),
            tools: &[],
            family: "",
            around: "",
        });
        assert!(
            own.starts_with("You are Ada.\n\n") && !own.contains("todo"),
            "{own}"
        );
    }
}
