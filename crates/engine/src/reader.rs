//! The log without an engine: for verbs that only look. Must not write, and must not judge: a job
//! that has ended is said to have ended.

use std::{collections::BTreeMap, path::Path};

use dispatch_core::{
    Millis,
    config::Config,
    event::Event,
    family::Child,
    id::{RunId, Seq, TaskId},
    run::RunState,
    schedule::{Held, Host, View, Why},
    state::{State, Task},
};

use crate::{
    attachments,
    engine::{OpenError, agent_dir, fold},
    jobdir::Probe,
    prompts,
    store::Store,
    trees,
    view::{ChildView, FamilyView, JobView, TaskView},
};

pub type ReadError = OpenError;

#[derive(Debug)]
pub struct Reader {
    store: Option<Store>,
    data: std::path::PathBuf,
}

impl Reader {
    /// A data directory without a log is an empty one.
    ///
    /// # Errors
    /// When there is a log and it cannot be read.
    pub fn open(data: &Path) -> Result<Self, ReadError> {
        let store = if Store::exists(data) {
            Some(Store::read_only(data)?)
        } else {
            None
        };
        Ok(Self {
            store,
            data: data.to_owned(),
        })
    }

    /// All tasks, oldest first, removed ones too.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn tasks(&self) -> Result<Vec<TaskView>, ReadError> {
        let Some(store) = &self.store else {
            return Ok(Vec::new());
        };
        let state = fold(store)?;
        Ok(state
            .tasks()
            .filter_map(|task| view(&state, &self.data, task.id))
            .collect())
    }

    /// The same, with why each that is queued waits, as far as the log and the settings tell: keys and
    /// room on the machine are an engine's to know.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn tasks_at_gate(&self, config: &Config, now: Millis) -> Result<Vec<TaskView>, ReadError> {
        let state = self.state()?;
        let gate = View {
            state: &state,
            gate: &config.gate,
            pools: &config.pools,
            disk_free_min_bytes: 0,
            held: &Held::new(),
            host: Host::default(),
            now,
        };
        let pools = state.pools().map(|(_, ledger)| ledger.places());
        let places: BTreeMap<RunId, usize> = pools.flatten().collect();
        let at_gate = |task: &Task| {
            let mut view = view(&state, &self.data, task.id)?;
            let run = RunId {
                task: task.id,
                n: task.last_run()?.n,
            };
            view.waits = gate.waits_for(run);
            view.place = places.get(&run).copied();
            if let Some(waiting) = &mut view.waits
                && waiting.why == Why::Starting
            {
                waiting.text = "for an engine: `dispatch wait` or any verb that changes something \
                                brings one"
                    .to_owned();
            }
            Some(view)
        };
        Ok(state.tasks().filter_map(at_gate).collect())
    }

    /// The fold of the whole log.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn state(&self) -> Result<State, ReadError> {
        self.store
            .as_ref()
            .map_or_else(|| Ok(State::default()), fold)
    }

    /// The position of the last event.
    #[must_use]
    pub fn last(&self) -> Seq {
        self.store.as_ref().map_or(0, Store::last)
    }

    /// # Errors
    /// When the log cannot be read.
    pub fn events(&self, after: Seq, limit: usize) -> Result<Vec<Event>, ReadError> {
        let Some(store) = &self.store else {
            return Ok(Vec::new());
        };
        Ok(store.read(after, limit)?)
    }
}

/// One task with what its job directories say.
pub(crate) fn view(state: &State, data: &Path, task: TaskId) -> Option<TaskView> {
    let found = state.task(task)?;
    let job = |run: &dispatch_core::state::Run| {
        let dir = agent_dir(data, RunId { task, n: run.n });
        let open = !matches!(run.state, RunState::Finished(_) | RunState::Queued);
        // A directory that cannot be asked is shown as one that says nothing.
        let probe = if open {
            dir.probe().unwrap_or(Probe::NeverStarted)
        } else {
            Probe::NeverStarted
        };
        let alive = matches!(probe, Probe::Alive | Probe::Starting);
        let group = if alive {
            dir.group().unwrap_or(None)
        } else {
            None
        };
        JobView {
            keeper_pid: group.map(|group| group.keeper),
            log: dir.file("out"),
            prompt: run
                .prompt
                .as_ref()
                .map(|_| prompts::path(data, RunId { task, n: run.n })),
            ended_not_judged: matches!(probe, Probe::Exited(_) | Probe::Gone),
        }
    };
    Some(TaskView {
        short: state.short(task),
        seq: state.seq(),
        waits: None,
        place: None,
        jobs: found.runs.iter().map(job).collect(),
        attached: attachments::listed(data, found),
        vault: trees::vault_of(data, &found.spec),
        workspace: trees::workspace_of(data, &found.spec, &found.short),
        family: family(state, found),
        task: found.clone(),
    })
}

fn family(state: &State, task: &Task) -> FamilyView {
    let child = |child: &Child| {
        let found = state.task(child.task)?;
        let run = found.last_run().map_or("queued", |run| run.state.word());
        Some(ChildView {
            task: child.task,
            short: state.short(child.task),
            state: if found.is_parked() { "parked" } else { run },
            detached: child.detached,
            done: child.done,
        })
    };
    let parked = task.is_parked();
    let asker = task.spec.terms.asked_by;
    let asker = asker.and_then(|run| state.task(run.task));
    let asked = asker.and_then(|asker| asker.family.child(task.id));
    FamilyView {
        children: task.family.children.iter().filter_map(child).collect(),
        parked,
        held: parked && task.family.awaited().next().is_none(),
        detached: asked.is_some_and(|child| child.detached),
    }
}
