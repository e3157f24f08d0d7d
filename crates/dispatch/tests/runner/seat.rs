//! A terminal for a test: a pseudo terminal with a program on it, and what its screen shows.
//! Must not sleep: what is to be seen is waited for.

use std::{
    fs::File,
    io::{Read, Write},
    process::{Child, Command},
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize},
};

const PATIENCE: Duration = Duration::from_secs(30);
const ROWS: u16 = 20;
const COLUMNS: u16 = 100;
pub(crate) const ALTERNATE: &str = "\u{1b}[?1049h";
pub(crate) const ORDINARY: &str = "\u{1b}[?1049l";

/// What a terminal of this size shows: as much of one as the screen needs.
pub(crate) struct Grid {
    lines: Vec<Vec<char>>,
    /// Lines that have left it at its top.
    gone: Vec<String>,
    x: usize,
    y: usize,
    /// A sequence that has begun.
    order: String,
}

impl Grid {
    fn new() -> Self {
        Self {
            lines: vec![vec![' '; COLUMNS.into()]; ROWS.into()],
            gone: Vec::new(),
            x: 0,
            y: 0,
            order: String::new(),
        }
    }

    fn put(&mut self, c: char) {
        if !self.order.is_empty() {
            self.order.push(c);
            let begun = self.order == "\u{1b}[";
            if !begun && (c.is_ascii_alphabetic() || !self.order.starts_with("\u{1b}[")) {
                let order = std::mem::take(&mut self.order);
                self.obey(&order[2..order.len() - 1], c);
            }
            return;
        }
        match c {
            '\u{1b}' => self.order.push(c),
            '\r' => self.x = 0,
            '\n' => self.y += 1,
            c if c.is_control() => {}
            c => {
                if let Some(cell) = self.lines[self.y].get_mut(self.x) {
                    *cell = c;
                }
                self.x += 1;
            }
        }
        if self.y >= self.lines.len() {
            let line: String = self.lines.remove(0).into_iter().collect();
            self.gone.push(line);
            self.lines.push(vec![' '; COLUMNS.into()]);
            self.y -= 1;
        }
    }

    fn obey(&mut self, numbers: &str, word: char) {
        match (word, numbers) {
            ('H', place) => {
                let mut numbers = place.split(';').map(|n| n.parse().unwrap_or(1));
                self.y = numbers.next().unwrap_or(1_usize).min(ROWS.into()) - 1;
                self.x = numbers.next().unwrap_or(1_usize) - 1;
            }
            ('A', rows) => self.y = self.y.saturating_sub(rows.parse().unwrap_or(1)),
            ('C', columns) => self.x += columns.parse().unwrap_or(1),
            ('J', "" | "0") => {
                let below = self.lines.iter_mut().skip(self.y + 1);
                below.for_each(|line| line.fill(' '));
                if let Some(rest) = self.lines[self.y].get_mut(self.x..) {
                    rest.fill(' ');
                }
            }
            ('J', _) | ('h' | 'l', "?1049") => *self = Self::new(),
            _ => {}
        }
    }

    /// With what has left it at its top.
    pub(crate) fn history(&self) -> String {
        let gone = self.gone.iter().map(|line| format!("{line}\n"));
        gone.collect::<String>() + &self.text()
    }

    pub(crate) fn text(&self) -> String {
        let line = |line: &Vec<char>| line.iter().collect::<String>() + "\n";
        self.lines.iter().map(line).collect()
    }
}

/// A terminal with a program on it.
pub(crate) struct Seat {
    keys: File,
    terminal: File,
    pub(crate) child: Child,
    pieces: Receiver<Vec<u8>>,
    /// Bytes of a letter that has not come whole.
    rest: Vec<u8>,
    pub(crate) grid: Grid,
    /// All of it, as it came.
    pub(crate) raw: String,
}

impl Seat {
    pub(crate) fn new(mut command: Command) -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let size = Winsize {
            ws_row: ROWS,
            ws_col: COLUMNS,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&master, size).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
        let terminal = File::options().read(true).write(true).open(name).unwrap();
        let handle = || terminal.try_clone().unwrap();
        command
            .env("TERM", "xterm-256color")
            .stdin(handle())
            .stdout(handle())
            .stderr(handle());
        let child = command.spawn().unwrap();
        let keys = File::from(master);
        let mut screen = keys.try_clone().unwrap();
        let (tell, pieces) = channel();
        thread::spawn(move || {
            let mut piece = vec![0; 4096];
            while let Ok(n @ 1..) = screen.read(&mut piece) {
                if tell.send(piece[..n].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self {
            keys,
            terminal,
            child,
            pieces,
            rest: Vec::new(),
            grid: Grid::new(),
            raw: String::new(),
        }
    }

    fn take(&mut self, piece: &[u8]) {
        self.rest.extend_from_slice(piece);
        let whole = match std::str::from_utf8(&self.rest) {
            Ok(text) => text.len(),
            Err(error) => error.valid_up_to(),
        };
        let bytes: Vec<u8> = self.rest.drain(..whole).collect();
        let text = String::from_utf8(bytes).unwrap();
        text.chars().for_each(|c| self.grid.put(c));
        self.raw.push_str(&text);
    }

    /// Waits until what is on the screen, or what came, is as it should be.
    #[track_caller]
    fn wait_for(&mut self, what: &str, good: impl Fn(&Self) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !good(self) {
            let left = end.saturating_duration_since(Instant::now());
            match self.pieces.recv_timeout(left) {
                Ok(piece) => self.take(&piece),
                Err(error) => panic!("no {what:?} ({error}) in\n{}", self.grid.text()),
            }
        }
    }

    #[track_caller]
    pub(crate) fn until(&mut self, word: &str) {
        self.wait_for(word, |seat| seat.grid.text().contains(word));
    }

    /// The n-th time that it changes to that screen.
    #[track_caller]
    pub(crate) fn until_screen(&mut self, order: &str, n: usize) {
        self.wait_for(order, |seat| seat.raw.matches(order).count() >= n);
    }

    pub(crate) fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    pub(crate) fn is_raw(&self) -> bool {
        let modes = tcgetattr(&self.terminal).unwrap().local_modes;
        !modes.contains(LocalModes::ICANON) && !modes.contains(LocalModes::ECHO)
    }

    /// How often a text stands in what is seen and what has been.
    pub(crate) fn count(&self, text: &str) -> usize {
        self.grid.history().matches(text).count()
    }

    pub(crate) fn resize(&self, columns: u16) {
        let size = Winsize {
            ws_row: ROWS,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&self.keys, size).unwrap();
    }

    /// The exit code, with the terminal given back.
    #[track_caller]
    pub(crate) fn end(mut self) -> Option<i32> {
        let taken = self.raw.matches(ALTERNATE).count();
        self.until_screen(ORDINARY, taken);
        let code = self.child.wait().unwrap().code();
        assert!(!self.is_raw(), "the terminal is as it was");
        code
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        // It has ended already when the test went well.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
