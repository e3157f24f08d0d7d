//! Nothing that comes out of a repository or a workspace runs on the host: two armed repositories,
//! the upstream a person names and the workspace an agent leaves, each with every way git and agent
//! CLIs know to have a command run. Every command would leave a canary outside of both.
//! Must not run plain git in an armed repository, except in the test that shows the trap is live.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests; a failure is a failed test"
)]

mod world;

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use dispatch_core::{event::Kind, task::ChecksAsked};
use dispatch_engine::{
    engine::{Engine, Secrets},
    view::TaskView,
};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use world::{World, finished, git, outcome, patient, reason, until};

/// How a vector is planted. `{F}` is the command that leaves the canary, `{BAIT}` the directory
/// of the host outside of everything, `{G}` the git directory.
enum Plant {
    /// An executable of this name where git looks for hooks.
    Hook(&'static str),
    /// Lines of the repository's own configuration.
    Config(&'static str),
    /// A file of the tree.
    File(&'static str, &'static str),
}
use Plant::{Config, File, Hook};

/// What is armed, by name: `canary-<who>-<name>` is what each would leave.
const VECTORS: &[(&str, Plant)] = &[
    ("hook-applypatch-msg", Hook("applypatch-msg")),
    ("hook-commit-msg", Hook("commit-msg")),
    ("hook-fsmonitor-watchman", Hook("fsmonitor-watchman")),
    ("hook-post-applypatch", Hook("post-applypatch")),
    ("hook-post-checkout", Hook("post-checkout")),
    ("hook-post-commit", Hook("post-commit")),
    ("hook-post-index-change", Hook("post-index-change")),
    ("hook-post-merge", Hook("post-merge")),
    ("hook-post-receive", Hook("post-receive")),
    ("hook-post-rewrite", Hook("post-rewrite")),
    ("hook-post-update", Hook("post-update")),
    ("hook-pre-applypatch", Hook("pre-applypatch")),
    ("hook-pre-auto-gc", Hook("pre-auto-gc")),
    ("hook-pre-commit", Hook("pre-commit")),
    ("hook-pre-merge-commit", Hook("pre-merge-commit")),
    ("hook-pre-push", Hook("pre-push")),
    ("hook-pre-rebase", Hook("pre-rebase")),
    ("hook-pre-receive", Hook("pre-receive")),
    ("hook-prepare-commit-msg", Hook("prepare-commit-msg")),
    ("hook-proc-receive", Hook("proc-receive")),
    ("hook-push-to-checkout", Hook("push-to-checkout")),
    ("hook-reference-transaction", Hook("reference-transaction")),
    ("hook-update", Hook("update")),
    ("fsmonitor", Config("[core]\n\tfsmonitor = {F}\n")),
    (
        "filter-clean",
        Config("[filter \"clean\"]\n\tclean = {F}\n\trequired = true\n"),
    ),
    (
        "filter-smudge",
        Config("[filter \"smudge\"]\n\tsmudge = {F}\n"),
    ),
    (
        "filter-process",
        Config("[filter \"process\"]\n\tprocess = {F}\n"),
    ),
    (
        "filter-lfs",
        Config("[filter \"lfs\"]\n\tsmudge = {F}\n\tclean = {F}\n"),
    ),
    ("diff-external", Config("[diff]\n\texternal = {F}\n")),
    (
        "diff-driver",
        Config("[diff \"driver\"]\n\tcommand = {F}\n"),
    ),
    (
        "diff-textconv",
        Config("[diff \"conv\"]\n\ttextconv = {F}\n\tcachetextconv = true\n"),
    ),
    (
        "merge-driver",
        Config("[merge \"driver\"]\n\tdriver = {F}\n"),
    ),
    ("ssh-command", Config("[core]\n\tsshCommand = {F}\n")),
    (
        "pager",
        Config("[core]\n\tpager = {F}\n[pager]\n\tdiff = {F}\n\tfetch = {F}\n\tbundle = {F}\n"),
    ),
    (
        "editor",
        Config("[core]\n\teditor = {F}\n[sequence]\n\teditor = {F}\n"),
    ),
    ("askpass", Config("[core]\n\taskPass = {F}\n")),
    ("git-proxy", Config("[core]\n\tgitProxy = {F}\n")),
    (
        "alias",
        Config("[alias]\n\tst = !{F}\n\tbundle = !{F}\n\tfetch = !{F}\n\tdiff-tree = !{F}\n"),
    ),
    (
        "include",
        Config("[include]\n\tpath = {BAIT}/included-{W}\n"),
    ),
    (
        "alternate-refs",
        Config("[core]\n\talternateRefsCommand = {F}\n"),
    ),
    (
        "gpg-program",
        Config(
            "[gpg]\n\tprogram = {F}\n[commit]\n\tgpgSign = true\n[log]\n\tshowSignature = true\n",
        ),
    ),
    (
        "gpg-ssh-program",
        Config("[gpg \"ssh\"]\n\tprogram = {F}\n\tdefaultKeyCommand = {F}\n"),
    ),
    (
        "credential-helper",
        Config("[credential]\n\thelper = !{F}\n"),
    ),
    (
        "pack-objects-hook",
        Config("[uploadpack]\n\tpackObjectsHook = {F}\n\tallowFilter = true\n"),
    ),
    (
        "receive-config",
        Config("[receive]\n\tprocReceiveRefs = refs\n\tcertNonceSeed = x\n"),
    ),
    (
        "remote-uploadpack",
        Config("[remote \"origin\"]\n\turl = {BAIT}\n\tuploadpack = {F}\n\tvcs = ext\n"),
    ),
    (
        "promisor-ext",
        Config(
            "[protocol \"ext\"]\n\tallow = always\n[remote \"lazy\"]\n\turl = ext::{F}\n\tpromisor = true\n\tpartialclonefilter = blob:none\n",
        ),
    ),
    (
        "instead-of-ext",
        Config("[url \"ext::{F} \"]\n\tinsteadOf = /\n\tinsteadOf = file://\n"),
    ),
    (
        "submodule-command",
        Config("[submodule \"one\"]\n\tactive = true\n\turl = {BAIT}\n\tupdate = !{F}\n"),
    ),
    (
        "trailer-command",
        Config("[trailer \"x\"]\n\tkey = X\n\tcommand = {F}\n\tifmissing = add\n"),
    ),
    (
        "difftool",
        Config(
            "[diff]\n\ttool = t\n[difftool \"t\"]\n\tcmd = {F}\n[mergetool \"t\"]\n\tcmd = {F}\n",
        ),
    ),
    (
        "gc-recent-hook",
        Config("[gc]\n\tauto = 1\n\trecentObjectsHook = {F}\n"),
    ),
    (
        "gitmodules",
        File(
            ".gitmodules",
            "[submodule \"one\"]\n\tpath = sub\n\turl = ext::{F}\n[submodule \"two\"]\n\tpath = sub2\n\turl = file://{BAIT}\n",
        ),
    ),
    (
        "attributes",
        File(
            ".gitattributes",
            "*.clean filter=clean\n*.smudge filter=smudge\n*.process filter=process\n*.lfs filter=lfs\n*.driver diff=driver merge=driver\n*.conv diff=conv\n*.txt merge=driver\n* ident\n",
        ),
    ),
    (
        "claude-settings",
        File(
            ".claude/settings.json",
            "{\"hooks\":{\"SessionStart\":[{\"hooks\":[{\"type\":\"command\",\"command\":\"{F}\"}]}]}}",
        ),
    ),
    (
        "claude-local",
        File(".claude/settings.local.json", "{\"apiKeyHelper\":\"{F}\"}"),
    ),
    (
        "mcp",
        File(
            ".mcp.json",
            "{\"mcpServers\":{\"x\":{\"command\":\"{F}\",\"args\":[\"x\"]}}}",
        ),
    ),
    (
        "codex",
        File(
            ".codex/config.toml",
            "notify = [\"{F}\", \"x\"]\n[mcp_servers.x]\ncommand = \"{F}\"\n",
        ),
    ),
    ("envrc", File(".envrc", "{F}\n")),
    (
        "vscode",
        File(
            ".vscode/tasks.json",
            "{\"tasks\":[{\"command\":\"{F}\",\"runOptions\":{\"runOn\":\"folderOpen\"}}]}",
        ),
    ),
    ("leading-dash", File("--upload-pack={FIRE_NAME}", "x\n")),
    ("dash-output", File("--output=canary", "x\n")),
    ("newline", File("a\nb -- {FIRE_NAME}", "x\n")),
    (
        "shell-name",
        File("$(touch canary);`touch canary`|x", "x\n"),
    ),
    ("file-clean", File("a.clean", "x\n")),
    ("file-smudge", File("a.smudge", "x\n")),
    ("file-process", File("a.process", "x\n")),
    (
        "file-lfs",
        File(
            "a.lfs",
            "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        ),
    ),
    ("file-driver", File("a.driver", "x\n")),
    ("file-conv", File("a.conv", "x\n")),
];

/// The directory of the host that nothing may touch, and what is armed in it.
struct Trap {
    bait: PathBuf,
}

impl Trap {
    fn new(world: &World) -> Self {
        let bait = world.home.path().join("bait");
        fs::create_dir(&bait).unwrap();
        fs::create_dir(bait.join("bin")).unwrap();
        let fire = bait.join("fire");
        // Two programs that wait for each other would hang the test.
        let waits = "case $0 in *ssh*|*promisor*|*instead*|*proxy*) exit 1;; esac";
        let text = format!(
            "#!/bin/sh\n: > '{}/canary-'\"${{0##*/}}\"\n{waits}\nexec cat\n",
            bait.display()
        );
        fs::write(&fire, text).unwrap();
        fs::set_permissions(&fire, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(bait.join("secret"), "only the host may read this\n").unwrap();
        // An agent that can name a file can link it: what it holds is the agent's to read then.
        fs::write(bait.join("linked"), "as it was\n").unwrap();
        Self { bait }
    }

    fn fill(&self, who: &str, name: &str, text: &str) -> String {
        let bait = self.bait.to_str().unwrap();
        let canary = format!("{who}-{name}");
        text.replace("{FIRE_NAME}", "fire")
            .replace("{F}", &format!("{bait}/bin/{canary}"))
            .replace("{BAIT}", bait)
            .replace("{W}", who)
    }

    /// Lays out what `arm` puts in place: `<bait>/<who>/{config,hooks,files}`.
    fn load(&self, who: &str) {
        let top = self.bait.join(who);
        let mut config = String::new();
        fs::create_dir_all(top.join("hooks")).unwrap();
        fs::create_dir_all(top.join("files")).unwrap();
        for (name, plant) in VECTORS {
            // The name it is called by tells which one it was.
            symlink(
                self.bait.join("fire"),
                self.bait.join(format!("bin/{who}-{name}")),
            )
            .unwrap();
            match plant {
                Hook(hook) => {
                    let path = top.join("hooks").join(hook);
                    let text = format!("#!/bin/sh\n{}\n", self.fill(who, name, "{F}"));
                    fs::write(&path, text).unwrap();
                    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
                }
                Config(text) => config.push_str(&self.fill(who, name, text)),
                File(path, text) => {
                    let path = top.join("files").join(self.fill(who, name, path));
                    fs::create_dir_all(path.parent().unwrap()).unwrap();
                    fs::write(path, self.fill(who, name, text)).unwrap();
                }
            }
        }
        let included = format!(
            "[core]\n\tfsmonitor = {}\n",
            self.fill(who, "include", "{F}")
        );
        fs::write(self.bait.join(format!("included-{who}")), included).unwrap();
        if who != "upstream" {
            // There the hooks are found the other way.
            let hooks = top.join("hooks");
            config.push_str(&format!("[core]\n\thooksPath = {}\n", hooks.display()));
        }
        fs::write(top.join("config"), config).unwrap();
        symlink(
            self.bait.join("fire"),
            self.bait.join(format!("bin/{who}-home")),
        )
        .unwrap();
        let script = "set -e\ncat \"$1/config\" >> .git/config\nmkdir -p .git/hooks .git/info\n\
             cp -R \"$1/hooks/.\" .git/hooks/\ncp \"$1/files/.gitattributes\" .git/info/attributes\n";
        fs::write(top.join("arm.sh"), script).unwrap();
    }

    fn files(&self, who: &str) -> PathBuf {
        self.bait.join(who).join("files")
    }

    fn arm(&self, who: &str, repo: &Path) {
        let top = self.bait.join(who);
        let status = Command::new("/bin/sh")
            .arg(top.join("arm.sh"))
            .arg(&top)
            .current_dir(repo)
            .status();
        assert!(status.unwrap().success());
    }

    /// The canaries there are.
    fn canaries(&self) -> BTreeSet<String> {
        let names = fs::read_dir(&self.bait).unwrap();
        names
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .filter(|name| name.starts_with("canary"))
            .collect()
    }

    fn is_silent(&self, after: &str) {
        assert_eq!(self.canaries(), BTreeSet::new(), "after {after}");
        let secret = fs::read_to_string(self.bait.join("secret")).unwrap();
        assert_eq!(secret, "only the host may read this\n", "after {after}");
        let linked = fs::read_to_string(self.bait.join("linked")).unwrap();
        assert_eq!(linked, "as it was\n", "after {after}");
    }
}

/// An upstream that is armed in its tree, its references and its `.git`.
fn upstream(world: &World) -> Trap {
    let trap = Trap::new(world);
    let repo = world.repo();
    for who in ["upstream", "agent"] {
        trap.load(who);
    }
    let copied = Command::new("cp")
        .arg("-R")
        .arg(trap.files("upstream").join("."))
        .arg(&repo)
        .status();
    assert!(copied.unwrap().success());
    symlink(&trap.bait, repo.join("link-out")).unwrap();
    symlink(trap.bait.join("secret"), repo.join("link-secret")).unwrap();
    fs::create_dir(repo.join("swap")).unwrap();
    fs::write(repo.join("swap/canary-swap"), "x\n").unwrap();
    fs::write(repo.join("Makefile"), "check:\n\ttest -f wanted\n").unwrap();
    git(&repo, &["add", "-A", "-f"]);
    let head = git(&repo, &["rev-parse", "HEAD"]);
    let link = format!("160000,{},sub", head.trim());
    git(&repo, &["update-index", "--add", "--cacheinfo", &link]);
    git(&repo, &["commit", "-qm", "armed"]);
    let long = format!("refs/heads/{}", vec!["l".repeat(200); 5].join("/"));
    for name in [
        "refs/heads/-dash",
        "refs/heads/--upload-pack=x",
        "refs/tags/-t",
        &long,
    ] {
        git(&repo, &["update-ref", name, "HEAD"]);
    }
    // Borrowed objects, so that alternateRefsCommand has something to be asked about.
    let other = world.home.path().join("other.git");
    git(
        world.home.path(),
        &["clone", "-q", "--bare", "repo", other.to_str().unwrap()],
    );
    let alternates = format!("{}\n", other.join("objects").display());
    fs::write(repo.join(".git/objects/info/alternates"), alternates).unwrap();
    trap.arm("upstream", &repo);
    trap
}

/// All that a person does with a task after it has ended.
async fn all_verbs(engine: &Engine, view: &TaskView, trap: &Trap) {
    let task = view.task.id;
    let diff = engine.diff(task).await.unwrap_or_default();
    assert!(!diff.contains("only the host may read this"), "{diff}");
    trap.is_silent("diff");
    if view
        .task
        .result()
        .is_some_and(|sealed| sealed.commit.is_some())
    {
        engine.apply(task, None).await.unwrap();
        trap.is_silent("apply");
    }
    engine.remove(task).await.unwrap();
    trap.is_silent("rm");
    engine.undo(task).await.unwrap();
    trap.is_silent("undo");
    engine.remove(task).await.unwrap();
    trap.is_silent("rm again");
}

/// Runs a task whose agent arms its workspace, commits there, and then does `more`.
async fn nasty(world: &World, engine: &Engine, trap: &Trap, more: &str) -> TaskView {
    let script = trap.bait.join("agent.sh");
    let top = trap.bait.join("agent");
    let text = format!(
        "set -e\nbait='{bait}'\n\
         echo wanted > wanted; echo mine > mine.txt; git add wanted mine.txt\n\
         git commit -qm theirs\n\
         cp -R '{files}/.' .\n\
         for f in a.*; do echo more >> $f; done\n\
         printf '[core]\\n\\tfsmonitor = %s\\n' \"$bait/bin/agent-home\" > \"$HOME/.gitconfig\"\n\
         mkdir -p \"$HOME/../check-home\"\n\
         cp \"$HOME/.gitconfig\" \"$HOME/../check-home/.gitconfig\"\n\
         rm -rf swap; ln -s \"$bait\" swap\n\
         ln \"$bait/linked\" hard; chmod 600 hard; : || true\n\
         ln -s \"$bait\" out; ln -s /proc/self/root magic\n\
         mkfifo fifo; mknod null c 1 3 || true\n\
         mkdir -p nested/.git/hooks; echo 'ref: refs/heads/x' > nested/.git/HEAD\n\
         (d=$(printf '%0200d' 0); for i in 1 2 3 4 5 6 7 8 9 10; do mkdir $d; cd $d; done; echo x > deep)\n\
         for r in -dash --upload-pack=x; do cp .git/refs/heads/dispatch/* \".git/refs/heads/$r\"; done\n\
         {{ printf '%s refs/heads/' $(git rev-parse HEAD); printf '%04000d\\n' 0; }} >> .git/packed-refs\n\
         sh '{top}/arm.sh' '{top}'\n{more}\n",
        bait = trap.bait.display(),
        files = trap.files("agent").display(),
        top = top.display(),
    );
    fs::write(&script, text).unwrap();
    let order = format!("sh {}", script.display());
    let mut spec = world.spec(&[&order, "say done"]);
    spec.checks = ChecksAsked::Detect;
    let run = engine.dispatch(spec, Secrets::new()).await.unwrap();
    let view = finished(engine, run).await;
    trap.is_silent("the run");
    view
}

#[test]
fn there_are_enough_vectors_and_no_name_twice() {
    let names: BTreeSet<&str> = VECTORS.iter().map(|(name, _)| *name).collect();
    assert_eq!(names.len(), VECTORS.len());
    assert!(names.len() >= 60, "{}", names.len());
}

/// Without this the other tests could pass because nothing is armed.
#[test]
fn the_trap_is_live() {
    let world = World::new();
    let trap = upstream(&world);
    trap.is_silent("arming");
    let repo = world.repo();
    fs::write(repo.join("a.conv"), "y\n").unwrap();
    fs::write(repo.join("a.clean"), "y\n").unwrap();
    let plain = |args: &[&str]| {
        // Whether it succeeds is not the question. Standard error is read to its end: git does not
        // wait for every program it starts, and each of them has that end.
        let ran = Command::new("git")
            .args(args)
            .current_dir(&repo)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .output();
        ran.unwrap();
    };
    plain(&["status"]);
    // What the monitor answers hides all changes from a diff.
    let quiet = "core.fsmonitor=false";
    plain(&["-c", quiet, "diff", "HEAD~1", "HEAD"]);
    plain(&["-c", quiet, "diff", "--no-ext-diff", "HEAD~1", "HEAD"]);
    plain(&["st"]);
    plain(&["-c", quiet, "commit", "-aqm", "x"]);
    plain(&["-c", quiet, "commit", "-aqm", "x", "--no-gpg-sign"]);
    plain(&["-c", quiet, "commit", "--amend", "-q", "--no-gpg-sign"]);
    plain(&["update-ref", "refs/heads/x", "HEAD"]);
    fs::remove_file(repo.join("a.smudge")).unwrap();
    plain(&["-c", quiet, "checkout", "HEAD", "--", "a.smudge"]);
    plain(&["fetch", "ssh://nowhere.invalid/x"]);
    plain(&["rev-list", "--all", "--alternate-refs"]);
    let fired = trap.canaries();
    for name in [
        "alias",
        "alternate-refs",
        "diff-external",
        "diff-textconv",
        "editor",
        "filter-clean",
        "filter-process",
        "filter-smudge",
        "fsmonitor",
        "gpg-program",
        "hook-commit-msg",
        "hook-post-checkout",
        "hook-post-commit",
        "hook-pre-commit",
        "hook-reference-transaction",
        "ssh-command",
    ] {
        // The included file sets the same key, and the last one counts.
        let other = format!("canary-upstream-{}", name.replace("fsmonitor", "include"));
        let there = fired.contains(&format!("canary-upstream-{name}")) || fired.contains(&other);
        assert!(there, "{name} of {fired:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_canary_of_an_armed_upstream_and_an_armed_workspace() {
    let world = World::new();
    let trap = upstream(&world);
    let engine = world.engine().await;
    let view = nasty(&world, &engine, &trap, "").await;
    assert_eq!(outcome(&view).word(), "completed", "{}", reason(&view));
    let sealed = view.task.result().unwrap();
    assert!(
        !sealed
            .notes
            .iter()
            .any(|note| note.contains("could not be kept")),
        "{sealed:?}"
    );
    all_verbs(&engine, &view, &trap).await;
    // A second task takes the tree that was made beforehand, out of the same mirror.
    let view = nasty(&world, &engine, &trap, "").await;
    assert_eq!(outcome(&view).word(), "completed", "{}", reason(&view));
    all_verbs(&engine, &view, &trap).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_canary_when_the_agent_replaces_its_git_directory() {
    let world = World::new();
    let trap = upstream(&world);
    let engine = world.engine().await;
    let elsewhere = world.repo().join(".git");
    let elsewhere = elsewhere.display();
    for more in [
        format!("rm -rf .git; echo 'gitdir: {elsewhere}' > .git"),
        format!("rm -rf .git; ln -s {elsewhere} .git"),
        "rm -rf .git; mkfifo .git".to_owned(),
        "rm .git/HEAD; mkfifo .git/HEAD".to_owned(),
        format!("rm .git/HEAD; ln -s {elsewhere}/HEAD .git/HEAD"),
        format!("rm -rf .git/refs; ln -s {elsewhere}/refs .git/refs"),
        "echo 'ref: refs/heads/--upload-pack=x' > .git/HEAD".to_owned(),
        "rm .git/config; mkfifo .git/config".to_owned(),
    ] {
        let view = nasty(&world, &engine, &trap, &more).await;
        // How it is judged differs; that it ends and its tree is kept does not.
        assert!(view.task.result().is_some(), "{more}: {}", reason(&view));
        all_verbs(&engine, &view, &trap).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_that_is_no_plain_file_is_not_read() {
    let world = World::new();
    let trap = upstream(&world);
    let engine = world.engine().await;
    let secret = trap.bait.join("secret");
    for more in [
        format!("ln -s {} BLOCKED.md", secret.display()),
        "mkfifo BLOCKED.md".to_owned(),
        "mkdir BLOCKED.md".to_owned(),
        "ln -s /proc/self/environ BLOCKED.md".to_owned(),
    ] {
        let view = nasty(&world, &engine, &trap, &more).await;
        assert_eq!(
            outcome(&view).word(),
            "completed",
            "{more}: {}",
            reason(&view)
        );
        all_verbs(&engine, &view, &trap).await;
    }
}

/// Swaps each of the workspace's files with a link to the secret and back until it is told to end.
fn swap(decoys: &Path, links: &Path, files: usize, over: &AtomicBool) {
    let at = |dir: &Path, n: usize| dir.join(n.to_string());
    while !over.load(Ordering::Relaxed) {
        for n in 0..files {
            let (link, decoy) = (at(links, n), at(decoys, n));
            renameat_with(CWD, &link, CWD, &decoy, RenameFlags::EXCHANGE).unwrap();
        }
    }
}

/// A live task is looked at while its agent puts a link to a file of the host in the place of each of
/// its files. No look shows what is behind one, and no look leaves anything in the vault.
#[tokio::test(flavor = "multi_thread")]
async fn a_look_at_a_live_workspace_follows_no_link_and_leaves_nothing_behind() {
    const FILES: usize = 400;
    let secret = "only the host may read this\n";
    let world = World::new();
    let bait = world.home.path().join("secret");
    fs::write(&bait, secret).unwrap();
    let engine = world.engine().await;
    let spec = world.spec(&["write ready yes", "hang"]);
    let run = engine.dispatch(spec, Secrets::new()).await.unwrap();
    until(&engine, run.task, |kind| {
        matches!(kind, Kind::Started { .. })
    })
    .await;
    let task = engine.task(run.task).await.unwrap().task;
    let workspace = task.workspace.unwrap().path;
    let (decoys, links) = (workspace.join("decoys"), world.home.path().join("links"));
    for dir in [&decoys, &links] {
        fs::create_dir(dir).unwrap();
    }
    for n in 0..FILES {
        fs::write(decoys.join(n.to_string()), "d".repeat(secret.len())).unwrap();
        symlink(&bait, links.join(n.to_string())).unwrap();
    }
    fs::write(workspace.join("new.txt"), "something new\n").unwrap();
    engine.diff(run.task).await.unwrap();
    let before = objects(&world.data().join("vaults"));
    let over = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&over);
    let swapping = std::thread::spawn(move || swap(&decoys, &links, FILES, &told));
    let mut shown = Vec::new();
    for _ in 0..12 {
        shown.push(engine.diff(run.task).await.unwrap());
    }
    over.store(true, Ordering::Relaxed);
    swapping.join().unwrap();
    for diff in shown {
        assert!(diff.contains("+something new"), "{diff}");
        assert!(!diff.contains("only the host"), "{diff}");
    }
    assert_eq!(objects(&world.data().join("vaults")), before);
    patient(engine.remove(run.task)).await.unwrap();
}

/// Every file below a directory.
fn objects(dir: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(objects(&path));
        } else {
            found.insert(path);
        }
    }
    found
}
