//! Definitions of agents that ours may summon, as somebody wrote them down: a person beside their
//! settings, or a repository for whoever works in it. Markdown with front matter, or TOML.
//! Must not read a file, and must not give anything: what a definition says narrows its caller's.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use toml::{Table, Value};

use crate::{
    ask::INPUT_BYTES_MAX,
    config::list,
    hex::hex,
    id::{AgentName, KeyName, ModelName},
    models::Choice,
    native::Listed,
    prompt::untrusted,
    rules::Subject,
    task::Effort,
    toolset,
};

/// Of a person, beside their settings.
pub const FOLDER: &str = "agents";
/// Of a repository, below its root.
pub const REPOSITORY_FOLDER: [&str; 2] = [".dispatch", "agents"];
/// Entries of one folder that are looked at.
pub const FILES_MAX: usize = 200;
/// Of one file.
pub const FILE_BYTES_MAX: u64 = 64 << 10;
const NAME_CHARS_MAX: usize = 80;
const DESCRIPTION_CHARS_MAX: usize = 400;
const SKILLS_MAX: usize = 50;
/// Beside the folder of the agents, in a person's settings as in a repository: NAME.md each.
pub const SKILLS_FOLDER: &str = "skills";
/// Of all skills of one agent together: they are told with every question to its model.
pub const SKILLS_BYTES_MAX: usize = 128 << 10;
const MODELS_MAX: usize = 16;

/// A definition's name in a call: its file's without the ending.
pub type Slug = AgentName;

/// Who wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    Person,
    /// Anybody who could write to it; the asking agent among them.
    Repository,
}

/// What a task is of a definition. Fixed when it is made: the file may say something else later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Role {
    pub slug: Slug,
    pub scope: Scope,
    /// A repository's where the person has one of that name, too: what was said of theirs was not said
    /// of this.
    #[serde(default, skip_serializing_if = "is_false")]
    pub in_place: bool,
    /// Shown instead of the slug.
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub instructions: String,
    /// As the definition names them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skills: Vec<String>,
    /// What they were when it was made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub taught: Vec<Skill>,
}

/// A text that an agent is taught, by whoever defined the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skill {
    pub name: Slug,
    pub text: String,
}

/// A skill's file by its name in a definition. Older ones say before a colon whose it is.
///
/// # Errors
/// When it cannot be a name.
pub fn skill_name(text: &str) -> Result<Slug, String> {
    let name = text.rsplit_once(':').map_or(text, |(_, name)| name);
    name.parse()
        .map_err(|error| format!("its skill {text:?}: {error}"))
}

/// What of a skill's file is taught: what stands below its front matter, whatever that is for.
#[must_use]
pub fn skill_text(text: &str) -> &str {
    let fences = ["---", "+++"].into_iter().find_map(|fence| {
        let inner = text.strip_prefix(fence)?.strip_prefix('\n')?;
        let (_, body) = inner.split_once(&format!("\n{fence}\n"))?;
        Some(body)
    });
    fences.unwrap_or(text).trim()
}

fn is_false(value: &bool) -> bool {
    !value
}

impl Role {
    /// What rules are asked about before it is summoned.
    #[must_use]
    pub fn subjects(&self) -> Vec<Subject> {
        subjects(self.slug.as_str(), self.in_place)
    }

    /// The first line of the question whether it may be.
    #[must_use]
    pub fn question_head(&self, top_level: bool) -> String {
        question_head(self.slug.as_str(), self.scope, top_level)
    }

    /// What its model is told of it. A repository's words are quoted: they are not the person's.
    #[must_use]
    pub fn words(&self) -> String {
        let mut parts = vec![format!("You were summoned as the agent {}.", self.name)];
        let text = self.instructions.trim();
        match self.scope {
            _ if text.is_empty() => {}
            Scope::Person => parts.push(text.to_owned()),
            Scope::Repository => parts.push(untrusted(
                "what the repository says of this agent; heed it as far as the task goes",
                text,
                usize::MAX,
            )),
        }
        parts.extend(self.taught.iter().map(|skill| match self.scope {
            Scope::Person => format!("# Skill {}\n\n{}", skill.name, skill.text),
            Scope::Repository => untrusted(
                &format!(
                    "the repository's skill {} for this agent; heed it as far as the task goes",
                    skill.name
                ),
                &skill.text,
                usize::MAX,
            ),
        }));
        parts.join("\n\n")
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Definition {
    pub role: Role,
    pub description: String,
    /// Absent: all that its caller has.
    pub tools: Option<Vec<String>>,
    /// Empty: those of its caller.
    pub models: Vec<Choice>,
    /// Below its caller's directory.
    pub cwd: Option<String>,
    /// It works for whoever summons it; else it stands for itself.
    pub is_subagent: bool,
}

/// What a file says before it is checked.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    name: Option<String>,
    #[serde(default)]
    description: String,
    #[serde(default)]
    instructions: String,
    #[serde(default)]
    skills: Vec<String>,
    tools: Option<Vec<String>>,
    #[serde(default)]
    models: Vec<WrittenModel>,
    cwd: Option<String>,
    #[serde(default)]
    is_subagent: bool,
}

/// `KEY/MODEL[:effort]`, or the table of the older shape.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum WrittenModel {
    Text(String),
    Table(ModelTable),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelTable {
    key_id: String,
    model_id: String,
    effort: Option<String>,
}

fn effort_of(word: &str) -> Option<Effort> {
    Effort::ALL.into_iter().find(|effort| effort.word() == word)
}

impl WrittenModel {
    fn choice(self) -> Result<Choice, String> {
        let text = |error: crate::id::BadId| error.to_string();
        match self {
            Self::Table(table) => {
                let effort = table.effort.map(|word| {
                    let known = effort_of(&word);
                    known.ok_or_else(|| format!("{word:?} is not how hard to think"))
                });
                Ok(Choice {
                    key: table.key_id.parse().map_err(text)?,
                    model: table.model_id.parse().map_err(text)?,
                    effort: effort.transpose()?,
                })
            }
            Self::Text(word) => {
                let (key, rest) = word
                    .split_once('/')
                    .ok_or_else(|| format!("{word:?} is no KEY/MODEL"))?;
                let key: KeyName = key.parse().map_err(text)?;
                // A model's own name may have a colon.
                let effort = rest
                    .rsplit_once(':')
                    .and_then(|(model, effort)| Some((model, effort_of(effort)?)));
                let (model, effort) = match effort {
                    Some((model, effort)) => (model, Some(effort)),
                    None => (rest, None),
                };
                let model: ModelName = model.parse().map_err(text)?;
                Ok(Choice { key, model, effort })
            }
        }
    }
}

/// A file of a folder: `NAME.md` or `NAME.toml`. `None`: another file, which is none of ours.
#[must_use]
pub fn slug_of(file: &str) -> Option<(Result<Slug, String>, Shape)> {
    let (stem, shape) = match file.rsplit_once('.')? {
        (stem, "md") => (stem, Shape::Markdown),
        (stem, "toml") => (stem, Shape::Toml),
        _ => return None,
    };
    let slug = stem.parse().map_err(|_| {
        format!(
            "{stem:?} cannot be a definition's name: 1 to 64 of letters, digits, '-', '_' and '.'"
        )
    });
    Some((slug, shape))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Markdown,
    Toml,
}

/// What a file says.
///
/// # Errors
/// In words for a person: where, and what is wrong.
pub fn parse(slug: &Slug, scope: Scope, shape: Shape, text: &str) -> Result<Definition, String> {
    let written = match shape {
        Shape::Toml => {
            let table: Table = text.parse().map_err(|error| told(&error))?;
            written(table)?
        }
        Shape::Markdown => {
            let (table, body) = front_matter(text)?;
            if table.contains_key("instructions") {
                return Err("the instructions are what stands below the front matter".to_owned());
            }
            Written {
                instructions: body.trim().to_owned(),
                ..written(table)?
            }
        }
    };
    checked(slug, scope, written)
}

fn told(error: &toml::de::Error) -> String {
    error.message().trim_end().to_owned()
}

fn written(table: Table) -> Result<Written, String> {
    Value::Table(table).try_into().map_err(|error| told(&error))
}

fn one_line(what: &str, text: &str, chars_max: usize) -> Result<String, String> {
    let text = text.trim();
    if text.chars().any(char::is_control) {
        return Err(format!("{what} must be one line"));
    }
    if text.chars().count() > chars_max {
        return Err(format!("{what} has more than {chars_max} characters"));
    }
    Ok(text.to_owned())
}

fn checked(slug: &Slug, scope: Scope, written: Written) -> Result<Definition, String> {
    let name = written.name.as_deref().unwrap_or(slug.as_str());
    let name = one_line("name", name, NAME_CHARS_MAX)?;
    if written.skills.len() > SKILLS_MAX || written.models.len() > MODELS_MAX {
        return Err(format!(
            "it has more than {SKILLS_MAX} skills or {MODELS_MAX} models"
        ));
    }
    let skills = written.skills.iter();
    let skills = skills.map(|skill| one_line("a skill", skill, NAME_CHARS_MAX));
    let tools = written.tools.as_deref().map(toolset::list).transpose();
    let tools = tools.map_err(|error| error.to_string())?;
    let models = written.models.into_iter().map(WrittenModel::choice);
    Ok(Definition {
        role: Role {
            slug: slug.clone(),
            scope,
            in_place: false,
            name,
            instructions: written.instructions.trim().to_owned(),
            skills: skills.collect::<Result<_, _>>()?,
            taught: Vec::new(),
        },
        description: one_line("description", &written.description, DESCRIPTION_CHARS_MAX)?,
        tools: tools.map(|tools| tools.into_iter().collect()),
        models: models.collect::<Result<_, _>>()?,
        cwd: written.cwd,
        is_subagent: written.is_subagent,
    })
}

const FENCE: &str = "---";

/// The table between the first two lines of dashes, and what stands below it. Of YAML it has what such
/// tables are made of: `key: value`, `key: [a, b]`, and a list of `- item` lines below its key.
fn front_matter(text: &str) -> Result<(Table, String), String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut lines = text.lines().zip(1..);
    if lines.next().map(|(line, _)| line.trim_end()) != Some(FENCE) {
        return Err(format!("it does not begin with a line {FENCE}"));
    }
    let mut table = Table::new();
    let mut open: Option<String> = None;
    for (line, n) in lines.by_ref() {
        let wrong = |what: &str| format!("line {n}: {what}");
        let trimmed = line.trim();
        if line.trim_end() == FENCE {
            let body: Vec<&str> = lines.map(|(line, _)| line).collect();
            return Ok((table, body.join("\n")));
        }
        if trimmed.is_empty() || trimmed.starts_with('#') {
            continue;
        }
        if let Some(item) = trimmed.strip_prefix("- ") {
            let key = open.as_ref().ok_or_else(|| wrong("an item of no list"))?;
            let slot = table.entry(key.clone());
            let slot = slot.or_insert_with(|| Value::Array(Vec::new()));
            let Value::Array(items) = slot else {
                return Err(wrong("an item of what is no list"));
            };
            let item = scalar(uncommented(item.trim()));
            items.push(Value::String(item.map_err(|what| wrong(&what))?));
            continue;
        }
        if line.starts_with([' ', '\t']) {
            return Err(wrong("it is indented, and no item of a list"));
        }
        let pair = trimmed.split_once(':');
        let (key, value) = pair.ok_or_else(|| wrong("it is no `key: value`"))?;
        let (key, value) = (key.trim().to_owned(), uncommented(value.trim()));
        if table.contains_key(&key) || open.as_deref() == Some(key.as_str()) {
            return Err(wrong(&format!("{key} is there twice")));
        }
        open = None;
        if value.is_empty() {
            open = Some(key);
            continue;
        }
        let value = inline(value).map_err(|what| wrong(&what))?;
        table.insert(key, value);
    }
    Err(format!(
        "its front matter has no end: a second line {FENCE}"
    ))
}

/// Without a word for the reader behind it.
fn uncommented(text: &str) -> &str {
    if text.starts_with('#') {
        return "";
    }
    let quote = text.chars().next().filter(|c| matches!(c, '"' | '\''));
    let closed = quote.and_then(|quote| text[1..].find(quote));
    let from = closed.map_or(0, |at| at + 2);
    match text[from..].find(" #") {
        Some(at) => text[..from + at].trim_end(),
        None => text,
    }
}

fn inline(value: &str) -> Result<Value, String> {
    match value {
        "true" => return Ok(Value::Boolean(true)),
        "false" => return Ok(Value::Boolean(false)),
        _ => {}
    }
    if let Some(rest) = value.strip_prefix('[') {
        let inner = rest
            .strip_suffix(']')
            .ok_or("a list must end on its line, with ]")?;
        let items = inner
            .split(',')
            .map(str::trim)
            .filter(|one| !one.is_empty());
        let items = items.map(|item| scalar(item).map(Value::String));
        return Ok(Value::Array(items.collect::<Result<_, _>>()?));
    }
    scalar(value).map(Value::String)
}

/// Plain or quoted. What YAML would read as something else is refused, and not taken for a text.
fn scalar(text: &str) -> Result<String, String> {
    let text = text.trim();
    for quote in ['"', '\''] {
        if let Some(rest) = text.strip_prefix(quote) {
            let inner = rest.strip_suffix(quote);
            let inner = inner.filter(|inner| !inner.contains(quote) && !inner.contains('\\'));
            return inner
                .map(str::to_owned)
                .ok_or_else(|| format!("{text} is no text in quotes"));
        }
    }
    if text.starts_with(['{', '[', '&', '*', '!', '|', '>', '%', '@', '`']) {
        return Err(format!("{text:?} must stand in quotes"));
    }
    Ok(text.to_owned())
}

/// What a person reads before they let an agent be summoned, and what the engine finds it by again. One
/// that is too long to be kept whole says what all of it is, so that it stands for no other.
#[must_use]
pub fn question(head: &str, task: &str) -> String {
    if head.len() + 1 + task.len() <= INPUT_BYTES_MAX {
        return format!("{head}\n{task}");
    }
    let digest = hex(&Sha256::digest(task));
    let bytes = task.len();
    let head = format!("{head}\n[The task has {bytes} bytes, SHA-256 {digest}. It begins:]\n");
    let room = INPUT_BYTES_MAX.saturating_sub(head.len());
    let shown = &task[..task.floor_char_boundary(room)];
    format!("{head}{shown}")
}

/// Its first line: which one, and whose, whatever the task is.
#[must_use]
pub fn question_head(slug: &str, scope: Scope, top_level: bool) -> String {
    let kind = if top_level {
        "top-level agent"
    } else {
        "agent"
    };
    match scope {
        Scope::Person => format!("{kind} {slug}"),
        Scope::Repository => format!("{kind} {slug} of the repository"),
    }
}

/// What rules are asked about, which all have to agree: one that is in the place of a person's has a
/// name of its own besides, so that a rule for theirs takes away and does not give.
#[must_use]
pub fn subjects(slug: &str, in_place: bool) -> Vec<Subject> {
    let mut subjects = vec![Subject::name(slug)];
    if in_place {
        subjects.push(Subject::name(format!("repository/{slug}")));
    }
    subjects
}

/// All that there are for one caller, by slug. A file that cannot be read stands in the way of the
/// other one with its name: taking that instead would be another agent than was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Catalogue {
    known: BTreeMap<Slug, Result<Definition, String>>,
    /// What has no name, or is too much.
    pub problems: Vec<String>,
}

impl Catalogue {
    /// Of two files with one name in one folder neither counts.
    pub fn add(&mut self, slug: Slug, found: Result<Definition, String>) {
        let twice = Err(format!("there are two files for {slug}; remove one"));
        let known = self.known.entry(slug);
        known.and_modify(|known| *known = twice).or_insert(found);
    }

    /// The nearer one counts, and is known to be in the place of another.
    #[must_use]
    pub fn under(mut self, nearer: Self) -> Self {
        for (slug, mut found) in nearer.known {
            if let Ok(definition) = &mut found {
                definition.role.in_place = self.known.contains_key(&slug);
            }
            self.known.insert(slug, found);
        }
        self.problems.extend(nearer.problems);
        self
    }

    fn good(&self) -> impl Iterator<Item = &Definition> {
        self.known.values().filter_map(|found| found.as_ref().ok())
    }

    /// As an agent is told of it at its start, sorted.
    #[must_use]
    pub fn listed(&self) -> Vec<Listed> {
        let listed = |one: &Definition| Listed {
            slug: one.role.slug.to_string(),
            description: one.description.clone(),
            subagent: one.is_subagent,
            of_repository: one.role.scope == Scope::Repository,
            in_place: one.role.in_place,
        };
        self.good().map(listed).collect()
    }

    /// Files that are there and of no use, and why.
    pub fn faults(&self) -> impl Iterator<Item = &str> {
        let known = self.known.values().filter_map(|found| found.as_ref().err());
        known.chain(&self.problems).map(String::as_str)
    }

    fn slugs(&self, subagent: Option<bool>) -> String {
        let mut fitting = self
            .good()
            .filter(|one| subagent.is_none_or(|wanted| one.is_subagent == wanted))
            .map(|one| &one.role.slug)
            .peekable();
        match fitting.peek() {
            None => "none".to_owned(),
            Some(_) => list(fitting),
        }
    }

    /// The one of that name, if it is of the kind that is asked for.
    ///
    /// # Errors
    /// What there is instead.
    pub fn find(&self, slug: &str, top_level: bool) -> Result<&Definition, BadSummon> {
        let found = self.known.iter().find(|(known, _)| known.as_str() == slug);
        let definition = match found {
            Some((_, Ok(definition))) => definition,
            Some((known, Err(why))) => {
                let (slug, why) = (known.clone(), why.clone());
                return Err(BadSummon::Broken { slug, why });
            }
            None => {
                let (slug, there) = (slug.to_owned(), self.slugs(None));
                let faults: Vec<&str> = self.faults().collect();
                let faults = match faults[..] {
                    [] => String::new(),
                    _ => format!(" (of no use: {})", faults.join("; ")),
                };
                return Err(BadSummon::Unknown {
                    slug,
                    there,
                    faults,
                });
            }
        };
        let slug = definition.role.slug.clone();
        match (definition.is_subagent, top_level) {
            (true, true) => Err(BadSummon::Subagent {
                slug,
                there: self.slugs(Some(false)),
            }),
            (false, false) => Err(BadSummon::TopLevel {
                slug,
                there: self.slugs(Some(true)),
            }),
            (true, false) | (false, true) => Ok(definition),
        }
    }
}

/// Why an agent is not summoned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSummon {
    #[error("summon {slug:?}: there is no such definition; there are {there}{faults}")]
    Unknown {
        slug: String,
        there: String,
        faults: String,
    },
    #[error("summon {slug}: its definition is of no use: {why}")]
    Broken { slug: Slug, why: String },
    #[error(
        "summon {slug}: it works for whoever summons it; leave top_level out. With top_level there are \
         {there}"
    )]
    Subagent { slug: Slug, there: String },
    #[error(
        "summon {slug}: it stands for itself; set top_level to true. Without top_level there are {there}"
    )]
    TopLevel { slug: Slug, there: String },
    #[error(
        "summon {slug}: its model {wanted} is not among those of your task, and {whose}; there are {there}"
    )]
    Model {
        slug: Slug,
        wanted: Choice,
        whose: &'static str,
        there: String,
    },
    #[error("work in {asked:?}: it is not a directory below your own, {own:?} of the repository")]
    Outside { asked: String, own: String },
    #[error(transparent)]
    Tools(#[from] toolset::BadTools),
}

impl Definition {
    /// Whom it asks. A person's definition may name any model of a key that its caller has; a
    /// repository's only a model that its caller asks itself, thinking as hard as it does.
    ///
    /// # Errors
    /// Which model its caller does not have.
    pub fn chain(&self, callers: &[Choice]) -> Result<Vec<Choice>, BadSummon> {
        if self.models.is_empty() {
            return Ok(callers.to_vec());
        }
        let scope = self.role.scope;
        let granted = |wanted: &Choice| {
            let mut same_key = callers.iter().filter(|own| own.key == wanted.key);
            let granted = match scope {
                Scope::Person => same_key.next().map(|_| wanted),
                Scope::Repository => same_key.find(|own| own.model == wanted.model),
            };
            granted.cloned().ok_or_else(|| BadSummon::Model {
                slug: self.role.slug.clone(),
                wanted: wanted.clone(),
                whose: match scope {
                    Scope::Person => "no other key is used than a task was made with",
                    Scope::Repository => "a repository chooses no other",
                },
                there: list(callers.iter()),
            })
        };
        self.models.iter().map(granted).collect()
    }
}

/// A directory of the repository, as a path below its root without `.` and `..`; empty: the root.
///
/// # Errors
/// When it is not below the caller's own.
pub fn directory(own: &str, asked: Option<&str>, root: &str) -> Result<String, BadSummon> {
    let outside = || BadSummon::Outside {
        asked: asked.unwrap_or_default().to_owned(),
        own: own.to_owned(),
    };
    let Some(text) = asked.map(str::trim) else {
        return Ok(own.to_owned());
    };
    // As it sees it: its own workspace's, which the other one does not have.
    let (mut parts, rest) = match text.strip_prefix('/') {
        None => (parts_of(own), text),
        Some(_) => {
            let below = text
                .strip_prefix(root)
                .filter(|below| !root.is_empty() && (below.is_empty() || below.starts_with('/')));
            (Vec::new(), below.ok_or_else(outside)?)
        }
    };
    for part in rest.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop().ok_or_else(outside)?;
            }
            part if part.contains('\0') => return Err(outside()),
            part => parts.push(part),
        }
    }
    if !parts.starts_with(&parts_of(own)) {
        return Err(outside());
    }
    Ok(parts.join("/"))
}

fn parts_of(path: &str) -> Vec<&str> {
    path.split('/').filter(|part| !part.is_empty()).collect()
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Person => "person",
            Self::Repository => "repository",
        })
    }
}

#[cfg(test)]
mod tests;
