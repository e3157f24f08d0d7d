//! What a person writes: settings, names, task texts.
//! Must not check what a good setting is; only that every bad one is told, and where.

use std::collections::BTreeSet;

use dispatch_core::{
    config::{self, DEFAULTS_TOML, Layer},
    id::{AgentName, RunId, TaskId, WorkspaceName, slug},
    job::Part,
    task::title_of,
};
use dispatch_engine::git::RefName;

use super::{Shape, Target, holds, shape_of};

pub(super) const TARGETS: &[Target] = &[
    Target {
        name: "config",
        property: "settings, or problems that each name a place that is there; laid twice, the same",
        seeds: config_seeds,
        words: CONFIG_WORDS,
        check: settings,
    },
    Target {
        name: "names",
        property: "a name reads back as it was; what is made of free text fits a path and a branch",
        seeds: || {
            let texts = [
                "00000000000000ff",
                "00000000000000ff-12",
                "claude-3.5_x",
                "check.rust",
                "Fix the failing test in parser.rs\nmore",
                "\u{65e5}\u{672c} \u{130}\u{df}",
            ];
            texts.map(|text| text.as_bytes().to_vec()).to_vec()
        },
        words: &[
            "agent", "seal", "sidecar", "check.", "..", "-0", "+1", "-00", "\u{130}",
        ],
        check: names,
    },
];

const CONFIG_WORDS: &[&str] = &[
    "[agents.x]\n",
    "[agents.\"a.b\"]\n",
    "[checks.x]\n",
    "[pools.p]\n",
    "[limits]\n",
    "[task]\n",
    "[[checks.x.steps]]\n",
    "driver = \"plain\"\n",
    "program = \"p\"\n",
    "pool = \"main\"\n",
    "placement = \"host\"\n",
    "slots = 9223372036854775807\n",
    "wall_clock_s = 9223372036854775807\n",
    "idle_s = -1\n",
    "env.K = { from = \"K\", optional = true }\n",
    "env = { \"a.b\" = \"c\" }\n",
    "\"\" = 1\n",
    "a.b.c = 1\n",
    "'''",
    "\"\"\"",
    "inf",
    "nan",
    "1979-05-27T07:32:00Z",
    "agent = \"x\"\n",
    "= {}",
    "= []",
];

fn config_seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = [
        "[agents.x]\ndriver = \"plain\"\nprogram = \"p\"\npool = \"p\"\nplacement = \"host\"\n\
         env.K = { from = \"K\" }\n[pools.p]\nslots = 1\n[task]\nagent = \"x\"\n",
        "[agents.\"claude-3.5\"]\ndriver = \"claude\"\nprogram = \"c\"\npool = \"p.q\"\n\
         placement = \"host\"\n[pools.\"p.q\"]\nslots = 2\n",
        "[limits]\nwall_clock_s = 9223372036854775807\ngrace_s = 9223372036854775807\n",
        "[limits]\nwall_clock = 3\n[agents.y]\ndriver = \"telepathy\"\n[nonsense]\na = 1\n",
        "\"a.b\" = 1\n[checks.x]\nrank = 1\nmarkers = [{ file = \"M\" }]\n\
         steps = [{ name = \"s\", argv = [\"a\"] }]\n",
        "limits = 3\nagents = []\n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec();
    // The defaults, table by table: whole they would make every mutant long.
    let mut table = String::new();
    for line in DEFAULTS_TOML.lines() {
        if line.starts_with('[') && !line.starts_with("[[") && !table.is_empty() {
            seeds.push(std::mem::take(&mut table).into_bytes());
        }
        if !line.starts_with('#') {
            table.push_str(line);
            table.push('\n');
        }
    }
    seeds.push(table.into_bytes());
    seeds
}

/// Every place there is, as a path of keys.
fn places(table: &toml::Table, above: &[String], all: &mut BTreeSet<Vec<String>>) {
    for (key, value) in table {
        let mut path = above.to_vec();
        path.push(key.clone());
        if let toml::Value::Table(inner) = value {
            places(inner, &path, all);
        }
        all.insert(path);
    }
}

fn settings(bytes: &[u8]) -> Result<Shape, String> {
    let text = String::from_utf8_lossy(bytes);
    let layer = Layer {
        source: "fuzz.toml",
        text: &text,
    };
    let once = config::load(&[layer]);
    let twice = config::load(&[layer, layer]);
    match (&once, &twice) {
        (Ok(one), Ok(two)) => holds(one == two, || "laid twice it is another".into())?,
        (Err(_), Err(_)) => {}
        _ => return Err("laid twice it is good where once it is not".into()),
    }
    let table = text.parse::<toml::Table>();
    if let Ok(table) = &table {
        let all_tables = table.values().all(toml::Value::is_table);
        holds(once.is_err() || all_tables, || {
            "a value was passed over".into()
        })?;
    }
    match once {
        Ok((config, sourced)) => {
            if let Ok(table) = &table {
                kept(table, "agents", &|name| {
                    config.agents.keys().any(|k| k.as_str() == name)
                })?;
                kept(table, "pools", &|name| {
                    config.pools.keys().any(|k| k.as_str() == name)
                })?;
                kept(table, "checks", &|name| {
                    config.checks.keys().any(|k| k.as_str() == name)
                })?;
            }
            for row in &sourced {
                let whole = !row.key.is_empty() && !row.value.is_empty();
                holds(whole, || format!("{row:?} is in force"))?;
            }
            // What is made of the numbers must not overflow.
            let jobs = [config.limits.agent_job(), config.limits.check_job()];
            for job in jobs {
                holds(job.wall_clock_ms > 0 && job.idle_ms > 0, || {
                    format!("{job:?}: nothing could run")
                })?;
            }
            Ok(shape_of((
                0,
                config.agents.len(),
                config.checks.len(),
                config.pools.len(),
            )))
        }
        Err(problems) => {
            holds(!problems.is_empty(), || "bad, but without a problem".into())?;
            let mut known = BTreeSet::new();
            for text in [DEFAULTS_TOML, &text] {
                if let Ok(table) = text.parse::<toml::Table>() {
                    places(&table, &[], &mut known);
                }
            }
            for problem in &problems {
                let told = !problem.at.is_empty() && !problem.what.trim().is_empty();
                let place = problem.at == "the file" || is_place(&problem.at, &known);
                let from = matches!(problem.source.as_str(), "fuzz.toml" | "defaults");
                holds(told && place && from, || {
                    format!("{problem:?} names no place that is there")
                })?;
            }
            let kinds: BTreeSet<&str> = problems
                .iter()
                .filter_map(|problem| problem.what.split(['`', '"', '\n']).next())
                .collect();
            Ok(shape_of((1, kinds)))
        }
    }
}

/// A table without a key, or with nothing but such tables.
fn says_nothing(value: &toml::Value) -> bool {
    let table = value.as_table();
    table.is_some_and(|table| table.values().all(says_nothing))
}

/// Every name that the text has is there.
fn kept(table: &toml::Table, of: &str, there: &dyn Fn(&str) -> bool) -> Result<(), String> {
    for (name, value) in table
        .get(of)
        .and_then(toml::Value::as_table)
        .into_iter()
        .flatten()
    {
        holds(says_nothing(value) || there(name), || {
            format!("{of} {name:?} is lost")
        })?;
    }
    Ok(())
}

/// A problem's place is written as TOML writes a dotted key.
fn is_place(at: &str, known: &BTreeSet<Vec<String>>) -> bool {
    // TOML itself reads it: `at = 1` makes one leaf at that path.
    let Ok(table) = format!("{at} = 1").parse::<toml::Table>() else {
        return false;
    };
    let mut one = BTreeSet::new();
    places(&table, &[], &mut one);
    one.iter()
        .max_by_key(|path| path.len())
        .is_some_and(|path| known.contains(path))
}

fn names(bytes: &[u8]) -> Result<Shape, String> {
    let text = String::from_utf8_lossy(bytes);
    let task = text.parse::<TaskId>();
    let run = text.parse::<RunId>();
    let part = text.parse::<Part>();
    let agent = text.parse::<AgentName>();
    let back = [
        task.as_ref().ok().map(ToString::to_string),
        part.as_ref().ok().map(ToString::to_string),
        agent.as_ref().ok().map(ToString::to_string),
    ];
    for back in back.iter().flatten() {
        holds(*back == text, || format!("{text:?} became {back:?}"))?;
    }
    if let Ok(run) = run {
        // Only one text may mean a run, or two folders could.
        holds(run.to_string() == text, || format!("{text:?} became {run}"))?;
    }
    let slug = slug(&text, 24);
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    holds(
        slug.len() <= 24 && !slug.starts_with('-') && slug.bytes().all(plain),
        || format!("{slug:?} is a slug"),
    )?;
    let branch = format!("dispatch/{slug}-0123");
    RefName::branch(&branch).map_err(|e| e.to_string())?;
    format!("{slug}-0123")
        .parse::<WorkspaceName>()
        .map_err(|e| e.to_string())?;
    let title = title_of(&text);
    let short = title.chars().count() <= 72 && !title.contains(char::is_control);
    holds(short && !title.is_empty(), || {
        format!("{title:?} is a title")
    })?;
    Ok(shape_of((
        [task.is_ok(), run.is_ok(), part.is_ok(), agent.is_ok()],
        slug.len() / 6,
        title.len().min(80) / 16,
    )))
}
