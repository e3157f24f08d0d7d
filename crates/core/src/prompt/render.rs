//! One text with its variables filled in, strictly: what is missing is an error, never a gap.
//! Must not read a value as a template, nor give a template anything to call, include or loop over
//! without an end: no filters, functions, files; fuel and output are limited.

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
    environment
        .template_from_str(source)
        .map_err(|error| words(&error))
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
        ] {
            assert!(render(source, &Values::new(), 99).is_err(), "{source}");
        }
        let many = "[1,1,1,1,1,1,1,1,1,1]";
        let nested = format!("{{% for a in {many} %}}").repeat(6) + "x" + &"{% endfor %}".repeat(6);
        let got = render(&nested, &Values::new(), usize::MAX).unwrap_err();
        assert_eq!(got, "it takes more than 20000 steps");
        let long = values(&[("v", &"x".repeat(1 << 20))]);
        let got = render("{{ v }}", &long, 65_536).unwrap_err();
        assert_eq!(got, "it makes more than 65536 bytes");
    }
}
