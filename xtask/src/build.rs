//! Building and finding our own programs. Must not guess a path: cargo says where it put them.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

/// The root of the workspace.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root());
    cargo
}

/// The folder cargo builds into.
pub(crate) fn target() -> Result<PathBuf> {
    let output = cargo()
        .args(["metadata", "--format-version=1", "--no-deps"])
        .output()?;
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).context("read cargo metadata")?;
    let target = metadata["target_directory"]
        .as_str()
        .context("find the target folder")?;
    Ok(target.into())
}

/// Builds a package's programs, and says where one of them is.
pub(crate) fn program(package: &str, name: &str, release: bool) -> Result<PathBuf> {
    let mut build = cargo();
    build.args(["build", "--quiet", "--package", package, "--bins"]);
    if release {
        build.arg("--release");
    }
    if !build.status().context("run cargo build")?.success() {
        bail!("build {package}: see above");
    }
    let profile = if release { "release" } else { "debug" };
    let path = target()?.join(profile).join(name);
    if !path.exists() {
        bail!("build {package}: cargo made no {}", path.display());
    }
    Ok(path)
}

/// git is the one tool that everything needs and that we cannot bring along.
pub(crate) fn need_git() -> Result<()> {
    match Command::new("git").arg("--version").output() {
        Ok(output) if output.status.success() => Ok(()),
        _ => bail!("git is not on PATH; on Debian or Ubuntu: apt-get install git"),
    }
}
