//! Every fuzz target for a bounded number of inputs, always the same ones; `cargo xtask fuzz` runs
//! longer and with other seeds. Must stay a matter of seconds in a debug build.

use dispatch_test_programs::fuzz::{Fuzzer, shrunk, targets};

const SEED: u64 = 3;
const EXECUTIONS: u64 = 400;

/// Each target's property, for its seeds and some mutants of them.
#[test]
fn every_target_holds() {
    let mut wrong = Vec::new();
    for target in targets() {
        let mut fuzzer = Fuzzer::new(target, SEED);
        while fuzzer.executions < EXECUTIONS {
            let input = fuzzer.next_input();
            if let Err(find) = fuzzer.run(input) {
                let small = shrunk(&target, find);
                wrong.push(format!(
                    "{}: {}\n  input: {:?}",
                    target.name,
                    small.what,
                    String::from_utf8_lossy(&small.input)
                ));
                break;
            }
        }
        assert!(
            fuzzer.shapes() > 1,
            "{}: nothing is told apart",
            target.name
        );
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_same_seed_gives_the_same_inputs() {
    for target in targets() {
        let inputs = || {
            let mut fuzzer = Fuzzer::new(target, SEED);
            let mut all = Vec::new();
            for _ in 0..100 {
                let input = fuzzer.next_input();
                all.push(input.clone());
                // A find is the other test's matter.
                if fuzzer.run(input).is_err() {
                    break;
                }
            }
            all
        };
        assert_eq!(inputs(), inputs(), "{}", target.name);
    }
}

/// Names are parts of file names, and a replay finds its target by them.
#[test]
fn targets_have_names_of_their_own() {
    let mut names: Vec<&str> = targets().iter().map(|target| target.name).collect();
    let all = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), all);
    assert!(names.iter().all(|name| !name.contains(['.', '/'])));
}
