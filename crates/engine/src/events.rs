//! The log as a stream: history, then live. A slow reader costs no memory: it falls back to the log.
//! Must not leave an event out or tell one twice; of what is lossy nothing comes before what was open.

use std::{
    collections::{BTreeSet, VecDeque},
    path::PathBuf,
    sync::Arc,
};

use dispatch_core::{
    event::Kind,
    id::{RunId, Seq, TaskId},
};
use tokio::sync::{Mutex, watch};

use crate::{
    engine::Engine,
    store::{Page, Store, StoreError},
    tail::{Place, Snapshot, Tail},
    view::{Logged, Told},
};

/// What a stream holds for its reader, beside one event more and what is open in live runs.
const HELD_BYTES_MAX: usize = 64 << 10;
const HELD_MAX: usize = 128;

/// The log as all streams read it: one at a time, through one connection.
#[derive(Clone, Debug)]
pub(crate) struct Logs {
    data: PathBuf,
    store: Arc<Mutex<Option<Store>>>,
}

impl Logs {
    pub(crate) fn new(data: PathBuf) -> Self {
        Self {
            data,
            store: Arc::new(Mutex::new(None)),
        }
    }

    async fn read(
        &self,
        after: Seq,
        tasks: Option<Arc<BTreeSet<TaskId>>>,
    ) -> Result<Page, StoreError> {
        let data = self.data.clone();
        let mut store = Arc::clone(&self.store).lock_owned().await;
        let read = move || {
            let opened = match store.take() {
                Some(opened) => opened,
                None => Store::read_only(&data)?,
            };
            let page = opened.read_page(after, tasks.as_deref(), HELD_MAX, HELD_BYTES_MAX)?;
            *store = Some(opened);
            Ok(page)
        };
        match tokio::task::spawn_blocking(read).await {
            Ok(page) => page,
            // Only at the end of the runtime.
            Err(_) => Ok(Page::nothing(after)),
        }
    }
}

/// Which frames about open texts a stream still owes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owes {
    Nothing,
    /// Before anything live.
    AtOnce,
    /// It has fallen behind and some of what is lossy is lost: when it has nothing else to tell, so
    /// that a reader who never keeps up is not burdened with it again and again.
    WhenIdle,
}

#[derive(Debug)]
pub struct EventStream {
    logs: Logs,
    tail: Arc<Tail>,
    grown: watch::Receiver<()>,
    /// All events up to here have been told or are held.
    after: Seq,
    /// Only of these.
    tasks: Option<Arc<BTreeSet<TaskId>>>,
    /// Where it is in memory; `None`: in the log.
    place: Option<Place>,
    /// Only events are told.
    plain: bool,
    owes: Owes,
    /// What was open when it caught up, to be told at its place.
    joining: Option<Snapshot>,
    held: VecDeque<Told>,
    /// Whose family it is for; `None`: a person's, who sees everything.
    kin: Option<Kin>,
}

/// The tasks whose events an agent may see.
#[derive(Debug)]
enum Kin {
    /// Asked for when the first event is: that may take a while, and may be refused.
    Unknown(Engine, RunId),
    /// The agent's own run, with which its view ends.
    Known(RunId, BTreeSet<TaskId>),
    Over,
}

impl Kin {
    /// Learns of tasks that are asked for while it looks.
    fn sees(&mut self, told: &Told) -> bool {
        let Self::Known(own, family) = self else {
            return false;
        };
        let task = match told {
            Told::Live(live) => Some(live.run.task),
            Told::Open { open, .. } => Some(open.run.task),
            Told::At(_) => return true,
            Told::Event(event) => {
                let task = event.subject.task();
                if let Kind::TaskCreated { spec, .. } = &event.kind
                    && spec
                        .terms
                        .asked_by
                        .is_some_and(|by| family.contains(&by.task))
                {
                    family.extend(task);
                }
                task
            }
        };
        let seen = task.is_some_and(|task| family.contains(&task));
        if let Told::Event(event) = told
            && event.subject.run() == Some(*own)
            && matches!(event.kind, Kind::Finished { .. })
        {
            *self = Self::Over;
        }
        seen
    }
}

/// What came of a look into memory.
enum Look {
    Found,
    Nothing,
    Behind,
}

impl EventStream {
    pub(crate) fn new(logs: Logs, tail: Arc<Tail>, after: Seq) -> Self {
        Self {
            logs,
            grown: tail.grown(),
            place: tail.find(after),
            tail,
            after,
            tasks: None,
            plain: true,
            owes: Owes::Nothing,
            joining: None,
            held: VecDeque::new(),
            kin: None,
        }
    }

    /// With all that is told beside events.
    pub(crate) fn watching(mut self, tasks: Option<BTreeSet<TaskId>>) -> Self {
        self.plain = false;
        self.owes = Owes::AtOnce;
        self.tasks = tasks.map(Arc::new);
        self
    }

    /// Only what the agent of that run may see, on whose behalf this engine is asked.
    pub(crate) fn of_family(mut self, engine: Engine, run: RunId) -> Self {
        self.kin = Some(Kin::Unknown(engine, run));
        self
    }

    /// All events up to here have been told, of those that are asked for; `None` while some are held.
    #[must_use]
    pub fn position(&self) -> Option<Seq> {
        self.held.is_empty().then_some(self.after)
    }

    /// `None` when the engine has ended or its log cannot be read any more, or whoever asks may not.
    /// Safe to cancel.
    pub async fn next(&mut self) -> Option<Told> {
        if let Some(Kin::Unknown(engine, run)) = &self.kin {
            let family = engine.family().await.ok()?;
            self.kin = Some(Kin::Known(*run, family));
        }
        loop {
            if matches!(self.kin, Some(Kin::Over)) {
                return None;
            }
            let told = self.any().await?;
            if self.sees(&told) {
                return Some(told);
            }
        }
    }

    /// The same without waiting, as far as memory goes.
    pub fn next_ready(&mut self) -> Option<Told> {
        while matches!(self.kin, None | Some(Kin::Known(..))) {
            let told = self.any_ready()?;
            if self.sees(&told) {
                return Some(told);
            }
        }
        None
    }

    fn sees(&mut self, told: &Told) -> bool {
        self.kin.as_mut().is_none_or(|kin| kin.sees(told))
    }

    async fn any(&mut self) -> Option<Told> {
        loop {
            self.grown.mark_unchanged();
            // Asked before the look: what is told before the end is there.
            let ended = self.tail.has_ended();
            if let Some(told) = self.any_ready() {
                return Some(told);
            }
            if self.place.is_none() {
                self.read_log().await.ok()?;
            } else if ended {
                return None;
            } else {
                self.grown.changed().await.ok()?;
            }
        }
    }

    fn any_ready(&mut self) -> Option<Told> {
        loop {
            if let Some(told) = self.held.pop_front() {
                return Some(told);
            }
            match self.look(self.place?) {
                Look::Found => {}
                Look::Nothing => return None,
                Look::Behind => {
                    (self.place, self.joining) = (None, None);
                    if self.owes == Owes::Nothing && !self.plain {
                        self.owes = Owes::WhenIdle;
                    }
                }
            }
        }
    }

    async fn read_log(&mut self) -> Result<(), StoreError> {
        let page = self.logs.read(self.after, self.tasks.clone()).await?;
        self.after = page.upto;
        let events = page.events.into_iter();
        let events = events.map(|(event, json)| Told::Event(Arc::new(Logged::new(event, json))));
        self.held.extend(events);
        self.place = self.tail.find(self.after);
        Ok(())
    }

    /// Takes up what memory has behind `place`.
    fn look(&mut self, place: Place) -> Look {
        if self.owes == Owes::AtOnce && self.joining.is_none() {
            self.joining = Some(self.tail.snapshot());
        }
        let until = self.joining.as_ref().map(|join| join.place);
        if until.is_some_and(|until| until <= place) {
            return self.join();
        }
        // What is live before the join is in what is open there.
        let live = !self.plain && until.is_none();
        let (mut after, held) = (self.after, &mut self.held);
        let tasks = self.tasks.as_deref();
        let found = self.tail.read(place, until, HELD_BYTES_MAX, |told| {
            let wanted = match told {
                // A position may lie ahead of the log.
                Told::Event(event) if event.seq <= after => false,
                Told::Event(event) => {
                    after = event.seq;
                    true
                }
                Told::Live(_) | Told::Open { .. } | Told::At(_) => live,
            };
            if wanted && is_of(told, tasks) {
                held.push_back(told.clone());
            }
        });
        let Some(next) = found else {
            return Look::Behind;
        };
        self.after = after;
        self.place = Some(next);
        if next > place {
            return Look::Found;
        }
        if self.owes == Owes::WhenIdle {
            self.joining = Some(self.tail.snapshot());
            return Look::Found;
        }
        Look::Nothing
    }

    fn join(&mut self) -> Look {
        if let Some(Snapshot { seq, open, .. }) = self.joining.take() {
            let tasks = self.tasks.as_deref();
            let open = open.into_iter().map(|open| Told::Open { seq, open });
            let open = open.filter(|told| is_of(told, tasks));
            self.held.extend(open);
            self.held.push_back(Told::At(seq));
            self.owes = Owes::Nothing;
        }
        Look::Found
    }
}

fn is_of(told: &Told, tasks: Option<&BTreeSet<TaskId>>) -> bool {
    let task = match told {
        Told::Event(event) => event.subject.task(),
        Told::Live(live) => Some(live.run.task),
        Told::Open { open, .. } => Some(open.run.task),
        Told::At(_) => return true,
    };
    tasks.is_none_or(|tasks| task.is_some_and(|task| tasks.contains(&task)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use dispatch_core::{
        ask::AskId,
        event::{Event, Kind, Subject},
        id::RunId,
        message::{MessageId, Sender},
        outcome::Outcome,
        redact::Redactor,
        run::RunCause,
        state::State,
        task::{Base, ChecksAsked, Expects, Labels, Placement, TaskSpec, Terms, Turn, Wrap},
        update::{ChunkId, Todo, TodoState, Update, Voice},
    };

    use super::*;
    use crate::{speech::Speech, tail::Room, view::Live};

    /// Small, so that readers fall behind soon.
    const ROOM: Room = Room {
        told_max: 12,
        bytes_max: 1 << 20,
    };

    fn spec() -> TaskSpec {
        TaskSpec {
            title: "t".into(),
            text: "t".into(),
            repo: "/r".into(),
            base: Base::Head,
            agent: "a".parse().unwrap(),
            pool: "p".parse().unwrap(),
            placement: Placement::of(Wrap::Host),
            expects: Expects::Change,
            checks: ChecksAsked::Detect,
            review_base: None,
            workspace: None,
            turn: Turn::default(),
            parent: None,
            labels: Labels::default(),
            terms: Terms::default(),
            limits: dispatch_core::limits::Lowered::default(),
            guide: Default::default(),
        }
    }

    /// What an actor does, without one.
    struct Desk {
        data: tempfile::TempDir,
        state: State,
        store: Store,
        tail: Arc<Tail>,
        logs: Logs,
    }

    impl Desk {
        fn new() -> Self {
            let data = tempfile::tempdir().unwrap();
            let store = Store::open(data.path()).unwrap();
            let state = State::default();
            let tail = Arc::new(Tail::with(ROOM, &state, 0));
            let logs = Logs::new(data.path().to_owned());
            Self {
                data,
                state,
                store,
                tail,
                logs,
            }
        }

        fn tell(&mut self, all: Vec<(Subject, Kind)>) {
            let mut events = Vec::new();
            for (subject, kind) in all {
                let event = Event {
                    seq: self.state.seq() + 1,
                    at: 5,
                    subject,
                    kind,
                };
                self.state.apply(&event).unwrap();
                events.push(event);
            }
            let kinds = self.store.append(&events).unwrap();
            self.tail.tell(events.into_iter().zip(kinds), &self.state);
        }

        fn begin(&mut self, bits: u64) -> RunId {
            let run = RunId {
                task: TaskId::from_bits(bits),
                n: 1,
            };
            let (spec, short) = (Box::new(spec()), "00".to_owned());
            let started = Kind::Started {
                site: "local".parse().unwrap(),
                driver: dispatch_core::drivers::DriverKind::Claude,
                enforced: String::new(),
            };
            let cause = RunCause::Dispatched;
            self.tell(vec![
                (Subject::Task(run.task), Kind::TaskCreated { spec, short }),
                (Subject::Run(run), Kind::RunQueued { cause }),
                (Subject::Run(run), Kind::Admitted),
                (Subject::Run(run), started),
            ]);
            run
        }

        fn speech(&self, run: RunId) -> Speech {
            Speech::new(run, Arc::clone(&self.tail), Redactor::shapes())
        }

        fn watch(&self, after: Seq) -> EventStream {
            EventStream::new(self.logs.clone(), Arc::clone(&self.tail), after).watching(None)
        }

        fn notes(&mut self, count: u64) {
            let text = "n".to_owned();
            let note = || (Subject::Engine, Kind::Noted { text: text.clone() });
            self.tell((0..count).map(|_| note()).collect());
        }

        /// The same log and live runs under another engine.
        fn restart(&mut self) {
            self.tail = Arc::new(Tail::with(ROOM, &self.state, self.state.seq()));
        }
    }

    fn said(chunk: u32, text: &str) -> Kind {
        Kind::Said {
            update: Update::Text { text: text.into() },
            out_offset: 1,
            chunk: Some(ChunkId(chunk)),
        }
    }

    fn todo(text: &str) -> Kind {
        let state = TodoState::Active;
        let text = text.to_owned();
        Kind::Said {
            update: Update::Todo {
                items: vec![Todo { text, state }],
            },
            out_offset: 1,
            chunk: None,
        }
    }

    #[derive(Clone, Debug, Default, PartialEq)]
    struct Seen {
        closed: u32,
        text: Option<(u32, u64, String)>,
        output: Option<(u64, String)>,
        todo: Vec<Todo>,
        messages: Vec<MessageId>,
        asks: Vec<AskId>,
    }

    /// The rules of docs/events.md, as far as they are about what is open.
    #[derive(Debug, Default)]
    struct Reader {
        seq: Seq,
        runs: BTreeMap<RunId, Seen>,
        /// How often it was told what is open.
        opened: usize,
        joined: bool,
    }

    impl Reader {
        fn hear(&mut self, told: &Told) {
            match told {
                Told::Event(event) => {
                    assert_eq!(event.seq, self.seq + 1, "no gap, none twice");
                    self.seq = event.seq;
                    self.event(event);
                }
                Told::Live(live) => {
                    assert!(self.joined, "before what was open");
                    self.live(live);
                }
                Told::Open { seq, open } => {
                    assert_eq!(*seq, self.seq, "at its place");
                    self.opened += 1;
                    let seen = self.runs.entry(open.run).or_default();
                    let text = open.text.as_ref();
                    seen.text = text.map(|t| (t.chunk.0, t.offset, t.text.clone()));
                    let output = open.output.as_ref();
                    seen.output = output.map(|t| (t.offset, t.text.clone()));
                    seen.todo.clone_from(&open.todo);
                    seen.messages = open.messages.iter().map(|m| m.id).collect();
                    seen.asks = open.asks.iter().map(|ask| ask.id).collect();
                }
                Told::At(seq) => {
                    assert_eq!(*seq, self.seq, "at its place");
                    self.joined = true;
                }
            }
        }

        fn event(&mut self, event: &Event) {
            let Some(run) = event.subject.run().or_else(|| {
                let task = event.subject.task()?;
                Some(RunId { task, n: 1 })
            }) else {
                return;
            };
            let seen = self.runs.entry(run).or_default();
            match &event.kind {
                Kind::Said { update, chunk, .. } => {
                    if let Some(ChunkId(chunk)) = chunk {
                        seen.closed = seen.closed.max(*chunk);
                        seen.text.take_if(|(open, ..)| *open <= *chunk);
                    }
                    if let Update::Todo { items } = update {
                        seen.todo.clone_from(items);
                    }
                }
                Kind::MessageQueued { message, .. } => seen.messages.push(*message),
                Kind::PermissionAsked { ask, .. } => seen.asks.push(*ask),
                Kind::PermissionAnswered { ask, .. } => seen.asks.retain(|known| known != ask),
                Kind::Finished { .. } => {
                    self.runs.remove(&run);
                }
                _ => {}
            }
        }

        fn live(&mut self, live: &Live) {
            let Some(seen) = self.runs.get_mut(&live.run) else {
                return;
            };
            let joined = |offset: u64, text: &str| {
                let end = offset + text.len() as u64;
                let known = usize::try_from(end.checked_sub(live.offset)?).unwrap();
                let new = live.text.get(known..).unwrap_or_default();
                Some((offset, format!("{text}{new}")))
            };
            let anew = (live.offset, live.text.clone());
            if live.voice == Voice::Output {
                let known = seen.output.as_ref();
                let known = known.and_then(|(offset, text)| joined(*offset, text));
                seen.output = Some(known.unwrap_or(anew));
                return;
            }
            let chunk = live.chunk.0;
            let newest = seen.text.as_ref().map_or(0, |(open, ..)| *open);
            if chunk <= seen.closed || chunk < newest {
                return;
            }
            let known = seen.text.as_ref().filter(|(open, ..)| *open == chunk);
            let known = known.and_then(|(_, offset, text)| joined(*offset, text));
            let (offset, text) = known.unwrap_or(anew);
            seen.text = Some((chunk, offset, text));
        }
    }

    /// Reads until it would have to wait.
    async fn drain(stream: &mut EventStream, reader: &mut Reader) {
        loop {
            if let Some(told) = stream.next_ready() {
                reader.hear(&told);
            } else if stream.place.is_none() {
                let told = stream.next().await.unwrap();
                reader.hear(&told);
            } else {
                return;
            }
        }
    }

    /// Small and the same each time.
    struct Dice(u64);

    impl Dice {
        fn roll(&mut self, sides: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 % sides
        }
    }

    /// What each run's agent has really said so far.
    #[derive(Clone, Debug, Default, PartialEq)]
    struct Truth {
        chunk: u32,
        text: String,
        output: String,
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn however_slow_a_reader_is_it_misses_no_event_and_no_byte_of_what_is_open() {
        for seed in 1..16_u64 {
            let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let mut desk = Desk::new();
            let runs = [desk.begin(1), desk.begin(2)];
            let mut speeches = runs.map(|run| desk.speech(run));
            let mut truths = [Truth::default(), Truth::default()];
            let mut readers: Vec<(EventStream, Reader)> = Vec::new();
            for step in 0..300_u32 {
                let at = usize::try_from(dice.roll(2)).unwrap();
                let (run, truth) = (runs[at], &mut truths[at]);
                match dice.roll(10) {
                    0..4 => {
                        if truth.text.is_empty() {
                            truth.chunk += 1;
                        }
                        let more = format!("{step}\u{e9} ");
                        truth.text.push_str(&more);
                        speeches[at].piece(ChunkId(truth.chunk), Voice::Text, &more);
                        speeches[at].flush();
                    }
                    4 if !truth.text.is_empty() => {
                        let whole = std::mem::take(&mut truth.text);
                        desk.tell(vec![(Subject::Run(run), said(truth.chunk, &whole))]);
                    }
                    5 => {
                        let line = format!("line {step}");
                        truth.output.push_str(&format!("{line}\n"));
                        speeches[at].line(&line);
                        speeches[at].flush();
                    }
                    6 => desk.tell(vec![(Subject::Run(run), todo(&step.to_string()))]),
                    7 => desk.notes(dice.roll(20)),
                    _ => {
                        if readers.len() < 6 {
                            let after = dice.roll(desk.state.seq() + 1);
                            let seq = after;
                            let reader = Reader {
                                seq,
                                ..Reader::default()
                            };
                            readers.push((desk.watch(after), reader));
                        }
                    }
                }
                for (stream, reader) in &mut readers {
                    match dice.roll(8) {
                        0 => drain(stream, reader).await,
                        // A few of what is there, or nothing: it falls behind.
                        1..3 => {
                            for _ in 0..dice.roll(4) {
                                if let Some(told) = stream.next_ready() {
                                    reader.hear(&told);
                                }
                            }
                        }
                        _ => {}
                    }
                }
            }
            let mut from_the_start = (desk.watch(0), Reader::default());
            drain(&mut from_the_start.0, &mut from_the_start.1).await;
            for (mut stream, mut reader) in readers {
                drain(&mut stream, &mut reader).await;
                assert_eq!(reader.seq, desk.state.seq(), "seed {seed}");
                for (run, truth) in runs.iter().zip(&truths) {
                    let seen = &reader.runs[run];
                    let text = seen.text.clone();
                    let want = (truth.chunk, 0, truth.text.clone());
                    let want = Some(want).filter(|_| !truth.text.is_empty());
                    assert_eq!(text, want, "seed {seed}");
                    let output = seen.output.clone().unwrap_or_default();
                    assert_eq!(output, (0, truth.output.clone()), "seed {seed}");
                    let other = &from_the_start.1.runs[run];
                    assert_eq!((&seen.todo, &seen.asks), (&other.todo, &other.asks));
                }
            }
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_waits_in_a_run_is_told_when_one_begins_to_listen() {
        let mut desk = Desk::new();
        let run = desk.begin(1);
        let queued = |n| Kind::MessageQueued {
            message: MessageId(n),
            text: "x".repeat(5000),
            from: Sender::Person,
            fresh: false,
            ends: Vec::new(),
            held: false,
        };
        let asked = |n| Kind::PermissionAsked {
            ask: AskId(n),
            tool: "Bash".into(),
            input: "make".into(),
            owner: Sender::Person,
            until: 9,
        };
        desk.tell(vec![
            (Subject::Task(run.task), queued(1)),
            (Subject::Run(run), asked(1)),
            (Subject::Task(run.task), queued(2)),
        ]);
        let (message, by) = (MessageId(1), dispatch_core::ask::By::Person);
        desk.tell(vec![(
            Subject::Task(run.task),
            Kind::MessageCancelled { message },
        )]);
        let open = |desk: &Desk| {
            let mut stream = desk.watch(desk.state.seq());
            async move {
                match stream.next().await.unwrap() {
                    Told::Open { open, .. } => Some(open),
                    Told::At(_) => None,
                    other => panic!("{other:?}"),
                }
            }
        };
        let now = open(&desk).await.unwrap();
        let messages: Vec<MessageId> = now.messages.iter().map(|m| m.id).collect();
        assert_eq!(messages, [MessageId(2)]);
        assert!(now.messages[0].text.len() < 2000, "a long one is cut");
        assert_eq!(now.asks.len(), 1);
        let (ask, allow, why) = (AskId(1), true, None);
        let answered = Kind::PermissionAnswered {
            ask,
            allow,
            by,
            reason: why,
            always: false,
        };
        desk.tell(vec![(Subject::Run(run), answered)]);
        assert!(open(&desk).await.unwrap().asks.is_empty());
        let (outcome, verified) = (Outcome::Lost, dispatch_core::event::Verified::No);
        let finished = Kind::Finished { outcome, verified };
        desk.tell(vec![(Subject::Run(run), finished)]);
        assert!(open(&desk).await.is_none(), "it is not live any more");
    }

    /// The next engine hears the same output again, and tells of it when it is through.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_replay_is_not_told_and_ends_with_what_is_open() {
        let mut desk = Desk::new();
        let run = desk.begin(1);
        let say = |speech: &mut Speech| {
            speech.line("hello");
            speech.piece(ChunkId(1), Voice::Text, "first");
        };
        let mut speech = desk.speech(run);
        say(&mut speech);
        speech.flush();
        desk.tell(vec![(Subject::Run(run), said(1, "first"))]);
        speech.piece(ChunkId(2), Voice::Thinking, "half a th");
        speech.flush();
        let before = desk.state.seq();
        desk.restart();
        let mut stream = desk.watch(before);
        let mut reader = Reader {
            seq: before,
            ..Reader::default()
        };
        drain(&mut stream, &mut reader).await;
        assert_eq!(reader.opened, 0, "nobody knows it yet");
        let mut speech = desk.speech(run);
        say(&mut speech);
        let whole = Update::Text {
            text: "first".into(),
        };
        speech.known(Some(ChunkId(1)), &whole);
        speech.piece(ChunkId(2), Voice::Thinking, "half a th");
        drain(&mut stream, &mut reader).await;
        assert!(reader.runs.is_empty());
        speech.caught_up();
        drain(&mut stream, &mut reader).await;
        let seen = &reader.runs[&run];
        assert_eq!(seen.text, Some((2, 0, "half a th".into())));
        assert_eq!(seen.output, Some((0, "hello\n".into())));
        speech.piece(ChunkId(2), Voice::Thinking, "ought");
        speech.flush();
        drain(&mut stream, &mut reader).await;
        assert_eq!(
            reader.runs[&run].text,
            Some((2, 0, "half a thought".into()))
        );
        drop(desk.data);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_secret_in_two_pieces_is_masked_and_no_byte_is_counted_twice() {
        let mut desk = Desk::new();
        let run = desk.begin(1);
        let secret = format!("sk-ant-api03-{}", "aB3".repeat(12));
        let mut speech = desk.speech(run);
        let mut stream = desk.watch(desk.state.seq());
        let mut reader = Reader {
            seq: desk.state.seq(),
            ..Reader::default()
        };
        drain(&mut stream, &mut reader).await;
        for piece in [
            "the key is ",
            &secret[..9],
            &secret[9..30],
            &secret[30..],
            " end",
        ] {
            speech.piece(ChunkId(1), Voice::Text, piece);
            speech.flush();
            drain(&mut stream, &mut reader).await;
        }
        let seen = reader.runs[&run].text.clone();
        assert_eq!(seen, Some((1, 0, "the key is *** end".into())));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_flood_is_told_by_its_end_and_the_hole_is_seen() {
        let mut desk = Desk::new();
        let run = desk.begin(1);
        let mut speech = desk.speech(run);
        let mut stream = desk.watch(desk.state.seq());
        while !matches!(stream.next().await, Some(Told::At(_))) {}
        let flood = "\u{e9}".repeat(100_000);
        speech.piece(ChunkId(1), Voice::Text, &flood);
        speech.flush();
        let Some(Told::Live(live)) = stream.next_ready() else {
            panic!("nothing was told");
        };
        assert!(live.text.len() <= crate::tail::LIVE_BYTES_MAX);
        assert_eq!(live.offset + live.text.len() as u64, flood.len() as u64);
        let mut late = desk.watch(desk.state.seq());
        let Some(Told::Open { open, .. }) = late.next().await else {
            panic!("nothing is open");
        };
        let open = open.text.clone().unwrap();
        assert!(open.text.len() <= crate::tail::OPEN_TEXT_BYTES_MAX * 5 / 4);
        assert_eq!(open.offset + open.text.len() as u64, flood.len() as u64);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_reader_that_stops_costs_a_page_and_what_is_open() {
        let mut desk = Desk::new();
        let run = desk.begin(1);
        let mut stream = desk.watch(0);
        let mut reader = Reader::default();
        reader.hear(&stream.next().await.unwrap());
        let long = "x".repeat(HELD_BYTES_MAX / 4);
        for n in 1..200 {
            let kind = said(n, &long);
            desk.tell(vec![(Subject::Run(run), kind)]);
            if n % 50 == 0 {
                // Now and then it takes one.
                reader.hear(&stream.next().await.unwrap());
            }
            let weighs = |told: &Told| match told {
                Told::Event(event) => event.encoded(|_, json| json.to_owned()).len(),
                _ => 0,
            };
            let held: usize = stream.held.iter().map(weighs).sum();
            assert!(held <= HELD_BYTES_MAX + 2 * long.len(), "{held} bytes");
            assert!(stream.held.len() <= HELD_MAX);
        }
        drain(&mut stream, &mut reader).await;
        assert_eq!(reader.seq, desk.state.seq());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_position_ahead_of_the_log_is_waited_for() {
        let mut desk = Desk::new();
        desk.notes(3);
        let mut stream = EventStream::new(desk.logs.clone(), Arc::clone(&desk.tail), 5);
        assert!(stream.next_ready().is_none());
        desk.notes(4);
        let Some(Told::Event(event)) = stream.next().await else {
            panic!("no event");
        };
        assert_eq!(event.seq, 6);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_stream_of_one_task_reads_past_the_others() {
        let mut desk = Desk::new();
        let (one, other) = (desk.begin(1), desk.begin(2));
        for n in 1..40 {
            desk.tell(vec![(Subject::Run(other), said(n, "other"))]);
        }
        desk.tell(vec![(Subject::Run(one), said(1, "mine"))]);
        let tasks = BTreeSet::from([one.task]);
        let stream = EventStream::new(desk.logs.clone(), Arc::clone(&desk.tail), 0);
        let mut stream = stream.watching(Some(tasks));
        let mut heard = Vec::new();
        loop {
            match stream.next().await.unwrap() {
                Told::Event(event) => {
                    assert_eq!(event.subject.task(), Some(one.task));
                    heard.push(event.seq);
                }
                Told::Open { open, .. } => assert_eq!(open.run, one),
                Told::Live(_) => {}
                Told::At(seq) => {
                    assert_eq!(seq, desk.state.seq());
                    break;
                }
            }
        }
        assert_eq!(heard, [1, 2, 3, 4, desk.state.seq()]);
        assert_eq!(stream.position(), Some(desk.state.seq()));
    }
}
