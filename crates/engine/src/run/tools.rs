//! Our tools, as the agent of this run finds them: the door, what it shows there, the argv.
//! Must not give anything to a task without a grant.

use dispatch_core::grant::Grant;

use super::Walk;
use crate::{
    door::{self, Door},
    fence,
};

impl Walk {
    /// The door of this run, if its task has a grant to use it.
    pub(super) fn door(&self) -> Option<&Door> {
        let grant = self.job.task.spec.terms.grant.as_ref();
        let door = self.ctx.settings.door.as_ref();
        // What nobody asked for must not keep a task from starting.
        let can = |grant: &Grant| !grant.asked || self.ctx.fences.hold_doors();
        door.filter(|_| grant.is_some_and(|grant| !grant.tools.is_empty() && can(grant)))
    }

    pub(super) fn door_env(&self) -> Vec<(String, String)> {
        let (data, run) = (&self.ctx.settings.data, self.job.run);
        self.door()
            .map_or_else(Vec::new, |door| door.env(data, run))
    }

    /// The argv of our tools where the job runs: the copy of our program that every fence shows. Where
    /// there can be none no fence can be made either, and one that stands already has it.
    pub(super) fn our_tools(&self) -> Option<Vec<String>> {
        let door = self.door().filter(|door| !door.tools.is_empty())?;
        let program = self.ctx.fences.program().and_then(fence::utf8).ok()?;
        let words = door.tools.iter().cloned();
        Some(std::iter::once(program).chain(words).collect())
    }

    /// What the agent shows there is laid down before its start.
    pub(super) fn open_door(&self) -> Result<(), String> {
        let Some(door) = self.door() else {
            return Ok(());
        };
        let (data, run) = (&self.ctx.settings.data, self.job.run);
        let token = self.ctx.door_key.token(run);
        let made = door.make().and_then(|()| door::lay_down(data, run, &token));
        made.map_err(|error| format!("open a door for the agent: {error}"))
    }
}
