//! From a request to a `TaskSpec`: defaults are applied, names resolved, and what a caller lacks the right
//! to is refused. Must not ask the engine: what depends on its state is decided there.

use std::path::Path;

use dispatch_core::{
    ask::Permissions,
    attach,
    config::{AgentProfile, Config, SelectError, Selection, list},
    container::{Container, Image, RuntimeAsked},
    grant::{Offer, Tool},
    id::{AgentName, GrantName, ModelName, PlacementName},
    keys::RequestKey,
    models::Choice,
    prompt::{Guide, GuideError, TextKind},
    redact::Redactor,
    secret::Secret,
    servers,
    task::{
        Base, ChecksAsked, Effort, Expects, Labels, Network, Placement, TaskSpec, Terms, Tuning,
        Turn, Wrap, title_of,
    },
    toolset::Toolset,
};
use dispatch_engine::{attachments::NewFile, view::Given};

use super::{
    Answer, Attach, BadRequest, ChecksWanted, ChecksWord, Dispatch, Resume, Retry, Say, Secrets,
};

/// `https://..`, `ssh://..`, `file://..` or `user@host:path`.
pub(crate) fn is_url(repo: &str) -> bool {
    let scheme = ["https://", "http://", "ssh://", "git://", "file://"];
    if scheme.iter().any(|s| repo.starts_with(s)) {
        return true;
    }
    // As git reads it: a colon before any slash, with something on both sides.
    match repo.split_once(':') {
        Some((host, path)) => {
            !host.is_empty()
                && !path.is_empty()
                && !host.contains('/')
                && !host.starts_with('-')
                && host.contains('@')
        }
        None => false,
    }
}

/// No repository of that name; says which there are.
pub(crate) fn unknown_repo(config: &Config, name: &str) -> BadRequest {
    let there = match config.repos.is_empty() {
        true => "none".to_owned(),
        false => list(config.repos.keys()),
    };
    let name = name.to_owned();
    BadRequest::Repo { name, there }
}

/// The path or URL behind a configured name; anything else is one already.
pub(crate) fn place<'a>(config: &'a Config, repo: &'a str) -> &'a str {
    let known = config.repos.iter().find(|(name, _)| name.as_str() == repo);
    known.map_or(repo, |(_, known)| &known.place)
}

/// The name of an agent that is configured, or of the default one.
pub(crate) fn agent(config: &Config, asked: Option<&str>) -> Result<Selection, BadRequest> {
    let default = config.task.agent.as_str();
    Ok(config.select(asked.unwrap_or(default))?)
}

/// The placement asked for, or the agent's own, or a container where an image is named and nothing
/// else was asked for. No fence is never what a task gets by default, and only what its
/// configuration names or allows.
fn placement(
    config: &Config,
    profile: &AgentProfile,
    asked: Option<&str>,
    container: &Asked,
) -> Result<Placement, BadRequest> {
    let own = profile.placement.as_ref().map(PlacementName::as_str);
    let own = own.filter(|name| container.image.is_none() || is_container(config, name));
    let Some(name) = asked.or(own) else {
        return unasked(config, profile, container);
    };
    let Some((name, placement)) = config.placements.iter().find(|(n, _)| n.as_str() == name) else {
        return Err(BadRequest::UnknownPlacement {
            name: name.to_owned(),
            there: list(config.placements.keys()),
        });
    };
    let named_by_agent = profile.placement.as_ref() == Some(name);
    if placement.wrap == Wrap::Host && !named_by_agent && !config.task.allow_host {
        return Err(BadRequest::HostNotAllowed(name.clone()));
    }
    if placement.wrap == Wrap::Container {
        return contained(config, profile, name, placement.clone(), container);
    }
    if container.image.is_some() || container.runtime.is_some() {
        return Err(BadRequest::NoContainer(name.clone()));
    }
    Ok(placement.clone())
}

/// Where a task starts, and for whom.
struct Place {
    repo: String,
    base: Base,
    org: Option<String>,
}

/// What a task may spend: less than the configuration allows, never more. 0 means no limit.
pub(super) fn least<T: Ord + Default + Copy>(asked: Option<T>, configured: T) -> T {
    let none = T::default();
    match asked.filter(|asked| *asked != none) {
        Some(asked) if configured == none => asked,
        Some(asked) => asked.min(configured),
        None => configured,
    }
}

/// What a request says of containers, parsed.
#[derive(Debug, Default)]
struct Asked {
    image: Option<Image>,
    runtime: Option<RuntimeAsked>,
}

fn is_container(config: &Config, name: &str) -> bool {
    let found = config.placements.iter().find(|(n, _)| n.as_str() == name);
    found.is_some_and(|(_, placement)| placement.wrap == Wrap::Container)
}

/// Neither task nor agent ask for a placement.
fn unasked(
    config: &Config,
    profile: &AgentProfile,
    container: &Asked,
) -> Result<Placement, BadRequest> {
    let name = &config.task.placement;
    let image = container.image.as_ref().or(profile.image.as_ref());
    let named = image.is_some() || config.container.image.is_some();
    if !named || is_container(config, name.as_str()) {
        let bare = AgentProfile {
            placement: None,
            ..profile.clone()
        };
        return placement(config, &bare, Some(name.as_str()), container);
    }
    let usual = config.placements.get(name);
    let word = Wrap::Container.word();
    let found = config.placements.iter().find(|(n, _)| n.as_str() == word);
    let (Some((name, placement)), Some(usual)) = (found, usual) else {
        return Err(BadRequest::UnknownPlacement {
            name: word.into(),
            there: list(config.placements.keys()),
        });
    };
    // An image must not be a way to less than what tasks usually get here.
    let network = match (&usual.network, &placement.network) {
        (Network::Full, own) | (_, own @ Network::None) => own.clone(),
        (less, _) => less.clone(),
    };
    let placement = Placement {
        network,
        strict: placement.strict || usual.strict,
        ..placement.clone()
    };
    contained(config, profile, name, placement, container)
}

/// Image and runtime by the task, the agent, the placement, `[container]`: the first that says.
fn contained(
    config: &Config,
    profile: &AgentProfile,
    name: &PlacementName,
    placement: Placement,
    asked: &Asked,
) -> Result<Placement, BadRequest> {
    let own = config.containers.get(name).cloned().unwrap_or_default();
    let image = asked.image.clone().or_else(|| profile.image.clone());
    let image = image
        .or(own.image)
        .or_else(|| config.container.image.clone());
    let runtime = asked.runtime.or(own.runtime).or(config.container.runtime);
    Ok(Placement {
        container: Some(Container {
            image: image.ok_or_else(|| BadRequest::NoImage(name.clone()))?,
            runtime: runtime.unwrap_or_default(),
        }),
        ..placement
    })
}

/// How the prompt is made, with every name looked up and every variable accounted for.
fn guide(
    config: &Config,
    asked: &Dispatch,
    agent: &AgentName,
    expects: Expects,
) -> Result<Guide, BadRequest> {
    let library = &config.library;
    let find = |kind, name: &Option<String>| -> Result<_, GuideError> {
        name.as_deref()
            .map(|name| library.find(kind, name))
            .transpose()
    };
    let template = match (&asked.template, expects) {
        (None, Expects::Review) => library.find(TextKind::Template, "review").map(Some),
        (template, _) => find(TextKind::Template, template),
    }?;
    let guide = Guide {
        template: Some(template.unwrap_or_else(|| config.task.template.clone())),
        persona: find(TextKind::Persona, &asked.persona)?,
        plan: find(TextKind::Plan, &asked.plan)?,
        variables: asked.variables.clone(),
        effort: asked.effort,
    };
    let limits = &config.limits;
    library.check(&guide, limits.template_bytes, limits.variables_bytes)?;
    check_effort(config, agent, asked.effort)?;
    Ok(guide)
}

/// Asked of an agent that never asks, it would be a promise that nobody keeps.
fn permissions(
    config: &Config,
    asked: Option<Permissions>,
    agent: &AgentName,
    profile: &AgentProfile,
) -> Result<Permissions, BadRequest> {
    let permissions = asked.unwrap_or(profile.permissions);
    if permissions.is_default() || profile.driver.asks() {
        return Ok(permissions);
    }
    let can = config
        .agents
        .iter()
        .filter(|(_, agent)| agent.driver.asks());
    Err(BadRequest::Permissions {
        agent: agent.clone(),
        driver: profile.driver.word(),
        asked: permissions,
        there: list(can.map(|(name, _)| name)),
    })
}

/// The word for no grant at all.
pub(crate) const NO_GRANT: &str = GrantName::NONE;

fn offer<'a>(config: &'a Config, name: &str) -> Result<Option<&'a Offer>, BadRequest> {
    if name == NO_GRANT {
        return Ok(None);
    }
    let found = config
        .grants
        .iter()
        .find(|(known, _)| known.as_str() == name);
    match found {
        Some((_, offer)) => Ok(Some(offer)),
        None => Err(BadRequest::UnknownGrant {
            name: name.to_owned(),
            there: list(config.grants.keys()),
        }),
    }
}

/// What the task or its agent's table says, and no more than the repository allows.
fn grant<'a>(
    config: &'a Config,
    asked: &Dispatch,
    agent: &AgentName,
    profile: &'a AgentProfile,
) -> Result<Option<(&'a Offer, Option<&'a Offer>)>, BadRequest> {
    // Our own agent has one that gives nothing unasked.
    let usual = Some(&config.native.grant).filter(|_| profile.is_native());
    let own = profile.grant.as_ref().or(usual).map(GrantName::as_str);
    let Some(name) = asked.grant.as_deref().or(own) else {
        return Ok(None);
    };
    let Some(wanted) = offer(config, name)? else {
        return Ok(None);
    };
    if !profile.driver.knocks() {
        return Err(BadRequest::NoDoor {
            name: name.to_owned(),
            agent: agent.clone(),
            driver: profile.driver.word(),
        });
    }
    let most = match asked.grant_most.as_deref() {
        None => None,
        Some(name) => match offer(config, name)? {
            Some(most) => Some(most),
            None => return Ok(None),
        },
    };
    Ok(Some((wanted, most)))
}

fn check_effort(
    config: &Config,
    agent: &AgentName,
    asked: Option<Effort>,
) -> Result<(), BadRequest> {
    let profile = config.agents.get(agent);
    let takes = profile.map_or(&[][..], |profile| profile.driver.efforts());
    let Some(effort) = asked.filter(|effort| !takes.contains(effort)) else {
        return Ok(());
    };
    let takes = if takes.is_empty() {
        "cannot be told how hard to think".to_owned()
    } else {
        format!("takes {}", list(takes.iter().map(|effort| effort.word())))
    };
    Err(BadRequest::Effort {
        agent: agent.clone(),
        effort,
        takes,
    })
}

/// As the agent's program calls it, or a short name of the agent's table.
fn model(profile: Option<&AgentProfile>, asked: &str) -> Result<ModelName, BadRequest> {
    let known = profile.and_then(|profile| profile.models.get(asked));
    Ok(known.map_or_else(|| asked.parse(), |model| Ok(model.clone()))?)
}

/// What an agent's next run is to have, checked as it is for its first one.
pub(crate) fn tuning(
    config: &Config,
    agent: &AgentName,
    asked: Tuned<'_>,
) -> Result<Tuning, BadRequest> {
    let effort = asked.effort;
    check_effort(config, agent, effort)?;
    let profile = config.agents.get(agent);
    let model = asked.model.map(|asked| model(profile, asked)).transpose()?;
    let chain = match (asked.chain, &model) {
        (Some(_), Some(_)) => return Err(BadRequest::ModelAndChain),
        (None, None) => None,
        (chain, model) => Some(config.chain(agent, chain, model.as_ref())?),
    };
    Ok(Tuning {
        model,
        effort,
        chain: chain.filter(|chain| !chain.is_empty()),
    })
}

/// The same of an agent that the task did not have so far, which brings a chain of its own.
pub(crate) fn tuning_of(
    config: &Config,
    selection: &Selection,
    asked: Tuned<'_>,
) -> Result<Tuning, BadRequest> {
    let mut tuning = tuning(config, &selection.agent, asked)?;
    if tuning.chain.is_none() {
        let own = config.agents.get(&selection.agent);
        let model = selection.model.as_ref();
        let model = model.or(own.and_then(|own| own.model.as_ref()));
        let chain = config.chain(&selection.agent, None, model)?;
        tuning.chain = Some(chain).filter(|chain| !chain.is_empty());
    }
    Ok(tuning)
}

/// What a request says of an agent's next run.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tuned<'a> {
    pub(crate) model: Option<&'a str>,
    pub(crate) effort: Option<Effort>,
    pub(crate) chain: Option<&'a [Choice]>,
}

impl Tuned<'_> {
    pub(crate) fn is_empty(&self) -> bool {
        self.model.is_none() && self.effort.is_none() && self.chain.is_none()
    }
}

macro_rules! tuned {
    ($($request:ident),*) => {$(
        impl $request {
            pub(crate) fn tuned(&self) -> Tuned<'_> {
                Tuned {
                    model: self.model.as_deref(),
                    effort: self.effort,
                    chain: self.chain.as_deref(),
                }
            }
        }
    )*};
}

tuned!(Answer, Say, Resume, Retry);

/// What the engine would refuse, before it is sent there.
pub(crate) fn check_attachments(
    config: &Config,
    agent: &AgentName,
    files: &[Attach],
) -> Result<(), BadRequest> {
    let sizes = files.iter().map(|file| file.base64.0.len() as u64);
    match config.agents.get(agent) {
        Some(profile) if !files.is_empty() => {
            let agent = (agent, profile.driver);
            Ok(attach::allowed(&config.limits, agent, &[], sizes)?)
        }
        Some(_) | None => Ok(()),
    }
}

/// What the engine is given along with a task or a message.
pub(crate) fn given(
    secrets: Secrets,
    files: Vec<Attach>,
    tuning: Tuning,
    key: Option<RequestKey>,
) -> Given {
    Given {
        secrets: secrets.0,
        files: files.into_iter().map(NewFile::from).collect(),
        tuning,
        key,
    }
}

impl Dispatch {
    /// The first two of these that exclude each other.
    fn alone(&self) -> Result<(), BadRequest> {
        let given = [
            ("dir", self.dir.is_some()),
            ("no_repo", self.no_repo),
            ("repo", self.repo.is_some()),
        ];
        let bases = [
            ("branch", self.branch.is_some()),
            ("pr", self.pr.is_some()),
            ("tag", self.tag.is_some()),
        ];
        let without_git = given[..2].iter().chain(&bases);
        for words in [
            given.iter().collect::<Vec<_>>(),
            bases.iter().collect(),
            without_git.collect(),
        ] {
            let mut there = words.iter().filter(|(_, given)| *given);
            if let (Some((one, _)), Some((other, _))) = (there.next(), there.next()) {
                return Err(BadRequest::Together { one, other });
            }
        }
        Ok(())
    }

    fn place(&self, config: &Config) -> Result<Place, BadRequest> {
        self.alone()?;
        let org = self.org.clone();
        if self.no_repo {
            let (repo, base) = (String::new(), Base::Nothing);
            return Ok(Place { repo, base, org });
        }
        if let Some(dir) = &self.dir {
            if !Path::new(dir).is_absolute() {
                return Err(BadRequest::Dir(dir.clone()));
            }
            let (repo, base) = (dir.clone(), Base::Folder);
            return Ok(Place { repo, base, org });
        }
        let Some(name) = &self.repo else {
            return Err(BadRequest::NoPlace);
        };
        let known = config
            .repos
            .iter()
            .find(|(known, _)| known.as_str() == name);
        let known = known.map(|(_, repo)| repo);
        let repo = known.map_or(name, |repo| &repo.place).clone();
        if !is_url(&repo) && !Path::new(&repo).is_absolute() {
            return Err(unknown_repo(config, name));
        }
        let default = known.and_then(|repo| repo.default_branch.clone());
        let base = match (&self.branch, self.pr, &self.tag) {
            (Some(name), ..) => Base::Branch { name: name.clone() },
            (None, Some(0), _) => return Err(BadRequest::Number),
            (None, Some(number), _) => Base::Pr { number },
            (None, None, Some(name)) => Base::Tag { name: name.clone() },
            (None, None, None) => default.map_or(Base::Head, |name| Base::Default { name }),
        };
        let org = org.or_else(|| known.and_then(|repo| repo.org.clone()));
        Ok(Place { repo, base, org })
    }

    pub(crate) fn spec(self, config: &Config) -> Result<TaskSpec, BadRequest> {
        let Selection {
            agent: name,
            model,
            profile: own,
            command,
        } = agent(config, self.agent.as_deref())?;
        if model.is_some() && self.model.is_some() {
            return Err(BadRequest::TwoModels);
        }
        if self.chain.is_some() && (model.is_some() || self.model.is_some()) {
            return Err(BadRequest::ModelAndChain);
        }
        let Some(profile) = config.agents.get(&name) else {
            return Err(BadRequest::Agent(SelectError::Unknown {
                name: name.to_string(),
                there: list(config.agents.keys()),
            }));
        };
        let asked = match (self.expects, &self.review_base) {
            (None, Some(_)) => Some(Expects::Review),
            (Some(Expects::Review) | None, _) => self.expects,
            (Some(_), Some(base)) => return Err(BadRequest::NoReview(base.clone())),
            (Some(_), None) => self.expects,
        };
        let granted = grant(config, &self, &name, profile)?;
        let leads = |offer: &Offer| offer.tools.contains(&Tool::Dispatch) && !offer.asked;
        let dispatches = granted.is_some_and(|(offer, _)| leads(offer));
        let expects = match (asked.or(profile.expects), self.no_repo) {
            (Some(expects), _) => expects,
            // The answer is the result where nothing can be changed.
            (None, true) => Expects::Report,
            // What it has others do is not in its own tree.
            (None, false) if dispatches => Expects::Either,
            (None, false) => config.task.expects,
        };
        if self.task.trim().is_empty() {
            return Err(BadRequest::Text("it is empty".into()));
        }
        let max = config.limits.task_bytes;
        if self.task.len() > max {
            let what = format!(
                "it has {} bytes, limits.task_bytes is {max}",
                self.task.len()
            );
            return Err(BadRequest::Text(what));
        }
        let issue_bytes = self.issue_text.as_ref().map_or(0, |issue| {
            let labels: usize = issue.labels.iter().map(String::len).sum();
            issue.title.len() + issue.body.len() + labels
        });
        if issue_bytes > max {
            let what = format!("its issue has {issue_bytes} bytes, limits.task_bytes is {max}");
            return Err(BadRequest::Text(what));
        }
        let Place { repo, base, org } = self.place(config)?;
        if let Some(what) = config.limits.too_high(&self.limits) {
            return Err(BadRequest::Limit(what));
        }
        let guide = guide(config, &self, &name, expects)?;
        check_attachments(config, &name, &self.attachments)?;
        let checks = match self.checks {
            None | Some(ChecksWanted::Word(ChecksWord::Detect)) => ChecksAsked::Detect,
            Some(ChecksWanted::Word(ChecksWord::None)) => ChecksAsked::None,
            Some(ChecksWanted::Named(names)) => {
                if let Some(name) = names.iter().find(|name| !config.checks.contains_key(name)) {
                    return Err(BadRequest::UnknownCheck {
                        name: name.to_string(),
                        there: list(config.checks.keys()),
                    });
                }
                ChecksAsked::Named(names)
            }
        };
        let permissions = permissions(config, self.permissions, &name, profile)?;
        let container = Asked {
            image: self.image.map(|image| image.parse()).transpose()?,
            runtime: self.runtime.map(|word| word.parse()).transpose()?,
        };
        // The engine masks what it writes, but not the half of a secret that a title may end with.
        let redactor = Redactor::new(self.secrets.0.values().map(Secret::expose));
        let titled = redactor.redact(self.title.as_deref().unwrap_or(&self.task));
        let model = match self.model {
            Some(asked) => Some(self::model(Some(profile), &asked)?),
            None => model.or_else(|| profile.model.clone().filter(|_| own.is_none())),
        };
        let chain = config.chain(&name, self.chain.as_deref(), model.as_ref())?;
        let placement = placement(config, profile, self.placement.as_deref(), &container)?;
        let fenced = placement.wrap != Wrap::Host;
        if !profile.is_native() && !self.rules.is_empty() {
            return Err(BadRequest::Rules {
                agent: name,
                driver: profile.driver.word(),
            });
        }
        let rules = profile.is_native().then(|| {
            let own = config.rules(profile, fenced);
            own.narrowed(self.rules).narrowed(self.rules_most)
        });
        let servers = match profile.is_native() {
            true => Some(servers::chosen(&config.mcp, profile.mcp.as_deref())?),
            false => None,
        };
        let mut spec = TaskSpec {
            title: title_of(&titled),
            text: self.task,
            repo,
            base,
            agent: name,
            pool: profile.pool.clone(),
            placement,
            expects,
            checks,
            review_base: match expects {
                Expects::Review => self.review_base.or_else(|| profile.review_base.clone()),
                _ => None,
            },
            workspace: self.workspace.map(|name| name.parse()).transpose()?,
            turn: Turn {
                taken: self.taken,
                behind: None,
            },
            parent: self.parent.map(|id| id.parse()).transpose()?,
            labels: Labels {
                org: org.or_else(|| {
                    let org = config.task.org.clone();
                    Some(org).filter(|org| !org.is_empty())
                }),
                issue: self.issue,
                pr: self.pr,
                tag: self.tag,
                issue_text: self.issue_text.map(Box::new),
            },
            terms: Terms {
                model,
                chain,
                rules: rules.map(Box::new),
                tools: Toolset::of_agent(profile.tools.as_deref()),
                mcp: servers.map(|servers| servers.into_keys().collect()),
                profile: own,
                command,
                priority: self.priority.unwrap_or_default(),
                after: self
                    .after
                    .iter()
                    .map(|id| id.parse())
                    .collect::<Result<_, _>>()?,
                budget_tokens: least(self.budget_tokens, config.gate.task_tokens),
                budget_usd: least(self.budget_usd, config.gate.task_usd),
                permissions,
                detached: self.detached,
                ..Terms::default()
            },
            limits: self.limits,
            guide,
        };
        spec.terms.grant = granted.map(|(offer, most)| {
            let grant = offer.to(&spec);
            Box::new(most.map_or(grant.clone(), |most| grant.meet(&most.to(&spec))))
        });
        Ok(spec)
    }
}
