//! An embedder's own site beside ours: it declines everything, so each job falls back to this
//! machine and the hop is an event. `cargo run -p dispatch-engine --example own_site`.
//! Must not be taken for a way to run jobs: a real site starts them.
#![expect(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "an example is a program: it prints and reads its environment"
)]

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use dispatch_core::{
    config::{self, Layer},
    job::{Invocation, JobId, Offset, Order},
    task::{Base, ChecksAsked, Expects, Labels, Placement, TaskSpec, Terms, Turn, Wrap},
};
use dispatch_engine::{
    clock::Clock,
    containers::Runtimes,
    engine::{Engine, Observer, Secrets, Settings, Sites},
    keeper,
    sites::{BoxFuture, Follow, Site, Start, local::Keeper},
    view::Told,
};

#[derive(Debug)]
struct Shy;

impl Site for Shy {
    fn put<'a>(&'a self, _path: &'a Path, _bytes: &'a [u8]) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(async { Err(io::Error::other("this site takes nothing")) })
    }

    fn start<'a>(&'a self, _job: &'a JobId, _what: &'a Invocation) -> BoxFuture<'a, Start> {
        // A promise: nothing ran and nothing will. The engine tries the next site.
        Box::pin(async { Start::Declined("it is shy".into()) })
    }

    fn follow<'a>(
        &'a self,
        _job: &'a JobId,
        _from: Offset,
    ) -> BoxFuture<'a, io::Result<Box<dyn Follow>>> {
        Box::pin(async { Ok(Box::new(Never) as Box<dyn Follow>) })
    }

    fn order<'a>(&'a self, _job: &'a JobId, _order: &'a Order) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(async { Err(io::Error::new(io::ErrorKind::NotFound, "no job is here")) })
    }
}

struct Never;

impl Follow for Never {
    fn next(&mut self) -> BoxFuture<'_, io::Result<dispatch_engine::sites::JobEvent>> {
        Box::pin(async { Ok(dispatch_engine::sites::JobEvent::NeverStarted) })
    }
}

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    // A program that embeds the engine is its own keeper.
    let args: Vec<std::ffi::OsString> = std::env::args_os().skip(1).collect();
    if args.first().is_some_and(|arg| arg == "job") {
        std::process::exit(i32::from(
            keeper::main(&args[1..]) != std::process::ExitCode::SUCCESS,
        ));
    }
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(run())
}

async fn run() -> Result<(), Failure> {
    let place = std::env::temp_dir().join(format!("own-site-{}", std::process::id()));
    let repo = repository(&place)?;
    let text = "[agents.echo]\ndriver = \"plain\"\nprogram = \"tee\"\nargs = [\"task.txt\"]\n\
                pool = \"default\"\nplacement = \"host\"\n";
    let (config, _) = config::load(&[Layer {
        source: "example",
        text,
    }])
    .map_err(|problems| format!("{problems:?}"))?;
    let settings = Settings {
        data: place.join("data"),
        config,
        version: "example".into(),
        git: "git".into(),
        job_env: BTreeMap::from([("PATH".into(), std::env::var("PATH")?)]),
        program_env: BTreeMap::new(),
        keeper: Keeper::own(),
        bwrap: None,
        runtimes: Runtimes::default(),
        sidecar: Vec::new(),
        door: None,
        definitions: None,
        observer: Observer::default(),
        clock: Clock::default(),
    };
    let sites = Sites::from([("shy".parse()?, Arc::new(Shy) as Arc<dyn Site>)]);
    let engine = Engine::with_sites(settings, sites).await?;
    let spec = TaskSpec {
        title: "write the task down".into(),
        text: "hello".into(),
        repo: repo.to_string_lossy().into_owned(),
        base: Base::Head,
        agent: "echo".parse()?,
        pool: "default".parse()?,
        placement: Placement {
            sites: vec!["shy".parse()?, "local".parse()?],
            ..Placement::of(Wrap::Host)
        },
        expects: Expects::Change,
        checks: ChecksAsked::None,
        review_base: None,
        workspace: None,
        turn: Turn::default(),
        parent: None,
        labels: Labels::default(),
        terms: Terms::default(),
        limits: dispatch_core::limits::Lowered::default(),
        guide: Default::default(),
    };
    engine.dispatch(spec, Secrets::new()).await?;
    let mut events = engine.events(0);
    engine.idle().await;
    while let Some(Told::Event(event)) = events.next().await {
        println!("{} {:?}", event.seq, event.kind.word());
        if event.kind.word() == "finished" {
            break;
        }
    }
    engine.shutdown().await?;
    std::fs::remove_dir_all(place)?;
    Ok(())
}

fn repository(place: &Path) -> Result<PathBuf, Failure> {
    let repo = place.join("repo");
    std::fs::create_dir_all(&repo)?;
    std::fs::write(repo.join("README"), "hi\n")?;
    for args in [
        &["init", "-q"][..],
        &["add", "-A"],
        &[
            "-c",
            "user.name=e",
            "-c",
            "user.email=e@example.invalid",
            "commit",
            "-qm",
            "e",
        ],
    ] {
        if !Command::new("git")
            .args(args)
            .current_dir(&repo)
            .status()?
            .success()
        {
            return Err(format!("git {args:?} failed").into());
        }
    }
    Ok(repo)
}
