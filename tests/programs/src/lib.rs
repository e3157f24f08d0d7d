//! What the test programs share: so far the parts of `fake-model`, so that its binary stays thin.
//! Nothing of the product may depend on this crate.

pub mod fake_model;
