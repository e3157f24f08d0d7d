//! A gigabyte of output, alone in its process so that the memory measured is the engine's.
//! Must stay the only test of its file.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests; a failure is a failed test"
)]

mod world;

use std::fs;

use dispatch_core::outcome::{Outcome, Stop};
use world::{World, outcome, run};

const MEMORY_KB_MAX: u64 = 64 << 10;

fn peak_kb() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gigabyte_is_capped_and_the_engine_stays_small() {
    let mut world = World::new();
    // Fewer bytes than the default keep the test quick; the agent writes a gigabyte all the same.
    world.config.limits.output_bytes = 64 << 20;
    let engine = world.engine().await;
    let view = run(&engine, world.spec(&["lines 1000", "flood 1073741824"])).await;
    let limit_bytes = 64 << 20;
    assert_eq!(
        *outcome(&view),
        Outcome::Stopped(Stop::OutputBytes { limit_bytes })
    );
    assert_eq!(fs::metadata(&view.jobs[0].log).unwrap().len(), limit_bytes);
    assert!(peak_kb() < MEMORY_KB_MAX, "{} kB", peak_kb());
}
