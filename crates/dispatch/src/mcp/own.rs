//! Our own tools: the verbs of the command line for a program that speaks MCP.
//! Must not wait without a bound, and must not word what the API has worded.

use std::time::Duration;

use dispatch_core::id::TaskId;

use super::{
    door::Refusal,
    family, find, logs,
    needs::Asking,
    table::{Call, Reply, Row, row},
    tasks,
    watch::{Tell, Waited, Watch},
};
use crate::api::{
    Spoken,
    mcp::{
        AnswerInput, DispatchInput, Handle, LISTED, LISTED_MAX, ListInput, ListOutput, LogsInput,
        LogsOutput, OneTask, SayInput, SayOutput, StopInput, WAIT_S, WAIT_S_MAX, WaitInput,
        WaitOutput,
    },
    request,
    task::Task,
};
use crate::cli::run::Whom;

pub(crate) const TOOLS: &[Row] = &[
    row!(
        "dispatch", "Dispatch a task", Adds, dispatch: DispatchInput => Handle,
        "Hand a task to a coding agent that works by itself in a checkout of its own, fenced off. \
         Returns at once with the task's handle while the agent works; use `wait` for its end. \
         Several tasks may run side by side."
    ),
    row!(
        "wait", "Wait for tasks", Looks, wait: WaitInput => WaitOutput,
        "Wait until tasks have ended or need something (a question, a permission), for a bounded \
         time. `done: false` means that the time is over: call again. Nothing is lost in between. \
         As the agent of a task: without `tasks` it is all that you dispatched, and when you end your \
         turn instead you are told of the ends and go on."
    ),
    row!(
        "show", "Show a task", Looks, show: OneTask => Task,
        "Everything about one task: what was asked, its runs with their logs and checks, what was \
         said, its result."
    ),
    row!(
        "logs", "Read a log", Looks, log: LogsInput => LogsOutput,
        "What the agent of a task wrote: the end of its log, or from a byte on."
    ),
    row!(
        "say", "Say something to a task", Changes, say: SayInput => SayOutput,
        "Say something to a task's agent: it hears it while it works where it can, else with its \
         next run, which an ended task is given for it."
    ),
    row!(
        "answer", "Answer a task", Changes, answer: AnswerInput => Handle,
        "Answer the question of a blocked task with `text`, so that it goes on where it was; or \
         grant or deny with `allow` what its agent asks permission for."
    ),
    row!(
        "stop", "Stop a task", Ends, stop: StopInput => Handle,
        "Ask the agent of a task to end, and those of the tasks that it asked for. The work so far \
         is kept. Only `kill` ends it at once."
    ),
    row!(
        "list", "List tasks", Looks, list: ListInput => ListOutput,
        "Tasks and how they stand, the newest first."
    ),
];

/// States of tasks that go on by themselves.
const OPEN: [&str; 6] = [
    "queued",
    "preparing",
    "running",
    "stopping",
    "checking",
    "parked",
];

/// Only names and directories of workspaces have a slash.
async fn find(call: &Call, wanted: &str) -> Result<Task, Refusal> {
    match wanted.contains('/') {
        true => find::by_workspace(&call.door, wanted).await,
        false => find::by_id(&call.door, wanted).await,
    }
}

async fn dispatch(call: &Call, input: DispatchInput) -> Result<Reply<Handle>, Refusal> {
    let handle = input.handle;
    let mut asked = request::Dispatch::from(input);
    call.door.complete(&mut asked).await?;
    let task: Task = call.door.post("/v1/tasks", &asked).await?;
    if !handle && tasks::spoken(&call.context) {
        return Ok(Reply::Task(tasks::created(&task)));
    }
    Ok(Handle::from(&task).into())
}

async fn wait(call: &Call, input: WaitInput) -> Result<Reply<WaitOutput>, Refusal> {
    if call.door.is_an_agents() {
        return Ok(family::wait(call, input).await?.into());
    }
    if input.tasks.is_empty() {
        return Err(Refusal::new("wait: `tasks` names none"));
    }
    let mut wanted = Vec::new();
    for id in &input.tasks {
        wanted.push(find(call, id).await?);
    }
    let watch = Watch {
        tasks: wanted,
        until: input.mode,
        limit: Duration::from_secs(input.timeout_s.unwrap_or(WAIT_S).min(WAIT_S_MAX)),
        asking: match input.ask_person {
            Some(false) => Asking::Never,
            Some(true) | None => Asking::of(&call.context),
        },
        tell: Tell::Changes,
    };
    Ok(match watch.run(call).await? {
        Waited::Needs(input) => Reply::Needs(input),
        Waited::Seen { done, tasks } => WaitOutput {
            done,
            tasks: tasks.iter().map(Handle::from).collect(),
            words: String::new(),
        }
        .into(),
    })
}

async fn show(call: &Call, input: OneTask) -> Result<Reply<Task>, Refusal> {
    Ok(find(call, &input.task).await?.into())
}

async fn log(call: &Call, input: LogsInput) -> Result<Reply<LogsOutput>, Refusal> {
    let task = find(call, &input.task).await?;
    let run = match input.run {
        Some(n) => task.runs.iter().find(|run| run.n == n),
        None => task.runs.last(),
    };
    let run = run.ok_or_else(|| {
        let (short, runs) = (&task.short, task.runs.len());
        Refusal::new(format!("find that run: task {short} has {runs}"))
    })?;
    let read = logs::read(&call.door, &task, run, input.from, input.bytes);
    Ok(read.await?.into())
}

async fn say(call: &Call, input: SayInput) -> Result<Reply<SayOutput>, Refusal> {
    let mut asked = request::Say {
        text: input.text,
        model: input.model,
        effort: input.effort,
        ..request::Say::default()
    };
    let whole = input.task.trim().parse::<TaskId>();
    let id = match whole {
        // An agent may speak to whoever asked for its task, and not look at that.
        Ok(id) if call.door.is_an_agents() => id.to_string(),
        Ok(_) | Err(_) => {
            let task = find(call, &input.task).await?;
            let whom = Whom::of(&task).tuned(asked.tuned());
            asked.secrets = call.door.secrets(&task.agent, whom)?;
            task.id
        }
    };
    let path = format!("/v1/tasks/{id}/say");
    let spoken: Spoken = call.door.post(&path, &asked).await?;
    Ok(SayOutput {
        message: spoken.message,
        how: spoken.how,
        task: Handle::from(&spoken.task),
    }
    .into())
}

async fn answer(call: &Call, input: AnswerInput) -> Result<Reply<Handle>, Refusal> {
    let task = find(call, &input.task).await?;
    let task = match (input.text, input.allow) {
        (Some(text), None) => give_answer(call, &task, text).await?,
        (None, Some(allow)) => permit(call, &task, input.ask, allow, input.why).await?,
        (Some(_), Some(_)) | (None, None) => {
            return Err(Refusal::new(
                "answer: give either `text` (for a question) or `allow` (for a permission)",
            ));
        }
    };
    Ok(Handle::from(&task).into())
}

pub(crate) async fn give_answer(call: &Call, task: &Task, text: String) -> Result<Task, Refusal> {
    let asked = request::Answer {
        text,
        secrets: call.door.secrets(&task.agent, Whom::of(task))?,
        ..request::Answer::default()
    };
    let path = format!("/v1/tasks/{}/answer", task.id);
    call.door.post(&path, &asked).await
}

/// Where one waits it need not be named.
pub(crate) async fn permit(
    call: &Call,
    task: &Task,
    ask: Option<u32>,
    allow: bool,
    why: Option<String>,
) -> Result<Task, Refusal> {
    let open: Vec<u32> = task.open_asks().map(|ask| ask.id).collect();
    let ask = match (ask, &open[..]) {
        (Some(ask), _) => ask,
        (None, [one]) => *one,
        (None, []) => {
            let what = format!("answer task {}: its agent asks for nothing", task.short);
            return Err(Refusal::new(what));
        }
        (None, several) => {
            let what = format!(
                "answer task {}: several wait, name one as `ask`: {several:?}",
                task.short
            );
            return Err(Refusal::new(what));
        }
    };
    let path = format!("/v1/tasks/{}/asks/{ask}", task.id);
    call.door
        .post(
            &path,
            &request::Permit {
                allow,
                why,
                always: false,
            },
        )
        .await
}

async fn stop(call: &Call, input: StopInput) -> Result<Reply<Handle>, Refusal> {
    let task = find(call, &input.task).await?;
    let force = if input.kill {
        request::Force::Kill
    } else {
        request::Force::Ask
    };
    let path = format!("/v1/tasks/{}/stop", task.id);
    let task: Task = call.door.post(&path, &request::Stop { force }).await?;
    Ok(Handle::from(&task).into())
}

async fn list(call: &Call, input: ListInput) -> Result<Reply<ListOutput>, Refusal> {
    let states: Vec<&str> = match (input.open, &input.states[..]) {
        (false, states) => states.iter().map(String::as_str).collect(),
        (true, []) => OPEN.to_vec(),
        (true, states) => {
            let states = states.iter().map(String::as_str);
            states.filter(|state| OPEN.contains(state)).collect()
        }
    };
    let query = match &states[..] {
        [] if input.open => return Ok(ListOutput::default().into()),
        [] => String::new(),
        states => format!("&state={}", states.join(",")),
    };
    let limit = input.limit.unwrap_or(LISTED).clamp(1, LISTED_MAX);
    let (tasks, more) = call.door.tasks(&query, limit).await?;
    let there = tasks.iter().filter(|task| !task.removed);
    Ok(ListOutput {
        tasks: there.map(Handle::from).collect(),
        more,
    }
    .into())
}
