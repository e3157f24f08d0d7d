//! A job in its task's placement: what it may see and write, and the fence around it.
//! Must not start anything.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use dispatch_core::{
    cage::Relay,
    config::AgentProfile,
    container::Wanted,
    job::{Invocation, Part},
    task::Wrap,
};

use super::{Cut, Walk};
use crate::{
    attachments, containers, door,
    fence::{self, Needs},
    native, prompts,
};

impl Walk {
    /// What a program is called where the job runs: an image may have it although this host has not.
    pub(super) fn program(
        &self,
        name: &str,
        env: &BTreeMap<String, String>,
    ) -> Result<String, String> {
        let found = find_program(name, env);
        match self.job.task.spec.placement.wrap {
            Wrap::Container => Ok(containers::program(name, found.as_deref().ok())),
            Wrap::Cage | Wrap::Host => found,
        }
    }

    /// What takes long about a fence, off the runtime: asking a container engine, getting an image.
    pub(super) async fn prepare_fence(&self) -> Result<Result<(), String>, Cut> {
        let Some(container) = self.job.task.spec.placement.container.clone() else {
            return Ok(Ok(()));
        };
        let fences = Arc::clone(&self.ctx.fences);
        tokio::task::spawn_blocking(move || fences.prepare(&container))
            .await
            .map_err(|_| Cut)
    }

    /// What was found out about an image may be why a start failed.
    pub(super) fn forget_fence(&self) {
        if let Some(container) = &self.job.task.spec.placement.container {
            self.ctx.fences.containers().forget(container);
        }
    }

    /// The invocation in the task's own placement, with `home` as its private home.
    pub(super) fn fence(
        &self,
        mut inner: Invocation,
        home: &Path,
        agent: Option<&AgentProfile>,
        part: Part,
        relays: Vec<Relay>,
    ) -> Result<Invocation, String> {
        let placement = &self.job.task.spec.placement;
        let temporary = inner.env.get("TMPDIR").map(PathBuf::from);
        let mut write = vec![self.workspace(), home.to_owned()];
        write.extend(temporary);
        if placement.wrap == Wrap::Host {
            inner.writes = write;
            return Ok(inner);
        }
        for dir in &write {
            std::fs::create_dir_all(dir).map_err(|e| format!("make {}: {e}", dir.display()))?;
        }
        let login = agent.and_then(|agent| self.login(agent));
        let shared = login.map(|(account, _)| account.dir().to_owned());
        let toolchains = &self.ctx.settings.config.toolchains;
        let objects = self.ctx.trees.objects(&self.job.task);
        let mut read = vec![objects.map_err(|error| error.to_string())?];
        let context = prompts::context(&self.ctx.settings.data, self.job.run);
        read.extend(agent.map(|_| context).filter(|dir| dir.is_dir()));
        if let Some(agent) = agent {
            let (data, task) = (&self.ctx.settings.data, &self.job.task);
            let resumes = agent.is_native().then(|| self.resume()).flatten();
            read.extend(native::records(data, task, self.job.run.n, resumes));
            read.extend(attachments::folders(data, task, self.job.run.n));
        }
        let mut doors = Vec::new();
        if let Some(door) = self.door().filter(|_| agent.is_some()) {
            doors.push(door.directory.clone());
            read.push(door::directory(&self.ctx.settings.data, self.job.run));
        }
        let paths = agent.map_or(&[][..], |agent| &agent.paths);
        read.extend(toolchains.paths.iter().chain(paths).map(PathBuf::from));
        let mut seen = toolchains.pass_env.clone();
        for name in &toolchains.private {
            seen.retain(|other| other != name);
            // Of the person's own directory only the programs; what it caches is the task's.
            if let Some(theirs) = inner.env.get(name).map(PathBuf::from) {
                let own = home.join(theirs.file_name().unwrap_or_default());
                read.push(theirs.join("bin"));
                if name == fence::CARGO {
                    fence::hand_over_cargo_config(&theirs, &own)
                        .map_err(|e| format!("write {}: {e}", own.join("config.toml").display()))?;
                }
                inner
                    .env
                    .insert(name.clone(), own.to_string_lossy().into_owned());
            }
        }
        // `python3 /home/me/agent.py`: a file that the person's own table names is its program, too.
        let named = agent.map_or(&[][..], |agent| &agent.args);
        let programs = named.iter().map(PathBuf::from);
        let programs = programs.filter(|path| path.is_absolute() && path.is_file());
        let needs = Needs {
            programs: programs.collect(),
            read,
            write,
            shared: shared.into_iter().collect(),
            toolchains: &seen,
            gpu: placement.gpu,
            relays,
            doors,
        };
        let fences = &self.ctx.fences;
        if placement.wrap == Wrap::Cage {
            return fences.cage(inner, needs, &placement.network, placement.strict);
        }
        let container = placement.container.as_ref().ok_or_else(|| {
            "the placement is a container without an image; name one with --image".to_owned()
        })?;
        let wanted = Wanted {
            network: placement.network.clone(),
            strict: placement.strict,
            gpu: placement.gpu,
            host_alias: agent.is_some_and(|agent| agent.host_alias),
        };
        fences.contain(inner, &self.id(part), needs, container, &wanted)
    }
}

/// The program's full path, found on the job's own PATH.
fn find_program(program: &str, env: &BTreeMap<String, String>) -> Result<String, String> {
    let runnable = |path: &Path| {
        use std::os::unix::fs::PermissionsExt;
        path.metadata()
            .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    if program.contains('/') {
        let path = Path::new(program);
        return if path.is_absolute() && runnable(path) {
            Ok(program.to_owned())
        } else {
            Err(format!("{program} is not an absolute path to a program"))
        };
    }
    let path = env.get("PATH").map_or("", String::as_str);
    path.split(':')
        .filter(|dir| dir.starts_with('/'))
        .map(|dir| Path::new(dir).join(program))
        .find(|candidate| runnable(candidate))
        .map(|found| found.to_string_lossy().into_owned())
        .ok_or_else(|| {
            format!("the program {program} is not on PATH; `dispatch doctor` tells more")
        })
}
