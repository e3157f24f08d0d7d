//! The texts that a prompt is made of: templates, personas, plans and workflows by name. Ours are
//! compiled in; a person's own lie over them, and a repository may reword one but never add one.
//! Must not read a file: the caller hands texts in.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{
    plan::Plan,
    render::{self, Values},
};
use crate::{
    config::list,
    id::BadId,
    task::{Base, Effort},
};

/// The folder of a repository whose texts are used instead of ours, at the base commit.
pub const REPOSITORY_FOLDER: &str = ".dispatch";

/// What every text may use without being given it.
pub(super) const FACTS: [&str; 4] = ["branch", "language", "repo", "title"];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TextKind {
    /// How to work on a kind of task.
    Template,
    /// Who works.
    Persona,
    /// What to do, in which order.
    Plan,
    /// How work goes in a language; chosen by what the base commit holds.
    Workflow,
}

impl TextKind {
    pub const ALL: [Self; 4] = [Self::Template, Self::Persona, Self::Plan, Self::Workflow];

    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Template => "template",
            Self::Persona => "persona",
            Self::Plan => "plan",
            Self::Workflow => "workflow",
        }
    }

    /// Where such files lie, below a configuration or [`REPOSITORY_FOLDER`].
    #[must_use]
    pub fn folder(self) -> &'static str {
        match self {
            Self::Template => "templates",
            Self::Persona => "personas",
            Self::Plan => "plans",
            Self::Workflow => "workflows",
        }
    }

    /// How the names of their files end.
    #[must_use]
    pub fn ending(self) -> &'static str {
        match self {
            Self::Template | Self::Persona | Self::Workflow => ".md",
            Self::Plan => ".toml",
        }
    }
}

impl fmt::Display for TextKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// The name of a text: a short path, as `engineering/backend-architect`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TextName(Cow<'static, str>);

impl TextName {
    const BYTES_MAX: usize = 128;
    /// As deep as folders of texts are looked through.
    pub const PARTS_MAX: usize = 4;

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn ok(text: &str) -> bool {
        let part_ok = |part: &str| {
            let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_".contains(&b);
            part.bytes().all(good)
                && part
                    .bytes()
                    .next()
                    .is_some_and(|b| b.is_ascii_alphanumeric())
        };
        text.len() <= Self::BYTES_MAX
            && text.split('/').count() <= Self::PARTS_MAX
            && text.split('/').all(part_ok)
    }
}

impl fmt::Display for TextName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for TextName {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        Self::try_from(text.to_owned())
    }
}

impl TryFrom<String> for TextName {
    type Error = BadId;

    fn try_from(text: String) -> Result<Self, BadId> {
        if Self::ok(&text) {
            return Ok(Self(text.into()));
        }
        Err(BadId {
            what: "the name of a template, persona, plan or workflow",
            text,
            rule: "up to four parts with '/' between them, each of lowercase letters, digits, '-' \
                   and '_'",
        })
    }
}

impl From<TextName> for String {
    fn from(name: TextName) -> String {
        name.0.into_owned()
    }
}

/// How a task's prompt is to be made, as it was asked for; names were there when the task was made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guide {
    /// `None` in logs from before there were templates.
    #[serde(default)]
    pub template: Option<TextName>,
    #[serde(default)]
    pub persona: Option<TextName>,
    #[serde(default)]
    pub plan: Option<TextName>,
    /// Written as pairs: a name that somebody made up must not be taken for a member's.
    #[serde(default, with = "pairs")]
    pub variables: BTreeMap<String, String>,
    /// For the agent's CLI; no part of the prompt.
    #[serde(default)]
    pub effort: Option<Effort>,
}

mod pairs {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(
        map: &BTreeMap<String, String>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        map.iter().collect::<Vec<_>>().serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<BTreeMap<String, String>, D::Error> {
        Ok(Vec::<(String, String)>::deserialize(from)?
            .into_iter()
            .collect())
    }
}

/// Whether a repository's own texts count for work that starts there: not where a stranger could
/// have proposed them, as in a pull request that is to be reviewed.
#[must_use]
pub fn rewords(base: &Base) -> bool {
    match base {
        Base::Head | Base::Branch { .. } => true,
    }
}

impl Guide {
    fn named(&self) -> impl Iterator<Item = (TextKind, &TextName)> {
        [
            (TextKind::Template, &self.template),
            (TextKind::Persona, &self.persona),
            (TextKind::Plan, &self.plan),
        ]
        .into_iter()
        .filter_map(|(kind, name)| Some((kind, name.as_ref()?)))
    }

    /// Paths below [`REPOSITORY_FOLDER`] that would reword what this task is given.
    #[must_use]
    pub fn paths(&self, language: Option<&str>) -> BTreeMap<TextKind, String> {
        let workflow = language.and_then(|name| name.parse().ok());
        let workflow = workflow.as_ref().map(|name| (TextKind::Workflow, name));
        let path = |(kind, name): (TextKind, &TextName)| {
            let path = format!(
                "{REPOSITORY_FOLDER}/{}/{name}{}",
                kind.folder(),
                kind.ending()
            );
            (kind, path)
        };
        self.named().chain(workflow).map(path).collect()
    }
}

/// One text and where it is from, for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Text {
    source: Cow<'static, str>,
    body: Cow<'static, str>,
}

/// A file of a person's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextFile {
    pub kind: TextKind,
    /// Its path below the kind's folder, with its ending.
    pub path: String,
    pub source: String,
    pub text: String,
}

/// Why a prompt cannot be made as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GuideError {
    #[error("use {kind} {name}: there is none of that name; there are {there}")]
    Unknown {
        kind: TextKind,
        name: String,
        there: String,
    },
    #[error("use {kind} {name} ({from}): {what}")]
    Text {
        kind: TextKind,
        name: TextName,
        from: String,
        what: String,
    },
    #[error("use {path} of the repository's base commit: {what}")]
    Repository { path: String, what: String },
    #[error("use {kind} {name}: it needs {missing}, as variables; {given}")]
    Missing {
        kind: TextKind,
        name: TextName,
        missing: String,
        given: String,
    },
    #[error("use variable {names}: nothing takes it; {taken}")]
    NotTaken { names: String, taken: String },
    #[error("use variable {name}: every text has it already, from the repository and the task")]
    Fact { name: String },
    #[error("use the variables: they have {bytes} bytes, limits.variables_bytes is {bytes_max}")]
    TooMuch { bytes: usize, bytes_max: usize },
}

/// All texts there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Library(Arc<BTreeMap<(TextKind, TextName), Text>>);

macro_rules! built_in {
    ($($kind:ident $folder:literal $ending:literal: $($name:literal)*;)*) => {
        &[$($((
            TextKind::$kind,
            $name,
            include_str!(concat!("builtin/", $folder, "/", $name, $ending)),
        ),)*)*]
    };
}

/// A new file needs its name here; a test compares the list with the folder.
const BUILT_IN: &[(TextKind, &str, &str)] = built_in! {
    Template "templates" ".md":
        "coding" "conventions" "docs" "plain" "refactor" "review" "security" "test" "verify";
    Persona "personas" ".md":
        "engineering/backend-architect" "engineering/database-engineer"
        "engineering/devops-engineer" "engineering/frontend-developer"
        "engineering/performance-engineer" "engineering/rust-engineer"
        "engineering/go-engineer" "engineering/python-engineer"
        "product/technical-writer"
        "security/auditor" "security/threat-modeler"
        "testing/api-tester" "testing/test-engineer";
    Plan "plans" ".toml":
        "bug-fix" "code-review" "dependency-audit" "docs-sync" "new-feature" "refactor"
        "security-audit" "test-gaps";
    Workflow "workflows" ".md":
        "cmake" "go" "make" "node" "php" "python" "rust";
};

impl Library {
    /// What is compiled in.
    #[must_use]
    pub fn built_in() -> Self {
        let own = |(kind, name, body): &(TextKind, &'static str, &'static str)| {
            let text = Text {
                source: "built in".into(),
                body: Cow::Borrowed(body),
            };
            ((*kind, TextName(Cow::Borrowed(name))), text)
        };
        Self(Arc::new(BUILT_IN.iter().map(own).collect()))
    }

    /// The same with a person's own texts laid over it.
    ///
    /// # Errors
    /// Every file that cannot be used, by its source, and why.
    pub fn with(
        &self,
        files: Vec<TextFile>,
        bytes_max: usize,
    ) -> Result<Self, Vec<(String, String)>> {
        let (mut texts, mut problems) = ((*self.0).clone(), Vec::new());
        for file in files {
            match usable(&file, bytes_max) {
                Ok(name) => {
                    let text = Text {
                        source: file.source.into(),
                        body: file.text.into(),
                    };
                    texts.insert((file.kind, name), text);
                }
                Err(what) => problems.push((file.source, what)),
            }
        }
        if problems.is_empty() {
            Ok(Self(Arc::new(texts)))
        } else {
            Err(problems)
        }
    }

    /// All names of a kind, in order.
    pub fn names(&self, kind: TextKind) -> impl Iterator<Item = &TextName> {
        let of_kind = self.0.keys().filter(move |(other, _)| *other == kind);
        of_kind.map(|(_, name)| name)
    }

    /// The one of that name.
    ///
    /// # Errors
    /// Lists what there is.
    pub fn find(&self, kind: TextKind, name: &str) -> Result<TextName, GuideError> {
        let found = self.names(kind).find(|known| known.as_str() == name);
        found.cloned().ok_or_else(|| GuideError::Unknown {
            kind,
            name: name.chars().take(TextName::BYTES_MAX).collect(),
            there: list(self.names(kind)),
        })
    }

    fn text(&self, kind: TextKind, name: &TextName) -> Result<&Text, GuideError> {
        self.0
            .get(&(kind, name.clone()))
            .ok_or_else(|| GuideError::Unknown {
                kind,
                name: name.to_string(),
                there: list(self.names(kind)),
            })
    }

    /// Whether there is a workflow for a language.
    pub(super) fn workflow(&self, language: &str) -> Option<TextName> {
        let name = language.parse().ok()?;
        self.text(TextKind::Workflow, &name).is_ok().then_some(name)
    }

    /// A text with its variables filled in.
    pub(super) fn filled(
        &self,
        kind: TextKind,
        name: &TextName,
        values: &Values,
        bytes_max: usize,
    ) -> Result<String, GuideError> {
        let text = self.text(kind, name)?;
        let filled = match kind {
            TextKind::Plan => {
                Plan::parse(&text.body).and_then(|plan| plan.render(values, bytes_max))
            }
            TextKind::Template | TextKind::Persona | TextKind::Workflow => {
                render::render(&text.body, values, bytes_max)
            }
        };
        filled.map_err(|what| GuideError::Text {
            kind,
            name: name.clone(),
            from: text.source.to_string(),
            what,
        })
    }

    /// Whether a prompt can be made as asked: every name is there, every variable is given and
    /// taken, every text comes out.
    ///
    /// # Errors
    /// The first thing that is wrong, with what there is.
    pub fn check(
        &self,
        guide: &Guide,
        bytes_max: usize,
        variables_bytes_max: usize,
    ) -> Result<(), GuideError> {
        let given = &guide.variables;
        let bytes = given
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum();
        if bytes > variables_bytes_max {
            return Err(GuideError::TooMuch {
                bytes,
                bytes_max: variables_bytes_max,
            });
        }
        if let Some(name) = given.keys().find(|name| FACTS.contains(&name.as_str())) {
            return Err(GuideError::Fact { name: name.clone() });
        }
        let (mut taken, mut told) = (BTreeSet::new(), Vec::new());
        for (kind, name) in guide.named() {
            let takes = self.takes(kind, name)?;
            let missing = takes.iter().filter(|(name, take)| {
                !given.contains_key(*name) && matches!(take, Take::Needed(_))
            });
            let missing: Vec<String> = missing.map(|(name, take)| take.told(name)).collect();
            if !missing.is_empty() {
                return Err(GuideError::Missing {
                    kind,
                    name: name.clone(),
                    missing: missing.join(", "),
                    given: if given.is_empty() {
                        "none is given".into()
                    } else {
                        format!("given are {}", list(given.keys()))
                    },
                });
            }
            let all: Vec<String> = takes.iter().map(|(name, take)| take.told(name)).collect();
            told.push(if all.is_empty() {
                format!("{kind} {name} takes none")
            } else {
                format!("{kind} {name} takes {}", all.join(", "))
            });
            taken.extend(takes.into_keys());
        }
        let left: Vec<&String> = given.keys().filter(|name| !taken.contains(*name)).collect();
        if !left.is_empty() {
            return Err(GuideError::NotTaken {
                names: list(left.iter()),
                taken: told.join("; "),
            });
        }
        let values = values(given, &Known::default());
        for (kind, name) in guide.named() {
            self.filled(kind, name, &values, bytes_max)?;
        }
        Ok(())
    }

    /// The variables of a text beside what every text has.
    fn takes(&self, kind: TextKind, name: &TextName) -> Result<BTreeMap<String, Take>, GuideError> {
        let text = self.text(kind, name)?;
        takes(kind, &text.body).map_err(|what| GuideError::Text {
            kind,
            name: name.clone(),
            from: text.source.to_string(),
            what,
        })
    }
}

/// How a text takes a variable, and what it says about it.
enum Take {
    Needed(String),
    WithDefault(String),
}

impl Take {
    fn told(&self, name: &str) -> String {
        match self {
            Self::Needed(about) if about.is_empty() => name.to_owned(),
            Self::Needed(about) => format!("{name} ({about})"),
            Self::WithDefault(about) => format!("{name} (if you like: {about})"),
        }
    }
}

fn takes(kind: TextKind, body: &str) -> Result<BTreeMap<String, Take>, String> {
    let fact = |name: &str| FACTS.contains(&name);
    match kind {
        TextKind::Template | TextKind::Persona | TextKind::Workflow => {
            let wanted = render::wanted(body)?.into_iter().filter(|name| !fact(name));
            Ok(wanted
                .map(|name| (name, Take::Needed(String::new())))
                .collect())
        }
        TextKind::Plan => {
            let plan = Plan::parse(body)?;
            let declared: BTreeSet<&String> = plan.variables.keys().collect();
            if let Some(name) = declared.iter().find(|name| fact(name)) {
                return Err(format!("variables.{name}: every text has {name} already"));
            }
            let used = plan.wanted()?;
            if let Some(name) = used.iter().find(|n| !fact(n) && !declared.contains(n)) {
                return Err(format!(
                    "it uses {name}, and there is no [variables.{name}]; there are {}",
                    list(declared.iter().copied().map(String::as_str).chain(FACTS))
                ));
            }
            let take = |(name, variable): (String, super::plan::Variable)| {
                let about = variable.description;
                let take = match variable.default {
                    Some(_) => Take::WithDefault(about),
                    None => Take::Needed(about),
                };
                (name, take)
            };
            Ok(plan.variables.into_iter().map(take).collect())
        }
    }
}

/// The name of a file's text, when the text can be used.
fn usable(file: &TextFile, bytes_max: usize) -> Result<TextName, String> {
    let kind = file.kind;
    let name = file.path.strip_suffix(kind.ending()).ok_or_else(|| {
        format!(
            "the name of a {kind} ends in {}; move other files elsewhere",
            kind.ending()
        )
    })?;
    let name: TextName = name.parse().map_err(|error: BadId| error.to_string())?;
    if file.text.len() > bytes_max {
        return Err(format!(
            "it has {} bytes, limits.template_bytes is {bytes_max}",
            file.text.len()
        ));
    }
    let takes = takes(kind, &file.text)?;
    // It is chosen by what a repository holds, so nobody could give it anything.
    if let (TextKind::Workflow, Some(name)) = (kind, takes.keys().next()) {
        return Err(format!(
            "it uses {name}; a workflow has {} and no other variable",
            FACTS.join(", ")
        ));
    }
    Ok(name)
}

/// What is known of a task besides its variables.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Known<'a> {
    pub(super) branch: &'a str,
    pub(super) language: &'a str,
    pub(super) repo: &'a str,
    pub(super) title: &'a str,
}

pub(super) fn values(given: &BTreeMap<String, String>, known: &Known<'_>) -> Values {
    let facts = [known.branch, known.language, known.repo, known.title];
    let facts = FACTS.into_iter().zip(facts);
    let facts = facts.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let given = given
        .iter()
        .map(|(name, value)| (name.clone(), value.clone()));
    given.chain(facts).collect()
}

/// What a repository says in place of a text of ours: its words are used and nothing is filled in.
pub(super) fn reworded(kind: TextKind, path: &str, text: &str) -> Result<String, GuideError> {
    if kind != TextKind::Plan {
        return Ok(text.to_owned());
    }
    match Plan::parse(text) {
        Ok(plan) => Ok(plan.verbatim()),
        Err(what) => Err(GuideError::Repository {
            path: path.to_owned(),
            what,
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    fn guide(template: &str, plan: Option<&str>, variables: &[(&str, &str)]) -> Guide {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Guide {
            template: Some(template.parse().unwrap()),
            plan: plan.map(|name| name.parse().unwrap()),
            variables: variables.iter().map(own).collect(),
            ..Guide::default()
        }
    }

    fn file(kind: TextKind, path: &str, text: &str) -> TextFile {
        TextFile {
            kind,
            path: path.into(),
            source: format!("mine/{path}"),
            text: text.into(),
        }
    }

    #[test]
    fn every_file_is_in_the_list_and_comes_out() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/prompt/builtin");
        let mut files = 0;
        let mut folders = vec![root.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                files += 1;
                let below = path.strip_prefix(&root).unwrap().to_str().unwrap();
                let (folder, name) = below.split_once('/').unwrap();
                let listed = BUILT_IN.iter().any(|(kind, listed, _)| {
                    kind.folder() == folder && name == format!("{listed}{}", kind.ending())
                });
                assert!(listed, "{below} is not in BUILT_IN");
            }
        }
        assert_eq!(files, BUILT_IN.len());
        let library = Library::built_in();
        for ((kind, name), text) in library.0.iter() {
            let takes = library.takes(*kind, name).unwrap();
            let given = takes.keys().map(|name| (name.clone(), "x".to_owned()));
            let values = values(&given.collect(), &Known::default());
            let filled = library.filled(*kind, name, &values, 8192).unwrap();
            assert!(filled.len() > 40 && filled.is_ascii(), "{kind} {name}");
            assert!(
                text.body.ends_with('\n') && !text.body.contains("\n\n\n"),
                "{kind} {name}"
            );
        }
        for (check, _) in crate::config::Config::defaults().checks {
            assert!(library.workflow(check.as_str()).is_some(), "{check}");
        }
    }

    #[test]
    fn what_is_wrong_lists_what_there_is() {
        let library = Library::built_in();
        let check = |guide: &Guide| library.check(guide, 65_536, 100).unwrap_err().to_string();
        for (guide, parts) in [
            (
                guide("codng", None, &[]),
                vec!["use template codng: there is none", "coding, conventions"],
            ),
            (
                guide("coding", Some("nope"), &[]),
                vec!["use plan nope", "bug-fix, code-review"],
            ),
            (
                guide("coding", Some("new-feature"), &[]),
                vec!["use plan new-feature: it needs feature (", "none is given"],
            ),
            (
                guide("coding", Some("new-feature"), &[("feture", "x")]),
                vec!["it needs feature (", "given are feture"],
            ),
            (
                guide("coding", Some("bug-fix"), &[("nope", "x")]),
                vec![
                    "use variable nope",
                    "template coding takes none",
                    "plan bug-fix takes ",
                ],
            ),
            (
                guide("coding", None, &[("repo", "x")]),
                vec!["use variable repo"],
            ),
            (
                guide("coding", None, &[("x", &"y".repeat(100))]),
                vec!["101 bytes", "limits.variables_bytes is 100"],
            ),
        ] {
            let told = check(&guide);
            assert!(parts.iter().all(|part| told.contains(part)), "{told}");
        }
        let good = guide("coding", Some("new-feature"), &[("feature", "paging")]);
        assert_eq!(library.check(&good, 65_536, 100), Ok(()));
    }

    #[test]
    fn a_persons_own_lie_over_ours_and_every_bad_one_is_told() {
        let own = vec![
            file(
                TextKind::Template,
                "coding.md",
                "My way in {{ repo }}, {{ style }}.\n",
            ),
            file(TextKind::Persona, "me/myself.md", "I.\n"),
        ];
        let library = Library::built_in().with(own, 100).unwrap();
        let mine = guide("coding", None, &[]);
        let told = library.check(&mine, 100, 100).unwrap_err().to_string();
        assert!(told.contains("it needs style"), "{told}");
        assert!(library.find(TextKind::Persona, "me/myself").is_ok());
        let bad = vec![
            file(TextKind::Template, "a.txt", "x"),
            file(TextKind::Template, "Up/../x.md", "x"),
            file(TextKind::Template, "a.md", "{{ x"),
            file(TextKind::Persona, "long.md", &"x".repeat(101)),
            file(
                TextKind::Plan,
                "p.toml",
                "title = '{{ x }}'\n[[phases]]\nname = ''\ntasks = ['t']",
            ),
            file(TextKind::Workflow, "rust.md", "{{ x }}"),
        ];
        let problems = library.with(bad, 100).unwrap_err();
        let parts = [
            "ends in .md",
            "lowercase",
            "line 1",
            "101 bytes",
            "no [variables.x]; there are branch",
            "a workflow has branch",
        ];
        assert_eq!(problems.len(), parts.len());
        for ((source, what), part) in problems.iter().zip(parts) {
            assert!(what.contains(part), "{source}: {what}");
        }
    }

    #[test]
    fn names_are_short_paths_that_cannot_travel() {
        for good in ["coding", "engineering/backend-architect", "a/b/c/d", "0_x"] {
            assert!(good.parse::<TextName>().is_ok(), "{good}");
        }
        let long = "x".repeat(129);
        for bad in [
            "",
            "/",
            "a/",
            "/a",
            "a//b",
            "../a",
            "a/..",
            ".a",
            "A",
            "a.b",
            "a/b/c/d/e",
            &long,
        ] {
            assert!(bad.parse::<TextName>().is_err(), "{bad}");
        }
    }
}
