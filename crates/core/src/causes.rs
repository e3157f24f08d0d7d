//! An error as a person reads it. Must not say more than the error does.

use std::error::Error;

/// An error and its causes on one line, without saying the same twice.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.ends_with(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{says}")]
    struct Told {
        says: &'static str,
        #[source]
        because: Option<Box<Told>>,
    }

    #[test]
    fn causes_follow_and_what_was_said_is_not_said_again() {
        let told = |says, because: Option<Told>| Told {
            says,
            because: because.map(Box::new),
        };
        let last = told("no space left", None);
        let middle = told("write a: no space left", Some(last));
        let error = told("keep the result", Some(middle));
        assert_eq!(chain(&error), "keep the result: write a: no space left");
    }
}
