//! What an agent's tools may do: allow, ask or deny, by group of tools and by pattern.
//! Must not be taken for a fence: a pattern reads what a command says, not what it does. The cage is
//! the limit; a rule decides who is asked.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

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

/// One line of an agent's `rules`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    pub group: Group,
    /// Of a path, a command, an address or a name, whole: `*` is any text, `?` any character.
    pub pattern: String,
    pub action: Action,
}

/// What one place says: the last rule that matches.
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
    always: Vec<(Group, String)>,
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
    pub fn allow_always(&mut self, group: Group, subject: &str) {
        let known = self
            .always
            .iter()
            .any(|(g, s)| (*g, s.as_str()) == (group, subject));
        if !known {
            self.always.push((group, subject.to_owned()));
        }
    }

    /// What becomes of this. The subject is what the tool is about to touch: a path, a command.
    #[must_use]
    pub fn decide(&self, group: Group, subject: &str) -> Action {
        let said = self.layers.iter().map(|layer| layer.decide(group, subject));
        match said.max() {
            None => Action::Ask,
            Some(Action::Ask) if self.stands(group, subject) => Action::Allow,
            Some(action) => action,
        }
    }

    /// Only the very same again: a pattern made of an answer would allow what nobody saw.
    fn stands(&self, group: Group, subject: &str) -> bool {
        self.always.iter().any(|(g, s)| *g == group && s == subject)
    }
}

impl Layer {
    fn decide(&self, group: Group, subject: &str) -> Action {
        let mut rules = self.rules.iter().rev();
        let found = rules.find(|rule| rule.group == group && rule.matches(subject));
        found.map_or(self.otherwise, |rule| rule.action)
    }
}

/// What makes more than one command of a line, or hides what it runs.
const OPERATORS: [char; 14] = [
    ';', '&', '|', '\n', '\r', '$', '`', '<', '>', '(', ')', '{', '}', '\\',
];

impl Rule {
    fn matches(&self, subject: &str) -> bool {
        if !fits(&self.pattern, subject) {
            return false;
        }
        // `git *` is not meant to allow `git status; rm -rf ~`.
        let opens = self.group == Group::Shell && self.action == Action::Allow;
        !opens || self.pattern == "*" || !subject.contains(OPERATORS)
    }
}

/// Whether a text is one of the pattern's: `*` is any text, `?` any character.
#[must_use]
pub fn fits(pattern: &str, text: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let text: Vec<char> = text.chars().collect();
    let (mut p, mut t) = (0, 0);
    // Where the last star stood, and how much of the text it has taken.
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == '?' || *c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((at, taken)) => {
                    star = Some((at, taken + 1));
                    p = at + 1;
                    t = taken + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
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
        assert_eq!(rules.decide(Group::Edit, "src/a.rs"), Action::Allow);
        assert_eq!(rules.decide(Group::Edit, ".git/config"), Action::Deny);
        assert_eq!(rules.decide(Group::Edit, ".git/info/exclude"), Action::Ask);
        assert_eq!(rules.decide(Group::Shell, "ls"), Action::Ask);
    }

    #[test]
    fn a_pattern_that_allows_is_for_one_command() {
        let rules = Rules::new(vec![rule(Group::Shell, "git *", Action::Allow)]);
        assert_eq!(rules.decide(Group::Shell, "git status"), Action::Allow);
        for sly in [
            "git status; rm -rf x",
            "git log | sh",
            "git $(rm x)",
            "git status\nrm x",
            "git log > x",
        ] {
            assert_eq!(rules.decide(Group::Shell, sly), Action::Ask, "{sly}");
        }
        let denies = Rules::new(vec![
            rule(Group::Shell, "*", Action::Allow),
            rule(Group::Shell, "*sudo*", Action::Deny),
        ]);
        assert_eq!(denies.decide(Group::Shell, "a; b"), Action::Allow);
        assert_eq!(denies.decide(Group::Shell, "a; sudo b"), Action::Deny);
    }

    #[test]
    fn a_child_may_no_more_than_its_parent() {
        let actions = [Action::Allow, Action::Ask, Action::Deny];
        for parent in actions {
            for child in actions {
                let of = |action| Rules::new(vec![rule(Group::Read, "*", action)]);
                let both = of(parent).intersect(&of(child));
                assert_eq!(both.decide(Group::Read, "x"), parent.max(child));
            }
        }
        let mut parent = Rules::default();
        parent.allow_always(Group::Read, "x");
        let child = parent.intersect(&Rules::default());
        assert_eq!(child.decide(Group::Read, "x"), Action::Ask);
    }

    #[test]
    fn a_project_narrows_and_never_widens() {
        let rules = Rules::new(vec![rule(Group::Read, "*", Action::Allow)]).narrowed(vec![
            rule(Group::Read, "secrets/*", Action::Deny),
            rule(Group::Shell, "*", Action::Allow),
        ]);
        assert_eq!(rules.decide(Group::Read, "src/x"), Action::Allow);
        assert_eq!(rules.decide(Group::Read, "secrets/x"), Action::Deny);
        assert_eq!(rules.decide(Group::Shell, "ls"), Action::Ask);
    }

    #[test]
    fn a_fence_is_what_lets_a_group_go_unasked() {
        let grades = BTreeMap::from([(Group::Read, Grade::Allow), (Group::Shell, Grade::Fenced)]);
        let denies = [rule(Group::Shell, "*sudo*", Action::Deny)];
        for (fenced, shell) in [(true, Action::Allow), (false, Action::Ask)] {
            let rules = Rules::graded(&grades, &denies, fenced);
            assert_eq!(rules.decide(Group::Read, "x"), Action::Allow);
            assert_eq!(rules.decide(Group::Shell, "make"), shell);
            assert_eq!(rules.decide(Group::Shell, "sudo make"), Action::Deny);
            assert_eq!(rules.decide(Group::Lsp, "x"), Action::Ask);
        }
    }

    #[test]
    fn always_is_for_the_very_same_and_never_against_a_denial() {
        let mut rules = Rules::new(vec![rule(Group::Shell, "rm *", Action::Deny)]);
        rules.allow_always(Group::Shell, "make test");
        rules.allow_always(Group::Shell, "rm x");
        assert_eq!(rules.decide(Group::Shell, "make test"), Action::Allow);
        assert_eq!(rules.decide(Group::Shell, "make test2"), Action::Ask);
        assert_eq!(rules.decide(Group::Shell, "rm x"), Action::Deny);
    }
}
