//! A workspace for tests of tools.
//! Must not be used outside tests.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use dispatch_core::{
    rules::Rules,
    web::{Reach, WebTable},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};

use super::{Given, Granted, Judge, Outside, Place, Planned, Roots, Run, Seen, Sign, Spill, TOOLS};
use crate::net::{Connector, Proxy};

#[derive(Debug)]
pub(crate) struct Bench {
    _dir: TempDir,
    pub(crate) place: Arc<Place>,
    pub(crate) signs: mpsc::Receiver<Sign>,
    pub(crate) messages: watch::Sender<usize>,
    pub(crate) seen: Arc<Seen>,
    pub(crate) rules: Arc<Rules>,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    /// It works in this directory of its checkout.
    pub(crate) fn below(directory: &str) -> Self {
        Self::at(directory, |_| {})
    }

    /// With the world outside as this has it.
    pub(crate) fn with(change: impl FnOnce(&mut Outside)) -> Self {
        Self::at("", change)
    }

    fn at(directory: &str, change: impl FnOnce(&mut Outside)) -> Self {
        let mut outside = Outside {
            connector: Connector::new(Proxy::default(), Duration::from_secs(5)),
            reach: Reach::Everything,
            web: WebTable::default(),
            keys: BTreeMap::new(),
        };
        change(&mut outside);
        let dir = tempfile::tempdir().unwrap();
        let checkout = dir.path().join("work");
        let root = checkout.join(directory);
        fs::create_dir_all(&root).unwrap();
        let roots = Roots::new(&root, Some(&checkout)).unwrap();
        let spill = Spill::new(&dir.path().join("spill")).unwrap();
        let (sender, signs) = mpsc::channel(1024);
        let (messages, count) = watch::channel(0);
        let hidden = BTreeSet::from(["CARGO_MANIFEST_DIR".to_owned()]);
        let place = Place::new(roots, spill, outside, hidden, count, sender);
        Self {
            _dir: dir,
            place: Arc::new(place),
            signs,
            messages,
            seen: Arc::default(),
            rules: Arc::new(rules(&[])),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.place.root().join(name)
    }

    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// A pipe with a name, which nobody ever writes to: opened to be read it keeps one waiting.
    pub(crate) fn pipe(&self, name: &str) {
        let made = std::process::Command::new("mkfifo")
            .arg(self.path(name))
            .status();
        assert!(made.unwrap().success(), "{name}");
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    pub(crate) async fn plan(&self, tool: &str, input: &Value) -> Result<Planned, String> {
        let tool = TOOLS.iter().find(|known| known.name == tool).unwrap();
        let given = Given {
            input: input.to_string(),
            place: Arc::clone(&self.place),
            judge: Judge::new(tool.group, Arc::clone(&self.rules)),
        };
        let planned = Granted::Own(tool).plan(given).await;
        planned.map_err(|wrong| wrong.to_string())
    }

    pub(crate) async fn run(&self, tool: &str, input: Value) -> Result<String, String> {
        let planned = self.plan(tool, &input).await?;
        let run = Run {
            call: "c".into(),
            place: Arc::clone(&self.place),
            seen: Arc::clone(&self.seen),
        };
        planned.run(run).await.map_err(|wrong| wrong.to_string())
    }

    pub(crate) async fn told(&self, tool: &str, input: Value) -> String {
        self.run(tool, input).await.unwrap()
    }

    pub(crate) async fn wrong(&self, tool: &str, input: Value) -> String {
        self.run(tool, input).await.unwrap_err()
    }
}

/// Everything is allowed but for these: groups, patterns, and whether they are denied or asked.
pub(crate) fn rules(guarded: &[(&str, &str, &str)]) -> Rules {
    let rules = guarded.iter().map(
        |(group, pattern, action)| json!({"group": group, "pattern": pattern, "action": action}),
    );
    let rules: Vec<Value> = rules.collect();
    let layers = json!({"layers": [{"otherwise": "allow", "rules": rules}]});
    serde_json::from_value(layers).unwrap()
}

pub(crate) fn files(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap();
    let mut names: Vec<String> = names
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}
