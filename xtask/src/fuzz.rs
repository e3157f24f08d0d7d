//! The fuzz targets of tests/programs, for as long as one likes. Built for debugging: there an
//! overflow is a panic. Must not judge anything itself: the targets do.

use std::{os::unix::process::ExitStatusExt as _, process::Command};

use anyhow::{Context, Result, bail};

use crate::build::{program, target};

pub(crate) fn run(args: &[&str]) -> Result<()> {
    let fuzz = program("dispatch-test-programs", "fuzz", false)?;
    let out = target()?.join("fuzz");
    std::fs::create_dir_all(&out)?;
    let seed = std::process::id().to_string();
    let mut command = Command::new(fuzz);
    command.args(args).arg("--out").arg(&out);
    if !args.contains(&"--seed") {
        command.args(["--seed", &seed]);
    }
    let status = command.status().context("run the fuzzer")?;
    if status.success() {
        return Ok(());
    }
    let Some(signal) = status.signal() else {
        match status.code() {
            Some(2) => bail!("the fuzzer did not run: see above"),
            _ => bail!("a target does not hold: see above"),
        }
    };
    // A stack that overflows takes the process along: the same seed again, each input written first.
    let trail = out.join("last-input");
    println!("killed by signal {signal}; once more to find the input ...");
    command.arg("--trail").arg(&trail);
    let again = command.status().context("run the fuzzer again")?;
    if again.signal().is_some() {
        bail!("this input kills the process: {}", trail.display());
    }
    bail!("killed by signal {signal}, but not the second time: see above for the seed")
}
