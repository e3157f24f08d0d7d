//! The older `agents.yaml`: its numbers for the gate, as tables of our own. Text in, TOML out.
//! Must not carry over what would mean something else here without saying so.

use std::collections::BTreeMap;

use dispatch_core::{config::Config, gate::ResetUtc, id::ModelName};
use serde::Deserialize;
use toml::{Table, Value};

/// What it said by 0 or by nothing: no limit. Here a pool has slots.
const NO_LIMIT_SLOTS: i64 = 1000;

#[derive(Debug, Default, Deserialize)]
struct File {
    #[serde(default)]
    dispatch: Section,
    #[serde(default)]
    concurrency: BTreeMap<String, Concurrency>,
    #[serde(default)]
    rates: BTreeMap<String, Rates>,
    #[serde(flatten)]
    rest: BTreeMap<String, serde::de::IgnoredAny>,
}

#[derive(Debug, Default, Deserialize)]
struct Section {
    default_agent: Option<String>,
    timeout_minutes: Option<u32>,
    #[serde(flatten)]
    rest: BTreeMap<String, serde::de::IgnoredAny>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Concurrency {
    Total(u32),
    Models(BTreeMap<String, u32>),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rates {
    reset_utc: Option<String>,
    #[serde(default)]
    daily_limit: u32,
    #[serde(default)]
    min_delay: u32,
    #[serde(default)]
    sustained_delay: u32,
    #[serde(default)]
    burst_delay: u32,
    /// In hours, before the reset.
    #[serde(default)]
    burst_window: u32,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ImportError {
    #[error("read it as YAML")]
    Yaml(#[source] Box<serde_saphyr::Error>),
    #[error("read rates.{pool}.reset_utc: {why}")]
    Reset { pool: String, why: String },
    #[error("write it as TOML")]
    Toml(#[from] toml::ser::Error),
}

/// Tables of ours, and what a person should know about them.
#[derive(Debug)]
pub(crate) struct Imported {
    pub(crate) toml: String,
    /// The tables it holds, as dotted names.
    pub(crate) tables: Vec<String>,
    pub(crate) notes: Vec<String>,
}

pub(crate) fn agents_yaml(text: &str, config: &Config) -> Result<Imported, ImportError> {
    let file: File =
        serde_saphyr::from_str(text).map_err(|error| ImportError::Yaml(Box::new(error)))?;
    let mut import = Import {
        config,
        pools: BTreeMap::new(),
        notes: Vec::new(),
    };
    for (name, asked) in &file.concurrency {
        import.slots(name, asked);
    }
    for (name, rates) in &file.rates {
        import.rates(name, rates)?;
    }
    import.slots_for_all();
    let mut root = Table::new();
    import.section(&file.dispatch, &mut root);
    let known = |name: &&String| name.as_str() != "version";
    for name in file.rest.keys().filter(known) {
        import.notes.push(format!("{name} is not carried over"));
    }
    let pools: Table = import
        .pools
        .into_iter()
        .map(|(name, pool)| (name, Value::Table(pool)))
        .collect();
    let mut tables: Vec<String> = root.keys().cloned().collect();
    tables.extend(pools.keys().map(|name| format!("pools.{name}")));
    if !pools.is_empty() {
        root.insert("pools".into(), Value::Table(pools));
    }
    Ok(Imported {
        toml: toml::to_string(&root)?,
        tables,
        notes: import.notes,
    })
}

struct Import<'a> {
    config: &'a Config,
    pools: BTreeMap<String, Table>,
    notes: Vec<String>,
}

impl Import<'_> {
    /// It named pools after agents; here an agent names its pool.
    fn pool(&self, name: &str) -> String {
        let agents = &self.config.agents;
        let agent = agents.iter().find(|(known, _)| known.as_str() == name);
        agent.map_or_else(|| name.to_owned(), |(_, agent)| agent.pool.to_string())
    }

    fn table(&mut self, name: &str) -> &mut Table {
        let pool = self.pool(name);
        self.pools.entry(pool).or_default()
    }

    fn slots(&mut self, name: &str, asked: &Concurrency) {
        let total = |n: u32| if n == 0 { NO_LIMIT_SLOTS } else { i64::from(n) };
        let slots = match asked {
            Concurrency::Total(n) => Value::Integer(total(*n)),
            Concurrency::Models(models) => {
                let mut slots = Table::new();
                let all = models.get("total").copied().unwrap_or(0);
                slots.insert("total".into(), Value::Integer(total(all)));
                for (model, n) in models.iter().filter(|(model, _)| *model != "total") {
                    if *n == 0 {
                        continue;
                    }
                    if let Err(error) = model.parse::<ModelName>() {
                        self.notes.push(error.to_string());
                        continue;
                    }
                    slots.insert(model.clone(), Value::Integer(i64::from(*n)));
                }
                Value::Table(slots)
            }
        };
        let before = self.table(name).insert("slots".into(), slots);
        if before.is_some() {
            let pool = self.pool(name);
            self.notes.push(format!(
                "pool {pool} was named more than once; the slots of {name} are taken"
            ));
        }
    }

    fn rates(&mut self, name: &str, rates: &Rates) -> Result<(), ImportError> {
        if let Some(reset) = &rates.reset_utc {
            reset
                .parse::<ResetUtc>()
                .map_err(|error| ImportError::Reset {
                    pool: name.to_owned(),
                    why: error.to_string(),
                })?;
        }
        let reset = rates.reset_utc.clone();
        let numbers = [
            ("min_delay_s", i64::from(rates.min_delay)),
            ("sustained_delay_s", i64::from(rates.sustained_delay)),
            ("burst_window_s", i64::from(rates.burst_window) * 3600),
            ("burst_delay_s", i64::from(rates.burst_delay)),
            ("daily_limit_starts", i64::from(rates.daily_limit)),
        ];
        let table = self.table(name);
        for (key, number) in numbers.into_iter().filter(|(_, number)| *number > 0) {
            table.insert(key.into(), Value::Integer(number));
        }
        // Its own default was another than ours.
        let reset = reset.unwrap_or_else(|| "06:00".to_owned());
        table.insert("reset_utc".into(), Value::String(reset));
        Ok(())
    }

    /// A pool that only had rates had no limit on what runs at once.
    fn slots_for_all(&mut self) {
        for (name, table) in &mut self.pools {
            let known = self.config.pools.keys().any(|known| known.as_str() == name);
            if !table.contains_key("slots") && !known {
                table.insert("slots".into(), Value::Integer(NO_LIMIT_SLOTS));
            }
            let used = |agent: &dispatch_core::config::AgentProfile| agent.pool.as_str() == name;
            if !self.config.agents.values().any(used) {
                self.notes.push(format!(
                    "no agent is in pool {name} yet: an [agents.NAME] table says pool = \"{name}\""
                ));
            }
        }
    }

    fn section(&mut self, section: &Section, root: &mut Table) {
        if let Some(name) = &section.default_agent {
            let known = self
                .config
                .agents
                .keys()
                .any(|known| known.as_str() == name);
            if known {
                let task = Table::from_iter([("agent".to_owned(), Value::String(name.clone()))]);
                root.insert("task".into(), Value::Table(task));
            } else {
                self.notes.push(format!(
                    "dispatch.default_agent {name:?} is not carried over: no agent of that name is \
                     configured"
                ));
            }
        }
        if let Some(minutes) = section.timeout_minutes.filter(|minutes| *minutes > 0) {
            let seconds = Value::Integer(i64::from(minutes) * 60);
            let limits = Table::from_iter([("wall_clock_s".to_owned(), seconds)]);
            root.insert("limits".into(), Value::Table(limits));
        }
        for name in section.rest.keys() {
            self.notes
                .push(format!("dispatch.{name} is not carried over"));
        }
    }
}

#[cfg(test)]
mod tests {
    use dispatch_core::config::{Layer, load};

    use super::*;

    const EXAMPLE: &str = "\
version: 1
dispatch:
  default_agent: claude
  default_template: coding
  timeout_minutes: 60
concurrency:
  claude: 3
  gemini: 1
  codex:
    total: 5
    gpt-5: 1
    odd: 0
  local: 0
  clotho: 2
rates:
  gemini:
    reset_utc: \"06:00\"
    sustained_delay: 120
    burst_delay: 30
    burst_window: 3
  codex: {min_delay: 60, sustained_delay: 300, daily_limit: 40}
agents:
  cladius: {host: local, roles: [dispatch]}
";

    #[test]
    fn the_older_numbers_mean_the_same_here() {
        let imported = agents_yaml(EXAMPLE, &Config::defaults()).unwrap();
        let text = &imported.toml;
        let layer = Layer {
            source: "imported",
            text,
        };
        let config = load(&[layer]).unwrap().0;
        let pool = |name: &str| &config.pools[&name.parse().unwrap()];
        assert_eq!(pool("anthropic").slots.total, 3);
        let codex = pool("openai");
        let model = "gpt-5".parse().unwrap();
        assert_eq!((codex.slots.total, codex.slots.models[&model]), (5, 1));
        assert_eq!(codex.slots.models.len(), 1, "0 was no limit");
        assert_eq!((codex.min_delay_s, codex.daily_limit_starts), (60, 40));
        let gemini = pool("google");
        assert_eq!(
            (
                gemini.sustained_delay_s,
                gemini.burst_delay_s,
                gemini.burst_window_s
            ),
            (120, 30, 10_800)
        );
        assert_eq!(gemini.reset_utc, codex.reset_utc, "06:00 was its default");
        assert_eq!(pool("local").slots.total, 1000);
        assert_eq!(config.limits.wall_clock_s, 3600);
        assert_eq!(config.task.agent.as_str(), "claude");
        let notes = imported.notes.join("\n");
        for word in ["dispatch.default_template", "agents is not", "pool clotho"] {
            assert!(notes.contains(word), "{notes}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let config = Config::defaults();
        for (text, word) in [
            ("concurrency: [1]", "YAML"),
            ("concurrency: {claude: -1}", "YAML"),
            (
                "rates: {claude: {reset_utc: \"25:00\"}}",
                "rates.claude.reset_utc",
            ),
            ("rates: {claude: {sustained: 1}}", "YAML"),
        ] {
            let error = agents_yaml(text, &config).unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
        assert_eq!(agents_yaml("{}", &config).unwrap().toml, "");
    }
}
