//! The fold: what it holds true whatever happens.
//! Must not know how it is kept.

use super::{State, error::ApplyError};
use crate::{
    ask::{self, Ask, AskId},
    attach::Attached,
    config::Config,
    drivers::DriverKind,
    event::{Event, Kind, Scope, Subject, Verified},
    id::{RunId, TaskId},
    job::{Exit, ExitReport},
    message::{Message, MessageId, Sender},
    outcome::{Outcome, Stop},
    run::RunCause,
    schedule::{Held, Host, View},
    task::{
        self, Base, ChecksAsked, Expects, Labels, Placement, TaskSpec, Terms, Tuning, Turn, Wrap,
    },
};

pub(crate) fn spec(pool: &str) -> TaskSpec {
    TaskSpec {
        title: "t".into(),
        text: "t".into(),
        repo: "/r".into(),
        base: Base::Head,
        agent: "a".parse().unwrap(),
        pool: pool.parse().unwrap(),
        placement: Placement::of(Wrap::Host),
        expects: Expects::Change,
        checks: ChecksAsked::Detect,
        review_base: None,
        workspace: None,
        turn: Turn::default(),
        parent: None,
        labels: Labels::default(),
        terms: Terms::default(),
        limits: crate::limits::Lowered::default(),
        guide: Default::default(),
    }
}

struct World {
    state: State,
}

impl World {
    fn new() -> Self {
        Self {
            state: State::default(),
        }
    }

    fn put(&mut self, subject: Subject, kind: Kind) -> Result<(), ApplyError> {
        let event = Event {
            seq: self.state.seq() + 1,
            at: 5,
            subject,
            kind,
        };
        let result = self.state.apply(&event);
        assert!(self.state.indexes_hold(), "after {event:?}");
        result
    }

    fn task(&mut self, bits: u64, pool: &str) -> RunId {
        let task = TaskId::from_bits(bits);
        let created = Kind::TaskCreated {
            spec: Box::new(spec(pool)),
            short: "3f".into(),
        };
        self.put(Subject::Task(task), created).unwrap();
        let run = RunId { task, n: 1 };
        self.put(
            Subject::Run(run),
            Kind::RunQueued {
                cause: RunCause::Dispatched,
            },
        )
        .unwrap();
        run
    }
}

fn finished(outcome: Outcome) -> Kind {
    Kind::Finished {
        outcome,
        verified: Verified::NotVerified,
    }
}

fn look<'a>(world: &'a World, config: &'a Config, held: &'a Held) -> View<'a> {
    View {
        state: &world.state,
        gate: &config.gate,
        pools: &config.pools,
        disk_free_min_bytes: 0,
        held,
        host: Host::default(),
        now: 5,
    }
}

/// One after the other, as the engine does.
fn admit(world: &mut World, config: &Config, held: &Held) -> Vec<RunId> {
    let mut all = Vec::new();
    loop {
        let admit = look(world, config, held).decide().admit;
        if admit.is_empty() {
            return all;
        }
        for run in admit {
            world.put(Subject::Run(run), Kind::Admitted).unwrap();
            all.push(run);
        }
    }
}

#[test]
fn slots_follow_from_states_whatever_happens() {
    let mut world = World::new();
    let (config, none) = (Config::defaults(), Held::new());
    let runs: Vec<RunId> = (0..6).map(|n| world.task(n << 32, "anthropic")).collect();
    assert_eq!(admit(&mut world, &config, &none), runs[..3]);
    let why = look(&world, &config, &none).waits_for(runs[3]).unwrap();
    assert_eq!(why.text, "pool anthropic: 3 of 3 busy");
    world
        .put(Subject::Run(runs[1]), finished(Outcome::Lost))
        .unwrap();
    assert_eq!(look(&world, &config, &none).decide().admit, [runs[3]]);
    let held = Held::from([(runs[3], "needs KEY from you".to_owned())]);
    assert_eq!(look(&world, &config, &held).decide().admit, [runs[4]]);
    let frozen = Kind::FrozenSet {
        frozen: true,
        scope: Scope::All,
    };
    world.put(Subject::Engine, frozen).unwrap();
    assert!(look(&world, &config, &held).decide().admit.is_empty());
}

/// As format 1 wrote them: no terms, no scope, nobody who asked for a retry.
#[test]
fn logs_of_the_first_format_are_read() {
    let old = [
        r#"{"seq":1,"at":5,"subject":"engine","kind":{"frozen_set":{"frozen":true}}}"#,
        r#"{"seq":2,"at":5,"subject":{"task":"0000000000000001"},"kind":{"task_created":{"spec":{
                "title":"t","text":"t","repo":"/r","base":"head","agent":"a","pool":"p",
                "placement":{"sites":[],"wrap":"host"},"expects":"change","checks":"detect",
                "workspace":null,"parent":null,
                "labels":{"org":null,"issue":null,"pr":null,"tag":null}},"short":"00"}}}"#,
        r#"{"seq":3,"at":5,"subject":{"run":{"task":"0000000000000001","n":1}},
                "kind":{"run_queued":{"cause":"dispatched"}}}"#,
        r#"{"seq":4,"at":5,"subject":{"run":{"task":"0000000000000001","n":1}},
                "kind":{"finished":{"outcome":"lost","verified":"not_verified"}}}"#,
        r#"{"seq":5,"at":5,"subject":{"run":{"task":"0000000000000001","n":2}},
                "kind":{"run_queued":{"cause":{"retry_of":{"n":1}}}}}"#,
    ];
    let mut state = State::default();
    for line in old {
        let event: Event = serde_json::from_str(line).unwrap();
        state.apply(&event).unwrap();
    }
    assert!(state.frozen() && state.indexes_hold());
    let task = state.task(TaskId::from_bits(1)).unwrap();
    assert_eq!(task.spec.terms, Terms::default());
    assert_eq!(task.own_retries(), 1);
}

/// A task for pull request 7.
fn on_pr(world: &mut World, bits: u64, turn: Turn) -> RunId {
    let task = TaskId::from_bits(bits);
    let mut spec = spec("default");
    spec.base = Base::Pr { number: 7 };
    spec.turn = turn;
    let short = world.state.short(task);
    let spec = Box::new(spec);
    world
        .put(Subject::Task(task), Kind::TaskCreated { spec, short })
        .unwrap();
    let run = RunId { task, n: 1 };
    let cause = RunCause::Dispatched;
    world
        .put(Subject::Run(run), Kind::RunQueued { cause })
        .unwrap();
    run
}

#[test]
fn whoever_is_queued_waits_for_every_older_holder() {
    let mut world = World::new();
    let behind = |taken, other: RunId| Turn {
        taken,
        behind: Some(other.task),
    };
    let first = on_pr(&mut world, 1 << 60, Turn::default());
    let second = on_pr(&mut world, 2 << 60, behind(task::Taken::Queue, first));
    let third = on_pr(&mut world, 3 << 60, behind(task::Taken::Queue, second));
    let waits = |world: &World, run: RunId| world.state.waits_behind(run.task).map(|t| t.id);
    assert_eq!(waits(&world, first), None);
    assert_eq!(waits(&world, second), Some(first.task));
    // The second gives up, and the third still waits for the first.
    world
        .put(
            Subject::Run(second),
            finished(Outcome::Stopped(Stop::ByPerson)),
        )
        .unwrap();
    assert_eq!(waits(&world, third), Some(first.task));
    assert_eq!(world.state.taken_over(first.task), None);
    let question = "which?".to_owned();
    world
        .put(Subject::Run(first), finished(Outcome::Blocked { question }))
        .unwrap();
    assert_eq!(
        waits(&world, third),
        Some(first.task),
        "it waits for an answer"
    );
    // Who supersedes does not wait for an answer that nobody gives, but for those that run.
    let fourth = on_pr(&mut world, 4 << 60, behind(task::Taken::Supersede, third));
    assert_eq!(waits(&world, fourth), Some(third.task));
    world
        .put(
            Subject::Run(third),
            finished(Outcome::Stopped(Stop::ByPerson)),
        )
        .unwrap();
    assert_eq!(waits(&world, fourth), None);
    assert_eq!(world.state.taken_over(first.task), Some(fourth.task));
    world
        .put(Subject::Task(first.task), Kind::TaskRemoved)
        .unwrap();
    let spec = world.state.task(fourth.task).unwrap().spec.clone();
    let holders: Vec<TaskId> = world.state.holders(&spec).map(|t| t.id).collect();
    assert_eq!(holders, [fourth.task]);
}

fn said(world: &mut World, run: RunId, n: u32, fresh: bool) -> Result<(), ApplyError> {
    let queued = Kind::MessageQueued {
        message: MessageId(n),
        text: "m".into(),
        from: Sender::Person,
        fresh,
        held: false,
        ends: Vec::new(),
    };
    world.put(Subject::Task(run.task), queued)
}

fn attached(message: Option<u32>, folder: u32) -> Kind {
    let attached = Attached {
        folder,
        files: Vec::new(),
        message: message.map(MessageId),
    };
    Kind::Attached { attached }
}

/// Each run is given what came with its task and with what was said to it so far.
#[test]
fn files_go_with_what_they_came_with() {
    let mut world = World::new();
    let run = world.task(1, "default");
    let about = Subject::Task(run.task);
    world.put(about, attached(None, 1)).unwrap();
    world.put(Subject::Run(run), Kind::Admitted).unwrap();
    for (n, fresh) in [(1, true), (2, true), (3, false)] {
        said(&mut world, run, n, fresh).unwrap();
    }
    world.put(about, attached(Some(1), 2)).unwrap();
    world.put(about, attached(Some(2), 3)).unwrap();
    assert!(world.put(about, attached(Some(4), 4)).is_err(), "no such");
    let task = |world: &World| world.state.task(run.task).unwrap().clone();
    let barred = |m: &Message| m.is_barred_from(1);
    let all: Vec<bool> = task(&world).messages.iter().map(barred).collect();
    assert_eq!(all, [true, true, false]);
    let message = MessageId(2);
    world
        .put(about, Kind::MessageCancelled { message })
        .unwrap();
    world
        .put(Subject::Run(run), finished(Outcome::Lost))
        .unwrap();
    let next = RunId { n: 2, ..run };
    let cause = RunCause::Said { by_person: true };
    world
        .put(Subject::Run(next), Kind::RunQueued { cause })
        .unwrap();
    let taken = Kind::MessageTaken {
        message: MessageId(1),
        out_offset: None,
    };
    world.put(Subject::Run(next), taken).unwrap();
    let given = |n: u32| {
        let task = task(&world);
        let given = task.attached_for(n).map(|(a, new)| (a.folder, new));
        given.collect::<Vec<_>>()
    };
    assert_eq!(given(1), [(1, true)]);
    assert_eq!(given(2), [(1, false), (2, true)]);
    assert_eq!(given(3), [(1, false), (2, false)]);
    // What is for this run is withdrawn no more.
    assert!(world.put(about, attached(Some(1), 9)).is_err());
}

/// When nothing can run any more, nobody will read them.
#[test]
fn files_go_when_nothing_can_run_any_more() {
    let kept = |refname: &str| Kind::Snapshotted {
        refname: refname.into(),
        commit: "c".into(),
        keep_until: 9,
    };
    let dropped = |refname: &str| Kind::SnapshotDropped {
        refname: refname.into(),
    };
    let ready = Kind::WorkspaceReady {
        path: "/w".into(),
        base: "b".into(),
        base_branch: None,
        how: String::new(),
    };
    let removed = Kind::WorkspaceRemoved;
    // All but the last keep them.
    for steps in [
        vec![removed.clone()],
        vec![kept("a"), removed.clone(), dropped("a")],
        vec![kept("a"), kept("b"), removed, dropped("a"), dropped("b")],
        vec![Kind::TaskRemoved, Kind::AttachmentsDropped],
    ] {
        let mut world = World::new();
        let run = world.task(1, "default");
        let about = Subject::Task(run.task);
        world.put(about, attached(None, 1)).unwrap();
        assert!(world.put(about, Kind::AttachmentsDropped).is_err());
        world.put(Subject::Run(run), Kind::Admitted).unwrap();
        world.put(Subject::Run(run), ready.clone()).unwrap();
        let lost = finished(Outcome::Lost);
        world.put(Subject::Run(run), lost).unwrap();
        let (last, before) = steps.split_last().unwrap();
        for step in before {
            world.put(about, step.clone()).unwrap();
        }
        let left = |world: &World| world.state.task(run.task).unwrap().attached.len();
        assert_eq!(left(&world), 1, "{steps:?}");
        world.put(about, last.clone()).unwrap();
        assert_eq!(left(&world), 0, "{steps:?}");
        let task = world.state.task(run.task).unwrap();
        let dropped = *last == Kind::AttachmentsDropped;
        assert_eq!(task.attached_dropped, dropped);
        assert_eq!(task.removed_at.is_some(), dropped);
    }
}

/// A run that waits for the gate changes its model; one that was let in keeps it to its end.
#[test]
fn another_model_holds_from_the_next_run_on() {
    let mut world = World::new();
    let (config, none) = (Config::defaults(), Held::new());
    let run = world.task(1, "default");
    let about = Subject::Task(run.task);
    let set = |model: &str, effort| Kind::TuningSet {
        tuning: Tuning {
            model: model.parse().ok(),
            effort,
            chain: None,
        },
    };
    let has = |world: &World| {
        let task = world.state.task(run.task).unwrap();
        let model = task.spec.terms.model.as_ref().map(ToString::to_string);
        (model, task.spec.guide.effort)
    };
    world.put(about, set("one", None)).unwrap();
    assert_eq!(has(&world), (Some("one".into()), None));
    assert_eq!(admit(&mut world, &config, &none), [run]);
    world.put(about, set("two", None)).unwrap();
    let high = Some(task::Effort::High);
    world.put(about, set("", high)).unwrap();
    assert_eq!(has(&world), (Some("one".into()), None));
    world
        .put(Subject::Run(run), finished(Outcome::Lost))
        .unwrap();
    assert_eq!(has(&world), (Some("two".into()), high));
    world.put(about, set("three", None)).unwrap();
    assert_eq!(has(&world), (Some("three".into()), high));
    let next = RunId { n: 2, ..run };
    let cause = RunCause::Said { by_person: true };
    world
        .put(Subject::Run(next), Kind::RunQueued { cause })
        .unwrap();
    world.put(about, set("four", None)).unwrap();
    assert_eq!(admit(&mut world, &config, &none), [next]);
    assert_eq!(has(&world), (Some("four".into()), high));
}

#[test]
fn illegal_events_change_nothing() {
    let mut world = World::new();
    let run = world.task(1, "default");
    let before = world.state.clone();
    let stop = Kind::StopRequested {
        why: Stop::ByPerson,
    };
    assert!(matches!(
        world.put(Subject::Run(run), stop),
        Err(ApplyError::Illegal { .. })
    ));
    let other = RunId { n: 2, ..run };
    assert!(world.put(Subject::Run(other), Kind::Admitted).is_err());
    let again = Kind::RunQueued {
        cause: RunCause::Dispatched,
    };
    assert!(
        world.put(Subject::Run(other), again).is_err(),
        "the first run is still open"
    );
    assert_eq!(world.state, before);
}

fn running(world: &mut World) -> RunId {
    let run = world.task(1, "default");
    let started = Kind::Started {
        site: "local".parse().unwrap(),
        driver: DriverKind::Claude,
        enforced: String::new(),
    };
    world.put(Subject::Run(run), Kind::Admitted).unwrap();
    world.put(Subject::Run(run), started).unwrap();
    run
}

fn asked(n: u32) -> Kind {
    Kind::PermissionAsked {
        ask: AskId(n),
        tool: "Bash".into(),
        input: "make".into(),
        owner: Sender::Person,
        until: 605,
    }
}

fn permitted(n: u32, allow: bool) -> Kind {
    Kind::PermissionAnswered {
        ask: AskId(n),
        allow,
        by: ask::By::Person,
        reason: None,
        always: false,
    }
}

fn words(world: &World, run: RunId) -> Vec<&'static str> {
    let task = world.state.task(run.task).unwrap();
    task.asks.iter().map(Ask::word).collect()
}

#[test]
fn an_ask_is_answered_once_and_ends_with_its_run() {
    let stop = Kind::StopRequested {
        why: Stop::ByPerson,
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
    let ended = Kind::AgentEnded {
        report,
        usage: None,
    };
    for end in [stop, ended, finished(Outcome::Lost)] {
        let mut world = World::new();
        let run = running(&mut world);
        let about = Subject::Run(run);
        for wrong in [asked(0), asked(2), permitted(1, true)] {
            assert!(matches!(
                world.put(about, wrong),
                Err(ApplyError::Ask { .. })
            ));
        }
        for n in 1..=3 {
            world.put(about, asked(n)).unwrap();
        }
        world.put(about, permitted(2, true)).unwrap();
        world.put(about, permitted(3, false)).unwrap();
        assert!(world.put(about, permitted(2, false)).is_err());
        assert_eq!(words(&world, run), ["waiting", "allowed", "denied"]);
        let over = matches!(end, Kind::Finished { .. });
        world.put(about, end.clone()).unwrap();
        assert_eq!(words(&world, run), ["closed", "allowed", "denied"]);
        assert!(world.put(about, permitted(1, true)).is_err());
        // One that is on its way out may ask; nobody is troubled with it.
        let again = world.put(about, asked(4));
        assert_eq!(again.is_err(), over, "{end:?}");
        let task = world.state.task(run.task).unwrap();
        assert_eq!(task.open_asks().count(), 0);
    }
}

/// What was said to a denial had another name in the first logs.
#[test]
fn a_reason_is_read_under_either_name() {
    let read = |name: &str| {
        let answer = r#"{"permission_answered":{"ask":1,"allow":false,"by":"person","NAME":"no"}}"#;
        serde_json::from_str::<Kind>(&answer.replace("NAME", name)).unwrap()
    };
    assert_eq!(read("why"), read("reason"));
    assert!(
        matches!(read("why"), Kind::PermissionAnswered { reason, .. } if reason.as_deref() == Some("no"))
    );
}

/// All of an open run's are there for a replay; then only the newest.
#[test]
fn asks_are_forgotten_when_no_replay_needs_them() {
    let mut world = World::new();
    let run = running(&mut world);
    let all = u32::try_from(ask::SETTLED_MAX).unwrap() + 5;
    for n in 1..=all {
        world.put(Subject::Run(run), asked(n)).unwrap();
        world.put(Subject::Run(run), permitted(n, true)).unwrap();
    }
    assert_eq!(words(&world, run).len(), all as usize);
    world
        .put(Subject::Run(run), finished(Outcome::Lost))
        .unwrap();
    let task = world.state.task(run.task).unwrap();
    assert_eq!(task.asks.len(), ask::SETTLED_MAX);
    assert_eq!(task.asks[0].id, AskId(6));
    assert_eq!(task.asks_count, all);
}

#[test]
fn prefixes_are_as_short_as_they_can_be() {
    let mut world = World::new();
    for bits in [
        0x3f10_0000_0000_0000,
        0x3f1a_0000_0000_0000,
        0x9900_0000_0000_0000,
    ] {
        world.task(bits, "default");
    }
    let short = |bits| world.state.short(TaskId::from_bits(bits));
    assert_eq!(short(0x3f10_0000_0000_0000), "3f10");
    assert_eq!(short(0x9900_0000_0000_0000), "99");
    assert_eq!(world.state.find("3f").len(), 2);
}
