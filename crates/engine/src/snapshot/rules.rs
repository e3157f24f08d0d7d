//! The base commit's ignore rules. Never those in the agent's tree: one `*` there would lose its
//! work.

use std::collections::HashMap;

use ignore::Match;
use ignore::gitignore::{Gitignore, GitignoreBuilder};

use super::{SnapshotError, as_path, git_error, parent};
use crate::git::{self, Entry};
use crate::vault::Vault;

/// What the base's ignore files may weigh together.
const RULES_MAX_BYTES: usize = 16 << 20;

#[derive(Debug, Clone, Default)]
pub(super) struct Rules {
    by_dir: HashMap<Vec<u8>, Gitignore>,
}

impl Rules {
    /// Reads the ignore files among the base's entries.
    pub(super) fn of(vault: &Vault, entries: &[Entry]) -> Result<Self, SnapshotError> {
        let name = b".gitignore";
        let files: Vec<&Entry> = entries
            .iter()
            // Git does not follow a symlink there either.
            .filter(|e| e.mode.starts_with("100"))
            .filter(|e| e.path == name || e.path.ends_with(b"/.gitignore"))
            .collect();
        if files.is_empty() {
            return Ok(Self::default());
        }
        let ids: String = files.iter().map(|e| format!("{}\n", e.id)).collect();
        let out = vault
            .cmd("cat-file")
            .arg("--batch")
            .stdin_bytes(ids)
            .limit(RULES_MAX_BYTES)
            .run()
            .map_err(git_error("read the base's ignore rules"))?;
        let blobs =
            git::parse_batch(&out.stdout).map_err(git_error("read the base's ignore rules"))?;
        let texts = files
            .iter()
            .zip(blobs)
            .filter_map(|(e, blob)| Some((e, blob?)));
        Ok(Self {
            by_dir: texts
                .map(|(e, blob)| (parent(&e.path).to_vec(), build(&blob)))
                .collect(),
        })
    }

    /// What the rules say of one path, given that no directory above it is ignored.
    pub(super) fn matches(&self, path: &[u8], is_dir: bool) -> bool {
        if self.by_dir.is_empty() {
            return false;
        }
        let mut dir = parent(path);
        loop {
            if let Some(rules) = self.by_dir.get(dir) {
                let rest = if dir.is_empty() {
                    path
                } else {
                    &path[dir.len() + 1..]
                };
                match rules.matched(as_path(rest), is_dir) {
                    Match::Ignore(_) => return true,
                    Match::Whitelist(_) => return false,
                    Match::None => {}
                }
            }
            if dir.is_empty() {
                return false;
            }
            dir = parent(dir);
        }
    }

    /// Whether a file is ignored by itself or through a directory above it.
    pub(super) fn ignores(&self, file: &[u8]) -> bool {
        let above = file
            .iter()
            .enumerate()
            .filter(|(_, b)| **b == b'/')
            .map(|(at, _)| at);
        above.into_iter().any(|at| self.matches(&file[..at], true)) || self.matches(file, false)
    }
}

/// Whether a root `.gitignore` of these bytes ignores a file; for the fuzzer.
pub(crate) fn root_rules_ignore(bytes: &[u8], file: &[u8]) -> bool {
    let by_dir = HashMap::from([(Vec::new(), build(bytes))]);
    Rules { by_dir }.ignores(file)
}

fn build(bytes: &[u8]) -> Gitignore {
    // With "." nothing is stripped from the paths we ask about.
    let mut builder = GitignoreBuilder::new(".");
    builder.allow_unclosed_class(false);
    let text = String::from_utf8_lossy(bytes);
    for line in text.strip_prefix('\u{feff}').unwrap_or(&text).lines() {
        // A line that is no pattern ignores nothing, as in git.
        builder.add_line(None, line).ok();
    }
    builder.build().unwrap_or_else(|_| Gitignore::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deepest_rule_wins_and_directories_count() {
        let mut rules = Rules::default();
        rules
            .by_dir
            .insert(b"".to_vec(), build(b"*.log\r\n/target/\nsub/deep\n[bad\n"));
        rules
            .by_dir
            .insert(b"sub".to_vec(), build(b"!keep.log\n/only\n"));
        assert!(rules.ignores(b"a.log") && rules.ignores(b"x/y/a.log"));
        assert!(!rules.ignores(b"sub/keep.log") && !rules.ignores(b"sub/x/keep.log"));
        assert!(rules.ignores(b"target/a/b") && !rules.ignores(b"x/target/a"));
        assert!(!rules.ignores(b"target"));
        assert!(rules.ignores(b"sub/only") && !rules.ignores(b"sub/x/only"));
        assert!(rules.ignores(b"sub/deep/file") && !rules.ignores(b"[bad"));
    }
}
