//! What was told last, in memory: the end of the log for whoever is near it, the pieces of texts that
//! are in no log, and what is open in each live run. Told and noted in one step, so that whoever
//! begins to listen hears what is open and then all that comes, with nothing between and nothing twice.
//! Must not wait for a reader: whoever falls behind reads the log.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use dispatch_core::{
    event::{Event, Kind, Subject},
    id::{RunId, Seq, TaskId},
    message::{Fate, Message},
    state::{State, Task},
    update::{ChunkId, Todo, Update, Voice},
};
use tokio::sync::watch;

use crate::view::{Live, Logged, Open, OpenText, Told};

/// How much of what was told last is held.
const ROOM: Room = Room {
    told_max: 16 << 10,
    bytes_max: 4 << 20,
};
/// What one of them costs besides its text.
const TOLD_BYTES_EACH: usize = 256;
/// Of one live text that is told at once: the newest. What is before it is a hole, which its offset
/// shows.
pub(crate) const LIVE_BYTES_MAX: usize = 8 << 10;
/// What is held of each live run, of its text that is open and of the lines that are kept nowhere else.
pub(crate) const OPEN_TEXT_BYTES_MAX: usize = 64 << 10;
pub(crate) const OPEN_OUTPUT_BYTES_MAX: usize = 8 << 10;
/// Messages of each live run, the newest, and of the text of each.
const OPEN_MESSAGES_MAX: usize = 128;
const OPEN_MESSAGE_BYTES_MAX: usize = 1 << 10;

/// A place between two that were told, counted from the engine's start.
pub(crate) type Place = u64;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    pub(crate) told_max: usize,
    pub(crate) bytes_max: usize,
}

/// What is open, and the place where it is.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) place: Place,
    pub(crate) seq: Seq,
    pub(crate) open: Vec<Arc<Open>>,
}

#[derive(Debug)]
struct Entry {
    told: Told,
    /// The last event by then.
    seq: Seq,
    bytes: usize,
}

#[derive(Debug)]
struct Shown {
    open: Arc<Open>,
    /// What an engine before this one has heard is not heard again yet: nobody is told so far.
    hidden: bool,
}

#[derive(Debug)]
struct Inner {
    room: Room,
    entries: VecDeque<Entry>,
    /// The place before the first of them.
    first: Place,
    bytes: usize,
    seq: Seq,
    runs: BTreeMap<RunId, Shown>,
    ended: bool,
}

/// Shared by the actor, the supervisors and every stream.
#[derive(Debug)]
pub(crate) struct Tail {
    inner: Mutex<Inner>,
    grown: watch::Sender<()>,
}

/// Ends the tail with the actor, however that ends.
#[derive(Debug)]
pub(crate) struct Ends(pub(crate) Arc<Tail>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.lock().ended = true;
        self.0.wake();
    }
}

impl Tail {
    /// Runs that are live already are told of when what they said has been heard again.
    pub(crate) fn new(state: &State, last: Seq) -> Self {
        Self::with(ROOM, state, last)
    }

    pub(crate) fn with(room: Room, state: &State, last: Seq) -> Self {
        let mut inner = Inner {
            room,
            entries: VecDeque::new(),
            first: 0,
            bytes: 0,
            seq: last,
            runs: BTreeMap::new(),
            ended: false,
        };
        for run in state.live() {
            inner.begin(run, true);
            inner.look_at(state.task(run.task));
        }
        Self {
            inner: Mutex::new(inner),
            grown: watch::channel(()).0,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        self.grown.send_replace(());
    }

    pub(crate) fn grown(&self) -> watch::Receiver<()> {
        self.grown.subscribe()
    }

    /// The last event that was told.
    pub(crate) fn seq(&self) -> Seq {
        self.lock().seq
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.lock().ended
    }

    /// A batch that is durable, each with its kind as the log has it, and the state behind it.
    pub(crate) fn tell(&self, events: impl Iterator<Item = (Event, String)>, state: &State) {
        let mut inner = self.lock();
        let mut changed = BTreeSet::new();
        for (event, json) in events {
            inner.seq = event.seq;
            changed.extend(inner.follow(&event));
            let bytes = json.len();
            inner.push(Told::Event(Arc::new(Logged::new(event, json))), bytes);
        }
        for task in changed {
            inner.look_at(state.task(task));
        }
        drop(inner);
        self.wake();
    }

    /// More of what an agent says.
    pub(crate) fn tell_live(&self, mut live: Live) {
        let mut inner = self.lock();
        let Some(shown) = inner.runs.get_mut(&live.run) else {
            return;
        };
        Arc::make_mut(&mut shown.open).hear(&live);
        if shown.hidden {
            return;
        }
        let cut = front(&live.text, LIVE_BYTES_MAX);
        live.offset += cut as u64;
        live.text.drain(..cut);
        let bytes = live.text.len();
        inner.push(Told::Live(Arc::new(live)), bytes);
        drop(inner);
        self.wake();
    }

    /// In a replay: the event that closes it is in the log.
    pub(crate) fn known(&self, run: RunId, chunk: Option<ChunkId>, update: &Update) {
        if let Some(shown) = self.lock().runs.get_mut(&run) {
            shown.said(chunk, update);
        }
    }

    /// All that the run's agent has said is known now.
    pub(crate) fn show(&self, run: RunId) {
        let mut inner = self.lock();
        let seq = inner.seq;
        let hidden = inner.runs.get_mut(&run).filter(|shown| shown.hidden);
        let Some(shown) = hidden else {
            return;
        };
        shown.hidden = false;
        let open = Arc::clone(&shown.open);
        let bytes = open.bytes();
        inner.push(Told::Open { seq, open }, bytes);
        drop(inner);
        self.wake();
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        self.lock().snapshot()
    }

    /// Where to go on in memory behind this event; `None`: only the log has what follows it.
    pub(crate) fn find(&self, after: Seq) -> Option<Place> {
        let inner = self.lock();
        if after >= inner.seq {
            return Some(inner.end());
        }
        let next = inner.entries.partition_point(|entry| entry.seq <= after);
        // What was told live behind an event that is gone already is not that event.
        match &inner.entries.get(next)?.told {
            Told::Event(event) if event.seq == after + 1 => Some(inner.first + next as u64),
            _ => None,
        }
    }

    /// Up to so many bytes of what lies between `place` and `until`, at least one; the place behind
    /// it. `None`: it is not in memory any more.
    pub(crate) fn read(
        &self,
        place: Place,
        until: Option<Place>,
        bytes_max: usize,
        mut take: impl FnMut(&Told),
    ) -> Option<Place> {
        let inner = self.lock();
        let skip = usize::try_from(place.checked_sub(inner.first)?).ok()?;
        let (mut bytes, mut at) = (0, place);
        for entry in inner.entries.range(skip.min(inner.entries.len())..) {
            if bytes > bytes_max || until == Some(at) {
                break;
            }
            bytes += entry.bytes;
            at += 1;
            take(&entry.told);
        }
        Some(at)
    }
}

impl Inner {
    fn end(&self) -> Place {
        self.first + self.entries.len() as u64
    }

    fn push(&mut self, told: Told, bytes: usize) {
        let bytes = bytes + TOLD_BYTES_EACH;
        let seq = self.seq;
        self.entries.push_back(Entry { told, seq, bytes });
        self.bytes += bytes;
        while self.entries.len() > self.room.told_max || self.bytes > self.room.bytes_max {
            let Some(gone) = self.entries.pop_front() else {
                return;
            };
            self.bytes -= gone.bytes;
            self.first += 1;
        }
    }

    fn begin(&mut self, run: RunId, hidden: bool) {
        let open = Arc::new(Open::of(run));
        self.runs.insert(run, Shown { open, hidden });
    }

    /// What an event changes of what is open. Answers the task in which something else waits now.
    fn follow(&mut self, event: &Event) -> Option<TaskId> {
        let task = event.subject.task()?;
        if let Subject::Run(run) = event.subject {
            match &event.kind {
                Kind::Admitted => self.begin(run, false),
                Kind::Finished { .. } => {
                    self.runs.remove(&run);
                }
                Kind::Said { update, chunk, .. } => {
                    if let Some(shown) = self.runs.get_mut(&run) {
                        shown.said(*chunk, update);
                    }
                    return None;
                }
                Kind::AgentEnded { .. } => {
                    if let Some(shown) = self.runs.get_mut(&run) {
                        let open = Arc::make_mut(&mut shown.open);
                        (open.text, open.output) = (None, None);
                    }
                }
                _ => {}
            }
        }
        let waits = matches!(
            event.kind,
            Kind::Admitted
                | Kind::AgentEnded { .. }
                | Kind::StopRequested { .. }
                | Kind::PermissionAsked { .. }
                | Kind::PermissionAnswered { .. }
                | Kind::MessageQueued { .. }
                | Kind::MessageTaken { .. }
                | Kind::MessageDelivered { .. }
                | Kind::MessageReturned { .. }
                | Kind::MessageCancelled { .. }
        );
        waits.then_some(task)
    }

    /// What waits in a task is the state's to know.
    fn look_at(&mut self, task: Option<&Task>) {
        let Some((task, run)) = task.and_then(|task| Some((task, task.last_run()?))) else {
            return;
        };
        let run = RunId {
            task: task.id,
            n: run.n,
        };
        let Some(shown) = self.runs.get_mut(&run) else {
            return;
        };
        let open = Arc::make_mut(&mut shown.open);
        // What was delivered may come back when the agent has not taken it up.
        let here = |message: &&Message| match message.fate {
            Fate::Waiting => true,
            Fate::Delivered(_) => message.is_with(run.n),
            Fate::Cancelled => false,
        };
        let here: Vec<&Message> = task.messages.iter().filter(here).collect();
        let old = here.len().saturating_sub(OPEN_MESSAGES_MAX);
        open.messages = here[old..].iter().map(|message| short(message)).collect();
        open.asks = task.open_asks().cloned().collect();
    }

    fn snapshot(&self) -> Snapshot {
        let shown = self.runs.values().filter(|shown| !shown.hidden);
        Snapshot {
            place: self.end(),
            seq: self.seq,
            open: shown.map(|shown| Arc::clone(&shown.open)).collect(),
        }
    }
}

impl Shown {
    fn said(&mut self, chunk: Option<ChunkId>, update: &Update) {
        if let Some(chunk) = chunk {
            Arc::make_mut(&mut self.open).close(chunk);
        }
        if let Update::Todo { items } = update {
            Arc::make_mut(&mut self.open).todo = items.clone();
        }
    }
}

fn short(message: &Message) -> Message {
    let mut message = message.clone();
    let text = &mut message.text;
    if text.len() > OPEN_MESSAGE_BYTES_MAX {
        let mut end = OPEN_MESSAGE_BYTES_MAX;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let left = text.len() - end;
        text.truncate(end);
        text.push_str(&format!("\u{2026} [{left} bytes cut]"));
    }
    message
}

/// How much of the front to leave out, so that at most so many bytes are left.
fn front(text: &str, bytes_max: usize) -> usize {
    let mut cut = text.len().saturating_sub(bytes_max);
    while !text.is_char_boundary(cut) {
        cut += 1;
    }
    cut
}

impl Open {
    fn of(run: RunId) -> Self {
        Self {
            run,
            text: None,
            output: None,
            todo: Vec::new(),
            messages: Vec::new(),
            asks: Vec::new(),
        }
    }

    fn hear(&mut self, live: &Live) {
        let (text, bytes_max) = match live.voice {
            Voice::Output => (&mut self.output, OPEN_OUTPUT_BYTES_MAX),
            Voice::Text | Voice::Thinking => (&mut self.text, OPEN_TEXT_BYTES_MAX),
        };
        let known = text.take().filter(|known| known.chunk == live.chunk);
        let mut known = known.unwrap_or(OpenText {
            chunk: live.chunk,
            voice: live.voice,
            offset: live.offset,
            text: String::new(),
        });
        known.text.push_str(&live.text);
        // Not with each piece: what is kept is moved.
        if known.text.len() > bytes_max + bytes_max / 4 {
            let cut = front(&known.text, bytes_max);
            known.text.drain(..cut);
            known.offset += cut as u64;
        }
        *text = Some(known);
    }

    fn close(&mut self, chunk: ChunkId) {
        self.text.take_if(|text| text.chunk <= chunk);
    }

    fn bytes(&self) -> usize {
        let texts = [&self.text, &self.output].into_iter().flatten();
        let texts = texts.map(|text| text.text.len());
        let todo = self.todo.iter().map(|Todo { text, .. }| text.len());
        let messages = self.messages.iter().map(|message| message.text.len());
        let asks = self.asks.iter();
        let asks = asks.map(|ask| ask.tool.len() + ask.input.len());
        texts.chain(todo).chain(messages).chain(asks).sum()
    }
}
