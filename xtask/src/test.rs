//! Everything CI checks, in the order in which it fails fastest. What cannot run here is skipped
//! loudly, never silently. Must not touch anything outside the target folder, but for podman, which
//! comes from the system's own packages.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail};

use crate::build::{bubblewrap, cargo, need_git, path_with, podman, root, target};

const CARGO_DENY: &str = "0.20.2";

pub(crate) fn run() -> Result<()> {
    need_git()?;
    let mut skipped = Vec::new();
    step("format", cargo().args(["fmt", "--all", "--check"]))?;
    step(
        "lints",
        cargo().args([
            "clippy",
            "--quiet",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ]),
    )?;
    let agents = agents(&mut skipped)?;
    let mut tests = cargo();
    tests.args(["test", "--quiet", "--workspace"]);
    match bubblewrap() {
        Ok(dir) => drop(tests.env("PATH", path_with(&dir)?)),
        Err(error) => skipped.push(format!("tests of the cage with bubblewrap: {error}")),
    }
    if let Err(error) = podman() {
        skipped.push(format!("tests of containers: {error}"));
    }
    if let Some(agents) = agents {
        tests.env("DISPATCH_TEST_AGENTS", agents);
    }
    step("tests", &mut tests)?;
    step(
        "documentation",
        cargo()
            .args(["doc", "--quiet", "--workspace", "--no-deps"])
            .env("RUSTDOCFLAGS", "-D warnings"),
    )?;
    dependencies(&mut skipped)?;
    println!("== crash: 200 kills of the real engine");
    crate::crash::run(&["--count", "200"])?;
    for what in &skipped {
        println!("SKIPPED: {what}");
    }
    println!(
        "all good{}",
        if skipped.is_empty() {
            ""
        } else {
            ", but for what was skipped above"
        }
    );
    Ok(())
}

fn step(name: &str, command: &mut Command) -> Result<()> {
    println!("== {name}");
    let begun = Instant::now();
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("run {name}"))?;
    if !status.success() {
        bail!("{name} failed: see above");
    }
    println!("   {:.0} s", begun.elapsed().as_secs_f64());
    Ok(())
}

/// The real agents and MCP clients, pinned by a lock file, installed below the target folder.
pub(crate) fn agents(skipped: &mut Vec<String>) -> Result<Option<PathBuf>> {
    let pins = root().join("tests/agents");
    let mut skip = |why: String| {
        skipped.push(format!("tests with the real agents and MCP clients: {why}"));
        Ok(None)
    };
    if !pins.join("package-lock.json").exists() {
        return skip("tests/agents/package-lock.json is not there".into());
    }
    let npm = Command::new("npm").arg("--version").output();
    if !npm.is_ok_and(|output| output.status.success()) {
        return skip("npm is not on PATH (on Debian or Ubuntu: apt-get install npm)".into());
    }
    let place = target()?.join("agents");
    if installed(&pins, &place) {
        return Ok(Some(place));
    }
    println!("== install the real agents and MCP clients");
    std::fs::create_dir_all(&place)?;
    for file in ["package.json", "package-lock.json"] {
        std::fs::copy(pins.join(file), place.join(file))?;
    }
    let status = Command::new("npm")
        .args(["ci", "--no-audit", "--no-fund", "--loglevel=error"])
        .current_dir(&place)
        .stdin(Stdio::null())
        .status()?;
    if !status.success() {
        return skip("npm ci failed: see above".into());
    }
    std::fs::copy(pins.join("package-lock.json"), place.join("installed.json"))?;
    Ok(Some(place))
}

fn installed(pins: &Path, place: &Path) -> bool {
    let read = |path: PathBuf| std::fs::read(path).ok();
    let wanted = read(pins.join("package-lock.json"));
    wanted.is_some() && wanted == read(place.join("installed.json"))
}

/// Licences, bans and sources of dependencies. Advisories need the network and are left out.
fn dependencies(skipped: &mut Vec<String>) -> Result<()> {
    skipped.push("cargo deny's advisories: they need the network".into());
    let tools = target()?.join("tools");
    let deny = tools.join("bin/cargo-deny");
    if !deny.exists() {
        println!("== install cargo-deny {CARGO_DENY} (once)");
        let status = cargo()
            .args([
                "install",
                "--quiet",
                "--locked",
                "--debug",
                "--version",
                CARGO_DENY,
                "--root",
            ])
            .arg(&tools)
            .arg("cargo-deny")
            .status()?;
        if !status.success() {
            skipped.push("cargo deny: it could not be installed, see above".into());
            return Ok(());
        }
    }
    // It looks at the crates of every platform, which no build here has asked for.
    let fetched = cargo().args(["fetch", "--quiet", "--locked"]).status()?;
    if !fetched.success() {
        skipped.push("cargo deny: not every crate could be fetched, see above".into());
        return Ok(());
    }
    step(
        "dependencies",
        Command::new(deny)
            .args([
                "--offline",
                "--log-level",
                "error",
                "check",
                "bans",
                "licenses",
                "sources",
            ])
            .current_dir(root()),
    )
}
