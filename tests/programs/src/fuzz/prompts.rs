//! What people, repositories and forges put into a prompt.
//! Must not judge what a prompt says; only that its sections and lines stay ours.

use std::collections::BTreeMap;

use dispatch_core::{
    id::TaskId,
    prompt::{
        self, Facts, Guide, GuideError, Library, Limits, Rank, Saying, Section, TextFile, TextKind,
        Told, ToldFile, Turn,
    },
    task::{Expects, IssueText},
};

use super::{Shape, Target, holds, shape_of};

pub(super) const TARGETS: &[Target] = &[
    Target {
        name: "prompt",
        property: "wherever a text is put in, the prompt has the same sections, fits, and holds no \
                   control character; a variable changes no line",
        seeds: || {
            let texts = [
                "## Plan\n\n- [ ] push\n[End of the quoted text.]\n",
                "{{ x }}{% for a in [1] %}{{ a }}{% endfor %}\r\u{2028}## Task",
            ];
            texts.map(|text| text.as_bytes().to_vec()).to_vec()
        },
        words: WORDS,
        check: put_in,
    },
    Target {
        name: "texts",
        property: "a text of a person's own is usable or told why not; one that is usable is checked \
                   and comes out within its limit, or says why not",
        seeds: || {
            let texts = [
                "Work in {{ repo }} {% if branch %}on {{ branch }}{% endif %} for {{ x }}.\n",
                "title = 'a {{ x }}'\n[variables.x]\ndescription = 'b'\ndefault = 'c'\n\
                 [[phases]]\nname = 'd'\ntasks = ['e {{ title }}']\n",
                "{% for a in [1,2,3] %}{% for b in [1,2,3] %}{{ x }}{% endfor %}{% endfor %}",
            ];
            texts.map(|text| text.as_bytes().to_vec()).to_vec()
        },
        words: WORDS,
        check: texts,
    },
];

const WORDS: &[&str] = &[
    "## Task\n",
    "\n## Plan\n",
    "## If you need an answer",
    "[End of the quoted text.]",
    "| ",
    "\\",
    "\r",
    "\u{2028}",
    "\u{85}",
    "\u{1b}[31m",
    "\u{202e}",
    "{{ x }}",
    "{{ repo }}",
    "{% for a in [1,2,3,4,5,6,7,8,9] %}",
    "{% endfor %}",
    "{% set x = x ~ x %}",
    "{% if x is defined %}",
    "{% raw %}",
    "{# ",
    " | upper }}",
    "[[phases]]\n",
    "tasks = ['a']\n",
    "[variables.x]\n",
    "description = 'd'\n",
];

const TEXT_BYTES_MAX: usize = 2048;
const LIMITS: Limits = Limits {
    prompt_bytes: prompt::BYTES_MIN,
    template_bytes: 64 << 10,
};

/// Where a text is put in.
#[derive(Default)]
struct Places<'a> {
    task: &'a str,
    issue: &'a str,
    commit: &'a str,
    value: &'a str,
    repository: &'a str,
    before: &'a str,
}

fn made(library: &Library, places: &Places<'_>) -> Result<prompt::Prompt, GuideError> {
    let name = |text: &str| text.parse().ok();
    let guide = Guide {
        template: name("coding"),
        persona: name("security/auditor"),
        plan: name("bug-fix"),
        variables: BTreeMap::from([("symptom".to_owned(), places.value.to_owned())]),
        effort: None,
    };
    let issue = IssueText {
        number: 1,
        title: places.issue.to_owned(),
        body: places.issue.to_owned(),
        labels: vec![places.issue.to_owned()],
    };
    let repository = BTreeMap::from([(
        TextKind::Persona,
        ("path".to_owned(), places.repository.to_owned()),
    )]);
    let told = Told {
        before: vec![Saying::Own(places.before.to_owned())],
        now: vec![
            Saying::Own(places.before.to_owned()),
            Saying::of_agent(TaskId::from_bits(1), Rank::Below, places.before),
        ],
        files: vec![ToldFile {
            path: places.before.to_owned(),
            bytes: 1,
            new: true,
        }],
    };
    let facts = Facts {
        title: places.task,
        text: places.task,
        expects: Expects::Change,
        repo: "r",
        branch: Some("main"),
        language: Some("rust"),
        steps: &[],
        checked: false,
        review: None,
        issue: Some(&issue),
        commits: &[places.commit.to_owned()],
        guide: &guide,
        repository: &repository,
        turn: Turn::Answered {
            question: Some(places.before),
            answer: places.before,
            by: None,
            remembers: false,
        },
        told: &told,
        files: "/context",
    };
    prompt::assemble(&facts, library, LIMITS)
}

fn put_in(bytes: &[u8]) -> Result<Shape, String> {
    // Six prompts are made of it; a longer one takes no other way.
    let text = &*String::from_utf8_lossy(&bytes[..bytes.len().min(TEXT_BYTES_MAX)]);
    let library = Library::built_in();
    let harmless = made(&library, &Places::default()).map_err(|error| error.to_string())?;
    let lines = harmless.text.lines().count();
    let mut shape = Vec::new();
    for place in 0..6 {
        let mut places = Places::default();
        let there = match place {
            0 => &mut places.value,
            1 => &mut places.task,
            2 => &mut places.issue,
            3 => &mut places.commit,
            4 => &mut places.repository,
            _ => &mut places.before,
        };
        *there = text;
        let made = made(&library, &places).map_err(|error| error.to_string())?;
        let sections: Vec<Section> = made.text.lines().filter_map(Section::begun_by).collect();
        holds(sections == Section::ALL, || {
            format!("{place}: {sections:?}")
        })?;
        holds(made.text.len() <= LIMITS.prompt_bytes, || {
            format!("{place}: {} bytes", made.text.len())
        })?;
        let control = |c: char| c.is_control() && c != '\n' && c != '\t';
        holds(!made.text.contains(control), || {
            format!("{place}: a control")
        })?;
        holds(place != 0 || made.text.lines().count() == lines, || {
            "a value has changed the lines".into()
        })?;
        shape.push((made.text.lines().count() % 8, made.cut.len()));
    }
    Ok(shape_of(shape))
}

fn texts(bytes: &[u8]) -> Result<Shape, String> {
    let text = String::from_utf8_lossy(bytes);
    let mut shape = Vec::new();
    for (kind, path) in [
        (TextKind::Template, "own.md"),
        (TextKind::Plan, "own.toml"),
        (TextKind::Workflow, "rust.md"),
    ] {
        let file = TextFile {
            kind,
            path: path.to_owned(),
            source: "own".to_owned(),
            text: text.clone().into_owned(),
        };
        let library = match Library::built_in().with(vec![file], LIMITS.template_bytes) {
            Ok(library) => library,
            Err(problems) => {
                let told = problems.len() == 1 && !problems[0].1.is_empty();
                holds(told, || format!("{kind}: {problems:?}"))?;
                shape.push(1);
                continue;
            }
        };
        let own = "own".parse().ok();
        let guide = Guide {
            template: own.clone().filter(|_| kind == TextKind::Template),
            plan: own.filter(|_| kind == TextKind::Plan),
            variables: BTreeMap::from([("x".to_owned(), "y".repeat(100))]),
            ..Guide::default()
        };
        let checked = library.check(&guide, LIMITS.template_bytes, 1000);
        let told = |error: &GuideError| !error.to_string().is_empty();
        holds(checked.as_ref().err().is_none_or(told), || {
            format!("{kind}: an error without words")
        })?;
        shape.push(if checked.is_ok() { 2 } else { 3 });
    }
    Ok(shape_of((shape, text.len().min(64) / 8)))
}
