//! The gate against a world that does its worst: every admission is held against the limits by a
//! ledger of the test's own. Must not look into the gate's.

use std::{collections::BTreeMap, sync::LazyLock};

use super::*;
use crate::{
    config::Config,
    drivers::DriverKind,
    event::{Event, Kind, Scope, Subject, Verified},
    gate::{Budget, MicroUsd, Slots},
    id::TaskId,
    job::{Exit, ExitReport},
    message::Sender,
    outcome::Stop,
    task::{Base, ChecksAsked, Expects, Labels, Placement, Priority, TaskSpec, Terms, Wrap},
    update::Usage,
};

const MINUTE: Millis = 60_000;
const HOUR: Millis = 60 * MINUTE;
/// Noon of some day, so that a day's reset is far in both directions.
const NOON: Millis = 20_000 * DAY_MS + DAY_MS / 2;

/// Read once: a test makes thousands of worlds.
static DEFAULTS: LazyLock<Config> = LazyLock::new(Config::defaults);

struct World {
    state: State,
    log: Vec<Event>,
    config: Config,
    held: Held,
    host: Host,
    now: Millis,
    tasks: u64,
    /// Every admission: when, which, its pool.
    admitted: Vec<(Millis, RunId, PoolName)>,
    /// Pools that a provider has paused, until when at least.
    told_to_wait: BTreeMap<PoolName, Millis>,
}

fn pool(name: &str) -> PoolName {
    name.parse().unwrap()
}

fn spec(pool: &str, repo: &str) -> TaskSpec {
    TaskSpec {
        title: "t".into(),
        text: "t".into(),
        repo: repo.into(),
        base: Base::Head,
        agent: "a".parse().unwrap(),
        pool: pool.parse().unwrap(),
        placement: Placement::of(Wrap::Host),
        expects: Expects::Change,
        checks: ChecksAsked::Detect,
        review_base: None,
        workspace: None,
        turn: crate::task::Turn::default(),
        parent: None,
        guide: crate::prompt::Guide::default(),
        labels: Labels::default(),
        limits: crate::limits::Lowered::default(),
        terms: Terms::default(),
    }
}

fn failed(failure: Failure) -> Outcome {
    Outcome::Failed(failure)
}

fn exit() -> Outcome {
    failed(Failure::Exit {
        code: 1,
        said: String::new(),
    })
}

fn limited(retry_at: Option<Millis>) -> Outcome {
    failed(Failure::RateLimited {
        retry_at,
        said: String::new(),
    })
}

fn done() -> Outcome {
    Outcome::Completed {
        summary: String::new(),
    }
}

impl World {
    fn new(pools: &[(&str, Pool)]) -> Self {
        let mut config = DEFAULTS.clone();
        config.pools = pools
            .iter()
            .map(|(name, limits)| (pool(name), limits.clone()))
            .collect();
        config.gate.jitter_s = 0;
        Self {
            state: State::default(),
            log: Vec::new(),
            config,
            held: Held::new(),
            host: Host::default(),
            now: NOON,
            tasks: 0,
            admitted: Vec::new(),
            told_to_wait: BTreeMap::new(),
        }
    }

    fn one(limits: Pool) -> Self {
        Self::new(&[("p", limits)])
    }

    fn view(&self) -> View<'_> {
        View {
            state: &self.state,
            gate: &self.config.gate,
            pools: &self.config.pools,
            disk_free_min_bytes: 100,
            held: &self.held,
            host: self.host,
            now: self.now,
        }
    }

    fn put(&mut self, subject: Subject, kind: Kind) {
        let event = Event {
            seq: self.state.seq() + 1,
            at: self.now,
            subject,
            kind,
        };
        self.state.apply(&event).unwrap();
        self.log.push(event);
    }

    fn queue(&mut self, spec: TaskSpec) -> RunId {
        self.tasks += 1;
        // Spread over the space of ids, as real ones are.
        let task = TaskId::from_bits(self.tasks.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let created = Kind::TaskCreated {
            spec: Box::new(spec),
            short: "3f".into(),
        };
        self.put(Subject::Task(task), created);
        self.queue_run(task, 1, RunCause::Dispatched)
    }

    fn queue_run(&mut self, task: TaskId, n: u32, cause: RunCause) -> RunId {
        let run = RunId { task, n };
        self.put(Subject::Run(run), Kind::RunQueued { cause });
        run
    }

    /// As the engine does: one decision after the other, until nothing follows.
    fn settle(&mut self) -> Option<Millis> {
        loop {
            let decision = self.view().decide();
            if decision.admit.is_empty() && decision.fail.is_empty() {
                return decision.wake_at;
            }
            for (run, failure) in decision.fail {
                self.end(run, failed(failure));
            }
            for run in decision.admit {
                self.look_at(run);
                self.put(Subject::Run(run), Kind::Admitted);
                let started = Kind::Started {
                    site: "local".parse().unwrap(),
                    driver: DriverKind::Plain,
                    enforced: String::new(),
                };
                self.put(Subject::Run(run), started);
            }
        }
    }

    fn end(&mut self, run: RunId, outcome: Outcome) {
        let pool = self.state.task(run.task).unwrap().spec.pool.clone();
        if let Outcome::Failed(Failure::RateLimited {
            retry_at: Some(at), ..
        }) = &outcome
        {
            let most = self.now + self.config.gate.pause_max_s * SECOND_MS;
            let until = self.told_to_wait.entry(pool).or_default();
            *until = (*until).max((*at).min(most));
        }
        let verified = Verified::NotVerified;
        self.put(Subject::Run(run), Kind::Finished { outcome, verified });
    }

    fn spend(&mut self, run: RunId, usd: f64) {
        let report = ExitReport {
            exit: Exit::Code(0),
            stopped: None,
            started_at: 0,
            ended_at: 1,
            out_bytes: 0,
            err_bytes: 0,
            leftovers: 0,
            problems: Vec::new(),
        };
        let usage = Some(Usage {
            cost_usd: Some(usd),
            ..Usage::default()
        });
        self.put(Subject::Run(run), Kind::AgentEnded { report, usage });
    }

    fn freeze(&mut self, frozen: bool, scope: Scope) {
        self.put(Subject::Engine, Kind::FrozenSet { frozen, scope });
    }

    fn text(&self, run: RunId) -> String {
        self.view().waits_for(run).unwrap().text
    }

    fn why(&self, run: RunId) -> Why {
        self.view().waits_for(run).unwrap().why
    }

    /// Holds one admission, about to be made, against every limit.
    fn look_at(&mut self, run: RunId) {
        let task = self.state.task(run.task).unwrap();
        let (spec, now) = (&task.spec, self.now);
        let limits = &self.config.pools[&spec.pool];
        let live: Vec<&TaskSpec> = self
            .state
            .live()
            .map(|live| &self.state.task(live.task).unwrap().spec)
            .filter(|live| live.pool == spec.pool)
            .collect();
        assert!(live.len() < limits.slots.total, "slots");
        if let Some(model) = &spec.terms.model {
            let same = live
                .iter()
                .filter(|l| l.terms.model.as_ref() == Some(model));
            let slots = limits.slots.models.get(model).copied();
            assert!(
                same.count() < slots.unwrap_or(usize::MAX),
                "slots of {model}"
            );
        }
        assert!(!self.state.frozen(), "frozen");
        assert!(!self.state.pool_frozen(&spec.pool), "pool frozen");
        assert!(!self.state.repo_frozen(&spec.repo), "repository frozen");
        assert!(!self.held.contains_key(&run), "lacks a key");
        for other in &spec.terms.after {
            assert!(self.state.task(*other).unwrap().has_completed(), "after");
        }
        let until = self.told_to_wait.get(&spec.pool).copied().unwrap_or(0);
        assert!(now >= until, "the provider said {until}, it is {now}");
        let before = self.admitted.iter().filter(|(_, _, p)| *p == spec.pool);
        let starts: Vec<Millis> = before.map(|(at, _, _)| *at).collect();
        if let Some(last) = starts.last() {
            let gap_s = (now - last) / SECOND_MS;
            assert!(gap_s >= limits.min_delay_s, "min_delay: {gap_s} s");
            let burst = now % DAY_MS >= DAY_MS - limits.burst_window_s * SECOND_MS;
            let sustained = if burst && limits.burst_window_s > 0 {
                limits.burst_delay_s
            } else {
                limits.sustained_delay_s
            };
            assert!(gap_s >= sustained, "sustained: {gap_s} s");
        }
        let today = starts.iter().filter(|at| *at / DAY_MS == now / DAY_MS);
        let most = match limits.daily_limit_starts {
            0 => u64::MAX,
            most => most,
        };
        assert!((today.count() as u64) < most, "daily limit");
        self.admitted.push((now, run, spec.pool.clone()));
    }

    /// What must hold whenever nothing is left to do: nothing changes before the wake, every queued
    /// run says why, and an engine that begins now decides the same.
    fn at_rest(&mut self, wake: Option<Millis>, random: &mut Random) {
        assert!(self.state.indexes_hold());
        let now = self.now;
        assert!(wake.is_none_or(|at| at > now), "it would wake at once");
        for at in [
            now + 1,
            random.within(now, wake.unwrap_or(now + 40 * HOUR)),
            wake.unwrap_or(now + 90 * DAY_MS) - 1,
        ] {
            self.now = at;
            let decision = self.view().decide();
            assert!(
                decision.admit.is_empty() && decision.fail.is_empty(),
                "{decision:?} at {at}, between {now} and {wake:?}"
            );
        }
        self.now = now;
        for run in self.state.queue() {
            let waiting = self.view().waits_for(run).unwrap();
            assert_ne!(waiting.why, Why::Starting, "{run} hangs");
            assert!(waiting.until.is_none_or(|until| until > now), "{waiting:?}");
        }
    }

    /// The log folded again, in pieces with decisions in between, comes to the same state.
    fn fold_again(&self, random: &mut Random) {
        let mut again = World::new(&[]);
        again.config = self.config.clone();
        for event in &self.log {
            again.state.apply(event).unwrap();
            if random.below(7) == 0 {
                again.now = event.at;
                drop(again.view().decide());
            }
        }
        again.now = self.now;
        again.held = self.held.clone();
        assert_eq!(again.state, self.state);
        assert_eq!(again.view().decide(), self.view().decide());
    }
}

/// Xorshift: the same numbers every time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn within(&mut self, from: u64, to: u64) -> u64 {
        from + self.below((to - from).max(1))
    }

    fn of<T: Clone>(&mut self, all: &[T]) -> T {
        all[usize::try_from(self.below(all.len() as u64)).unwrap()].clone()
    }
}

fn any_pool(random: &mut Random) -> Pool {
    let total = usize::try_from(1 + random.below(4)).unwrap();
    let mut limits = Pool::of(total);
    if random.below(2) == 0 {
        let model = "m".parse().unwrap();
        limits.slots.models.insert(model, 1);
    }
    limits.min_delay_s = random.of(&[0, 0, 30, 90]);
    limits.sustained_delay_s = random.of(&[0, 0, 60, 600]);
    if random.below(3) == 0 {
        limits.burst_window_s = random.of(&[3600, 6 * 3600]);
        limits.burst_delay_s = random.of(&[0, 10]);
    }
    limits.daily_limit_starts = random.of(&[0, 0, 5, 20]);
    limits
}

fn any_outcome(now: Millis, random: &mut Random) -> Outcome {
    match random.below(9) {
        0..3 => done(),
        3 => Outcome::Blocked {
            question: "?".into(),
        },
        4 => limited(None),
        5 => limited(Some(now + random.below(3 * HOUR))),
        6 => Outcome::Stopped(Stop::ByPerson),
        7 => Outcome::Lost,
        _ => exit(),
    }
}

fn any_spec(world: &World, random: &mut Random) -> TaskSpec {
    let name = random.of(&["p", "q"]);
    let mut spec = spec(name, random.of(&["/a", "/b", "/c"]));
    spec.terms.priority = random.of(&[
        Priority::Low,
        Priority::Normal,
        Priority::Normal,
        Priority::Urgent,
    ]);
    if random.below(2) == 0 {
        spec.terms.model = Some("m".parse().unwrap());
    }
    if random.below(5) == 0 {
        let ids: Vec<TaskId> = world
            .state
            .tasks()
            .filter(|task| !task.is_hopeless())
            .map(|task| task.id)
            .collect();
        if !ids.is_empty() {
            spec.terms.after.push(random.of(&ids));
        }
    }
    spec
}

fn step(world: &mut World, random: &mut Random) {
    match random.below(12) {
        0..4 => {
            let spec = any_spec(world, random);
            let run = world.queue(spec);
            if random.below(12) == 0 {
                world.held.insert(run, "needs KEY from you".into());
            }
        }
        4..8 => {
            let live: Vec<RunId> = world.state.live().collect();
            if !live.is_empty() {
                let run = random.of(&live);
                let outcome = any_outcome(world.now, random);
                let again = outcome.again().is_some();
                world.end(run, outcome);
                if again {
                    let by_person = false;
                    let cause = RunCause::RetryOf {
                        n: run.n,
                        by_person,
                    };
                    world.queue_run(run.task, run.n + 1, cause);
                }
            }
        }
        8 => {
            let scope = random.of(&[Scope::All, Scope::Pool(pool("p")), Scope::Repo("/a".into())]);
            let frozen = world.state.is_frozen(&scope);
            world.freeze(!frozen, scope);
        }
        9 => world.held.clear(),
        _ => world.now += random.of(&[1000, MINUTE, 10 * MINUTE, 2 * HOUR, 20 * HOUR]),
    }
}

#[test]
fn no_limit_is_ever_exceeded_and_nothing_hangs_without_a_word() {
    let mut admitted = 0;
    for seed in 1..=60 {
        let mut random = Random(seed * 0x9e37_79b9);
        let mut world = World::new(&[("p", any_pool(&mut random)), ("q", any_pool(&mut random))]);
        for _ in 0..120 {
            step(&mut world, &mut random);
            if random.below(4) == 0 {
                // Several things at once, as in a batch of commands.
                continue;
            }
            let mut wake = world.settle();
            world.at_rest(wake, &mut random);
            if random.below(3) == 0
                && let Some(at) = wake
            {
                world.now = at;
                wake = world.settle();
                world.at_rest(wake, &mut random);
            }
        }
        world.settle();
        world.fold_again(&mut random);
        admitted += world.admitted.len();
    }
    // The test would prove nothing in worlds where nothing starts.
    assert!(admitted > 500, "{admitted}");
}

/// Everything that can happen in a small system, in every order.
#[test]
fn small_systems_exhaustively() {
    const DEPTH: u32 = 5;
    let mut limits = Pool::of(2);
    limits.slots = Slots {
        total: 2,
        models: BTreeMap::from([("m".parse().unwrap(), 1)]),
    };
    limits.min_delay_s = 30;
    limits.daily_limit_starts = 3;
    let mut random = Random(7);
    for path in 0..8_u32.pow(DEPTH) {
        let mut world = World::one(limits.clone());
        world.config.gate.fail_runs = 1;
        for at in 0..DEPTH {
            let first = world.state.live().next();
            match (path / 8_u32.pow(at) % 8, first) {
                (0, _) => drop(world.queue(spec("p", "/a"))),
                (1, _) => {
                    let mut with_model = spec("p", "/b");
                    with_model.terms.model = Some("m".parse().unwrap());
                    world.queue(with_model);
                }
                (2, Some(run)) => world.end(run, done()),
                (3, Some(run)) => world.end(run, exit()),
                (4, Some(run)) => {
                    let at = world.now + HOUR;
                    world.end(run, limited(Some(at)));
                }
                (5, _) => world.now += MINUTE,
                (6, _) => world.now += DAY_MS,
                (7, _) => {
                    let frozen = world.state.frozen();
                    world.freeze(!frozen, Scope::All);
                }
                (_, None) => {}
                _ => unreachable!(),
            }
            let wake = world.settle();
            world.at_rest(wake, &mut random);
        }
    }
}

#[test]
fn nobody_waits_for_ever() {
    let mut random = Random(3);
    let mut world = World::one(Pool::of(1));
    world.config.gate.fail_runs = 0;
    let repos = ["/a", "/b", "/c"];
    let busy = world.queue(spec("p", "/a"));
    world.settle();
    let mut low = spec("p", "/a");
    low.terms.priority = Priority::Low;
    let low = world.queue(low);
    world.end(busy, done());
    // One comes for each that goes, all of them urgent.
    let worst =
        PRIORITY_STEPS * repos.len() as u64 * u64::try_from(crate::ledger::PRIORITY_TURNS).unwrap();
    for turn in 0.. {
        assert!(turn <= 2 * worst, "it starves");
        let mut urgent = spec("p", random.of(&repos));
        urgent.terms.priority = Priority::Urgent;
        world.queue(urgent);
        world.settle();
        let run = world.state.live().next().unwrap();
        if run == low {
            assert!(turn > 10, "it was no low priority");
            return;
        }
        world.end(run, done());
    }
}

/// From low to urgent.
const PRIORITY_STEPS: u64 = 3;

fn served(world: &mut World, count: usize) -> Vec<String> {
    let mut repos = Vec::new();
    for _ in 0..count {
        world.settle();
        let run = world.state.live().next().unwrap();
        repos.push(world.state.task(run.task).unwrap().spec.repo.clone());
        world.end(run, done());
    }
    repos
}

#[test]
fn repositories_take_turns_and_inside_one_the_oldest_is_first() {
    let mut world = World::one(Pool::of(1));
    let mine: Vec<RunId> = (0..4).map(|_| world.queue(spec("p", "/mine"))).collect();
    let yours = world.queue(spec("p", "/yours"));
    let places = |world: &World, run| world.state.pool(&pool("p")).unwrap().place(run);
    assert_eq!(places(&world, mine[0]), Some(1));
    assert_eq!(places(&world, yours), Some(2));
    assert_eq!(places(&world, mine[3]), Some(5));
    let all = world.state.pool(&pool("p")).unwrap().places();
    assert!(
        mine.iter()
            .all(|run| all.get(run).copied() == places(&world, *run))
    );
    assert_eq!(
        served(&mut world, 5),
        ["/mine", "/yours", "/mine", "/mine", "/mine"]
    );
    let order: Vec<RunId> = world.admitted.iter().map(|(_, run, _)| *run).collect();
    assert_eq!([order[0], order[2], order[3], order[4]], mine[..]);
}

#[test]
fn urgent_goes_before_a_long_queue_of_its_own_repository() {
    let mut world = World::one(Pool::of(1));
    for _ in 0..20 {
        world.queue(spec("p", "/a"));
    }
    let mut urgent = spec("p", "/a");
    urgent.terms.priority = Priority::Urgent;
    let urgent = world.queue(urgent);
    assert_eq!(world.view().decide().admit, [urgent]);
}

#[test]
fn a_providers_word_pauses_the_pool_then_one_goes_first() {
    let mut world = World::one(Pool::of(3));
    let runs: Vec<RunId> = (0..6).map(|_| world.queue(spec("p", "/a"))).collect();
    world.settle();
    world.end(runs[0], limited(Some(NOON + HOUR)));
    // Those that ran beside it are refused with it, and count as one.
    world.end(runs[1], limited(Some(NOON + 2 * HOUR)));
    assert_eq!(world.settle(), Some(NOON + 2 * HOUR));
    assert_eq!(
        world.text(runs[3]),
        "pool p: paused until 14:00 UTC, the provider said so"
    );
    // The third ends well, with what it had asked before: the pause stays.
    world.end(runs[2], done());
    assert_eq!(world.why(runs[3]), Why::Paused);

    world.now = NOON + 2 * HOUR;
    let wake = world.settle();
    assert_eq!(world.state.live().collect::<Vec<_>>(), [runs[3]], "a probe");
    assert_eq!(world.why(runs[4]), Why::Probing);
    assert_eq!(wake, Some(world.now + 120 * SECOND_MS));
    // Refused again, and again without a time: the pauses grow.
    world.end(runs[3], limited(None));
    assert_eq!(world.settle(), Some(world.now + 120 * SECOND_MS));
    world.now += 120 * SECOND_MS;
    world.settle();
    world.end(runs[4], limited(None));
    assert_eq!(world.settle(), Some(world.now + 240 * SECOND_MS));
    // The next probe ends well: all is as it was.
    world.now += 240 * SECOND_MS;
    let more: Vec<RunId> = (0..3).map(|_| world.queue(spec("p", "/a"))).collect();
    world.settle();
    world.end(runs[5], done());
    world.settle();
    assert_eq!(world.state.live().len(), more.len());
}

#[test]
fn no_providers_word_pauses_for_ever_and_a_probe_that_lives_is_passed() {
    let mut world = World::one(Pool::of(2));
    let runs: Vec<RunId> = (0..4).map(|_| world.queue(spec("p", "/a"))).collect();
    world.settle();
    world.end(runs[0], limited(Some(u64::MAX)));
    world.end(runs[1], Outcome::Lost);
    let until = world.settle().unwrap();
    assert_eq!(until, NOON + world.config.gate.pause_max_s * SECOND_MS);
    world.now = until;
    let wake = world.settle().unwrap();
    assert_eq!(world.state.live().len(), 1);
    world.now = wake;
    world.settle();
    assert_eq!(
        world.state.live().len(),
        2,
        "an hour's task holds nobody up"
    );
}

#[test]
fn three_quick_failures_in_a_row_pause_the_pool_for_all_its_models() {
    let mut world = World::one(Pool::of(9));
    let run = |world: &mut World, model: Option<&str>, lasted, outcome| {
        let mut spec = spec("p", "/a");
        spec.terms.model = model.map(|model| model.parse().unwrap());
        let run = world.queue(spec);
        world.settle();
        assert_eq!(world.state.live().collect::<Vec<_>>(), [run]);
        world.now += lasted;
        world.end(run, outcome);
    };
    let blocked = Outcome::Blocked {
        question: "?".into(),
    };
    for between in [done(), blocked] {
        run(&mut world, None, 0, exit());
        run(&mut world, Some("m"), 59_000, exit());
        run(&mut world, None, 0, between);
    }
    run(&mut world, None, 0, exit());
    run(&mut world, None, 0, exit());
    // Slow, so it starts the count anew.
    run(&mut world, None, 60_000, exit());
    run(&mut world, None, 0, exit());
    run(&mut world, Some("m"), 0, exit());
    assert_eq!(world.view().pause(&pool("p")), None);
    run(&mut world, None, 0, exit());
    let pause = world.view().pause(&pool("p")).unwrap();
    assert_eq!(pause.until, world.now + 30 * MINUTE);
    let mut with_model = spec("p", "/b");
    with_model.terms.model = Some("other".parse().unwrap());
    let waits = world.queue(with_model);
    let next = world.queue(spec("p", "/b"));
    assert_eq!(world.settle(), Some(pause.until));
    assert!(
        world
            .text(waits)
            .contains("3 runs in a row failed within 60 s")
    );
    world.now = pause.until;
    world.settle();
    assert_eq!(world.why(next), Why::Probing);
    world.end(waits, exit());
    assert_eq!(world.why(next), Why::Paused, "one more pauses it again");
}

#[test]
fn a_task_waits_for_others_and_fails_when_they_do() {
    let mut world = World::one(Pool::of(9));
    let first = world.queue(spec("p", "/a"));
    let mut second = spec("p", "/a");
    second.terms.after = vec![first.task];
    let mut third = spec("p", "/a");
    let second = world.queue(second);
    third.terms.after = vec![first.task, second.task];
    let third = world.queue(third);
    world.settle();
    assert_eq!(world.state.live().collect::<Vec<_>>(), [first]);
    let short = world.state.short(first.task);
    assert_eq!(world.text(second), format!("after {short} (running)"));

    let question = "?".to_owned();
    world.end(first, Outcome::Blocked { question });
    assert_eq!(world.settle(), None);
    assert_eq!(
        world.text(second),
        format!("after {short}, which asks you something")
    );
    let (text, by) = ("yes".to_owned(), Sender::Person);
    let again = world.queue_run(first.task, 2, RunCause::Answer { text, by });
    world.settle();
    world.end(again, done());
    world.settle();
    assert_eq!(world.state.live().collect::<Vec<_>>(), [second]);

    world.end(second, exit());
    world.settle();
    let ended = world.state.task(third.task).unwrap().outcome().unwrap();
    assert!(
        matches!(ended, Outcome::Failed(Failure::Dependency { task, .. }) if *task == second.task),
        "{ended:?}"
    );
    // Both again: the one waits for the other as before.
    let by_person = true;
    let cause = RunCause::RetryOf { n: 1, by_person };
    let second = world.queue_run(second.task, 2, cause.clone());
    let third = world.queue_run(third.task, 2, cause);
    world.settle();
    world.end(second, done());
    world.settle();
    assert_eq!(world.state.live().collect::<Vec<_>>(), [third]);
}

#[test]
fn budgets_of_a_day_stop_starts_until_the_reset() {
    let mut limits = Pool::of(1);
    limits.day_usd = MicroUsd::try_from(2.0).unwrap();
    limits.reset_utc = Some("18:00".parse().unwrap());
    let mut world = World::new(&[("p", limits), ("q", Pool::of(1))]);
    let runs: Vec<RunId> = (0..2).map(|_| world.queue(spec("p", "/a"))).collect();
    world.settle();
    world.spend(runs[0], 2.5);
    world.end(runs[0], done());
    let wake = world.settle();
    assert_eq!(wake, Some(NOON + 6 * HOUR));
    assert_eq!(
        world.text(runs[1]),
        "pool p: budget of the day is spent (2.50 of 2.00 USD) until 18:00 UTC"
    );
    world.config.gate.day_usd = MicroUsd::try_from(2.5).unwrap();
    let other = world.queue(spec("q", "/a"));
    assert_eq!(
        world.settle(),
        Some(NOON + 12 * HOUR),
        "it counts all pools"
    );
    assert_eq!(world.why(other), Why::Budget);
    world.now = NOON + 12 * HOUR;
    world.settle();
    assert_eq!(world.state.live().len(), 2);
}

#[test]
fn a_machine_without_room_starts_nothing_and_says_what_it_lacks() {
    let mut world = World::one(Pool::of(1));
    let run = world.queue(spec("p", "/a"));
    for (host, word) in [
        (
            Host {
                disk_free_bytes: Some(99),
                ..Host::default()
            },
            "limits.disk_free_min_bytes",
        ),
        (
            Host {
                memory_free_bytes: Some(1),
                ..Host::default()
            },
            "gate.memory_free_min_bytes",
        ),
        (
            Host {
                load_percent: Some(3201),
                cores: 2,
                ..Host::default()
            },
            "gate.load_per_core_max",
        ),
    ] {
        world.host = host;
        let look = world.now + world.config.gate.look_s * SECOND_MS;
        assert_eq!(world.settle(), Some(look));
        assert!(world.text(run).contains(word), "{}", world.text(run));
    }
    world.host.load_percent = Some(3200);
    world.settle();
    assert_eq!(world.state.live().len(), 1);
}

#[test]
fn a_run_is_tried_again_a_few_times_and_then_given_up_with_its_history() {
    let world = World::one(Pool::of(1));
    let gate = &world.config.gate;
    let mut world = World::one(Pool::of(1));
    let mut run = world.queue(spec("p", "/a"));
    for again in 0..gate.retries_max {
        let wake = world.settle();
        if again > 0 {
            let wait = gate.retry_s * (1 << (again - 1)) * SECOND_MS;
            assert_eq!(wake, Some(world.now + wait), "they grow");
            assert_eq!(world.why(run), Why::Retry);
            world.now += wait;
            world.settle();
        }
        let task = world.state.task(run.task).unwrap();
        assert_eq!(next_after(task, &Outcome::Lost, gate, 20), Next::Again);
        assert_eq!(next_after(task, &exit(), gate, 20), Next::Stays);
        world.end(run, Outcome::Lost);
        let (n, by_person) = (run.n, false);
        let cause = RunCause::RetryOf { n, by_person };
        run = world.queue_run(run.task, n + 1, cause);
    }
    let task = world.state.task(run.task).unwrap();
    let Next::GivesUp(failure) = next_after(task, &Outcome::Lost, gate, 20) else {
        panic!("it goes on for ever");
    };
    let text = failure.to_string();
    assert!(
        text.starts_with("gave up after 4 runs: run 1: the end was"),
        "{text}"
    );
    assert!(text.contains("; run 4: "), "{text}");
    // A rate limit has the provider's patience, but runs_max ends it all the same.
    assert_eq!(next_after(task, &limited(None), gate, 20), Next::Again);
    assert_eq!(next_after(task, &limited(None), gate, 4), Next::Stays);
    // What a person's word has begun is not counted, or a long talk would end by it.
    let mut talk = task.clone();
    for run in &mut talk.runs {
        run.cause = RunCause::Said { by_person: true };
    }
    assert_eq!(next_after(&talk, &limited(None), gate, 1), Next::Again);
    assert!(talk.has_runs_left(1, true) && !task.has_runs_left(4, false));
    // Its own budget ends it, too.
    let mut poor = task.clone();
    poor.spec.terms.budget_usd = MicroUsd(1);
    poor.runs[0].usage = Some(Usage {
        cost_usd: Some(1.0),
        ..Usage::default()
    });
    assert_eq!(next_after(&poor, &limited(None), gate, 20), Next::Stays);
    assert_eq!(
        poor.spent(),
        Budget {
            tokens: 0,
            usd: MicroUsd(1_000_000)
        }
    );
}

#[test]
fn the_burst_window_opens_before_the_reset() {
    let mut limits = Pool::of(9);
    limits.sustained_delay_s = 7200;
    limits.burst_window_s = 3 * 3600;
    limits.burst_delay_s = 60;
    limits.reset_utc = Some("00:00".parse().unwrap());
    let mut world = World::one(limits);
    for _ in 0..5 {
        world.queue(spec("p", "/a"));
    }
    world.now = NOON + 8 * HOUR;
    // At 21:00 the window opens, an hour earlier than the sustained delay would allow.
    assert_eq!(world.settle(), Some(NOON + 9 * HOUR));
    world.now = NOON + 9 * HOUR;
    assert_eq!(world.settle(), Some(world.now + MINUTE));
    let next = world.state.queue().next().unwrap();
    assert_eq!(
        world.text(next),
        "pool p: its rate allows the next start at 21:01 UTC"
    );
}

#[test]
fn a_clock_that_was_set_back_holds_nothing_up() {
    let mut limits = Pool::of(9);
    limits.min_delay_s = 3600;
    let mut world = World::one(limits);
    let runs: Vec<RunId> = (0..3).map(|_| world.queue(spec("p", "/a"))).collect();
    world.settle();
    world.end(runs[0], limited(None));
    world.now = NOON - 10 * DAY_MS;
    world.admitted.clear();
    world.settle();
    assert_eq!(world.state.live().collect::<Vec<_>>(), [runs[1]]);
}

#[test]
fn times_are_told_with_their_date_where_that_could_be_another_day() {
    assert_eq!(time_text(NOON + HOUR, NOON), "13:00 UTC");
    assert_eq!(time_text(NOON + DAY_MS, NOON), "2024-10-05 12:00 UTC");
    for (days, date) in [
        (0, (1970, 1, 1)),
        (59, (1970, 3, 1)),
        (11_016, (2000, 2, 29)),
    ] {
        assert_eq!(civil(days), date);
    }
}

/// What waits for a key or is frozen by itself lets those behind it go first.
#[test]
fn one_that_cannot_start_holds_nobody_behind_it() {
    let mut world = World::one(Pool::of(1));
    let lacks = world.queue(spec("p", "/a"));
    let frozen = world.queue(spec("p", "/b"));
    let goes = world.queue(spec("p", "/a"));
    world.held.insert(lacks, "needs KEY from you".into());
    world.freeze(true, Scope::Repo("/b".into()));
    world.settle();
    assert_eq!(world.state.live().collect::<Vec<_>>(), [goes]);
    assert_eq!(world.text(lacks), "needs KEY from you");
    assert_eq!(world.text(frozen), "repository frozen by you");
}
