//! Files that were handed over with a task or a message: on the disk before the log tells of them, and
//! given to agents to be read.
//! Must not interpret a content or a name: core makes names, and nobody here looks inside.

use std::{
    collections::BTreeSet,
    fmt, fs,
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use dispatch_core::{
    attach::{self, Attached, Attachment, FileName},
    id::TaskId,
    message::MessageId,
    native::Handed,
    prompt::ToldFile,
    state::{State, Task},
};

use crate::{files, prompts::sha256};

/// Of the folders that cannot be swept, how many are named.
const STAYS_NAMED_MAX: usize = 5;

/// Its name is what somebody called it; see [`attach::names`].
#[derive(Clone, PartialEq, Eq)]
pub struct NewFile {
    pub name: String,
    pub bytes: Vec<u8>,
}

impl fmt::Debug for NewFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} ({} bytes)", self.name, self.bytes.len())
    }
}

fn own(data: &Path, task: TaskId) -> PathBuf {
    let folder = data.join("tasks").join(task.to_string());
    folder.join("attachments")
}

/// What was handed over together.
pub(crate) fn folder(data: &Path, task: TaskId, folder: u32) -> PathBuf {
    own(data, task).join(folder.to_string())
}

/// Where a file is, inside a fence and outside.
#[must_use]
pub fn path(data: &Path, task: TaskId, attached: &Attached, name: &FileName) -> PathBuf {
    folder(data, task, attached.folder).join(name.as_str())
}

/// For the prompt of run `n`.
pub(crate) fn told(data: &Path, task: &Task, n: u32) -> Vec<ToldFile> {
    let files = task.attached_for(n).flat_map(|(attached, new)| {
        let told = move |file: &Attachment| ToldFile {
            path: path(data, task.id, attached, &file.name)
                .to_string_lossy()
                .into_owned(),
            bytes: file.bytes,
            new,
        };
        attached.files.iter().map(told)
    });
    files.collect()
}

/// The same for our own agent, which shows some of them to its model.
pub(crate) fn handed(data: &Path, task: &Task, n: u32) -> Vec<Handed> {
    let files = task.attached_for(n).flat_map(|(attached, _)| {
        let handed = move |file: &Attachment| Handed {
            path: path(data, task.id, attached, &file.name),
            bytes: file.bytes,
            sha256: file.sha256.clone(),
            shown: None,
        };
        attached.files.iter().map(handed)
    });
    files.collect()
}

/// All that the task has, for a reader.
pub(crate) fn listed(data: &Path, task: &Task) -> Vec<(Attachment, Option<MessageId>, PathBuf)> {
    let files = task.attached.iter().flat_map(|attached| {
        let one = move |file: &Attachment| {
            let path = path(data, task.id, attached, &file.name);
            (file.clone(), attached.message, path)
        };
        attached.files.iter().map(one)
    });
    files.collect()
}

/// What the agent of run `n` may read.
pub(crate) fn folders(data: &Path, task: &Task, n: u32) -> Vec<PathBuf> {
    let given = task.attached_for(n);
    given
        .map(|(attached, _)| folder(data, task.id, attached.folder))
        .collect()
}

/// What all of these are below, when there are any. An agent is told of this one rather than of each: one
/// that takes a `CLAUDE.md` at the top of a folder for instructions finds none.
pub(crate) fn top(data: &Path, task: &Task, n: u32) -> Option<PathBuf> {
    let any = task.attached_for(n).next().is_some();
    any.then(|| own(data, task.id))
}

/// One of these is not as it was handed over: an agent that is told of it would look in vain.
pub(crate) fn check(data: &Path, task: &Task, n: u32) -> io::Result<()> {
    for (attached, _) in task.attached_for(n) {
        for file in &attached.files {
            let path = path(data, task.id, attached, &file.name);
            let is =
                fs::symlink_metadata(&path).map(|meta| meta.is_file() && meta.len() == file.bytes);
            let what = match is {
                Ok(true) => continue,
                Ok(false) => "it was changed".to_owned(),
                Err(error) => error.to_string(),
            };
            let what = format!("{}: {what}", path.display());
            return Err(io::Error::other(what));
        }
    }
    Ok(())
}

/// Files that are durable and that no event tells of yet. They go again when it is dropped before.
#[derive(Debug)]
pub(crate) struct Kept {
    dir: PathBuf,
    folder: u32,
    files: Vec<Attachment>,
    told: bool,
}

impl Kept {
    pub(crate) fn files(&self) -> &[Attachment] {
        &self.files
    }

    /// What the log is to tell.
    pub(crate) fn attached(&self, message: Option<MessageId>) -> Attached {
        Attached {
            folder: self.folder,
            files: self.files.clone(),
            message,
        }
    }

    /// From here on they are the log's.
    pub(crate) fn told(mut self) {
        self.told = true;
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if !self.told {
            match files::remove_tree(&self.dir) {
                // What stays is swept when the next engine begins.
                Ok(()) | Err(_) => {}
            }
        }
    }
}

/// Writes them into a new folder of the task. Durable when it returns.
pub(crate) fn keep(data: &Path, task: TaskId, new: &[NewFile]) -> io::Result<Kept> {
    let own = own(data, task);
    private().recursive(true).create(&own)?;
    let (dir, folder) = new_folder(&own)?;
    let mut kept = Kept {
        dir,
        folder,
        files: Vec::new(),
        told: false,
    };
    let names = attach::names(new.iter().map(|file| file.name.as_str()));
    for (name, file) in names.into_iter().zip(new) {
        let mut options = fs::OpenOptions::new();
        let options = options.write(true).create_new(true).mode(0o400);
        let mut out = options.open(kept.dir.join(name.as_str()))?;
        out.write_all(&file.bytes)?;
        out.sync_all()?;
        kept.files.push(Attachment {
            name,
            bytes: file.bytes.len() as u64,
            sha256: sha256(&file.bytes),
        });
    }
    fs::set_permissions(&kept.dir, fs::Permissions::from_mode(0o500))?;
    // The names of the folders must be on the disk as well.
    let ours = kept.dir.ancestors().take_while(|dir| *dir != data);
    for dir in ours.chain([data]) {
        fs::File::open(dir)?.sync_all()?;
    }
    Ok(kept)
}

fn private() -> fs::DirBuilder {
    let mut dirs = fs::DirBuilder::new();
    dirs.mode(0o700);
    dirs
}

/// One that was not there: two that are handed over at once never share it.
fn new_folder(own: &Path) -> io::Result<(PathBuf, u32)> {
    let mut n = 1;
    loop {
        let dir = own.join(n.to_string());
        match private().create(&dir) {
            Ok(()) => return Ok((dir, n)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => n += 1,
            Err(error) => return Err(error),
        }
    }
}

/// Removes what was withdrawn. What stays is swept later.
pub(crate) fn remove(data: &Path, task: TaskId, attached: &Attached) {
    match files::remove_tree(&folder(data, task, attached.folder)) {
        Ok(()) | Err(_) => {}
    }
}

/// Removes what a crash left between the disk and the log. Only before anything is handed over. What
/// cannot be removed stays and is told; it keeps nothing else.
pub(crate) fn sweep(data: &Path, state: &State) -> io::Result<()> {
    let mut stays = Vec::new();
    for id in entries(&data.join("tasks"))? {
        if let Ok(id) = id.parse::<TaskId>() {
            stays.extend(sweep_task(data, id, state.task(id)));
        }
    }
    if stays.is_empty() {
        return Ok(());
    }
    let more = stays.len().saturating_sub(STAYS_NAMED_MAX);
    stays.truncate(STAYS_NAMED_MAX);
    if more > 0 {
        stays.push(format!("{more} more"));
    }
    Err(io::Error::other(stays.join("; ")))
}

/// What of it stays, and why.
fn sweep_task(data: &Path, id: TaskId, task: Option<&Task>) -> Vec<String> {
    let own = own(data, id);
    let stays = |path: &Path, error: io::Error| format!("{}: {error}", path.display());
    let found = match entries(&own) {
        Ok(found) => found,
        Err(error) => return vec![stays(&own, error)],
    };
    let known: BTreeSet<String> = task
        .iter()
        .flat_map(|task| &task.attached)
        .map(|attached| attached.folder.to_string())
        .collect();
    let unknown = found.iter().filter(|name| !known.contains(*name));
    let unknown = unknown.map(|name| own.join(name));
    let left = unknown.filter_map(|path| {
        let error = files::remove_tree(&path).err()?;
        Some(stays(&path, error))
    });
    let left = left.collect();
    if task.is_none() {
        // Of a task that never came to be there is nothing else; and only what is empty goes.
        for dir in [&*own, own.parent().unwrap_or(&own)] {
            match fs::remove_dir(dir) {
                Ok(()) | Err(_) => {}
            }
        }
    }
    left
}

fn entries(dir: &Path) -> io::Result<Vec<String>> {
    let found = match fs::read_dir(dir) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let name = |entry: io::Result<fs::DirEntry>| {
        entry.map(|entry| entry.file_name().to_string_lossy().into_owned())
    };
    found.map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(name: &str, bytes: &[u8]) -> NewFile {
        NewFile {
            name: name.into(),
            bytes: bytes.into(),
        }
    }

    #[test]
    fn what_is_kept_is_private_named_plainly_and_never_written_again() {
        let data = tempfile::tempdir().unwrap();
        let task = TaskId::from_bits(7);
        let names = ["../../x", "/x", "", "."];
        let files = names.map(|name| new(name, name.as_bytes()));
        let kept = keep(data.path(), task, &files).unwrap();
        let attached = kept.attached(None);
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        let dir = folder(data.path(), task, attached.folder);
        assert_eq!((mode(&dir), mode(dir.parent().unwrap())), (0o500, 0o700));
        let mut found = entries(&dir).unwrap();
        found.sort();
        assert_eq!(found, ["file", "file-2", "x", "x-2"]);
        for (file, was) in attached.files.iter().zip(names) {
            let path = path(data.path(), task, &attached, &file.name);
            assert_eq!(fs::read(&path).unwrap(), was.as_bytes());
            assert_eq!(mode(&path), 0o400);
            assert_eq!(
                (file.bytes, &file.sha256),
                (was.len() as u64, &sha256(was.as_bytes()))
            );
        }
        kept.told();
        let second = keep(data.path(), task, &[new("x", b"2")]).unwrap();
        assert_eq!(second.attached(None).folder, 2);
        drop(second);
        assert_eq!(entries(dir.parent().unwrap()).unwrap(), ["1"]);
    }

    #[test]
    fn what_no_event_tells_of_is_swept_and_nothing_else() {
        let data = tempfile::tempdir().unwrap();
        let [never, other] = [7, 8].map(TaskId::from_bits);
        for task in [never, never, other] {
            keep(data.path(), task, &[new("x", b"1")]).unwrap().told();
        }
        let prompts = data
            .path()
            .join("tasks")
            .join(other.to_string())
            .join("prompts");
        fs::create_dir(&prompts).unwrap();
        fs::create_dir(data.path().join("tasks/else")).unwrap();
        sweep(data.path(), &State::default()).unwrap();
        let mut left = entries(&data.path().join("tasks")).unwrap();
        left.sort();
        assert_eq!(left, [other.to_string(), "else".to_owned()]);
        assert!(prompts.exists());
        sweep(&data.path().join("nowhere"), &State::default()).unwrap();
    }

    #[test]
    fn what_cannot_be_swept_keeps_nothing_else_and_is_told_together() {
        let data = tempfile::tempdir().unwrap();
        let bad: Vec<TaskId> = (0..7).map(TaskId::from_bits).collect();
        for task in &bad {
            fs::create_dir_all(own(data.path(), *task).parent().unwrap()).unwrap();
            fs::write(own(data.path(), *task), "no folder").unwrap();
        }
        for task in (7..14).map(TaskId::from_bits) {
            keep(data.path(), task, &[new("x", b"1")]).unwrap().told();
        }
        let told = sweep(data.path(), &State::default()).unwrap_err();
        let mut left = entries(&data.path().join("tasks")).unwrap();
        left.sort();
        assert_eq!(
            left,
            bad.iter().map(ToString::to_string).collect::<Vec<_>>()
        );
        let told = told.to_string();
        assert_eq!(told.matches("/attachments: ").count(), STAYS_NAMED_MAX);
        assert!(told.ends_with("; 2 more"), "{told}");
    }
}
