//! What an agent's tools may do: allow, ask or deny, by group of tools and by pattern.
//! Must not be taken for a fence: a pattern reads what a command says, not what it does. The cage is
//! the limit; a rule decides who is asked.

use std::{collections::BTreeMap, fmt, str::Chars};

use serde::{Deserialize, Serialize};

use crate::address::Address;

/// From the freest to the strictest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    Allow,
    Ask,
    Deny,
}

/// Tools that are granted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Group {
    Read,
    Edit,
    Shell,
    SearchCode,
    Todo,
    WebSearch,
    WebFetch,
    KeyUsage,
    Lsp,
    YoutubeTranscribe,
    Summon,
    UserAgent,
    SendToTab,
    ReadTab,
    Mcp,
}

impl Group {
    pub const ALL: [Self; 15] = [
        Self::Read,
        Self::Edit,
        Self::Shell,
        Self::SearchCode,
        Self::Todo,
        Self::WebSearch,
        Self::WebFetch,
        Self::KeyUsage,
        Self::Lsp,
        Self::YoutubeTranscribe,
        Self::Summon,
        Self::UserAgent,
        Self::SendToTab,
        Self::ReadTab,
        Self::Mcp,
    ];

    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Edit => "edit",
            Self::Shell => "shell",
            Self::SearchCode => "search_code",
            Self::Todo => "todo",
            Self::WebSearch => "web_search",
            Self::WebFetch => "web_fetch",
            Self::KeyUsage => "key_usage",
            Self::Lsp => "lsp",
            Self::YoutubeTranscribe => "youtube_transcribe",
            Self::Summon => "summon",
            Self::UserAgent => "user_agent",
            Self::SendToTab => "send_to_tab",
            Self::ReadTab => "read_tab",
            Self::Mcp => "mcp",
        }
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// What the settings say of a whole group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Grade {
    Allow,
    Ask,
    Deny,
    /// Allowed where a fence of ours stands around the agent, else asked.
    Fenced,
}

impl Grade {
    #[must_use]
    pub fn action(self, fenced: bool) -> Action {
        match self {
            Self::Allow => Action::Allow,
            Self::Ask => Action::Ask,
            Self::Deny => Action::Deny,
            Self::Fenced if fenced => Action::Allow,
            Self::Fenced => Action::Ask,
        }
    }
}

/// What a tool is about to touch. Made once, by whoever then touches exactly that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// Of a file or a directory, with its links followed.
    Path(String),
    /// A line of shell.
    Command(String),
    Url(Address),
    /// Of a key, a job, a server's tool; or what is searched for.
    Name(String),
}

impl Subject {
    pub fn name(name: impl Into<String>) -> Self {
        Self::Name(name.into())
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(text) | Self::Command(text) | Self::Name(text) => f.write_str(text),
            Self::Url(address) => address.fmt(f),
        }
    }
}

/// One line of an agent's `rules`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    pub group: Group,
    /// Of a path, a command or a name, whole: `*` is any text, `?` any character. Of an address, its
    /// scheme, its host and its path are each matched by their own part of the pattern.
    pub pattern: String,
    pub action: Action,
}

/// What one place says: the last rule that matches. One that matches in part only takes away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    /// Where no rule matches. `allow` is for a layer that may only narrow what others say.
    pub otherwise: Action,
    #[serde(default)]
    pub rules: Vec<Rule>,
}

/// Layers that all have to agree, and what somebody has allowed since.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rules {
    layers: Vec<Layer>,
    /// Answers that were to hold for the whole task. They stand for the asking, never against a
    /// denial.
    #[serde(default)]
    always: Vec<(Group, Subject)>,
}

impl Default for Rules {
    /// Everything is asked.
    fn default() -> Self {
        Self::new(Vec::new())
    }
}

impl Rules {
    #[must_use]
    pub fn new(rules: Vec<Rule>) -> Self {
        let otherwise = Action::Ask;
        Self {
            layers: vec![Layer { otherwise, rules }],
            always: Vec::new(),
        }
    }

    /// What the settings say of groups, and after it their rules.
    #[must_use]
    pub fn graded(grades: &BTreeMap<Group, Grade>, rules: &[Rule], fenced: bool) -> Self {
        let group = |(group, grade): (&Group, &Grade)| Rule {
            group: *group,
            pattern: "*".to_owned(),
            action: grade.action(fenced),
        };
        let all = grades.iter().map(group).chain(rules.iter().cloned());
        Self::new(all.collect())
    }

    /// What both allow. A child's rules are its own and its parent's: no pattern of its own can undo
    /// one of theirs. What somebody has allowed the one is not allowed the other.
    #[must_use]
    pub fn intersect(&self, other: &Self) -> Self {
        let layers = self.layers.iter().chain(&other.layers).cloned().collect();
        Self {
            layers,
            always: Vec::new(),
        }
    }

    /// What may only narrow: of a project, whose files anybody may have written.
    #[must_use]
    pub fn narrowed(mut self, rules: Vec<Rule>) -> Self {
        let otherwise = Action::Allow;
        self.layers.push(Layer { otherwise, rules });
        self
    }

    /// Somebody said that this needs no more asking.
    pub fn allow_always(&mut self, group: Group, subject: Subject) {
        if !self.stands(group, &subject) {
            self.always.push((group, subject));
        }
    }

    /// What becomes of this.
    #[must_use]
    pub fn decide(&self, group: Group, subject: &Subject) -> Action {
        let said = self.layers.iter().map(|layer| layer.decide(group, subject));
        match said.max() {
            None => Action::Ask,
            Some(Action::Ask) if self.stands(group, subject) => Action::Allow,
            Some(action) => action,
        }
    }

    /// Of several things that are touched at once the strictest counts: one that may be touched lets
    /// no other one through.
    #[must_use]
    pub fn decide_all(&self, group: Group, subjects: &[Subject]) -> Action {
        let decided = subjects.iter().map(|subject| self.decide(group, subject));
        let nothing = || self.decide(group, &Subject::name(""));
        decided.max().unwrap_or_else(nothing)
    }

    /// Whether any rule of the group is stricter than this: without one there is nothing to look for.
    #[must_use]
    pub fn may_be_stricter(&self, group: Group, than: Action) -> bool {
        let mut rules = self.layers.iter().flat_map(|layer| &layer.rules);
        rules.any(|rule| rule.group == group && rule.action > than)
    }

    /// Only the very same again: a pattern made of an answer would allow what nobody saw.
    fn stands(&self, group: Group, subject: &Subject) -> bool {
        self.always.iter().any(|(g, s)| *g == group && s == subject)
    }
}

impl Layer {
    fn decide(&self, group: Group, subject: &Subject) -> Action {
        let rules = self.rules.iter().filter(|rule| rule.group == group);
        rules.fold(self.otherwise, |action, rule| match rule.fit(subject) {
            Fit::Whole => rule.action,
            Fit::InPart => action.max(rule.action),
            Fit::None => action,
        })
    }
}

/// Whether a rule is about something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fit {
    None,
    /// It can be read so. That is enough to take something away, and not to give it.
    InPart,
    Whole,
}

/// What makes more than one command of a line, or hides what it runs.
const OPERATORS: [char; 14] = [
    ';', '&', '|', '\n', '\r', '$', '`', '<', '>', '(', ')', '{', '}', '\\',
];

impl Rule {
    fn fit(&self, subject: &Subject) -> Fit {
        if self.pattern == "*" {
            return Fit::Whole;
        }
        let (whole, in_part) = match subject {
            Subject::Path(text) | Subject::Name(text) => (fits(&self.pattern, text), false),
            Subject::Command(line) => {
                let fits = fits(&self.pattern, line);
                // `git *` is not meant to allow `git status; rm -rf ~`.
                (fits && !line.contains(OPERATORS), fits)
            }
            Subject::Url(address) => {
                let readings = address.readings();
                let any = readings.iter().any(|text| fits(&self.pattern, text));
                (address.is_of(&self.pattern), any)
            }
        };
        match (whole, in_part) {
            (true, _) => Fit::Whole,
            (false, true) => Fit::InPart,
            (false, false) => Fit::None,
        }
    }
}

/// Whether a text is one of the pattern's: `*` is any text, `?` any character.
#[must_use]
pub fn fits(pattern: &str, text: &str) -> bool {
    let (mut pattern, mut text) = (pattern.chars(), text.chars());
    // What is behind the last star, and the text from the first character on that it has not taken.
    let mut star: Option<(Chars<'_>, Chars<'_>)> = None;
    loop {
        let (mut behind, mut rest) = (pattern.clone(), text.clone());
        match (behind.next(), rest.next()) {
            (Some('*'), _) => {
                star = Some((behind.clone(), text.clone()));
                pattern = behind;
            }
            (Some(c), Some(d)) if c == '?' || c == d => (pattern, text) = (behind, rest),
            (None, None) => return true,
            _ => {
                let Some((behind, from)) = &mut star else {
                    return false;
                };
                if from.next().is_none() {
                    return false;
                }
                (pattern, text) = (behind.clone(), from.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(group: Group, pattern: &str, action: Action) -> Rule {
        Rule {
            group,
            pattern: pattern.to_owned(),
            action,
        }
    }

    fn path(path: &str) -> Subject {
        Subject::Path(path.to_owned())
    }

    fn command(line: &str) -> Subject {
        Subject::Command(line.to_owned())
    }

    fn url(text: &str) -> Subject {
        Subject::Url(Address::parse(text).unwrap())
    }

    #[test]
    fn a_star_is_any_text_and_a_question_mark_any_character() {
        for (pattern, text) in [
            ("*", ""),
            ("*", "a/b"),
            ("qwen*", "qwen3-coder"),
            ("*-mini", "gpt-5-mini"),
            ("a*b*c", "a1b2c"),
            ("a*b*c", "abc"),
            ("?", "é"),
            ("a?c*", "abc"),
            ("*.rs", "x.rs.rs"),
            ("", ""),
        ] {
            assert!(fits(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [
            ("qwen*", "xqwen"),
            ("exact", "exactly"),
            ("a*b*c", "acb"),
            ("ab*ba", "aba"),
            ("", "x"),
            ("?", ""),
            ("?", "ab"),
        ] {
            assert!(!fits(pattern, text), "{pattern} {text}");
        }
    }

    #[test]
    fn the_last_match_wins_and_no_match_asks() {
        let rules = Rules::new(vec![
            rule(Group::Edit, "*", Action::Allow),
            rule(Group::Edit, ".git/*", Action::Deny),
            rule(Group::Edit, ".git/info/*", Action::Ask),
        ]);
        assert_eq!(rules.decide(Group::Edit, &path("src/a.rs")), Action::Allow);
        assert_eq!(
            rules.decide(Group::Edit, &path(".git/config")),
            Action::Deny
        );
        assert_eq!(
            rules.decide(Group::Edit, &path(".git/info/exclude")),
            Action::Ask
        );
        assert_eq!(rules.decide(Group::Shell, &command("ls")), Action::Ask);
    }

    #[test]
    fn a_pattern_that_allows_is_for_one_command() {
        let rules = Rules::new(vec![rule(Group::Shell, "git *", Action::Allow)]);
        assert_eq!(
            rules.decide(Group::Shell, &command("git status")),
            Action::Allow
        );
        for sly in [
            "git status; rm -rf x",
            "git log | sh",
            "git $(rm x)",
            "git status\nrm x",
            "git log > x",
        ] {
            assert_eq!(
                rules.decide(Group::Shell, &command(sly)),
                Action::Ask,
                "{sly}"
            );
        }
        let denies = Rules::new(vec![
            rule(Group::Shell, "*", Action::Allow),
            rule(Group::Shell, "*sudo*", Action::Deny),
        ]);
        assert_eq!(denies.decide(Group::Shell, &command("a; b")), Action::Allow);
        assert_eq!(
            denies.decide(Group::Shell, &command("a; sudo b")),
            Action::Deny
        );
    }

    #[test]
    fn a_child_may_no_more_than_its_parent() {
        let actions = [Action::Allow, Action::Ask, Action::Deny];
        for parent in actions {
            for child in actions {
                let of = |action| Rules::new(vec![rule(Group::Read, "*", action)]);
                let both = of(parent).intersect(&of(child));
                assert_eq!(both.decide(Group::Read, &path("x")), parent.max(child));
            }
        }
        let mut parent = Rules::default();
        parent.allow_always(Group::Read, path("x"));
        let child = parent.intersect(&Rules::default());
        assert_eq!(child.decide(Group::Read, &path("x")), Action::Ask);
    }

    #[test]
    fn a_project_narrows_and_never_widens() {
        let rules = Rules::new(vec![rule(Group::Read, "*", Action::Allow)]).narrowed(vec![
            rule(Group::Read, "secrets/*", Action::Deny),
            rule(Group::Shell, "*", Action::Allow),
        ]);
        assert_eq!(rules.decide(Group::Read, &path("src/x")), Action::Allow);
        assert_eq!(rules.decide(Group::Read, &path("secrets/x")), Action::Deny);
        assert_eq!(rules.decide(Group::Shell, &command("ls")), Action::Ask);
    }

    #[test]
    fn a_fence_is_what_lets_a_group_go_unasked() {
        let grades = BTreeMap::from([(Group::Read, Grade::Allow), (Group::Shell, Grade::Fenced)]);
        let denies = [rule(Group::Shell, "*sudo*", Action::Deny)];
        for (fenced, shell) in [(true, Action::Allow), (false, Action::Ask)] {
            let rules = Rules::graded(&grades, &denies, fenced);
            assert_eq!(rules.decide(Group::Read, &path("x")), Action::Allow);
            assert_eq!(rules.decide(Group::Shell, &command("make")), shell);
            assert_eq!(
                rules.decide(Group::Shell, &command("sudo make")),
                Action::Deny
            );
            assert_eq!(rules.decide(Group::Lsp, &path("x")), Action::Ask);
        }
    }

    #[test]
    fn always_is_for_the_very_same_and_never_against_a_denial() {
        let mut rules = Rules::new(vec![rule(Group::Shell, "rm *", Action::Deny)]);
        rules.allow_always(Group::Shell, command("make test"));
        rules.allow_always(Group::Shell, command("rm x"));
        assert_eq!(
            rules.decide(Group::Shell, &command("make test")),
            Action::Allow
        );
        assert_eq!(
            rules.decide(Group::Shell, &command("make test2")),
            Action::Ask
        );
        assert_eq!(rules.decide(Group::Shell, &command("rm x")), Action::Deny);
    }

    /// Of a pattern and an address: what a rule makes of it that allows, and one that denies.
    #[test]
    fn an_address_is_matched_part_by_part_however_it_is_written() {
        use Action::{Allow, Ask, Deny};
        for (pattern, text, allows, denies) in [
            ("*", "https://h/x", Allow, Deny),
            ("https://h/public/*", "https://h/public/x", Allow, Deny),
            ("https://h/public/*", "https://h/public/../admin", Ask, Ask),
            (
                "https://h/public/*",
                "https://h/public/%2e%2e/admin",
                Ask,
                Ask,
            ),
            ("https://h/*", "https://h:443/x", Allow, Deny),
            ("https://h:443/*", "https://h/x", Allow, Deny),
            ("https://h/*", "http://h./x", Ask, Ask),
            ("http*://h/*", "http://h./x", Allow, Deny),
            ("https://h/*", "https://h:8443/x", Ask, Ask),
            ("https://h/%7euser/*", "https://h/~user/x", Allow, Deny),
            ("https://H./*", "https://h/x", Allow, Deny),
            ("h/*", "https://h/x", Allow, Deny),
            ("https://h", "https://h/x", Allow, Deny),
            (
                "https://*.example.com/*",
                "https://a.b.example.com/x",
                Allow,
                Deny,
            ),
            // In the path of another: enough to deny it, and not to allow it.
            (
                "https://*.example.com/*",
                "https://evil/?.example.com/",
                Ask,
                Deny,
            ),
            (
                "https://*.example.com/*",
                "https://evil/x.example.com/y",
                Ask,
                Deny,
            ),
            ("*secret*", "https://h/a/secret", Ask, Deny),
            ("https://h/admin*", "https://h//admin/x", Ask, Deny),
        ] {
            let decide = |action| {
                let rules = Rules::new(vec![rule(Group::WebFetch, pattern, action)]);
                rules.decide(Group::WebFetch, &url(text))
            };
            assert_eq!(
                (decide(Allow), decide(Deny)),
                (allows, denies),
                "{pattern} {text}"
            );
        }
    }

    #[test]
    fn what_fits_in_part_only_takes_away() {
        let rules = |first, second| {
            Rules::new(vec![
                rule(Group::Shell, "*", first),
                rule(Group::Shell, "git *", second),
            ])
        };
        let actions = [Action::Allow, Action::Ask, Action::Deny];
        for first in actions {
            for second in actions {
                let decide = |line| rules(first, second).decide(Group::Shell, &command(line));
                assert_eq!(decide("git status"), second);
                assert_eq!(decide("git status; rm x"), first.max(second));
                assert_eq!(decide("ls"), first);
            }
        }
    }

    #[test]
    fn of_several_the_strictest_counts() {
        let rules = Rules::new(vec![
            rule(Group::Edit, "docs/*", Action::Allow),
            rule(Group::Edit, ".github/*", Action::Deny),
        ]);
        for (paths, action) in [
            (&["docs/a", "docs/b"][..], Action::Allow),
            (&["docs/a", "src/x"], Action::Ask),
            (&["docs/a", ".github/x", "src/x"], Action::Deny),
            (&[], Action::Ask),
        ] {
            let subjects: Vec<Subject> = paths.iter().map(|one| path(one)).collect();
            assert_eq!(
                rules.decide_all(Group::Edit, &subjects),
                action,
                "{paths:?}"
            );
        }
        assert!(rules.may_be_stricter(Group::Edit, Action::Allow));
        assert!(!rules.may_be_stricter(Group::Read, Action::Allow));
    }
}
