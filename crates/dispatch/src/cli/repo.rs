//! From `--repo` to what a task says: an absolute top level, or a URL.
//! Must not run anything a repository configures: hooks and the file system monitor are off.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::error::{CliError, Result};
use crate::{api::request::is_url, settings::Settings};

/// URLs pass; a path becomes the top level of its repository.
pub(crate) fn resolve(repo: &str) -> Result<String> {
    if is_url(repo) {
        return Ok(repo.to_owned());
    }
    let top = top_level(Path::new(repo))?;
    top.into_os_string().into_string().map_err(|path| {
        CliError::usage(format!(
            "use repository {}: its path is not UTF-8",
            path.display()
        ))
    })
}

pub(crate) fn top_level(path: &Path) -> Result<PathBuf> {
    let what = format!("use repository {}", path.display());
    let absolute = path.canonicalize().map_err(|error| {
        CliError::usage(format!("{what}: {error}"))
            .hint("give a path in a git repository, or a URL")
    })?;
    let holds = |dir: &&Path| {
        let bare = dir.join("HEAD").is_file() && dir.join("objects").is_dir();
        dir.join(".git").exists() || bare
    };
    let top = absolute.ancestors().find(holds);
    top.map(Path::to_path_buf).ok_or_else(|| {
        CliError::usage(format!("{what}: it is not in a git repository"))
            .hint("`git init` and a first commit make one")
    })
}

/// Files that differ from what is committed: a task starts from a commit and does not see them.
pub(crate) fn uncommitted(settings: &Settings, top: &str) -> usize {
    let Some(git) = settings.find("git") else {
        return 0;
    };
    let run = |args: &[String]| {
        Command::new(&git)
            .args(["--no-optional-locks", "-c", "core.fsmonitor=false"])
            .args(["-c", "core.hooksPath=/dev/null"])
            .args(args)
            .env("GIT_LFS_SKIP_SMUDGE", "1")
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output()
    };
    let text = |words: &[&str]| -> Vec<String> { words.iter().map(|&w| w.to_owned()).collect() };
    let asked = text(&[
        "-C",
        top,
        "config",
        "-z",
        "--name-only",
        "--get-regexp",
        "^filter\\.",
    ]);
    // To compare a touched file, `status` would run its filter: a command of the repository's.
    let Ok(filters) = run(&asked) else { return 0 };
    let mut args = Vec::new();
    for key in String::from_utf8_lossy(&filters.stdout).split('\0') {
        let Some((filter, _)) = key.rsplit_once('.') else {
            continue;
        };
        if filter.contains('=') {
            // A name that `-c` cannot say: no warning then, rather than its command.
            return 0;
        }
        for setting in ["clean=", "smudge=", "process=", "required=false"] {
            args.extend(["-c".to_owned(), format!("{filter}.{setting}")]);
        }
    }
    args.extend(text(&[
        "-C",
        top,
        "status",
        "--porcelain",
        "--ignore-submodules=all",
    ]));
    let output = run(&args);
    // A warning is no reason to fail; a repository that git cannot read fails later, with its words.
    output.map_or(0, |output| {
        output.stdout.iter().filter(|b| **b == b'\n').count()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_becomes_its_top_level() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        std::fs::create_dir_all(root.join("r/.git")).unwrap();
        std::fs::create_dir_all(root.join("r/src/deep")).unwrap();
        let deep = root.join("r/src/deep");
        assert_eq!(
            resolve(deep.to_str().unwrap()).unwrap(),
            root.join("r").to_str().unwrap()
        );
        assert!(resolve(root.join("nope").to_str().unwrap()).is_err());
        assert_eq!(resolve("https://h/a.git").unwrap(), "https://h/a.git");
        assert!(resolve("ext::sh -c x").is_err());
    }
}
