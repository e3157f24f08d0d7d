//! `todo`: the list of what is to do, always whole, shown wherever the task is.
//! Must not keep the list itself: the record does.

use dispatch_core::{
    native::{Todo, TodoStatus},
    rules::Group,
};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Planned, Run, Sign, Tool, Wrong, schema};

const TODOS_MAX: usize = 200;
const CONTENT_CHARS_MAX: usize = 1_000;

pub(super) const TOOL: Tool = Tool {
    name: "todo",
    line: "keep a list of what is to do",
    help: "Replaces the whole list of what is to do, which everybody who follows the task sees. Use \
           it for work of three steps or more; say each step once, keep exactly one in progress \
           while you work, and mark each as completed as soon as it is.",
    group: Group::Todo,
    safe: false,
    schema: schema::<Input>,
    plan: |given| {
        let input: Input = given.parse()?;
        Ok(Planned::new(Vec::new(), |run| set(run, input)))
    },
};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Input {
    /// All of the list, in order.
    todos: Vec<Item>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Item {
    /// What is to do.
    content: String,
    /// How far it is.
    status: Status,
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Status {
    Pending,
    InProgress,
    Completed,
    Cancelled,
}

async fn set(run: Run, input: Input) -> Result<String, Wrong> {
    if input.todos.len() > TODOS_MAX {
        return Err(Wrong::new(format!(
            "the list has more than {TODOS_MAX} items"
        )));
    }
    let todos: Result<Vec<Todo>, Wrong> = input.todos.iter().map(todo).collect();
    let todos = todos?;
    let told = text(&todos);
    run.place.say(Sign::Plan(todos)).await;
    Ok(told)
}

fn todo(item: &Item) -> Result<Todo, Wrong> {
    let content = item.content.trim();
    if content.is_empty() {
        return Err(Wrong::new("an item says nothing"));
    }
    if content.chars().count() > CONTENT_CHARS_MAX {
        return Err(Wrong::new(format!(
            "an item has more than {CONTENT_CHARS_MAX} characters"
        )));
    }
    let status = match item.status {
        Status::Pending => TodoStatus::Pending,
        Status::InProgress => TodoStatus::InProgress,
        Status::Completed => TodoStatus::Completed,
        Status::Cancelled => TodoStatus::Cancelled,
    };
    Ok(Todo {
        content: content.to_owned(),
        status,
    })
}

fn text(todos: &[Todo]) -> String {
    if todos.is_empty() {
        return "the list is empty".into();
    }
    let lines: Vec<String> = todos
        .iter()
        .map(|todo| {
            let mark = match todo.status {
                TodoStatus::Pending => "[ ]",
                TodoStatus::InProgress => "[>]",
                TodoStatus::Completed => "[x]",
                TodoStatus::Cancelled => "[-]",
            };
            format!("{mark} {}", todo.content)
        })
        .collect();
    let open = todos
        .iter()
        .filter(|todo| todo.status == TodoStatus::InProgress)
        .count();
    let mut text = lines.join("\n");
    if open > 1 {
        text.push_str(&format!("\n{open} are in progress; keep it to one"));
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::tools::testing::Bench;

    #[tokio::test]
    async fn the_whole_list_is_told_and_shown() {
        let mut bench = Bench::new();
        let told = bench
            .told(
                "todo",
                json!({"todos": [{"content": " read ", "status": "completed"},
                    {"content": "write", "status": "in_progress"}]}),
            )
            .await;
        assert_eq!(told, "[x] read\n[>] write");
        let Some(Sign::Plan(todos)) = bench.signs.recv().await else {
            panic!("no plan");
        };
        assert_eq!(todos[1].status, TodoStatus::InProgress);
        for (todos, part) in [
            (
                json!([{"content": " ", "status": "pending"}]),
                "says nothing",
            ),
            (
                json!([{"content": "x", "status": "later"}]),
                "unknown variant `later`",
            ),
            (json!("x"), "do not fit"),
        ] {
            let wrong = bench.wrong("todo", json!({"todos": todos})).await;
            assert!(wrong.contains(part), "{wrong}");
        }
    }
}
