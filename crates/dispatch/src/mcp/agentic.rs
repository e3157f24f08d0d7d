//! The tools of the Go dispatcher under their own names, as thin words over the same verbs.
//! Must not do what one of our own tools cannot do.

use std::time::{Duration, Instant};

use dispatch_engine::prompts::sha256;

use super::{
    door::Refusal,
    find,
    needs::Asking,
    own,
    table::{Call, Reply, Row, row},
    watch::{Tell, Waited, Watch},
};
use crate::api::{
    Spoken,
    agentic::{
        BlockedInfo, CompleteInput, CompleteOutput, DispatchInput, DispatchOutput, GateOutput,
        Nothing, PrepInput, PrepOutput, ResumeInput, ResumeOutput, StatusInput, StatusOutput,
        WATCH_S, WATCH_S_MAX, WatchInput, WatchOutput, WatchResult,
    },
    mcp::Until,
    plan::Plan,
    request,
    task::Task,
};
use crate::cli::run::Whom;

/// What stands for a task that was not given where nothing is started.
const NO_TASK: &str = "(the task)";
/// Tasks that one answer counts.
const COUNTED_MAX: usize = 10_000;

pub(crate) const TOOLS: &[Row] = &[
    row!(
        "agentic_dispatch", "Dispatch an agent", Adds, dispatch: DispatchInput => DispatchOutput,
        "Dispatch an agent to work on a task in a repository, in a workspace of its own. Returns at \
         once; `success` is true also when it is only queued, `state` says which. Use agentic_watch or \
         wait for its end."
    ),
    row!(
        "agentic_prep_workspace", "Plan a workspace", Looks, prep: PrepInput => PrepOutput,
        "Show the prompt and the workspace that agentic_dispatch would make, without starting or \
         writing anything."
    ),
    row!(
        "agentic_status", "Status of workspaces", Looks, status: StatusInput => StatusOutput,
        "Count workspaces by status, with the questions of blocked ones. Only looks."
    ),
    row!(
        "agentic_resume", "Resume a workspace", Changes, resume: ResumeInput => ResumeOutput,
        "Go on with a workspace that is blocked or has ended: answer its question, say what else to \
         do, or let another agent go on."
    ),
    row!(
        "agentic_watch", "Watch workspaces", Looks, watch: WatchInput => WatchOutput,
        "Watch workspaces until they have ended, with progress notifications as each of them does. \
         Those that go on when the time is over have status `timeout`: watch again."
    ),
    row!(
        "agentic_complete", "See to the completion", Looks, complete: CompleteInput => CompleteOutput,
        "Whether a workspace's last run completed and what its checks said. Checks run and results are \
         kept by themselves; there is nothing to start."
    ),
    row!(
        "agentic_dispatch_start", "Start the queue", Changes, start: Nothing => GateOutput,
        "Let waiting tasks start again."
    ),
    row!(
        "agentic_dispatch_shutdown", "Stop the queue", Changes, shutdown: Nothing => GateOutput,
        "Start nothing new; agents that run go on."
    ),
    row!(
        "agentic_dispatch_shutdown_now", "Stop everything", Ends, shutdown_now: Nothing => GateOutput,
        "Start nothing new, and kill what runs or waits. The work so far is kept, and so is every \
         task: each can be resumed."
    ),
];

pub(super) async fn find(call: &Call, workspace: &str) -> Result<Task, Refusal> {
    find::by_workspace(&call.door, workspace).await
}

async fn dispatch(call: &Call, input: DispatchInput) -> Result<Reply<DispatchOutput>, Refusal> {
    if input.dry_run {
        let (plan, ignored) = plan(call, input).await?;
        return Ok(DispatchOutput::planned(plan, &ignored).into());
    }
    let (mut asked, ignored) = input.request();
    call.door.complete(&mut asked).await?;
    let task: Task = call.door.post("/v1/tasks", &asked).await?;
    Ok(DispatchOutput::of(&task, &ignored).into())
}

async fn plan(call: &Call, input: DispatchInput) -> Result<(Plan, Vec<&'static str>), Refusal> {
    let (mut asked, ignored) = input.request();
    call.door.complete(&mut asked).await?;
    // A plan needs no key, and is not given one.
    asked.secrets = request::Secrets::default();
    Ok((call.door.look("/v1/plan", &asked).await?, ignored))
}

/// Nothing is made: a workspace belongs to a task, and is made when that starts. What one got from it
/// is the prompt and the places, and these are the same.
async fn prep(call: &Call, mut input: PrepInput) -> Result<Reply<PrepOutput>, Refusal> {
    input.task.get_or_insert_with(|| NO_TASK.to_owned());
    let (plan, ignored) = plan(call, input.into()).await?;
    let same = find(call, &plan.workspace_name).await;
    let resumed = same.is_ok_and(|task| task.workspace_name == plan.workspace_name);
    let version = sha256(plan.prompt.as_bytes());
    Ok(PrepOutput::planned(plan, version, resumed, &ignored).into())
}

async fn status(call: &Call, input: StatusInput) -> Result<Reply<StatusOutput>, Refusal> {
    let limit = match input.limit {
        0 => COUNTED_MAX,
        limit => limit.min(COUNTED_MAX),
    };
    let all = match &input.workspace {
        Some(workspace) => vec![find(call, workspace).await?],
        None => match &input.status {
            Some(status) => call.door.tasks(&format!("&state={status}"), limit).await?.0,
            None => call.door.tasks("", limit).await?.0,
        },
    };
    let wanted = |task: &&Task| {
        let state = input.status.as_ref();
        !task.removed && state.is_none_or(|state| *state == task.state)
    };
    let mut out = StatusOutput::default();
    for task in all.iter().filter(wanted) {
        out.total += 1;
        match task.state.as_str() {
            "queued" => out.queued += 1,
            "completed" => out.completed += 1,
            "failed" | "lost" => out.failed += 1,
            "stopped" => out.stopped += 1,
            "blocked" => out.blocked.push(BlockedInfo {
                name: task.workspace_name.clone(),
                repo: task.repo.clone(),
                agent: task.agent.clone(),
                question: task.question.clone().unwrap_or_default(),
            }),
            _ => out.running += 1,
        }
        out.workspaces.push(task.into());
    }
    Ok(out.into())
}

async fn resume(call: &Call, input: ResumeInput) -> Result<Reply<ResumeOutput>, Refusal> {
    let task = find(call, &input.workspace).await?;
    if input.dry_run {
        let answer = input.answer.as_deref().unwrap_or_default();
        let mut out = ResumeOutput::of(&task);
        out.prompt = format!("{}\n\n{answer}", task.task).trim_end().to_owned();
        return Ok(out.into());
    }
    let task = match (input.answer, input.agent) {
        (Some(text), None) if task.state == "blocked" => {
            own::give_answer(call, &task, text).await?
        }
        (Some(text), None) => say(call, &task, text, &task.agent).await?,
        (text, agent) => {
            let task = again(call, &task, agent).await?;
            // It waits for the gate or is being prepared, so this is among its first words.
            match text {
                Some(text) => say(call, &task, text, &task.agent).await?,
                None => task,
            }
        }
    };
    Ok(ResumeOutput::of(&task).into())
}

async fn say(call: &Call, task: &Task, text: String, agent: &str) -> Result<Task, Refusal> {
    let whom = Whom::of(task);
    let asked = request::Say {
        text,
        secrets: call.door.secrets(agent, whom)?,
        ..request::Say::default()
    };
    let path = format!("/v1/tasks/{}/say", task.id);
    let spoken: Spoken = call.door.post(&path, &asked).await?;
    Ok(spoken.task)
}

async fn again(call: &Call, task: &Task, agent: Option<String>) -> Result<Task, Refusal> {
    let secrets = match &agent {
        Some(agent) => call.door.secrets(agent, Whom::default())?,
        None => call.door.secrets(&task.agent, Whom::of(task))?,
    };
    let asked = request::Resume {
        agent,
        secrets,
        ..request::Resume::default()
    };
    let path = format!("/v1/tasks/{}/resume", task.id);
    call.door.post(&path, &asked).await
}

async fn watch(call: &Call, input: WatchInput) -> Result<Reply<WatchOutput>, Refusal> {
    let begun = Instant::now();
    let mut tasks: Vec<Task> = Vec::new();
    for wanted in &input.workspaces {
        for task in find::watched(&call.door, wanted).await? {
            if tasks.iter().all(|known| known.id != task.id) {
                tasks.push(task);
            }
        }
    }
    if input.workspaces.is_empty() {
        tasks = find::open(&call.door).await?;
    }
    let limit = input.timeout.unwrap_or(WATCH_S).min(WATCH_S_MAX);
    let watch = Watch {
        tasks,
        until: Until::All,
        limit: Duration::from_secs(limit),
        asking: Asking::Never,
        tell: Tell::Ends,
    };
    let tasks = match watch.run(call).await? {
        Waited::Seen { tasks, .. } => tasks,
        Waited::Needs(input) => return Ok(Reply::Needs(input)),
    };
    let (completed, failed): (Vec<&Task>, Vec<&Task>) =
        tasks.iter().partition(|task| task.state == "completed");
    let results = |tasks: Vec<&Task>| tasks.into_iter().map(WatchResult::from).collect();
    Ok(WatchOutput {
        success: failed.is_empty(),
        completed: results(completed),
        failed: results(failed),
        duration: format!("{}s", begun.elapsed().as_secs()),
    }
    .into())
}

async fn complete(call: &Call, input: CompleteInput) -> Result<Reply<CompleteOutput>, Refusal> {
    let task = find(call, &input.workspace).await?;
    let reason = if task.is_open() {
        Some("it goes on; its checks run by themselves when its agent is done".to_owned())
    } else {
        task.reason.clone()
    };
    Ok(CompleteOutput {
        success: task.state == "completed",
        workspace: task.workspace_name,
        task: task.id,
        state: task.state,
        reason,
        verified: task.verified,
        changed: task.changed,
    }
    .into())
}

async fn freeze(call: &Call, frozen: bool) -> Result<(), Refusal> {
    let asked = request::Freeze {
        frozen,
        ..request::Freeze::default()
    };
    call.door.post("/v1/freeze", &asked).await
}

async fn gate(call: &Call, message: &str, stopped: usize) -> Result<GateOutput, Refusal> {
    let open = find::open(&call.door).await?;
    let queued = open.iter().filter(|task| task.state == "queued").count();
    Ok(GateOutput {
        success: true,
        running: open.len() - queued,
        queued,
        message: message.to_owned(),
        stopped,
    })
}

async fn start(call: &Call, _: Nothing) -> Result<Reply<GateOutput>, Refusal> {
    freeze(call, false).await?;
    Ok(gate(call, "waiting tasks start again", 0).await?.into())
}

async fn shutdown(call: &Call, _: Nothing) -> Result<Reply<GateOutput>, Refusal> {
    freeze(call, true).await?;
    let told = "nothing new starts; what runs goes on; agentic_dispatch_start undoes it";
    Ok(gate(call, told, 0).await?.into())
}

async fn shutdown_now(call: &Call, _: Nothing) -> Result<Reply<GateOutput>, Refusal> {
    freeze(call, true).await?;
    let kill = request::Stop {
        force: request::Force::Kill,
    };
    let stopped: Vec<String> = call.door.post("/v1/stop", &kill).await?;
    let told = "nothing new starts, and what ran or waited is being ended; its work is kept";
    Ok(gate(call, told, stopped.len()).await?.into())
}
