//! What the log holds: events, read back and folded. A damaged log must be told, never guessed at.
//! Must not make states by hand: the fold alone makes them.

use std::collections::BTreeSet;

use dispatch_core::{
    ask::{AskId, By},
    attach::Attached,
    event::{Event, Kind, Scope, Sealed, Subject, Verified},
    family::EndId,
    id::{RunId, SiteName, TaskId},
    job::{Exit, ExitReport},
    keyring::KeyNews,
    keys::RequestKey,
    letter::{LetterId, Written},
    message::{Delivery, MessageId, Sender},
    outcome::{Failure, Outcome, Stop},
    run::RunCause,
    state::State,
    task::{
        Base, ChecksAsked, Expects, Labels, Placement, Priority, TaskSpec, Terms, Tuning, Turn,
        Wrap,
    },
    update::{Update, Usage},
};

use super::{Shape, Target, holds, shape_of};

/// What a subscriber is told of every event, beside its own members.
const SAID_BESIDE: [&str; 4] = ["seq", "at", "task", "run"];

pub(super) const TARGETS: &[Target] = &[Target {
    name: "events",
    property: "an event reads back as it was; the fold takes it or leaves the state alone, and its \
        indexes hold",
    seeds,
    words: &[
        "engine_started",
        "frozen_set",
        "pool_paused",
        "budget_warned",
        "key_heard",
        "news",
        "waits",
        "after",
        "retry_of",
        "task_created",
        "answered",
        "applied",
        "snapshotted",
        "workspace_removed",
        "workspace_restored",
        "task_removed",
        "task_restored",
        "run_queued",
        "admitted",
        "workspace_ready",
        "site_refused",
        "started",
        "adopted",
        "session_seen",
        "permission_asked",
        "permission_answered",
        "stop_requested",
        "agent_ended",
        "workspace_sealed",
        "checks_started",
        "check_finished",
        "finished",
        "noted",
        "said",
        "compact_asked",
        "message_queued",
        "message_taken",
        "child_ended",
        "ends_delivered",
        "detached",
        "parked",
        "asked_by",
        "ends",
        "0000000000000001",
        "\"run\":",
        "\"task\":",
        "\"seq\":",
    ],
    check: events,
}];

/// The life of a task, one event a line.
fn seeds() -> Vec<Vec<u8>> {
    let (Ok(agent), Ok(pool), Ok(site), Ok(key)) = (
        "a".parse(),
        "p".parse(),
        "local".parse::<SiteName>(),
        "main".parse(),
    ) else {
        return Vec::new();
    };
    let task = TaskId::from_bits(1);
    let run = |n| Subject::Run(RunId { task, n });
    let spec = TaskSpec {
        title: "t".into(),
        text: "t".into(),
        repo: "/r".into(),
        base: Base::Head,
        agent,
        pool,
        placement: Placement {
            sites: Vec::new(),
            ..Placement::of(Wrap::Host)
        },
        expects: Expects::Change,
        checks: ChecksAsked::Detect,
        review_base: None,
        workspace: None,
        turn: Turn::default(),
        parent: None,
        labels: Labels::default(),
        terms: Terms {
            model: "m".parse().ok(),
            priority: Priority::High,
            // Nobody knows it: it waits for ever, and the fold must say so.
            after: vec![TaskId::from_bits(2)],
            ..Terms::default()
        },
        limits: dispatch_core::limits::Lowered::default(),
        guide: Default::default(),
    };
    let paused = spec.pool.clone();
    let child = TaskSpec {
        parent: Some(task),
        terms: Terms {
            asked_by: Some(RunId { task, n: 3 }),
            ..Terms::default()
        },
        ..spec.clone()
    };
    let usage = Usage {
        cost_usd: Some(0.1),
        input_tokens: Some(7),
        ..Usage::default()
    };
    let report = ExitReport {
        exit: Exit::Code(0),
        stopped: None,
        started_at: 1,
        ended_at: 2,
        out_bytes: 3,
        err_bytes: 4,
        leftovers: 0,
        problems: Vec::new(),
    };
    let failed = Outcome::Failed(Failure::RateLimited {
        retry_at: Some(9),
        said: "s".into(),
    });
    let kinds = [
        (
            Subject::Engine,
            Kind::EngineStarted {
                version: "0".into(),
            },
        ),
        (
            Subject::Task(task),
            Kind::TaskCreated {
                spec: Box::new(spec),
                short: "0000".into(),
            },
        ),
        (
            run(1),
            Kind::RunQueued {
                cause: RunCause::Dispatched,
            },
        ),
        (
            run(1),
            Kind::Waits {
                reason: "r".into(),
                until: Some(7),
            },
        ),
        (
            Subject::Engine,
            Kind::FrozenSet {
                frozen: true,
                scope: Scope::Repo("/r".into()),
            },
        ),
        (
            Subject::Engine,
            Kind::PoolPaused {
                pool: paused,
                until: 9,
                reason: "r".into(),
            },
        ),
        (
            Subject::Engine,
            Kind::BudgetWarned {
                what: "day".into(),
                spent: "1 of 2 tokens".into(),
            },
        ),
        (
            run(1),
            Kind::Keyed {
                key: RequestKey {
                    key: "l".into(),
                    request: "r".into(),
                },
                message: None,
            },
        ),
        (run(1), Kind::Admitted),
        (
            run(1),
            Kind::WorkspaceReady {
                path: "/w".into(),
                base: "b".into(),
                base_branch: None,
                how: "pool".into(),
            },
        ),
        (
            run(1),
            Kind::SiteRefused {
                site: site.clone(),
                reason: "r".into(),
            },
        ),
        (
            run(1),
            Kind::Started {
                site,
                driver: dispatch_core::drivers::DriverKind::Plain,
                enforced: "e".into(),
            },
        ),
        (
            run(1),
            Kind::Said {
                update: Update::Usage(usage.clone()),
                out_offset: 5,
                chunk: None,
            },
        ),
        (
            run(1),
            Kind::KeyHeard {
                key,
                news: KeyNews::Out {
                    until: Some(8),
                    reason: "r".into(),
                },
            },
        ),
        (
            run(1),
            Kind::SessionSeen {
                session: "s".into(),
            },
        ),
        (
            Subject::Task(task),
            Kind::MessageQueued {
                message: MessageId(1),
                text: "m".into(),
                from: Sender::Person,
                fresh: false,
                held: false,
                ends: Vec::new(),
            },
        ),
        (
            run(1),
            Kind::MessageTaken {
                message: MessageId(1),
                out_offset: Some(6),
            },
        ),
        (
            run(1),
            Kind::MessageDelivered {
                message: MessageId(1),
                delivery: Delivery::Interrupt,
            },
        ),
        (
            Subject::Task(task),
            Kind::MessageQueued {
                message: MessageId(2),
                text: "n".into(),
                from: Sender::Task(task),
                fresh: true,
                held: true,
                ends: Vec::new(),
            },
        ),
        (
            Subject::Task(task),
            Kind::Attached {
                attached: Attached {
                    folder: 1,
                    files: Vec::new(),
                    message: Some(MessageId(2)),
                },
            },
        ),
        (
            Subject::Task(task),
            Kind::TuningSet {
                tuning: Tuning {
                    model: "m".parse().ok(),
                    effort: None,
                    chain: None,
                },
            },
        ),
        (
            Subject::Task(task),
            Kind::Keyed {
                key: RequestKey {
                    key: "k".into(),
                    request: "r".into(),
                },
                message: Some(MessageId(2)),
            },
        ),
        (Subject::Task(task), Kind::CompactAsked),
        (
            Subject::Task(task),
            Kind::MessageCancelled {
                message: MessageId(2),
            },
        ),
        (
            Subject::Task(task),
            Kind::LetterSent {
                letter: LetterId(1),
                written: Written {
                    writer: "w".into(),
                    reader: "r".into(),
                    subject: String::new(),
                    text: "t".into(),
                },
                from: Sender::Task(task),
            },
        ),
        (
            Subject::Task(task),
            Kind::LettersRead {
                letters: vec![LetterId(1)],
            },
        ),
        (
            run(1),
            Kind::PermissionAsked {
                ask: AskId(1),
                tool: "t".into(),
                input: "i".into(),
                owner: Sender::Person,
                until: 9,
            },
        ),
        (
            run(1),
            Kind::PermissionAnswered {
                ask: AskId(1),
                allow: false,
                by: By::Person,
                reason: Some("w".into()),
                always: true,
            },
        ),
        (
            run(1),
            Kind::PermissionAsked {
                ask: AskId(2),
                tool: "t".into(),
                input: "i".into(),
                owner: Sender::Task(task),
                until: 9,
            },
        ),
        (
            run(1),
            Kind::StopRequested {
                why: Stop::ByPerson,
            },
        ),
        (
            run(1),
            Kind::AgentEnded {
                report,
                usage: Some(usage),
            },
        ),
        (
            run(1),
            Kind::WorkspaceSealed {
                sealed: Sealed::default(),
            },
        ),
        (
            run(1),
            Kind::Finished {
                outcome: failed,
                verified: Verified::NotVerified,
            },
        ),
        (
            Subject::Task(task),
            Kind::Answered {
                text: "yes".into(),
                by: Sender::Task(task),
            },
        ),
        (
            run(2),
            Kind::RunQueued {
                cause: RunCause::RetryOf {
                    n: 1,
                    by_person: false,
                },
            },
        ),
        (run(2), Kind::Admitted),
        (
            run(2),
            Kind::Finished {
                outcome: Outcome::Lost,
                verified: Verified::No,
            },
        ),
        (Subject::Task(task), Kind::WorkspaceRemoved),
        (Subject::Task(task), Kind::TaskRemoved),
    ];
    let family = family(task, child);
    let mut text = Vec::new();
    for (seq, (subject, kind)) in (1..).zip(kinds.into_iter().chain(family)) {
        let event = Event {
            seq,
            at: 1_700_000_000_000 + seq,
            subject,
            kind,
        };
        // A seed that cannot be written is none.
        if let Ok(line) = serde_json::to_vec(&event) {
            text.extend(line);
            text.push(b'\n');
        }
    }
    vec![text]
}

/// An agent asks for a task, its run ends, it is told of the end, waits for another, and lets it go.
fn family(task: TaskId, spec: TaskSpec) -> Vec<(Subject, Kind)> {
    let child = TaskId::from_bits(3);
    let own = |n| Subject::Run(RunId { task, n });
    let other = |n| Subject::Run(RunId { task: child, n });
    let queued = |cause| Kind::RunQueued { cause };
    let finished = || Kind::Finished {
        outcome: Outcome::Completed {
            summary: "s".into(),
        },
        verified: Verified::NotVerified,
    };
    let ended = |run| Kind::ChildEnded {
        child,
        state: "completed".into(),
        child_run: run,
        reason: "s".into(),
    };
    let end = |run| EndId { child, run };
    let message = MessageId(3);
    vec![
        (own(3), queued(RunCause::Dispatched)),
        (own(3), Kind::Admitted),
        (
            Subject::Task(child),
            Kind::TaskCreated {
                spec: Box::new(spec),
                short: "0000".into(),
            },
        ),
        (other(1), queued(RunCause::Dispatched)),
        (own(3), finished()),
        (
            Subject::Task(task),
            Kind::Parked {
                children: vec![child],
            },
        ),
        (other(1), finished()),
        (Subject::Task(task), ended(1)),
        (own(4), queued(RunCause::Ends)),
        (
            Subject::Task(task),
            Kind::MessageQueued {
                message,
                text: "it has ended".into(),
                from: Sender::Dispatch,
                fresh: false,
                held: false,
                ends: vec![end(1)],
            },
        ),
        (own(4), Kind::Admitted),
        (
            own(4),
            Kind::MessageTaken {
                message,
                out_offset: None,
            },
        ),
        (
            other(2),
            queued(RunCause::Answer {
                text: "a".into(),
                by: Sender::Task(task),
            }),
        ),
        (other(2), finished()),
        (Subject::Task(task), ended(2)),
        (own(4), Kind::EndsDelivered { ends: vec![end(2)] }),
        (Subject::Task(task), Kind::Detached { child }),
        (own(4), finished()),
    ]
}

fn events(bytes: &[u8]) -> Result<Shape, String> {
    let mut state = State::default();
    let mut seen = BTreeSet::new();
    for line in bytes.split(|b| *b == b'\n') {
        let Ok(event) = serde_json::from_slice::<Event>(line) else {
            continue;
        };
        let text = serde_json::to_vec(&event).map_err(|e| e.to_string())?;
        let back: Event = serde_json::from_slice(&text).map_err(|e| e.to_string())?;
        holds(back == event, || {
            format!("{event:?} reads back as {back:?}")
        })?;
        let body = serde_json::to_value(&event.kind).map_err(|e| e.to_string())?;
        let body = &body[event.kind.word()];
        holds(
            SAID_BESIDE.iter().all(|name| body.get(name).is_none()),
            || format!("a subscriber would be told two of a name: {body}"),
        )?;
        if let Kind::Finished { outcome, .. } = &event.kind {
            holds(!outcome.word().is_empty(), || {
                "an end without a word".into()
            })?;
            // Made for a person; it must not fail.
            seen.insert(("reason", outcome.reason().is_empty()));
        }
        let before = state.clone();
        let taken = state.apply(&event).is_ok();
        holds(taken || state == before, || {
            format!("refused, but the state is another: {event:?}")
        })?;
        holds(state.indexes_hold(), || {
            format!("the indexes do not hold after {event:?}")
        })?;
        // Whatever the log says, who asked for whom has an end.
        for task in state.tasks() {
            let (below, open) = state.below(task.id);
            holds(open <= below, || {
                format!("{open} of {below} below {}", task.id)
            })?;
            holds(!state.is_below(task.id, task.id), || "below itself".into())?;
        }
        seen.insert((event.kind.word(), taken));
    }
    Ok(shape_of(seen))
}
