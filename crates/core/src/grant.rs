//! What a task's agent may do at our door, as it is configured and as it holds for one task. Two grants
//! have a meet, which is never wider than either in anything: so is every grant of a task that an agent
//! asks for.
//! Must not look at the state: who is whose child, and what is left, is `core::family`'s.

use std::{collections::BTreeSet, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{
    ask::Permissions,
    gate::MicroUsd,
    id::{AgentName, PlacementName},
    task::{Base, Network, Placement, TaskSpec, Wrap},
};

/// What an agent may be allowed to ask of us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tool {
    Dispatch,
    Wait,
    Show,
    Logs,
    Say,
    Answer,
    Stop,
    List,
}

impl Tool {
    pub const ALL: [Self; 8] = [
        Self::Dispatch,
        Self::Wait,
        Self::Show,
        Self::Logs,
        Self::Say,
        Self::Answer,
        Self::Stop,
        Self::List,
    ];

    /// The word used in JSON, in the configuration and for the tool itself.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Dispatch => "dispatch",
            Self::Wait => "wait",
            Self::Show => "show",
            Self::Logs => "logs",
            Self::Say => "say",
            Self::Answer => "answer",
            Self::Stop => "stop",
            Self::List => "list",
        }
    }
}

/// Some of a kind by name, or any.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Wire<T>", into = "Wire<T>")]
#[serde(bound(
    serialize = "T: Ord + Clone + Serialize",
    deserialize = "T: Ord + Deserialize<'de>"
))]
pub enum Among<T: Ord> {
    Any,
    Only(BTreeSet<T>),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum AnyWord {
    Any,
}

/// `"any"`, or names.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
#[serde(bound(
    serialize = "T: Ord + Serialize",
    deserialize = "T: Ord + Deserialize<'de>"
))]
enum Wire<T> {
    Any(AnyWord),
    Only(BTreeSet<T>),
}

impl<T: Ord> From<Wire<T>> for Among<T> {
    fn from(wire: Wire<T>) -> Self {
        match wire {
            Wire::Any(AnyWord::Any) => Self::Any,
            Wire::Only(names) => Self::Only(names),
        }
    }
}

impl<T: Ord> From<Among<T>> for Wire<T> {
    fn from(among: Among<T>) -> Self {
        match among {
            Among::Any => Self::Any(AnyWord::Any),
            Among::Only(names) => Self::Only(names),
        }
    }
}

impl<T: Ord + Clone> Among<T> {
    #[must_use]
    pub fn one(name: T) -> Self {
        Self::Only(BTreeSet::from([name]))
    }

    #[must_use]
    pub fn has<Q: Ord + ?Sized>(&self, name: &Q) -> bool
    where
        T: std::borrow::Borrow<Q>,
    {
        match self {
            Self::Any => true,
            Self::Only(names) => names.contains(name),
        }
    }

    #[must_use]
    pub fn meet(&self, other: &Self) -> Self {
        match (self, other) {
            (Self::Any, some) | (some, Self::Any) => some.clone(),
            (Self::Only(one), Self::Only(two)) => Self::Only(one & two),
        }
    }

    #[must_use]
    pub fn is_within(&self, other: &Self) -> bool {
        match (self, other) {
            (_, Self::Any) => true,
            (Self::Any, Self::Only(_)) => false,
            (Self::Only(one), Self::Only(two)) => one.is_subset(two),
        }
    }
}

impl<T: Ord + fmt::Display> fmt::Display for Among<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any"),
            Self::Only(names) if names.is_empty() => f.write_str("none"),
            Self::Only(names) => f.write_str(&crate::config::list(names.iter())),
        }
    }
}

/// The least that has to be around a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fence {
    /// It may be none at all.
    pub unfenced: bool,
    pub network: Network,
    pub strict: bool,
    pub gpu: bool,
}

impl Fence {
    /// The one that a job in this placement has.
    #[must_use]
    pub fn of(placement: &Placement) -> Self {
        Self {
            unfenced: placement.wrap == Wrap::Host,
            network: placement.network.clone(),
            strict: placement.strict,
            gpu: placement.gpu,
        }
    }

    #[must_use]
    pub fn meet(&self, other: &Self) -> Self {
        Self {
            unfenced: self.unfenced && other.unfenced,
            network: self.network.meet(&other.network),
            strict: self.strict || other.strict,
            gpu: self.gpu && other.gpu,
        }
    }

    #[must_use]
    pub fn is_within(&self, other: &Self) -> bool {
        self.unfenced <= other.unfenced
            && self.network.is_within(&other.network)
            && self.strict >= other.strict
            && self.gpu <= other.gpu
    }

    /// A placement with no less of a fence than this. A wrap is not changed: one that is no fence at
    /// all is for the caller to refuse.
    #[must_use]
    pub fn around(&self, placement: Placement) -> Placement {
        let network = placement.network.meet(&self.network);
        Placement {
            network,
            strict: placement.strict || self.strict,
            gpu: placement.gpu && self.gpu,
            ..placement
        }
    }
}

/// What the agent of one task may do at our door. Resolved when the task is made, and one of its terms.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    pub tools: BTreeSet<Tool>,
    /// Only for definitions, each time somebody lets it summon one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub asked: bool,
    pub agents: Among<AgentName>,
    /// As [`place`] has them.
    pub repos: Among<String>,
    pub placements: Among<PlacementName>,
    pub fence: Fence,
    pub permissions: Permissions,
    /// For all that it asks for together; 0 means no budget of its own, here and below.
    pub budget_tokens: u64,
    pub budget_usd: MicroUsd,
    /// From its first start until all that it asked for must have ended.
    pub wall_clock_s: u64,
    /// Levels below it.
    pub depth: u32,
    /// Of all levels below it.
    pub children_max: u32,
    /// Those of them that are not done.
    pub children_live_max: u32,
}

/// The smaller of two limits where 0 means none.
#[must_use]
pub fn least<T: Ord + Default>(one: T, other: T) -> T {
    let none = T::default();
    if one == none || (other != none && other < one) {
        other
    } else {
        one
    }
}

fn no_more_than<T: Ord + Default>(one: &T, other: &T) -> bool {
    let none = T::default();
    *other == none || (*one != none && one <= other)
}

impl Grant {
    /// What both allow.
    #[must_use]
    pub fn meet(&self, other: &Self) -> Self {
        Self {
            tools: &self.tools & &other.tools,
            asked: self.asked || other.asked,
            agents: self.agents.meet(&other.agents),
            repos: self.repos.meet(&other.repos),
            placements: self.placements.meet(&other.placements),
            fence: self.fence.meet(&other.fence),
            permissions: self.permissions.stricter(other.permissions),
            budget_tokens: least(self.budget_tokens, other.budget_tokens),
            budget_usd: least(self.budget_usd, other.budget_usd),
            wall_clock_s: least(self.wall_clock_s, other.wall_clock_s),
            depth: self.depth.min(other.depth),
            children_max: self.children_max.min(other.children_max),
            children_live_max: self.children_live_max.min(other.children_live_max),
        }
    }

    /// Whether the other allows all of it, too.
    #[must_use]
    pub fn is_within(&self, other: &Self) -> bool {
        self.tools.is_subset(&other.tools)
            && self.asked >= other.asked
            && self.agents.is_within(&other.agents)
            && self.repos.is_within(&other.repos)
            && self.placements.is_within(&other.placements)
            && self.fence.is_within(&other.fence)
            && self.permissions >= other.permissions
            && no_more_than(&self.budget_tokens, &other.budget_tokens)
            && no_more_than(&self.budget_usd, &other.budget_usd)
            && no_more_than(&self.wall_clock_s, &other.wall_clock_s)
            && self.depth <= other.depth
            && self.children_max <= other.children_max
            && self.children_live_max <= other.children_live_max
    }

    /// The most that a task which it asks for can be granted. `None`: nothing.
    #[must_use]
    pub fn below(&self) -> Option<Self> {
        let depth = self.depth.checked_sub(1)?;
        (depth > 0).then(|| Self {
            depth,
            ..self.clone()
        })
    }

    /// No wider than what the task itself may.
    #[must_use]
    pub fn held_to(self, spec: &TaskSpec) -> Self {
        Self {
            fence: self.fence.meet(&Fence::of(&spec.placement)),
            permissions: self.permissions.stricter(spec.terms.permissions),
            budget_tokens: least(self.budget_tokens, spec.terms.budget_tokens),
            budget_usd: least(self.budget_usd, spec.terms.budget_usd),
            ..self
        }
    }

    #[must_use]
    pub fn allows(&self, tool: Tool) -> bool {
        self.tools.contains(&tool)
    }
}

/// A word of a grant's list.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
#[serde(bound(deserialize = "T: FromStr, T::Err: fmt::Display"))]
pub enum Word<T> {
    /// The task's own.
    Own,
    Any,
    Name(T),
}

impl<T: FromStr> TryFrom<String> for Word<T>
where
    T::Err: fmt::Display,
{
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Ok(match text.as_str() {
            "own" => Self::Own,
            "any" => Self::Any,
            name => Self::Name(name.parse().map_err(|error: T::Err| error.to_string())?),
        })
    }
}

fn own_only<T>() -> Vec<Word<T>> {
    vec![Word::Own]
}

fn one_level() -> u32 {
    1
}

/// `[grants.NAME]`. What is not written is the least that makes sense, or no narrower than the task.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Offer {
    pub tools: BTreeSet<Tool>,
    #[serde(default)]
    pub asked: bool,
    #[serde(default = "own_only")]
    pub agents: Vec<Word<AgentName>>,
    /// Names of `[repos]`, and what [`place`] has.
    #[serde(default = "own_only")]
    pub repos: Vec<Word<String>>,
    #[serde(default = "own_only")]
    pub placements: Vec<Word<PlacementName>>,
    #[serde(default)]
    pub network: Network,
    #[serde(default)]
    pub permissions: Permissions,
    #[serde(default)]
    pub budget_tokens: u64,
    #[serde(default)]
    pub budget_usd: MicroUsd,
    #[serde(default)]
    pub wall_clock_s: u64,
    #[serde(default = "one_level")]
    pub depth: u32,
    pub children_max: u32,
    pub children_live_max: u32,
}

fn among<T: Ord + Clone>(words: &[Word<T>], own: Option<&T>) -> Among<T> {
    let mut names = BTreeSet::new();
    for word in words {
        match word {
            Word::Any => return Among::Any,
            Word::Own => names.extend(own.cloned()),
            Word::Name(name) => names.extend([name.clone()]),
        }
    }
    Among::Only(names)
}

/// Where a task's files come from, as a grant lists it: a path or URL of a repository, `dir:` before a
/// directory, which shows what git does not. `None`: from nowhere.
#[must_use]
pub fn place(spec: &TaskSpec) -> Option<String> {
    match &spec.base {
        Base::Nothing => None,
        Base::Folder => Some(folder(&spec.repo)),
        Base::Head
        | Base::Branch { .. }
        | Base::Default { .. }
        | Base::Pr { .. }
        | Base::Tag { .. } => Some(spec.repo.clone()),
    }
}

/// A directory as a grant lists it.
#[must_use]
pub fn folder(path: &str) -> String {
    format!("dir:{path}")
}

impl Offer {
    /// For one task: never wider than the task itself where both have a measure.
    #[must_use]
    pub fn to(&self, spec: &TaskSpec) -> Grant {
        let offered = Fence {
            network: self.network.clone(),
            ..Fence::of(&spec.placement)
        };
        let placement: Option<PlacementName> = spec.placement.word().parse().ok();
        let grant = Grant {
            tools: self.tools.clone(),
            asked: self.asked,
            agents: among(&self.agents, Some(&spec.agent)),
            repos: among(&self.repos, place(spec).as_ref()),
            placements: among(&self.placements, placement.as_ref()),
            fence: offered,
            permissions: self.permissions,
            budget_tokens: self.budget_tokens,
            budget_usd: self.budget_usd,
            wall_clock_s: self.wall_clock_s,
            depth: self.depth,
            children_max: self.children_max,
            children_live_max: self.children_live_max,
        };
        grant.held_to(spec)
    }

    /// Numbers and lists that grant nothing although they look as if they did, for a person to read.
    #[must_use]
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut out = Vec::new();
        let nothing = "it is 0, so nothing could be dispatched; leave `dispatch` out of its tools \
                       if that is meant";
        let dispatches = self.tools.contains(&Tool::Dispatch);
        for (key, value) in [
            ("depth", self.depth),
            ("children_max", self.children_max),
            ("children_live_max", self.children_live_max),
        ] {
            if dispatches && value == 0 {
                out.push((key, nothing.to_owned()));
            }
        }
        if self.depth > DEPTH_MAX {
            let what = format!("it is {}, and {DEPTH_MAX} levels are the most", self.depth);
            out.push(("depth", what));
        }
        out
    }
}

/// Levels of tasks that ask for tasks.
pub const DEPTH_MAX: u32 = 16;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{network::AllowList, state::tests::spec};

    /// Numbers without end, the same each time.
    pub(crate) struct Dice(pub(crate) u64);

    impl Dice {
        pub(crate) fn below(&mut self, n: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            usize::try_from(self.0 % n as u64).unwrap()
        }

        fn one<T: Clone>(&mut self, of: &[T]) -> T {
            of[self.below(of.len())].clone()
        }
    }

    fn names<T: FromStr + Ord>(words: &[&str]) -> BTreeSet<T>
    where
        T::Err: fmt::Debug,
    {
        words.iter().map(|word| word.parse().unwrap()).collect()
    }

    fn amongs<T: FromStr + Ord>() -> Vec<Among<T>>
    where
        T::Err: fmt::Debug,
    {
        vec![
            Among::Any,
            Among::Only(names(&[])),
            Among::Only(names(&["a"])),
            Among::Only(names(&["a", "b"])),
            Among::Only(names(&["b", "c"])),
        ]
    }

    fn networks() -> Vec<Network> {
        let list = |entries: &[&str]| {
            let texts: Vec<String> = entries.iter().map(|e| (*e).to_owned()).collect();
            Network::Allow(AllowList::try_from(texts).unwrap())
        };
        vec![
            Network::Full,
            Network::None,
            list(&["*.example.com", "10.0.0.0/8:80"]),
            list(&["api.example.com", "10.1.0.0/16:80", "b.test"]),
            list(&["*.api.example.com", "*.example.com:8443"]),
            list(&["x.api.example.com", "10.0.0.0/8:81", "[::1]:80"]),
        ]
    }

    pub(crate) fn any_grant(dice: &mut Dice) -> Grant {
        let tools = Tool::ALL.into_iter().filter(|_| dice.below(2) == 0);
        Grant {
            tools: tools.collect(),
            asked: dice.below(2) == 0,
            agents: dice.one(&amongs()),
            repos: dice.one(&amongs()),
            placements: dice.one(&amongs()),
            fence: Fence {
                unfenced: dice.below(2) == 0,
                network: dice.one(&networks()),
                strict: dice.below(2) == 0,
                gpu: dice.below(2) == 0,
            },
            permissions: dice.one(&Permissions::ALL),
            budget_tokens: dice.one(&[0, 1, 500, u64::MAX]),
            budget_usd: MicroUsd(dice.one(&[0, 1, 70])),
            wall_clock_s: dice.one(&[0, 60, 3600]),
            depth: dice.one(&[0, 1, 2, 9]),
            children_max: dice.one(&[0, 1, 8]),
            children_live_max: dice.one(&[0, 1, 8]),
        }
    }

    /// In no dimension is what two have in common wider than either, whoever is asked first; and
    /// what is within both is within it, so nothing is lost that both allow.
    #[test]
    fn a_meet_is_never_wider_and_is_the_widest_that_is_not() {
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
        let all: Vec<Grant> = (0..300).map(|_| any_grant(&mut dice)).collect();
        let mut nested = 0;
        for one in &all {
            assert!(one.is_within(one) && one.meet(one).is_within(one));
            assert!(one.is_within(&one.meet(one)));
            for two in &all {
                let both = one.meet(two);
                assert!(
                    both.is_within(one) && both.is_within(two),
                    "{one:?} {two:?}"
                );
                assert_eq!(both, two.meet(one));
                assert_eq!(one.is_within(two), one.is_within(&both), "{one:?} {two:?}");
                nested += usize::from(one.is_within(two) && one != two);
            }
        }
        for chunk in all.chunks_exact(3) {
            let [one, two, three] = chunk else { continue };
            let (left, right) = (one.meet(two).meet(three), one.meet(&two.meet(three)));
            assert!(left.is_within(&right) && right.is_within(&left));
            for grant in chunk {
                assert!(
                    !left.is_within(&one.meet(two)) || left.is_within(one),
                    "{grant:?}"
                );
            }
        }
        assert!(nested > 0, "the samples compare");
    }

    /// One dimension after the other, all pairs of its values.
    #[test]
    fn every_dimension_counts_by_itself() {
        let mut dice = Dice(7);
        let base = any_grant(&mut dice);
        let mut samples: Vec<Vec<Grant>> = Vec::new();
        let with = |change: &dyn Fn(&mut Grant)| {
            let mut grant = base.clone();
            change(&mut grant);
            grant
        };
        let subsets = (0..16_u16).map(|bits| {
            let tool = |(n, tool): (usize, Tool)| (bits >> n & 1 == 1).then_some(tool);
            Tool::ALL
                .into_iter()
                .enumerate()
                .filter_map(tool)
                .collect::<BTreeSet<_>>()
        });
        samples.push(subsets.map(|t| with(&|g| g.tools = t.clone())).collect());
        samples.push([false, true].map(|b| with(&|g| g.asked = b)).to_vec());
        samples.push(
            amongs()
                .iter()
                .map(|a| with(&|g| g.agents = a.clone()))
                .collect(),
        );
        samples.push(
            amongs()
                .iter()
                .map(|a| with(&|g| g.repos = a.clone()))
                .collect(),
        );
        samples.push(
            amongs()
                .iter()
                .map(|a| with(&|g| g.placements = a.clone()))
                .collect(),
        );
        samples.push(
            networks()
                .iter()
                .map(|n| with(&|g| g.fence.network = n.clone()))
                .collect(),
        );
        samples.push(
            [false, true]
                .map(|b| with(&|g| g.fence.unfenced = b))
                .to_vec(),
        );
        samples.push(
            [false, true]
                .map(|b| with(&|g| g.fence.strict = b))
                .to_vec(),
        );
        samples.push([false, true].map(|b| with(&|g| g.fence.gpu = b)).to_vec());
        samples.push(
            Permissions::ALL
                .map(|p| with(&|g| g.permissions = p))
                .to_vec(),
        );
        samples.push(
            [0, 1, 2, u64::MAX]
                .map(|n| with(&|g| g.budget_tokens = n))
                .to_vec(),
        );
        samples.push(
            [0, 1, 2]
                .map(|n| with(&|g| g.budget_usd = MicroUsd(n)))
                .to_vec(),
        );
        samples.push([0, 1, 2].map(|n| with(&|g| g.wall_clock_s = n)).to_vec());
        samples.push([0, 1, 2].map(|n| with(&|g| g.depth = n)).to_vec());
        samples.push([0, 1, 2].map(|n| with(&|g| g.children_max = n)).to_vec());
        samples.push(
            [0, 1, 2]
                .map(|n| with(&|g| g.children_live_max = n))
                .to_vec(),
        );
        for dimension in &samples {
            for one in dimension {
                for two in dimension {
                    let both = one.meet(two);
                    assert_eq!(both, two.meet(one));
                    assert!(both.is_within(one) && both.is_within(two));
                    if one.is_within(two) {
                        assert!(one.is_within(&both) && both.is_within(one));
                    } else {
                        assert!(!one.is_within(&both), "{one:?} {two:?}");
                    }
                    for three in dimension {
                        let fits = three.is_within(one) && three.is_within(two);
                        assert_eq!(fits, three.is_within(&both));
                    }
                }
            }
        }
    }

    #[test]
    fn a_level_less_each_time() {
        let mut grant = any_grant(&mut Dice(3));
        for (depth, below) in [(0, None), (1, None), (2, Some(1)), (9, Some(8))] {
            grant.depth = depth;
            let got = grant.below();
            assert_eq!(got.as_ref().map(|grant| grant.depth), below);
            assert!(got.is_none_or(|got| got.is_within(&grant)));
        }
    }

    fn offer(text: &str) -> Result<Offer, String> {
        toml::from_str(text).map_err(|error| error.to_string())
    }

    const SHORT: &str =
        "tools = [\"dispatch\", \"wait\"]\nchildren_max = 4\nchildren_live_max = 2\n";

    #[test]
    fn what_is_not_written_is_the_tasks_own() {
        let mut spec = spec("default");
        spec.placement = Placement {
            network: Network::None,
            name: Some("locked".parse().unwrap()),
            ..Placement::of(Wrap::Cage)
        };
        spec.terms.permissions = Permissions::Ask;
        spec.terms.budget_tokens = 1000;
        let grant = offer(SHORT).unwrap().to(&spec);
        assert_eq!(grant.agents, Among::one("a".parse().unwrap()));
        assert_eq!(grant.repos, Among::one("/r".to_owned()));
        assert_eq!(grant.placements, Among::one("locked".parse().unwrap()));
        assert_eq!(grant.fence, Fence::of(&spec.placement));
        assert_eq!((grant.permissions, grant.depth), (Permissions::Ask, 1));
        assert_eq!((grant.budget_tokens, grant.budget_usd), (1000, MicroUsd(0)));
        let wide = format!(
            "{SHORT}agents = [\"own\", \"b\"]\nrepos = [\"any\"]\nplacements = [\"cage\"]\n\
             network = \"full\"\npermissions = \"allow\"\nbudget_tokens = 9000\nbudget_usd = 1.5\n\
             wall_clock_s = 60\ndepth = 3\n"
        );
        let grant = offer(&wide).unwrap().to(&spec);
        assert_eq!(grant.agents, Among::Only(names(&["a", "b"])));
        assert_eq!(grant.repos, Among::Any);
        // What the task itself does not have it cannot give.
        assert_eq!(grant.fence.network, Network::None);
        assert_eq!(
            (grant.permissions, grant.budget_tokens),
            (Permissions::Ask, 1000)
        );
        assert_eq!((grant.budget_usd, grant.depth), (MicroUsd(1_500_000), 3));
        for (bad, part) in [
            ("children_max = 1\nchildren_live_max = 1\n", "tools"),
            (
                "tools = [\"fly\"]\nchildren_max = 1\nchildren_live_max = 1\n",
                "fly",
            ),
            ("tools = []\nchildren_max = 1\n", "children_live_max"),
            (&format!("{SHORT}agents = [\"-x\"]\n"), "agent's name"),
            (&format!("{SHORT}hosts = []\n"), "hosts"),
        ] {
            let error = offer(bad).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
        let none = offer(&SHORT.replace("= 4", "= 0")).unwrap();
        assert_eq!(none.problems().len(), 1);
        assert_eq!(offer(SHORT).unwrap().problems(), []);
    }

    #[test]
    fn a_grant_is_the_same_after_the_log() {
        let mut dice = Dice(11);
        for _ in 0..50 {
            let grant = any_grant(&mut dice);
            let json = serde_json::to_string(&grant).unwrap();
            assert_eq!(
                serde_json::from_str::<Grant>(&json).unwrap(),
                grant,
                "{json}"
            );
        }
        let among: Among<String> = serde_json::from_str("\"any\"").unwrap();
        assert_eq!(among, Among::Any);
        assert!(serde_json::from_str::<Among<String>>("\"all\"").is_err());
    }

    #[test]
    fn a_fence_is_put_around_what_is_looser() {
        let fence = Fence {
            unfenced: false,
            network: Network::None,
            strict: true,
            gpu: false,
        };
        let loose = Placement {
            gpu: true,
            ..Placement::of(Wrap::Cage)
        };
        let around = fence.around(loose);
        assert_eq!(Fence::of(&around), fence);
        assert_eq!(around.wrap, Wrap::Cage);
    }
}
