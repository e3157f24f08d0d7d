//! `dispatch top` on a terminal of its own: what it shows is waited for, never slept for.
//! Must not leave a terminal behind that is not as it was.

use std::{
    fs::File,
    io::{Read, Write},
    process::{Child, Command},
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    process::{Pid, Signal, kill_process},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize},
};

use super::world::TestWorld;

const PATIENCE: Duration = Duration::from_secs(30);
const ROWS: u16 = 20;
const COLUMNS: u16 = 100;
const ALTERNATE: &str = "\u{1b}[?1049h";
const ORDINARY: &str = "\u{1b}[?1049l";

/// What a terminal of this size shows: as much of one as the screen needs.
struct Grid {
    lines: Vec<Vec<char>>,
    x: usize,
    y: usize,
    /// A sequence that has begun.
    order: String,
}

impl Grid {
    fn new() -> Self {
        Self {
            lines: vec![vec![' '; COLUMNS.into()]; ROWS.into()],
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
            self.lines.remove(0);
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
            ('J', _) | ('h' | 'l', "?1049") => *self = Self::new(),
            _ => {}
        }
    }

    fn text(&self) -> String {
        let line = |line: &Vec<char>| line.iter().collect::<String>() + "\n";
        self.lines.iter().map(line).collect()
    }
}

/// A terminal with a program on it.
struct Seat {
    keys: File,
    terminal: File,
    child: Child,
    pieces: Receiver<Vec<u8>>,
    /// Bytes of a letter that has not come whole.
    rest: Vec<u8>,
    grid: Grid,
    /// All of it, as it came.
    raw: String,
}

impl Seat {
    fn new(mut command: Command) -> Self {
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
    fn until(&mut self, word: &str) {
        self.wait_for(word, |seat| seat.grid.text().contains(word));
    }

    /// The n-th time that it changes to that screen.
    #[track_caller]
    fn until_screen(&mut self, order: &str, n: usize) {
        self.wait_for(order, |seat| seat.raw.matches(order).count() >= n);
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    fn is_raw(&self) -> bool {
        let modes = tcgetattr(&self.terminal).unwrap().local_modes;
        !modes.contains(LocalModes::ICANON) && !modes.contains(LocalModes::ECHO)
    }

    /// The exit code, with the terminal given back.
    #[track_caller]
    fn end(mut self) -> Option<i32> {
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

/// Through a pipe the terminal is not one.
#[test]
fn without_a_terminal_it_names_what_works_there() {
    let world = TestWorld::new();
    let refused = world.dispatch(&["top"]).exits(2);
    refused.says(&["draw on the terminal", "`dispatch list`"]);
    assert!(!world.home().join("data").exists(), "nothing was started");
}

#[test]
fn a_question_is_seen_and_answered_and_the_terminal_comes_back() {
    let world = TestWorld::new();
    let asks = "Pick \u{1b}]0;pwned\u{7}it\n> ask Which \u{1b}[2J\u{1b}]0;x\u{7}zone?\n> answer-into zone.txt";
    let id = world.detach(&[asks]);
    world.dispatch(&["wait", &id]).exits(3);
    let mut seat = Seat::new(world.command(&["top"]));
    seat.until_screen(ALTERNATE, 1);
    seat.until("needs you (1)");
    seat.until("blocked");
    seat.until("zone?");
    assert!(!seat.raw.contains("\u{1b}]"), "{:?}", seat.raw);
    assert!(seat.is_raw());
    seat.press("a");
    seat.until("answer ");
    seat.press("use UTC\r");
    // Only what the event stream says brings this.
    seat.until("completed");
    seat.press("q");
    assert_eq!(seat.end(), Some(0));
    assert_eq!(world.show(&id)["state"], "completed");
}

#[test]
fn it_stops_follows_and_freezes_and_outlives_its_engine() {
    let world = TestWorld::new();
    let id = world.begun(&[]);
    let mut seat = Seat::new(world.command(&["top"]));
    seat.until("running");
    // The warning of a placement without a fence, in bold and yellow.
    seat.until("host");
    seat.press("l");
    seat.until_screen(ORDINARY, 1);
    seat.until("begun");
    let child = Pid::from_child(&seat.child);
    kill_process(child, Signal::INT).unwrap();
    seat.until_screen(ALTERNATE, 2);
    seat.until("Wait for it");
    seat.press("f");
    seat.until("FROZEN");
    world.kill_engine();
    // The next engine is the screen's own doing.
    seat.press("f");
    seat.until("thawed");
    seat.press("s");
    seat.until("y/n");
    seat.press("y");
    seat.until("stopped by a person");
    assert_eq!(world.engines(), 2);
    kill_process(child, Signal::TERM).unwrap();
    assert_eq!(seat.end(), Some(4));
    assert_eq!(world.show(&id)["state"], "stopped");
}

#[test]
fn without_colours_there_are_none() {
    let world = TestWorld::new();
    let id = world.detach(&["x\n> write out.txt hi"]);
    world.dispatch(&["wait", &id]).exits(0);
    let mut command = world.command(&["top"]);
    command.env("NO_COLOR", "1");
    let mut seat = Seat::new(command);
    seat.until("done (1)");
    seat.until("q quit");
    for colour in ["[31m", "[32m", "[33m", "[38;"] {
        assert!(!seat.raw.contains(colour), "{:?}", seat.raw);
    }
    seat.press("\u{3}");
    assert_eq!(seat.end(), Some(0));
}
