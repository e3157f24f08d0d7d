//! `dispatch.toml` in the root of a repository: it may choose among what the person configured and
//! lower limits, and nothing else. Must not read a file, and must not learn a key through which a repository could
//! run, mount or reach anything.

use toml::{Table, Value};

use crate::{
    ask::Permissions,
    id::CheckName,
    limits::{Limit, Lowered},
    rules::Rule,
    task::Expects,
};

/// Its name in the root of a repository.
pub const FILE: &str = "dispatch.toml";
/// A longer one is an error.
pub const BYTES_MAX: u64 = 16 << 10;

const ALLOWED: &str = "allowed are task.agent, task.expects, task.checks (names of configured \
                       checks), task.permissions (only a stricter one counts), task.grant and task.rules \
                       (only take away), and limits of a job to lower; the rest belongs into your own configuration";

/// What a repository asks for where the request says nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Project {
    /// A name only: whether it is configured is for the one who uses it.
    pub agent: Option<String>,
    pub expects: Option<Expects>,
    pub checks: Option<Vec<CheckName>>,
    /// Counts where it is stricter than the agent's.
    pub permissions: Option<Permissions>,
    /// No agent's grant is wider than this one; `none`, or a name: whether it is configured is for the
    /// one who uses it.
    pub grant: Option<String>,
    /// Of our own agent, and only where they say less than its own.
    pub rules: Vec<Rule>,
    /// As it was written: whether it is lower is for the one who knows the configuration.
    pub limits: Lowered,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadProject {
    #[error("read dispatch.toml of the repository: {0}")]
    Syntax(String),
    #[error("use {key} of the repository's dispatch.toml: a repository may not set it; {ALLOWED}")]
    Key { key: String },
    #[error("use {key} of the repository's dispatch.toml: {why}")]
    Value { key: String, why: String },
}

pub fn parse(text: &str) -> Result<Project, BadProject> {
    let table: Table = text
        .parse()
        .map_err(|error: toml::de::Error| BadProject::Syntax(error.message().to_owned()))?;
    let mut project = Project::default();
    for (name, value) in &table {
        let Value::Table(task) = value else {
            return Err(BadProject::Key { key: name.clone() });
        };
        if name == "limits" {
            project.limits = limits(task)?;
            continue;
        }
        if name != "task" {
            let key = match task.keys().next() {
                Some(inner) => format!("{name}.{inner}"),
                None => name.clone(),
            };
            return Err(BadProject::Key { key });
        }
        for (key, value) in task {
            match key.as_str() {
                "agent" => project.agent = Some(get("task.agent", value)?),
                "expects" => project.expects = Some(get("task.expects", value)?),
                "checks" => project.checks = Some(get("task.checks", value)?),
                "permissions" => project.permissions = Some(get("task.permissions", value)?),
                "grant" => project.grant = Some(get("task.grant", value)?),
                "rules" => project.rules = get("task.rules", value)?,
                _ => {
                    let key = format!("task.{key}");
                    return Err(BadProject::Key { key });
                }
            }
        }
    }
    Ok(project)
}

fn limits(table: &Table) -> Result<Lowered, BadProject> {
    let mut out = Lowered::default();
    for (name, value) in table {
        let key = format!("limits.{name}");
        let Ok(limit) = name.parse::<Limit>() else {
            return Err(BadProject::Key { key });
        };
        let number = value
            .as_integer()
            .and_then(|value| u64::try_from(value).ok());
        let why = || "a limit is a whole number, in the unit of its name".to_owned();
        out.set(
            limit,
            number.ok_or_else(|| BadProject::Value { key, why: why() })?,
        );
    }
    Ok(out)
}

fn get<T: serde::de::DeserializeOwned>(key: &'static str, value: &Value) -> Result<T, BadProject> {
    value.clone().try_into().map_err(|error: toml::de::Error| {
        let why = error.message().to_owned();
        BadProject::Value {
            key: key.to_owned(),
            why,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_chooses_among_names() {
        let text = "[task]\nagent = \"codex\"\nexpects = \"report\"\nchecks = [\"rust\"]\npermissions = \"ask\"\ngrant = \"helpers\"\n";
        let project = parse(text).unwrap();
        assert_eq!(project.agent.as_deref(), Some("codex"));
        assert_eq!(project.expects, Some(Expects::Report));
        assert_eq!(project.checks, Some(vec!["rust".parse().unwrap()]));
        assert_eq!(project.permissions, Some(Permissions::Ask));
        assert_eq!(project.grant.as_deref(), Some("helpers"));
        assert_eq!(parse("").unwrap(), Project::default());
        let rules =
            "[task]\nrules = [{ group = \"edit\", pattern = \"*.lock\", action = \"deny\" }]\n";
        assert_eq!(parse(rules).unwrap().rules[0].pattern, "*.lock");
    }

    #[test]
    fn anything_else_is_named_and_refused() {
        for (text, key) in [
            ("[agents.x]\nprogram = \"sh\"", "agents.x"),
            (
                "[agents.claude.env]\nANTHROPIC_BASE_URL = \"x\"",
                "agents.claude",
            ),
            ("[checks.x]\nsteps = []", "checks.x"),
            ("[limits]\nqueue_max = 1", "limits.queue_max"),
            ("[limits]\nruns_max = 1", "limits.runs_max"),
            ("[task]\nplacement = \"host\"", "task.placement"),
            ("[placements.host]", "placements.host"),
            ("[pools.x]\nslots = 9", "pools.x"),
            ("hooks = 1", "hooks"),
        ] {
            let error = parse(text).unwrap_err();
            assert_eq!(error, BadProject::Key { key: key.into() });
            assert!(
                error.to_string().contains("allowed are task.agent"),
                "{error}"
            );
        }
        assert!(matches!(parse("[task"), Err(BadProject::Syntax(_))));
        let limits = parse("[limits]\nwall_clock_s = 60\n").unwrap().limits;
        assert_eq!(
            serde_json::to_string(&limits).unwrap(),
            "{\"wall_clock_s\":60}"
        );
        for value in ["-1", "\"1\"", "1.5", "true"] {
            let got = parse(&format!("[limits]\nidle_s = {value}\n"));
            assert!(
                matches!(got, Err(BadProject::Value { .. })),
                "{value}: {got:?}"
            );
        }
        for text in [
            "agent = 1",
            "expects = \"x\"",
            "checks = \"none\"",
            "checks = [\"../x\"]",
            "permissions = \"never\"",
            "rules = [{ group = \"edit\", pattern = \"*\" }]",
            "rules = [{ group = \"all\", pattern = \"*\", action = \"deny\" }]",
        ] {
            let got = parse(&format!("[task]\n{text}"));
            assert!(
                matches!(got, Err(BadProject::Value { .. })),
                "{text}: {got:?}"
            );
        }
    }
}
