//! `search_code`: where something is in the code below a directory: files in the order of how much
//! they seem to be about it, with the lines around. What the repository ignores is left out.
//! Must not hold the contents of what it searches: files are ranked first, and the best read again.

use std::{sync::Arc, time::Instant};

use dispatch_core::rules::Group;
use grep_regex::{RegexMatcher, RegexMatcherBuilder};
use ignore::{WalkBuilder, overrides::OverrideBuilder};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    Given, Place, Planned, Run, Tool, Wrong, blocking,
    line_kind::{Kind, Language},
    place::{Real, failed},
    rank::{Found, LIMIT, Ranked, Search},
    schema,
    snippet::snippet,
    tree::{self, LeftOut, Sight},
};

const FILES_USUAL: usize = 20;
const FILES_MAX: usize = 100;
const CONTEXT_USUAL: usize = 1;
const CONTEXT_MAX: usize = 20;
/// Of one file's part of the answer.
const SNIPPET_BYTES_USUAL: usize = 800;
const SNIPPET_BYTES: (usize, usize) = (50, 2_000);
/// A pattern that would need more to run is refused.
const PATTERN_BYTES_MAX: usize = 10 << 20;

pub(super) const TOOL: Tool = Tool {
    name: "search_code",
    line: "find a text or pattern in the code",
    help: "Finds a regular expression in the files of the workspace (a query that is none is \
           searched as it is) and answers with the files that match, those first that seem to be \
           most about it, each with its best lines; `>` marks the lines that match. What .gitignore \
           names is left out. `only` keeps one kind of match: in comments, in strings, where a name \
           is declared, where it is used; kinds are guessed from the line.",
    group: Group::SearchCode,
    safe: true,
    schema: schema::<Input>,
    plan,
};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Input {
    /// What to find: a regular expression, within one line.
    query: String,
    /// The directory or file to search in; without it, the workspace.
    #[serde(default)]
    path: Option<String>,
    /// Whether `A` and `a` differ. Without it they do if the query has a capital.
    #[serde(default)]
    case_sensitive: Option<bool>,
    /// Only files with these endings, such as `rs,toml`.
    #[serde(default)]
    include_ext: Option<String>,
    /// No files that fit these patterns, such as `tests/**,*.min.js`.
    #[serde(default)]
    exclude_pattern: Option<String>,
    /// How many lines to show around a match, at most 20.
    #[serde(default)]
    context: Option<usize>,
    /// How many files to show, at most 100.
    #[serde(default)]
    #[schemars(range(min = 1))]
    result_limit: Option<usize>,
    /// How many bytes to show of each file, from 50 to 2000.
    #[serde(default)]
    snippet_length: Option<usize>,
    /// Only matches of this kind.
    #[serde(default)]
    only: Option<Only>,
}

#[derive(Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Only {
    Code,
    Comments,
    Strings,
    Declarations,
    Usages,
}

impl Only {
    fn takes(only: Option<Self>) -> fn(Kind) -> bool {
        match only {
            None => |_| true,
            Some(Self::Code) => |kind| matches!(kind, Kind::Declaration | Kind::Use),
            Some(Self::Comments) => |kind| kind == Kind::Comment,
            Some(Self::Strings) => |kind| kind == Kind::Text,
            Some(Self::Declarations) => |kind| kind == Kind::Declaration,
            Some(Self::Usages) => |kind| kind == Kind::Use,
        }
    }
}

fn plan(given: &Given) -> Result<Planned, Wrong> {
    let input: Input = given.parse()?;
    if input.query.trim().is_empty() {
        return Err(Wrong::new("the query is empty"));
    }
    let root = given.place.inside(input.path.as_deref().unwrap_or("."))?;
    let seen = Sight::new(given, &root);
    Ok(Planned::new(vec![root.subject()], async move |run: Run| {
        blocking(move || find(&run.place, &root, seen, &input)).await
    }))
}

fn find(place: &Arc<Place>, root: &Real, seen: Sight, input: &Input) -> Result<String, Wrong> {
    if !root.path().exists() {
        let missing = std::io::ErrorKind::NotFound.into();
        return Err(failed("search", root.shown(), &missing));
    }
    let (matcher, literal) = matcher(input)?;
    let search = Search {
        matcher: &matcher,
        takes: Only::takes(input.only),
        query: input.query.to_lowercase(),
        until: Instant::now() + LIMIT,
    };
    let (walk, left_out) = walk(place, root, seen, input)?;
    let found = search.rank(&walk);
    let mut notes = notes(&found);
    notes.extend(left_out.told());
    let notes = notes.join("\n");
    if found.files.is_empty() {
        let text = format!("nothing found\n{notes}");
        return Ok(text.trim_end().to_owned());
    }
    let limit = input
        .result_limit
        .unwrap_or(FILES_USUAL)
        .clamp(1, FILES_MAX);
    let mut text = String::new();
    if literal {
        text.push_str("[the query is no regular expression; it was searched as it is]\n");
    }
    for file in found.files.iter().take(limit) {
        text.push_str(&shown(&search, place, file, input)?);
        text.push('\n');
    }
    let more = found.count.saturating_sub(limit.min(found.files.len()));
    if more > 0 {
        text.push_str(&format!("[{more} more files match]\n"));
    }
    Ok(text + &notes)
}

/// What was not searched.
fn notes(found: &Found) -> Vec<String> {
    let mut notes = Vec::new();
    if found.cut {
        let limit = LIMIT.as_secs();
        notes.push(format!("[not all was searched in {limit} s]"));
    }
    if found.unfinished > 0 {
        let count = found.unfinished;
        notes.push(format!(
            "[{count} files were not searched to their end: a line of theirs is too long]"
        ));
    }
    notes
}

fn matcher(input: &Input) -> Result<(RegexMatcher, bool), Wrong> {
    let mut builder = RegexMatcherBuilder::new();
    builder
        .line_terminator(Some(b'\n'))
        .size_limit(PATTERN_BYTES_MAX)
        .dfa_size_limit(PATTERN_BYTES_MAX);
    match input.case_sensitive {
        Some(differ) => builder.case_insensitive(!differ),
        None => builder.case_smart(true),
    };
    if let Ok(matcher) = builder.build(&input.query) {
        return Ok((matcher, false));
    }
    let literal = builder.fixed_strings(true).build(&input.query);
    let matcher = literal.map_err(|error| Wrong::new(format!("use the query: {error}")))?;
    Ok((matcher, true))
}

fn walk(
    place: &Arc<Place>,
    root: &Real,
    seen: Sight,
    input: &Input,
) -> Result<(WalkBuilder, LeftOut), Wrong> {
    let (mut walk, left_out) = tree::walk(place, root, seen, false)?;
    let mut rules = OverrideBuilder::new(root.path());
    let list = |text: &Option<String>| -> Vec<String> {
        let items = text.iter().flat_map(|text| text.split(','));
        let items = items.map(|item| item.trim().to_owned());
        items.filter(|item| !item.is_empty()).collect()
    };
    let bad = |what: &str, error| Wrong::new(format!("{what} is no pattern: {error}"));
    for ending in list(&input.include_ext) {
        let ending = ending.trim_start_matches('.');
        rules
            .add(&format!("*.{ending}"))
            .map_err(|error| bad(ending, error))?;
    }
    for pattern in list(&input.exclude_pattern) {
        rules
            .add(&format!("!{pattern}"))
            .map_err(|error| bad(&pattern, error))?;
    }
    walk.overrides(rules.build().map_err(|error| bad("this", error))?);
    Ok((walk, left_out))
}

fn shown(
    search: &Search<'_>,
    place: &Place,
    file: &Ranked,
    input: &Input,
) -> Result<String, Wrong> {
    let context = input.context.unwrap_or(CONTEXT_USUAL).min(CONTEXT_MAX);
    let (least, most) = SNIPPET_BYTES;
    let bytes = input.snippet_length.unwrap_or(SNIPPET_BYTES_USUAL);
    let path = place.shown(&file.path);
    let lines = snippet(search, &file.path, context, bytes.clamp(least, most))
        .map_err(|error| failed("read", &path, &error))?;
    let language = Language::of(&file.path).name;
    let Ranked { matches, score, .. } = file;
    Ok(format!(
        "{path} ({language}, {matches} matches, score {score:.1})\n{lines}"
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::tools::testing::Bench;

    fn bench() -> Bench {
        let bench = Bench::new();
        bench.write(
            "src/token.rs",
            "// the token\npub struct Token {\n    text: String,\n}\n",
        );
        bench.write(
            "src/lexer.rs",
            "use crate::token::Token;\nfn next() -> Token {\n    Token::new(\"Token\")\n}\n",
        );
        bench.write("docs/notes.md", "A token is a word.\n");
        bench.write("target/out.rs", "struct Token;\n");
        bench.write(".gitignore", "target\n");
        bench.write(".git/Token", "Token\n");
        bench.write("data.bin", b"Token\0Token\n");
        bench
    }

    #[tokio::test]
    async fn the_file_that_declares_it_comes_first() {
        let bench = bench();
        let told = bench
            .told("search_code", json!({"query": "Token", "context": 1}))
            .await;
        let order: Vec<&str> = told.lines().filter(|line| line.contains("score")).collect();
        assert_eq!(order.len(), 2, "{told}");
        assert!(
            order[0].starts_with("src/token.rs (Rust, 1 matches"),
            "{told}"
        );
        assert!(
            order[1].starts_with("src/lexer.rs (Rust, 3 matches"),
            "{told}"
        );
        assert!(
            told.contains(">     2 pub struct Token {\n      3     text: String,\n"),
            "{told}"
        );
        let any = bench.told("search_code", json!({"query": "token"})).await;
        assert!(any.contains("docs/notes.md (Markdown"), "{any}");
    }

    #[tokio::test]
    async fn one_kind_of_match_and_some_files_only() {
        let bench = bench();
        let search = |input| bench.told("search_code", input);
        let only = |kind| search(json!({"query": "Token", "only": kind, "context": 0}));
        assert!(only("declarations").await.contains("src/token.rs"));
        assert!(!only("declarations").await.contains("src/lexer.rs"));
        let strings = only("strings").await;
        assert_eq!(
            strings, "nothing found",
            "its first match in that line is a use"
        );
        assert!(only("usages").await.contains(">     3     Token::new"));
        let comments = search(json!({"query": "token", "only": "comments"})).await;
        assert!(comments.contains(">     1 // the token"), "{comments}");
        let some = search(json!({"query": "token", "include_ext": ".md, txt"})).await;
        assert!(
            some.contains("docs/notes.md") && !some.contains("token.rs"),
            "{some}"
        );
        let some = search(json!({"query": "token", "exclude_pattern": "docs/**,lexer.rs"})).await;
        assert!(
            !some.contains("docs") && !some.contains("lexer.rs"),
            "{some}"
        );
        let one = search(json!({"query": "Token", "path": "src/lexer.rs"})).await;
        assert!(
            one.contains("src/lexer.rs") && !one.contains("src/token.rs"),
            "{one}"
        );
    }

    #[tokio::test]
    async fn queries_and_limits() {
        let bench = bench();
        let search = |input| bench.told("search_code", input);
        let literal = search(json!({"query": "Token::new("})).await;
        assert!(
            literal.contains("searched as it is") && literal.contains("lexer.rs"),
            "{literal}"
        );
        assert_eq!(search(json!({"query": "nowhere"})).await, "nothing found");
        assert!(search(json!({"query": "TOKEN"})).await == "nothing found");
        assert!(
            search(json!({"query": "TOKEN", "case_sensitive": false}))
                .await
                .contains("score")
        );
        let one = search(json!({"query": "Token", "result_limit": 1})).await;
        assert!(one.ends_with("[1 more files match]\n"), "{one}");
        let cut =
            search(json!({"query": "Token", "path": "src/lexer.rs", "snippet_length": 50})).await;
        assert!(cut.contains("  ...\n"), "{cut}");
        for (input, part) in [
            (json!({"query": ""}), "the query is empty"),
            (
                json!({"query": "x", "path": "../"}),
                "outside the workspace",
            ),
            (json!({"query": "x", "path": "gone"}), "it is not there"),
            (
                json!({"query": "x", "only": "all"}),
                "unknown variant `all`",
            ),
        ] {
            let wrong = bench.wrong("search_code", input).await;
            assert!(wrong.contains(part), "{wrong}");
        }
    }
}
