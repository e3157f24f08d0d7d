//! What a key does: a change of the model, and what has to be done outside of it.
//! Must not do it.

use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::{
    editor::Editor,
    model::{Mode, Model},
};

const PAGE_ROWS: isize = 10;
const PAGE_LINES: u16 = 10;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Act {
    Quit,
    Logs { id: String },
    Stop { id: String },
    Answer { id: String, text: String },
    Permit { id: String, ask: u32, allow: bool },
    Freeze { frozen: bool },
}

pub(super) fn press(model: &mut Model, key: KeyEvent) -> Option<Act> {
    if key.kind == KeyEventKind::Release {
        return None;
    }
    if key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c') {
        return Some(Act::Quit);
    }
    model.message = None;
    match std::mem::replace(&mut model.mode, Mode::List) {
        Mode::List => list(model, key.code),
        Mode::Details { id, from } => details(model, id, from, key.code),
        Mode::ConfirmStop { id } => (key.code == KeyCode::Char('y')).then_some(Act::Stop { id }),
        Mode::Answer { id, text } => answer(model, id, text, key),
        Mode::Permit { id, ask } => permit(model, id, ask, key.code),
    }
}

fn list(model: &mut Model, code: KeyCode) -> Option<Act> {
    match code {
        KeyCode::Char('q') => return Some(Act::Quit),
        KeyCode::Up | KeyCode::Char('k') => model.step(-1),
        KeyCode::Down | KeyCode::Char('j') => model.step(1),
        KeyCode::PageUp => model.step(-PAGE_ROWS),
        KeyCode::PageDown => model.step(PAGE_ROWS),
        KeyCode::Home => model.step(isize::MIN),
        KeyCode::End => model.step(isize::MAX),
        KeyCode::Char('f') => {
            return Some(Act::Freeze {
                frozen: !model.frozen,
            });
        }
        other => return of_task(model, other),
    }
    None
}

/// Keys that are about the task that is selected.
fn of_task(model: &mut Model, code: KeyCode) -> Option<Act> {
    let task = model.selected()?;
    let (id, short) = (task.id.clone(), task.short.clone());
    let (open, blocked) = (task.is_open(), task.state == "blocked");
    let asked = task.open_asks().next().map(|ask| ask.id);
    match code {
        KeyCode::Enter => model.mode = Mode::Details { id, from: 0 },
        KeyCode::Char('l') => return Some(Act::Logs { id }),
        KeyCode::Char('s') if open => model.mode = Mode::ConfirmStop { id },
        KeyCode::Char('s') => model.message = Some(format!("{short} has ended already")),
        KeyCode::Char('a') if asked.is_some() => {
            let ask = asked.unwrap_or_default();
            model.mode = Mode::Permit { id, ask };
        }
        KeyCode::Char('a') if blocked => {
            let text = Editor::default();
            model.mode = Mode::Answer { id, text };
        }
        KeyCode::Char('a') => model.message = Some(format!("{short} has asked nothing")),
        _ => {}
    }
    None
}

fn details(model: &mut Model, id: String, from: u16, code: KeyCode) -> Option<Act> {
    let from = match code {
        KeyCode::Esc | KeyCode::Char('q') | KeyCode::Enter => return None,
        KeyCode::Up | KeyCode::Char('k') => from.saturating_sub(1),
        KeyCode::Down | KeyCode::Char('j') => from.saturating_add(1),
        KeyCode::PageUp => from.saturating_sub(PAGE_LINES),
        KeyCode::PageDown => from.saturating_add(PAGE_LINES),
        KeyCode::Home => 0,
        KeyCode::Char('l' | 's' | 'a') => return of_task(model, code),
        _ => from,
    };
    model.mode = Mode::Details { id, from };
    None
}

/// Only a clear word counts; the ask waits on.
fn permit(model: &mut Model, id: String, ask: u32, code: KeyCode) -> Option<Act> {
    let allow = match code {
        KeyCode::Char('y') => true,
        KeyCode::Char('n') => false,
        KeyCode::Esc | KeyCode::Char('q') => return None,
        _ => {
            model.mode = Mode::Permit { id, ask };
            return None;
        }
    };
    Some(Act::Permit { id, ask, allow })
}

fn answer(model: &mut Model, id: String, mut text: Editor, key: KeyEvent) -> Option<Act> {
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    match key.code {
        KeyCode::Esc => return None,
        KeyCode::Enter if !text.text().trim().is_empty() => {
            let text = text.text();
            return Some(Act::Answer { id, text });
        }
        KeyCode::Char('u') if control => text.cut_line(),
        KeyCode::Char('w') if control => text.cut_word(),
        KeyCode::Char('a') if control => text.home(),
        KeyCode::Char('e') if control => text.end(),
        KeyCode::Char(c) if !control => text.put(c),
        KeyCode::Backspace => text.rub_out(),
        KeyCode::Delete => text.delete(),
        KeyCode::Left => text.left(),
        KeyCode::Right => text.right(),
        KeyCode::Home => text.home(),
        KeyCode::End => text.end(),
        _ => {}
    }
    model.mode = Mode::Answer { id, text };
    None
}

#[cfg(test)]
mod tests {
    use dispatch_core::run::RunState;

    use super::{
        super::model::tests::{asking, blocked, task, waiting},
        *,
    };

    fn key(code: KeyCode) -> KeyEvent {
        KeyEvent::new(code, KeyModifiers::NONE)
    }

    fn letters(model: &mut Model, text: &str) {
        for c in text.chars() {
            assert_eq!(press(model, key(KeyCode::Char(c))), None);
        }
    }

    /// Blocked `1a`, running `2b`, waiting `3c`; the first is selected.
    fn model() -> Model {
        let mut model = Model::new(false);
        model.tasks(vec![
            task(1, "1a", blocked("Which?")),
            task(2, "2b", RunState::Running),
            waiting(3, "3c", None),
        ]);
        model
    }

    fn id(n: u64) -> String {
        format!("{n:016x}")
    }

    #[test]
    fn quitting_has_three_ways() {
        let mut model = model();
        assert_eq!(press(&mut model, key(KeyCode::Char('q'))), Some(Act::Quit));
        let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(press(&mut model, interrupt), Some(Act::Quit));
        letters(&mut model, "aq");
        assert!(
            matches!(model.mode, Mode::Answer { .. }),
            "a letter like any other"
        );
        assert_eq!(press(&mut model, interrupt), Some(Act::Quit));
    }

    #[test]
    fn a_stop_is_asked_about_first() {
        let mut model = model();
        letters(&mut model, "js");
        assert_eq!(model.mode, Mode::ConfirmStop { id: id(2) });
        assert_eq!(press(&mut model, key(KeyCode::Enter)), None);
        assert_eq!(model.mode, Mode::List, "anything but y is no");
        letters(&mut model, "s");
        let stop = press(&mut model, key(KeyCode::Char('y')));
        assert_eq!(stop, Some(Act::Stop { id: id(2) }));
        assert_eq!(model.mode, Mode::List);
        letters(&mut model, "ks");
        assert_eq!(model.message.as_deref(), Some("1a has ended already"));
    }

    #[test]
    fn an_answer_is_typed_and_sent() {
        let mut model = model();
        letters(&mut model, "a");
        assert_eq!(press(&mut model, key(KeyCode::Enter)), None);
        assert!(
            matches!(model.mode, Mode::Answer { .. }),
            "nothing is no answer"
        );
        letters(&mut model, "use GMT");
        let cut = KeyEvent::new(KeyCode::Char('w'), KeyModifiers::CONTROL);
        assert_eq!(press(&mut model, cut), None);
        letters(&mut model, "UTC");
        let sent = press(&mut model, key(KeyCode::Enter));
        let text = "use UTC".to_owned();
        assert_eq!(sent, Some(Act::Answer { id: id(1), text }));
        letters(&mut model, "a");
        assert_eq!(press(&mut model, key(KeyCode::Esc)), None);
        assert_eq!(model.mode, Mode::List);
        letters(&mut model, "ja");
        assert_eq!(model.message.as_deref(), Some("2b has asked nothing"));
    }

    #[test]
    fn a_permission_is_given_or_not_by_one_letter() {
        let mut model = Model::new(false);
        model.tasks(vec![asking(5, "5e", &["make", "make install"])]);
        let permit = |allow| {
            Some(Act::Permit {
                id: id(5),
                ask: 1,
                allow,
            })
        };
        for (letter, act) in [('y', permit(true)), ('n', permit(false))] {
            letters(&mut model, "ax");
            assert_eq!(model.mode, Mode::Permit { id: id(5), ask: 1 });
            assert_eq!(press(&mut model, key(KeyCode::Enter)), None);
            assert_eq!(press(&mut model, key(KeyCode::Char(letter))), act);
            assert_eq!(model.mode, Mode::List);
        }
        letters(&mut model, "a");
        assert_eq!(press(&mut model, key(KeyCode::Esc)), None);
        assert_eq!(model.mode, Mode::List);
        letters(&mut model, "a");
        // Answered elsewhere: the letter must not be taken for the next one.
        let mut answered = asking(5, "5e", &["make", "make install"]);
        answered.asks[0].state = "denied".into();
        model.task(answered);
        assert_eq!(model.mode, Mode::List);
        letters(&mut model, "y");
        letters(&mut model, "a");
        assert_eq!(model.mode, Mode::Permit { id: id(5), ask: 2 });
    }

    #[test]
    fn details_logs_and_freeze() {
        let mut model = model();
        press(&mut model, key(KeyCode::Enter));
        press(&mut model, key(KeyCode::Down));
        press(&mut model, key(KeyCode::PageDown));
        assert_eq!(
            model.mode,
            Mode::Details {
                id: id(1),
                from: 11
            }
        );
        press(&mut model, key(KeyCode::Home));
        press(&mut model, key(KeyCode::Up));
        assert_eq!(model.mode, Mode::Details { id: id(1), from: 0 });
        let logs = press(&mut model, key(KeyCode::Char('l')));
        assert_eq!(logs, Some(Act::Logs { id: id(1) }));
        let freeze = press(&mut model, key(KeyCode::Char('f')));
        assert_eq!(freeze, Some(Act::Freeze { frozen: true }));
        model.frozen = true;
        let thaw = press(&mut model, key(KeyCode::Char('f')));
        assert_eq!(thaw, Some(Act::Freeze { frozen: false }));
        let mut released = key(KeyCode::Char('q'));
        released.kind = KeyEventKind::Release;
        assert_eq!(press(&mut model, released), None);
    }

    #[test]
    fn without_tasks_no_key_does_harm() {
        let mut model = Model::new(false);
        for code in [
            KeyCode::Up,
            KeyCode::End,
            KeyCode::Enter,
            KeyCode::Char('s'),
        ] {
            assert_eq!(press(&mut model, key(code)), None);
            assert_eq!(model.mode, Mode::List);
        }
    }
}
