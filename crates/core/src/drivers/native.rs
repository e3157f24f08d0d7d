//! Our own agent: one opening with all it is to know, then messages and answers, and a line for
//! each thing that is closed. The lines are [`crate::native`]'s.
//! Must not treat it as anything but a guest: what it says is read as any other agent's words.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Ask, Driver, Hearing, Opening, Request, Step, TOOLS_NAME, Tail, Tools,
    pieces::Pieces,
    text::{
        TODO_ITEMS_MAX, asked_text, asked_tool, bounded, kept_text, notice, session_ok, tool_text,
    },
};
use crate::{
    Millis,
    ask::Permissions,
    definition,
    grant::Tool,
    id::KeyName,
    job::Stdin,
    keyring::KeyNews,
    native::{
        Block, Chunk, Fault, Kin, Line, Live, Message, Opening as Words, Order, TodoStatus, Tokens,
        TurnEnd, VERSION, Window,
    },
    rules::{Group, Subject},
    servers::{Given, ServerTable},
    toolset,
    update::{LastWord, Said, Todo, TodoState, Update, Usage, Voice},
};

const SUBCOMMAND: &str = "agent";
const TODO_BYTES_MAX: usize = 256;
/// What is said of a key, a model or a wait.
const WHY_BYTES_MAX: usize = 1024;

/// What is left of a key's limits is passed on this often: each step of each run tells it.
const TOLD_EVERY_MS: Millis = 60_000;
/// Keys of one conversation whose limits are remembered.
const KEYS_MAX: usize = 64;

/// What answers told of one key.
#[derive(Debug)]
struct Told {
    windows: Vec<Window>,
    at: Millis,
    passed_on: Option<Millis>,
}

/// A `wait` of our own lasts for an hour at most.
const OUR_CALL_MS: u64 = 2 * 3_600_000;

const DENIED: &str = "Nothing that needs a permission is allowed in this task. Do what can be done \
    without it; where nothing can, end your turn and say what you need.";

#[derive(Debug, Default)]
pub(super) struct Native {
    permissions: Permissions,
    session: Option<String>,
    /// What it said last.
    text: String,
    /// Lines that are not of the protocol, for when nothing else was said.
    tail: Tail,
    usage: Option<Usage>,
    pieces: Pieces,
    /// Of the turn that has ended; nothing while one goes on.
    last: Option<LastWord>,
    /// Messages given to it, numbered from 1, and those that it has told its model, given back or
    /// refused.
    given: u64,
    settled: BTreeSet<u64>,
    /// Its input is closed.
    left: bool,
    /// Windows of its provider that have nothing left, so that each is told once.
    spent_windows: BTreeSet<String>,
    /// What answers told last of each key, and when that was passed on.
    told: BTreeMap<KeyName, Told>,
}

impl Driver for Native {
    fn open(&mut self, ask: &Ask<'_>) -> Opening {
        self.permissions = ask.permissions;
        // A dry run shows how it would be started, and nobody hears what is said.
        let first = ask.native.map(|setup| {
            // What it should go on with may be gone.
            let forgot = ask.resume.is_some() && setup.resume.is_empty();
            let prompt = if forgot { ask.whole } else { ask.prompt };
            let mut words = Words {
                prompt: Some(prompt.to_owned()),
                cwd: ask.cwd.into(),
                version: VERSION,
                ..setup.clone()
            };
            open_door(&mut words, ask.tools);
            line(&Order::Open(Box::new(words)))
        });
        Opening {
            argv: vec![ask.program.to_owned(), SUBCOMMAND.to_owned()],
            env: Vec::new(),
            stdin: Stdin::Open,
            first,
        }
    }

    fn hear(&mut self, line: &str) -> Vec<Step> {
        if line.trim().is_empty() {
            return Vec::new();
        }
        match serde_json::from_str::<Line>(line) {
            Ok(line) => self.chunk(line.chunk),
            Err(_) => {
                self.tail.push_line(line);
                vec![Step::Live(kept_text(line))]
            }
        }
    }

    fn listens(&self) -> bool {
        !self.left
    }

    fn say(&mut self, text: &str) -> Option<Vec<u8>> {
        self.given += 1;
        let message = Message {
            id: self.given,
            text: text.to_owned(),
            files: Vec::new(),
        };
        Some(line(&Order::Say(message)))
    }

    fn takes_back(&self) -> bool {
        true
    }

    fn unsay(&self, nth: usize) -> Option<Vec<u8>> {
        let id = u64::try_from(nth)
            .ok()
            .filter(|id| (1..=self.given).contains(id))?;
        Some(line(&Order::Unsay { id }))
    }

    fn unheard(&self) -> usize {
        let unheard = (1..=self.given).filter(|id| !self.settled.contains(id));
        unheard.count()
    }

    fn permit(&self, request: &Request, allow: bool, why: &str) -> Vec<u8> {
        let id = request.id.parse().unwrap_or_default();
        let why = if allow { "" } else { why };
        answer(id, allow, why)
    }

    fn permit_always(&self, request: &Request) -> Vec<u8> {
        line(&Order::Answer {
            id: request.id.parse().unwrap_or_default(),
            allow: true,
            always: true,
            why: String::new(),
        })
    }

    fn close(&mut self) -> Said {
        let expected = "the end of its turn";
        let last = self.last.take().unwrap_or(LastWord::Missing { expected });
        let text = if self.text.is_empty() {
            self.tail.text()
        } else {
            std::mem::take(&mut self.text)
        };
        Said {
            last,
            text,
            session: self.session.take(),
            usage: self.usage.take(),
        }
    }
}

/// With a door it finds our own tools: the server is its model's where the grant is a permission by
/// itself, and else only the way of its own tools that ask.
fn open_door(words: &mut Words, tools: Option<Tools<'_>>) {
    let Some(tools) = tools else {
        words.kin = None;
        return;
    };
    let table = at_our_door(tools);
    let asked = words.kin.as_ref().is_some_and(|kin| kin.asked);
    if let (false, Ok(name)) = (asked, TOOLS_NAME.parse()) {
        words.servers.insert(name, table.clone());
        // The grant is the permission.
        for tool in Tool::ALL {
            let name = format!("{TOOLS_NAME}__{}", tool.word());
            words.rules.allow_always(Group::Mcp, Subject::Name(name));
        }
        // A list of tools is of its own and the person's servers'; these come with the grant.
        if let Some(names) = &mut words.tools {
            names.push(toolset::OURS.to_owned());
        }
        for (group, slug) in words.kin.iter().flat_map(Kin::granted) {
            words.rules.allow_always(group, Subject::name(slug));
        }
    }
    if let Some(kin) = &mut words.kin {
        kin.door = Some(table);
    }
}

/// Our own tools are an MCP server to it, like anybody's.
fn at_our_door(tools: Tools<'_>) -> ServerTable {
    let env = tools.env.iter();
    let env = env.map(|(name, value)| (name.clone(), Given::Text(value.clone())));
    ServerTable {
        env: env.collect(),
        call_ms: OUR_CALL_MS,
        ..ServerTable::program(tools.argv.to_vec())
    }
}

impl Native {
    fn chunk(&mut self, chunk: Chunk) -> Vec<Step> {
        match chunk {
            Chunk::Hello { session, .. } => self.hello(session),
            Chunk::Turn { said } | Chunk::Said { said } => self.told(&said),
            Chunk::Block(block) => self.block(block),
            Chunk::Result {
                call,
                output,
                failed,
            } => said(Update::ToolResult {
                id: call,
                output: tool_text(&output),
                failed,
            }),
            Chunk::Usage { tokens, cost_usd } => self.spent(&tokens, cost_usd),
            Chunk::Compacted {
                text,
                tokens,
                cost_usd,
                ..
            } => {
                let mut steps = self.spent(&tokens, cost_usd);
                let told = format!(
                    "the conversation was compacted: what came before is a text of {} bytes now",
                    text.len()
                );
                steps.push(Step::Said(notice(&told)));
                steps
            }
            Chunk::Plan { todos } => said(plan(&todos)),
            Chunk::Windows { key, windows, at } => {
                let mut steps = self.left(&key, &windows, at);
                steps.extend(self.windows(key.as_str(), windows));
                steps
            }
            Chunk::NotCompacted { .. } => said(notice(
                "the conversation was not compacted: there is not enough of it, or no summary",
            )),
            Chunk::Around { .. } | Chunk::Served { .. } => Vec::new(),
            Chunk::Asked {
                id,
                tool,
                group,
                subject,
                input,
                ..
            } => self.asked(id, &tool, group, &subject, &input),
            Chunk::Answered { id, .. } => vec![Step::Withdrawn { id: id.to_string() }],
            Chunk::Waiting {
                at, attempt, why, ..
            } => said(Update::Waiting {
                until: at,
                attempt,
                reason: brief(&why),
            }),
            Chunk::ModelChanged { from, to, why } => said(Update::ModelChanged {
                from: from.to_string(),
                to: to.to_string(),
                reason: brief(&why),
            }),
            Chunk::KeyOut { key, until, why } => key_out(key, until, &why),
            Chunk::KeyBack { key } => {
                let text = format!("key {key} can be used again");
                let news = KeyNews::Back;
                vec![Step::Said(notice(&text)), Step::Key { key, news }]
            }
            Chunk::Notice { text } => said(notice(&text)),
            Chunk::TurnEnded { end, text } => self.turn_ended(end, &text),
            Chunk::Live(live) => self.live(live),
            // A step that is begun again shows its texts again.
            Chunk::Step { .. } => {
                self.pieces.cut();
                Vec::new()
            }
            Chunk::Unsaid { id } => self.without(id, Hearing::Unsaid),
            Chunk::Refused { id, why } => self.refused(id, &why),
            Chunk::StepEnded(_) | Chunk::Running { .. } => Vec::new(),
        }
    }

    fn hello(&mut self, id: String) -> Vec<Step> {
        if !session_ok(&id) || self.session.as_ref() == Some(&id) {
            return Vec::new();
        }
        self.session = Some(id.clone());
        said(Update::Session { id })
    }

    /// What is told to the model now, it has heard. A turn that had ended before goes on.
    fn told(&mut self, messages: &[Message]) -> Vec<Step> {
        self.last = None;
        let ids = messages.iter().map(|message| message.id);
        ids.filter_map(|id| self.settle(id, Hearing::Heard))
            .collect()
    }

    /// Each is settled once, and what is none of ours never.
    fn settle(&mut self, id: u64, hearing: Hearing) -> Option<Step> {
        let ours = (1..=self.given).contains(&id) && self.settled.insert(id);
        let nth = usize::try_from(id).ok().filter(|_| ours)?;
        Some(Step::Message { nth, hearing })
    }

    /// Without it. Where it was all that another turn would have been for, there is none.
    fn without(&mut self, id: u64, hearing: Hearing) -> Vec<Step> {
        let mut steps: Vec<Step> = self.settle(id, hearing).into_iter().collect();
        if self.last.is_some() && !self.left && self.unheard() == 0 {
            self.left = true;
            steps.push(Step::Done);
        }
        steps
    }

    fn refused(&mut self, id: u64, why: &str) -> Vec<Step> {
        let mut steps = self.without(id, Hearing::Refused);
        let text = format!("a message is not taken now, and waits for the next run: {why}");
        steps.insert(0, Step::Said(notice(&brief(&text))));
        steps
    }

    fn block(&mut self, block: Block) -> Vec<Step> {
        match block {
            Block::Text { text, .. } if text.trim().is_empty() => Vec::new(),
            Block::Text { text, .. } => {
                self.text = kept_text(&text);
                let text = self.text.clone();
                vec![self.pieces.whole("", Update::Text { text })]
            }
            Block::Thinking { text, .. } if text.trim().is_empty() => Vec::new(),
            Block::Thinking { text, .. } => {
                let text = kept_text(&text);
                vec![self.pieces.whole("", Update::Thinking { text })]
            }
            Block::Call {
                id, name, input, ..
            } => said(Update::ToolCall {
                id,
                name,
                input: tool_text(&input),
            }),
            Block::Other { .. } => Vec::new(),
        }
    }

    fn live(&mut self, live: Live) -> Vec<Step> {
        match live {
            Live::Text(text) => self.pieces.more("", Voice::Text, &text),
            Live::Thinking(text) => self.pieces.more("", Voice::Thinking, &text),
            Live::Output { text, .. } => vec![Step::Live(kept_text(&text))],
            Live::Void => {
                self.pieces.cut();
                Vec::new()
            }
        }
    }

    fn asked(&self, id: u64, tool: &str, group: Group, subject: &str, input: &str) -> Vec<Step> {
        let (tool, input) = (asked_tool(tool), question(group, subject, input));
        let allowed = match self.permissions {
            Permissions::Allow => true,
            Permissions::Deny => false,
            Permissions::Ask => {
                return vec![Step::Ask(Request {
                    id: id.to_string(),
                    tool,
                    input,
                    allow: answer(id, true, ""),
                    deny: answer(id, false, DENIED),
                })];
            }
        };
        let why = if allowed { "" } else { DENIED };
        vec![
            Step::Said(Update::Asked {
                tool,
                input: tool_text(&input),
                allowed,
            }),
            Step::Send(answer(id, allowed, why)),
        ]
    }

    /// Of all its steps so far: each of them tells its own.
    fn spent(&mut self, tokens: &Tokens, cost_usd: Option<f64>) -> Vec<Step> {
        let before = self.usage.take().unwrap_or_default();
        let sum = |before: Option<u64>, now: u64| Some(before.unwrap_or(0).saturating_add(now));
        let usage = Usage {
            input_tokens: sum(before.input_tokens, tokens.input),
            output_tokens: sum(before.output_tokens, tokens.output),
            cache_read_tokens: sum(before.cache_read_tokens, tokens.cache_read),
            cache_write_tokens: sum(before.cache_write_tokens, tokens.cache_write),
            cost_usd: match (before.cost_usd, cost_usd) {
                (Some(before), Some(now)) => Some(before + now),
                (one, None) | (None, one) => one,
            },
            turns: Some(before.turns.unwrap_or(0).saturating_add(1)),
        };
        self.usage = Some(usage.clone());
        vec![Step::Spent(usage)]
    }

    /// What is left at a provider is for everybody that asks it, now and then; at once where nothing is.
    fn left(&mut self, key: &KeyName, windows: &[Window], at: Option<Millis>) -> Vec<Step> {
        let (Some(at), true) = (
            at,
            self.told.len() < KEYS_MAX || self.told.contains_key(key),
        ) else {
            return Vec::new();
        };
        let empty = |windows: &[Window]| -> Vec<String> {
            let empty = windows.iter().filter(|window| window.remaining == Some(0));
            empty.map(|window| window.name.clone()).collect()
        };
        let before = self.told.remove(key);
        let passed_on = before.as_ref().and_then(|told| told.passed_on);
        let changed = before.is_none_or(|told| empty(&told.windows) != empty(windows));
        let due = passed_on.is_none_or(|last| at.saturating_sub(last) >= TOLD_EVERY_MS);
        let told = Told {
            windows: windows.to_vec(),
            at,
            passed_on,
        };
        let told = self.told.entry(key.clone()).or_insert(told);
        match changed || due {
            true => vec![told.pass_on(key)],
            false => Vec::new(),
        }
    }

    /// What was told last and kept back.
    fn rest_of_left(&mut self) -> impl Iterator<Item = Step> {
        let new = |told: &&mut Told| told.passed_on != Some(told.at);
        let told = self.told.iter_mut();
        let told = told.filter(move |(_, told)| new(told));
        told.map(|(key, told)| told.pass_on(key))
    }

    /// A window that is used up is worth a word, once; what is left of the others is not.
    fn windows(&mut self, key: &str, windows: Vec<Window>) -> Vec<Step> {
        let mut steps = Vec::new();
        for window in windows {
            let name = format!("{key}/{}", window.name);
            if window.remaining != Some(0) {
                self.spent_windows.remove(&name);
            } else if self.spent_windows.len() < WINDOWS_MAX && self.spent_windows.insert(name) {
                steps.push(Step::Said(Update::KeyOut {
                    key: key.to_owned(),
                    until: window.resets_at,
                    reason: brief(&format!("nothing is left of {}", window.name)),
                }));
            }
        }
        steps
    }

    fn turn_ended(&mut self, end: TurnEnd, text: &str) -> Vec<Step> {
        if !text.trim().is_empty() {
            self.text = kept_text(text);
        }
        let usage = self.usage.iter().cloned();
        let usage: Vec<Step> = usage.map(Update::Usage).map(Step::Said).collect();
        let mut steps: Vec<Step> = self.rest_of_left().chain(usage).collect();
        // What it has not heard begins its next turn, by itself.
        let goes_on = end == TurnEnd::Done && self.unheard() > 0;
        self.last = Some(self.last_word(end));
        if !goes_on {
            self.left = true;
            steps.push(Step::Done);
        }
        steps
    }

    fn last_word(&mut self, end: TurnEnd) -> LastWord {
        match end {
            TurnEnd::Done => LastWord::Done,
            TurnEnd::Stopped => LastWord::Missing {
                expected: "the end of its turn: it was told to stop",
            },
            TurnEnd::Limit { name } => {
                self.text = format!("the limit of one turn was reached: {name}");
                // Its exit says that this is no success.
                LastWord::NoProtocol
            }
            TurnEnd::Failed {
                fault,
                message,
                retry_at,
            } => {
                self.text = kept_text(&message);
                failed(fault, retry_at)
            }
        }
    }
}

impl Told {
    fn pass_on(&mut self, key: &KeyName) -> Step {
        self.passed_on = Some(self.at);
        let news = KeyNews::Told {
            windows: self.windows.iter().take(WINDOWS_MAX).cloned().collect(),
            at: self.at,
        };
        let key = key.clone();
        Step::Key { key, news }
    }
}

/// For a person, and for all others that ask with it.
fn key_out(key: KeyName, until: Option<Millis>, why: &str) -> Vec<Step> {
    let reason = brief(why);
    let update = Update::KeyOut {
        key: key.to_string(),
        until,
        reason: reason.clone(),
    };
    let news = KeyNews::Out { until, reason };
    vec![Step::Said(update), Step::Key { key, news }]
}

/// Names of windows that are remembered.
const WINDOWS_MAX: usize = 64;

fn failed(fault: Fault, retry_at: Option<Millis>) -> LastWord {
    match fault {
        Fault::RateLimited | Fault::Exhausted => LastWord::RateLimited {
            retry_after_ms: None,
            retry_at,
        },
        Fault::Overloaded | Fault::Network | Fault::Timeout => LastWord::Unavailable,
        Fault::Auth | Fault::Key => LastWord::Auth,
        Fault::BadRequest | Fault::ContextTooLong | Fault::Protocol | Fault::Refused => {
            LastWord::Model
        }
    }
}

/// What somebody has to read before they answer: what it would touch, and what of its input that
/// does not say.
fn question(group: Group, subject: &str, input: &str) -> String {
    if let (Group::Summon | Group::UserAgent, Some(asked)) = (group, summoned(subject, input)) {
        return asked_text(&asked);
    }
    if group == Group::Shell || subject == input {
        return asked_text(subject);
    }
    if subject.is_empty() {
        return asked_text(input);
    }
    asked_text(&format!("{subject}\n{input}"))
}

/// Whom it wants to summon, in the words of its tool, and for what: the engine knows the answer to it
/// by these.
fn summoned(head: &str, input: &str) -> Option<String> {
    let input: serde_json::Value = serde_json::from_str(input).ok()?;
    Some(definition::question(head, input["task"].as_str()?))
}

fn plan(todos: &[crate::native::Todo]) -> Update {
    let items = todos.iter().take(TODO_ITEMS_MAX).map(|todo| Todo {
        text: bounded(&todo.content, TODO_BYTES_MAX),
        state: match todo.status {
            TodoStatus::Completed | TodoStatus::Cancelled => TodoState::Done,
            TodoStatus::InProgress => TodoState::Active,
            TodoStatus::Pending => TodoState::Pending,
        },
    });
    Update::Todo {
        items: items.collect(),
    }
}

fn brief(text: &str) -> String {
    bounded(text, WHY_BYTES_MAX)
}

fn said(update: Update) -> Vec<Step> {
    vec![Step::Said(update)]
}

fn answer(id: u64, allow: bool, why: &str) -> Vec<u8> {
    line(&Order::Answer {
        id,
        allow,
        always: false,
        why: why.to_owned(),
    })
}

/// One order. Plain data of ours always serialises.
fn line(order: &Order) -> Vec<u8> {
    let mut bytes = serde_json::to_vec(order).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::definition::Scope;
    use crate::{
        models::Choice,
        rules::{Action, Grade, Rules},
    };

    fn setup(resume: Vec<std::path::PathBuf>) -> Words {
        let choice = Choice {
            key: "main".parse().unwrap(),
            model: "m".parse().unwrap(),
            effort: None,
        };
        let limits = json!({
            "steps_max": 1, "tokens_max": 0, "cost_usd_max": 0.0, "wall_clock_ms": 0,
            "retry_ms": 1, "wait_ms_max": 1, "ask_wait_ms": 1,
        });
        Words {
            version: VERSION,
            session: "s-1".into(),
            cwd: std::path::PathBuf::new(),
            checkout: None,
            spill: "/h/results".into(),
            resume,
            prompt: None,
            compact: 0,
            files: Vec::new(),
            system: None,
            chain: vec![choice],
            known: None,
            keys: std::collections::BTreeMap::new(),
            tools: None,
            within: crate::toolset::Toolset::default(),
            role: None,
            kin: None,
            rules: Rules::default(),
            reach: crate::web::Reach::Nothing,
            web: crate::web::WebTable::default(),
            servers: std::collections::BTreeMap::new(),
            limits: serde_json::from_value(limits).unwrap(),
            live: true,
        }
    }

    fn opened(setup: &Words, resume: Option<&str>) -> (Native, Opening) {
        opened_with(setup, resume, None)
    }

    fn opened_with(
        setup: &Words,
        resume: Option<&str>,
        tools: Option<Tools<'_>>,
    ) -> (Native, Opening) {
        let mut driver = Native::default();
        let opening = driver.open(&Ask {
            prompt: "go on; $(x)",
            whole: "all of it",
            cwd: "/w",
            folders: &[],
            program: "/bin/dispatch",
            args: &[],
            home: "/h",
            resume,
            effort: None,
            review: None,
            unfenced: false,
            permissions: Permissions::Ask,
            tools,
            model: None,
            profile: None,
            native: Some(setup),
        });
        (driver, opening)
    }

    fn first(opening: &Opening) -> Value {
        let text = String::from_utf8(opening.first.clone().unwrap()).unwrap();
        assert_eq!(text.matches('\n').count(), 1, "{text}");
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn our_own_tools_are_a_server_that_nobody_is_asked_about() {
        let argv = ["/bin/dispatch", "mcp", "--run"].map(str::to_owned);
        let env = [("DISPATCH_DOOR".to_owned(), "/run/e.sock".to_owned())];
        let tools = Tools {
            argv: &argv,
            env: &env,
        };
        let (_, opening) = opened_with(&setup(Vec::new()), None, Some(tools));
        let open = &first(&opening)["open"];
        let server = &open["servers"]["dispatch"];
        assert_eq!(server["command"], json!(argv));
        assert_eq!(server["env"], json!({"DISPATCH_DOOR": "/run/e.sock"}));
        let mut asks = Rules::graded(&[(Group::Mcp, Grade::Ask)].into(), &[], true);
        assert_eq!(
            asks.decide(Group::Mcp, &Subject::name("dispatch__wait")),
            Action::Ask
        );
        let mut words = setup(Vec::new());
        words.rules = asks.clone();
        let (_, opening) = opened_with(&words, None, Some(tools));
        asks = serde_json::from_value(first(&opening)["open"]["rules"].clone()).unwrap();
        assert_eq!(
            asks.decide(Group::Mcp, &Subject::name("dispatch__wait")),
            Action::Allow
        );
        assert_eq!(
            asks.decide(Group::Mcp, &Subject::name("others__wait")),
            Action::Ask
        );
    }

    fn kin(asked: bool) -> Kin {
        let listed = |slug: &str, subagent: bool| crate::native::Listed {
            slug: slug.to_owned(),
            description: String::new(),
            subagent,
            of_repository: slug == "taken",
            in_place: slug == "taken",
        };
        Kin {
            task: "000000000000003f".to_owned(),
            asker: None,
            tools: Tool::ALL.into(),
            asked,
            listed: vec![
                listed("under", true),
                listed("alone", false),
                listed("taken", true),
            ],
            faults: Vec::new(),
            door: None,
        }
    }

    /// A list of tools is of the agent's own and other servers'; a grant comes with the task.
    #[test]
    fn a_grant_and_a_list_of_tools_are_both_heeded() {
        let argv = ["/bin/dispatch".to_owned()];
        let tools = Tools {
            argv: &argv,
            env: &[],
        };
        let mut words = setup(Vec::new());
        words.tools = Some(vec!["read_file".to_owned()]);
        let (_, opening) = opened_with(&words, None, Some(tools));
        let open = &first(&opening)["open"];
        assert_eq!(open["tools"], json!(["read_file", "dispatch__*"]));
        assert!(open["servers"]["dispatch"].is_object());
        words.kin = Some(kin(true));
        let (_, opening) = opened_with(&words, None, Some(tools));
        let open = &first(&opening)["open"];
        assert_eq!(open["tools"], json!(["read_file"]));
        assert_eq!(open["servers"], json!({}), "they are not its model's");
        assert_eq!(open["kin"]["door"]["command"], json!(argv));
        let (_, opening) = opened_with(&words, None, None);
        assert_eq!(first(&opening)["open"]["kin"], Value::Null);
    }

    #[test]
    fn only_a_grant_that_is_a_permission_by_itself_asks_nobody() {
        let argv = ["/bin/dispatch".to_owned()];
        let tools = Tools {
            argv: &argv,
            env: &[],
        };
        for (asked, wanted) in [(true, Action::Ask), (false, Action::Allow)] {
            let mut words = setup(Vec::new());
            words.kin = Some(kin(asked));
            let (_, opening) = opened_with(&words, None, Some(tools));
            let rules = first(&opening)["open"]["rules"].clone();
            let rules: Rules = serde_json::from_value(rules).unwrap();
            assert_eq!(rules.decide(Group::Summon, &Subject::name("under")), wanted);
            assert_eq!(
                rules.decide(Group::UserAgent, &Subject::name("alone")),
                wanted
            );
            // Of the other kind, and of a repository in the place of the person's.
            for other in ["alone", "taken"] {
                let other = Subject::name(other);
                assert_eq!(rules.decide(Group::Summon, &other), Action::Ask);
            }
        }
    }

    /// The engine finds the answer again by these words.
    #[test]
    fn whom_it_would_summon_is_asked_in_words_of_our_own() {
        let input = json!({"agent": "explorer", "task": "Look\nagain", "background": true});
        let head = definition::question_head("explorer", Scope::Repository, false);
        let asked = question(Group::Summon, &head, &input.to_string());
        assert_eq!(asked, "agent explorer of the repository\nLook\nagain");
        let alone = json!({"agent": "x", "task": "y", "top_level": true}).to_string();
        let head = definition::question_head("x", Scope::Person, true);
        assert_eq!(
            question(Group::UserAgent, &head, &alone),
            "top-level agent x\ny"
        );
        assert_eq!(question(Group::Summon, "x", "no json"), "x\nno json");
    }

    #[test]
    fn all_it_is_to_know_is_one_line_of_its_input() {
        let (_, opening) = opened(&setup(Vec::new()), None);
        assert_eq!(opening.argv, ["/bin/dispatch", "agent"]);
        assert_eq!(opening.stdin, Stdin::Open);
        let open = &first(&opening)["open"];
        assert_eq!(
            (&open["prompt"], &open["cwd"]),
            (&json!("go on; $(x)"), &json!("/w"))
        );
    }

    #[test]
    fn one_whose_record_is_gone_is_told_the_whole() {
        let (_, remembers) = opened(&setup(vec!["/runs/1/out".into()]), Some("s-1"));
        assert_eq!(first(&remembers)["open"]["prompt"], "go on; $(x)");
        let (_, forgot) = opened(&setup(Vec::new()), Some("s-1"));
        assert_eq!(first(&forgot)["open"]["prompt"], "all of it");
    }

    fn heard(driver: &mut Native, chunk: &Value) -> Vec<Step> {
        driver.hear(&json!({"n": 1, "step": "1.1", "chunk": chunk}).to_string())
    }

    #[test]
    fn a_message_is_heard_when_its_model_was_told() {
        let (mut driver, _) = opened(&setup(Vec::new()), None);
        let said: Value = serde_json::from_slice(&driver.say("one").unwrap()).unwrap();
        assert_eq!(said, json!({"say": {"id": 1, "text": "one"}}));
        driver.say("two");
        assert_eq!(driver.unheard(), 2);
        let one = json!({"id": 1, "text": "one"});
        heard(&mut driver, &json!({"said": {"said": [one]}}));
        assert_eq!(driver.unheard(), 1);
        let done = json!({"turn_ended": {"end": "done", "text": "x"}});
        // It takes the other one up by itself.
        assert!(!heard(&mut driver, &done).contains(&Step::Done));
        let two = json!({"id": 2, "text": "two"});
        heard(&mut driver, &json!({"turn": {"said": [two]}}));
        assert!(heard(&mut driver, &done).contains(&Step::Done));
        assert_eq!((driver.unheard(), driver.listens()), (0, false));
        assert_eq!(driver.close().last, LastWord::Done);
    }

    #[test]
    fn what_is_given_back_or_refused_is_not_waited_for() {
        let (mut driver, _) = opened(&setup(Vec::new()), None);
        for text in ["one", "two", "three"] {
            driver.say(text);
        }
        let order: Value = serde_json::from_slice(&driver.unsay(2).unwrap()).unwrap();
        assert_eq!(order, json!({"unsay": {"id": 2}}));
        assert_eq!((driver.unsay(0), driver.unsay(4)), (None, None));
        let message = |nth, hearing| Step::Message { nth, hearing };
        let one = json!({"said": {"said": [{"id": 1, "text": "one"}]}});
        assert_eq!(heard(&mut driver, &one), [message(1, Hearing::Heard)]);
        let refused = json!({"refused": {"id": 3, "why": "256 messages wait"}});
        assert_eq!(
            heard(&mut driver, &refused)[1],
            message(3, Hearing::Refused)
        );
        let done = json!({"turn_ended": {"end": "done", "text": "x"}});
        assert!(!heard(&mut driver, &done).contains(&Step::Done));
        // It was all that another turn would have been for.
        let unsaid = json!({"unsaid": {"id": 2}});
        let steps = heard(&mut driver, &unsaid);
        assert_eq!(steps, [message(2, Hearing::Unsaid), Step::Done]);
        assert_eq!((driver.unheard(), heard(&mut driver, &unsaid)), (0, vec![]));
    }

    #[test]
    fn a_turn_that_failed_takes_nothing_up() {
        let (mut driver, _) = opened(&setup(Vec::new()), None);
        driver.say("one");
        let failed = json!({"failed": {"fault": "overloaded", "message": "no"}});
        let ended = json!({"turn_ended": {"end": failed, "text": ""}});
        assert!(heard(&mut driver, &ended).contains(&Step::Done));
        assert_eq!(driver.unheard(), 1);
        assert_eq!(driver.close().last, LastWord::Unavailable);
    }

    #[test]
    fn what_is_left_of_a_key_is_passed_on_now_and_then() {
        let (mut driver, _) = opened(&setup(Vec::new()), None);
        let windows = |remaining: u64, at: u64| {
            let window =
                json!({"name": "tokens", "limit": 9, "remaining": remaining, "resets_at": 5});
            json!({"windows": {"key": "main", "windows": [window], "at": at}})
        };
        let told = |driver: &mut Native, chunk: &Value| -> Vec<(u64, u64)> {
            let steps = heard(driver, chunk);
            let news = steps.into_iter().filter_map(|step| match step {
                Step::Key {
                    news: KeyNews::Told { windows, at },
                    ..
                } => Some((windows[0].remaining?, at)),
                _ => None,
            });
            news.collect()
        };
        for (remaining, at, passed_on) in [
            (9, 1000, true),
            (8, 2000, false),
            (0, 3000, true),
            (0, 4000, false),
            (5, 5000, true),
            (4, 5000 + TOLD_EVERY_MS, true),
            (3, 6000 + TOLD_EVERY_MS, false),
        ] {
            let expected: Vec<(u64, u64)> =
                passed_on.then_some((remaining, at)).into_iter().collect();
            let now = told(&mut driver, &windows(remaining, at));
            assert_eq!(now, expected, "{remaining} {at}");
        }
        let done = json!({"turn_ended": {"end": "done", "text": "x"}});
        assert_eq!(told(&mut driver, &done), [(3, 6000 + TOLD_EVERY_MS)]);
        assert_eq!(told(&mut driver, &done), []);
    }

    #[test]
    fn a_window_that_is_used_up_is_told_once() {
        let (mut driver, _) = opened(&setup(Vec::new()), None);
        let windows = |remaining: u64| {
            let window =
                json!({"name": "requests", "limit": 9, "remaining": remaining, "resets_at": 5});
            json!({"windows": {"key": "main", "windows": [window]}})
        };
        let out = Step::Said(Update::KeyOut {
            key: "main".into(),
            until: Some(5),
            reason: "nothing is left of requests".into(),
        });
        for (remaining, told) in [
            (3, vec![]),
            (0, vec![out.clone()]),
            (0, vec![]),
            (1, vec![]),
            (0, vec![out]),
        ] {
            assert_eq!(heard(&mut driver, &windows(remaining)), told, "{remaining}");
        }
    }
}
