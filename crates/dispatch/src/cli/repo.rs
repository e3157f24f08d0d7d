//! From `--repo` to what a task says: an absolute top level, or a URL.
//! Must not run anything a repository configures: git is only asked by [`OwnGit`].

use std::path::{Path, PathBuf};

use dispatch_core::config::Config;
use dispatch_engine::git::STDOUT_MAX_BYTES;

use super::error::{CliError, Result};
use crate::{
    api::request::{is_url, unknown_repo},
    own_git::{OwnGit, says},
    settings::Settings,
};

/// Configured names and URLs pass; a path becomes the top level of its repository.
pub(crate) fn resolve(config: &Config, repo: &str) -> Result<String> {
    let known = config.repos.keys().any(|name| name.as_str() == repo);
    if known || is_url(repo) {
        return Ok(repo.to_owned());
    }
    // A word that is no path was meant as a name.
    if !repo.contains('/') && !Path::new(repo).exists() {
        return Err(unknown_repo(config, repo).into());
    }
    let top = top_level(Path::new(repo))?;
    top.into_os_string().into_string().map_err(|path| {
        CliError::usage(format!(
            "use repository {}: its path is not UTF-8",
            path.display()
        ))
    })
}

/// The URL that a repository has somewhere else: its own, or that of a clone's origin.
pub(crate) fn url(settings: &Settings, place: &str) -> Option<String> {
    if is_url(place) {
        return Some(place.to_owned());
    }
    let git = OwnGit::new(settings).ok()?;
    says(
        git.at(Path::new(place), "config")
            .args(["--get", "remote.origin.url"]),
    )
}

/// The absolute path of a directory that a task gets a copy of.
pub(crate) fn folder(path: &Path) -> Result<String> {
    let what = format!("use directory {}", path.display());
    let absolute = path
        .canonicalize()
        .map_err(|error| CliError::usage(format!("{what}: {error}")))?;
    if !absolute.is_dir() {
        return Err(CliError::usage(format!("{what}: it is no directory")));
    }
    let text = absolute.into_os_string().into_string();
    text.map_err(|_| CliError::usage(format!("{what}: its path is not UTF-8")))
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

/// How a checkout differs from what git would make of itself. No value of these is run.
const OF_A_CHECKOUT: &str = "^core\\.(filemode|symlinks|autocrlf|excludesfile)$";

/// Files that differ from what is committed: a task starts from a commit and does not see them.
/// A warning is no reason to fail; a repository that git cannot read fails later, with its words.
pub(crate) fn uncommitted(settings: &Settings, top: &str) -> usize {
    differing(settings, Path::new(top)).unwrap_or(0)
}

fn differing(settings: &Settings, top: &Path) -> Option<usize> {
    let git = OwnGit::new(settings).ok()?;
    let mut asked = git
        .at(top, "config")
        .args(["-z", "--get-regexp", OF_A_CHECKOUT]);
    let home = settings.env.text("HOME").map(Path::new);
    if let Some(home) = home {
        asked = asked.own_config(home);
    }
    let xdg = settings.env.text("XDG_CONFIG_HOME").map(PathBuf::from);
    if let Some(xdg) = &xdg {
        asked = asked.env("XDG_CONFIG_HOME", xdg);
    }
    // Nothing of it is there: git says so by its exit.
    let said = asked.output().ok()?;
    let over = git.over(top)?;
    // To compare a touched file, `status` would run the filters that their configuration has.
    let mut status = git
        .of(&over, "status")
        .work_tree(top)
        .args(["--porcelain", "--ignore-submodules=all"]);
    let config = xdg.or_else(|| Some(home?.join(".config")));
    let mut ignored = config.map(|dir| dir.join("git/ignore"));
    for entry in String::from_utf8_lossy(&said.stdout).split('\0') {
        let (key, value) = entry.split_once('\n').unwrap_or((entry, "true"));
        if key == "core.excludesfile" {
            ignored = match (value.strip_prefix("~/"), home) {
                (Some(below), Some(home)) => Some(home.join(below)),
                _ => Some(PathBuf::from(value)),
            };
        } else if !key.is_empty() {
            status = status.set(&format!("{key}={value}"));
        }
    }
    if let Some(ignored) = ignored {
        status = status.set(&format!("core.excludesFile={}", ignored.display()));
    }
    let output = status.limit(STDOUT_MAX_BYTES).run().ok()?;
    Some(output.stdout.iter().filter(|b| **b == b'\n').count())
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
        let resolve = |repo: &str| resolve(&Config::defaults(), repo);
        assert_eq!(
            resolve(deep.to_str().unwrap()).unwrap(),
            root.join("r").to_str().unwrap()
        );
        assert!(resolve(root.join("nope").to_str().unwrap()).is_err());
        assert_eq!(resolve("https://h/a.git").unwrap(), "https://h/a.git");
        assert!(resolve("ext::sh -c x").is_err());
    }
}
