//! Every fuzz target for a bounded number of inputs, always the same ones; `cargo xtask fuzz` runs
//! longer and with other seeds. Must stay a matter of seconds in a debug build.

use dispatch_test_programs::fuzz::{Fuzzer, Target, run, shrunk, targets};

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

/// A fuzzer that finds nothing may be one that cannot: here is something to find.
#[test]
fn a_planted_fault_is_found_and_made_small() {
    let planted = Target {
        name: "planted",
        property: "the second number is never large",
        seeds: || vec![br#"{"a":[1,2],"b":"text and more text"}"#.to_vec()],
        words: &[],
        check: |bytes| {
            let value: serde_json::Value = match serde_json::from_slice(bytes) {
                Ok(value) => value,
                Err(_) => return Ok(0),
            };
            if value["a"][1].as_u64() >= Some(1 << 32) {
                return Err("planted".into());
            }
            Ok(1)
        },
    };
    let mut fuzzer = Fuzzer::new(planted, SEED);
    let find = loop {
        assert!(fuzzer.executions < 20_000, "not found");
        let input = fuzzer.next_input();
        if let Err(find) = fuzzer.run(input) {
            break find;
        }
    };
    let small = shrunk(&planted, find);
    assert_eq!(small.what, "planted");
    assert!(small.input.len() < 32, "{small:?}");
    let panics = Target {
        check: |_| panic!("at once"),
        ..planted
    };
    assert_eq!(run(&panics, b""), Err("panic: at once".into()));
}
