//! An agent without a model: it follows the script it finds in its prompt, one order a line.
//! Must not do what an agent in its place could not: it reads its prompt on standard input, works in
//! its directory, and speaks on standard output.
//!
//! ```text
//! > say TEXT                  print it
//! > replace FILE OLD => NEW   the first occurrence
//! > write FILE TEXT
//! > ask QUESTION              into BLOCKED.md, and stop, unless the prompt holds an answer
//! > answer-into FILE          write the answer the prompt holds
//! > work SECONDS              be busy for a while, saying so
//! > count FILE                append one line
//! ```

use std::{
    fs::{self, OpenOptions},
    io::{self, Read, Write},
    process::ExitCode,
    thread,
    time::Duration,
};

const PROMPT_BYTES_MAX: u64 = 4 << 20;
const STEP: Duration = Duration::from_millis(200);
const ANSWER_MARK: &str = "The answer:\n\n";

#[derive(Debug, thiserror::Error)]
enum ScriptError {
    #[error("read the prompt: {0}")]
    Prompt(#[source] io::Error),
    #[error("obey `{line}`: {source}")]
    Io {
        line: String,
        #[source]
        source: io::Error,
    },
    #[error("obey `{line}`: {what}")]
    Bad { line: String, what: &'static str },
}

pub(crate) fn usage(to: &mut impl Write) -> ExitCode {
    let text = "dispatch agent --scripted: follows the orders (`> say TEXT` ...) in its prompt on \
                standard input";
    match writeln!(to, "{text}") {
        Ok(()) | Err(_) => ExitCode::from(2),
    }
}

pub(crate) fn main(input: &mut impl Read, output: &mut impl Write) -> ExitCode {
    match follow(input, output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => match writeln!(output, "scripted agent: {error}") {
            Ok(()) | Err(_) => ExitCode::FAILURE,
        },
    }
}

fn follow(input: &mut impl Read, output: &mut impl Write) -> Result<(), ScriptError> {
    let mut prompt = String::new();
    input
        .take(PROMPT_BYTES_MAX)
        .read_to_string(&mut prompt)
        .map_err(ScriptError::Prompt)?;
    let answer = prompt.split_once(ANSWER_MARK).map(|(_, rest)| {
        let end = rest.find("\n\n").unwrap_or(rest.len());
        rest[..end].trim().to_owned()
    });
    for line in prompt
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("> "))
    {
        if obey(line, answer.as_deref(), output)? == Next::Stop {
            break;
        }
    }
    Ok(())
}

#[derive(PartialEq, Eq)]
enum Next {
    Go,
    Stop,
}

fn obey(line: &str, answer: Option<&str>, output: &mut impl Write) -> Result<Next, ScriptError> {
    let failed = |source| ScriptError::Io {
        line: line.to_owned(),
        source,
    };
    let bad = |what| ScriptError::Bad {
        line: line.to_owned(),
        what,
    };
    let (order, rest) = line.split_once(' ').unwrap_or((line, ""));
    let (file, text) = rest.split_once(' ').unwrap_or((rest, ""));
    match order {
        "say" => writeln!(output, "{rest}").map_err(failed)?,
        "write" => fs::write(file, format!("{text}\n")).map_err(failed)?,
        "replace" => {
            let (old, new) = text
                .split_once(" => ")
                .ok_or_else(|| bad("it has no ` => `"))?;
            let before = fs::read_to_string(file).map_err(failed)?;
            if !before.contains(old) {
                return Err(bad("the file does not hold that text"));
            }
            fs::write(file, before.replacen(old, new, 1)).map_err(failed)?;
            writeln!(output, "edited {file}: {old} -> {new}").map_err(failed)?;
        }
        "ask" if answer.is_none() => {
            fs::write("BLOCKED.md", format!("{rest}\n")).map_err(failed)?;
            writeln!(output, "I have a question.").map_err(failed)?;
            return Ok(Next::Stop);
        }
        "ask" => {}
        "answer-into" => {
            let answer = answer.ok_or_else(|| bad("the prompt holds no answer"))?;
            fs::write(file, format!("{answer}\n")).map_err(failed)?;
            writeln!(output, "wrote {file}: {answer}").map_err(failed)?;
        }
        "count" => {
            let mut counter = OpenOptions::new()
                .create(true)
                .append(true)
                .open(file)
                .map_err(failed)?;
            writeln!(counter, "ran").map_err(failed)?;
        }
        "work" => {
            let steps = rest
                .parse::<f64>()
                .map_err(|_| bad("not a number of seconds"))?
                * 5.0;
            let mut done = 0.0;
            while done < steps {
                done += 1.0;
                writeln!(output, "working, step {done} of {steps}").map_err(failed)?;
                output.flush().map_err(failed)?;
                // This is the work: the demo needs an agent that is busy for a while.
                thread::sleep(STEP);
            }
        }
        _ => {
            return Err(bad(
                "unknown order; there are say, write, replace, ask, answer-into, count, work",
            ));
        }
    }
    output.flush().map_err(failed)?;
    Ok(Next::Go)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(prompt: &str) -> (String, ExitCode) {
        let mut output = Vec::new();
        let code = main(&mut prompt.as_bytes(), &mut output);
        (String::from_utf8(output).unwrap(), code)
    }

    #[test]
    fn prose_is_not_an_order_and_mistakes_are_told() {
        let (said, code) = run("Please say hello.\n  > say hello\n");
        assert_eq!((said.as_str(), code), ("hello\n", ExitCode::SUCCESS));
        let (said, code) = run("> dance\n");
        assert!(said.contains("unknown order; there are say"), "{said}");
        assert_eq!(code, ExitCode::FAILURE);
    }

    #[test]
    fn an_answer_lets_it_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("zone");
        let orders = format!("> ask Which zone?\n> answer-into {}\n", file.display());
        let prompt = format!("{orders}\nYou asked. The answer:\n\nUTC\n\nRules.\n");
        assert_eq!(run(&prompt).1, ExitCode::SUCCESS);
        assert_eq!(fs::read_to_string(file).unwrap(), "UTC\n");
    }
}
