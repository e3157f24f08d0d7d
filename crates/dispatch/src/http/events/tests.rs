//! Streams over real connections: a real engine and its doors, agents in memory that say what the test
//! wants, clients that drop and come back. Whatever happens on the way, the view at the end is that of
//! the log.

use std::{collections::BTreeMap, sync::Arc};

use dispatch_core::{
    ask::{AskId, Permissions},
    config::{self, Layer},
    id::RunId,
    job::Exit,
    message::Sender,
    task::{Base, ChecksAsked, Expects, Labels, Placement, TaskSpec, Terms, Turn, Wrap},
};
use dispatch_engine::{
    clock::{Clock, SetClock},
    engine::Engine,
    engine::{Secrets, Sites},
    reader::Reader,
    sites::fake::Fake,
    view::Force,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    task::JoinSet,
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Message as Sent, client::IntoClientRequest as _},
};

use super::*;
use crate::{
    api::event::Event,
    client::{Client, Events, view::View},
    http::{
        caller::Scope,
        door::{Door, Keys},
        listen,
        room::{Room, Shares},
        routes::with_mcp,
        standing::{LOOK_AGAIN_MS, Standing},
        tokens::Tokens,
    },
    mcp::server::PRODUCT,
    settings::{Env, Paths, Settings},
};

/// No test waits that long; one that would has found a bug.
const PATIENCE: Duration = Duration::from_secs(60);

const CONFIG: &str = "[gate]\nload_per_core_max = 0\nretries_max = 0\nfail_runs = 0\n\
    [pools.default]\nslots = 8\n[agents.talker]\ndriver = \"claude\"\nprogram = \"sh\"\n\
    pool = \"default\"\nplacement = \"host\"\n[agents.printer]\ndriver = \"plain\"\n\
    program = \"sh\"\npool = \"default\"\nplacement = \"host\"\n";

/// A home with agents in memory, under one engine after another.
struct Stage {
    _home: tempfile::TempDir,
    settings: Settings,
    site: Fake,
}

/// An engine and its socket.
struct Serving {
    engine: Engine,
    close: watch::Sender<bool>,
    listening: JoinSet<()>,
}

impl Stage {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        // The machine's own PATH: the engine refuses an old git, and the newer one may lie anywhere.
        let path = Env::read().text("PATH").unwrap().to_owned();
        let env = Env::of(&[
            ("DISPATCH_HOME", home.path().to_str().unwrap()),
            ("PATH", &path),
        ]);
        let mut settings = Settings::from_env(env, home.path()).unwrap();
        let layer = Layer {
            source: "test",
            text: CONFIG,
        };
        settings.config = config::load(&[layer]).unwrap().0;
        let site = Fake::talking();
        Self {
            _home: home,
            settings,
            site,
        }
    }

    async fn serve(&self) -> Serving {
        self.serve_with(None).await
    }

    async fn serve_with(&self, streams: Option<usize>) -> Serving {
        self.serve_at(streams, Clock::System).await
    }

    async fn serve_at(&self, streams: Option<usize>, clock: Clock) -> Serving {
        let settings = &self.settings;
        let local = "local".parse().unwrap();
        let sites: Sites = Sites::from([(local, Arc::new(self.site.clone()) as _)]);
        let engine = Engine::with_sites(settings.engine(), sites).await.unwrap();
        let (close, closing) = watch::channel(false);
        let mut ctx = Ctx::new(engine.clone(), settings, closing.clone());
        if let Some(own) = streams {
            let shares = Shares {
                own,
                others: 0,
                token: 0,
                run: 0,
            };
            ctx.rooms.streams = Room::new(Code::TooManyStreams, "follow events", "streams", shares);
        }
        let tokens = Tokens::of(&settings.paths.data);
        ctx.standing = Standing::new(tokens, engine.clone(), clock);
        let keys = Arc::new(Keys::new(Tokens::of(&settings.paths.data), &ctx));
        let routes = with_mcp(ctx, PRODUCT);
        let mut listening = JoinSet::new();
        for (door, dir, name) in [
            (Door::Own, settings.paths.run.clone(), Paths::SOCKET),
            (Door::Agents, settings.paths.agents(), Paths::AGENTS_SOCKET),
        ] {
            let listener = listen::socket(&dir, name).unwrap();
            let (keys, routes, closing) = (Arc::clone(&keys), routes.clone(), closing.clone());
            listening.spawn(listener.serve(door, keys, routes, closing));
        }
        Serving {
            engine,
            close,
            listening,
        }
    }

    fn client(&self) -> Client {
        Client::new(self.settings.paths.clone())
    }

    fn events(&self) -> Vec<Event> {
        let reader = Reader::open(&self.settings.paths.data).unwrap();
        let all = reader.events(0, 100_000).unwrap();
        all.iter().map(Event::from).collect()
    }

    /// The view that the log comes to.
    fn truth(&self) -> View {
        let mut view = View::default();
        for event in self.events() {
            view.hear(&Frame::Event(Box::new(event)));
        }
        view
    }
}

impl Serving {
    async fn end(self) {
        self.engine.shutdown().await.unwrap();
        self.close.send_replace(true);
        timeout(PATIENCE, self.listening.join_all()).await.unwrap();
    }

    async fn dispatch(&self, agent: &str) -> RunId {
        self.dispatch_with(agent, None).await
    }

    async fn dispatch_with(&self, agent: &str, grant: Option<&str>) -> RunId {
        let mut spec = TaskSpec {
            title: agent.into(),
            text: "t".into(),
            repo: String::new(),
            base: Base::Nothing,
            agent: agent.parse().unwrap(),
            pool: "default".parse().unwrap(),
            placement: Placement::of(Wrap::Host),
            expects: Expects::Either,
            checks: ChecksAsked::None,
            review_base: None,
            workspace: None,
            turn: Turn::default(),
            parent: None,
            labels: Labels::default(),
            terms: Terms {
                permissions: if agent == "talker" {
                    Permissions::Ask
                } else {
                    Permissions::Allow
                },
                ..Terms::default()
            },
            limits: dispatch_core::limits::Lowered::default(),
            guide: Default::default(),
        };
        if let Some(name) = grant {
            let offer = &self.engine.config().grants[&name.parse().unwrap()];
            spec.terms.grant = Some(Box::new(offer.to(&spec)));
        }
        let run = self.engine.dispatch(spec, Secrets::new()).await.unwrap();
        let is = |event: &dispatch_core::event::Event| {
            event.subject.run() == Some(run) && matches!(event.kind, Kind::Started { .. })
        };
        self.until(is).await;
        run
    }

    /// Until the log has such an event.
    async fn until(&self, is: impl Fn(&dispatch_core::event::Event) -> bool) {
        let mut events = self.engine.events(0);
        let mut seen = Vec::new();
        let wait = async {
            loop {
                match events.next().await.expect("the engine has ended") {
                    Told::Event(event) if is(&event) => return,
                    Told::Event(event) => seen.push(event.kind.clone()),
                    _ => {}
                }
            }
        };
        let waited = timeout(PATIENCE, wait).await;
        assert!(waited.is_ok(), "it never came; there were {seen:#?}");
    }
}

/// What an agent in memory says, in the words of Claude Code.
struct Talker {
    site: Fake,
    run: RunId,
    open: String,
    asks: u32,
}

impl Talker {
    fn line(&self, line: &Value) {
        self.site.say(self.run, format!("{line}\n").as_bytes());
    }

    fn stream(&self, event: &Value) {
        self.line(&json!({"type": "stream_event", "parent_tool_use_id": null, "event": event}));
    }

    fn piece(&mut self, text: &str) {
        if self.open.is_empty() {
            let block = json!({"type": "text", "text": ""});
            self.stream(&json!({"type": "content_block_start", "content_block": block}));
        }
        self.open.push_str(text);
        let delta = json!({"type": "text_delta", "text": text});
        self.stream(&json!({"type": "content_block_delta", "delta": delta}));
    }

    fn assistant(&self, block: &Value) {
        self.line(&json!({
            "type": "assistant", "parent_tool_use_id": null, "message": {"content": [block]},
        }));
    }

    fn whole(&mut self) {
        if !self.open.is_empty() {
            let text = std::mem::take(&mut self.open);
            self.assistant(&json!({"type": "text", "text": text}));
        }
    }

    fn todo(&self, text: &str) {
        let todos = json!([{"content": text, "status": "in_progress"}]);
        let input = json!({"todos": todos});
        self.assistant(
            &json!({"type": "tool_use", "id": "t", "name": "TodoWrite", "input": input}),
        );
    }

    fn ask(&mut self) -> AskId {
        self.asks += 1;
        let request = json!({
            "subtype": "can_use_tool", "tool_name": "Bash", "input": {"command": self.asks},
        });
        self.line(&json!({
            "type": "control_request", "request_id": self.asks.to_string(), "request": request,
        }));
        AskId(self.asks)
    }

    /// It has taken up what was said to it, says that it is done, and leaves when its input is closed.
    fn done(&mut self, heard: usize) {
        self.whole();
        for _ in 0..heard {
            let content = json!([{"type": "text", "text": "said to it"}]);
            self.line(&json!({"type": "user", "isReplay": true, "message": {"content": content}}));
        }
        self.line(&json!({
            "type": "result", "subtype": "success", "is_error": false, "result": "done",
        }));
    }
}

/// Small and the same each time.
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Carrier {
    Sse,
    WebSocket,
}

enum Line {
    Sse(Events),
    WebSocket(Box<WebSocketStream<UnixStream>>),
}

impl Line {
    /// Comes back behind `after`.
    async fn open(client: &Client, paths: &Paths, carrier: Carrier, after: u64) -> Option<Self> {
        match carrier {
            Carrier::Sse => client.events(after, None).await.ok().map(Self::Sse),
            Carrier::WebSocket => {
                let stream = UnixStream::connect(paths.socket()).await.ok()?;
                let url = format!("ws://dispatch/v1/events/ws?after={after}");
                let request = url.into_client_request().unwrap();
                let (line, _) = client_async(request, stream).await.ok()?;
                Some(Self::WebSocket(Box::new(line)))
            }
        }
    }

    /// `None`: it was cut.
    async fn next(&mut self) -> Option<Frame> {
        match self {
            Self::Sse(events) => events.next().await.ok()?,
            Self::WebSocket(line) => loop {
                match line.next().await?.ok()? {
                    Sent::Text(text) => {
                        let parsed: Value = serde_json::from_str(&text).unwrap();
                        let word = parsed["event"].as_str().unwrap();
                        let frame = Frame::parse(word, &parsed["data"].to_string());
                        return Some(frame.expect("a frame of ours").unwrap());
                    }
                    Sent::Close(_) => return None,
                    _ => {}
                }
            },
        }
    }
}

/// What the test tells its clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Phase {
    /// Nothing is dropped, so that what is open can be looked at.
    calm: bool,
    /// Counts engines; between two of them there is nobody.
    engine: u32,
    /// The last event that there will be.
    last: Option<u64>,
}

/// When a client drops its line.
#[derive(Clone, Copy, Debug)]
enum Drops {
    AtEveryEvent,
    Sometimes(u64),
}

struct Watcher {
    client: Client,
    paths: Paths,
    carrier: Carrier,
    drops: Drops,
    phase: watch::Receiver<Phase>,
    view: watch::Sender<View>,
}

impl Watcher {
    async fn watch(mut self) -> View {
        let mut dice = Dice::new(match self.drops {
            Drops::AtEveryEvent => 1,
            Drops::Sometimes(seed) => seed,
        });
        loop {
            let phase = *self.phase.borrow_and_update();
            let after = self.view.borrow().seq;
            if phase.last.is_some_and(|last| after >= last) {
                return self.view.borrow().clone();
            }
            let line = Line::open(&self.client, &self.paths, self.carrier, after).await;
            if let Some(line) = line {
                self.follow(line, phase, &mut dice).await;
            } else {
                // There is no engine. The test says when there is another.
                self.phase.changed().await.unwrap();
            }
        }
    }

    /// Until the line is cut, or dropped.
    async fn follow(&mut self, mut line: Line, phase: Phase, dice: &mut Dice) {
        loop {
            let frame = tokio::select! {
                frame = line.next() => frame,
                changed = self.phase.changed() => {
                    changed.unwrap();
                    return;
                }
            };
            let Some(frame) = frame else {
                // By the end of its engine, or for no reason that the test knows.
                return;
            };
            let lossy = matches!(frame, Frame::Live(_));
            if lossy && !phase.calm && dice.roll(3) == 0 {
                continue;
            }
            let before = self.view.borrow().seq;
            self.view.send_modify(|view| view.hear(&frame));
            if let Frame::Event(event) = &frame {
                assert_eq!(event.seq, before + 1, "no gap, none twice: {frame:?}");
            }
            let drops = match self.drops {
                Drops::AtEveryEvent => matches!(frame, Frame::Event(_)),
                Drops::Sometimes(_) => dice.roll(9) == 0,
            };
            let seq = self.view.borrow().seq;
            let over = phase.last.is_some_and(|last| seq >= last);
            if over || (drops && !phase.calm) {
                return;
            }
        }
    }
}

/// All clients see what is open in these runs, to the last byte.
async fn all_see(views: &mut [watch::Receiver<View>], open: &BTreeMap<RunId, String>) {
    for view in views {
        let sees = |view: &View| {
            open.iter().all(|(run, text)| {
                let task = view.tasks.get(&run.task.to_string());
                let shown = task.and_then(|task| task.runs.get(&run.n));
                let shown = shown.and_then(|run| run.text.as_ref());
                let shown = shown.map_or("", |open| &open.text);
                shown == text
            })
        };
        let seen = timeout(PATIENCE, view.wait_for(sees)).await;
        let last = format!("{open:?}");
        drop(
            seen.unwrap_or_else(|_| panic!("nobody sees {last}"))
                .unwrap(),
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn row_12_clients_that_drop_and_rejoin_end_with_the_view_of_the_log() {
    let stage = Stage::new();
    let mut serving = stage.serve().await;
    let (tell, phase) = watch::channel(Phase::default());
    let mut views = Vec::new();
    let mut watchers = Vec::new();
    for carrier in [Carrier::Sse, Carrier::WebSocket] {
        for drops in [
            Drops::AtEveryEvent,
            Drops::Sometimes(5),
            Drops::Sometimes(77),
        ] {
            let (view, seen) = watch::channel(View::default());
            views.push(seen);
            let watcher = Watcher {
                client: stage.client(),
                paths: stage.settings.paths.clone(),
                carrier,
                drops,
                phase: phase.clone(),
                view,
            };
            watchers.push(tokio::spawn(watcher.watch()));
        }
    }
    let mut talkers = Vec::new();
    for _ in 0..3 {
        talkers.push(Talker {
            site: stage.site.clone(),
            run: serving.dispatch("talker").await,
            open: String::new(),
            asks: 0,
        });
    }
    let (mut dice, mut messages) = (Dice::new(2026), 0);
    for step in 0..240_u32 {
        let at = usize::try_from(dice.roll(3)).unwrap();
        let talker = &mut talkers[at];
        let (run, task) = (talker.run, talker.run.task);
        match dice.roll(14) {
            0..6 => talker.piece(&format!("{step}\u{e9}\n")),
            6 => talker.whole(),
            7 => talker.todo(&step.to_string()),
            8 => stage.site.say(run, b"no protocol of ours\n"),
            9 => {
                let text = format!("message {step}");
                let given = Secrets::new();
                let said = serving.engine.say(task, text, Sender::Person, given);
                timeout(PATIENCE, said).await.unwrap().unwrap();
                messages += usize::from(at == 0);
            }
            10 => {
                let ask = talker.ask();
                let is = |event: &dispatch_core::event::Event| {
                    let asked =
                        matches!(event.kind, Kind::PermissionAsked { ask: id, .. } if id == ask);
                    event.subject.run() == Some(run) && asked
                };
                serving.until(is).await;
                if dice.roll(3) > 0 {
                    let permit = serving.engine.permit(task, ask, true, None);
                    permit.await.unwrap();
                }
            }
            11 => {
                let frozen = dice.roll(2) == 0;
                let scope = dispatch_core::event::Scope::All;
                serving.engine.set_frozen(frozen, scope).await.unwrap();
            }
            _ => {}
        }
        if step == 80 || step == 160 {
            let open: BTreeMap<RunId, String> = talkers
                .iter()
                .map(|talker| (talker.run, talker.open.clone()))
                .collect();
            tell.send_modify(|phase| phase.calm = true);
            all_see(&mut views, &open).await;
            // The same before and after another engine, which hears all of it again.
            if step == 80 {
                serving.end().await;
                serving = stage.serve().await;
                tell.send_modify(|phase| phase.engine += 1);
                all_see(&mut views, &open).await;
            }
            tell.send_modify(|phase| phase.calm = false);
        }
    }
    // What is left over starts nothing new.
    let all = dispatch_core::event::Scope::All;
    serving.engine.set_frozen(true, all.clone()).await.unwrap();
    for (n, talker) in talkers.iter_mut().enumerate() {
        let run = talker.run;
        match n {
            // The others end in the middle of things, with messages and asks that wait.
            0 => talker.done(messages + 1),
            1 => stage.site.end(run, Exit::Code(1)),
            _ => serving.engine.stop(run.task, Force::Ask).await.unwrap(),
        }
        let is = |event: &dispatch_core::event::Event| {
            event.subject.run() == Some(run) && matches!(event.kind, Kind::Finished { .. })
        };
        serving.until(is).await;
    }
    // By its answer everything before it is told.
    serving.engine.set_frozen(true, all).await.unwrap();
    let last = serving.engine.seq();
    tell.send_modify(|phase| phase.last = Some(last));
    let truth = stage.truth();
    assert!(truth.seq == last && last > 100, "{last}");
    for watcher in watchers {
        let view = timeout(PATIENCE, watcher).await.unwrap().unwrap();
        assert_eq!(view, truth);
    }
    // And what the engine itself says of the same tasks.
    for talker in &talkers {
        let known = serving.engine.task(talker.run.task).await.unwrap().task;
        let view = &truth.tasks[&talker.run.task.to_string()];
        let run = &view.runs[&1];
        assert_eq!(known.runs[0].state.word(), run.state);
        let waiting: Vec<u32> = known.waiting().map(|message| message.id.0).collect();
        let seen: Vec<u32> = view
            .messages
            .iter()
            .map(|message| message.message)
            .collect();
        assert_eq!(seen, waiting);
        assert_eq!(view.asks.len(), known.open_asks().count());
    }
    serving.end().await;
}

/// One request, and what has come back when it ends or holds `until`.
async fn raw(stage: &Stage, path: &str, headers: &[&str], until: &str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = UnixStream::connect(stage.settings.paths.socket())
        .await
        .unwrap();
    let mut head = format!("GET {path} HTTP/1.1\r\nhost: dispatch\r\nconnection: close\r\n");
    for header in headers {
        head.push_str(&format!("{header}\r\n"));
    }
    stream
        .write_all(format!("{head}\r\n").as_bytes())
        .await
        .unwrap();
    let mut all = Vec::new();
    let read = async {
        let mut piece = [0; 4096];
        while !String::from_utf8_lossy(&all).contains(until) {
            match stream.read(&mut piece).await.unwrap() {
                0 => return,
                n => all.extend_from_slice(&piece[..n]),
            }
        }
    };
    timeout(PATIENCE, read).await.unwrap();
    String::from_utf8(all).unwrap()
}

/// The positions that an answer names, and the words of its frames.
fn told(answer: &str) -> (Vec<u64>, Vec<&str>) {
    let of = |start| {
        answer
            .lines()
            .filter_map(move |line| line.strip_prefix(start))
    };
    let ids = of("id: ").map(|id| id.parse().unwrap()).collect();
    (ids, of("event: ").collect())
}

const AT: &str = "event: at\n";
const NONE: [&str; 0] = [];

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_begins_where_it_is_told_to_and_has_what_it_is_asked_for() {
    let stage = Stage::new();
    let serving = stage.serve().await;
    let (one, other) = (
        serving.dispatch("printer").await,
        serving.dispatch("talker").await,
    );
    let all = raw(&stage, "/v1/events", &[], AT).await;
    assert!(all.starts_with("HTTP/1.1 200"), "{all}");
    assert!(
        all.to_lowercase()
            .contains("content-type: text/event-stream")
    );
    let last = serving.engine.seq();
    let (ids, words) = told(&all);
    // History, what is open in both runs, and then where that was.
    let wanted: Vec<u64> = (1..=last).chain([last]).collect();
    assert_eq!(ids, wanted);
    assert_eq!(words[words.len() - 3..], ["open", "open", "at"]);

    let header = format!("last-event-id: {}", last - 1);
    let rest = raw(&stage, "/v1/events?after=1", &[&header], AT).await;
    assert_eq!(told(&rest).0, [last, last], "the header wins");
    let after = format!("/v1/events?after={}", last - 2);
    assert_eq!(told(&raw(&stage, &after, &[], AT).await).0[0], last - 1);

    let of_one = format!("/v1/events?task={}&kinds=started,open", one.task);
    let of_one = raw(&stage, &of_one, &[], AT).await;
    assert_eq!(told(&of_one).1, ["event", "open", "at"]);
    let both = format!(
        "/v1/events?task={},{}&kinds=task_created",
        one.task, other.task
    );
    assert_eq!(
        told(&raw(&stage, &both, &[], AT).await).1,
        ["event", "event", "at"]
    );
    let twice = format!(
        "/v1/events?task={}&task={}&kinds=admitted&kinds=started",
        one.task, other.task
    );
    assert_eq!(told(&raw(&stage, &twice, &[], AT).await).0.len(), 5);

    let far = format!("/v1/events?after={}", last + 1);
    let far_header = format!("last-event-id: {}", last + 1);
    for (path, headers, code) in [
        ("/v1/events?befor=1", &NONE[..], "bad_query"),
        ("/v1/events?kinds=finish", &[], "bad_query"),
        ("/v1/events?task=3f", &[], "bad_query"),
        ("/v1/events?task=00000000000000aa", &[], "no_such_task"),
        (&far, &[], "no_such_position"),
        ("/v1/events", &[&*far_header], "no_such_position"),
        ("/v1/events", &["last-event-id: x"], "bad_query"),
        ("/v1/events/ws?befor=1", &[], "bad_query"),
    ] {
        let answer = raw(&stage, path, headers, "\"}").await;
        assert!(answer.starts_with("HTTP/1.1 4"), "{path}: {answer}");
        assert!(answer.contains(&format!("{code:?}")), "{path}: {answer}");
    }
    let listed = raw(&stage, "/v1/events?kinds=finish", &[], "\"}").await;
    assert!(listed.contains("task_created, ") && listed.contains("live, open"));
    serving.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_of_a_plain_program_are_live_and_open_and_in_no_event() {
    let stage = Stage::new();
    let serving = stage.serve().await;
    let run = serving.dispatch("printer").await;
    let client = stage.client();
    let task = run.task.to_string();
    let mut events = client.events(0, Some(&task)).await.unwrap();
    let (mut view, mut lossy) = (View::default(), true);
    while view.seq < serving.engine.seq() {
        view.hear(&events.next().await.unwrap().unwrap());
    }
    let shown = |view: &View| {
        let run = &view.tasks[&task].runs[&1];
        run.output.clone().map(|open| (open.offset, open.text))
    };
    for (said, want) in [
        ("one\ntw", "one\n"),
        ("o\n", "one\ntwo\n"),
        ("\u{fc}\n", "one\ntwo\n\u{fc}\n"),
    ] {
        stage.site.say(run, said.as_bytes());
        while shown(&view) != Some((0, want.to_owned())) {
            let frame = timeout(PATIENCE, events.next()).await.unwrap();
            let frame = frame.unwrap().unwrap();
            if let Frame::Live(live) = &frame {
                lossy &= live.lossy;
            }
            view.hear(&frame);
        }
    }
    assert!(lossy, "it says so");
    // Whoever comes later is told what is there.
    let mut late = client.events(view.seq, Some(&task)).await.unwrap();
    let Some(Frame::Open(open)) = late.next().await.unwrap() else {
        panic!("nothing is open");
    };
    assert_eq!(open.output.unwrap().text, "one\ntwo\n\u{fc}\n");
    assert!(stage.events().iter().all(|event| event.kind != "said"));
    serving.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_hears_of_its_own_family_only() {
    let stage = Stage::new();
    let serving = stage.serve().await;
    let (one, other) = (
        serving.dispatch_with("talker", Some("helpers")).await,
        serving.dispatch("talker").await,
    );
    // Without a grant there is nothing to hear.
    let none = serving.engine.run_token(other);
    let none = format!("authorization: Bearer {none}");
    let refused = raw(&stage, "/v1/events", &[&none], "\"}").await;
    assert!(refused.contains("has no grant"), "{refused}");
    let token = serving.engine.run_token(one);
    let token = format!("authorization: Bearer {token}");
    let answer = raw(&stage, "/v1/events", &[&token], AT).await;
    assert!(answer.contains(&one.task.to_string()));
    assert!(!answer.contains(&other.task.to_string()), "{answer}");
    assert!(!answer.contains("engine_started"), "{answer}");
    let foreign = format!("/v1/events?task={}", other.task);
    let refused = raw(&stage, &foreign, &[&token], "\"}").await;
    assert!(refused.contains("not_granted"), "{refused}");
    serving.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn there_are_only_so_many_streams() {
    let stage = Stage::new();
    let serving = stage.serve_with(Some(2)).await;
    let client = stage.client();
    let mut one = client.events(0, None).await.unwrap();
    let paths = &stage.settings.paths;
    let two = Line::open(&client, paths, Carrier::WebSocket, 0).await;
    assert!(one.next().await.unwrap().is_some() && two.is_some());
    let refused = raw(&stage, "/v1/events", &[], "\"}").await;
    assert!(refused.starts_with("HTTP/1.1 429"), "{refused}");
    assert!(
        refused.to_lowercase().contains("retry-after: "),
        "{refused}"
    );
    drop(one);
    // Its place is free as soon as the server has seen that it went.
    let again = async {
        while client.events(0, None).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, again).await.unwrap();
    serving.end().await;
}

fn asked(pairs: &[(&str, &str)]) -> Result<Asked, String> {
    let pairs = pairs
        .iter()
        .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()));
    Asked::try_from(pairs.collect::<Vec<_>>())
}

#[test]
fn a_query_is_lists_and_nothing_unknown() {
    let (one, two) = ("000000000000003f", "0000000000000040");
    let both = BTreeSet::from([TaskId::from_bits(0x3f), TaskId::from_bits(0x40)]);
    let comma = format!("{one},{two}");
    for pairs in [
        &[("task", comma.as_str()), ("after", "7")][..],
        &[("after", "7"), ("task", one), ("task", two)],
    ] {
        let asked = asked(pairs).unwrap();
        assert_eq!((asked.after, asked.tasks), (7, Some(both.clone())));
        assert_eq!(asked.kinds, None);
    }
    let kinds = asked(&[("kinds", "said,live"), ("kinds", "finished")]).unwrap();
    let wanted = BTreeSet::from(["said", "live", "finished"]);
    assert_eq!(kinds.kinds, Some(wanted));
    assert_eq!(asked(&[]).unwrap(), Asked::default());
    for (bad, says) in [
        (("befor", "7"), "after, task, kinds"),
        (("after", "-1"), "number of an event"),
        (("after", ""), "number of an event"),
        (("after", "+1"), "number of an event"),
        (("task", "3f"), "task"),
        (("kinds", "sayed"), "task_created"),
        (("kinds", "sayed"), "open"),
    ] {
        let error = asked(&[bad]).unwrap_err();
        assert!(error.contains(says), "{bad:?}: {error}");
    }
    assert!(asked(&[("after", "1"), ("after", "2")]).is_err());
}

/// The head of what is answered to a head alone.
async fn head(socket: &std::path::Path, text: &str) -> (UnixStream, String) {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let read = timeout(PATIENCE, stream.read_u8()).await.unwrap();
        let Ok(byte) = read else { break };
        answer.push(byte);
    }
    (stream, String::from_utf8(answer).unwrap().to_lowercase())
}

/// The connections on which that is granted, and what was said when it was not any more.
async fn all_of(socket: &std::path::Path, request: &str) -> (Vec<UnixStream>, String) {
    let mut granted = Vec::new();
    loop {
        let (mut stream, mut answer) = head(socket, request).await;
        if answer.starts_with("http/1.1 200") {
            granted.push(stream);
            continue;
        }
        assert!(answer.starts_with("http/1.1 429"), "{answer}");
        assert!(answer.contains("\r\nretry-after: "), "{answer}");
        while !answer.ends_with('}') {
            answer.push(stream.read_u8().await.unwrap().into());
        }
        return (granted, answer);
    }
}

/// An agent takes all that it can get, and whoever is at this machine goes on.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_takes_all_it_can_takes_only_its_share() {
    let stage = Stage::new();
    let serving = stage.serve().await;
    let run = serving.dispatch_with("talker", Some("helpers")).await;
    let (own, agents) = (
        stage.settings.paths.socket(),
        stage.settings.paths.agents().join(Paths::AGENTS_SOCKET),
    );
    let token = serving.engine.run_token(run);
    let token = format!("host: x\r\nauthorization: bearer {token}\r\n");
    let follow = format!("GET /v1/events HTTP/1.1\r\n{token}\r\n");
    let (follows, refused) = all_of(&agents, &follow).await;
    assert!(refused.contains("too_many_streams"), "{refused}");
    assert_eq!(follows.len(), 8);
    // Kept open each is a connection, and so are those of the streams.
    let look = format!("GET /v1/door HTTP/1.1\r\n{token}\r\n");
    let (looks, refused) = all_of(&agents, &look).await;
    assert!(refused.contains("too_many_connections"), "{refused}");
    assert_eq!(looks.len(), 24);
    // Somebody else of the agents is heard, also while strangers fill the socket.
    let mut strangers = Vec::new();
    for _ in 0..600 {
        strangers.push(UnixStream::connect(&agents).await.unwrap());
    }
    let other = serving.dispatch_with("talker", Some("helpers")).await;
    let other = serving.engine.run_token(other);
    let other = format!("host: x\r\nauthorization: bearer {other}\r\n");
    let request = format!("GET /v1/door HTTP/1.1\r\n{other}\r\n");
    let (_, answer) = head(&agents, &request).await;
    assert!(answer.starts_with("http/1.1 200"), "{answer}");
    // Whoever is at this machine has all of that still, and more bytes than an agent.
    let client = stage.client();
    let mut follows = Vec::new();
    for _ in 0..9 {
        let mut events = client.events(0, None).await.unwrap();
        assert!(events.next().await.unwrap().is_some());
        follows.push(events);
    }
    client.get::<Value>("/v1/tasks").await.unwrap();
    let length = 36 << 20;
    let body = |headers: &str| {
        format!(
            "POST /v1/tasks HTTP/1.1\r\n{headers}content-length: {length}\r\n\
             expect: 100-continue\r\n\r\n"
        )
    };
    let mut bodies = Vec::new();
    for n in 0..3 {
        let (stream, answer) = head(&agents, &body(&other)).await;
        let wanted = if n < 2 {
            "http/1.1 100"
        } else {
            "http/1.1 429"
        };
        assert!(answer.starts_with(wanted), "{n}: {answer}");
        bodies.push(stream);
    }
    let (stream, answer) = head(&own, &body("host: x\r\n")).await;
    assert!(answer.starts_with("http/1.1 100"), "{answer}");
    bodies.push(stream);
    // A server that ends waits for what has begun.
    drop((bodies, strangers, looks));
    serving.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_waits_with_a_token_leaves_room_for_the_person() {
    let stage = Stage::new();
    let serving = stage.serve().await;
    let run = serving.dispatch("talker").await;
    let tokens = Tokens::of(&stage.settings.paths.data);
    let scopes = [Scope::Read].into_iter().collect();
    let (token, _) = tokens.make(None, scopes, None, 0).unwrap();
    let asked = format!("{{\"tasks\": [\"{}\"], \"timeout_s\": 3600}}", run.task);
    let length = asked.len();
    let wait = format!(
        "POST /v1/wait HTTP/1.1\r\nhost: x\r\nauthorization: bearer {token}\r\n\
         content-length: {length}\r\n\r\n{asked}"
    );
    let socket = stage.settings.paths.socket();
    let mut waiting = JoinSet::new();
    for _ in 0..65 {
        let (socket, wait) = (socket.clone(), wait.clone());
        waiting.spawn(async move { head(&socket, &wait).await.1 });
    }
    // Those that wait are not answered.
    let answer = waiting.join_next().await.unwrap().unwrap();
    assert!(answer.starts_with("http/1.1 429"), "{answer}");
    assert_eq!(waiting.len(), 64);
    let own = json!({"tasks": [run.task.to_string()], "timeout_s": 0});
    let waited: Value = stage.client().post("/v1/wait", &own).await.unwrap();
    assert_eq!(waited["done"], false);
    serving.end().await;
}

/// Reads until the other side has ended it.
async fn to_the_end(mut stream: UnixStream) {
    let mut all = Vec::new();
    let end = timeout(PATIENCE, stream.read_to_end(&mut all)).await;
    end.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_open_ends_with_its_token_or_its_run() {
    let stage = Stage::new();
    let real = Clock::System.now();
    let clock = SetClock::at(real);
    let serving = stage.serve_at(None, Clock::Set(clock.clone())).await;
    let (run, other) = (
        serving.dispatch_with("talker", Some("helpers")).await,
        serving.dispatch("talker").await,
    );
    let tokens = Tokens::of(&stage.settings.paths.data);
    let scopes = || [Scope::Read].into_iter().collect();
    let hour = 3_600_000;
    let (kept, _) = tokens.make(Some("kept"), scopes(), None, real).unwrap();
    let (revoked, _) = tokens.make(Some("revoked"), scopes(), None, real).unwrap();
    let (over, _) = tokens
        .make(Some("over"), scopes(), Some(hour), real)
        .unwrap();
    let agent = serving.engine.run_token(run);
    let socket = stage.settings.paths.agents().join(Paths::AGENTS_SOCKET);
    let open = async |token: &str, rest: &str| {
        let (line, more) = rest.split_once('|').unwrap_or((rest, ""));
        let text = format!("{line} HTTP/1.1\r\nhost: x\r\nauthorization: bearer {token}\r\n{more}");
        let (stream, answer) = head(&socket, &text).await;
        assert!(
            ["http/1.1 200", "http/1.1 101"]
                .iter()
                .any(|s| answer.starts_with(s)),
            "{answer}"
        );
        (stream, answer)
    };
    let sse = "GET /v1/events|connection: close\r\n\r\n";
    let socketed = "GET /v1/events/ws|connection: upgrade\r\nupgrade: websocket\r\n\
        sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let hello = json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
        "protocolVersion": "2025-11-25", "capabilities": {},
        "clientInfo": {"name": "x", "version": "1"},
    }});
    let hello = hello.to_string();
    let length = hello.len();
    let accept = "accept: application/json, text/event-stream\r\n";
    let begin = format!(
        "POST /mcp|{accept}content-type: application/json\r\ncontent-length: {length}\r\n\r\n{hello}"
    );
    let (_, begun) = open(&revoked, &begin).await;
    let session = begun
        .lines()
        .find(|line| line.starts_with("mcp-session-id: "))
        .unwrap();
    let listen = format!("GET /mcp|connection: close\r\n{accept}{session}\r\n\r\n");
    let mut kept_open = open(&kept, sse).await.0;
    let mut ending = Vec::new();
    for rest in [sse, socketed, &listen] {
        ending.push(open(&revoked, rest).await.0);
    }
    let of_child = format!("GET /v1/events?task={}|connection: close\r\n\r\n", run.task);
    let run_over = open(&agent, &of_child).await.0;
    let token_over = open(&over, sse).await.0;
    tokens.revoke("revoked").unwrap();
    clock.set(real + LOOK_AGAIN_MS);
    for stream in ending {
        to_the_end(stream).await;
    }
    let ended =
        |event: &Event| event.kind == "finished" && event.task == Some(run.task.to_string());
    serving.engine.stop(run.task, Force::Kill).await.unwrap();
    while !stage.events().iter().any(ended) {
        tokio::task::yield_now().await;
    }
    clock.set(real + 2 * LOOK_AGAIN_MS);
    to_the_end(run_over).await;
    clock.set(real + hour);
    to_the_end(token_over).await;
    // What is still somebody's goes on.
    serving.engine.stop(other.task, Force::Kill).await.unwrap();
    let mut heard = String::new();
    let other = other.task.to_string();
    let ended = |line: &str| line.contains("\"finished\"") && line.contains(&other);
    while !heard.lines().any(ended) {
        let mut bytes = [0; 4096];
        let read = timeout(PATIENCE, kept_open.read(&mut bytes))
            .await
            .unwrap()
            .unwrap();
        assert!(read > 0, "it was ended: {heard}");
        heard.push_str(&String::from_utf8_lossy(&bytes[..read]));
    }
    serving.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn as_many_sessions_begin_as_one_caller_may_have_also_at_once() {
    let stage = Stage::new();
    let serving = stage.serve().await;
    let tokens = Tokens::of(&stage.settings.paths.data);
    let scopes = [Scope::Read].into_iter().collect();
    let (token, _) = tokens.make(None, scopes, None, 0).unwrap();
    let hello = json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
        "protocolVersion": "2025-11-25", "capabilities": {},
        "clientInfo": {"name": "x", "version": "1"},
    }});
    let (hello, length) = (hello.to_string(), hello.to_string().len());
    let begin = format!(
        "POST /mcp HTTP/1.1\r\nhost: x\r\nauthorization: bearer {token}\r\n\
         accept: application/json, text/event-stream\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n{hello}"
    );
    let mut all = JoinSet::new();
    for _ in 0..48 {
        let (socket, begin) = (stage.settings.paths.socket(), begin.clone());
        all.spawn(async move { head(&socket, &begin).await.1 });
    }
    let answers = all.join_all().await;
    let began = answers
        .iter()
        .filter(|answer| answer.contains("mcp-session-id: "));
    assert_eq!(began.count(), 32);
    let refused =
        |answer: &&String| answer.starts_with("http/1.1 429") && answer.contains("retry-after: ");
    assert_eq!(answers.iter().filter(refused).count(), 16);
    serving.end().await;
}
