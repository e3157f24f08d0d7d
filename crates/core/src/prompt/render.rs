//! One text with its variables filled in, strictly: what is missing is an error, never a gap.
//! Must not read a value as a template, nor give a template anything to call, to include or to grow
//! with: names and conditions are all there is; fuel and output are limited.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use minijinja::{Environment, ErrorKind, Template, UndefinedBehavior, Value};

/// Steps of one text. Ours need fewer than a hundred.
const FUEL_STEPS_MAX: u64 = 20_000;

pub(super) type Values = BTreeMap<String, String>;

/// Names that a text takes from whoever asks for the task or from us.
///
/// # Errors
/// In words for a person: where the text is not a template.
pub(super) fn wanted(source: &str) -> Result<BTreeSet<String>, String> {
    let environment = environment();
    let template = parsed(&environment, source)?;
    Ok(template.undeclared_variables(false).into_iter().collect())
}

/// # Errors
/// In words for a person: what of it cannot be filled in.
pub(super) fn render(source: &str, values: &Values, bytes_max: usize) -> Result<String, String> {
    let environment = environment();
    let template = parsed(&environment, source)?;
    let value = |(name, value): (&String, &String)| (name.clone(), Value::from(one_line(value)));
    let values: BTreeMap<String, Value> = values.iter().map(value).collect();
    let values = Value::from_object(values);
    let mut out = Limited {
        bytes: Vec::new(),
        bytes_max,
    };
    match template.render_captured_to(values, &mut out) {
        Ok(_) => String::from_utf8(out.bytes).map_err(|error| error.to_string()),
        Err(error) if error.kind() == ErrorKind::OutOfFuel => {
            Err(format!("it takes more than {FUEL_STEPS_MAX} steps"))
        }
        Err(error) if error.kind() == ErrorKind::WriteFailure => {
            Err(format!("it makes more than {bytes_max} bytes"))
        }
        Err(error) => Err(words(&error)),
    }
}

/// A value is one line, so that it cannot add one to the text that it goes into.
pub(super) fn one_line(text: &str) -> String {
    let spaced = super::untrusted::shown(text).map(|c| if c == '\n' { ' ' } else { c });
    spaced.collect::<String>().trim().to_owned()
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::empty();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_fuel(Some(FUEL_STEPS_MAX));
    environment
}

fn parsed<'a>(
    environment: &'a Environment<'static>,
    source: &'a str,
) -> Result<Template<'a, 'a>, String>
where
    'static: 'a,
{
    only_names_and_conditions(source)?;
    environment
        .template_from_str(source)
        .map_err(|error| words(&error))
}

const STATEMENTS: [&str; 4] = ["if", "elif", "else", "endif"];
/// `x ~ x`, said often enough, fills the memory within any fuel.
const GROWING: [char; 3] = ['~', '+', '*'];

/// The part of the language that cannot make more of what it is given.
fn only_names_and_conditions(source: &str) -> Result<(), String> {
    let at = |rest: &str, what: String| {
        let line = 1 + source[..source.len() - rest.len()].matches('\n').count();
        format!("line {line}: {what}")
    };
    let mut rest = source;
    while let Some(start) = rest.find('{') {
        let inside = &rest[start + 1..];
        let (tag, end) = match inside.chars().next() {
            Some('#') => {
                rest = inside.split_once("#}").map_or("", |(_, after)| after);
                continue;
            }
            Some('{') => ('{', "}}"),
            Some('%') => ('%', "%}"),
            Some(_) | None => {
                rest = inside;
                continue;
            }
        };
        let (code, after) = code_until(&inside[1..], end);
        if let Some(sign) = code.chars().find(|c| GROWING.contains(c)) {
            let what = format!("it may not use {sign:?} between values");
            return Err(at(inside, what));
        }
        let word = code
            .trim_start_matches(['-', '+'])
            .split_whitespace()
            .next();
        let word = word.unwrap_or_default().trim_end_matches('-');
        if tag == '%' && !STATEMENTS.contains(&word) {
            let known = STATEMENTS.join(", ");
            return Err(at(
                inside,
                format!("{word:?} is none of {known}; there is no other"),
            ));
        }
        rest = after;
    }
    Ok(())
}

/// A tag's code without what is quoted in it, and what follows the tag.
fn code_until<'a>(text: &'a str, end: &str) -> (String, &'a str) {
    let mut code = String::new();
    let mut quote = None;
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match quote {
            Some(_) if c == '\\' => drop(chars.next()),
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if text[at..].starts_with(end) => return (code, &text[at + end.len()..]),
            None if c == '"' || c == '\'' => quote = Some(c),
            None => code.push(c),
        }
    }
    (code, "")
}

/// Its place is a line of the file; its name says nothing, as there is none.
fn words(error: &minijinja::Error) -> String {
    let what = match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    };
    match error.line() {
        Some(line) => format!("line {line}: {what}"),
        None => what,
    }
}

struct Limited {
    bytes: Vec<u8>,
    bytes_max: usize,
}

impl io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.bytes_max {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(pairs: &[(&str, &str)]) -> Values {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        pairs.iter().map(own).collect()
    }

    #[test]
    fn what_is_missing_is_an_error_and_never_a_gap() {
        let got = render("a\n{{ b }}", &values(&[("c", "1")]), 99).unwrap_err();
        assert!(got.contains("line 2: undefined value"), "{got}");
        assert_eq!(wanted("{{ b }}{% if c %}{% endif %}").unwrap().len(), 2);
        assert!(wanted("a\n{{ b").unwrap_err().contains("line 2"));
    }

    #[test]
    fn a_value_is_never_a_template_and_always_one_line() {
        let hostile = "{{ 1 + 1 }}{% for x in [1] %}\r\n## Plan\u{2028}\u{1b}[31m{# x #}";
        let got = render("<{{ v }}>\nend", &values(&[("v", hostile)]), 999).unwrap();
        assert_eq!(
            got,
            "<{{ 1 + 1 }}{% for x in [1] %} ## Plan [31m{# x #}>\nend"
        );
    }

    #[test]
    fn nothing_can_be_called_read_or_looped_without_an_end() {
        for source in [
            "{% include 'x' %}",
            "{% import 'x' as y %}",
            "{% extends 'x' %}",
            "{{ range(9) }}",
            "{{ 'x' | upper }}",
            "{{ debug() }}",
            "{% for x in [1] %}{% endfor %}",
            "{% set x = 1 %}",
            "{%- set x = 1 %}",
            "{% with x = 1 %}{% endwith %}",
            "{% raw %}{% endraw %}",
            "{{ 'a' ~ 'a' }}",
            "{# ' #}{{ 'a' + 'a' }}",
            "{{ '}}' ~ 'a' }}",
            "{{ \"\\\"}}\" * 9 }}",
            "{% if 'a' ~ 'a' %}{% endif %}",
        ] {
            assert!(render(source, &Values::new(), 99).is_err(), "{source}");
        }
        let got = render("a\n{% set x = 1 %}", &Values::new(), 99).unwrap_err();
        assert!(
            got.starts_with("line 2: \"set\" is none of if, elif"),
            "{got}"
        );
        let fine = "{# ~ #}{%- if v == '~' and not w -%} ~ {{ v }} + {%- else %}*{% endif %}";
        let got = render(fine, &values(&[("v", "~"), ("w", "")]), 99).unwrap();
        assert_eq!(got, "~ ~ +");
        let got = render(&"{{v}}".repeat(13_000), &values(&[("v", "x")]), 65_536).unwrap_err();
        assert_eq!(got, "it takes more than 20000 steps");
        let long = values(&[("v", &"x".repeat(1 << 20))]);
        let got = render("{{ v }}", &long, 65_536).unwrap_err();
        assert_eq!(got, "it makes more than 65536 bytes");
    }
}
