//! A repository that lacks an object and names a command to fetch it with: whoever only looks at it
//! runs nothing of it. Must not need a network.

use std::{fs, path::Path, process::Command};

use serde_json::json;

use super::{
    wire::{Door, ask, token},
    world::TestWorld,
};

/// Has git run a command for the object that HEAD names, and takes that object away.
fn arm(world: &TestWorld, canary: &Path) {
    let fire = format!("touch '{}'; git-upload-pack", canary.display());
    let origin = world.path("origin");
    world.git(&["clone", "-q", "--bare", ".", origin.to_str().unwrap()]);
    let url = format!("file://{}", origin.display());
    for (key, value) in [
        ("core.repositoryFormatVersion", "1"),
        ("extensions.partialClone", "origin"),
        ("remote.origin.url", url.as_str()),
        ("remote.origin.promisor", "true"),
        ("remote.origin.uploadpack", fire.as_str()),
        ("protocol.file.allow", "always"),
    ] {
        world.git(&["config", key, value]);
    }
    take_away(world);
}

fn take_away(world: &TestWorld) {
    let id = fs::read_to_string(world.repo().join(".git/refs/heads/main")).unwrap();
    let (dir, file) = id.trim().split_at(2);
    let object = world.repo().join(".git/objects").join(dir).join(file);
    fs::remove_file(object).unwrap();
}

#[test]
fn a_repository_that_is_looked_at_fetches_nothing_by_a_command_of_its_own() {
    let world = TestWorld::new();
    let canary = world.path("canary");
    arm(&world, &canary);
    // The trap is live: git by itself springs it, and has the object then.
    let plain = Command::new("git")
        .args(["rev-parse", "--verify", "HEAD^{commit}"])
        .current_dir(world.repo())
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .output();
    plain.unwrap();
    assert!(canary.exists());
    fs::remove_file(&canary).unwrap();
    for entry in fs::read_dir(world.repo().join(".git/objects/pack")).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }

    let reader = token(&world, &["--scope", "read,answer,admin"]);
    let door = Door::open(&world);
    let repo = world.repo();
    let body = json!({ "task": "look", "repo": repo, "agent": "scripted" });
    door.post("/v1/plan", &body);
    assert!(!canary.exists(), "a plan");
    // Who may only read reads no repository by it.
    let asked = ask(
        &door.address,
        "POST /v1/plan",
        &[&reader],
        &body.to_string(),
    );
    assert_eq!(asked.refusal(), (403, "wrong_scope".into()));
    door.close().exits(0);

    world.dispatch(&["run", "--dry-run", "> say hi"]);
    assert!(!canary.exists(), "a dry run");
    world.dispatch(&["run", "--no-checks", "> say hi"]);
    assert!(!canary.exists(), "a task");
}
