//! The whole on the wire: pools, spending, agents, values of the configuration.
//! Must not say more of the configuration than who reads it may know: literals that may be secret are
//! masked here.

use dispatch_core::{
    config::{Config, Sourced},
    gate::Budget as CoreBudget,
    id::KeyName,
    keyring::KeyState,
    native,
    redact::Redactor,
    spending::{Spending, Sum},
};
use dispatch_engine::reads::{Overview, PoolView};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{task::Budget, time};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Pools {
    /// Nothing starts at all.
    pub(crate) frozen: bool,
    pub(crate) pools: Vec<Pool>,
}

/// Since its last reset; as a limit 0 means none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Pool {
    pub(crate) name: String,
    pub(crate) slots: usize,
    pub(crate) held: usize,
    pub(crate) models: Vec<ModelSlots>,
    /// Runs that are queued.
    pub(crate) waiting: usize,
    pub(crate) frozen: bool,
    pub(crate) paused: Option<Paused>,
    pub(crate) starts: u64,
    pub(crate) starts_max: u64,
    pub(crate) spent: Budget,
    pub(crate) budget: Budget,
    pub(crate) resets_at: String,
}

/// A model that has slots of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct ModelSlots {
    pub(crate) model: String,
    pub(crate) slots: usize,
    pub(crate) held: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Paused {
    pub(crate) until: String,
    pub(crate) reason: String,
}

impl From<CoreBudget> for Budget {
    fn from(budget: CoreBudget) -> Self {
        Self {
            tokens: budget.tokens,
            usd: budget.usd.into(),
        }
    }
}

impl From<&PoolView> for Pool {
    fn from(pool: &PoolView) -> Self {
        let models = pool.models.iter().map(|(model, slots, held)| ModelSlots {
            model: model.to_string(),
            slots: *slots,
            held: *held,
        });
        Self {
            name: pool.name.to_string(),
            slots: pool.slots,
            held: pool.held,
            models: models.collect(),
            waiting: pool.waiting,
            frozen: pool.frozen,
            paused: pool.pause.as_ref().map(|pause| Paused {
                until: time(pause.until),
                reason: pause.reason.clone(),
            }),
            starts: pool.starts,
            starts_max: pool.starts_max,
            spent: pool.spent.into(),
            budget: pool.budget.into(),
            resets_at: time(pool.resets_at),
        }
    }
}

impl From<&Overview> for Pools {
    fn from(overview: &Overview) -> Self {
        Self {
            frozen: overview.frozen,
            pools: overview.pools.iter().map(Pool::from).collect(),
        }
    }
}

/// What runs have spent: by the day of their end in UTC, by pool and by task; and what their agents have
/// heard of the keys that they ask models with.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Spent {
    pub(crate) days: Vec<Row>,
    pub(crate) pools: Vec<Row>,
    pub(crate) tasks: Vec<Row>,
    #[serde(default)]
    pub(crate) keys: Vec<Key>,
}

/// A key of `[keys.*]`, by its name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Key {
    pub(crate) name: String,
    /// It is of no use now, as far as is known.
    pub(crate) out: Option<KeyOut>,
    /// What an answer told of the limits at its provider, last.
    pub(crate) windows: Vec<Window>,
    /// When it did.
    pub(crate) told_at: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct KeyOut {
    pub(crate) since: String,
    /// Null: it was refused, and nobody knows.
    pub(crate) until: Option<String>,
    pub(crate) reason: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Window {
    pub(crate) name: String,
    pub(crate) limit: Option<u64>,
    pub(crate) remaining: Option<u64>,
    pub(crate) resets_at: Option<String>,
}

impl Key {
    fn new(name: &KeyName, state: &KeyState) -> Self {
        let window = |window: &native::Window| Window {
            name: window.name.clone(),
            limit: window.limit,
            remaining: window.remaining,
            resets_at: window.resets_at.map(time),
        };
        Self {
            name: name.to_string(),
            out: state.out.as_ref().map(|out| KeyOut {
                since: time(out.at),
                until: out.until.map(time),
                reason: out.reason.clone(),
            }),
            windows: state.windows.iter().map(window).collect(),
            told_at: state.told_at.map(time),
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) runs: u64,
    /// Runs whose agent told nothing: they may have spent, too.
    pub(crate) untold: u64,
    pub(crate) input_tokens: u64,
    pub(crate) output_tokens: u64,
    pub(crate) cache_read_tokens: u64,
    pub(crate) cache_write_tokens: u64,
    pub(crate) cost_usd: f64,
}

impl Row {
    fn new(name: String, sum: &Sum) -> Self {
        Self {
            name,
            runs: sum.runs,
            untold: sum.untold,
            input_tokens: sum.input_tokens,
            output_tokens: sum.output_tokens,
            cache_read_tokens: sum.cache_read_tokens,
            cache_write_tokens: sum.cache_write_tokens,
            cost_usd: sum.spent.usd.into(),
        }
    }
}

impl From<&Spending> for Spent {
    fn from(spending: &Spending) -> Self {
        let day = |at| time(at).split('T').next().unwrap_or_default().to_owned();
        let (days, pools) = (spending.days.iter(), spending.pools.iter());
        let tasks = spending.tasks.iter();
        Self {
            days: days.map(|(at, sum)| Row::new(day(*at), sum)).collect(),
            pools: pools
                .map(|(name, sum)| Row::new(name.to_string(), sum))
                .collect(),
            tasks: tasks
                .map(|(short, sum)| Row::new(short.clone(), sum))
                .collect(),
            keys: spending
                .keys
                .iter()
                .map(|(name, state)| Key::new(name, state))
                .collect(),
        }
    }
}

/// An agent that is configured, and whether its program is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Agent {
    pub(crate) name: String,
    pub(crate) driver: String,
    pub(crate) program: String,
    pub(crate) found: Option<std::path::PathBuf>,
    pub(crate) pool: String,
    pub(crate) placement: String,
    pub(crate) default: bool,
}

impl Agent {
    /// All of them; `find` says where a program lies.
    pub(crate) fn all(
        config: &Config,
        find: impl Fn(&str) -> Option<std::path::PathBuf>,
    ) -> Vec<Self> {
        let agents = config.agents.iter().map(|(name, agent)| Self {
            name: name.to_string(),
            driver: agent.driver.word().to_owned(),
            program: agent.program.clone(),
            found: find(&agent.program),
            pool: agent.pool.to_string(),
            placement: config.placement_of(agent).to_string(),
            default: *name == config.task.agent,
        });
        agents.collect()
    }
}

/// A value in force and where it comes from, as TOML writes both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Setting {
    pub(crate) key: String,
    pub(crate) value: String,
    pub(crate) source: String,
}

const MASK: &str = "\"***\"";

impl Setting {
    /// Without what may be a secret: literals that a person gives to agents and hooks, what stands
    /// before the `@` of an address, and whatever looks like a token.
    pub(crate) fn masked(one: &Sourced) -> Self {
        let literal = one.value.starts_with('"');
        let persons = one.source != "defaults" && literal;
        let given = one.key.starts_with("agents.") && one.key.contains(".env.");
        let hook = one.key.starts_with("notify.")
            && (one.key.ends_with(".url") || one.key.ends_with(".topic"));
        let value = if persons && (given || hook) {
            MASK.to_owned()
        } else {
            Redactor::shapes().redact(&without_user(&one.value))
        };
        Self {
            key: one.key.clone(),
            value,
            source: one.source.clone(),
        }
    }
}

/// `https://user:password@host/` without the middle.
fn without_user(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let mut rest = value;
    while let Some((before, after)) = rest.split_once("://") {
        out.push_str(before);
        out.push_str("://");
        let end = after
            .find(['/', '"', '\'', ' ', ',', '?', '#'])
            .unwrap_or(after.len());
        let (authority, more) = after.split_at(end);
        match authority.rsplit_once('@') {
            Some((_, host)) => out.extend(["***@", host]),
            None => out.push_str(authority),
        }
        rest = more;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use dispatch_core::config::{Layer, load};

    use super::*;

    #[test]
    fn what_may_be_secret_in_a_configuration_is_masked() {
        let text = "[agents.codex.env]\nTOKEN = \"in-the-clear-1\"\nKEY = { from = \"KEY\" }\n\
                    [notify.chat]\nkind = \"webhook\"\non = [\"failed\"]\n\
                    url = \"https://hooks.example/T0/B0/in-the-clear-2\"\n\
                    [repos.api]\nurl = \"https://me:in-the-clear-3@h.example/api.git\"\n\
                    [repos.web]\nurl = \"https://h.example/ghp_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"\n";
        let source = "mine";
        let (_, sourced) = load(&[Layer { source, text }]).unwrap();
        let shown: Vec<Setting> = sourced.iter().map(Setting::masked).collect();
        let json = serde_json::to_string(&shown).unwrap();
        assert!(
            !json.contains("in-the-clear") && !json.contains("ghp_a"),
            "{json}"
        );
        let value = |key: &str| &shown.iter().find(|one| one.key == key).unwrap().value;
        assert_eq!(value("agents.codex.env.TOKEN"), "\"***\"");
        assert_eq!(value("agents.codex.env.KEY"), "{ from = \"KEY\" }");
        assert_eq!(value("repos.api.url"), "\"https://***@h.example/api.git\"");
        assert_eq!(value("task.template"), "\"coding\"");
        // Ours are no secrets, and a person wants to see them.
        let ours = shown.iter().find(|one| {
            one.source == "defaults" && one.key.contains(".env.") && one.value.starts_with('"')
        });
        assert_ne!(ours.unwrap().value, MASK);
    }

    #[test]
    fn addresses_lose_their_users_wherever_they_stand() {
        for (value, want) in [
            (
                "[\"http://a:b@h/x\", \"ssh://git@h/y\"]",
                "[\"http://***@h/x\", \"ssh://***@h/y\"]",
            ),
            ("\"https://h/a@b\"", "\"https://h/a@b\""),
            ("\"no address\"", "\"no address\""),
            ("\"http://u:p@ss@h?x=://y\"", "\"http://***@h?x=://y\""),
        ] {
            assert_eq!(without_user(value), want);
        }
    }
}
