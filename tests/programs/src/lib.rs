//! What the test programs share: the parts of `fake-model` and the fuzzer with its targets.
//! Nothing of the product may depend on this crate.

pub mod fake_model;
pub mod fuzz;
