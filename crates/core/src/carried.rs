//! What a repository carries for agents and editors, by the paths of its base commit, and the worst
//! each could do. Must not read a file: what is in it is for the one who would be led by it.

use serde::{Deserialize, Serialize};

/// How many findings one run tells; a repository with more has made its point.
pub const CARRIED_MAX: usize = 64;

/// The worst that a file could do to whoever reads it as configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Can {
    RunCommands,
    /// Endpoint, keys or permissions.
    ChangeAccess,
    /// Words only.
    Instruct,
}

impl Can {
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::RunCommands => "run_commands",
            Self::ChangeAccess => "change_access",
            Self::Instruct => "instruct",
        }
    }

    /// For a person.
    #[must_use]
    pub fn phrase(self) -> &'static str {
        match self {
            Self::RunCommands => "could run commands",
            Self::ChangeAccess => "could change endpoint, keys or permissions",
            Self::Instruct => "instructs agents",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Carried {
    pub path: String,
    pub can: Can,
}

/// Folders whose direct children are asked for besides the root's.
pub const FOLDERS: &[&str] = &[
    ".claude",
    ".codex",
    ".cursor",
    ".gemini",
    ".github",
    ".opencode",
    ".vscode",
];

/// Exact paths. What is not here but lies in an agent's folder is in [`IN_FOLDERS`].
const KNOWN: &[(&str, Can)] = &[
    (".claude/settings.json", Can::RunCommands),
    (".claude/settings.local.json", Can::RunCommands),
    (".claude/hooks", Can::RunCommands),
    (".claude/commands", Can::RunCommands),
    (".claude/skills", Can::RunCommands),
    (".claude/agents", Can::ChangeAccess),
    (".claude/CLAUDE.md", Can::Instruct),
    (".claude/rules", Can::Instruct),
    (".claude/output-styles", Can::Instruct),
    (".claude-plugin", Can::RunCommands),
    (".mcp.json", Can::RunCommands),
    ("CLAUDE.md", Can::Instruct),
    ("CLAUDE.local.md", Can::Instruct),
    (".codex/prompts", Can::Instruct),
    (".codex/AGENTS.md", Can::Instruct),
    ("AGENTS.md", Can::Instruct),
    ("AGENTS.override.md", Can::Instruct),
    (".gemini/GEMINI.md", Can::Instruct),
    (".gemini/.env", Can::ChangeAccess),
    ("GEMINI.md", Can::Instruct),
    ("opencode.json", Can::RunCommands),
    ("opencode.jsonc", Can::RunCommands),
    (".cursor/rules", Can::Instruct),
    (".cursorrules", Can::Instruct),
    (".windsurfrules", Can::Instruct),
    (".github/copilot-instructions.md", Can::Instruct),
    (".aider.conf.yml", Can::RunCommands),
    (".env", Can::ChangeAccess),
    (".envrc", Can::RunCommands),
    ("mise.toml", Can::RunCommands),
    (".mise.toml", Can::RunCommands),
    (".vscode/tasks.json", Can::RunCommands),
    (".vscode/settings.json", Can::RunCommands),
    (".vscode/mcp.json", Can::RunCommands),
    (".devcontainer", Can::RunCommands),
    (".devcontainer.json", Can::RunCommands),
];

/// Folders that belong to an agent altogether: an unknown file there is taken for the worst.
const IN_FOLDERS: &[&str] = &[".claude/", ".codex/", ".cursor/", ".gemini/", ".opencode/"];

/// Which of the paths are configuration for agents, in the order of the paths.
pub fn carried<'a>(paths: impl IntoIterator<Item = &'a str>) -> Vec<Carried> {
    let can = |path: &str| {
        // File systems that ignore case make `.MCP.json` the same file.
        let known = KNOWN
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(path));
        let lower = path.to_ascii_lowercase();
        let inside = |folder: &&&str| lower.starts_with(**folder);
        known
            .map(|(_, can)| *can)
            .or_else(|| IN_FOLDERS.iter().find(inside).map(|_| Can::RunCommands))
    };
    paths
        .into_iter()
        .filter_map(|path| {
            let path_text = path.to_owned();
            can(path).map(|can| Carried {
                path: path_text,
                can,
            })
        })
        .take(CARRIED_MAX)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_told_with_the_worst_it_could_do() {
        let found = carried([
            "src",
            "README.md",
            ".github/workflows",
            ".vscode/extensions.json",
            ".claude",
            ".claude/settings.json",
            ".Claude/Settings.json",
            ".claude/agents",
            ".codex/config.toml",
            ".gemini/new-thing.json",
            ".mcp.json",
            "CLAUDE.md",
            "AGENTS.md",
            "opencode.json",
            ".envrc",
            ".vscode/tasks.json",
        ]);
        let told: Vec<(&str, &str)> = found
            .iter()
            .map(|item| (item.path.as_str(), item.can.word()))
            .collect();
        assert_eq!(
            told,
            [
                (".claude/settings.json", "run_commands"),
                (".Claude/Settings.json", "run_commands"),
                (".claude/agents", "change_access"),
                (".codex/config.toml", "run_commands"),
                (".gemini/new-thing.json", "run_commands"),
                (".mcp.json", "run_commands"),
                ("CLAUDE.md", "instruct"),
                ("AGENTS.md", "instruct"),
                ("opencode.json", "run_commands"),
                (".envrc", "run_commands"),
                (".vscode/tasks.json", "run_commands"),
            ]
        );
    }

    #[test]
    fn a_repository_cannot_fill_the_log_with_it() {
        let many: Vec<String> = (0..1000).map(|n| format!(".claude/x{n}")).collect();
        assert_eq!(carried(many.iter().map(String::as_str)).len(), CARRIED_MAX);
    }
}
