//! `dispatch top` on a terminal of its own: what it shows is waited for, never slept for.
//! Must not leave a terminal behind that is not as it was.

use rustix::process::{Pid, Signal, kill_process};

use super::{
    seat::{ALTERNATE, ORDINARY, Seat},
    world::TestWorld,
};

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
