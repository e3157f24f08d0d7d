//! Routes that only look: pools, spending, agents, the configuration, what a job wrote.
//! Must not change anything, and must not hand out more than a bounded piece of a file.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    path::{Path as FsPath, PathBuf},
};

use axum::{
    Json,
    extract::{Path, State},
    http::{HeaderMap, HeaderName, HeaderValue, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use dispatch_core::{family::Deed, id::Seq, run::RunState, state::Run};
use dispatch_engine::view::{TaskView, VerbError};

use super::{
    Ctx,
    error::{Code, Params, Problem},
    family::Acting,
    tasks::id,
};
use crate::api::{
    overview::{Agent, Pools, Setting, Spent},
    request::{LogPart, OfRun},
};

/// The position of the log that an answer is true at.
pub(crate) const SEQ: HeaderName = HeaderName::from_static("dispatch-seq");
/// Where the next page, or the next piece, begins.
pub(crate) const NEXT: HeaderName = HeaderName::from_static("dispatch-next");
/// `true`: nothing comes after this piece any more.
pub(crate) const END: HeaderName = HeaderName::from_static("dispatch-end");
const LOG_BYTES: u64 = 1 << 20;
const LOG_BYTES_MAX: u64 = 8 << 20;
/// A prompt is far shorter (`limits.prompt_bytes`).
const PROMPT_BYTES_MAX: u64 = 16 << 20;

/// An answer with the position it is true at.
#[derive(Debug)]
pub(crate) struct At<T>(pub(crate) Seq, pub(crate) T);

impl<T: IntoResponse> IntoResponse for At<T> {
    fn into_response(self) -> Response {
        let mut response = self.1.into_response();
        response
            .headers_mut()
            .insert(SEQ, HeaderValue::from(self.0));
        response
    }
}

/// Plain bytes: an agent writes what it likes.
#[derive(Debug)]
pub(crate) struct Piece {
    bytes: Vec<u8>,
    next: u64,
    end: bool,
}

impl IntoResponse for Piece {
    fn into_response(self) -> Response {
        let mut headers = HeaderMap::new();
        let kind = HeaderValue::from_static("application/octet-stream");
        headers.insert(CONTENT_TYPE, kind);
        headers.insert(NEXT, HeaderValue::from(self.next));
        let end = if self.end { "true" } else { "false" };
        headers.insert(END, HeaderValue::from_static(end));
        (headers, self.bytes).into_response()
    }
}

pub(crate) async fn pools(State(ctx): State<Ctx>) -> Result<At<Json<Pools>>, Problem> {
    let overview = ctx.engine.overview().await?;
    Ok(At(overview.seq, Json(Pools::from(&overview))))
}

pub(crate) async fn usage(State(ctx): State<Ctx>) -> Result<At<Json<Spent>>, Problem> {
    let (seq, spending) = ctx.engine.spending().await?;
    Ok(At(seq, Json(Spent::from(&spending))))
}

pub(crate) async fn agents(State(ctx): State<Ctx>) -> Result<Json<Vec<Agent>>, Problem> {
    // Every directory of PATH is looked at for each of them.
    let look = move || Agent::all(&ctx.config, |program| ctx.settings.find(program));
    let agents = tokio::task::spawn_blocking(look).await;
    Ok(Json(agents.map_err(VerbError::from)?))
}

pub(crate) async fn config(State(ctx): State<Ctx>) -> Json<Vec<Setting>> {
    Json(ctx.settings.sourced.iter().map(Setting::masked).collect())
}

/// A run of a task, by its number or the last one.
fn run_of(view: &TaskView, n: Option<u32>) -> Result<(usize, &Run), Problem> {
    let runs = &view.task.runs;
    let index = match n {
        None => runs.len().checked_sub(1),
        Some(n) => runs.iter().position(|run| run.n == n),
    };
    let found = index.and_then(|index| Some((index, runs.get(index)?)));
    found.ok_or_else(|| {
        let detail = format!(
            "find that run of task {}: it has {}",
            view.task.id,
            runs.len()
        );
        Problem::new(Code::NoSuchRun, detail)
    })
}

pub(crate) async fn log(
    Acting(ctx): Acting,
    Path((task, n)): Path<(String, String)>,
    Params(asked): Params<LogPart>,
) -> Result<At<Piece>, Problem> {
    let n: u32 = n
        .parse()
        .map_err(|_| Problem::new(Code::NoSuchRun, format!("find run {n:?}: it is no number")))?;
    let limit = asked.limit.unwrap_or(LOG_BYTES);
    if !(1..=LOG_BYTES_MAX).contains(&limit) {
        let detail = format!("read {limit} bytes of a log: a piece has 1 to {LOG_BYTES_MAX}");
        return Err(Problem::new(Code::BadQuery, detail));
    }
    // Looked at before the file: what is written after a run's end is nothing.
    let found = id(&task)?;
    ctx.engine.may(Deed::Logs(found)).await?;
    let view = ctx.engine.look(found).await?;
    let (index, run) = run_of(&view, Some(n))?;
    let file = written(&view, index, run, &asked)?;
    let over = matches!(run.state, RunState::Finished(_));
    let from = match asked.last {
        Some(bytes) => Begin::Before(bytes),
        None => Begin::At(asked.from),
    };
    let read = tokio::task::spawn_blocking(move || piece(&file, from, limit)).await;
    let (from, bytes) = read.map_err(VerbError::from)?.map_err(|error| {
        Problem::new(
            Code::Failed,
            format!("read the log of run {n} of task {task}: {error}"),
        )
    })?;
    let next = from.saturating_add(bytes.len() as u64);
    // A piece that is not full went to the end of what there is.
    let end = over && (bytes.len() as u64) < limit;
    Ok(At(view.seq, Piece { bytes, next, end }))
}

/// The file of a job's output, by names that are ours alone.
fn written(view: &TaskView, index: usize, run: &Run, asked: &LogPart) -> Result<PathBuf, Problem> {
    let out = view.jobs.get(index).map(|job| job.log.as_path());
    let mut dir = out.and_then(FsPath::parent).map(FsPath::to_owned);
    if let Some(wanted) = &asked.check {
        let mut names = run.checks.iter().map(|check| check.name.to_string());
        let Some(name) = names.find(|name| name == wanted) else {
            let detail = format!("find check {wanted:?} of run {}: it did not run", run.n);
            return Err(Problem::new(Code::UnknownCheck, detail));
        };
        dir = dir.and_then(|dir| Some(dir.parent()?.join(format!("check.{name}"))));
    }
    let nowhere = || {
        let detail = format!("find the log of run {} of task {}", run.n, view.task.id);
        Problem::new(Code::NoSuchRun, detail)
    };
    let dir = dir.ok_or_else(nowhere)?;
    Ok(dir.join(if asked.err { "err" } else { "out" }))
}

/// Where a piece begins.
#[derive(Clone, Copy, Debug)]
enum Begin {
    At(u64),
    /// So many bytes before the end.
    Before(u64),
}

/// With the byte that it begins at. A job that has not started has written nothing.
fn piece(file: &FsPath, from: Begin, limit: u64) -> io::Result<(u64, Vec<u8>)> {
    let mut file = match File::open(file) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((0, Vec::new())),
        Err(error) => return Err(error),
    };
    let from = match from {
        Begin::At(from) => from,
        Begin::Before(bytes) => file.metadata()?.len().saturating_sub(bytes),
    };
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes)?;
    Ok((from, bytes))
}

pub(crate) async fn prompt(
    Acting(ctx): Acting,
    Path(task): Path<String>,
    Params(asked): Params<OfRun>,
) -> Result<At<String>, Problem> {
    let view = ctx.engine.task(id(&task)?).await?;
    let (index, run) = run_of(&view, asked.run)?;
    let n = run.n;
    let Some(path) = view.jobs.get(index).and_then(|job| job.prompt.clone()) else {
        let detail = format!("show the prompt of run {n} of task {task}: none is made yet");
        return Err(Problem::new(Code::NothingToDo, detail));
    };
    let read =
        tokio::task::spawn_blocking(move || piece(&path, Begin::At(0), PROMPT_BYTES_MAX)).await;
    let (_, bytes) = read.map_err(VerbError::from)?.map_err(|error| {
        Problem::new(
            Code::Failed,
            format!("read the prompt of run {n} of task {task}: {error}"),
        )
    })?;
    Ok(At(view.seq, String::from_utf8_lossy(&bytes).into_owned()))
}
