//! Names of workspaces: the key by which two tasks want the same one, the name a person reads, and
//! the folder on disk. Must not let a word of a request become a path: a folder is one component,
//! and no other task's.

use crate::{
    id::{WorkspaceName, slug},
    task::{Base, TaskSpec},
};

/// What a workspace is of. Two with the same text and another kind are not the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaf<'a> {
    Named(&'a WorkspaceName),
    Pr(u64),
    Issue(u64),
    Branch(&'a str),
    Tag(&'a str),
}

const FOLDER_CHARS_MAX: usize = 24;
const REPO_WITHOUT_NAME: &str = "repo";
const ORG_WITHOUT_NAME: &str = "local";

impl Leaf<'_> {
    fn words(&self) -> String {
        match self {
            Self::Named(name) => name.to_string(),
            Self::Pr(number) => format!("pr-{number}"),
            Self::Issue(number) => format!("task-{number}"),
            Self::Branch(name) | Self::Tag(name) => shown_path(name),
        }
    }
}

/// The name of a task's workspace, for people and for other programs:
/// `ORG/REPO/task-N | pr-N | BRANCH | TAG`, or the folder's own name where nothing of it is shared.
/// It never leads out of where it is put, but it is not what lies on disk. Behind `~` stands the id of a
/// task that an agent asked for: no name of a person's task has that sign.
#[must_use]
pub fn workspace_name(spec: &TaskSpec, short: &str) -> String {
    let org = shown(spec.labels.org.as_deref().unwrap_or(""), ORG_WITHOUT_NAME);
    let repo = match &spec.base {
        Base::Nothing => "none".to_owned(),
        _ => shown(spec.repo_name(), REPO_WITHOUT_NAME),
    };
    let leaf = match (spec.leaf(), spec.asker()) {
        (_, Some(_)) => format!("{}~{short}", folder_words(spec)),
        (Some(leaf), None) => leaf.words(),
        (None, None) => workspace_folder(spec, short),
    };
    format!("{org}/{repo}/{leaf}")
}

/// The folder of the workspace. No two tasks have the same `short`, and nothing behind the last dash
/// is anything else, so no two have the same folder, whatever they are called.
#[must_use]
pub fn workspace_folder(spec: &TaskSpec, short: &str) -> String {
    format!("{}-{short}", folder_words(spec))
}

fn folder_words(spec: &TaskSpec) -> String {
    match spec.leaf() {
        // A name is one safe component already.
        Some(Leaf::Named(name)) => name.to_string(),
        Some(leaf) => slug(&leaf.words(), FOLDER_CHARS_MAX),
        None => slug(&spec.title, FOLDER_CHARS_MAX),
    }
}

/// One component: letters, digits, `.`, `_` and `-`, the first a letter or digit.
fn shown(text: &str, empty: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '.' | '_' | '-');
    let text: String = text
        .chars()
        .map(|c| if plain(c) { c } else { '-' })
        .collect();
    let text = text.trim_matches(['.', '-', '_']);
    if text.is_empty() {
        empty.to_owned()
    } else {
        text.to_owned()
    }
}

/// The components of a branch or tag. Those that git allows stay nearly as they are.
fn shown_path(name: &str) -> String {
    let parts: Vec<String> = name.split('/').map(|part| shown(part, "x")).collect();
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::{
        id::TaskId,
        state::State,
        task::{ChecksAsked, Expects, Labels, Placement, Terms, Turn, Wrap},
    };

    fn spec(base: Base) -> TaskSpec {
        TaskSpec {
            title: "Fix it".into(),
            text: "Fix it".into(),
            repo: "https://h/dappco/go-io.git".into(),
            base,
            agent: "a".parse().unwrap(),
            pool: "p".parse().unwrap(),
            placement: Placement::of(Wrap::Host),
            expects: Expects::Change,
            checks: ChecksAsked::Detect,
            review_base: None,
            workspace: None,
            turn: Turn::default(),
            parent: None,
            labels: Labels {
                org: Some("core".into()),
                ..Labels::default()
            },
            terms: Terms::default(),
            limits: crate::limits::Lowered::default(),
            guide: crate::prompt::Guide::default(),
        }
    }

    fn branch(name: &str) -> TaskSpec {
        spec(Base::Branch { name: name.into() })
    }

    /// However an agent calls what it asks for, it is no name that a person's task can have.
    #[test]
    fn what_an_agent_asks_for_never_has_a_persons_name() {
        let person = TaskId::from_bits(0x3f << 56);
        let mut named = spec(Base::Pr { number: 7 });
        named.workspace = Some("pr-7".parse().unwrap());
        for mut asked in [spec(Base::Pr { number: 7 }), branch("pr-7"), named] {
            let own = workspace_name(&asked, "3f");
            asked.title = "pr-7".into();
            asked.terms.asked_by = Some(crate::id::RunId { task: person, n: 1 });
            assert!(!own.contains('~'));
            let name = workspace_name(&asked, "7a");
            assert!(
                name.starts_with("core/go-io/") && name.ends_with("~7a"),
                "{name}"
            );
        }
    }

    fn tag(name: &str) -> TaskSpec {
        spec(Base::Tag { name: name.into() })
    }

    #[test]
    fn names_are_those_that_people_and_programs_know() {
        let mut issue = spec(Base::Head);
        issue.labels.issue = Some(5);
        let mut issue_on_branch = branch("dev");
        issue_on_branch.labels.issue = Some(5);
        let mut issue_on_pr = spec(Base::Pr { number: 7 });
        issue_on_pr.labels.issue = Some(5);
        let mut named = branch("dev");
        named.workspace = Some("mine".parse().unwrap());
        for (spec, name) in [
            (issue, "core/go-io/task-5"),
            (issue_on_branch, "core/go-io/task-5"),
            (issue_on_pr, "core/go-io/pr-7"),
            (branch("feature/x"), "core/go-io/feature/x"),
            (tag("v1.2.3"), "core/go-io/v1.2.3"),
            (named, "core/go-io/mine"),
            (spec(Base::Head), "core/go-io/fix-it-3f"),
        ] {
            assert_eq!(workspace_name(&spec, "3f"), name);
        }
        let mut folder = spec(Base::Folder);
        folder.repo = "/home/me/notes".into();
        folder.labels.org = None;
        assert_eq!(workspace_name(&folder, "3f"), "local/notes/fix-it-3f");
        folder.base = Base::Nothing;
        assert_eq!(workspace_name(&folder, "3f"), "local/none/fix-it-3f");
    }

    #[test]
    fn what_looks_alike_is_not_the_same() {
        let pr = spec(Base::Pr { number: 7 });
        assert!(pr.same_workspace(&spec(Base::Pr { number: 7 })));
        for other in [branch("pr-7"), tag("pr-7"), spec(Base::Pr { number: 8 })] {
            assert!(!pr.same_workspace(&other), "{other:?}");
        }
        assert!(!branch("v1").same_workspace(&tag("v1")));
        let mut elsewhere = pr.clone();
        elsewhere.repo = "/other".into();
        assert!(!pr.same_workspace(&elsewhere));
        assert!(!spec(Base::Head).same_workspace(&spec(Base::Head)));
    }

    /// Pieces that paths, refs, shells and case-folding disks read in ways of their own.
    const PIECES: [&str; 24] = [
        "..", ".", "/", "//", "-", "--", "~", "a", "B", "é", "日", "\0", "\n", " ", "pr-7",
        "task-5", ".git", "\\", "%2e", "$x", "*", "v1.2", ".lock", "_",
    ];

    /// Every text of up to three pieces: exhaustive, so there is no seed to lose.
    fn odd_texts() -> Vec<String> {
        let mut texts = vec![String::new()];
        for one in PIECES {
            texts.push(one.to_owned());
            for two in PIECES {
                texts.push(format!("{one}{two}"));
                for three in PIECES {
                    texts.push(format!("{one}{two}{three}"));
                }
            }
        }
        texts
    }

    fn is_safe_component(part: &str) -> bool {
        !part.is_empty()
            && !part.starts_with(['.', '-'])
            && part
                .chars()
                .all(|c| c.is_alphanumeric() || matches!(c, '.' | '_' | '-'))
    }

    #[test]
    fn no_text_leads_anywhere() {
        for text in odd_texts() {
            let mut titled = spec(Base::Head);
            titled.title.clone_from(&text);
            let mut owned = branch(&text);
            owned.labels.org = Some(text.clone());
            owned.repo = format!("https://h/{text}");
            for spec in [branch(&text), tag(&text), titled, owned] {
                let folder = workspace_folder(&spec, "3f");
                assert!(is_safe_component(&folder), "{text:?}: {folder:?}");
                assert!(folder.is_ascii() && folder.len() <= 64 + 3, "{folder:?}");
                let name = workspace_name(&spec, "3f");
                assert!(name.split('/').all(is_safe_component), "{text:?}: {name:?}");
                assert!(name.split('/').count() >= 3, "{name:?}");
            }
        }
    }

    /// Folders of all tasks there could be, with the short ids that the state gives them.
    #[test]
    fn no_two_tasks_have_one_folder() {
        let texts = odd_texts();
        let mut folders: BTreeMap<String, TaskId> = BTreeMap::new();
        let mut shorts = BTreeSet::new();
        let mut state = State::default();
        for n in 0..600_u64 {
            // Ids that share long prefixes, and some that do not.
            let id = TaskId::from_bits((n % 7) << 60 | (n / 7) << (4 * (n % 11)));
            if state.task(id).is_some() {
                continue;
            }
            let short = state.short(id);
            assert!(shorts.insert(short.clone()), "{short}");
            let at = usize::try_from(n).unwrap() * 13 % texts.len();
            let mut spec = match n % 4 {
                0 => branch(&texts[at]),
                1 => tag(&texts[at]),
                2 => spec(Base::Pr { number: 7 }),
                _ => branch("same"),
            };
            if n % 5 == 0 {
                // A name may end like another task's folder.
                spec.workspace = Some(format!("task-{short}").parse().unwrap());
            }
            let folder = workspace_folder(&spec, &short).to_lowercase();
            let before = folders.insert(folder.clone(), id);
            assert_eq!(before, None, "{folder}");
            let kind = crate::event::Kind::TaskCreated {
                spec: Box::new(spec),
                short,
            };
            let event = crate::event::Event {
                seq: state.seq() + 1,
                at: 1,
                subject: crate::event::Subject::Task(id),
                kind,
            };
            state.apply(&event).unwrap();
        }
        assert!(folders.len() > 200, "{}", folders.len());
    }
}
