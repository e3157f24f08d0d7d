//! What a typed line means: words for the agent, an answer to what it asks, or a command.
//! Must not carry anything out.

use std::path::PathBuf;

use dispatch_core::{ask::AskId, message::MessageId, task::Effort};

use crate::cli::{attach::Tune, run::effort};

/// Commands with what they do, for `/help`.
pub(super) const HELP: &[(&str, &str)] = &[
    ("/stop [kill]", "ends the run; the work so far is kept"),
    (
        "/resume [AGENT]",
        "goes on without anything new to say, perhaps by another agent",
    ),
    (
        "/model NAME [EFFORT]",
        "another model, from your next message on",
    ),
    (
        "/effort LEVEL",
        "think harder, or less, from your next message on",
    ),
    (
        "/attach PATH",
        "a file, with your next message; /attach none leaves them here",
    ),
    (
        "/compact-later",
        "makes its conversation shorter before its next turn",
    ),
    ("/queue", "what waits to be heard"),
    ("/unsay N", "takes message N back"),
    (
        "/allow [N]",
        "what the agent asks permission for; y does the same",
    ),
    ("/deny [N] [WHY]", "n, or n WHY, does the same"),
    ("/diff", "what the task changed"),
    (
        "/apply [yes]",
        "brings the result into your repository, or your directory",
    ),
    ("/detach", "leaves, and the task goes on; so does ctrl-d"),
    ("//...", "says something that begins with a slash"),
];

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Word {
    Say(String),
    /// `None`: the one that has waited longest.
    Permit {
        ask: Option<AskId>,
        allow: bool,
        /// The same again, too.
        always: bool,
        why: Option<String>,
    },
    Stop {
        kill: bool,
    },
    Resume {
        agent: Option<String>,
    },
    Tune(Tune),
    Attach(PathBuf),
    AttachNone,
    Queue,
    Unsay(MessageId),
    CompactLater,
    Diff,
    Apply {
        yes: bool,
    },
    Detach,
    Help,
}

/// `asked`: the agent waits for a permission, so that `y` is no message.
///
/// # Errors
/// What is wrong with a command, as a fragment.
pub(super) fn parse(text: &str, asked: bool) -> Result<Word, String> {
    if let Some(said) = text.strip_prefix("//") {
        return Ok(Word::Say(format!("/{said}")));
    }
    let line = text.trim();
    if let Some((name, rest)) = command(line) {
        return of_command(name, rest);
    }
    if asked && let Some(word) = answer(line) {
        return Ok(word);
    }
    Ok(Word::Say(text.to_owned()))
}

/// A path begins with a slash, too: a command is one word of letters.
fn command(line: &str) -> Option<(&str, &str)> {
    let line = line.strip_prefix('/')?;
    let (name, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let letters = |name: &str| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-');
    (!name.is_empty() && letters(name)).then_some((name, rest.trim()))
}

fn answer(line: &str) -> Option<Word> {
    let (word, why) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let why = Some(why.trim().to_owned()).filter(|why| !why.is_empty());
    let permit = |allow, always, why| {
        Some(Word::Permit {
            ask: None,
            allow,
            always,
            why,
        })
    };
    match (word, &why) {
        ("y" | "Y" | "yes", None) => permit(true, false, None),
        ("a" | "A" | "always", None) => permit(true, true, None),
        ("n" | "N" | "no", _) => permit(false, false, why),
        _ => None,
    }
}

fn of_command(name: &str, rest: &str) -> Result<Word, String> {
    let nothing = |word: Word| match rest {
        "" => Ok(word),
        _ => Err(format!("use /{name}: nothing goes with it")),
    };
    match name {
        "stop" => match rest {
            "" => Ok(Word::Stop { kill: false }),
            "kill" => Ok(Word::Stop { kill: true }),
            _ => Err("use /stop: write /stop or /stop kill".to_owned()),
        },
        "resume" => Ok(Word::Resume {
            agent: Some(rest.to_owned()).filter(|agent| !agent.is_empty()),
        }),
        "model" => model(rest),
        "effort" => Ok(Word::Tune(Tune {
            model: None,
            effort: Some(level(rest)?),
        })),
        "attach" => match rest {
            "" => Err("use /attach: write /attach PATH, or /attach none".to_owned()),
            "none" => Ok(Word::AttachNone),
            path => Ok(Word::Attach(path.into())),
        },
        "queue" => nothing(Word::Queue),
        "unsay" => {
            let message = rest.parse::<MessageId>();
            message.map(Word::Unsay).map_err(|error| error.to_string())
        }
        "allow" => {
            let (ask, rest) = ask(rest);
            match rest {
                "" => Ok(Word::Permit {
                    ask,
                    allow: true,
                    always: false,
                    why: None,
                }),
                _ => Err("use /allow: only the number of an ask goes with it".to_owned()),
            }
        }
        "deny" => {
            let (ask, rest) = ask(rest);
            Ok(Word::Permit {
                ask,
                allow: false,
                always: false,
                why: Some(rest.to_owned()).filter(|why| !why.is_empty()),
            })
        }
        "compact-later" => nothing(Word::CompactLater),
        "diff" => nothing(Word::Diff),
        "apply" => match rest {
            "" => Ok(Word::Apply { yes: false }),
            "yes" => Ok(Word::Apply { yes: true }),
            _ => Err("use /apply: write /apply or /apply yes".to_owned()),
        },
        "detach" | "quit" | "exit" => nothing(Word::Detach),
        "help" => nothing(Word::Help),
        _ => Err(format!(
            "use /{name}: there is no such command; /help lists them, and //{name} says it to the agent"
        )),
    }
}

fn model(rest: &str) -> Result<Word, String> {
    let words: Vec<&str> = rest.split_whitespace().collect();
    let (model, effort) = match words[..] {
        [model] => (model, None),
        [model, effort] => (model, Some(level(effort)?)),
        _ => return Err("use /model: write /model NAME or /model NAME EFFORT".to_owned()),
    };
    Ok(Word::Tune(Tune {
        model: Some(model.to_owned()),
        effort,
    }))
}

fn level(word: &str) -> Result<Effort, String> {
    effort(word).map_err(|there| format!("use effort {word:?}: {there}"))
}

/// A number in front of the rest.
fn ask(rest: &str) -> (Option<AskId>, &str) {
    let (first, more) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    match first.parse() {
        Ok(ask) => (Some(ask), more.trim()),
        Err(_) => (None, rest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str, asked: bool) -> Option<String> {
        match parse(text, asked) {
            Ok(Word::Say(text)) => Some(text),
            Ok(_) | Err(_) => None,
        }
    }

    #[test]
    fn what_is_no_command_is_said_as_it_is() {
        for text in [
            "use UTC",
            "  two\nlines ",
            "y",
            "/etc/passwd is odd",
            "no /stop",
            "/ x",
        ] {
            assert_eq!(said(text, false).as_deref(), Some(text));
        }
        assert_eq!(said("//stop it", false).as_deref(), Some("/stop it"));
        assert_eq!(
            said("yes, but with UTC", true).as_deref(),
            Some("yes, but with UTC")
        );
        assert_eq!(said("nobody", true).as_deref(), Some("nobody"));
    }

    #[test]
    fn an_ask_is_answered_in_a_word() {
        let permit = |ask, allow, always, why: Option<&str>| {
            Ok(Word::Permit {
                ask,
                allow,
                always,
                why: why.map(str::to_owned),
            })
        };
        assert_eq!(parse("y", true), permit(None, true, false, None));
        assert_eq!(parse(" yes ", true), permit(None, true, false, None));
        assert_eq!(parse("always", true), permit(None, true, true, None));
        assert_eq!(parse("n", true), permit(None, false, false, None));
        assert_eq!(
            parse("no the tests are mine", true),
            permit(None, false, false, Some("the tests are mine"))
        );
        assert_eq!(
            parse("/allow 2", true),
            permit(Some(AskId(2)), true, false, None)
        );
        assert_eq!(
            parse("/deny 2 not now", false),
            permit(Some(AskId(2)), false, false, Some("not now"))
        );
        assert_eq!(
            parse("/deny not now", true),
            permit(None, false, false, Some("not now"))
        );
        assert!(parse("/allow 2 please", true).is_err());
    }

    #[test]
    fn commands() {
        let tune = |model: Option<&str>, effort| {
            Ok(Word::Tune(Tune {
                model: model.map(str::to_owned),
                effort,
            }))
        };
        assert_eq!(parse("/compact-later", false), Ok(Word::CompactLater));
        assert_eq!(parse("/stop", false), Ok(Word::Stop { kill: false }));
        assert_eq!(parse("/stop kill", false), Ok(Word::Stop { kill: true }));
        assert_eq!(parse("/model opus", false), tune(Some("opus"), None));
        assert_eq!(
            parse("/model opus high", false),
            tune(Some("opus"), Some(Effort::High))
        );
        assert_eq!(parse("/effort low", false), tune(None, Some(Effort::Low)));
        let path = Word::Attach("two words.png".into());
        assert_eq!(parse("/attach two words.png ", false), Ok(path));
        assert_eq!(parse("/attach none", false), Ok(Word::AttachNone));
        assert_eq!(parse("/unsay 3", false), Ok(Word::Unsay(MessageId(3))));
        assert_eq!(parse("/resume", false), Ok(Word::Resume { agent: None }));
        assert_eq!(parse(" /detach ", false), Ok(Word::Detach));
        for (bad, told) in [
            ("/stop now", "/stop kill"),
            ("/model", "NAME"),
            ("/model a high b", "NAME"),
            ("/model a hard", "there are none"),
            ("/effort", "there are none"),
            ("/unsay x", "a number"),
            ("/attach", "/attach PATH"),
            ("/queue x", "nothing goes with it"),
            ("/compact-now", "no such command"),
        ] {
            let error = parse(bad, false).unwrap_err();
            assert!(error.contains(told), "{bad}: {error}");
        }
    }

    #[test]
    fn the_help_names_every_command() {
        for (name, _) in HELP {
            let word = name.split(' ').next().unwrap();
            let known = parse(&format!("{word} 1"), false);
            let known = known.is_ok() || !known.unwrap_err().contains("no such command");
            assert!(known || word.starts_with("//"), "{word}");
        }
    }
}
