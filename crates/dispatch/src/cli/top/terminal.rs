//! The terminal while `dispatch top` has it, and given back on every way out: an end, an error, a
//! panic, a signal. Must not be entered twice.

use std::{
    io::{self, Stdout},
    panic,
    sync::{
        Once,
        atomic::{AtomicBool, Ordering},
    },
};

use crossterm::{
    cursor::Show,
    event::{DisableBracketedPaste, EnableBracketedPaste},
    execute,
    terminal::{
        Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode,
        enable_raw_mode,
    },
};
use ratatui::{Terminal, backend::CrosstermBackend};

/// Whether there is something to give back.
static TAKEN: AtomicBool = AtomicBool::new(false);

pub(super) struct Screen {
    pub(super) terminal: Terminal<CrosstermBackend<Stdout>>,
}

impl Screen {
    pub(super) fn enter() -> io::Result<Self> {
        give_back_on_panic();
        TAKEN.store(true, Ordering::SeqCst);
        let entered = take().and_then(|()| Terminal::new(CrosstermBackend::new(io::stdout())));
        match entered {
            Ok(terminal) => Ok(Self { terminal }),
            Err(error) => {
                give_back()?;
                Err(error)
            }
        }
    }

    /// For another program's turn, or ours with ordinary lines.
    pub(super) fn leave(&mut self) -> io::Result<()> {
        give_back()
    }

    pub(super) fn enter_again(&mut self) -> io::Result<()> {
        TAKEN.store(true, Ordering::SeqCst);
        take()?;
        // A new one draws everything. The old one's `clear` asks the terminal where its cursor is, and
        // the answer would be waited for behind whoever reads the keys.
        self.terminal = Terminal::new(CrosstermBackend::new(io::stdout()))?;
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that has gone away takes nothing back.
        drop(give_back());
    }
}

fn take() -> io::Result<()> {
    enable_raw_mode()?;
    execute!(
        io::stdout(),
        EnterAlternateScreen,
        Clear(ClearType::All),
        EnableBracketedPaste
    )
}

fn give_back() -> io::Result<()> {
    if !TAKEN.swap(false, Ordering::SeqCst) {
        return Ok(());
    }
    // Both, whatever one of them says.
    let shown = execute!(
        io::stdout(),
        DisableBracketedPaste,
        LeaveAlternateScreen,
        Show
    );
    disable_raw_mode().and(shown)
}

/// Before the panic is worded: what is printed on the other screen would be lost.
fn give_back_on_panic() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let tell = panic::take_hook();
        panic::set_hook(Box::new(move |bug| {
            drop(give_back());
            tell(bug);
        }));
    });
}
