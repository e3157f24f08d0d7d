//! The figures of the README, measured with release builds by `bench` in tests/programs.
//! Must not assert: speed is measured here and nowhere tested.

use std::process::Command;

use anyhow::{Result, ensure};

use crate::{
    build::{need_git, program},
    test::agents,
};

/// The one of the pinned agents that has a server to be measured beside ours.
const OPENCODE: &str = "node_modules/opencode-linux-x64/bin/opencode";
/// The one whose start is measured beside our own agent's.
const CLAUDE: &str = "node_modules/@anthropic-ai/claude-code-linux-x64/claude";

pub(crate) fn run() -> Result<()> {
    need_git()?;
    println!("building for release ...");
    let dispatch = program("dispatch", "dispatch", true)?;
    let bench = program("dispatch-test-programs", "bench", true)?;
    let agent = bench.with_file_name("fake-agent");
    let (doors, native) = (
        bench.with_file_name("bench-http"),
        bench.with_file_name("bench-native"),
    );
    let status = Command::new(bench).arg(&dispatch).arg(agent).status()?;
    ensure!(status.success(), "the bench failed: see above");
    let mut skipped = Vec::new();
    let place = agents(&mut skipped)?;
    let [opencode, claude] = [OPENCODE, CLAUDE].map(|name| place.as_ref().map(|at| at.join(name)));
    for skipped in skipped {
        println!("SKIPPED: {skipped}");
    }
    let mut bench = Command::new(doors);
    bench.arg(&dispatch);
    bench.args(opencode.filter(|program| program.exists()));
    let status = bench.status()?;
    ensure!(status.success(), "the bench of the doors failed: see above");
    let mut bench = Command::new(native);
    bench.arg(dispatch);
    bench.args(claude.filter(|program| program.exists()));
    let status = bench.status()?;
    ensure!(status.success(), "the bench of our agent failed: see above");
    Ok(())
}
