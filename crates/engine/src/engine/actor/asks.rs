//! Permissions that the agent of a run waits for: each is answered once.
//! Must not trust the time of whoever answers: a late word is a denial.

use dispatch_core::{
    ask::{AskId, By, Fate as AskFate},
    event::{Kind, Subject},
    id::{RunId, TaskId},
};

use super::Actor;
use crate::view::VerbError;

impl Actor {
    /// The first answer counts, whoever's it is.
    pub(super) fn permit(
        &mut self,
        task: TaskId,
        ask: AskId,
        (allow, always): (bool, bool),
        by: By,
        why: Option<String>,
    ) -> Result<(), VerbError> {
        let found = self
            .state
            .task(task)
            .ok_or(VerbError::NoSuchTask { task })?;
        let nothing = |hint: String| VerbError::Nothing {
            verb: "answer what is asked by",
            task,
            hint,
        };
        let open: Vec<String> = found
            .open_asks()
            .map(|ask| format!("{} ({})", ask.id, ask.tool))
            .collect();
        let open = match open.len() {
            0 => "nothing waits for an answer".to_owned(),
            1 => format!("{} waits for one", open[0]),
            _ => format!("{} wait for one", open.join(", ")),
        };
        let Some(known) = found.ask(ask) else {
            return Err(nothing(format!("ask {ask} is not known; {open}")));
        };
        let (run, late) = (RunId { task, n: known.run }, known.until <= self.now());
        match &known.fate {
            AskFate::Open => {}
            AskFate::Closed => {
                let hint = format!("ask {ask} is closed, its run was stopped or has ended; {open}");
                return Err(nothing(hint));
            }
            AskFate::Answered { .. } => {
                let word = known.word();
                return Err(nothing(format!("ask {ask} is {word} already; {open}")));
            }
        }
        let agents = &self.ctx.settings.config.agents;
        let profile = agents.get(&found.spec.agent);
        if always && !profile.is_some_and(|profile| profile.driver.remembers()) {
            let agent = &found.spec.agent;
            let what = format!(
                "answer task {task}: agent {agent} asks again for the same each time; allow it once"
            );
            return Err(VerbError::BadInput { what });
        }
        let max = self.ctx.settings.config.limits.task_bytes;
        if why.as_ref().is_some_and(|why| why.len() > max) {
            let what = format!("answer task {task}: a reason has {max} bytes (limits.task_bytes)");
            return Err(VerbError::BadInput { what });
        }
        // The engine may have been away when it was.
        let by_somebody = matches!(by, By::Person | By::Task(_));
        let (allow, by, why) = if late && by_somebody {
            (false, By::Deadline, None)
        } else {
            (allow, by, why)
        };
        let answered = Kind::PermissionAnswered {
            ask,
            allow,
            by,
            reason: why,
            always: always && allow,
        };
        self.put(Subject::Run(run), answered);
        self.ring(task);
        if late && by_somebody {
            let hint = format!("the time of ask {ask} is over (limits.ask_wait_s); it is denied");
            let error = VerbError::Nothing {
                verb: "answer what is asked by",
                task,
                hint,
            };
            return Err(error);
        }
        Ok(())
    }
}
