//! What a site can start and what can be told to it: plain data, no handle.
//! Must not know agents, git or tasks.

use std::{collections::BTreeMap, fmt, path::PathBuf, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{
    Millis,
    id::{BadId, CheckName, RunId},
    limits::JobLimits,
    outcome::Stop,
    redact::Redactor,
    secret::{Secret, travel_list},
};

/// Which of a run's jobs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    Agent,
    Check(CheckName),
    /// Brings the agent's commits out of its repository as a bundle.
    Seal,
    Sidecar,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agent => f.write_str("agent"),
            Self::Check(name) => write!(f, "check.{name}"),
            Self::Seal => f.write_str("seal"),
            Self::Sidecar => f.write_str("sidecar"),
        }
    }
}

impl FromStr for Part {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        match text {
            "agent" => Ok(Self::Agent),
            "seal" => Ok(Self::Seal),
            "sidecar" => Ok(Self::Sidecar),
            other => match other.strip_prefix("check.") {
                Some(name) => Ok(Self::Check(name.parse()?)),
                None => Err(BadId {
                    what: "a job's part",
                    text: text.into(),
                    rule: "agent, check.NAME, seal or sidecar",
                }),
            },
        }
    }
}

/// A started argv: the whole name of a job, on every site.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId {
    pub run: RunId,
    pub part: Part,
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.run, self.part)
    }
}

/// What a job's standard input is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stdin {
    #[default]
    Null,
    /// These bytes, then end of file.
    Bytes(Vec<u8>),
    /// Open for [`Order::Say`], until [`Order::CloseInput`].
    Open,
}

/// What a job writes, and so what its keeper may do to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Output {
    /// Secrets are masked in it.
    #[default]
    Text,
    /// Only a program reads it, and one changed byte would spoil it: a bundle.
    Bytes,
}

/// One argv with all it needs. Secrets are in `env` only, and named in `secrets` so that the
/// keeper can mask their values in the output; it travels on a pipe, never on disk or in argv.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invocation {
    pub argv: Vec<String>,
    /// The whole environment: nothing is inherited.
    pub env: BTreeMap<String, String>,
    /// Names in `env` whose values are masked in the output.
    pub secrets: Vec<String>,
    /// Values that are masked in the output although this job is not given them: a check may print
    /// what the agent wrote into a file.
    #[serde(default, with = "travel_list")]
    pub masked: Vec<Secret>,
    #[serde(default)]
    pub output: Output,
    pub cwd: PathBuf,
    pub stdin: Stdin,
    pub limits: JobLimits,
    /// Who of ours is inside with it.
    #[serde(default)]
    pub inside: Inside,
    /// The container engine around it.
    #[serde(default)]
    pub around: Option<Around>,
    /// Directories it may write, measured against `limits.disk_bytes`.
    #[serde(default)]
    pub writes: Vec<PathBuf>,
}

/// Whether the argv starts our warden, and how its keeper speaks to it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Inside {
    /// The argv is the program itself.
    #[default]
    Nobody,
    /// The argv ends in the warden, which locks the fence, starts the program and tells its end
    /// over a socket whose number it finds in [`WARDEN_VARIABLE`].
    Warden,
    /// The warden is in a container, where no descriptor reaches it: it connects to a socket in
    /// this directory, and is told the environment over it, so that no engine's records hold it.
    Socket {
        dir: PathBuf,
        /// Variables of which the image's own values win.
        own: Vec<String>,
    },
}

/// The number or the path of the warden's socket; the program itself never sees it.
pub const WARDEN_VARIABLE: &str = "DISPATCH_WARDEN";

/// What a warden that came by a socket is told before it may start the program.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handed {
    pub env: BTreeMap<String, String>,
    /// See [`Inside::Socket`].
    pub own: Vec<String>,
}

impl fmt::Debug for Handed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.env.keys()).finish()
    }
}

impl Handed {
    /// The program's environment, over what the image and its engine set.
    #[must_use]
    pub fn over(self, image: &BTreeMap<String, String>) -> BTreeMap<String, String> {
        let mut env = image.clone();
        for (name, value) in self.env {
            let theirs = image.get(&name).filter(|value| !value.is_empty());
            match theirs {
                Some(_) if self.own.contains(&name) => {}
                // What the image brings is found first, then what is bound into it.
                Some(theirs) if name == "PATH" && !value.is_empty() => {
                    env.insert(name, format!("{theirs}:{value}"));
                }
                Some(_) if name == "PATH" => {}
                _ => {
                    env.insert(name, value);
                }
            }
        }
        env
    }
}

/// The container engine around a job: how its keeper, or the sweep after it, reaches what is inside.
/// Nothing in it is secret: it lies in the job's directory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Around {
    /// The engine's name, for the record.
    pub word: String,
    /// The environment of the engine's client, never the job's.
    pub env: BTreeMap<String, String>,
    /// Argvs, each for this container alone.
    pub term: Vec<String>,
    pub kill: Vec<String>,
    /// Ends and removes it; no error when it is not there.
    pub remove: Vec<String>,
    /// What is around the job where no warden is there to tell.
    pub layers: Vec<String>,
    /// Limits that the engine's cgroup holds, by name.
    pub holds: Vec<String>,
    /// Made for this job alone, and removed with it: where its warden's socket is.
    pub dir: Option<PathBuf>,
}

impl Invocation {
    /// Masks what of this job must not be shown; `None` where nothing may be changed.
    #[must_use]
    pub fn redactor(&self) -> Option<Redactor> {
        let given = self.secrets.iter().filter_map(|name| self.env.get(name));
        let known = self.masked.iter().map(Secret::expose);
        match self.output {
            Output::Text => Some(Redactor::new(given.map(String::as_str).chain(known))),
            Output::Bytes => None,
        }
    }
}

impl fmt::Debug for Invocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Invocation")
            .field("argv", &self.argv)
            .field("env", &self.env.keys().collect::<Vec<_>>())
            .field("cwd", &self.cwd)
            .finish_non_exhaustive()
    }
}

/// How far a reader has come in a job's output, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offset {
    pub out: u64,
    pub err: u64,
    pub input: u64,
}

/// How the program itself ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    Code(i32),
    Signal(i32),
}

/// The keeper's whole account of an end; the content of the `exit` file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitReport {
    pub exit: Exit,
    /// Set when we ended it, so that the exit is not taken for a witness.
    pub stopped: Option<Stop>,
    pub started_at: Millis,
    pub ended_at: Millis,
    pub out_bytes: u64,
    pub err_bytes: u64,
    /// Processes that outlived the program and had to be killed.
    pub leftovers: u32,
    /// What could not be done as promised, for a person to read.
    pub problems: Vec<String>,
}

/// What can be told to a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Bytes for its standard input. The id makes it once-only: a keeper ignores one it has.
    Say {
        id: u64,
        bytes: Vec<u8>,
    },
    CloseInput,
    /// Ask it to end, and kill it when `grace_ms` are over.
    Stop {
        why: Stop,
        grace_ms: u64,
    },
    Kill {
        why: Stop,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_round_trip() {
        let check: CheckName = "rust".parse().unwrap();
        for part in [Part::Agent, Part::Check(check), Part::Seal, Part::Sidecar] {
            assert_eq!(part.to_string().parse(), Ok(part));
        }
        assert!("check.../x".parse::<Part>().is_err());
    }

    #[test]
    fn what_a_job_must_not_show() {
        let mut job = Invocation {
            env: BTreeMap::from([("KEY".into(), "hunter2".into())]),
            secrets: vec!["KEY".into()],
            masked: vec!["correct horse".into()],
            ..Invocation::default()
        };
        let sent = serde_json::to_string(&job).unwrap();
        assert_eq!(serde_json::from_str::<Invocation>(&sent).unwrap(), job);
        let shown = job.redactor().unwrap().redact("hunter2, correct horse");
        assert_eq!(shown, "***, ***");
        job.output = Output::Bytes;
        assert!(job.redactor().is_none());
    }

    #[test]
    fn an_image_keeps_what_is_its_own() {
        let map = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            let own = |(k, v): &(&str, &str)| ((*k).to_owned(), (*v).to_owned());
            pairs.iter().map(own).collect()
        };
        let handed = Handed {
            env: map(&[
                ("PATH", "/opt/x/bin"),
                ("GOROOT", "/host/go"),
                ("HOME", "/h"),
                ("NVM", "/n"),
            ]),
            own: vec!["GOROOT".into(), "NVM".into()],
        };
        let image = map(&[
            ("PATH", "/usr/bin"),
            ("GOROOT", "/usr/local/go"),
            ("HOME", "/root"),
            ("X", "1"),
        ]);
        assert_eq!(
            handed.over(&image),
            map(&[
                ("PATH", "/usr/bin:/opt/x/bin"),
                ("GOROOT", "/usr/local/go"),
                ("HOME", "/h"),
                ("NVM", "/n"),
                ("X", "1")
            ])
        );
    }

    #[test]
    fn debug_shows_no_secret() {
        let job = Invocation {
            env: BTreeMap::from([("KEY".into(), "hunter2".into())]),
            masked: vec!["hunter2".into()],
            ..Invocation::default()
        };
        assert!(!format!("{job:?}").contains("hunter2"));
    }
}
