//! What the agent's job is: argv, environment, first words, limits.
//! Must not start anything, and must not take from our own environment more than the engine was
//! given.

use std::{
    collections::BTreeMap,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use dispatch_core::{
    config::{AgentProfile, EnvValue, FileText, HomePath},
    drivers::{Ask, Driver, Tools},
    id::ModelName,
    job::{Invocation, Output},
    limits::{JobLimits, Limits},
    native::KnownKeys,
    outcome::Failure,
    run::RunCause,
    sidecar::BROKER_URL,
    task::Wrap,
};

use super::{Cut, Stopped, Walk};
use crate::{
    attachments,
    engine::Command,
    files, native,
    prompts::{self, Words},
    sidecar::{self, Aid},
};

impl Walk {
    /// The session that this run goes on with.
    pub(super) fn resume(&self) -> Option<&str> {
        match self.run().map(|run| &run.cause) {
            None | Some(RunCause::Dispatched) => None,
            Some(
                RunCause::Answer { .. }
                | RunCause::RetryOf { .. }
                | RunCause::Said { .. }
                | RunCause::Ends
                | RunCause::Resumed { .. },
            ) => self.job.task.session_for(self.job.run.n),
        }
    }

    /// What the others have heard of the keys that an agent of ours may ask with.
    pub(super) async fn known_keys(
        &self,
        profile: &AgentProfile,
    ) -> Result<Option<KnownKeys>, Cut> {
        if !profile.is_native() {
            return Ok(None);
        }
        let run = self.job.run;
        self.ask(|reply| Command::Keys { run, reply }).await
    }

    /// Where the agent works, and what a person is to know of it.
    pub(super) fn works_in(
        &self,
        profile: &AgentProfile,
    ) -> Result<(PathBuf, Option<String>), String> {
        let workspace = self.workspace();
        if !profile.is_native() {
            return Ok((workspace, None));
        }
        match native::directory(&workspace, &self.job.task.spec.terms.directory) {
            Ok(at) => Ok((at, None)),
            // An earlier run may have given it another name, and the task is to go on.
            Err(why) if self.job.run.n > 1 => {
                let text = format!("{why}; it works in the root of its checkout");
                Ok((workspace, Some(text)))
            }
            Err(why) => Err(why),
        }
    }

    /// The invocation of the agent, and what is said first.
    pub(super) fn open(
        &self,
        driver: &mut dyn Driver,
        profile: &AgentProfile,
        at: &Path,
        (aid, known): (Option<&Aid>, Option<KnownKeys>),
        words: &Words,
    ) -> Result<(Invocation, Option<Vec<u8>>), Stopped> {
        let task = &self.job.task;
        let home = self.ctx.trees.home(task);
        let start = |reason: String| Stopped::from(Failure::Start { reason });
        let program = match profile.is_native() {
            true => native::program(&self.ctx.fences),
            false => self.program(&profile.program, &self.ctx.settings.job_env),
        };
        let program = program.map_err(start)?;
        let native = native::setup(&self.ctx, task, self.job.run.n, profile, aid, self.resume());
        let mut native = native.map_err(start)?;
        if let Some(opening) = &mut native {
            opening.known = known;
        }
        let home_text = home.to_string_lossy();
        let door_env = self.door_env();
        let our_tools = self.our_tools();
        let broker_url = aid.and_then(|aid| aid.broker_url.as_deref());
        let args: Vec<String> = profile
            .args
            .iter()
            .map(|arg| arg.replace(BROKER_URL, broker_url.unwrap_or_default()))
            .collect();
        let data = &self.ctx.settings.data;
        let context = Some(prompts::context(data, self.job.run)).filter(|dir| dir.is_dir());
        let folders = attachments::top(data, task, self.job.run.n).into_iter();
        let folders = folders.chain(context);
        let folders: Vec<String> = folders
            .map(|dir| dir.to_string_lossy().into_owned())
            .collect();
        let ask = Ask {
            prompt: &words.prompt,
            whole: &words.whole,
            cwd: &at.to_string_lossy(),
            folders: &folders,
            program: &program,
            args: &args,
            home: &home_text,
            resume: self.resume(),
            effort: task.spec.guide.effort,
            review: self.range.as_ref(),
            model: task.spec.terms.model.as_ref().map(ModelName::as_str),
            profile: task.spec.terms.profile.as_ref().map(ModelName::as_str),
            unfenced: task.spec.placement.wrap == Wrap::Host,
            permissions: task.spec.terms.permissions,
            tools: our_tools.as_deref().map(|argv| Tools {
                argv,
                env: &door_env,
            }),
            native: native.as_ref(),
        };
        let opening = driver.open(&ask);
        let mut env = self.job_env(&home).map_err(start)?;
        lay_down(&home, &profile.files).map_err(start)?;
        env.extend(opening.env);
        // Our own agent hands it to its server, and nothing else inside has a use for it.
        let own = task.spec.terms.grant.as_ref();
        if own.is_none_or(|grant| !grant.asked) {
            env.extend(door_env);
        }
        if let Some((account, login)) = self.login(profile)
            && let Some(variable) = &login.variable
        {
            let store = account.store().to_string_lossy().into_owned();
            env.insert(variable.clone(), store);
        }
        let (mut secrets, mut masked) = (Vec::new(), self.login_secrets(profile));
        for (name, value) in &profile.env {
            match value {
                EnvValue::Literal(text) => {
                    env.insert(name.clone(), text.clone());
                }
                EnvValue::Taken { .. } => {
                    let key = value.key(&task.spec.agent, name);
                    if let Some(text) = key.and_then(|key| self.job.secrets.get(&key)) {
                        if profile.brokers().any(|broker| broker.key == *name) {
                            masked.push(text.clone());
                            continue;
                        }
                        env.insert(name.clone(), text.expose().to_owned());
                        secrets.push(name.clone());
                    }
                }
            }
        }
        for (broker, aid) in aid
            .iter()
            .flat_map(|aid| profile.brokers().map(move |b| (b, aid)))
        {
            let placeholder = aid.placeholders.get(&broker.key).cloned();
            env.insert(broker.key.clone(), placeholder.unwrap_or_default());
            if let (Some(name), Some(url)) = (&broker.base_url, &aid.broker_url) {
                env.insert(name.clone(), url.clone());
            }
        }
        let network = &task.spec.placement.network;
        for (name, value) in sidecar::proxy_env(network) {
            env.insert(name.to_owned(), value);
        }
        let invocation = Invocation {
            argv: opening.argv,
            env,
            secrets,
            masked,
            output: Output::Text,
            cwd: self.workspace(),
            stdin: opening.stdin,
            limits: self.agent_limits(),
            ..Invocation::default()
        };
        Ok((invocation, opening.first))
    }

    /// What the task's own jobs may use.
    pub(super) fn limits(&self) -> Limits {
        let limits = &self.ctx.settings.config.limits;
        limits.lowered(&self.job.task.spec.limits)
    }

    /// Those of its agent, which may have to end with others.
    fn agent_limits(&self) -> JobLimits {
        let mut limits = self.limits().agent_job();
        if let Some(until) = self.job.task.spec.terms.until {
            let left = until.saturating_sub(self.ctx.settings.clock.now());
            limits.wall_clock_ms = limits.wall_clock_ms.min(left.max(1));
        }
        limits
    }

    pub(super) fn workspace(&self) -> PathBuf {
        self.job
            .task
            .workspace
            .as_ref()
            .map_or_else(|| "/".into(), |w| w.path.clone())
    }

    /// What agents and checks get: the engine's list, and a home of the task's own.
    pub(super) fn job_env(&self, home: &Path) -> Result<BTreeMap<String, String>, String> {
        // Beside the home, because some CLIs refuse a home below the temporary directory.
        let name = home.file_name().unwrap_or_default().to_string_lossy();
        let temporary = home.with_file_name(format!("{name}-tmp"));
        for dir in [
            home,
            &home.join(".claude"),
            &home.join(".codex"),
            &temporary,
        ] {
            std::fs::create_dir_all(dir)
                .map_err(|error| format!("make the private home {}: {error}", dir.display()))?;
        }
        let mut env = self.ctx.settings.job_env.clone();
        let text = |path: &Path| path.to_string_lossy().into_owned();
        env.insert("HOME".into(), text(home));
        env.insert("TMPDIR".into(), text(&temporary));
        for (name, below) in [
            ("XDG_CONFIG_HOME", ".config"),
            ("XDG_CACHE_HOME", ".cache"),
            ("XDG_DATA_HOME", ".local/share"),
            ("XDG_STATE_HOME", ".local/state"),
        ] {
            env.insert(name.into(), text(&home.join(below)));
        }
        for (name, value) in [
            ("TERM", "dumb"),
            ("NO_COLOR", "1"),
            ("CI", "true"),
            ("GIT_AUTHOR_NAME", "Dispatch agent"),
            ("GIT_AUTHOR_EMAIL", "agent@dispatch.invalid"),
            ("GIT_COMMITTER_NAME", "Dispatch agent"),
            ("GIT_COMMITTER_EMAIL", "agent@dispatch.invalid"),
        ] {
            env.insert(name.into(), value.into());
        }
        Ok(env)
    }
}

/// The agent's own files in its private home. An earlier run may have put anything in their places.
fn lay_down(home: &Path, wanted: &BTreeMap<HomePath, FileText>) -> Result<(), String> {
    for (path, text) in wanted {
        let path = path.as_path();
        let bytes = match text {
            FileText::Text(text) => text.clone().into_bytes(),
            FileText::From { file } => std::fs::read(file).map_err(|e| {
                format!(
                    "read {} for {} of the private home: {e}",
                    file.display(),
                    path.display()
                )
            })?,
        };
        let written = files::open_dir(home)
            .and_then(|root| files::replace_beneath(root.as_fd(), path, &bytes));
        written.map_err(|e| format!("write {} into the private home: {e}", path.display()))?;
    }
    Ok(())
}
