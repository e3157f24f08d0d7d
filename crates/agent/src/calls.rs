//! The calls of one step: each is allowed or not, recorded before it begins, run, and answered once.
//! Must not run what is not allowed, and must not run beside others what changes something.

use std::{sync::Arc, time::Duration};

use dispatch_core::{
    native::{Chunk, TurnEnd},
    rules::{Action, Group},
};
use tokio::{task::JoinSet, time::Instant as At};

use crate::{
    agent::Agent,
    conversation::{Call, INTERRUPTED},
    record::RecordError,
    tools::{self, Given, Granted, Judge, Planned, Run, Seen, Sign},
    turn::{Halt, Turn, limit},
};

/// What a model is told of a call that a person's word came before.
const SPOKEN_TO: &str =
    "somebody has said something first; make this call again if it is still wanted";

/// A call that may begin.
struct Ready {
    call: Call,
    tool: Granted,
    planned: Planned,
}

/// All that have no result yet, in their order; those that only look run beside each other.
pub(crate) async fn run(turn: &mut Turn<'_>, calls: Vec<Call>) -> Result<(), Halt> {
    let mut together: Vec<Ready> = Vec::new();
    for call in calls {
        let Some(ready) = ready(turn, call).await? else {
            continue;
        };
        let alone = !ready.tool.is_safe();
        if alone {
            run_together(turn, std::mem::take(&mut together)).await?;
        }
        together.push(ready);
        if alone {
            run_together(turn, std::mem::take(&mut together)).await?;
        }
    }
    run_together(turn, together).await
}

/// `None`: it has its answer already.
async fn ready(turn: &mut Turn<'_>, call: Call) -> Result<Option<Ready>, Halt> {
    let Some(tool) = tools::find(&turn.agent.tools, &call.name) else {
        let there = tools::list(&turn.agent.tools);
        let text = format!("error: there is no tool {:?}; there are {there}", call.name);
        turn.answer(&call, text, true).await?;
        return Ok(None);
    };
    // An earlier process began it and did not see its end. What only looks may look again.
    if turn.agent.log.conversation.is_running(&call.id) && !tool.is_safe() {
        turn.answer(&call, INTERRUPTED.to_owned(), true).await?;
        return Ok(None);
    }
    let given = Given {
        input: call.input.clone(),
        place: Arc::clone(&turn.agent.place),
        judge: Judge::new(tool.group(), Arc::clone(&turn.agent.rules)),
    };
    let planned = match tool.plan(given).await {
        Ok(planned) => planned,
        Err(wrong) => {
            turn.answer(&call, wrong.to_string(), true).await?;
            return Ok(None);
        }
    };
    if let Err(why) = permit(turn, &call, &tool, &planned).await? {
        turn.answer(&call, format!("error: {why}"), true).await?;
        return Ok(None);
    }
    Ok(Some(Ready {
        call,
        tool,
        planned,
    }))
}

/// What the rules say, or whoever is asked.
async fn permit(
    turn: &mut Turn<'_>,
    call: &Call,
    tool: &Granted,
    planned: &Planned,
) -> Result<Result<(), String>, Halt> {
    let group = planned.group.unwrap_or_else(|| tool.group());
    let subjects = &planned.subjects;
    match turn.agent.rules.decide_all(group, subjects) {
        Action::Allow => return Ok(Ok(())),
        Action::Deny => {
            let why = format!("this is not permitted: a rule for {group} denies it");
            return Ok(Err(why));
        }
        Action::Ask => {}
    }
    let known = turn.agent.log.conversation.answer_to(&call.id, subjects);
    if let Some(answered) = known.cloned() {
        return Ok(outcome(answered.allowed, &answered.why));
    }
    // The model hears it first: it may not want this any more.
    if is_spoken_to(turn) {
        return Ok(outcome(false, SPOKEN_TO));
    }
    let (allowed, always, why) = ask(turn, call, group, planned).await?;
    if allowed && always {
        let rules = Arc::make_mut(&mut turn.agent.rules);
        for subject in subjects {
            rules.allow_always(group, subject.clone());
        }
    }
    Ok(outcome(allowed, &why))
}

fn outcome(allowed: bool, why: &str) -> Result<(), String> {
    match why {
        _ if allowed => Ok(()),
        "" => Err("this was not permitted".to_owned()),
        why => Err(format!("this was not permitted: {why}")),
    }
}

/// The question and its answer, both in the record.
async fn ask(
    turn: &mut Turn<'_>,
    call: &Call,
    group: Group,
    planned: &Planned,
) -> Result<(bool, bool, String), Halt> {
    let id = turn.agent.log.conversation.next_question();
    turn.agent.inbox.asks(id);
    turn.put(Chunk::Asked {
        id,
        call: call.id.clone(),
        tool: call.name.clone(),
        group,
        subject: planned.shown(),
        subjects: planned.subjects.clone(),
        input: call.input.clone(),
    })
    .await?;
    let (allowed, always, why) = wait_for(turn, id).await?;
    let told = why.clone();
    turn.put(Chunk::Answered {
        id,
        allowed,
        always,
        why: told,
    })
    .await?;
    Ok((allowed, always, why))
}

/// Whatever happens there is an answer: nobody's is a denial.
async fn wait_for(turn: &mut Turn<'_>, id: u64) -> Result<(bool, bool, String), Halt> {
    let limit = Duration::from_millis(turn.agent.settings.limits.ask_wait_ms);
    let until = At::now() + limit;
    loop {
        if let Some(permit) = turn.agent.inbox.permit(id) {
            return Ok((permit.allow, permit.always, permit.why));
        }
        if turn.agent.inbox.stopped() {
            return Err(Halt::End(TurnEnd::Stopped));
        }
        let denied = |why: &str| Ok((false, false, why.to_owned()));
        if is_spoken_to(turn) {
            return denied(SPOKEN_TO);
        }
        if turn.agent.inbox.closed() {
            return denied("nobody is there to ask");
        }
        let deadline = turn.deadline;
        tokio::select! {
            heard = wait(deadline, turn.agent.inbox.hear()) => heard?,
            () = tokio::time::sleep_until(until) => return denied("nobody answered in time"),
        }
    }
}

fn is_spoken_to(turn: &Turn<'_>) -> bool {
    *turn.agent.inbox.count().borrow() > 0
}

async fn run_together(turn: &mut Turn<'_>, ready: Vec<Ready>) -> Result<(), Halt> {
    let Some(last) = ready.len().checked_sub(1) else {
        return Ok(());
    };
    let step = turn.step();
    for (index, Ready { call, .. }) in ready.iter().enumerate() {
        let call = call.id.clone();
        let chunk = Chunk::Running { call };
        // The last one is behind the others in the pipe.
        if index == last {
            turn.agent.log.put_first(step, chunk).await?;
        } else {
            turn.agent.log.put(step, chunk).await?;
        }
    }
    let mut running = JoinSet::new();
    let mut names = std::collections::HashMap::new();
    let conversation = &turn.agent.log.conversation;
    let seen = Arc::new(Seen {
        told: conversation.told.clone(),
        outs: conversation.outs.clone(),
    });
    for Ready {
        call,
        tool,
        planned,
    } in ready
    {
        let run = Run {
            call: call.id.clone(),
            place: Arc::clone(&turn.agent.place),
            seen: Arc::clone(&seen),
        };
        let task = running.spawn(planned.run(run));
        names.insert(task.id(), (call, tool));
    }
    while !running.is_empty() {
        let deadline = turn.deadline;
        let next = next(turn.agent, &mut running);
        let done = wait(deadline, next).await?;
        let (id, outcome) = match done {
            Happened::Heard if turn.agent.inbox.stopped() => {
                // Dropped, each tool ends what it began.
                drop(running);
                return Err(Halt::End(TurnEnd::Stopped));
            }
            Happened::Heard => continue,
            Happened::Sign(sign) => {
                signed(turn, sign).await?;
                continue;
            }
            Happened::Done(done) => done,
        };
        while let Ok(sign) = turn.agent.signs.try_recv() {
            signed(turn, sign).await?;
        }
        let Some((call, tool)) = names.get(&id) else {
            continue;
        };
        let (text, failed) = match outcome {
            Ok(Ok(text)) => (text, false),
            Ok(Err(wrong)) => (wrong.to_string(), true),
            Err(panic) => (format!("error: this is a bug in the tool: {panic}"), true),
        };
        let text = turn.agent.place.fit(tool.name(), text).await;
        turn.answer(call, text, failed).await?;
    }
    Ok(())
}

type Outcome = Result<Result<String, tools::Wrong>, String>;

enum Happened {
    Heard,
    Sign(Sign),
    Done((tokio::task::Id, Outcome)),
}

async fn next(agent: &mut Agent, running: &mut JoinSet<Result<String, tools::Wrong>>) -> Happened {
    tokio::select! {
        biased;
        () = agent.inbox.hear() => Happened::Heard,
        Some(sign) = agent.signs.recv() => Happened::Sign(sign),
        Some(done) = running.join_next_with_id() => Happened::Done(match done {
            Ok((id, outcome)) => (id, Ok(outcome)),
            Err(error) => (error.id(), Err(error.to_string())),
        }),
    }
}

async fn wait<T>(deadline: Option<At>, next: impl Future<Output = T>) -> Result<T, Halt> {
    let Some(at) = deadline else {
        return Ok(next.await);
    };
    let done = tokio::time::timeout_at(at, next).await;
    done.map_err(|_| limit("wall_clock"))
}

async fn signed(turn: &mut Turn<'_>, sign: Sign) -> Result<(), RecordError> {
    match sign {
        Sign::Plan(todos) => turn.put(Chunk::Plan { todos }).await,
        Sign::Live(live) if turn.agent.settings.live => turn.agent.log.show(live),
        Sign::Live(_) => Ok(()),
    }
}
