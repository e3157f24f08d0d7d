//! What must pass after the agent is done: `[checks.*]`, detection from the base commit, and which
//! changed files are what checks consist of.
//! Must not run anything and must not read the agent's tree: markers come from the base commit.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::{id::CheckName, task::ChecksAsked};

/// A file in the root of the base commit, and optionally a text in it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Marker {
    pub file: String,
    /// Any one of these texts at the start of a line, or anywhere for JSON files. Empty: the file
    /// alone decides.
    #[serde(default)]
    pub contains: Vec<String>,
}

impl Marker {
    fn holds(&self, root: &RootFiles) -> bool {
        let Some(content) = root.get(&self.file) else {
            return false;
        };
        let anywhere = self.file.ends_with(".json");
        let found = |text: &String| {
            if anywhere {
                content.contains(text.as_str())
            } else {
                content.lines().any(|line| line.starts_with(text.as_str()))
            }
        };
        self.contains.is_empty() || self.contains.iter().any(found)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    pub name: String,
    pub argv: Vec<String>,
    /// Only when one of these holds, if there are any.
    #[serde(default)]
    pub when: Vec<Marker>,
    /// Not when one of these holds.
    #[serde(default)]
    pub unless: Vec<Marker>,
}

/// One `[checks.NAME]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// Lower is looked at first.
    pub rank: u32,
    /// Any one of them in the base commit selects this check.
    pub markers: Vec<Marker>,
    pub steps: Vec<Step>,
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Patterns of files that the check consists of.
    #[serde(default)]
    pub files: Vec<String>,
}

pub type Checks = BTreeMap<CheckName, Check>;
/// Marker files that exist in the base commit's root, with their content.
pub type RootFiles = BTreeMap<String, String>;

/// One command to run, under the name its job and its log have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    pub name: CheckName,
    pub argv: Vec<String>,
    pub env: BTreeMap<String, String>,
}

/// The marker files that [`plan`] wants to see.
#[must_use]
pub fn marker_files(checks: &Checks) -> Vec<&str> {
    let mut files: Vec<&str> = checks
        .values()
        .flat_map(|check| {
            let steps = check
                .steps
                .iter()
                .flat_map(|step| step.when.iter().chain(&step.unless));
            check.markers.iter().chain(steps)
        })
        .map(|marker| marker.file.as_str())
        .collect();
    files.sort_unstable();
    files.dedup();
    files
}

/// The check that the base commit asks for; it is named after a language.
#[must_use]
pub fn detected<'a>(checks: &'a Checks, root: &RootFiles) -> Option<(&'a CheckName, &'a Check)> {
    let fits = |(_, check): &(&CheckName, &Check)| check.markers.iter().any(|m| m.holds(root));
    checks
        .iter()
        .filter(fits)
        .min_by_key(|(_, check)| check.rank)
}

/// The commands to run, in order. Empty means that nothing can vouch for the result.
#[must_use]
pub fn plan(checks: &Checks, asked: &ChecksAsked, root: &RootFiles) -> Vec<Planned> {
    let chosen: Vec<(&CheckName, &Check)> = match asked {
        ChecksAsked::None => Vec::new(),
        ChecksAsked::Named(names) => names
            .iter()
            .filter_map(|name| checks.get_key_value(name))
            .collect(),
        ChecksAsked::Detect => detected(checks, root).into_iter().collect(),
    };
    let mut planned = Vec::new();
    for (name, check) in chosen {
        for step in &check.steps {
            let wanted = step.when.is_empty() || step.when.iter().any(|m| m.holds(root));
            if !wanted || step.unless.iter().any(|m| m.holds(root)) {
                continue;
            }
            if let Ok(full) = format!("{name}.{}", step.name).parse() {
                planned.push(Planned {
                    name: full,
                    argv: step.argv.clone(),
                    env: check.env.clone(),
                });
            }
        }
    }
    planned
}

/// Which of the changed paths are what checks consist of.
#[must_use]
pub fn touched<'a>(checks: &Checks, paths: impl Iterator<Item = &'a str>) -> Vec<String> {
    let patterns: Vec<&String> = checks.values().flat_map(|check| &check.files).collect();
    let hit = |path: &&str| patterns.iter().any(|pattern| matches(pattern, path));
    paths.filter(hit).map(ToOwned::to_owned).collect()
}

/// `name/` is a folder of that name anywhere; else the pattern is for the file's name, with `*`.
fn matches(pattern: &str, path: &str) -> bool {
    let (folders, file) = path.rsplit_once('/').unwrap_or(("", path));
    match pattern.strip_suffix('/') {
        Some(folder) => folders.split('/').any(|part| part == folder),
        None => match pattern.split_once('*') {
            None => file == pattern,
            Some((start, end)) => {
                file.len() >= start.len() + end.len()
                    && file.starts_with(start)
                    && file.ends_with(end)
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn planned(files: &[(&str, &str)]) -> Vec<String> {
        let root: RootFiles = files
            .iter()
            .map(|(k, v)| ((*k).into(), (*v).into()))
            .collect();
        let checks = Config::defaults().checks;
        let line = |p: Planned| format!("{}: {}", p.name, p.argv.join(" "));
        plan(&checks, &ChecksAsked::Detect, &root)
            .into_iter()
            .map(line)
            .collect()
    }

    #[test]
    fn languages_are_told_by_the_base_commit() {
        assert_eq!(
            planned(&[("go.mod", ""), ("Makefile", "check:\n")]),
            [
                "go.build: go build ./...",
                "go.vet: go vet ./...",
                "go.test: go test ./... -count=1 -timeout 120s"
            ]
        );
        assert_eq!(
            planned(&[
                ("package.json", r#"{"scripts":{"test":"x"}}"#),
                ("package-lock.json", "")
            ]),
            ["node.ci: npm ci", "node.test: npm test"]
        );
        assert_eq!(
            planned(&[("package.json", "{}")]),
            ["node.install: npm install"]
        );
        assert_eq!(
            planned(&[("Makefile", "all:\ntest: x\n")]),
            ["make.test: make test"]
        );
        assert_eq!(
            planned(&[("Makefile", "check:\ntest:\n")]),
            ["make.check: make check"]
        );
        assert_eq!(planned(&[("Makefile", "all:\n")]), [""; 0]);
        assert_eq!(planned(&[("README.md", "")]), [""; 0]);
    }

    #[test]
    fn files_that_checks_consist_of() {
        let checks = Config::defaults().checks;
        let got = touched(
            &checks,
            [
                "src/lib.rs",
                "tests/a.rs",
                "pkg/x_test.go",
                "Makefile",
                "a/test_b.py",
            ]
            .into_iter(),
        );
        assert_eq!(
            got,
            ["tests/a.rs", "pkg/x_test.go", "Makefile", "a/test_b.py"]
        );
    }
}
