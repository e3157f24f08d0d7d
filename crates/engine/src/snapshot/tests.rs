//! Hostile and odd workspaces, with real git.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use super::*;
use crate::files;
use crate::git::RefName;
use crate::testing::{Repo, World};
use crate::vault::Applied;
use crate::workspace::{Head, META_INDEX, agent_head};

fn names(left: &[LeftOut], why: Why) -> Vec<String> {
    let named = left.iter().filter(|l| l.why == why);
    named
        .map(|l| l.path.to_string_lossy().into_owned())
        .collect()
}

fn sealing<'a>(
    run: &'a str,
    head: Option<&'a CommitId>,
    author: &'a crate::vault::Author,
) -> Seal<'a> {
    Seal {
        task: "t1",
        run,
        head,
        message: "the rest\n",
        author,
    }
}

#[test]
fn an_untouched_workspace_is_the_base() {
    let world = World::new(&[
        ("a.txt", b"one"),
        ("d/b.txt", b"two"),
        ("BLOCKED.md", b"base's"),
    ]);
    world.prepare("w");
    let taken = world.snapshot("w");
    assert!(!taken.changed && taken.left_out.is_empty() && taken.blobs_tar.is_none());
    let sealed = seal(&world.vault, &taken, &sealing("r", None, &World::author())).unwrap();
    assert_eq!(sealed.commit, world.base);
    assert_eq!(sealed.stat.files, 0);
}

#[test]
fn changes_of_every_kind_are_taken() {
    let world = World::new(&[
        ("same.txt", b"same"),
        ("edit.txt", b"old!"),
        ("gone.txt", b"x"),
        ("dir/gone.txt", b"x"),
        ("file-to-dir", b"x"),
        ("dir-to-file/a", b"x"),
        ("dir-to-link/a", b"x"),
        ("mode.sh", b"#!/bin/sh\n"),
    ]);
    let repo = world.prepare("w");
    // The same size within the same second: only the index's own time tells.
    repo.write("edit.txt", b"new!");
    repo.write("new dir/n\nl.txt", b"n");
    fs::remove_file(repo.0.join("gone.txt")).unwrap();
    fs::remove_dir_all(repo.0.join("dir")).unwrap();
    fs::remove_file(repo.0.join("file-to-dir")).unwrap();
    repo.write("file-to-dir/in", b"in");
    fs::remove_dir_all(repo.0.join("dir-to-file")).unwrap();
    repo.write("dir-to-file", b"f");
    fs::remove_dir_all(repo.0.join("dir-to-link")).unwrap();
    symlink("/etc", repo.0.join("dir-to-link")).unwrap();
    fs::set_permissions(repo.0.join("mode.sh"), fs::Permissions::from_mode(0o755)).unwrap();
    let taken = world.snapshot("w");
    assert!(taken.changed);
    let listed = world.in_vault(&["ls-tree", "-r", taken.tree.as_str()]);
    assert!(
        listed.contains("120000") && listed.contains("100755"),
        "{listed}"
    );
    assert_eq!(
        world.paths(&taken.tree),
        [
            "dir-to-file",
            "dir-to-link",
            "edit.txt",
            "file-to-dir/in",
            "mode.sh",
            "\"new dir/n\\nl.txt\"",
            "same.txt"
        ]
    );
    let edited = format!("{}:edit.txt", taken.tree);
    assert_eq!(world.in_vault(&["cat-file", "blob", &edited]), "new!");
}

#[test]
fn nothing_planted_by_the_agent_runs() {
    let world = World::new(&[("a.txt", b"one"), (".gitignore", b"*.o\n")]);
    let repo = world.prepare("w");
    let canary = world.temp.path().join("canary");
    let script = world.dest("w").join("evil.sh");
    fs::write(
        &script,
        format!("#!/bin/sh\ntouch {}\ncat\n", canary.display()),
    )
    .unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let evil = script.to_str().unwrap();
    repo.write("a.txt", b"mine");
    repo.run(&["add", "a.txt"]);
    repo.run(&["commit", "-q", "-m", "agent"]);
    for key in [
        "core.fsmonitor",
        "core.sshCommand",
        "core.pager",
        "core.editor",
        "core.askPass",
        "core.alternateRefsCommand",
        "diff.external",
        "diff.x.textconv",
        "diff.x.command",
        "filter.x.clean",
        "filter.x.smudge",
        "filter.x.process",
        "filter.lfs.process",
        "merge.x.driver",
        "gpg.program",
        "credential.helper",
        "uploadpack.packObjectsHook",
        "alias.bundle",
    ] {
        repo.run(&["config", key, evil]);
    }
    repo.run(&["config", "filter.x.required", "true"]);
    repo.run(&["config", "commit.gpgSign", "true"]);
    let hooks = repo.0.join(".git/hooks");
    fs::create_dir_all(&hooks).unwrap();
    for hook in [
        "post-checkout",
        "pre-commit",
        "reference-transaction",
        "post-index-change",
        "pre-auto-gc",
    ] {
        fs::copy(&script, hooks.join(hook)).unwrap();
    }
    repo.write(
        ".gitattributes",
        b"* filter=x diff=x merge=x\n*.txt filter=lfs\n",
    );
    repo.write(".git/info/attributes", b"* filter=x diff=x\n");
    repo.write("b.txt", b"new");

    let head = world.import("w");
    let taken = world.snapshot("w");
    let author = World::author();
    let sealed = seal(&world.vault, &taken, &sealing("r", Some(&head), &author)).unwrap();
    let patch = world.vault.diff(&world.base, &sealed.commit).unwrap();
    assert!(String::from_utf8_lossy(&patch.text).contains("+mine"));
    let branch = RefName::branch("result").unwrap();
    world
        .vault
        .apply_into(&world.upstream.0, &sealed.commit, &branch)
        .unwrap();
    fs::remove_dir_all(world.dest("w")).unwrap();
    restore(
        &world.vault,
        &sealed.snapshot,
        &world.branch,
        &world.dest("w"),
        &world.meta("w"),
    )
    .unwrap();
    assert!(!canary.exists());
    let stored = format!("{}:b.txt", taken.tree);
    assert_eq!(world.in_vault(&["cat-file", "blob", &stored]), "new");
}

#[test]
fn only_the_bases_ignore_rules_count() {
    let world = World::with(|up| {
        up.write(".gitignore", b"*.o\n/target/\nkept/\n");
        up.write("kept/tracked.txt", b"1");
        up.write("forced.o", b"1");
        up.write("sub/.gitignore", b"!ok.o\n");
    });
    let repo = world.prepare("w");
    repo.write(".gitignore", b"*\n");
    repo.write("work.txt", b"w");
    repo.write("x.o", b"o");
    repo.write("sub/ok.o", b"o");
    repo.write("target/deep/er", b"t");
    repo.write("kept/tracked.txt", b"2");
    repo.write("kept/other.txt", b"o");
    repo.write("forced.o", b"2");
    let taken = world.snapshot("w");
    assert_eq!(
        world.paths(&taken.tree),
        [
            ".gitignore",
            "forced.o",
            "kept/tracked.txt",
            "sub/.gitignore",
            "sub/ok.o",
            "work.txt"
        ]
    );
    assert_eq!(
        names(&taken.left_out, Why::Ignored),
        ["kept/other.txt", "target", "x.o"]
    );
    let changed = world.vault.diffstat(&world.base, &taken.tree).unwrap();
    assert_eq!(changed.files, 5);
    assert!(!changed.paths.contains(&"sub/.gitignore".to_owned()));
}

#[test]
fn the_agents_attributes_do_not_count_and_the_bases_cannot_fail_us() {
    let world = World::with(|up| {
        up.write(
            ".gitattributes",
            b"*.crlf text eol=crlf\n*.u16 working-tree-encoding=UTF-16\n",
        );
        up.write("a.crlf", b"x\n");
    });
    let repo = world.prepare("w");
    assert_eq!(fs::read(repo.0.join("a.crlf")).unwrap(), b"x\r\n");
    repo.write("b.crlf", b"y\r\n");
    repo.write(".gitattributes", b"* ident text eol=lf\n");
    repo.write("c.txt", b"$Id: 1$\r\n");
    let taken = world.snapshot("w");
    let blob = |path: &str| {
        let out = Repo(world.vault.dir().to_owned())
            .command(&["cat-file", "blob", &format!("{}:{path}", taken.tree)])
            .output();
        out.unwrap().stdout
    };
    assert_eq!(blob("b.crlf"), b"y\n");
    assert_eq!(blob("c.txt"), b"$Id: 1$\r\n");
    repo.write("bad.u16", b"odd");
    let taken = world.snapshot("w");
    assert!(world.paths(&taken.tree).contains(&"bad.u16".to_owned()));
}

#[test]
fn nested_repositories_and_odd_names_are_kept() {
    let world = World::new(&[("a.txt", b"one")]);
    let repo = world.prepare("w");
    let nested = Repo::init(repo.0.join("nested"));
    nested.commit("n.txt", b"nested", "n");
    repo.write(".GIT/config", b"[core]\n\tfsmonitor = /bin/false\n");
    repo.write("x/.Git", b"gitdir: /elsewhere\n");
    repo.write("git~1", b"short name");
    symlink("/etc/passwd", repo.0.join(".gitmodules")).unwrap();
    let raw = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"bad\xff\x01.txt");
    fs::write(repo.0.join(raw), b"raw").unwrap();
    let taken = world.snapshot("w");
    assert!(taken.left_out.is_empty(), "{:?}", taken.left_out);
    assert!(taken.blobs_tar.is_some());
    let paths = world.paths(&taken.tree);
    assert!(paths.contains(&"nested/n.txt".to_owned()), "{paths:?}");
    assert!(
        !world
            .in_vault(&["ls-tree", "-r", taken.tree.as_str()])
            .contains("160000")
    );
    assert_eq!(paths.len(), 3, "{paths:?}");
    let before = picture(&repo.0);
    let kept = keep(&world.vault, &taken, None, "t1", "1", &World::author()).unwrap();
    fs::remove_dir_all(&repo.0).unwrap();
    restore(
        &world.vault,
        &kept.0,
        &world.branch,
        &repo.0,
        &world.meta("w"),
    )
    .unwrap();
    assert_eq!(picture(&repo.0), before);
    assert_eq!(nested.run(&["status", "--porcelain"]), "");
}

/// Every path but our own `.git`: kind, bits that matter, bytes.
fn picture(root: &Path) -> Vec<(PathBuf, u32, Vec<u8>)> {
    fn look(root: &Path, at: &Path, found: &mut Vec<(PathBuf, u32, Vec<u8>)>) {
        for entry in fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            if path == root.join(".git") {
                continue;
            }
            let meta = fs::symlink_metadata(&path).unwrap();
            let name = path.strip_prefix(root).unwrap().to_owned();
            if meta.is_dir() {
                found.push((name, 0, Vec::new()));
                look(root, &path, found);
            } else if meta.is_symlink() {
                let target = fs::read_link(&path).unwrap().into_os_string();
                found.push((name, 1, target.into_encoded_bytes()));
            } else {
                found.push((name, meta.mode() & 0o111 | 0o1000, fs::read(&path).unwrap()));
            }
        }
    }
    let mut found = Vec::new();
    look(root, root, &mut found);
    found.sort();
    found
}

#[test]
fn a_missing_or_lying_git_directory_changes_nothing() {
    let world = World::new(&[("a.txt", b"one")]);
    let secret = Repo::init(world.temp.path().join("secret"));
    let leaked = secret.commit("secret.txt", b"secret", "s");
    let repo = world.prepare("w");
    repo.write("b.txt", b"b");
    let text = format!("{}/.git/objects\n", secret.text());
    fs::write(repo.0.join(".git/objects/info/alternates"), text).unwrap();
    fs::write(
        repo.0.join(".git/refs/heads/dispatch/1"),
        format!("{leaked}\n"),
    )
    .unwrap();
    assert_eq!(
        agent_head(&repo.0, &world.base),
        Head::Moved(leaked.clone())
    );
    assert_eq!(world.paths(&world.snapshot("w").tree), ["a.txt", "b.txt"]);
    let known = Repo(world.vault.dir().to_owned())
        .command(&["cat-file", "-e", leaked.as_str()])
        .status()
        .unwrap();
    assert!(!known.success());
    fs::remove_dir_all(repo.0.join(".git")).unwrap();
    assert_eq!(agent_head(&repo.0, &world.base), Head::Missing);
    assert_eq!(world.paths(&world.snapshot("w").tree), ["a.txt", "b.txt"]);
    symlink(secret.0.join(".git"), repo.0.join(".git")).unwrap();
    assert_eq!(agent_head(&repo.0, &world.base), Head::Missing);
    assert_eq!(world.paths(&world.snapshot("w").tree), ["a.txt", "b.txt"]);
}

#[test]
fn symlinks_are_kept_and_never_followed() {
    let world = World::new(&[("d/a.txt", b"one")]);
    let outside = world.temp.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("a.txt"), b"outside").unwrap();
    let repo = world.prepare("w");
    fs::remove_dir_all(repo.0.join("d")).unwrap();
    symlink(&outside, repo.0.join("d")).unwrap();
    symlink("d/a.txt", repo.0.join("link")).unwrap();
    let taken = world.snapshot("w");
    assert_eq!(world.paths(&taken.tree), ["d", "link"]);
    world.workspaces.remove(&repo.0).unwrap();
    assert_eq!(fs::read(outside.join("a.txt")).unwrap(), b"outside");
}

/// Beside a thread that puts a link to a file of the host in the place of each file, and takes it
/// away again, as fast as it can.
#[test]
fn a_file_swapped_for_a_link_while_we_look_is_never_followed() {
    use std::sync::atomic::{AtomicBool, Ordering};
    const SECRET: &str = "only the host may read this: 0123456789 0123456789 0123456789\n";
    const FILES: usize = 400;
    let world = World::new(&[("a.txt", b"one")]);
    let secret = world.temp.path().join("secret");
    fs::write(&secret, SECRET).unwrap();
    let repo = world.prepare("w");
    let decoy = vec![b'd'; SECRET.len()];
    for n in 0..FILES {
        repo.write(&format!("decoys/{n}"), &decoy);
        symlink(&secret, repo.0.join(".git").join(n.to_string())).unwrap();
    }
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let link = |n: usize| repo.0.join(".git").join(n.to_string());
            let at = |n: usize| repo.0.join("decoys").join(n.to_string());
            let exchange = |n| {
                use rustix::fs::{CWD, RenameFlags, renameat_with};
                renameat_with(CWD, link(n), CWD, at(n), RenameFlags::EXCHANGE).unwrap();
            };
            while !over.load(Ordering::Relaxed) {
                (0..FILES).for_each(exchange);
            }
        });
        let stolen = (0..40).find_map(|_| {
            let taken = world.snapshot("w");
            let patch = world.vault.diff(&world.base, &taken.tree).unwrap();
            let text = String::from_utf8_lossy(&patch.text).into_owned();
            text.contains("only the host").then_some(text)
        });
        over.store(true, Ordering::Relaxed);
        assert_eq!(stolen, None);
    });
}

#[test]
fn limits_and_special_files_are_named_and_the_base_is_not_deleted() {
    let world = World::new(&[("big.bin", b"small"), ("a.txt", b"a")]);
    let repo = world.prepare("w");
    repo.write("big.bin", &[1; 5000]);
    repo.write("n1", &[1; 600]);
    repo.write("n2", &[1; 600]);
    repo.write("n3", b"x");
    repo.write("n4", b"x");
    let made = Command::new("mkfifo")
        .arg(repo.0.join("pipe"))
        .status()
        .unwrap();
    assert!(made.success());
    let limits = Limits {
        total_bytes: 1000,
        file_bytes: 4000,
        files: 2,
    };
    let taken = world.snapshot_within("w", &limits);
    assert_eq!(names(&taken.left_out, Why::TooLarge), ["big.bin"]);
    assert_eq!(names(&taken.left_out, Why::TotalFull), ["n2"]);
    assert_eq!(names(&taken.left_out, Why::TooMany), ["n4"]);
    assert_eq!(names(&taken.left_out, Why::Special), ["pipe"]);
    assert_eq!(world.paths(&taken.tree), ["a.txt", "big.bin", "n1", "n3"]);
    // What the agent committed is not taken back because we did not look at it.
    fs::remove_file(repo.0.join("pipe")).unwrap();
    let head = repo.commit_all("all of it");
    assert_eq!(world.import("w"), head);
    let taken = world.snapshot_within("w", &limits);
    let sealed = seal(
        &world.vault,
        &taken,
        &sealing("r", Some(&head), &World::author()),
    )
    .unwrap();
    assert_eq!(sealed.commit, head);
}

#[test]
fn deep_trees_end_somewhere() {
    let world = World::new(&[("a.txt", b"a")]);
    let repo = world.prepare("w");
    let deep = "d/".repeat(files::DEPTH_MAX + 20);
    repo.write(&format!("{deep}x"), b"x");
    let taken = world.snapshot("w");
    assert_eq!(names(&taken.left_out, Why::TooDeep).len(), 1);
    assert!(!taken.changed);
    world.workspaces.remove(&repo.0).unwrap();
    assert!(!repo.0.exists());
}

#[test]
fn submodules_stay_as_the_base_has_them() {
    let inner = tempfile::tempdir().unwrap();
    let module = Repo::init(inner.path().join("module"));
    let link = module.commit("m.txt", b"m", "m");
    let world = World::with(|up| {
        up.write("a.txt", b"a");
        up.run(&["add", "-A"]);
        let entry = format!("160000,{link},sub");
        up.run(&["update-index", "--add", "--cacheinfo", &entry]);
        up.run(&["commit", "-q", "-m", "with a submodule"]);
        fs::create_dir(up.0.join("sub")).unwrap();
        up.write("b.txt", b"b");
        up.run(&["add", "b.txt"]);
        fs::remove_dir(up.0.join("sub")).unwrap();
        up.run(&["update-index", "--add", "--cacheinfo", &entry]);
        up.run(&["commit", "-q", "-m", "b"]);
        Repo::init(up.0.join("sub")).run(&["fetch", "-q", module.text(), "main"]);
        Repo(up.0.join("sub")).run(&["checkout", "-q", link.as_str()]);
        up.write("c.txt", b"c");
    });
    let repo = world.prepare("w");
    let canary = world.temp.path().join("canary");
    let evil = Repo::init(repo.0.join("sub"));
    evil.run(&[
        "config",
        "core.fsmonitor",
        &format!("touch {}", canary.display()),
    ]);
    evil.commit("work.txt", b"w", "w");
    fs::remove_file(&canary).ok();
    let taken = world.snapshot("w");
    assert_eq!(names(&taken.left_out, Why::Submodule), ["sub"]);
    assert!(!taken.changed, "{taken:?}");
    assert!(!canary.exists());
}

#[test]
fn a_result_is_the_agents_commits_and_the_rest() {
    let world = World::new(&[("a.txt", b"one"), (".gitignore", b"*.o\n")]);
    let repo = world.prepare("w");
    assert_eq!(agent_head(&repo.0, &world.base), Head::AtBase);
    repo.write("forced.o", b"forced");
    let head = repo.commit("a.txt", b"two", "agent's");
    assert_eq!(agent_head(&repo.0, &world.base), Head::Moved(head.clone()));
    repo.write("rest.txt", b"rest");
    repo.write(BLOCKED, b"I am stuck");
    assert_eq!(world.import("w"), head);
    let taken = world.snapshot("w");
    let author = World::author();
    let sealed = seal(&world.vault, &taken, &sealing("r1", Some(&head), &author)).unwrap();
    assert_eq!(sealed.squashed, None);
    let log = world.in_vault(&["log", "--format=%s|%an", sealed.result_ref.as_str()]);
    assert_eq!(log, "the rest|Codex\nagent's|a\nbase|a");
    assert_eq!(
        world.paths(&sealed.commit),
        [".gitignore", "a.txt", "forced.o", "rest.txt"]
    );
    assert_eq!(sealed.stat.files, 3);
    assert_eq!(sealed.stat.paths, ["a.txt", "forced.o", "rest.txt"]);
    assert_eq!((sealed.stat.insertions, sealed.stat.deletions), (3, 1));
    // Sealing again, after a crash, gives the same tree under the same name.
    let again = seal(&world.vault, &taken, &sealing("r1", Some(&head), &author)).unwrap();
    assert_eq!(again.stat, sealed.stat);

    // Undo: everything but the ignored file's fresh state and the message is there again.
    fs::remove_file(repo.0.join(BLOCKED)).unwrap();
    fs::remove_file(repo.0.join("forced.o")).unwrap();
    let before = picture(&repo.0);
    world.workspaces.remove(&repo.0).unwrap();
    restore(
        &world.vault,
        &sealed.snapshot,
        &world.branch,
        &repo.0,
        &world.meta("w"),
    )
    .unwrap();
    assert_eq!(picture(&repo.0), before);
    assert_eq!(repo.head(), head);
    assert_eq!(
        repo.run(&["status", "--porcelain"]),
        " D forced.o\n?? rest.txt"
    );
    repo.run(&["fsck", "--strict"]);
    let taken = world.snapshot("w");
    assert_eq!(
        taken.tree,
        world
            .vault
            .object(&format!("{}:files", sealed.snapshot))
            .unwrap()
    );
    let again = restore(
        &world.vault,
        &sealed.snapshot,
        &world.branch,
        &repo.0,
        &world.meta("w"),
    );
    assert!(matches!(again, Err(SnapshotError::Exists { .. })));
}

#[test]
fn rewritten_history_and_committed_messages_are_squashed() {
    let world = World::new(&[("a.txt", b"one")]);
    let repo = world.prepare("rewritten");
    repo.write("b.txt", b"b");
    repo.run(&["add", "-A"]);
    repo.run(&["commit", "-q", "--amend", "-m", "history? what history?"]);
    let head = world.import("rewritten");
    let taken = world.snapshot("rewritten");
    let author = World::author();
    let sealed = seal(&world.vault, &taken, &sealing("r1", Some(&head), &author)).unwrap();
    assert_eq!(sealed.squashed, Some(Squashed::HistoryRewritten));
    let parents = world.in_vault(&["log", "-1", "--format=%P", sealed.commit.as_str()]);
    assert_eq!(parents, world.base.as_str());
    let kept = world.in_vault(&["log", "-1", "--format=%P", sealed.snapshot.as_str()]);
    assert_eq!(kept, format!("{} {head}", world.base));

    let repo = world.prepare("blocked");
    repo.write("b.txt", b"b");
    repo.commit(BLOCKED, b"stuck", "oops");
    fs::remove_file(repo.0.join(BLOCKED)).unwrap();
    repo.commit_all("and gone");
    let head = world.import("blocked");
    let taken = world.snapshot("blocked");
    let sealed = seal(&world.vault, &taken, &sealing("r2", Some(&head), &author)).unwrap();
    assert_eq!(sealed.squashed, Some(Squashed::BlockedCommitted));
    assert_eq!(world.paths(&sealed.commit), ["a.txt", "b.txt"]);
    assert!(seal(&world.vault, &taken, &sealing("../r2", None, &author)).is_err());
}

#[test]
fn an_orphan_history_is_imported_and_squashed() {
    let world = World::new(&[("a.txt", b"one")]);
    let repo = world.prepare("w");
    repo.run(&["checkout", "-q", "--orphan", "new"]);
    let head = repo.commit("b.txt", b"b", "from nothing");
    assert_eq!(world.import("w"), head);
    let taken = world.snapshot("w");
    let sealed = seal(
        &world.vault,
        &taken,
        &sealing("r", Some(&head), &World::author()),
    )
    .unwrap();
    assert_eq!(sealed.squashed, Some(Squashed::HistoryRewritten));
    assert_eq!(world.paths(&sealed.commit), ["a.txt", "b.txt"]);
}

#[test]
fn applying_touches_one_branch_and_nothing_else() {
    let world = World::new(&[("a.txt", b"one")]);
    let user = &world.upstream;
    user.write("a.txt", b"being edited");
    user.write("staged.txt", b"staged");
    user.run(&["add", "staged.txt"]);
    fs::write(user.0.join(".git/FETCH_HEAD"), b"mine").unwrap();
    let see = || {
        let git_dir = user.0.join(".git");
        let mut seen = picture(&user.0);
        for file in ["HEAD", "index", "FETCH_HEAD", "config", "refs/heads/main"] {
            seen.push((file.into(), 0, fs::read(git_dir.join(file)).unwrap()));
        }
        seen
    };
    let before = see();
    let repo = world.prepare("w");
    let first = repo.commit("b.txt", b"b", "first");
    world.import("w");
    let branch = RefName::branch("dispatch/result").unwrap();
    let apply = |commit: &CommitId| world.vault.apply_into(&user.0, commit, &branch);
    assert_eq!(apply(&first).unwrap(), Applied::Created);
    assert_eq!(apply(&first).unwrap(), Applied::AlreadyThere);
    let second = repo.commit("c.txt", b"c", "second");
    world.import("w");
    assert_eq!(apply(&second).unwrap(), Applied::Forwarded);
    assert_eq!(user.run(&["rev-parse", "dispatch/result"]), second.as_str());
    assert_eq!(see(), before);
    // Complete without the vault and the mirror.
    fs::remove_dir_all(world.temp.path().join("data/mirrors")).unwrap();
    user.run(&["fsck", "--strict", "--full"]);
    user.run(&["rev-list", "--objects", "dispatch/result"]);
    assert!(!user.0.join(".git/objects/info/alternates").exists());
}

#[test]
fn applying_refuses_what_would_lose_or_surprise() {
    let world = World::new(&[("a.txt", b"one")]);
    let repo = world.prepare("w");
    let commit = repo.commit("b.txt", b"b", "first");
    world.import("w");
    let user = &world.upstream;
    let apply = |name: &str| {
        world
            .vault
            .apply_into(&user.0, &commit, &RefName::branch(name).unwrap())
    };
    assert!(matches!(apply("main"), Err(VaultError::CheckedOut { .. })));
    user.run(&[
        "worktree",
        "add",
        "-q",
        "-b",
        "other",
        world.dest("tree").to_str().unwrap(),
    ]);
    assert!(matches!(apply("other"), Err(VaultError::CheckedOut { .. })));
    user.run(&["checkout", "-q", "-b", "theirs"]);
    user.commit("c.txt", b"c", "their own");
    user.run(&["checkout", "-q", "main"]);
    assert!(matches!(apply("theirs"), Err(VaultError::Diverged { .. })));
    // From a directory below the top, and into a clone that lacks the history.
    fs::create_dir(user.0.join("sub")).unwrap();
    let branch = RefName::branch("x").unwrap();
    world
        .vault
        .apply_into(&user.0.join("sub"), &commit, &branch)
        .unwrap();
    let empty = Repo::init(world.temp.path().join("empty"));
    world.vault.apply_into(&empty.0, &commit, &branch).unwrap();
    empty.run(&["fsck", "--strict"]);
    let nowhere = world.vault.apply_into(Path::new("/"), &commit, &branch);
    assert!(matches!(nowhere, Err(VaultError::UserRepo { .. })));
}

#[test]
fn bundles_that_are_not_ours_to_trust() {
    let world = World::new(&[("a.txt", b"one")]);
    let name = RefName::full("refs/dispatch/heads/x").unwrap();
    let file = world.temp.path().join("b.bundle");
    fs::write(&file, b"# v2 git bundle\nnot really").unwrap();
    assert!(matches!(
        world.vault.import_bundle(&file, &name),
        Err(VaultError::Git { .. } | VaultError::OddBundle { .. })
    ));
    let head = RefName::full("refs/heads/main").unwrap();
    assert!(matches!(
        world.vault.import_bundle(&file, &head),
        Err(VaultError::RefPlace { .. })
    ));
    // A tree with a `.git` in it, which would run code in whoever checks it out.
    let repo = world.prepare("w");
    repo.write("blob", b"[core]\n");
    let blob = repo.run(&["hash-object", "-w", "blob"]);
    fs::write(repo.0.join("list"), format!("100644 blob {blob}\t.GIT\n")).unwrap();
    let mut mktree = repo.command(&["mktree"]);
    let out = mktree
        .stdin(fs::File::open(repo.0.join("list")).unwrap())
        .output()
        .unwrap();
    let tree = String::from_utf8_lossy(&out.stdout).trim().to_owned();
    let commit = repo.run(&["commit-tree", "-m", "evil", "-p", "HEAD", &tree]);
    repo.run(&["update-ref", "HEAD", &commit]);
    repo.run(&["bundle", "create", "-q", file.to_str().unwrap(), "HEAD"]);
    let refused = world.vault.import_bundle(&file, &name);
    assert!(
        matches!(refused, Err(VaultError::Git { .. })),
        "{refused:?}"
    );
    assert_eq!(world.vault.resolve(&name).unwrap(), None);
}

#[test]
fn large_directories_and_the_left_out_bound() {
    let world = World::with(|up| {
        up.write(".gitignore", b"*.o\n");
        for n in 0..10_000 {
            up.write(&format!("big/{n}.txt"), b"x");
        }
    });
    let repo = world.prepare("w");
    for n in 0..LEFT_OUT_MAX + 5 {
        repo.write(&format!("{n}.o"), b"o");
    }
    repo.write("big/7.txt", b"y");
    let taken = world.snapshot("w");
    assert_eq!(taken.left_out.len(), LEFT_OUT_MAX);
    assert_eq!((taken.more_ignored, taken.more_left_out), (5, 0));
    assert_eq!(
        world
            .vault
            .diffstat(&world.base, &taken.tree)
            .unwrap()
            .paths,
        ["big/7.txt"]
    );
}

#[test]
fn a_lost_index_only_costs_time() {
    let world = World::new(&[("a.txt", b"one"), ("b.txt", b"two")]);
    let repo = world.prepare("w");
    repo.write("a.txt", b"1");
    fs::remove_file(world.meta("w").join(META_INDEX)).unwrap();
    let taken = world.snapshot("w");
    assert_eq!(
        world
            .vault
            .diffstat(&world.base, &taken.tree)
            .unwrap()
            .paths,
        ["a.txt"]
    );
}

#[test]
fn what_we_may_not_read_is_named_and_not_deleted() {
    if rustix::process::geteuid().is_root() {
        // Root reads everything.
        return;
    }
    let world = World::new(&[("d/a.txt", b"one"), ("b.txt", b"two")]);
    let repo = world.prepare("w");
    let mode = |path: &str, mode| {
        fs::set_permissions(repo.0.join(path), fs::Permissions::from_mode(mode)).unwrap();
    };
    repo.write("b.txt", b"2");
    mode("b.txt", 0o200);
    mode("d", 0o000);
    let taken = world.snapshot("w");
    mode("d", 0o700);
    assert_eq!(names(&taken.left_out, Why::Unreadable), ["b.txt", "d"]);
    assert_eq!(world.paths(&taken.tree), ["b.txt", "d/a.txt"]);
}
