//! Reviews: a range of commits in, a verdict and findings out; silence, limits and changed files are
//! never a pass. With the fake agent, a scripted CodeRabbit (its CLI cannot be installed here: it is
//! in no package registry), and the real Codex where `DISPATCH_TEST_AGENTS` names it.
//! Must not sleep.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests; a failure is a failed test"
)]

mod world;

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf};

use dispatch_core::{
    event::Verified,
    outcome::{Failure, Outcome},
    review::{Severity, Verdict},
    task::{ChecksAsked, Expects, TaskSpec},
};
use serde_json::json;
use world::{World, git, model::Model, outcome, reason, run};

const PASS: &str = r#"{"verdict":"pass","findings":[],"note":"fine"}"#;
const FAIL: &str = r#"{"verdict":"fail","findings":[{"severity":"critical","file":"README.md","line":1,"text":"wrong"}],"note":"no"}"#;

/// Two commits more than the first one.
fn world(extra: &str) -> World {
    let world = World::with(extra);
    world.commit("a.txt", "a\n");
    world.commit("b.txt", "b\n");
    world
}

fn review(world: &World, base: Option<&str>, orders: &[&str]) -> TaskSpec {
    TaskSpec {
        expects: Expects::Review,
        checks: ChecksAsked::None,
        review_base: base.map(str::to_owned),
        ..world.spec(orders)
    }
}

fn says<'a>(json: &'a str, say: &'a mut Vec<String>) -> Vec<&'a str> {
    *say = vec![
        "say ```review".into(),
        format!("say {json}"),
        "say ```".into(),
    ];
    say.iter().map(String::as_str).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verdict_and_its_findings_are_kept() {
    let world = world("");
    let engine = world.engine().await;
    let mut say = Vec::new();

    let view = run(&engine, review(&world, None, &says(PASS, &mut say))).await;
    assert_eq!(outcome(&view).word(), "completed", "{}", reason(&view));
    let last = view.task.last_run().unwrap();
    assert_eq!(last.verified, Verified::Yes);
    let kept = last.review.clone().unwrap();
    assert_eq!(kept.verdict, Verdict::Pass);
    let commit = |rev: &str| git(&world.repo(), &["rev-parse", rev]).trim().to_owned();
    assert_eq!(kept.range.base, commit("HEAD~1"));
    assert_eq!(kept.range.head, commit("HEAD"));

    let view = run(
        &engine,
        review(&world, Some("HEAD~2"), &says(FAIL, &mut say)),
    )
    .await;
    let failed = matches!(
        outcome(&view),
        Outcome::Failed(Failure::Review { findings: 1, .. })
    );
    assert!(failed, "{}", reason(&view));
    let last = view.task.last_run().unwrap();
    assert_eq!(last.verified, Verified::No);
    let kept = last.review.clone().unwrap();
    assert_eq!(kept.range.base, commit("HEAD~2"));
    assert_eq!(kept.findings[0].severity, Severity::Critical);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_verdict_is_no_pass() {
    let world = world("");
    let engine = world.engine().await;
    let mut say = Vec::new();
    let view = run(&engine, review(&world, None, &["say LGTM, no issues"])).await;
    let none = matches!(outcome(&view), Outcome::Failed(Failure::NotReviewed { .. }));
    assert!(none, "{}", reason(&view));
    assert_eq!(
        view.task.last_run().unwrap().verified,
        Verified::NotVerified
    );

    let mut orders = says(PASS, &mut say);
    orders.push("write README.md changed");
    let view = run(&engine, review(&world, None, &orders)).await;
    assert_eq!(*outcome(&view), Outcome::Failed(Failure::ReviewChanged));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_that_is_not_there_is_named_before_anything_runs() {
    let world = world("");
    let engine = world.engine().await;
    git(&world.repo(), &["branch", "old", "HEAD~2"]);
    git(&world.repo(), &["tag", "-a", "v1", "-m", "one", "HEAD~1"]);
    let mut say = Vec::new();
    let orders = says(PASS, &mut say);
    for (rev, commit) in [("old", "HEAD~2"), ("v1", "HEAD~1"), ("HEAD^^", "HEAD~2")] {
        let view = run(&engine, review(&world, Some(rev), &orders)).await;
        let kept = view.task.last_run().unwrap().review.clone().unwrap();
        let want = git(&world.repo(), &["rev-parse", commit]);
        assert_eq!(kept.range.base, want.trim(), "{rev}");
    }
    for rev in [
        "HEAD~9", "nowhere", "--all", "HEAD@{1}", ":/first", "a..b", "",
    ] {
        let view = run(&engine, review(&world, Some(rev), &orders)).await;
        let refused = matches!(outcome(&view), Outcome::Failed(Failure::Prepare { reason }) if reason.contains("in the history of"));
        assert!(refused, "{rev:?}: {}", reason(&view));
        assert!(view.task.last_run().unwrap().started_at.is_none());
    }
}

/// A program in the place of CodeRabbit's that says what its documentation says.
fn rabbit(world: &World, lines: &[&str], code: u8) -> PathBuf {
    let path = world.home.path().join("coderabbit");
    let mut script = String::from("#!/bin/sh\necho \"$@\" > \"$HOME/argv\"\n");
    for line in lines {
        script.push_str(&format!("cat <<'EOF'\n{line}\nEOF\n"));
    }
    script.push_str(&format!("exit {code}\n"));
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn coderabbit_is_clean_only_when_it_says_that_it_is_complete() {
    let complete = r#"{"type":"complete","status":"review_completed","findings":0}"#;
    let limit = r#"{"type":"error","errorType":"rate_limit","message":"Rate limit exceeded","metadata":{"waitTime":"7 minutes"}}"#;
    let found = r#"{"type":"finding","severity":"major","fileName":"a.txt","codegenInstructions":"Do not"}"#;
    for (lines, code, word, verdict) in [
        (
            vec![r#"{"type":"heartbeat"}"#, complete],
            0,
            "completed",
            Some(Verdict::Pass),
        ),
        (vec![found, complete], 0, "failed", Some(Verdict::Fail)),
        (
            vec![limit, r#"{"type":"complete","findings":0}"#],
            0,
            "failed",
            None,
        ),
        (vec![limit], 1, "failed", None),
        (vec![], 0, "failed", None),
    ] {
        let world = world("");
        let program = rabbit(&world, &lines, code);
        let world = World {
            config: World::with(&format!(
                "[agents.coderabbit]\nprogram = {program:?}\npool = \"test\"\nplacement = \"host\"\n"
            ))
            .config,
            ..world
        };
        let engine = world.engine().await;
        let mut spec = review(&world, None, &[]);
        spec.agent = "coderabbit".parse().unwrap();
        spec.text = "Review the changes".into();
        let view = run(&engine, spec).await;
        let last = view.task.last_run().unwrap();
        assert_eq!(outcome(&view).word(), word, "{lines:?} {}", reason(&view));
        let got = last.review.as_ref().map(|review| review.verdict);
        assert_eq!(got, verdict, "{lines:?}");
        let range = last.range.clone().unwrap();
        let home = world.data().join(format!("tasks/{}/home", view.task.id));
        let argv = fs::read_to_string(home.join("argv")).unwrap();
        let want = format!("review --agent --committed --base-commit {}", range.base);
        assert_eq!(argv.trim(), want);
        if lines.contains(&limit) {
            let limited = matches!(
                outcome(&view),
                Outcome::Failed(Failure::RateLimited {
                    retry_at: Some(_),
                    ..
                })
            );
            assert!(limited, "{}", reason(&view));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn codex_reviews() {
    let Some(folder) = std::env::var_os("DISPATCH_TEST_AGENTS") else {
        eprintln!("SKIPPED: a review by the real Codex: DISPATCH_TEST_AGENTS is not set");
        return;
    };
    let (npm, triple) = match std::env::consts::ARCH {
        "aarch64" => ("arm64", "aarch64"),
        _ => ("x64", "x86_64"),
    };
    let program = PathBuf::from(folder).join(format!(
        "node_modules/@openai/codex-linux-{npm}/vendor/{triple}-unknown-linux-musl/bin/codex"
    ));
    let said = format!("I read it.\n\n```review\n{FAIL}\n```");
    let model = Model::start(&json!([
        {"tool": "shell", "command": "git diff --stat HEAD~2 HEAD"},
        {"text": said}
    ]));
    let url = &model.url;
    let world = world(&format!(
        "[agents.codex-review]\nprogram = {program:?}\npool = \"test\"\nargs = [\"-m\", \"any\", \
         \"-c\", \"model_provider=fake\", \"-c\", '''model_providers.fake={{name=\"F\",\
         base_url=\"{url}/v1\",wire_api=\"responses\",env_key=\"FAKE_KEY\"}}''']\n\
         [agents.codex-review.env]\nFAKE_KEY = \"x\"\n"
    ));
    let engine = world.engine().await;
    let mut spec = review(&world, Some("HEAD~2"), &[]);
    spec.agent = "codex-review".parse().unwrap();
    spec.text = "Review the changes".into();
    let view = run(&engine, spec).await;
    let last = view.task.last_run().unwrap();
    let review = last.review.clone().unwrap();
    assert_eq!(review.verdict, Verdict::Fail, "{}", reason(&view));
    // Git works for it, and what it asked for is in the model's next request.
    let asked = model.asked();
    assert!(
        asked[1]["prompt"].as_str().unwrap().contains("b.txt"),
        "{}",
        asked[1]
    );
    assert!(
        asked[0]["prompt"]
            .as_str()
            .unwrap()
            .contains(&review.range.base)
    );
}
