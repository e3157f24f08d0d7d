//! Building and finding our own programs. Must not guess a path: cargo says where it put them.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
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

/// Where bubblewrap lies: on PATH, else unpacked from Debian's package below the target folder,
/// which needs no root. `Err` says what to install.
pub(crate) fn bubblewrap() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut dirs = std::env::split_paths(&path);
    if let Some(dir) = dirs.find(|dir| dir.join("bwrap").is_file()) {
        return Ok(dir);
    }
    let place = target()?.join("tools/bubblewrap");
    let bin = place.join("usr/bin");
    if bin.join("bwrap").is_file() {
        return Ok(bin);
    }
    std::fs::create_dir_all(&place)?;
    let run = |program: &str, args: &[&str]| {
        let status = Command::new(program)
            .args(args)
            .current_dir(&place)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status();
        status.is_ok_and(|status| status.success())
    };
    println!("== fetch bubblewrap (once)");
    let fetch = ["download", "-q", "bubblewrap"];
    // A fresh machine has no package lists; only root may fetch those.
    let fetched =
        run("apt-get", &fetch) || (run("apt-get", &["-q", "update"]) && run("apt-get", &fetch));
    let package = std::fs::read_dir(&place)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|ext| ext == "deb"));
    if let (true, Some(package)) = (fetched, package)
        && run("dpkg-deb", &["-x", &package.to_string_lossy(), "."])
    {
        return Ok(bin);
    }
    bail!("bubblewrap is not there (on Debian or Ubuntu: apt-get install bubblewrap)")
}

/// Podman and what it needs, from Debian's packages where we are root. `Err` says what to install.
/// Whether it starts anything here the tests find out themselves.
pub(crate) fn podman() -> Result<()> {
    let there = |program: &str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut dirs = std::env::split_paths(&path);
        dirs.any(|dir| dir.join(program).is_file())
    };
    if there("podman") {
        return Ok(());
    }
    let run = |args: &[&str]| {
        let status = Command::new("apt-get")
            .args(args)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status();
        status.is_ok_and(|status| status.success())
    };
    let get = [
        "install",
        "-qy",
        "--no-install-recommends",
        "podman",
        "runc",
        "catatonit",
        "containernetworking-plugins",
        "iptables",
    ];
    println!("== install podman (once)");
    // A fresh machine has no package lists.
    if run(&get) || (run(&["-q", "update"]) && run(&get)) {
        return Ok(());
    }
    bail!("podman is not there (on Debian or Ubuntu: apt-get install podman runc catatonit)")
}

/// PATH with one more directory behind the others.
pub(crate) fn path_with(dir: &Path) -> Result<std::ffi::OsString> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain([dir.to_owned()]);
    Ok(std::env::join_paths(dirs)?)
}
