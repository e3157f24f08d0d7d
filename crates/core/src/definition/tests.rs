//! Definitions as people write them, and what comes of them.

use super::*;

const MARKDOWN: &str = "---\nname: The Explorer\ndescription: \"Finds: things\" # and \"more\"\n# a word\n\
    skills: [rust, tests]  # two\ntools: # a list\n  - read # one\n  - search_code\n\
    models: [main/claude-x:high, own/qwen3:8b]\ncwd: crates/core\nis_subagent: true\n---\n\n\
    Look first.\n\n- Then say.\n";
const TOML: &str = "name = \"The Explorer\"\ndescription = \"Finds: things\"\n\
    skills = [\"rust\", \"tests\"]\ntools = [\"read\", \"search_code\"]\ncwd = \"crates/core\"\n\
    is_subagent = true\ninstructions = \"Look first.\\n\\n- Then say.\"\n\
    [[models]]\nkey_id = \"main\"\nmodel_id = \"claude-x\"\neffort = \"high\"\n\
    [[models]]\nkey_id = \"own\"\nmodel_id = \"qwen3:8b\"\n";

fn slug(text: &str) -> Slug {
    text.parse().unwrap()
}

fn markdown(text: &str) -> Result<Definition, String> {
    parse(&slug("explorer"), Scope::Person, Shape::Markdown, text)
}

fn choice(text: &str) -> Choice {
    WrittenModel::Text(text.to_owned()).choice().unwrap()
}

#[test]
fn both_shapes_say_the_same() {
    let one = markdown(MARKDOWN).unwrap();
    let other = parse(&slug("explorer"), Scope::Person, Shape::Toml, TOML).unwrap();
    assert_eq!(one, other);
    assert_eq!(one.role.instructions, "Look first.\n\n- Then say.");
    assert_eq!(one.models[0].effort, Some(Effort::High));
    assert_eq!(
        (one.models[1].model.as_str(), one.models[1].effort),
        ("qwen3:8b", None)
    );
    let tools = one.tools.unwrap();
    assert!(tools.contains(&"list_files".to_owned()) && tools.len() == 4);
    let least = markdown("---\n---\n").unwrap();
    assert_eq!(
        (least.role.name.as_str(), least.is_subagent),
        ("explorer", false)
    );
    assert_eq!(least.tools, None);
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    for (text, part) in [
        ("Just a text", "does not begin with a line ---"),
        ("---\nname: x\n", "no end"),
        ("---\nnonsense\n---\n", "line 2: it is no `key: value`"),
        ("---\n- x\n---\n", "line 2: an item of no list"),
        (
            "---\nname: x\nname: y\n---\n",
            "line 3: name is there twice",
        ),
        ("---\n  name: x\n---\n", "line 2: it is indented"),
        (
            "---\nname: [a\n---\n",
            "line 2: a list must end on its line",
        ),
        ("---\nname: |\n---\n", "line 2: \"|\" must stand in quotes"),
        ("---\nname: \"a\\nb\"\n---\n", "is no text in quotes"),
        ("---\nfly: true\n---\n", "unknown field `fly`"),
        ("---\nis_subagent: yes\n---\n", "invalid type"),
        ("---\ninstructions: x\n---\n", "below the front matter"),
        (
            "---\ntools: [fly]\n---\n",
            "use tool \"fly\": it is not known",
        ),
        ("---\nmodels: [claude-x]\n---\n", "no KEY/MODEL"),
        ("---\nmodels: [main/-x]\n---\n", "a model's name"),
    ] {
        let error = markdown(text).unwrap_err();
        assert!(error.contains(part), "{text:?}: {error}");
    }
    let long = format!("---\ndescription: {}\n---\n", "x".repeat(401));
    assert!(markdown(&long).unwrap_err().contains("400 characters"));
}

#[test]
fn a_file_is_a_definition_by_its_ending() {
    assert_eq!(
        slug_of("explorer.md"),
        Some((Ok(slug("explorer")), Shape::Markdown))
    );
    assert!(matches!(slug_of("a.b.toml"), Some((Ok(_), Shape::Toml))));
    assert!(matches!(slug_of("-x.md"), Some((Err(_), _))));
    assert_eq!(slug_of("README"), None);
    assert_eq!(slug_of("notes.txt"), None);
}

fn known(name: &str, scope: Scope, subagent: bool) -> Definition {
    let text = format!("---\nis_subagent: {subagent}\n---\nI am {name}.\n");
    parse(&slug(name), scope, Shape::Markdown, &text).unwrap()
}

fn catalogue(all: &[(&str, Scope, bool)]) -> Catalogue {
    let mut catalogue = Catalogue::default();
    for (name, scope, subagent) in all {
        catalogue.add(slug(name), Ok(known(name, *scope, *subagent)));
    }
    catalogue
}

#[test]
fn a_repositorys_definition_comes_before_a_persons() {
    let global = catalogue(&[("a", Scope::Person, true), ("b", Scope::Person, true)]);
    let mut own = catalogue(&[("b", Scope::Repository, true)]);
    own.add(slug("c"), Err("read c.md: line 2: nonsense".into()));
    let all = global.under(own);
    let in_place = |one: &Listed| (one.slug.clone(), one.in_place);
    let in_place: Vec<(String, bool)> = all.listed().iter().map(in_place).collect();
    assert_eq!(in_place, [("a".into(), false), ("b".into(), true)]);
    let scope = |name: &str| all.find(name, false).unwrap().role.scope;
    assert_eq!((scope("a"), scope("b")), (Scope::Person, Scope::Repository));
    let error = all.find("c", false).unwrap_err().to_string();
    assert!(error.contains("line 2: nonsense"), "{error}");
    let error = all.find("x", false).unwrap_err().to_string();
    assert!(
        error.contains("there are a, b (of no use: read c.md"),
        "{error}"
    );
    assert_eq!(all.listed().len(), 2);
    let mut twice = catalogue(&[("a", Scope::Person, true)]);
    twice.add(slug("a"), Ok(known("a", Scope::Person, true)));
    assert!(matches!(
        twice.find("a", false),
        Err(BadSummon::Broken { .. })
    ));
}

#[test]
fn the_wrong_kind_is_told_the_right_flag_and_what_fits() {
    let all = catalogue(&[
        ("under", Scope::Person, true),
        ("alone", Scope::Person, false),
    ]);
    let said = |name: &str, top: bool| all.find(name, top).unwrap_err().to_string();
    let error = said("under", true);
    assert!(
        error.contains("leave top_level out") && error.contains("there are alone"),
        "{error}"
    );
    let error = said("alone", false);
    assert!(
        error.contains("set top_level to true") && error.contains("there are under"),
        "{error}"
    );
    assert!(all.find("alone", true).is_ok() && all.find("under", false).is_ok());
}

#[test]
fn a_chain_is_made_of_the_callers_keys() {
    let callers = [choice("main/claude-x"), choice("main/claude-y")];
    let mut one = known("a", Scope::Person, true);
    assert_eq!(one.chain(&callers).unwrap(), callers);
    one.models = vec![choice("main/claude-z:low")];
    assert_eq!(one.chain(&callers).unwrap(), one.models);
    one.role.scope = Scope::Repository;
    let error = one.chain(&callers).unwrap_err().to_string();
    assert!(error.contains("a repository chooses no other"), "{error}");
    one.models = vec![choice("main/claude-y:high")];
    assert_eq!(one.chain(&callers).unwrap(), callers[1..]);
    let thinking = [choice("main/claude-x"), choice("main/claude-y:low")];
    assert_eq!(one.chain(&thinking).unwrap(), thinking[1..]);
    one.role.scope = Scope::Person;
    one.models = vec![choice("other/claude-y")];
    let error = one.chain(&callers).unwrap_err().to_string();
    assert!(error.contains("there are claude-x of key main"), "{error}");
}

#[test]
fn a_directory_stays_below_the_callers() {
    let root = "/data/w/one";
    for (own, asked, wanted) in [
        ("", None, ""),
        ("crates", None, "crates"),
        ("", Some("crates/core"), "crates/core"),
        ("crates", Some("core/../agent/."), "crates/agent"),
        ("crates", Some("/data/w/one/crates/core"), "crates/core"),
        ("", Some("/data/w/one"), ""),
        ("crates", Some("../crates/core"), "crates/core"),
    ] {
        assert_eq!(
            directory(own, asked, root).as_deref(),
            Ok(wanted),
            "{asked:?}"
        );
    }
    for (own, asked) in [
        ("", ".."),
        ("", "a/../../b"),
        ("crates", ".."),
        ("crates", "../xtask"),
        ("crates", "/data/w/one/xtask"),
        ("", "/data/w/onemore"),
        ("", "/etc"),
        ("", "a\0b"),
    ] {
        assert!(directory(own, Some(asked), root).is_err(), "{own} {asked}");
    }
    assert!(directory("", Some("/x"), "").is_err());
}

#[test]
fn a_repositorys_words_are_quoted_and_a_persons_are_not() {
    let mut role = known("a", Scope::Person, true).role;
    assert!(role.words().ends_with("\n\nI am a."), "{}", role.words());
    role.scope = Scope::Repository;
    assert!(role.words().contains("| I am a."), "{}", role.words());
    assert_eq!(role.question_head(false), "agent a of the repository");
    role.scope = Scope::Person;
    let question = question(&role.question_head(true), "Do it\nnow");
    assert_eq!(question, "top-level agent a\nDo it\nnow");
}

/// Whoever allows one allows no other that begins like it.
#[test]
fn a_question_stands_for_one_task_however_long_it_is() {
    let long = "ü".repeat(5_000);
    let [one, other] = ["a", "b"].map(|end| question("agent a", &format!("{long}{end}")));
    assert_ne!(one, other);
    for question in [one, other] {
        assert!(question.len() <= INPUT_BYTES_MAX, "{}", question.len());
        let part = "agent a\n[The task has 10001 bytes, SHA-256 ";
        assert!(question.starts_with(part), "{question}");
        assert!(question.ends_with('ü'));
    }
}
