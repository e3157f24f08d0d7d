//! Any program: the prompt on standard input, text on standard output, the exit code as its word.
//! Must not guess a question or a success out of prose.

use super::{Ask, Driver, Opening, Step, Tail};
use crate::{
    job::Stdin,
    update::{LastWord, Said},
};

#[derive(Debug, Default)]
pub(super) struct Plain {
    tail: Tail,
}

impl Driver for Plain {
    fn open(&mut self, ask: &Ask<'_>) -> Opening {
        let mut argv = vec![ask.program.to_owned()];
        argv.extend(ask.args.iter().cloned());
        let stdin = Stdin::Bytes(ask.prompt.as_bytes().to_vec());
        Opening {
            argv,
            env: ask
                .model
                .map(|model| ("DISPATCH_MODEL".to_owned(), model.to_owned()))
                .into_iter()
                .collect(),
            stdin,
            first: None,
        }
    }

    fn hear(&mut self, line: &str) -> Vec<Step> {
        self.tail.push_line(line);
        vec![Step::Live(line.to_owned())]
    }

    fn say(&mut self, _text: &str) -> Option<Vec<u8>> {
        None
    }

    fn close(&mut self) -> Said {
        let text = self.tail.text();
        Said {
            last: LastWord::NoProtocol,
            text,
            session: None,
            usage: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ask::Permissions;

    #[test]
    fn the_prompt_travels_by_stdin_and_never_in_argv() {
        let args = ["--fast".to_owned()];
        let ask = Ask {
            prompt: "-rf; $(x)",
            whole: "whole",
            cwd: "/workspace/repo",
            folders: &[],
            program: "tool",
            args: &args,
            home: "/h",
            resume: None,
            effort: None,
            review: None,
            unfenced: true,
            permissions: Permissions::Allow,
            tools: None,
            model: None,
            profile: None,
            native: None,
        };
        let opening = Plain::default().open(&ask);
        assert_eq!(opening.argv, ["tool", "--fast"]);
        assert_eq!(opening.stdin, Stdin::Bytes(b"-rf; $(x)".to_vec()));
    }

    #[test]
    fn the_last_word_is_a_bounded_tail() {
        let mut plain = Plain::default();
        for n in 0..100_000 {
            plain.hear(&format!("line {n} é"));
        }
        let said = plain.close();
        assert!(said.text.ends_with("line 99999 é"));
        assert!(said.text.len() <= 3 * super::super::TAIL_BYTES_MAX);
    }
}
