//! Requests and what becomes of them.

use dispatch_core::task::{Base, ChecksAsked, Network, Placement, TaskSpec, Wrap};

use super::{resolve::least, *};

fn spec(json: &str) -> Result<TaskSpec, BadRequest> {
    let request: Dispatch = serde_json::from_str(json).unwrap();
    request.spec(&Config::defaults())
}

#[test]
fn defaults_are_applied_at_the_door() {
    let got = spec(r#"{"task": "Fix it\nnow", "repo": "/r"}"#).unwrap();
    assert_eq!(got.agent.as_str(), "codex");
    assert_eq!(got.pool.as_str(), "openai");
    assert_eq!(got.labels.org.as_deref(), Some("core"));
    assert_eq!(got.guide.template.unwrap().as_str(), "coding");
    assert_eq!(
        (got.expects, got.checks),
        (Expects::Change, ChecksAsked::Detect)
    );
    assert_eq!(got.placement.word(), "cage");
    assert_eq!(got.title, "Fix it");
}

#[test]
fn permissions_are_the_tasks_or_the_agents() {
    let text = "[agents.claude]\npermissions = \"ask\"\n";
    let layer = dispatch_core::config::Layer {
        source: "mine",
        text,
    };
    let config = dispatch_core::config::load(&[layer]).unwrap().0;
    let resolved = |json: &str| {
        let request: Dispatch = serde_json::from_str(json).unwrap();
        request.spec(&config).map(|spec| spec.terms.permissions)
    };
    let task = |more: &str| format!(r#"{{"task": "x", "repo": "/r", {more}}}"#);
    for (more, wanted) in [
        (r#""agent": "codex""#, Permissions::Allow),
        (r#""agent": "claude""#, Permissions::Ask),
        (
            r#""agent": "claude", "permissions": "allow""#,
            Permissions::Allow,
        ),
        (
            r#""agent": "claude", "permissions": "deny""#,
            Permissions::Deny,
        ),
        (
            r#""agent": "gemini", "permissions": "ask""#,
            Permissions::Ask,
        ),
    ] {
        assert_eq!(resolved(&task(more)), Ok(wanted), "{more}");
    }
    let error = resolved(&task(r#""agent": "codex", "permissions": "ask""#)).unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("agent codex asks for none (codex)"),
        "{error}"
    );
    assert!(
        error.contains("there are acp, claude, claude-acp"),
        "{error}"
    );
}

#[test]
fn a_grant_is_the_tasks_or_the_agents_and_a_repository_takes_away() {
    let text = "[agents.claude]\ngrant = \"helpers\"\n[grants.less]\ntools = [\"wait\", \"list\"]\n\
                children_max = 2\nchildren_live_max = 9\n";
    let source = "mine";
    let config = dispatch_core::config::load(&[dispatch_core::config::Layer { source, text }]);
    let config = config.unwrap().0;
    let granted = |agent: &str, asked: Option<&str>, most: Option<&str>| {
        let json = format!(r#"{{"task": "x", "repo": "/r", "agent": "{agent}"}}"#);
        let mut request: Dispatch = serde_json::from_str(&json).unwrap();
        request.grant = asked.map(str::to_owned);
        request.grant_most = most.map(str::to_owned);
        request.spec(&config)
    };
    let tools = |spec: TaskSpec| spec.terms.grant.map(|grant| grant.tools.len());
    for (agent, asked, most, wanted) in [
        ("codex", None, None, None),
        ("codex", Some("helpers"), None, Some(8)),
        ("claude", None, None, Some(8)),
        ("claude", Some("none"), None, None),
        ("claude", Some("less"), None, Some(2)),
        ("claude", None, Some("less"), Some(2)),
        ("claude", None, Some("none"), None),
        // What nobody granted cannot be lowered.
        ("codex", None, Some("helpers"), None),
    ] {
        let spec = granted(agent, asked, most).unwrap();
        assert_eq!(tools(spec), wanted, "{agent} {asked:?} {most:?}");
    }
    let least = granted("claude", None, Some("less"))
        .unwrap()
        .terms
        .grant
        .unwrap();
    assert_eq!((least.children_max, least.children_live_max), (2, 4));
    let lead = granted("claude", None, None).unwrap();
    assert_eq!(
        lead.expects,
        Expects::Either,
        "what others do is not its own change"
    );
    assert_eq!(
        granted("codex", None, None).unwrap().expects,
        Expects::Change
    );
    for (agent, asked, most, part) in [
        ("codex", Some("nope"), None, "there are none, helpers, less"),
        ("codex", Some("helpers"), Some("nope"), "use grant nope"),
        (
            "coderabbit",
            Some("helpers"),
            None,
            "takes no tools of ours",
        ),
    ] {
        let error = granted(agent, asked, most).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    let sent = r#"{"task": "x", "repo": "/r", "grant_most": "helpers"}"#;
    assert!(serde_json::from_str::<Dispatch>(sent).is_err());
}

#[test]
fn what_cannot_be_is_refused_and_names_what_exists() {
    let error = spec(r#"{"task": "x", "repo": "/r", "agent": "gpt"}"#).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("there are acp, claude, claude-acp"),
        "{error}"
    );
    for bad in [
        r#"{"task": " ", "repo": "/r"}"#,
        r#"{"task": "x", "repo": "r"}"#,
        r#"{"task": "x", "repo": "/r", "checks": ["nope"]}"#,
        r#"{"task": "x", "repo": "/r", "workspace": "../x"}"#,
    ] {
        assert!(spec(bad).is_err(), "{bad}");
    }
    assert!(serde_json::from_str::<Dispatch>(r#"{"task":"x","repo":"/r","modle":"y"}"#).is_err());
    for (bad, part) in [
        (
            r#"{"task": "x", "repo": "/r", "placement": "cave"}"#,
            "there are cage, container, host",
        ),
        (
            r#"{"task": "x", "repo": "/r", "model": "--help"}"#,
            "a model's name",
        ),
        (
            r#"{"task": "x", "repo": "/r", "after": ["3f"]}"#,
            "a task id",
        ),
        (
            r#"{"task": "x", "repo": "/r", "placement": "host"}"#,
            "task.allow_host is false",
        ),
        (
            r#"{"task": "x", "repo": "/r", "template": "codng"}"#,
            "there are coding, conventions",
        ),
        (
            r#"{"task": "x", "repo": "/r", "persona": "../x"}"#,
            "there are engineering/backend-architect",
        ),
        (
            r#"{"task": "x", "repo": "/r", "plan": "new-feature"}"#,
            "it needs feature (",
        ),
        (
            r#"{"task": "x", "repo": "/r", "variables": {"a": "b"}}"#,
            "use variable a: nothing takes it",
        ),
        (
            r#"{"task": "x", "repo": "/r", "effort": "max"}"#,
            "agent codex takes minimal, low, medium, high, xhigh",
        ),
    ] {
        let error = spec(bad).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    let none = spec(r#"{"task": "x", "repo": "/r", "checks": "none"}"#).unwrap();
    assert_eq!(none.checks, ChecksAsked::None);
}

#[test]
fn a_task_starts_from_one_thing() {
    let base = |json: &str| spec(&format!(r#"{{"task": "x", {json}}}"#)).map(|spec| spec.base);
    let name = || "b".to_owned();
    for (json, wanted) in [
        (r#""repo": "/r""#, Base::Head),
        (
            r#""repo": "/r", "branch": "b""#,
            Base::Branch { name: name() },
        ),
        (
            r#""repo": "/r", "pr": 7, "issue": 5"#,
            Base::Pr { number: 7 },
        ),
        (
            r#""repo": "/r", "tag": "b", "issue": 5"#,
            Base::Tag { name: name() },
        ),
        (r#""dir": "/d""#, Base::Folder),
        (r#""no_repo": true"#, Base::Nothing),
    ] {
        assert_eq!(base(json), Ok(wanted), "{json}");
    }
    for (json, one, other) in [
        (r#""repo": "/r", "branch": "b", "pr": 7"#, "branch", "pr"),
        (r#""repo": "/r", "tag": "b", "pr": 7"#, "pr", "tag"),
        (
            r#""repo": "/r", "tag": "b", "branch": "b""#,
            "branch",
            "tag",
        ),
        (r#""repo": "/r", "dir": "/d""#, "dir", "repo"),
        (r#""dir": "/d", "pr": 7"#, "dir", "pr"),
        (r#""no_repo": true, "tag": "b""#, "no_repo", "tag"),
    ] {
        let told = base(json).unwrap_err().to_string();
        assert!(told.contains(&format!("{one} and {other}")), "{told}");
    }
    assert_eq!(base(r#""issue": 5"#), Err(BadRequest::NoPlace));
    assert_eq!(base(r#""repo": "/r", "pr": 0"#), Err(BadRequest::Number));
    assert!(matches!(base(r#""dir": "d""#), Err(BadRequest::Dir(_))));
    let answer = spec(r#"{"task": "x", "no_repo": true}"#).unwrap();
    assert_eq!(answer.expects, Expects::Report);
}

#[test]
fn repositories_have_names() {
    let text = "[repos.api]\nurl = \"https://h/api.git\"\ndefault_branch = \"dev\"\n\
                org = \"acme\"\n[repos.web]\npath = \"/src/web\"\n";
    let layer = dispatch_core::config::Layer { source: "t", text };
    let config = dispatch_core::config::load(&[layer]).unwrap().0;
    let spec = |json: &str| {
        let request: Dispatch = serde_json::from_str(json).unwrap();
        request.spec(&config)
    };
    let api = spec(r#"{"task": "x", "repo": "api"}"#).unwrap();
    assert_eq!(api.repo, "https://h/api.git");
    assert_eq!(api.base, Base::Default { name: "dev".into() });
    assert_eq!(api.labels.org.as_deref(), Some("acme"));
    let web = spec(r#"{"task": "x", "repo": "web", "org": "o"}"#).unwrap();
    assert_eq!((web.repo.as_str(), web.base), ("/src/web", Base::Head));
    assert_eq!(web.labels.org.as_deref(), Some("o"));
    let error = spec(r#"{"task": "x", "repo": "nope"}"#).unwrap_err();
    assert!(
        error.to_string().contains("configured are api, web"),
        "{error}"
    );
    for bad in [
        "[repos.x]\norg = \"o\"\n",
        "[repos.x]\npath = \"/x\"\nurl = \"https://h/x\"\n",
        "[repos.x]\npath = \"x\"\n",
        "[repos.x]\nurl = \"-x\"\n",
        "[repos.\"a/b\"]\npath = \"/x\"\n",
    ] {
        let layer = dispatch_core::config::Layer {
            source: "t",
            text: bad,
        };
        let problems = dispatch_core::config::load(&[layer]).unwrap_err();
        assert!(problems[0].at.starts_with("repos"), "{bad}: {problems:?}");
    }
}

#[test]
fn a_request_can_lower_a_budget_and_never_raise_it() {
    assert_eq!(least(None, 5), 5);
    assert_eq!(least(Some(3), 5), 3);
    assert_eq!(least(Some(9), 5), 5);
    assert_eq!(least(Some(0), 5), 5);
    assert_eq!(least(Some(9), 0), 9);
}

#[test]
fn an_image_makes_a_container_and_never_less_of_a_fence() {
    let text = "[agents.img]\ndriver = \"plain\"\nprogram = \"x\"\npool = \"default\"\nimage = \"agent:1\"\n\
                [agents.caged]\ndriver = \"plain\"\nprogram = \"x\"\npool = \"default\"\nplacement = \"cage\"\n\
                [task]\nagent = \"img\"\nplacement = \"locked\"\n[placements.locked]\nwrap = \"cage\"\n\
                network = \"none\"\nstrict = true\n[placements.boxed]\nwrap = \"container\"\n\
                image = \"boxed:1\"\nruntime = \"podman\"\n[placements.empty]\nwrap = \"container\"\n";
    let source = "mine";
    let layer = dispatch_core::config::Layer { source, text };
    let config = dispatch_core::config::load(&[layer]).unwrap().0;
    let spec = |more: &str| {
        let json = format!(r#"{{"task": "x", "repo": "/r"{more}}}"#);
        let request: Dispatch = serde_json::from_str(&json).unwrap();
        request.spec(&config).map(|spec| spec.placement)
    };
    let of = |placement: &Placement| {
        let container = placement.container.clone().unwrap();
        (container.image.to_string(), container.runtime.word())
    };
    let agents = spec("").unwrap();
    assert_eq!(
        (agents.word(), of(&agents)),
        ("container", ("agent:1".into(), "auto"))
    );
    assert!(agents.strict && agents.network == Network::None);
    let tasks = spec(r#", "image": "mine:2", "runtime": "docker""#).unwrap();
    assert_eq!(of(&tasks), ("mine:2".into(), "docker"));
    let boxed = spec(r#", "placement": "boxed", "agent": "caged""#).unwrap();
    assert_eq!(
        (boxed.word(), of(&boxed)),
        ("boxed", ("boxed:1".into(), "podman"))
    );
    // The word of a person beats the table of an agent, towards the stronger fence.
    let person = spec(r#", "image": "mine:2", "agent": "caged""#).unwrap();
    assert_eq!(person.wrap, Wrap::Container);
    let caged = spec(r#", "agent": "caged""#).unwrap();
    assert_eq!((caged.wrap, caged.container), (Wrap::Cage, None));
    for (more, part) in [
        (r#", "image": "-v""#, "begins with a dash"),
        (
            r#", "image": "a", "runtime": "crio""#,
            "there are auto, apple",
        ),
        (
            r#", "image": "a", "placement": "locked""#,
            "it is no container",
        ),
        (
            r#", "agent": "caged", "placement": "empty""#,
            "name one with --image",
        ),
    ] {
        let error = spec(more).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn urls_are_told_from_paths() {
    for url in ["https://h/r", "git@github.com:a/b.git", "file:///r"] {
        assert!(is_url(url), "{url}");
    }
    for path in ["/r", "r", "./a:b", "a/b@c:d", "ext::sh -c x", "-x@y:z"] {
        assert!(!is_url(path), "{path}");
    }
}

#[test]
fn secrets_are_not_printed() {
    let secrets = Secrets(BTreeMap::from([("K".into(), "s3cret".into())]));
    assert!(!format!("{secrets:?}").contains("s3cret"));
}
