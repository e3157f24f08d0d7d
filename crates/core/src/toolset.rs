//! Which tools our own agent has in one task, by their names: lists that all have to name a tool. What
//! is asked for by an agent has the lists of its asker and its own, so none of them can be undone.
//! Must not know what a tool does, and must not give one: a list only takes away.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{
    id::ServerName,
    rules::{Group, fits},
};

/// Between a server's name and its tool's.
pub const BETWEEN: &str = "__";
/// The tools at our own door: whether a task has them, its grant says.
pub const OURS: &str = "dispatch__*";
/// Entries of one list.
pub const LIST_MAX: usize = 200;
/// Of one entry.
const ENTRY_BYTES_MAX: usize = 128;

/// Every tool of our own agent, under the group that its permission belongs to.
pub const NAMES: [(Group, &[&str]); 14] = [
    (Group::Read, &["read_file", "read_file_slice", "list_files"]),
    (Group::Edit, &["write_file", "edit_file", "apply_patch"]),
    (Group::Shell, &["run_shell", "shell_jobs"]),
    (Group::SearchCode, &["search_code"]),
    (Group::WebSearch, &["web_search"]),
    (Group::WebFetch, &["web_fetch"]),
    (Group::KeyUsage, &["key_usage"]),
    (Group::Lsp, &["lsp"]),
    (Group::YoutubeTranscribe, &["youtube_transcribe"]),
    (Group::Todo, &["todo"]),
    (Group::Summon, &["summon", "retrieve"]),
    (Group::UserAgent, &["summon"]),
    (Group::SendToTab, &["send_to_tab"]),
    (Group::ReadTab, &["read_tab"]),
];

/// A tool that comes with another one, and everybody's.
fn comes_with(name: &str) -> Option<&'static str> {
    match name {
        "read_file_slice" => Some("read_file"),
        "shell_jobs" => Some("run_shell"),
        "retrieve" => Some("summon"),
        _ => None,
    }
}

const EVERYBODYS: &str = "todo";

/// Whether one list has a tool, with what comes with its entries.
#[must_use]
pub fn names<T: AsRef<str>>(list: &[T], tool: &str) -> bool {
    let named = |tool: &str| {
        list.iter().any(|entry| {
            let entry = entry.as_ref();
            entry == tool || (entry.contains(BETWEEN) && fits(entry, tool))
        })
    };
    tool == EVERYBODYS || named(tool) || comes_with(tool).is_some_and(named)
}

/// Not one of our tools, nor one of a server's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadTools {
    #[error(
        "use tool {name:?}: it is not known; there are {there}, the groups of them, and SERVER__TOOL of \
         MCP servers", there = known()
    )]
    Unknown { name: String },
    #[error("use a list of tools: it has {entries} entries, the most are {LIST_MAX}")]
    Long { entries: usize },
}

fn known() -> String {
    let all = NAMES
        .iter()
        .filter(|(group, _)| *group != Group::UserAgent)
        .flat_map(|(_, tools)| tools.iter());
    crate::config::list(all)
}

/// The names that an entry stands for: a group's, or its own.
fn meant(entry: &str) -> Option<Vec<String>> {
    // As it was called once.
    let word = if entry == "bash" { "shell" } else { entry };
    let own = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    if let Some((_, tools)) = NAMES.iter().find(|(group, _)| group.word() == word) {
        return Some(own(tools));
    }
    if word == Group::Mcp.word() {
        return Some(vec![format!("*{BETWEEN}*")]);
    }
    let ours = NAMES.iter().any(|(_, tools)| tools.contains(&entry));
    let served = entry.contains(BETWEEN) && entry.len() <= ENTRY_BYTES_MAX;
    (ours || served).then(|| vec![entry.to_owned()])
}

/// A list as somebody wrote it: names of tools and of groups.
///
/// # Errors
/// When it names what there is not.
pub fn list<T: AsRef<str>>(entries: &[T]) -> Result<BTreeSet<String>, BadTools> {
    if entries.len() > LIST_MAX {
        let entries = entries.len();
        return Err(BadTools::Long { entries });
    }
    let mut all = BTreeSet::new();
    for entry in entries {
        let entry = entry.as_ref();
        let name: String = entry.chars().take(ENTRY_BYTES_MAX).collect();
        all.extend(meant(entry).ok_or(BadTools::Unknown { name })?);
    }
    Ok(all)
}

/// The tools of one task. Without a list: all that its agent has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Toolset(Vec<Vec<String>>);

impl Toolset {
    /// What an agent's table names. What comes with a grant is not its to name.
    #[must_use]
    pub fn of_agent(names: Option<&[String]>) -> Self {
        let Some(names) = names else {
            return Self::default();
        };
        let ours = [OURS.to_owned()];
        Self::default().and(names.iter().cloned().chain(ours))
    }

    #[must_use]
    pub fn is_all(&self) -> bool {
        self.0.is_empty()
    }

    #[must_use]
    pub fn has(&self, tool: &str) -> bool {
        self.0.iter().all(|list| names(list, tool))
    }

    /// Whether a server may have a tool among them.
    #[must_use]
    pub fn reaches(&self, server: &ServerName) -> bool {
        let heads = |list: &Vec<String>| {
            let mut heads = list.iter().filter_map(|entry| entry.split_once(BETWEEN));
            heads.any(|(head, _)| fits(head, server.as_str()) || fits(head, &plain(server)))
        };
        self.0.iter().all(heads)
    }

    /// What this and the list both have.
    #[must_use]
    pub fn and(mut self, list: impl IntoIterator<Item = String>) -> Self {
        let list: Vec<String> = list.into_iter().collect();
        if !self.0.contains(&list) {
            self.0.push(list);
        }
        self
    }

    /// What both have.
    #[must_use]
    pub fn meet(&self, other: &Self) -> Self {
        other.0.iter().cloned().fold(self.clone(), Self::and)
    }
}

/// A server's name as its tools have it.
fn plain(server: &ServerName) -> String {
    server.as_str().replace('.', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(lists: &[&[&str]]) -> Toolset {
        let all = lists.iter().map(|entries| list(entries).unwrap());
        all.fold(Toolset::default(), Toolset::and)
    }

    #[test]
    fn every_list_has_to_name_it() {
        let none = Toolset::default();
        assert!(none.is_all() && none.has("run_shell") && none.has("files__read"));
        let few = of(&[
            &["read", "bash", "files__*"],
            &["read_file", "files__read", "summon"],
        ]);
        for (tool, has) in [
            ("read_file", true),
            ("read_file_slice", true),
            ("list_files", false),
            ("run_shell", false),
            ("shell_jobs", false),
            ("files__read", true),
            ("files__write", false),
            ("summon", false),
            ("todo", true),
        ] {
            assert_eq!(few.has(tool), has, "{tool}");
        }
        let server = |name: &str| name.parse::<ServerName>().unwrap();
        assert!(few.reaches(&server("files")) && !few.reaches(&server("other")));
        assert!(of(&[&["mcp"]]).reaches(&server("my.files")));
        assert!(of(&[&["summon"]]).has("retrieve"));
    }

    /// A pattern is for servers: `*` or `r*` would be more than was written.
    #[test]
    fn what_is_not_known_is_named_with_what_is() {
        for bad in ["fly", "*", "r*", "", "Read"] {
            let error = list(&[bad]).unwrap_err().to_string();
            assert!(error.contains("there are read_file,"), "{error}");
        }
        assert!(list(&["todo"; LIST_MAX + 1]).is_err());
    }

    /// In whatever order: what comes of two has nothing that one of them does not have.
    #[test]
    fn what_comes_of_two_is_never_more_than_either() {
        let samples = [
            Toolset::default(),
            of(&[&[]]),
            of(&[&["read"]]),
            of(&[&["read", "shell", "mcp"], &["files__*", "read_file"]]),
            of(&[&["summon", "user_agent", "run_shell"]]),
        ];
        let tools = NAMES.iter().flat_map(|(_, tools)| tools.iter().copied());
        let tools: Vec<&str> = tools.chain(["files__a", "other__b"]).collect();
        for one in &samples {
            for two in &samples {
                for tool in &tools {
                    let both = one.meet(two).has(tool);
                    assert_eq!(both, one.has(tool) && two.has(tool), "{tool}");
                    assert_eq!(both, two.meet(one).has(tool));
                }
            }
        }
    }
}
