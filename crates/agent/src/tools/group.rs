//! A command and everything it starts, as one process group: started together, ended together.
//! Must not leave anything of it behind, whoever lets go of it.

use std::{
    collections::BTreeSet,
    io,
    path::Path,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use tokio::{
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command},
    time::{sleep, timeout},
};

/// A group that was killed may be starting one more process just then: it is killed again.
const KILLS_MAX: usize = 20;
const KILL_AGAIN: Duration = Duration::from_millis(5);

#[derive(Debug)]
pub(super) struct Group {
    child: Child,
    /// Of the group: its first process.
    pid: Option<Pid>,
}

pub(super) struct Pipes {
    pub(super) stdin: Option<ChildStdin>,
    pub(super) stdout: Option<ChildStdout>,
    pub(super) stderr: Option<ChildStderr>,
}

impl Group {
    /// A line of shell, as the model wrote it: that is what this tool is for.
    pub(super) fn start(
        line: &str,
        cwd: &Path,
        hidden: &BTreeSet<String>,
        open_input: bool,
    ) -> io::Result<(Self, Pipes)> {
        let mut command = Command::new("bash");
        command.arg("-c").arg(line);
        let spawned = prepared(&mut command, cwd, hidden, open_input).spawn();
        let child = match spawned {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut command = Command::new("sh");
                command.arg("-c").arg(line);
                prepared(&mut command, cwd, hidden, open_input).spawn()?
            }
            other => other?,
        };
        Ok(Self::of(child))
    }

    /// A program, with variables of its own and its input open.
    pub(super) fn program(
        argv: &[String],
        cwd: &Path,
        hidden: &BTreeSet<String>,
        env: &[(String, String)],
    ) -> io::Result<(Self, Pipes)> {
        let Some((program, args)) = argv.split_first() else {
            return Err(io::Error::other("it is not named"));
        };
        let mut command = Command::new(program);
        prepared(command.args(args), cwd, hidden, true).envs(env.iter().cloned());
        Ok(Self::of(command.spawn()?))
    }

    fn of(mut child: Child) -> (Self, Pipes) {
        let pid = child.id().and_then(|id| i32::try_from(id).ok());
        let pipes = Pipes {
            stdin: child.stdin.take(),
            stdout: child.stdout.take(),
            stderr: child.stderr.take(),
        };
        let pid = pid.and_then(Pid::from_raw);
        (Self { child, pid }, pipes)
    }

    /// May be dropped while it waits.
    pub(super) async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Asks all of it to end, and ends it after a while. The end of its first process, if that was
    /// not heard yet.
    pub(super) async fn end(&mut self, grace: Duration) -> Option<ExitStatus> {
        self.signal(Signal::TERM);
        let first = timeout(grace, self.child.wait()).await;
        self.kill().await;
        match first {
            Ok(ended) => ended.ok(),
            Err(_) => self.child.wait().await.ok(),
        }
    }

    /// All of it, at once.
    pub(super) async fn kill(&mut self) {
        for _ in 0..KILLS_MAX {
            self.signal(Signal::KILL);
            if self.is_gone() {
                // Its number may soon be another's.
                self.pid = None;
                return;
            }
            sleep(KILL_AGAIN).await;
        }
    }

    fn is_gone(&self) -> bool {
        self.pid
            .is_none_or(|pid| test_kill_process_group(pid).is_err())
    }

    fn signal(&self, signal: Signal) {
        let sent = self.pid.map(|pid| kill_process_group(pid, signal));
        match sent {
            // Nothing of it is left, or nothing of it is ours to signal.
            None | Some(Ok(()) | Err(_)) => {}
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

fn prepared<'a>(
    command: &'a mut Command,
    cwd: &Path,
    hidden: &BTreeSet<String>,
    open_input: bool,
) -> &'a mut Command {
    for name in hidden {
        command.env_remove(name);
    }
    let input = if open_input {
        Stdio::piped()
    } else {
        Stdio::null()
    };
    command
        .current_dir(cwd)
        .stdin(input)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
}
