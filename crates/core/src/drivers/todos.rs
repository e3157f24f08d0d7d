//! What Claude Code means to do, read from its tools for that: older versions write the whole list
//! (`TodoWrite`), newer ones make and change one thing at a time (`TaskCreate`, `TaskUpdate`).
//! Must not take a thing for made before its result says under which id.

use serde_json::Value;

use super::text::{TODO_ITEMS_MAX, bounded, str_at, todo, todos};
use crate::update::{Todo, Update};

const ID_BYTES_MAX: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Todos {
    /// With their ids.
    items: Vec<(String, Todo)>,
    /// What it is making, by the id of the call.
    making: Vec<(String, Todo)>,
}

impl Todos {
    /// What a call changes at once.
    pub(super) fn called(&mut self, name: &str, call: &str, input: &Value) -> Option<Update> {
        match name {
            "TodoWrite" => Some(todos(&input["todos"], "content", "status")),
            "TaskCreate" => {
                if self.making.len() < TODO_ITEMS_MAX {
                    let made = todo(str_at(input, "subject"), "");
                    self.making.push((bounded(call, ID_BYTES_MAX), made));
                }
                None
            }
            "TaskUpdate" => self.change(input),
            _ => None,
        }
    }

    fn change(&mut self, input: &Value) -> Option<Update> {
        let id = str_at(input, "taskId");
        let at = self.items.iter().position(|(known, _)| known == id)?;
        if str_at(input, "status") == "deleted" {
            self.items.remove(at);
            return Some(self.list());
        }
        let item = &mut self.items[at].1;
        if let Some(text) = input["subject"].as_str() {
            item.text = todo(text, "").text;
        }
        if let Some(state) = input["status"].as_str() {
            item.state = todo("", state).state;
        }
        Some(self.list())
    }

    /// What the result of a call adds: `Task #1 created successfully: ...`.
    pub(super) fn answered(&mut self, call: &str, output: &str) -> Option<Update> {
        let at = self.making.iter().position(|(known, _)| known == call)?;
        let (_, made) = self.making.remove(at);
        let (id, _) = output
            .strip_prefix("Task #")?
            .split_once(" created successfully")?;
        if self.items.len() < TODO_ITEMS_MAX {
            self.items.push((bounded(id, ID_BYTES_MAX), made));
        }
        Some(self.list())
    }

    fn list(&self) -> Update {
        let items = self.items.iter().map(|(_, item)| item.clone());
        Update::Todo {
            items: items.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn words(update: Option<Update>) -> String {
        let Some(Update::Todo { items }) = update else {
            return "nothing".into();
        };
        let words = items
            .iter()
            .map(|item| format!("{:?} {}", item.state, item.text));
        words.collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn both_ways_come_to_a_list() {
        let mut todos = Todos::default();
        let whole = json!({"todos": [
            {"content": "look", "status": "completed", "activeForm": "looking"},
            {"content": "mend", "status": "in_progress"},
        ]});
        let written = todos.called("TodoWrite", "c0", &whole);
        assert_eq!(words(written), "Done look, Active mend");
        assert_eq!(todos.called("Bash", "c1", &json!({"command": "ls"})), None);

        for (call, subject) in [("c2", "look"), ("c3", "mend")] {
            let input = json!({"subject": subject, "description": "d"});
            assert_eq!(todos.called("TaskCreate", call, &input), None);
        }
        let made = todos.answered("c3", "Task #7 created successfully: mend");
        assert_eq!(words(made), "Pending mend");
        assert_eq!(todos.answered("c2", "no room"), None);
        assert_eq!(todos.answered("c9", "Task #1 created successfully"), None);
        let changed = json!({"taskId": "7", "status": "in_progress", "subject": "mend it"});
        let changed = todos.called("TaskUpdate", "c4", &changed);
        assert_eq!(words(changed), "Active mend it");
        let other = json!({"taskId": "8", "status": "completed"});
        assert_eq!(todos.called("TaskUpdate", "c5", &other), None);
        let gone = json!({"taskId": "7", "status": "deleted"});
        assert_eq!(words(todos.called("TaskUpdate", "c6", &gone)), "");
    }
}
