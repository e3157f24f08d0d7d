//! Whom a task of the native agent asks: what a person's word for a model means, and which secrets
//! follow from it.
//! Must not put a key, an account or a model in the place of the one that was asked for: what is not
//! one of those that there are is an error that lists them.

use std::{borrow::Cow, collections::BTreeMap};

use serde::Deserialize;

use crate::{
    config::{AgentProfile, BrokerTable, Config, EnvValue, Source, list},
    drivers::DriverKind,
    gate::MicroUsd,
    id::{AgentName, GrantName, KeyName, ModelName},
    models::{Auth, BadKey, Choice, KeySource, KeyTable},
    native::TurnLimits,
    rules::{Grade, Group, Rules, fits},
    sidecar::Upstream,
    task::Effort,
};

/// Entries of one chain.
pub const CHAIN_MAX: usize = 16;
/// The agent gives up a question by itself only when whoever should deny it has long been silent.
const ASK_SLACK_MS: u64 = 60_000;

/// `[native]`: what holds for every agent with our own driver.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NativeSettings {
    pub steps_max: u32,
    pub tokens_max: u64,
    pub cost_usd_max: MicroUsd,
    pub wall_clock_s: u64,
    pub retry_ms: u64,
    pub wait_s_max: u64,
    pub groups: BTreeMap<Group, Grade>,
    /// Of a task that names no grant, and whose agent's table does not; `none`: nothing.
    pub grant: GrantName,
}

impl NativeSettings {
    /// Of one turn, for an agent whose asks are denied after `ask_wait_ms` by whoever listens to it.
    #[must_use]
    pub fn limits(&self, ask_wait_ms: u64) -> TurnLimits {
        TurnLimits {
            steps_max: self.steps_max,
            tokens_max: self.tokens_max,
            cost_usd_max: self.cost_usd_max.into(),
            wall_clock_ms: self.wall_clock_s.saturating_mul(1000),
            retry_ms: self.retry_ms,
            wait_ms_max: self.wait_s_max.saturating_mul(1000),
            ask_wait_ms: ask_wait_ms.saturating_add(ASK_SLACK_MS),
        }
    }
}

/// What follows `use ..`: which word, and why it cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadChain {
    #[error(
        "use agent {agent}: no model is asked for; name one with --model KEY/MODEL, or give \
         [agents.{agent}] a chain, such as [{{ key = \"{key}\", model = \"..\" }}]"
    )]
    NoModel { agent: AgentName, key: String },
    #[error(
        "use model {model}: no key is configured for the native agent; make a table [keys.NAME] \
         with a provider and a key"
    )]
    NoKeys { model: ModelName },
    #[error("use model {model}: there is no key {key}; there are {there}")]
    UnknownKey {
        model: ModelName,
        key: String,
        there: String,
    },
    #[error(
        "use model {model}: it may be asked of more than one key; say KEY/{model}, with one of {there}"
    )]
    Unclear { model: ModelName, there: String },
    #[error("use key {key}: it is not configured; there are {there}")]
    NoKey { key: KeyName, there: String },
    #[error("use a chain: it has {entries} entries, the most are {CHAIN_MAX}")]
    Long { entries: usize },
    #[error("use a chain: agent {agent} has none ({driver}); it is for the native agent")]
    Foreign {
        agent: AgentName,
        driver: &'static str,
    },
    #[error(transparent)]
    Key(#[from] BadKey),
    #[error("use key {key}: its base_url cannot be reached from inside a fence: {why}")]
    Upstream { key: KeyName, why: String },
}

/// The variable of the agent's environment that stands for a key. Not a name that shells could set.
#[must_use]
pub fn variable(key: &KeyName) -> String {
    format!("DISPATCH_KEY_{key}")
}

/// What each entry is to say of thinking.
#[must_use]
pub fn thinking(mut chain: Vec<Choice>, effort: Option<Effort>) -> Vec<Choice> {
    for choice in &mut chain {
        choice.effort = effort.or(choice.effort);
    }
    chain
}

/// The key's table, if there is one and it can be followed for this model.
fn usable<'a>(
    keys: &'a BTreeMap<KeyName, KeyTable>,
    choice: &Choice,
) -> Result<&'a KeyTable, BadChain> {
    let Some(table) = keys.get(&choice.key) else {
        let (key, there) = (choice.key.clone(), names(keys));
        return Err(BadChain::NoKey { key, there });
    };
    table.endpoint(&choice.key, &choice.model)?;
    upstream(&choice.key, table)?;
    Ok(table)
}

fn names(keys: &BTreeMap<KeyName, KeyTable>) -> String {
    match keys.is_empty() {
        true => "none; make a table [keys.NAME]".to_owned(),
        false => list(keys.keys()),
    }
}

/// Where the broker sends what is asked with this key.
fn upstream(key: &KeyName, table: &KeyTable) -> Result<Upstream, BadChain> {
    let base = table.base_url.as_deref().or(table.provider.base_url());
    let parsed = base.unwrap_or_default().parse::<Upstream>();
    parsed.map_err(|why| BadChain::Upstream {
        key: key.clone(),
        why,
    })
}

impl Config {
    /// The chain of a task: what was asked for, else what the agent's table says.
    ///
    /// # Errors
    /// When a word stands for no key or model, for more than one, or a table cannot be followed.
    pub fn chain(
        &self,
        agent: &AgentName,
        asked: Option<&[Choice]>,
        model: Option<&ModelName>,
    ) -> Result<Vec<Choice>, BadChain> {
        let Some(profile) = self.agents.get(agent).filter(|agent| agent.is_native()) else {
            let driver = self.agents.get(agent).map_or("", |a| a.driver.word());
            let agent = agent.clone();
            return match asked {
                None => Ok(Vec::new()),
                Some(_) => Err(BadChain::Foreign { agent, driver }),
            };
        };
        let chain = match (asked, model) {
            (Some(chain), _) => chain.to_vec(),
            (None, Some(model)) => vec![self.meant(profile, model)?],
            (None, None) => profile.chain.clone(),
        };
        if chain.is_empty() {
            let key = self.keys.keys().next().map_or("KEY", KeyName::as_str);
            let (agent, key) = (agent.clone(), key.to_owned());
            return Err(BadChain::NoModel { agent, key });
        }
        if chain.len() > CHAIN_MAX {
            let entries = chain.len();
            return Err(BadChain::Long { entries });
        }
        for choice in &chain {
            usable(&self.keys, choice)?;
        }
        Ok(chain)
    }

    /// `KEY/MODEL`, or a model that only one entry of the chain or one key can mean.
    fn meant(&self, profile: &AgentProfile, model: &ModelName) -> Result<Choice, BadChain> {
        let text = model.as_str();
        let of = |key: &KeyName, model: ModelName| Choice {
            key: key.clone(),
            model,
            effort: None,
        };
        let head = text.split_once('/');
        if let Some((head, rest)) = head
            && let Some((key, _)) = self.keys.iter().find(|(key, _)| key.as_str() == head)
            && let Ok(rest) = rest.parse()
        {
            return Ok(of(key, rest));
        }
        let mut entries = profile.chain.iter().filter(|choice| choice.model == *model);
        if let (Some(choice), None) = (entries.next(), entries.next()) {
            return Ok(choice.clone());
        }
        if self.keys.is_empty() {
            let model = model.clone();
            return Err(BadChain::NoKeys { model });
        }
        let named = |table: &KeyTable| {
            let mut rows = table.models.iter().filter(|row| row.pattern != "*");
            rows.any(|row| fits(&row.pattern, text))
        };
        let mut fitting: Vec<&KeyName> = self
            .keys
            .iter()
            .filter(|(_, table)| named(table))
            .map(|(key, _)| key)
            .collect();
        // A word before a slash is taken for a key, unless a table says that it is a model's.
        if let ([], Some((head, _))) = (&fitting[..], head) {
            return Err(BadChain::UnknownKey {
                model: model.clone(),
                key: head.to_owned(),
                there: list(self.keys.keys()),
            });
        }
        if fitting.is_empty() {
            fitting = self.keys.keys().collect();
        }
        match fitting[..] {
            [key] => Ok(of(key, model.clone())),
            _ => Err(BadChain::Unclear {
                model: model.clone(),
                there: list(fitting.iter()),
            }),
        }
    }

    /// What our own agent may do unasked, as its table says, and where it is fenced.
    #[must_use]
    pub fn rules(&self, profile: &AgentProfile, fenced: bool) -> Rules {
        let mut groups = self.native.groups.clone();
        groups.extend(profile.groups.iter().map(|(group, grade)| (*group, *grade)));
        Rules::graded(&groups, &profile.rules, fenced)
    }

    /// An agent as a task with this chain has it: what its keys take is in its `env`, and each of
    /// them stays with a broker.
    #[must_use]
    pub fn agent_for(&self, name: &AgentName, chain: &[Choice]) -> Option<Cow<'_, AgentProfile>> {
        let profile = self.agents.get(name)?;
        if !profile.is_native() {
            return Some(Cow::Borrowed(profile));
        }
        let used = chain.iter().map(|choice| &choice.key);
        let used = used.filter_map(|key| self.keys.get_key_value(key));
        Some(Cow::Owned(with_keys(profile, used)))
    }

    /// The same with every key that there is: for whoever looks a secret up by its name.
    pub fn agents_with_keys(&self) -> impl Iterator<Item = (&AgentName, Cow<'_, AgentProfile>)> {
        self.agents
            .iter()
            .map(|(name, profile)| match profile.is_native() {
                true => (name, Cow::Owned(with_keys(profile, self.keys.iter()))),
                false => (name, Cow::Borrowed(profile)),
            })
    }
}

fn with_keys<'a>(
    profile: &AgentProfile,
    keys: impl Iterator<Item = (&'a KeyName, &'a KeyTable)>,
) -> AgentProfile {
    let mut profile = profile.clone();
    for (key, table) in keys {
        let variable = variable(key);
        let known = |broker: &BrokerTable| broker.key == variable;
        let Ok(upstream) = upstream(key, table) else {
            continue;
        };
        if profile.brokers.iter().any(known) {
            continue;
        }
        let source = table
            .key
            .as_ref()
            .filter(|_| table.auth != Some(Auth::None));
        if let Some(source) = source {
            let source = Source::from(source);
            let optional = false;
            profile
                .env
                .insert(variable.clone(), EnvValue::Taken { source, optional });
        }
        profile.brokers.push(BrokerTable {
            key: variable,
            base_url: None,
            upstream,
            keyless: source.is_none(),
        });
    }
    profile
}

impl From<&KeySource> for Source {
    fn from(source: &KeySource) -> Self {
        match source {
            KeySource::From(name) => Self::Variable(name.clone()),
            KeySource::File(path) => Self::File(path.clone()),
            KeySource::Command(argv) => Self::Command(argv.clone()),
        }
    }
}

impl From<&Source> for KeySource {
    fn from(source: &Source) -> Self {
        match source {
            Source::Variable(name) => Self::From(name.clone()),
            Source::File(path) => Self::File(path.clone()),
            Source::Command(argv) => Self::Command(argv.clone()),
        }
    }
}

/// A key's table as the agent gets it: the broker's address, and the variable that stands for the
/// key. `None`: nothing serves this key.
#[must_use]
pub fn inside(key: &KeyName, table: &KeyTable, broker_url: &str) -> KeyTable {
    let auth = match table.auth {
        // The broker knows whom it serves by the placeholder.
        Some(Auth::None) => Some(Auth::Bearer),
        other => other,
    };
    KeyTable {
        base_url: Some(broker_url.to_owned()),
        key: Some(KeySource::From(variable(key))),
        auth,
        ..table.clone()
    }
}

impl AgentProfile {
    /// Our own program, driven by its own driver.
    #[must_use]
    pub fn is_native(&self) -> bool {
        self.driver == DriverKind::Native
    }

    /// All that keeps one of its secrets outside the fence.
    pub fn brokers(&self) -> impl Iterator<Item = &BrokerTable> {
        self.broker.iter().chain(&self.brokers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Layer};

    const KEYS: &str = "[keys.main]\nprovider = \"anthropic\"\nkey = { from = \"MAIN_KEY\" }\n\
        [keys.gate]\nprovider = \"compatible\"\nbase_url = \"https://gate.example/v1\"\n\
        key = { file = \"/keys/gate\" }\nmodels = [{ match = \"qwen*\" }, { match = \"org/*\" }]\n\
        [keys.own]\nprovider = \"compatible\"\nbase_url = \"http://127.0.0.1:11434/v1\"\nauth = \"none\"\n";

    fn config(more: &str) -> Config {
        let text = format!("{KEYS}{more}");
        let layer = Layer {
            source: "t",
            text: &text,
        };
        config::load(&[layer]).unwrap().0
    }

    fn native() -> AgentName {
        "native".parse().unwrap()
    }

    fn meant(config: &Config, model: &str) -> Result<String, String> {
        let chain = config.chain(&native(), None, Some(&model.parse().unwrap()));
        chain
            .map(|chain| list(chain.iter()))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_word_for_a_model_means_one_key_or_is_an_error() {
        let config = config("");
        for (word, means) in [
            ("main/claude-x", "claude-x of key main"),
            ("own/qwen3", "qwen3 of key own"),
            ("qwen3", "qwen3 of key gate"),
            ("org/model", "org/model of key gate"),
            ("gate/org/model", "org/model of key gate"),
        ] {
            assert_eq!(meant(&config, word).as_deref(), Ok(means), "{word}");
        }
        for (word, says) in [
            ("claude-x", "say KEY/claude-x, with one of gate, main, own"),
            (
                "other/claude-x",
                "there is no key other; there are gate, main, own",
            ),
        ] {
            let error = meant(&config, word).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn an_entry_of_the_chain_is_meant_by_its_model() {
        let chain = "[agents.native]\nchain = [{ key = \"main\", model = \"a\", effort = \"low\" }, \
                     { key = \"own\", model = \"b\" }]\n";
        let config = config(chain);
        let all = config.chain(&native(), None, None).unwrap();
        assert_eq!(list(all.iter()), "a of key main, b of key own");
        let one = config
            .chain(&native(), None, Some(&"a".parse().unwrap()))
            .unwrap();
        assert_eq!(one[0].effort, Some(Effort::Low));
        let loud = thinking(one.clone(), Some(Effort::High));
        assert_eq!(loud[0].effort, Some(Effort::High));
        let off = thinking(one, Some(Effort::Off));
        assert_eq!(off[0].effort, Some(Effort::Off));
    }

    #[test]
    fn without_a_model_or_a_key_it_says_how_to_name_one() {
        let says = |config: &Config, model: Option<&str>| {
            let model = model.map(|model| model.parse().unwrap());
            let error = config.chain(&native(), None, model.as_ref()).unwrap_err();
            error.to_string()
        };
        assert!(says(&config(""), None).contains("--model KEY/MODEL"));
        assert!(says(&Config::defaults(), Some("x")).contains("[keys.NAME]"));
        let asked = [Choice {
            key: "gone".parse().unwrap(),
            model: "m".parse().unwrap(),
            effort: None,
        }];
        let gone = config("").chain(&native(), Some(&asked), None).unwrap_err();
        assert!(
            gone.to_string().contains("there are gate, main, own"),
            "{gone}"
        );
        let codex = "codex".parse().unwrap();
        let foreign = config("").chain(&codex, Some(&asked), None).unwrap_err();
        assert!(
            foreign.to_string().contains("agent codex has none"),
            "{foreign}"
        );
    }

    #[test]
    fn only_the_keys_of_the_chain_are_taken_and_each_stays_with_a_broker() {
        let config = config("");
        let chain = config.chain(&native(), None, Some(&"gate/qwen3".parse().unwrap()));
        let profile = config.agent_for(&native(), &chain.unwrap()).unwrap();
        let taken: Vec<String> = profile
            .env
            .iter()
            .filter_map(|(variable, value)| value.key(&native(), variable))
            .collect();
        assert_eq!(taken, ["native/DISPATCH_KEY_gate"]);
        let brokers: Vec<String> = profile.brokers().map(|b| b.upstream.to_string()).collect();
        assert_eq!(brokers, ["https://gate.example/v1"]);
        let all: usize = config
            .agents_with_keys()
            .map(|(_, agent)| agent.brokers().count())
            .sum();
        assert_eq!(all, 3);
    }
}
