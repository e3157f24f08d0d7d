//! What a key does to the line that is typed, and which of them do more.
//! Must not draw or ask for anything.

use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::editor::Editor;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    Send,
    /// Whether there was something to clear.
    Interrupt {
        cleared: bool,
    },
    Leave,
    /// The screen anew.
    Redraw,
    /// Back to the shell, for now.
    Suspend,
}

pub(super) fn press(editor: &mut Editor, key: KeyEvent) -> Option<Act> {
    if key.kind == KeyEventKind::Release {
        return None;
    }
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    let alt = key.modifiers.contains(KeyModifiers::ALT);
    match key.code {
        KeyCode::Char(c) if control => return of_control(editor, c),
        KeyCode::Enter if alt || key.modifiers.contains(KeyModifiers::SHIFT) => editor.put("\n"),
        KeyCode::Enter => return Some(Act::Send),
        KeyCode::Char('b') if alt => editor.word_left(),
        KeyCode::Char('f') if alt => editor.word_right(),
        KeyCode::Backspace if alt => editor.cut_word(),
        KeyCode::Char(_) if alt => {}
        KeyCode::Char(c) => editor.put(c.encode_utf8(&mut [0; 4])),
        KeyCode::Tab => editor.put("\t"),
        KeyCode::Backspace => editor.rub_out(),
        KeyCode::Delete => editor.delete(),
        KeyCode::Left if control || alt => editor.word_left(),
        KeyCode::Right if control || alt => editor.word_right(),
        KeyCode::Left => editor.left(),
        KeyCode::Right => editor.right(),
        KeyCode::Up => editor.up(),
        KeyCode::Down => editor.down(),
        KeyCode::Home => editor.home(),
        KeyCode::End => editor.end(),
        _ => {}
    }
    None
}

fn of_control(editor: &mut Editor, c: char) -> Option<Act> {
    match c.to_ascii_lowercase() {
        'c' => {
            let cleared = !editor.is_empty();
            editor.clear();
            return Some(Act::Interrupt { cleared });
        }
        'd' if editor.is_empty() => return Some(Act::Leave),
        'd' => editor.delete(),
        'l' => return Some(Act::Redraw),
        'z' => return Some(Act::Suspend),
        'j' => editor.put("\n"),
        'a' => editor.home(),
        'e' => editor.end(),
        'b' => editor.left(),
        'f' => editor.right(),
        'h' => editor.rub_out(),
        'k' => editor.cut_rest(),
        'n' => editor.down(),
        'p' => editor.up(),
        'u' => editor.cut_line(),
        'w' => editor.cut_word(),
        _ => {}
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(editor: &mut Editor, text: &str) {
        for c in text.chars() {
            assert_eq!(press(editor, KeyCode::Char(c).into()), None);
        }
    }

    fn control(c: char) -> KeyEvent {
        KeyEvent::new(KeyCode::Char(c), KeyModifiers::CONTROL)
    }

    #[test]
    fn letters_and_enter() {
        let mut editor = Editor::default();
        typed(&mut editor, "use TC");
        press(&mut editor, KeyCode::Left.into());
        press(&mut editor, KeyCode::Left.into());
        typed(&mut editor, "U");
        assert_eq!(press(&mut editor, KeyCode::Enter.into()), Some(Act::Send));
        assert_eq!(editor.text(), "use UTC");
        press(&mut editor, control('e'));
        let new_line = KeyEvent::new(KeyCode::Enter, KeyModifiers::ALT);
        assert_eq!(press(&mut editor, new_line), None);
        assert_eq!(press(&mut editor, control('j')), None);
        assert_eq!(editor.text(), "use UTC\n\n");
    }

    #[test]
    fn control_c_clears_and_control_d_leaves_only_from_an_empty_line() {
        let mut editor = Editor::default();
        typed(&mut editor, "x");
        press(&mut editor, KeyCode::Left.into());
        assert_eq!(press(&mut editor, control('d')), None);
        assert!(editor.is_empty());
        assert_eq!(press(&mut editor, control('d')), Some(Act::Leave));
        typed(&mut editor, "x");
        let interrupt = |cleared| Some(Act::Interrupt { cleared });
        assert_eq!(press(&mut editor, control('c')), interrupt(true));
        assert!(editor.is_empty());
        assert_eq!(press(&mut editor, control('c')), interrupt(false));
    }

    #[test]
    fn words_are_jumped_over_and_cut() {
        let mut editor = Editor::default();
        typed(&mut editor, "one two three");
        press(&mut editor, control('w'));
        press(
            &mut editor,
            KeyEvent::new(KeyCode::Left, KeyModifiers::CONTROL),
        );
        press(&mut editor, control('k'));
        assert_eq!(editor.text(), "one ");
        press(&mut editor, control('u'));
        assert!(editor.is_empty());
        let release = KeyEvent::new_with_kind(
            KeyCode::Char('x'),
            KeyModifiers::NONE,
            KeyEventKind::Release,
        );
        assert_eq!(press(&mut editor, release), None);
        assert!(editor.is_empty());
    }
}
