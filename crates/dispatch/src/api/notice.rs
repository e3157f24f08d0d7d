//! What a webhook or a command of `[notify.*]` is given, as docs/cli.md says.
//! Must not hold more of a task than is needed to find it: it leaves the machine.

use dispatch_core::{
    event::{Event, Kind},
    id::HookName,
    notify::{self, Occasion, Words},
    outcome::Outcome,
};
use dispatch_engine::view::TaskView;
use serde::Serialize;

use super::time;

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Notice {
    /// The same for every try of the same notice, so that a receiver can drop a second one.
    pub(crate) id: String,
    pub(crate) hook: String,
    pub(crate) on: String,
    pub(crate) seq: u64,
    pub(crate) at: String,
    /// One line of ASCII, then what there is to read.
    pub(crate) title: String,
    pub(crate) text: String,
    pub(crate) task: Option<About>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct About {
    pub(crate) id: String,
    pub(crate) short: String,
    pub(crate) run: Option<u32>,
    pub(crate) title: String,
    pub(crate) repo: String,
    pub(crate) agent: String,
    /// How it was at the event, not how it is when this is read.
    pub(crate) state: Option<String>,
    pub(crate) reason: Option<String>,
    pub(crate) question: Option<String>,
}

impl Notice {
    /// `None` for an event that no hook is told of.
    pub(crate) fn of(hook: &HookName, event: &Event, view: Option<&TaskView>) -> Option<Self> {
        let on = Occasion::of(&event.kind)?;
        let known = view.map(|view| (&view.task, view.short.as_str()));
        let Words { title, text } = notify::words(&event.kind, known)?;
        Some(Self {
            id: format!("{hook}-{}", event.seq),
            hook: hook.to_string(),
            on: on.word().to_owned(),
            seq: event.seq,
            at: time(event.at),
            title,
            text,
            task: view.map(|view| About::of(event, view)),
        })
    }

    /// What `dispatch notify test` sends.
    pub(crate) fn test(hook: &HookName, at: u64) -> Self {
        Self {
            id: format!("{hook}-test-{at}"),
            hook: hook.to_string(),
            on: "test".to_owned(),
            seq: 0,
            at: time(at),
            title: "dispatch: a test".to_owned(),
            text: format!("The hook {hook} of Dispatch works."),
            task: None,
        }
    }
}

impl About {
    fn of(event: &Event, view: &TaskView) -> Self {
        let outcome = match &event.kind {
            Kind::Finished { outcome, .. } => Some(outcome),
            _ => None,
        };
        let question = match outcome {
            Some(Outcome::Blocked { question }) => Some(question.clone()),
            _ => None,
        };
        Self {
            id: view.task.id.to_string(),
            short: view.short.clone(),
            run: event.subject.run().map(|run| run.n),
            title: view.task.spec.title.clone(),
            repo: view.task.spec.repo.clone(),
            agent: view.task.spec.agent.to_string(),
            state: outcome.map(|outcome| outcome.word().to_owned()),
            reason: outcome.map(Outcome::reason).filter(|r| !r.is_empty()),
            question,
        }
    }
}

#[cfg(test)]
mod tests {
    use dispatch_core::{
        event::{Subject, Verified},
        id::RunId,
        run::RunState,
    };

    use super::*;
    use crate::api::task::tests::view;

    #[test]
    fn the_schema_of_a_notice() {
        let question = "UTC?".to_owned();
        let outcome = Outcome::Blocked { question };
        let view = view(0x3f, RunState::Finished(outcome.clone()));
        let verified = Verified::NotVerified;
        let event = Event {
            seq: 9,
            at: 1_000,
            subject: Subject::Run(RunId {
                task: view.task.id,
                n: 1,
            }),
            kind: Kind::Finished { outcome, verified },
        };
        let hook = "phone".parse().unwrap();
        let notice = Notice::of(&hook, &event, Some(&view)).unwrap();
        let got = serde_json::to_value(&notice).unwrap();
        let about = &got["task"];
        assert_eq!(about["question"], "UTC?");
        assert_eq!(about["state"], "blocked");
        assert_eq!((&got["id"], &got["seq"]), (&"phone-9".into(), &9.into()));
        assert_eq!(got["title"], "dispatch: 3f blocked");
        let keys: Vec<&String> = got.as_object().unwrap().keys().collect();
        let wanted = ["id", "hook", "on", "seq", "at", "title", "text", "task"];
        assert_eq!(keys, wanted);
        let keys: Vec<&String> = about.as_object().unwrap().keys().collect();
        let wanted = [
            "id", "short", "run", "title", "repo", "agent", "state", "reason", "question",
        ];
        assert_eq!(keys, wanted);
        // The text of the task stays here.
        assert!(!got.to_string().contains(&view.task.spec.text) || view.task.spec.text.len() < 20);
        let admitted = Event {
            kind: Kind::Admitted,
            ..event
        };
        assert_eq!(Notice::of(&hook, &admitted, Some(&view)), None);
    }
}
