//! Prompts for the usual flows: words that a person picks in a client, and that tell its model which
//! tools to use in which order.
//! Must not do anything by itself.

use rmcp::model::{GetPromptResult, JsonObject, Prompt, PromptArgument, PromptMessage, Role};
use serde_json::Value;

use super::complete::Of;

/// Of one argument; what is longer belongs into the task's own text.
const ARGUMENT_BYTES_MAX: usize = 64 << 10;

pub(crate) struct Argument {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) required: bool,
    /// What it can be completed with.
    pub(crate) of: Of,
}

pub(crate) struct PromptRow {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) about: &'static str,
    pub(crate) arguments: &'static [Argument],
    pub(crate) make: fn(&Given<'_>) -> Vec<PromptMessage>,
}

/// What was given for the arguments of a prompt.
pub(crate) struct Given<'a>(Vec<(&'static str, &'a str)>);

impl Given<'_> {
    /// Empty where it was left out.
    pub(crate) fn get(&self, name: &str) -> &str {
        let found = self.0.iter().find(|(known, _)| *known == name);
        found.map_or("", |(_, value)| *value)
    }

    /// A line for what is there, nothing for what is not.
    fn line(&self, label: &str, name: &str) -> String {
        match self.get(name) {
            "" => String::new(),
            value => format!("{label}: {value}\n"),
        }
    }
}

const REPO: Argument = Argument {
    name: "repo",
    about: "A configured name, an absolute path or a URL; left out: the one we are in",
    required: false,
    of: Of::Repos,
};
const AGENT: Argument = Argument {
    name: "agent",
    about: "Who is to do it; left out: the configured default",
    required: false,
    of: Of::Agents,
};

pub(crate) const PROMPTS: &[PromptRow] = &[
    PromptRow {
        name: "fix_bug",
        title: "Fix a bug",
        about: "Hand a bug to an agent, watch it, and report what came of it",
        arguments: &[
            Argument {
                name: "bug",
                about: "What is wrong, and how it shows",
                required: true,
                of: Of::Nothing,
            },
            REPO,
            AGENT,
        ],
        make: fix_bug,
    },
    PromptRow {
        name: "review_branch",
        title: "Review a branch",
        about: "Have an agent review what a branch changes, and report its findings",
        arguments: &[
            Argument {
                name: "branch",
                about: "The branch to review",
                required: true,
                of: Of::Branches,
            },
            Argument {
                name: "base",
                about: "Where its commits begin, such as main",
                required: true,
                of: Of::Branches,
            },
            REPO,
            AGENT,
        ],
        make: review_branch,
    },
    PromptRow {
        name: "split_work",
        title: "Split work among agents",
        about: "Cut a piece of work into tasks that can be done side by side, and dispatch them",
        arguments: &[
            Argument {
                name: "goal",
                about: "What is to be there at the end",
                required: true,
                of: Of::Nothing,
            },
            REPO,
        ],
        make: split_work,
    },
    PromptRow {
        name: "watch_and_report",
        title: "Watch and report",
        about: "Follow tasks to their ends and report how each of them ended",
        arguments: &[Argument {
            name: "tasks",
            about: "Ids, with spaces between; left out: all that are open",
            required: false,
            of: Of::Tasks,
        }],
        make: watch,
    },
    PromptRow {
        name: "answer_questions",
        title: "Answer questions",
        about: "Go through the tasks that need something and answer them",
        arguments: &[],
        make: answer_questions,
    },
];

fn user(text: String) -> Vec<PromptMessage> {
    vec![PromptMessage::new_text(Role::User, text)]
}

fn fix_bug(given: &Given<'_>) -> Vec<PromptMessage> {
    let (bug, repo, agent) = (
        given.get("bug"),
        given.line("repo", "repo"),
        given.line("agent", "agent"),
    );
    user(format!(
        "Have this bug fixed by an agent:\n\n{bug}\n\n{repo}{agent}\n\
         1. Call the tool `dispatch` with plan \"bug-fix\". As `task`, say all that the agent has to \
         know: it sees nothing of our conversation.\n\
         2. Call `wait` until it is done. If it asks something that you know, use `answer`; else ask \
         me.\n\
         3. Read dispatch://tasks/ID/diff and tell me in a few sentences what was changed, whether the \
         checks passed (`verified`), and the command that brings it in: `dispatch apply ID`."
    ))
}

fn review_branch(given: &Given<'_>) -> Vec<PromptMessage> {
    let (branch, base) = (given.get("branch"), given.get("base"));
    let (repo, agent) = (given.line("repo", "repo"), given.line("agent", "agent"));
    user(format!(
        "Have branch {branch} reviewed, from {base} on.\n{repo}{agent}\n\
         1. Call the tool `dispatch` with branch \"{branch}\", review_base \"{base}\" and expects \
         \"review\".\n\
         2. Call `wait` until it is done, then `show`.\n\
         3. Tell me the verdict and each finding with its file and line, the worst first. A review that \
         failed is no approval."
    ))
}

fn split_work(given: &Given<'_>) -> Vec<PromptMessage> {
    let (goal, repo) = (given.get("goal"), given.line("repo", "repo"));
    user(format!(
        "This is to be done by agents that work side by side:\n\n{goal}\n\n{repo}\n\
         1. Cut it into tasks that touch different files as far as possible. Show me the list first.\n\
         2. `dispatch` each of them, with `after` where one needs another's end.\n\
         3. `wait` for all, answer what they ask, and tell me for each how it ended and what it changed."
    ))
}

fn watch(given: &Given<'_>) -> Vec<PromptMessage> {
    let tasks = match given.get("tasks") {
        "" => "all open tasks (the tool `list` with open: true)".to_owned(),
        tasks => format!("these tasks: {tasks}"),
    };
    user(format!(
        "Follow {tasks}. Call `wait` again and again until all of them are done. Then tell me for each \
         its state, its reason, whether it is verified, and what needs me: a question with its text, a \
         failure with its cause."
    ))
}

fn answer_questions(_: &Given<'_>) -> Vec<PromptMessage> {
    user(
        "Call the tool `list` with states [\"blocked\"], and `list` with open: true for tasks whose \
         `asks` are not empty. For each, show me the question or what its agent wants to do, with your \
         proposal, and wait for my word. Then use `answer`."
            .to_owned(),
    )
}

impl PromptRow {
    pub(crate) fn prompt(&self) -> Prompt {
        let arguments = self.arguments.iter().map(|argument| {
            PromptArgument::new(argument.name)
                .with_description(argument.about)
                .with_required(argument.required)
        });
        let arguments: Vec<PromptArgument> = arguments.collect();
        let arguments = (!arguments.is_empty()).then_some(arguments);
        Prompt::new(self.name, Some(self.about), arguments).with_title(self.title)
    }

    /// # Errors
    /// When an argument is missing, unknown or no text; in words for whoever called.
    pub(crate) fn get(&self, arguments: Option<&JsonObject>) -> Result<GetPromptResult, String> {
        let mut given = Vec::new();
        for (name, value) in arguments.into_iter().flatten() {
            let known = self.arguments.iter().find(|known| known.name == name);
            let known = known.ok_or_else(|| format!("prompt {} takes no {name}", self.name))?;
            let Value::String(text) = value else {
                return Err(format!("{name} is no text"));
            };
            if text.len() > ARGUMENT_BYTES_MAX {
                return Err(format!("{name} has more than {ARGUMENT_BYTES_MAX} bytes"));
            }
            given.push((known.name, text.as_str()));
        }
        let given = Given(given);
        let missing =
            |argument: &&Argument| argument.required && given.get(argument.name).trim().is_empty();
        if let Some(argument) = self.arguments.iter().find(missing) {
            return Err(format!("prompt {} needs {}", self.name, argument.name));
        }
        Ok(GetPromptResult::new((self.make)(&given)).with_description(self.about))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn get(name: &str, arguments: &Value) -> Result<String, String> {
        let row = PROMPTS.iter().find(|row| row.name == name).unwrap();
        let got = row.get(arguments.as_object())?;
        Ok(serde_json::to_string(&got.messages).unwrap())
    }

    #[test]
    fn prompts_take_what_they_say_and_nothing_else() {
        let told = get("fix_bug", &json!({"bug": "it hangs", "repo": "api"})).unwrap();
        assert!(
            told.contains("it hangs") && told.contains("repo: api"),
            "{told}"
        );
        assert!(!told.contains("agent: "), "{told}");
        assert!(
            get("fix_bug", &json!({}))
                .unwrap_err()
                .contains("needs bug")
        );
        assert!(get("fix_bug", &json!({"bug": " "})).is_err());
        assert!(get("fix_bug", &json!({"bug": 1})).is_err());
        assert!(
            get("fix_bug", &json!({"bug": "x", "bag": "y"}))
                .unwrap_err()
                .contains("bag")
        );
        assert!(get("answer_questions", &Value::Null).is_ok());
    }

    /// A prompt that names a tool or an argument that is not there would lead a model astray.
    #[test]
    fn prompts_name_tools_that_exist() {
        let tools: Vec<&str> = crate::mcp::own::TOOLS.iter().map(|row| row.name).collect();
        for row in PROMPTS {
            let all = row
                .arguments
                .iter()
                .map(|a| (a.name.to_owned(), Value::from("x")));
            let got = row.get(Some(&all.collect())).unwrap();
            let text = serde_json::to_string(&got.messages).unwrap();
            let quoted = text.split('`').skip(1).step_by(2);
            let words = quoted.filter(|word| word.chars().all(|c| c.is_ascii_lowercase()));
            let known = ["task", "verified", "after", "asks"];
            for word in words.filter(|word| !known.contains(word)) {
                assert!(tools.contains(&word), "{}: {word}", row.name);
            }
        }
    }
}
