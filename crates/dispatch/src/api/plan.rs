//! What a task would be, without one: the answer of a dry run.
//! Must not promise more than is known: a base that has to be fetched is not.

use std::{collections::BTreeMap, path::PathBuf};

use dispatch_core::{limits::JobLimits, task::Expects};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::shapes;

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Plan {
    pub(crate) title: String,
    pub(crate) agent: String,
    pub(crate) argv: Vec<String>,
    pub(crate) prompt: String,
    pub(crate) repo: String,
    pub(crate) from: String,
    /// As far as it is known here, without asking upstream.
    pub(crate) base: Option<String>,
    pub(crate) branch: String,
    pub(crate) workspace_name: String,
    /// Where the workspace would be; `new` stands for the short id that a real task has.
    pub(crate) workspace_dir: PathBuf,
    #[schemars(with = "shapes::Expects")]
    pub(crate) expects: Expects,
    pub(crate) placement: String,
    /// What the fence of this machine would be made of, tried out.
    pub(crate) would_enforce: String,
    #[schemars(with = "BTreeMap<String, u64>")]
    pub(crate) limits: JobLimits,
    pub(crate) pool: String,
    pub(crate) slots: usize,
    /// Variables that it takes from whoever dispatches.
    pub(crate) takes: Vec<String>,
}
