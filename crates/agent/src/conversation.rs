//! A conversation as the fold of its record: the same lines come to the same conversation, whether
//! this process wrote them or an earlier one.
//! Must not read or write anything, and must not change an entry once there is one after it.

mod stretch;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
};

use dispatch_core::{
    id::{KeyName, ServerName},
    models::{Choice, Wire},
    native::{Block, Chunk, Message, ServedTool, StepEnd, StepId, Todo, Tokens},
    rules::{Group, Subject},
};

use crate::{
    keys::{Outs, Told},
    model::{Entry, Origin, Said, ToolResult},
};

/// What a model is told of a call whose end nobody has seen.
pub(crate) const INTERRUPTED: &str =
    "error: this call was interrupted before it ended; it may have had some of its effects";
/// Of a call that never began.
pub(crate) const NOT_RUN: &str =
    "error: this call was not run, because the answer it was in broke off";
/// Of its own answer.
const BROKE_OFF: &str = "[Your answer broke off here. Go on from there.]";
const TOO_LONG: &str = "[Your answer was as long as it may be. Go on from there.]";

/// A call of the step that is not over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) input: String,
}

#[derive(Clone, Debug, PartialEq)]
struct Step {
    origin: Origin,
    blocks: Vec<Block>,
    end: Option<StepEnd>,
    /// What was answered to the questions for permission, by call.
    answered: BTreeMap<String, Answered>,
    running: BTreeSet<String>,
    results: BTreeMap<String, ToolResult>,
    said: Vec<Said>,
}

/// What somebody said of a call, and what they were asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answered {
    pub(crate) subjects: Vec<Subject>,
    pub(crate) allowed: bool,
    pub(crate) why: String,
}

impl Step {
    fn new(model: &Choice, wire: Wire) -> Self {
        Self {
            origin: Origin {
                key: model.key.clone(),
                wire,
            },
            blocks: Vec::new(),
            end: None,
            answered: BTreeMap::new(),
            running: BTreeSet::new(),
            results: BTreeMap::new(),
            said: Vec::new(),
        }
    }

    fn calls(&self) -> impl Iterator<Item = Call> {
        self.blocks.iter().filter_map(|block| match block {
            Block::Call {
                id, name, input, ..
            } => Some(Call {
                id: id.clone(),
                name: name.clone(),
                input: input.clone(),
            }),
            Block::Text { .. } | Block::Thinking { .. } | Block::Other { .. } => None,
        })
    }

    /// An answer that holds calls waits for their results, whatever it says: some gateways call every
    /// end the same.
    fn meant(&self, end: &StepEnd) -> StepEnd {
        match end {
            StepEnd::Done if self.calls().next().is_some() => StepEnd::Calls,
            end => end.clone(),
        }
    }

    fn result(&self, call: &str) -> ToolResult {
        let known = self.results.get(call).cloned();
        known.unwrap_or_else(|| ToolResult {
            call: call.to_owned(),
            output: self.missing(call).to_owned(),
            failed: true,
        })
    }

    fn missing(&self, call: &str) -> &'static str {
        if self.running.contains(call) {
            INTERRUPTED
        } else {
            NOT_RUN
        }
    }

    /// As the model is told it.
    fn entries(&self) -> Vec<Entry> {
        if self.blocks.is_empty() {
            return self.said.iter().cloned().map(Entry::Said).collect();
        }
        let cut = matches!(self.end, None | Some(StepEnd::Cut { .. }));
        let mut entries = vec![Entry::Answer {
            origin: self.origin.clone(),
            blocks: self.blocks.clone(),
            cut,
        }];
        let results: Vec<ToolResult> = self.calls().map(|call| self.result(&call.id)).collect();
        let mut said = self.said.clone();
        if results.is_empty() {
            match self.end {
                None | Some(StepEnd::Cut { .. }) => said.insert(0, BROKE_OFF.into()),
                Some(StepEnd::Full) => said.insert(0, TOO_LONG.into()),
                Some(StepEnd::Done | StepEnd::Calls | StepEnd::Refused) => {}
            }
        }
        let said = (!said.is_empty()).then(|| at_once(said));
        match (results.is_empty(), said) {
            (true, None) => {}
            (true, Some(said)) => entries.push(Entry::Said(said)),
            (false, said) => entries.push(Entry::Results { results, said }),
        }
        entries
    }
}

/// Between two messages that are told at once.
const BETWEEN: &str = "\n\n---\n\n";

fn joined(said: &[Message]) -> Said {
    let each = said.iter().map(|message| Said {
        text: message.text.clone(),
        files: message.files.clone(),
    });
    at_once(each.collect())
}

fn at_once(said: Vec<Said>) -> Said {
    let texts: Vec<&str> = said.iter().map(|said| said.text.as_str()).collect();
    let text = texts.join(BETWEEN);
    let files = said.into_iter().flat_map(|said| said.files).collect();
    Said { text, files }
}

/// A question for permission, as long as nobody has answered it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Question {
    call: String,
    group: Group,
    subjects: Vec<Subject>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Conversation {
    /// Whole and unchangeable: shared with whoever sends them.
    entries: Arc<Vec<Entry>>,
    /// The step of each of them; those of a summary have none.
    steps: Vec<StepId>,
    pub(crate) weight: Weight,
    /// What the turn began with.
    begun_with: String,
    /// The last wish of a person to make it shorter that was met, or could not be.
    pub(crate) compacted: u32,
    open: Option<Step>,
    step: StepId,
    in_turn: bool,
    questions: BTreeMap<u64, Question>,
    /// The last number of a question.
    asked: u64,
    allowed: Vec<(Group, Subject)>,
    pub(crate) outs: Outs,
    /// What the last answer with each key told of its limits.
    pub(crate) told: BTreeMap<KeyName, Told>,
    /// Where it works, as the prompt tells it.
    pub(crate) around: Option<String>,
    /// The tools of MCP servers, in the order in which the model was told of them.
    pub(crate) served: Vec<(ServerName, Vec<ServedTool>)>,
    pub(crate) todos: Vec<Todo>,
    /// Files that came with what was said.
    pub(crate) handed: BTreeSet<PathBuf>,
    /// Of the turn that is or was last.
    pub(crate) spent: Spent,
}

pub(crate) use stretch::{Weight, Whole, bytes_of_tokens};

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Spent {
    pub(crate) steps: u32,
    pub(crate) tokens: Tokens,
    pub(crate) cost_usd: f64,
}

impl Conversation {
    pub(crate) fn apply(&mut self, step: StepId, chunk: &Chunk) {
        self.weight.apply(chunk);
        match chunk {
            Chunk::Turn { said } => {
                self.hand_over(said);
                self.close();
                self.step = step;
                self.in_turn = true;
                self.spent = Spent::default();
                let said = joined(said);
                self.begun_with.clone_from(&said.text);
                self.push(Entry::Said(said));
            }
            Chunk::Step { model, wire } => self.begin_step(step, model, *wire),
            Chunk::Block(block) => self.with_open(|open| open.blocks.push(block.clone())),
            Chunk::StepEnded(end) => self.with_open(|open| open.end = Some(open.meant(end))),
            Chunk::Running { call } => self.with_open(|open| {
                open.running.insert(call.clone());
            }),
            Chunk::Result {
                call,
                output,
                failed,
            } => self.with_open(|open| {
                let result = ToolResult {
                    call: call.clone(),
                    output: output.clone(),
                    failed: *failed,
                };
                // The first one is the one: what a model was told does not change.
                open.results.entry(call.clone()).or_insert(result);
            }),
            Chunk::Said { said } => {
                self.hand_over(said);
                self.with_open(|open| open.said.push(joined(said)));
            }
            Chunk::Usage { tokens, cost_usd } => self.spent.add(tokens, *cost_usd),
            Chunk::Compacted {
                from,
                text,
                tokens,
                cost_usd,
                wish,
            } => {
                self.compacted = self.compacted.max(wish.unwrap_or(0));
                self.spent.add(tokens, *cost_usd);
                self.shorten(*from, text);
            }
            Chunk::NotCompacted { wish } => self.compacted = self.compacted.max(*wish),
            Chunk::Plan { todos } => self.todos.clone_from(todos),
            Chunk::Asked {
                id,
                call,
                group,
                subjects,
                ..
            } => {
                self.asked = self.asked.max(*id);
                let question = Question {
                    group: *group,
                    call: call.clone(),
                    subjects: subjects.clone(),
                };
                self.questions.insert(*id, question);
            }
            Chunk::Answered {
                id,
                allowed,
                always,
                why,
            } => {
                if let Some(question) = self.questions.remove(id) {
                    self.answered(question, *allowed, *always, why);
                }
            }
            chunk @ (Chunk::KeyOut { .. } | Chunk::KeyBack { .. }) => self.outs.apply(chunk),
            Chunk::TurnEnded { .. } => {
                self.close();
                self.questions.clear();
                self.in_turn = false;
            }
            Chunk::Windows { key, windows, at } => {
                let told = Told {
                    windows: windows.clone(),
                    at: *at,
                };
                self.told.insert(key.clone(), told);
            }
            Chunk::Served { server, tools } => {
                self.served.push((server.clone(), tools.clone()));
            }
            // What a prompt began with, it begins with for ever.
            Chunk::Around { text } => {
                self.around.get_or_insert_with(|| text.clone());
            }
            Chunk::Hello { .. }
            | Chunk::Unsaid { .. }
            | Chunk::Refused { .. }
            | Chunk::Waiting { .. }
            | Chunk::ModelChanged { .. }
            | Chunk::Notice { .. }
            | Chunk::Live(_) => {}
        }
    }

    fn hand_over(&mut self, said: &[Message]) {
        let files = said.iter().flat_map(|message| &message.files);
        self.handed.extend(files.map(|file| file.path.clone()));
    }

    fn answered(&mut self, question: Question, allowed: bool, always: bool, why: &str) {
        let Question {
            call,
            group,
            subjects,
        } = question;
        if allowed && always {
            let each = subjects.iter().cloned();
            self.allowed.extend(each.map(|subject| (group, subject)));
        }
        let why = why.to_owned();
        let answered = Answered {
            subjects,
            allowed,
            why,
        };
        self.with_open(|open| {
            open.answered.insert(call, answered);
        });
    }

    fn begin_step(&mut self, step: StepId, model: &Choice, wire: Wire) {
        let again = step == self.step && self.open.is_some() && self.open_is_empty();
        if !again {
            self.close();
            self.spent.steps += 1;
        }
        self.step = step;
        self.open = Some(Step::new(model, wire));
    }

    fn with_open(&mut self, change: impl FnOnce(&mut Step)) {
        if let Some(open) = &mut self.open {
            change(open);
        }
    }

    fn close(&mut self) {
        if let Some(open) = self.open.take() {
            for entry in open.entries() {
                self.push(entry);
            }
        }
    }

    fn push(&mut self, entry: Entry) {
        Arc::make_mut(&mut self.entries).push(entry);
        self.steps.push(self.step);
    }

    pub(crate) fn entries(&self) -> Arc<Vec<Entry>> {
        Arc::clone(&self.entries)
    }

    /// The step that was begun last.
    pub(crate) fn step(&self) -> StepId {
        self.step
    }

    pub(crate) fn next_step(&self) -> StepId {
        StepId {
            turn: self.step.turn,
            step: self.step.step + 1,
        }
    }

    pub(crate) fn next_turn(&self) -> StepId {
        StepId {
            turn: self.step.turn + 1,
            step: 0,
        }
    }

    /// A turn has begun and not ended: it is to go on.
    pub(crate) fn in_turn(&self) -> bool {
        self.in_turn
    }

    /// What is known of the step that is not over: its end, and its calls without a result.
    pub(crate) fn open_step(&self) -> Option<(Option<StepEnd>, Vec<Call>)> {
        let open = self.open.as_ref()?;
        let left = open
            .calls()
            .filter(|call| !open.results.contains_key(&call.id));
        Some((open.end.clone(), left.collect()))
    }

    /// Whether the step that is not over has anything a model must be told of.
    pub(crate) fn open_is_empty(&self) -> bool {
        let empty = |open: &Step| open.blocks.is_empty() && open.said.is_empty();
        self.open.as_ref().is_none_or(empty)
    }

    /// What was answered to a question about this call and these subjects, here or in an earlier
    /// process.
    pub(crate) fn answer_to(&self, call: &str, subjects: &[Subject]) -> Option<&Answered> {
        let answered = self.open.as_ref()?.answered.get(call)?;
        (answered.subjects == subjects).then_some(answered)
    }

    pub(crate) fn is_running(&self, call: &str) -> bool {
        self.open
            .as_ref()
            .is_some_and(|open| open.running.contains(call))
    }

    /// Whether a model is shown any file in it.
    pub(crate) fn shows_files(&self) -> bool {
        let shows = |said: &Said| said.files.iter().any(|file| file.shown.is_some());
        self.entries.iter().any(|entry| match entry {
            Entry::Said(said)
            | Entry::Results {
                said: Some(said), ..
            } => shows(said),
            Entry::Answer { .. } | Entry::Results { said: None, .. } => false,
        })
    }

    /// All text of the step that is or was last in this turn.
    pub(crate) fn last_text(&self) -> String {
        let open = self.open.as_ref().map(|open| open.blocks.as_slice());
        let entries = self.entries.iter().zip(&self.steps).rev();
        let mut own = entries.take_while(|(_, step)| step.turn == self.step.turn);
        let closed = own.find_map(|(entry, _)| match entry {
            Entry::Answer { blocks, .. } => Some(blocks.as_slice()),
            Entry::Said(_) | Entry::Results { .. } => None,
        });
        let texts = open
            .or(closed)
            .unwrap_or_default()
            .iter()
            .filter_map(|block| match block {
                Block::Text { text, .. } => Some(text.as_str()),
                Block::Thinking { .. } | Block::Call { .. } | Block::Other { .. } => None,
            });
        texts.collect::<Vec<_>>().concat()
    }

    pub(crate) fn next_question(&self) -> u64 {
        self.asked + 1
    }

    /// What somebody allowed once and for all.
    pub(crate) fn allowed(&self) -> &[(Group, Subject)] {
        &self.allowed
    }
}

impl Spent {
    fn add(&mut self, more: &Tokens, cost_usd: Option<f64>) {
        let sum = &mut self.tokens;
        sum.input += more.input;
        sum.cache_read += more.cache_read;
        sum.cache_write += more.cache_write;
        sum.output += more.output;
        sum.reasoning += more.reasoning;
        self.cost_usd += cost_usd.unwrap_or(0.0);
    }

    pub(crate) fn all_tokens(&self) -> u64 {
        let Tokens {
            input,
            cache_read,
            cache_write,
            output,
            ..
        } = self.tokens;
        input + cache_read + cache_write + output
    }
}
