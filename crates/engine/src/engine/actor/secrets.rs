//! What runs need of whoever dispatches, held in memory: who lacks what, and that no name shows
//! one.
//! Must not put a secret into an event, nor a run to work without what it needs.

use dispatch_core::{
    config::EnvValue,
    id::{RunId, TaskId},
    redact::Redactor,
    run::RunState,
    schedule,
    secret::Secret,
    task::{Base, TaskSpec, Tuning},
};

use super::Actor;
use crate::{attachments::Kept, engine::Secrets, run, view::VerbError};

impl Actor {
    /// What the run's agent takes from whoever dispatches and has not been given.
    pub(super) fn lacks(&self, run: RunId) -> Vec<String> {
        let Some(task) = self.state.task(run.task) else {
            return Vec::new();
        };
        let (name, chain) = (&task.spec.agent, &task.spec.terms.chain);
        let Some(agent) = self.ctx.settings.config.agent_for(name, chain) else {
            return Vec::new();
        };
        let have = self.secrets.get(&run.task);
        let lacking = |(variable, value): (&String, &EnvValue)| match value {
            EnvValue::Taken {
                optional: false, ..
            } => value
                .key(name, variable)
                .filter(|key| !have.is_some_and(|have| have.contains_key(key))),
            EnvValue::Taken { .. } | EnvValue::Literal(_) => None,
        };
        agent.env.iter().filter_map(lacking).collect()
    }

    pub(super) fn look_for_secrets(&mut self, run: RunId) {
        if let Some(why) = schedule::behind(&self.state, run) {
            self.held.insert(run, why);
            return;
        }
        let lacks = self.lacks(run);
        if lacks.is_empty() {
            self.held.remove(&run);
        } else {
            self.held
                .insert(run, format!("needs {} from you", lacks.join(", ")));
        }
    }

    pub(super) fn needs(&self) -> Vec<String> {
        let mut needs: Vec<String> = self.held.keys().flat_map(|run| self.lacks(*run)).collect();
        needs.sort();
        needs.dedup();
        needs
    }

    pub(super) fn provide(&mut self, secrets: &Secrets) {
        let held: Vec<RunId> = self.held.keys().copied().collect();
        for run in held {
            for var in self.lacks(run) {
                if let Some(value) = secrets.get(&var) {
                    self.secrets
                        .entry(run.task)
                        .or_default()
                        .insert(var, value.clone());
                }
            }
            self.look_for_secrets(run);
            let waits = self.held.contains_key(&run);
            let preparing = self
                .state
                .run(run)
                .is_some_and(|r| r.state == RunState::Preparing);
            if !waits && preparing && !self.orders.contains_key(&run) {
                self.effects
                    .push(Box::new(move |actor| actor.supervise(run, run::From::Log)));
            }
        }
    }

    /// A model's name goes where nothing can mask it.
    pub(super) fn tunes_no_secret(
        &self,
        task: TaskId,
        tuning: &Tuning,
        secrets: &Secrets,
    ) -> Result<(), VerbError> {
        let known = self.secrets.get(&task).into_iter().flatten();
        let values = known.chain(secrets).map(|(_, value)| value.expose());
        let redactor = Redactor::new(values);
        let chain = tuning.chain.iter().flatten().map(|choice| &choice.model);
        let mut models = tuning.model.iter().chain(chain);
        if models.any(|model| redactor.redact(model.as_str()) != model.as_str()) {
            let what = "use that model: its name holds a secret".to_owned();
            return Err(VerbError::BadInput { what });
        }
        Ok(())
    }
}

/// It would be in the log, in an argv of git and in a path, where nothing can mask it.
pub(super) fn names_a_secret(spec: &TaskSpec, secrets: &Secrets) -> bool {
    let redactor = Redactor::new(secrets.values().map(Secret::expose));
    let shows = |name: &str| redactor.redact(name) != name;
    let branch = match &spec.base {
        Base::Head | Base::Pr { .. } | Base::Folder | Base::Nothing => false,
        Base::Branch { name } | Base::Default { name } | Base::Tag { name } => shows(name),
    };
    let terms = &spec.terms;
    let chain = terms.chain.iter().map(|choice| &choice.model);
    let mut models = terms.model.iter().chain(chain);
    branch
        || models.any(|name| shows(name.as_str()))
        || shows(&spec.repo)
        || spec
            .workspace
            .as_ref()
            .is_some_and(|name| shows(&name.to_string()))
}

/// The names of files are in the log and in paths.
pub(super) fn names_no_secret(kept: &Kept, secrets: &Secrets) -> Result<(), VerbError> {
    let redactor = Redactor::new(secrets.values().map(Secret::expose));
    let shows = |name: &str| redactor.redact(name) != name;
    if kept.files().iter().any(|file| shows(file.name.as_str())) {
        let what = "attach a file: its name holds a secret; rename it".to_owned();
        return Err(VerbError::BadInput { what });
    }
    Ok(())
}
