//! Which task is meant: by an id, a prefix of one, or the name of its workspace.
//! Must not pick one of several, but of the tasks that had a workspace one after the other the newest.

use std::path::Path;

use dispatch_core::id::TaskId;

use super::door::{Door, Refusal};
use crate::{api::task::Task, cli::ids};

/// Tasks that are shown where several begin alike.
const ALIKE_MAX: usize = 20;
/// Tasks that are looked through for a directory or the beginning of a name.
const LOOKED_MAX: usize = 10_000;

/// By a whole id, or a prefix that no other task has.
pub(super) async fn by_id(door: &Door, id: &str) -> Result<Task, Refusal> {
    let id = id.trim().to_ascii_lowercase();
    if let Ok(whole) = id.parse::<TaskId>() {
        return door.get(&format!("/v1/tasks/{whole}")).await;
    }
    let hex = !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    let alike = if hex && id.len() < TaskId::HEX_DIGITS {
        door.tasks(&format!("&prefix={id}"), ALIKE_MAX).await?.0
    } else {
        Vec::new()
    };
    Ok(ids::resolve(&alike, &id)?.clone())
}

/// The newest with a workspace of that name, or at that directory; else by its id.
pub(super) async fn by_workspace(door: &Door, wanted: &str) -> Result<Task, Refusal> {
    let wanted = wanted.trim();
    let found = if Path::new(wanted).is_absolute() {
        let (all, _) = door.tasks("", LOOKED_MAX).await?;
        let there = Path::new(wanted);
        all.into_iter().find(|task| task.workspace_dir == there)
    } else {
        named(door, wanted).await?
    };
    if let Some(task) = found {
        return Ok(task);
    }
    by_id(door, wanted).await.map_err(|_| {
        Refusal::new(format!(
            "find workspace {wanted:?}: there is none; agentic_status lists those there are"
        ))
    })
}

async fn named(door: &Door, name: &str) -> Result<Option<Task>, Refusal> {
    let query = format!("&workspace={}", encoded(name));
    let (found, _) = door.tasks(&query, 1).await?;
    Ok(found.into_iter().next())
}

/// What is watched under a name: its newest task, or all open ones that begin so.
pub(super) async fn watched(door: &Door, wanted: &str) -> Result<Vec<Task>, Refusal> {
    if let Ok(task) = by_workspace(door, wanted).await {
        return Ok(vec![task]);
    }
    let wanted = wanted.trim();
    let open = open(door).await?;
    let begins = |task: &Task| !wanted.is_empty() && task.workspace_name.starts_with(wanted);
    let found: Vec<Task> = open.into_iter().filter(begins).collect();
    // It could be watched until the time was over, once: nothing could ever have come of it.
    if found.is_empty() {
        let what = format!("watch workspace {wanted:?}: there is none, and none that begins so");
        return Err(Refusal::new(what));
    }
    Ok(found)
}

/// All that run or wait.
pub(super) async fn open(door: &Door) -> Result<Vec<Task>, Refusal> {
    const OPEN: &str = "&state=queued,preparing,running,stopping,checking,parked";
    let (mut all, _) = door.tasks(OPEN, LOOKED_MAX).await?;
    all.reverse();
    Ok(all)
}

/// As one value of a query.
fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
    let encode = |byte: u8| match plain(byte) {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_value_of_a_query() {
        assert_eq!(encoded("core/api/task-5"), "core/api/task-5");
        assert_eq!(encoded("a&b=c d+\u{e9}"), "a%26b%3Dc%20d%2B%C3%A9");
    }
}
