//! What a run's agent finds of our door: a token in a file of its own, the way to the socket, and the
//! program with our tools. Only for a run whose task has a grant.
//! Must not say what comes through it, and must put no token into an argv or an environment.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use dispatch_core::id::RunId;

use crate::{files, sidecar::forget};

/// Where the socket is.
pub const DOOR_VARIABLE: &str = "DISPATCH_DOOR";
/// Where the token is.
pub const TOKEN_VARIABLE: &str = "DISPATCH_TOKEN_FILE";
const TOKEN: &str = "token";

/// Where agents come in, as whoever embeds the engine serves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Door {
    /// Nothing but the socket is in it: it is seen by every agent that has a door.
    pub directory: PathBuf,
    pub socket: String,
    /// What our own program (the keeper's) is called with to speak MCP with an agent; empty: agents
    /// are told of the door, and of no tools.
    pub tools: Vec<String>,
}

impl Door {
    /// There before anything is put around it, whoever serves it later.
    pub(crate) fn make(&self) -> io::Result<()> {
        private(&self.directory)
    }

    /// What the agent's programs read, `our tools` among them.
    pub(crate) fn env(&self, data: &Path, run: RunId) -> Vec<(String, String)> {
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        let socket = text(self.directory.join(&self.socket));
        let token = text(directory(data, run).join(TOKEN));
        vec![
            (DOOR_VARIABLE.into(), socket),
            (TOKEN_VARIABLE.into(), token),
        ]
    }
}

/// Of this run alone, and seen by nobody but its agent.
pub(crate) fn directory(data: &Path, run: RunId) -> PathBuf {
    data.join("doors").join(run.to_string())
}

/// Lays down the token. Again after a crash it is the same one.
pub(crate) fn lay_down(data: &Path, run: RunId, token: &str) -> io::Result<()> {
    let dir = directory(data, run);
    private(&dir)?;
    let making = dir.join(files::unique("making-"));
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o400)
        .open(&making)?;
    file.write_all(token.as_bytes())?;
    file.sync_all()?;
    fs::rename(&making, dir.join(TOKEN))
}

/// No process of the run is left that could read it.
pub(crate) fn take_away(data: &Path, run: RunId) -> Result<(), String> {
    forget(&directory(data, run))
}

fn private(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700))
}

#[cfg(test)]
mod tests {
    use dispatch_core::id::TaskId;

    use super::*;

    #[test]
    fn a_token_is_its_users_alone_and_goes_with_its_run() {
        let data = tempfile::tempdir().unwrap();
        let run = RunId {
            task: TaskId::from_bits(7),
            n: 2,
        };
        for _ in 0..2 {
            lay_down(data.path(), run, "dr_x").unwrap();
        }
        let dir = directory(data.path(), run);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&dir), mode(&dir.join(TOKEN))), (0o700, 0o400));
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
        let door = Door {
            directory: "/run/agents".into(),
            socket: "engine.sock".into(),
            tools: Vec::new(),
        };
        let env = door.env(data.path(), run);
        assert_eq!(
            env[0],
            (DOOR_VARIABLE.into(), "/run/agents/engine.sock".into())
        );
        assert_eq!(fs::read_to_string(&env[1].1).unwrap(), "dr_x");
        take_away(data.path(), run).unwrap();
        take_away(data.path(), run).unwrap();
        assert!(!dir.exists());
    }
}
