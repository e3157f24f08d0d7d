//! What a match in a line of code is: part of a comment, of a text, of a declaration, or use of a
//! name. By the line alone, for many languages: good enough to rank by, and said to be a guess.
//! Must not read a file.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Comment,
    Text,
    Declaration,
    Use,
}

/// What there is to know of a language.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Language {
    pub(super) name: &'static str,
    endings: &'static [&'static str],
    comments: &'static [&'static str],
    quotes: &'static [char],
}

const SLASHES: &[&str] = &["//", "/*"];
const HASH: &[&str] = &["#"];
const DOUBLE: &[char] = &['"'];
const BOTH: &[char] = &['"', '\''];
const THREE: &[char] = &['"', '\'', '`'];

const fn language(
    name: &'static str,
    endings: &'static [&'static str],
    comments: &'static [&'static str],
    quotes: &'static [char],
) -> Language {
    Language {
        name,
        endings,
        comments,
        quotes,
    }
}

const OTHER: Language = language("text", &[], &["#", "//"], BOTH);

const LANGUAGES: &[Language] = &[
    language("Rust", &["rs"], SLASHES, DOUBLE),
    language("C", &["c", "h"], SLASHES, DOUBLE),
    language("C++", &["cc", "cpp", "cxx", "hh", "hpp"], SLASHES, DOUBLE),
    language("Go", &["go"], SLASHES, &['"', '`']),
    language("Java", &["java"], SLASHES, DOUBLE),
    language("Kotlin", &["kt", "kts"], SLASHES, DOUBLE),
    language("Swift", &["swift"], SLASHES, DOUBLE),
    language("C#", &["cs"], SLASHES, DOUBLE),
    language("Scala", &["scala"], SLASHES, DOUBLE),
    language("Zig", &["zig"], &["//"], DOUBLE),
    language("JavaScript", &["js", "jsx", "mjs", "cjs"], SLASHES, THREE),
    language("TypeScript", &["ts", "tsx", "mts", "cts"], SLASHES, THREE),
    language("Svelte", &["svelte", "vue"], &["//", "<!--"], THREE),
    language("PHP", &["php"], &["//", "#", "/*"], BOTH),
    language("Python", &["py", "pyi"], HASH, BOTH),
    language("Ruby", &["rb"], HASH, BOTH),
    language("Shell", &["sh", "bash", "zsh"], HASH, BOTH),
    language("Perl", &["pl", "pm"], HASH, BOTH),
    language("Elixir", &["ex", "exs"], HASH, DOUBLE),
    language("Lua", &["lua"], &["--"], BOTH),
    language("SQL", &["sql"], &["--", "/*"], BOTH),
    language("Haskell", &["hs"], &["--", "{-"], DOUBLE),
    language("TOML", &["toml"], HASH, BOTH),
    language("YAML", &["yaml", "yml"], HASH, BOTH),
    language("JSON", &["json"], &[], &[]),
    language("HTML", &["html", "htm", "xml", "svg"], &["<!--"], &[]),
    language("CSS", &["css", "scss"], &["/*"], BOTH),
    language("Markdown", &["md"], &[], &[]),
];

impl Language {
    pub(super) fn of(path: &std::path::Path) -> Self {
        let ending = path.extension().and_then(|ending| ending.to_str());
        let known = ending.and_then(|ending| {
            LANGUAGES
                .iter()
                .find(|language| language.endings.contains(&ending))
        });
        known.copied().unwrap_or(OTHER)
    }

    /// What is at this place of the line, which is a byte.
    pub(super) fn kind(self, line: &str, at: usize) -> Kind {
        if self.comment(line).is_some_and(|begin| begin <= at) {
            Kind::Comment
        } else if self.in_text(line, at) {
            Kind::Text
        } else if declared(line).is_some_and(|(from, to)| (from..to).contains(&at)) {
            Kind::Declaration
        } else {
            Kind::Use
        }
    }

    fn comment(self, line: &str) -> Option<usize> {
        let begin = line.len() - line.trim_start().len();
        // Within a comment of several lines.
        if self.comments.contains(&"/*") && line[begin..].starts_with("* ") {
            return Some(begin);
        }
        let places = self
            .comments
            .iter()
            .flat_map(|mark| line.match_indices(mark));
        places
            .map(|(at, _)| at)
            .filter(|at| !self.in_text(line, *at))
            .min()
    }

    fn in_text(self, line: &str, at: usize) -> bool {
        let mut open = None;
        let mut escaped = false;
        for (_, c) in line.char_indices().take_while(|(place, _)| *place < at) {
            match open {
                Some(quote) if c == quote && !escaped => open = None,
                None if self.quotes.contains(&c) => open = Some(c),
                _ => {}
            }
            escaped = c == '\\' && !escaped;
        }
        open.is_some()
    }
}

const BEFORE: &[&str] = &[
    "pub",
    "export",
    "default",
    "async",
    "public",
    "private",
    "protected",
    "internal",
    "static",
    "final",
    "abstract",
    "unsafe",
    "extern",
    "inline",
    "virtual",
    "override",
    "declare",
    "local",
    "sealed",
    "data",
    "open",
];
const DECLARES: &[&str] = &[
    "fn",
    "def",
    "class",
    "struct",
    "enum",
    "trait",
    "interface",
    "type",
    "const",
    "let",
    "var",
    "val",
    "func",
    "function",
    "fun",
    "impl",
    "mod",
    "module",
    "namespace",
    "macro_rules!",
    "#define",
    "typedef",
    "union",
    "object",
    "record",
    "protocol",
    "static",
    "package",
    "sub",
    "defmodule",
    "defp",
];

/// Where in the line the name is that it declares.
fn declared(line: &str) -> Option<(usize, usize)> {
    let mut rest = line.trim_start();
    loop {
        let end = rest.find([' ', '\t', '(']).unwrap_or(rest.len());
        let word = &rest[..end];
        let after = rest[end..].trim_start();
        if DECLARES.contains(&word) && !after.is_empty() {
            let from = line.len() - after.len();
            let end = after.find(['(', '{', '=', ';', ':']).unwrap_or(after.len());
            return Some((from, from + end));
        }
        let scope = rest[end..]
            .strip_prefix('(')
            .and_then(|inner| inner.split_once(')'));
        rest = match scope {
            // `pub(crate)`
            Some((_, after)) if word == "pub" => after.trim_start(),
            _ if BEFORE.contains(&word) => after,
            _ => return None,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(file: &str, line: &str, word: &str) -> Kind {
        let at = line.find(word).unwrap();
        Language::of(file.as_ref()).kind(line, at)
    }

    #[test]
    fn lines_of_several_languages() {
        for (file, line, expected) in [
            (
                "a.rs",
                "pub(crate) async fn name(x: u8) {",
                Kind::Declaration,
            ),
            ("a.rs", "    let name = 1;", Kind::Declaration),
            ("a.rs", "    other(name);", Kind::Use),
            ("a.rs", "    other(); // name", Kind::Comment),
            ("a.rs", "    print(\"a // name\");", Kind::Text),
            ("a.rs", "fn f<'a>(x: &'a str) { name }", Kind::Use),
            ("a.rs", " * name is", Kind::Comment),
            ("a.rs", "impl Trait for name {", Kind::Declaration),
            ("a.py", "def name():", Kind::Declaration),
            ("a.py", "x = 'it\\'s name'", Kind::Text),
            ("a.py", "x = 1  # name", Kind::Comment),
            ("a.ts", "export default class name {", Kind::Declaration),
            ("a.ts", "const x = `http://name`;", Kind::Text),
            ("a.go", "func name() {", Kind::Declaration),
            ("a.sql", "select 1 -- name", Kind::Comment),
            ("a.c", "#define name 1", Kind::Declaration),
            ("a.json", "{\"name\": 1}", Kind::Use),
            ("Makefile", "# name", Kind::Comment),
        ] {
            assert_eq!(kind(file, line, "name"), expected, "{file}: {line}");
        }
    }
}
