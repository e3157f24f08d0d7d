//! The scripted model server beside a test, gone with it.
//! Must not speak for itself: what it answers is the test's script.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::{Child, ChildStdin, Command, Stdio},
};

use serde_json::Value;

/// The model server, with a script of one conversation that goes on from run to run.
pub struct Model {
    child: Child,
    stdin: Option<ChildStdin>,
    pub url: String,
    folder: tempfile::TempDir,
}

impl Model {
    pub fn start(steps: &Value) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("script.json");
        fs::write(&script, steps.to_string()).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_fake-model"))
            .arg("--script")
            .arg(script)
            .arg("--log")
            .arg(folder.path().join("log"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        lines.read_line(&mut line).unwrap();
        let told: Value = serde_json::from_str(&line).unwrap();
        Self {
            stdin: child.stdin.take(),
            child,
            url: told["url"].as_str().unwrap().to_owned(),
            folder,
        }
    }

    /// The requests that took a step of the script.
    pub fn asked(&self) -> Vec<Value> {
        let log = fs::read_to_string(self.folder.path().join("log")).unwrap();
        let records: Vec<Value> = log
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let wrong: Vec<&Value> = records
            .iter()
            .filter(|record| record["kind"] == "error")
            .collect();
        assert!(wrong.is_empty(), "{wrong:?}");
        records
            .into_iter()
            .filter(|record| record["kind"] == "step")
            .collect()
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        drop(self.stdin.take());
        self.child.wait().unwrap();
    }
}
