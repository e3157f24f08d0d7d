//! The prompt of a run: its facts from the base commit, its text from the core, and the file that
//! keeps it exactly as the agent is given it.
//! Must not look into a workspace: what an agent could have written is no part of a prompt.

use std::{
    collections::BTreeMap,
    fs, io,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use dispatch_core::{
    checks::{self, Planned},
    config::Config,
    event::PromptMade,
    hex,
    id::{RunId, TaskId},
    outcome::Outcome,
    prompt::{self, Facts, GuideError, Prompt, TextKind, Told, ToldFile, Turn},
    redact::Redactor,
    review::Range,
    run::{RunCause, RunState},
    state::Task,
    task::{ChecksAsked, Expects, TaskSpec},
};
use sha2::{Digest as _, Sha256};

use crate::{
    attachments, files,
    git::{CommitId, Git},
    mirror::Mirror,
    trees::{Project, REVIEW_BASE, TreeError, Trees},
};

/// A file beyond it is none of ours: no prompt is made as long.
const KEPT_BYTES_MAX: u64 = 64 << 20;

/// Stands for the folder of what does not fit into a prompt, where there is no task yet.
const CONTEXT_NOT_YET: &str = "/the/context/of/the/run";

#[derive(Debug, thiserror::Error)]
pub(crate) enum PromptError {
    #[error(transparent)]
    Tree(#[from] TreeError),
    #[error("look at what is attached to the task: {0}; dispatch the task again with it")]
    Attached(#[source] io::Error),
    #[error("make the prompt: {0}")]
    Guide(#[from] GuideError),
    #[error("keep the prompt in {}: {source}", path.display())]
    Keep {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// What a run's agent is given to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Words {
    pub(crate) prompt: String,
    /// The same for an agent that remembers nothing.
    pub(crate) whole: String,
}

fn own(data: &Path, task: TaskId) -> PathBuf {
    data.join("tasks").join(task.to_string())
}

/// Where the prompt of a run is kept.
pub(crate) fn path(data: &Path, run: RunId) -> PathBuf {
    let folder = own(data, run.task).join("prompts");
    folder.join(format!("{}.md", run.n))
}

fn whole_path(data: &Path, run: RunId) -> PathBuf {
    path(data, run).with_extension("whole.md")
}

/// Where what did not fit into the prompt of a run lies, if anything did not.
pub(crate) fn context(data: &Path, run: RunId) -> PathBuf {
    let folder = own(data, run.task).join("context");
    folder.join(run.n.to_string())
}

/// In hexadecimal, as `sha256sum` prints it.
#[must_use]
pub fn sha256(bytes: &[u8]) -> String {
    hex::hex(&Sha256::digest(bytes))
}

/// The commands that a prompt names: those asked for, else what the base commit suggests.
fn steps(config: &Config, spec: &TaskSpec, project: &Project) -> Vec<Planned> {
    let asked = match &spec.checks {
        ChecksAsked::Named(_) | ChecksAsked::Detect => &spec.checks,
        ChecksAsked::None => &ChecksAsked::Detect,
    };
    checks::plan(&config.checks, asked, &project.root)
}

/// A prompt from what is known of the base commit. It touches nothing: a dry run shows the same.
///
/// # Errors
/// When a text is not there any more, or cannot be filled in.
pub(crate) fn compose(
    config: &Config,
    spec: &TaskSpec,
    branch: Option<&str>,
    review: Option<&Range>,
    project: &Project,
    (turn, told): (Turn<'_>, &Told),
    context: &Path,
) -> Result<Prompt, GuideError> {
    let steps = steps(config, spec, project);
    let facts = Facts {
        title: &spec.title,
        text: &spec.text,
        expects: spec.expects,
        repo: spec.repo_name(),
        branch,
        language: project.language.as_deref(),
        steps: &steps,
        // A review is not followed by checks.
        checked: spec.checks != ChecksAsked::None && spec.expects != Expects::Review,
        review,
        issue: spec.labels.issue_text.as_deref(),
        commits: &project.commits,
        guide: &spec.guide,
        repository: &project.texts,
        turn,
        told,
        files: &context.to_string_lossy(),
    };
    prompt::assemble(&facts, &config.library, config.limits.prompt())
}

/// Where what a task starts from can be read before there is a task.
#[derive(Clone, Copy, Debug)]
pub enum Known<'a> {
    /// A commit of a repository, which is only read.
    Commit {
        git: &'a Git,
        git_dir: &'a Path,
        commit: &'a str,
        branch: Option<&'a str>,
    },
    Folder(&'a Path),
    /// There is nothing in it, or it was not fetched yet.
    Nothing,
}

/// What the first run of a task would be given to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preview {
    pub prompt: String,
    pub review: Option<Range>,
}

#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct PreviewError(#[from] PromptError);

/// The prompt of a task that is not there yet, from the same parts. It writes nothing.
///
/// # Errors
/// When the base cannot be read, or a text of the prompt not filled in.
pub fn preview(
    config: &Config,
    spec: &TaskSpec,
    known: Known<'_>,
    files: Vec<ToldFile>,
) -> Result<Preview, PreviewError> {
    let made = previewed(config, spec, known, files);
    Ok(made?)
}

fn previewed(
    config: &Config,
    spec: &TaskSpec,
    known: Known<'_>,
    files: Vec<ToldFile>,
) -> Result<Preview, PromptError> {
    let asked = spec.review_base.as_deref().unwrap_or(REVIEW_BASE);
    let reviews = spec.expects == Expects::Review;
    let (project, branch, review) = match known {
        Known::Commit {
            git,
            git_dir,
            commit,
            branch,
        } => {
            let repository = Mirror::reading(git, git_dir);
            let head = CommitId::parse(commit).map_err(TreeError::from)?;
            let project = Project::at(&repository, &head, spec, config)?;
            let from = match reviews {
                true => Some(repository.revision(asked, &head).map_err(TreeError::from)?),
                false => None,
            };
            let range = from.map(|from| (from.to_string(), head.to_string()));
            (project, branch, range)
        }
        Known::Folder(folder) => (Project::of_folder(folder, config)?, None, None),
        Known::Nothing => (Project::default(), None, None),
    };
    // Where it begins is found when the base is there; until then it is what was asked for.
    let review = reviews
        .then(|| review.unwrap_or_else(|| (asked.to_owned(), "HEAD".to_owned())))
        .map(|(base, head)| Range { base, head });
    let told = Told {
        files,
        ..Told::default()
    };
    let occasion = (Turn::First, &told);
    let context = Path::new(CONTEXT_NOT_YET);
    let made = compose(
        config,
        spec,
        branch,
        review.as_ref(),
        &project,
        occasion,
        context,
    )?;
    let prompt = made.text;
    Ok(Preview { prompt, review })
}

/// What the run before asked, if it ended in a question.
fn question(task: &Task, n: u32) -> Option<&str> {
    let before = task.runs.iter().rev().find(|run| run.n < n)?;
    match &before.state {
        RunState::Finished(Outcome::Blocked { question }) => Some(question),
        RunState::Queued
        | RunState::Preparing
        | RunState::Running
        | RunState::Stopping { .. }
        | RunState::Checking
        | RunState::Finished(_) => None,
    }
}

/// Makes the prompt of a run whose workspace is there, and keeps it: what the agent is given is
/// masked like all else that is written down, so that both are the same.
///
/// # Errors
/// See [`PromptError`]; then nothing may start.
pub(crate) fn make(
    trees: &Trees,
    task: &Task,
    n: u32,
    remembers: bool,
    review: Option<&Range>,
    config: &Config,
    redactor: &Redactor,
) -> Result<(Words, PromptMade), PromptError> {
    let run = RunId { task: task.id, n };
    let data = trees.data();
    let cause = usize::try_from(n)
        .ok()
        .and_then(|n| task.runs.get(n.checked_sub(1)?));
    let cause = cause.map_or(RunCause::Dispatched, |run| run.cause.clone());
    let project = trees.project(task, config)?;
    let branch = task
        .workspace
        .as_ref()
        .and_then(|w| w.base_branch.as_deref());
    let folder = context(data, run);
    attachments::check(data, task, n).map_err(PromptError::Attached)?;
    let told = Told {
        files: attachments::told(data, task, n),
        ..task.told(n)
    };
    let composed = |remembers| {
        let turn = Turn::of(&cause, question(task, n), remembers);
        let occasion = (turn, &told);
        compose(
            config, &task.spec, branch, review, &project, occasion, &folder,
        )
    };
    let made = composed(remembers)?;
    let mut cut: BTreeMap<String, String> = BTreeMap::new();
    for file in &made.cut {
        cut.insert(file.file.clone(), redactor.redact(&file.text));
    }
    let prompt = redactor.redact(&made.text);
    let whole = if remembers {
        let whole = composed(false)?;
        for file in &whole.cut {
            cut.insert(file.file.clone(), redactor.redact(&file.text));
        }
        redactor.redact(&whole.text)
    } else {
        prompt.clone()
    };
    let event = PromptMade {
        sha256: sha256(prompt.as_bytes()),
        bytes: prompt.len() as u64,
        cut: cut.keys().map(|file| (*file).to_owned()).collect(),
        repository: made.repository,
    };
    lay_down(&folder, &cut).map_err(keep_failed(&folder))?;
    let kept = path(data, run);
    write(&kept, &prompt).map_err(keep_failed(&kept))?;
    if remembers {
        let kept = whole_path(data, run);
        write(&kept, &whole).map_err(keep_failed(&kept))?;
    }
    Ok((Words { prompt, whole }, event))
}

fn keep_failed(path: &Path) -> impl FnOnce(io::Error) -> PromptError {
    let path = path.to_owned();
    move |source| PromptError::Keep { path, source }
}

/// The words that a run was started with. `None`: an engine before there were such files did it.
pub(crate) fn kept(data: &Path, run: RunId) -> io::Result<Option<Words>> {
    let Some(prompt) = read(&path(data, run))? else {
        return Ok(None);
    };
    let whole = read(&whole_path(data, run))?.unwrap_or_else(|| prompt.clone());
    Ok(Some(Words { prompt, whole }))
}

fn read(path: &Path) -> io::Result<Option<String>> {
    use io::Read as _;
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut text = String::new();
    file.take(KEPT_BYTES_MAX).read_to_string(&mut text)?;
    Ok(Some(text))
}

/// For its owner alone, and on the disk before anything is told of it.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let folder = path.parent().unwrap_or(path);
    let mut dirs = fs::DirBuilder::new();
    dirs.recursive(true).mode(0o700).create(folder)?;
    let new = folder.join(files::unique("new-"));
    let mut options = fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)
}

/// What the prompt names, to be read and not to be changed.
fn lay_down(folder: &Path, cut: &BTreeMap<String, String>) -> io::Result<()> {
    files::remove_tree(folder)?;
    if cut.is_empty() {
        return Ok(());
    }
    fs::create_dir_all(folder)?;
    for (name, text) in cut {
        let file = folder.join(name);
        fs::write(&file, text)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o444))?;
    }
    fs::set_permissions(folder, fs::Permissions::from_mode(0o555))
}

/// Texts of a repository that are used in place of ours, by kind, with their paths.
pub(crate) type Texts = BTreeMap<TextKind, (String, String)>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_read_again_and_is_its_owners_alone() {
        let data = tempfile::tempdir().unwrap();
        let run = RunId {
            task: TaskId::from_bits(7),
            n: 2,
        };
        assert_eq!(kept(data.path(), run).unwrap(), None);
        write(&path(data.path(), run), "the prompt").unwrap();
        let words = kept(data.path(), run).unwrap().unwrap();
        assert_eq!(
            (&*words.prompt, &*words.whole),
            ("the prompt", "the prompt")
        );
        write(&whole_path(data.path(), run), "all of it").unwrap();
        let words = kept(data.path(), run).unwrap().unwrap();
        assert_eq!((&*words.prompt, &*words.whole), ("the prompt", "all of it"));
        for path in [path(data.path(), run), whole_path(data.path(), run)] {
            let mode = path.metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256(b"abc"), expected);
    }

    #[test]
    fn what_was_cut_can_be_read_and_is_laid_down_anew() {
        let data = tempfile::tempdir().unwrap();
        let folder = data.path().join("context/1");
        let cut = |name: &str| BTreeMap::from([(name.to_owned(), "all of it".to_owned())]);
        lay_down(&folder, &cut("issue.md")).unwrap();
        lay_down(&folder, &cut("task.md")).unwrap();
        assert!(!folder.join("issue.md").exists());
        assert_eq!(
            fs::read_to_string(folder.join("task.md")).unwrap(),
            "all of it"
        );
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(
            (mode(&folder), mode(&folder.join("task.md"))),
            (0o555, 0o444)
        );
        lay_down(&folder, &BTreeMap::new()).unwrap();
        assert!(!folder.exists());
    }
}
