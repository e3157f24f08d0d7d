//! What the test programs share, so that their binaries stay thin: the parts of `fake-model`, what
//! the fake agent tries to get out of a fence, and the fuzzer with its targets, and a podman to test with.
//! Nothing of the product may depend on this crate.

pub mod escape;
pub mod fake_model;
pub mod fuzz;
pub mod podman;
