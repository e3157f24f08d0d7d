//! The screen of `dispatch top`, drawn from the model alone.
//! Must not show a control character: what an agent wrote is on it.

use dispatch_core::ask::shown;
use jiff::Timestamp;
use ratatui::{
    Frame,
    layout::Rect,
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Paragraph, Wrap},
};

use super::model::{Mode, Model, Row, Spent};
use crate::{
    api::task::Task,
    cli::{
        list::GROUPS,
        show,
        style::{self, clean_line, span},
    },
};

const WIDTH_MIN: u16 = 24;
const HEIGHT_MIN: u16 = 5;
const KEYS: &str = "↑↓ select  enter details  l logs  s stop  a answer  f freeze  q quit";
const KEYS_SHORT: &str = "↑↓ enter l s a f q";

/// Colours, or only what every terminal has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Paint {
    pub(super) colour: bool,
}

impl Paint {
    fn in_colour(self, colour: Color) -> Style {
        if self.colour {
            Style::new().fg(colour)
        } else {
            Style::new()
        }
    }

    fn bold() -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    fn dim() -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }

    fn state(self, state: &str) -> Style {
        match state {
            "completed" => self.in_colour(Color::Green),
            "failed" | "lost" => self.in_colour(Color::Red),
            "blocked" | "stopped" => self.in_colour(Color::Yellow),
            _ => Self::bold(),
        }
    }

    fn warning(self) -> Style {
        self.in_colour(Color::Yellow).add_modifier(Modifier::BOLD)
    }
}

/// Which columns a width has room for.
#[derive(Clone, Copy, Debug)]
struct Columns {
    agent: usize,
    age: usize,
    spent: usize,
    placement: usize,
}

impl Columns {
    fn of(width: u16) -> Self {
        let from = |least: u16, columns: usize| if width >= least { columns } else { 0 };
        Self {
            agent: from(56, 14),
            age: from(44, 7),
            spent: from(96, 14),
            placement: from(76, 7),
        }
    }
}

pub(super) fn draw(frame: &mut Frame<'_>, model: &Model, now: Timestamp, paint: Paint) {
    let area = frame.area();
    if area.width < WIDTH_MIN || area.height < HEIGHT_MIN {
        frame.render_widget(Paragraph::new("too small"), area);
        return;
    }
    let foot = foot(model, area.width, usize::from(area.height / 2), paint);
    let tall = u16::try_from(foot.len()).unwrap_or(1).min(area.height / 2);
    let body = Rect {
        y: area.y + 1,
        height: area.height - 1 - tall,
        ..area
    };
    frame.render_widget(head(model, paint), Rect { height: 1, ..area });
    match &model.mode {
        Mode::Details { id, from } => details(frame, body, model, id, *from),
        Mode::List | Mode::ConfirmStop { .. } | Mode::Answer { .. } | Mode::Permit { .. } => {
            list(frame, body, model, now, paint);
        }
    }
    let at = Rect {
        y: area.y + area.height - tall,
        height: tall,
        ..area
    };
    frame.render_widget(Paragraph::new(foot), at);
}

fn head(model: &Model, paint: Paint) -> Line<'static> {
    let mut spans = vec![Span::styled("dispatch top", Paint::bold())];
    for group in GROUPS {
        let count = model.count(group);
        let style = if group == "needs you" && count > 0 {
            paint.warning()
        } else {
            Style::new()
        };
        spans.push(Span::styled(format!("  {group} {count}"), style));
    }
    if model.frozen {
        spans.push(Span::styled("  FROZEN", paint.warning()));
    }
    if model.lost.is_some() {
        spans.push(Span::styled("  no engine", paint.in_colour(Color::Red)));
    }
    Line::from(spans)
}

fn list(frame: &mut Frame<'_>, area: Rect, model: &Model, now: Timestamp, paint: Paint) {
    let rows = model.rows();
    if rows.is_empty() {
        let text = match &model.lost {
            Some(why) => format!("no engine yet: {}", clean_line(why)),
            None => "no tasks; `dispatch run --repo . \"...\"` makes one".to_owned(),
        };
        frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: false }), area);
        return;
    }
    let here = model.selected.as_deref();
    let chosen = |row: &Row<'_>| matches!(row, Row::Task(task) if Some(&task.id[..]) == here);
    let at = rows.iter().position(chosen).unwrap_or(0);
    let height = usize::from(area.height);
    // What is selected stays in the middle, as long as there is more on both sides.
    let from = at
        .saturating_sub(height / 2)
        .min(rows.len().saturating_sub(height));
    let lines: Vec<Line<'_>> = rows[from..]
        .iter()
        .take(height)
        .map(|row| match row {
            Row::Head { group, count } => Line::styled(format!("{group} ({count})"), Paint::bold()),
            Row::Task(task) => {
                let line = row_line(model, task, now, area.width, paint);
                if chosen(row) {
                    line.patch_style(Modifier::REVERSED)
                } else {
                    line
                }
            }
        })
        .collect();
    frame.render_widget(Paragraph::new(lines), area);
}

fn row_line(model: &Model, task: &Task, now: Timestamp, width: u16, paint: Paint) -> Line<'static> {
    let columns = Columns::of(width);
    let host = task.placement == "host";
    let mut spans = vec![
        Span::raw(format!("  {} ", fit(&task.short, 4))),
        Span::styled(fit(&task.state, 9), paint.state(&task.state)),
        Span::raw(" "),
    ];
    let mut column = |text: &str, columns: usize, style: Style| {
        if columns > 0 {
            spans.push(Span::styled(fit(text, columns), style));
            spans.push(Span::raw(" "));
        }
    };
    column(&agent(task), columns.agent, Style::new());
    column(&age(task, now), columns.age, Style::new());
    column(&spent(model.spent(task)), columns.spent, Style::new());
    let style = if host { paint.warning() } else { Style::new() };
    column(&clean_line(&task.placement), columns.placement, style);
    if host && columns.placement == 0 {
        spans.push(Span::styled("[host] ", paint.warning()));
    }
    spans.push(Span::raw(clean_line(&task.title)));
    let doing = model.doing(task, now);
    if !doing.trim().is_empty() {
        spans.push(Span::styled(format!(" · {doing}"), Paint::dim()));
    }
    Line::from(spans)
}

fn agent(task: &Task) -> String {
    match &task.model {
        Some(model) => clean_line(&format!("{}:{model}", task.agent)),
        None => clean_line(&task.agent),
    }
}

fn age(task: &Task, now: Timestamp) -> String {
    let Ok(created) = task.created_at.parse::<Timestamp>() else {
        return String::new();
    };
    span(u64::try_from(now.as_second() - created.as_second()).unwrap_or(0))
}

fn spent(spent: Spent) -> String {
    let tokens = match spent.tokens {
        0 => String::new(),
        n @ 1..1000 => format!("{n}"),
        n @ 1000..1_000_000 => format!("{}.{}k", n / 1000, n % 1000 / 100),
        n => format!("{}.{}M", n / 1_000_000, n % 1_000_000 / 100_000),
    };
    let usd = if spent.usd > 0.0 {
        format!("${:.2}", spent.usd)
    } else {
        String::new()
    };
    format!("{tokens} {usd}").trim().to_owned()
}

/// Cut or filled to a number of columns, as a terminal counts them.
fn fit(text: &str, columns: usize) -> String {
    let mut out = String::new();
    let mut used = 0;
    let whole = Span::raw(text).width() <= columns;
    for c in text.chars() {
        let wide = Span::raw(c.to_string()).width();
        let room = if whole { columns } else { columns - 1 };
        if used + wide > room {
            break;
        }
        out.push(c);
        used += wide;
    }
    if !whole {
        out.push('…');
        used += 1;
    }
    out.extend(std::iter::repeat_n(' ', columns.saturating_sub(used)));
    out
}

fn details(frame: &mut Frame<'_>, area: Rect, model: &Model, id: &str, from: u16) {
    let Some(task) = model.find(id) else {
        return;
    };
    let lines: Vec<Line<'_>> = show::lines(style::Style::plain(), task)
        .iter()
        .flat_map(|line| line.split('\n'))
        .map(|line| Line::raw(clean_line(line)))
        .collect();
    // One line stays, so that nobody scrolls into nothing.
    let last = u16::try_from(lines.len().saturating_sub(1)).unwrap_or(u16::MAX);
    let text = Paragraph::new(lines)
        .wrap(Wrap { trim: false })
        .scroll((from.min(last), 0));
    frame.render_widget(text, area);
}

/// What the keys mean, what went wrong, or what is being asked.
fn foot(model: &Model, width: u16, room: usize, paint: Paint) -> Vec<Line<'static>> {
    let short = |id: &str| {
        let task = model.find(id);
        task.map_or_else(String::new, |task| task.short.clone())
    };
    match &model.mode {
        Mode::ConfirmStop { id } => vec![Line::styled(
            format!("stop {}? its work so far is kept. y/n", short(id)),
            paint.warning(),
        )],
        Mode::Permit { id, ask } => {
            let task = model.find(id);
            let asked = task.and_then(|task| task.open_asks().find(|open| open.id == *ask));
            let told = asked.map_or_else(String::new, |ask| format!("{}: {}", ask.tool, ask.input));
            let mut lines: Vec<Line<'_>> = folded(&shown(&told), width)
                .into_iter()
                .map(|line| Line::styled(line, paint.warning()))
                .collect();
            // The question below it is always seen, and so is that there is more to read.
            let room = room.min(FOOT_LINES_MAX).saturating_sub(1);
            if lines.len() > room {
                lines.truncate(room.saturating_sub(1));
                lines.push(Line::styled(
                    "… esc, then enter shows all of it",
                    Paint::dim(),
                ));
            }
            lines.push(Line::styled(
                format!("allow {} this once? y/n, esc leaves", short(id)),
                Paint::bold(),
            ));
            lines
        }
        Mode::Answer { id, text } => {
            let question = model.find(id).and_then(|task| task.question.clone());
            let mut lines: Vec<Line<'_>> = question
                .unwrap_or_default()
                .trim()
                .lines()
                .map(|line| Line::styled(clean_line(line), paint.warning()))
                .collect();
            let (before, behind) = text.halves();
            let mut rest = behind.chars();
            let under = rest.next().unwrap_or(' ');
            let prompt = format!("answer {}: ", short(id));
            // A long answer is shown around the place where it is typed.
            let room = usize::from(width).saturating_sub(prompt.len() + 2);
            let skip = before.chars().count().saturating_sub(room);
            let before: String = before.chars().skip(skip).collect();
            lines.push(Line::from(vec![
                Span::styled(prompt, Paint::bold()),
                Span::raw(before),
                Span::styled(
                    under.to_string(),
                    Style::new().add_modifier(Modifier::REVERSED),
                ),
                Span::raw(rest.collect::<String>()),
            ]));
            lines.push(Line::styled("enter sends, esc leaves", Paint::dim()));
            let from = lines.len().saturating_sub(FOOT_LINES_MAX);
            lines.split_off(from)
        }
        Mode::Details { .. } => vec![match &model.message {
            Some(message) => Line::styled(clean_line(message), paint.warning()),
            None => Line::styled(
                "↑↓ scroll  l logs  s stop  a answer  esc back",
                Paint::dim(),
            ),
        }],
        Mode::List => vec![match (&model.message, &model.lost) {
            (Some(message), _) => Line::styled(clean_line(message), paint.warning()),
            (None, Some(why)) => Line::styled(clean_line(why), paint.in_colour(Color::Red)),
            (None, None) if usize::from(width) < KEYS.chars().count() => {
                Line::styled(KEYS_SHORT, Paint::dim())
            }
            (None, None) => Line::styled(KEYS, Paint::dim()),
        }],
    }
}

const FOOT_LINES_MAX: usize = 8;

/// Cut into lines that fit: what is allowed unread is not allowed by a person.
fn folded(text: &str, width: u16) -> Vec<String> {
    let columns = usize::from(width).max(1);
    let mut lines = vec![String::new()];
    let mut used = 0;
    for c in text.chars() {
        let wide = Span::raw(c.to_string()).width();
        if used + wide > columns {
            lines.push(String::new());
            used = 0;
        }
        if let Some(line) = lines.last_mut() {
            line.push(c);
        }
        used += wide;
    }
    lines
}

#[cfg(test)]
mod tests {
    use dispatch_core::{outcome::Outcome, run::RunState};
    use ratatui::{Terminal, backend::TestBackend, buffer::Buffer};

    use super::{
        super::{
            keys::press,
            model::tests::{asking, blocked, event, task, waiting},
        },
        *,
    };

    fn buffer(model: &Model, width: u16, height: u16, colour: bool) -> Buffer {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        let now = Timestamp::from_second(100).unwrap();
        let paint = Paint { colour };
        terminal
            .draw(|frame| draw(frame, model, now, paint))
            .unwrap();
        terminal.backend().buffer().clone()
    }

    /// The screen as text, without the blanks at the ends of lines.
    fn screen(model: &Model, width: u16, height: u16) -> String {
        let buffer = buffer(model, width, height, true);
        let line = |y| {
            let cells = (0..width).map(|x| buffer[(x, y)].symbol());
            cells.collect::<String>().trim_end().to_owned()
        };
        (0..height).map(line).collect::<Vec<_>>().join("\n")
    }

    fn model() -> Model {
        let mut model = Model::new(false);
        let mut running = task(2, "2b", RunState::Running);
        running.title = "Add \u{1b}[31mpagination".into();
        running.model = Some("opus".into());
        running.placement = "cage".into();
        let completed = RunState::Finished(Outcome::Completed {
            summary: "all\ndone".into(),
        });
        model.tasks(vec![
            task(1, "1a", blocked("Which zone,\nUTC or local?")),
            running.clone(),
            waiting(3, "3c", Some(290_000)),
            task(4, "4d", completed),
        ]);
        for said in [
            r#""kind":"said","update":{"text":{"text":"Reading\u001b]0;x\u0007 the route"}},"out_offset":1}"#,
            r#""kind":"said","update":{"usage":{"input_tokens":12000,"output_tokens":340,"cache_read_tokens":null,"cache_write_tokens":null,"cost_usd":0.4,"turns":1}},"out_offset":2}"#,
        ] {
            model.hear(&event(&running, said));
        }
        model
    }

    #[test]
    fn a_wide_screen() {
        let want = "\
dispatch top  needs you 1  working 1  waiting 1  done 1
needs you (1)
  1a   blocked   claude         1m40s                  host    Fix it · UTC or local?
working (1)
  2b   running   claude:opus    1m40s   12.3k $0.40    cage    Add  [31mpagination · Reading ]0;x  the route
waiting (1)
  3c   queued    claude         1m40s                  host    Fix it · pool default: paused until 00:05 UTC,
done (1)
  4d   completed claude         1m40s                  host    Fix it · done

↑↓ select  enter details  l logs  s stop  a answer  f freeze  q quit";
        assert_eq!(screen(&model(), 110, 11), want);
    }

    #[test]
    fn a_narrow_screen_drops_columns_and_never_the_warning() {
        let mut model = model();
        model.frozen = true;
        let want = "\
dispatch top  needs you 1  working 1  wa
needs you (1)
  1a   blocked   [host] Fix it · UTC or
working (1)
  2b   running   Add  [31mpagination · R
↑↓ enter l s a f q";
        assert_eq!(screen(&model, 40, 6), want);
        assert_eq!(screen(&model, 20, 3).trim(), "too small");
        assert_eq!(
            screen(&Model::new(false), 60, 5).lines().nth(1),
            Some("no tasks; `dispatch run --repo . \"...\"` makes one")
        );
    }

    #[test]
    fn an_answer_is_typed_below_its_question() {
        use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
        let mut model = model();
        for c in "ause UTC".chars() {
            press(
                &mut model,
                KeyEvent::new(KeyCode::Char(c), KeyModifiers::NONE),
            );
        }
        let want = "\
dispatch top  needs you 1  working 1  waiting 1  done 1
needs you (1)
  1a   blocked   1m40s   [host] Fix it · UTC or
working (1)
  2b   running   1m40s   Add  [31mpagination · R
Which zone,
UTC or local?
answer 1a: use UTC
enter sends, esc leaves";
        let got = screen(&model, 48, 9);
        let cut: Vec<&str> = want.lines().collect();
        assert_eq!(got.lines().skip(1).collect::<Vec<_>>(), cut[1..]);
    }

    #[test]
    fn what_is_asked_is_read_whole_before_it_is_allowed() {
        use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
        let mut model = Model::new(false);
        let long = "rm -rf build && make all && make install && \u{1b}[2Jmake clean";
        model.tasks(vec![asking(5, "5e", &[long])]);
        let a = KeyEvent::new(KeyCode::Char('a'), KeyModifiers::NONE);
        press(&mut model, a);
        let want = "\
dispatch top  needs you 1  working 0
needs you (1)
  5e   running   [host] Fix it

Bash: rm -rf build && make all && ma
ke install && \\u{1b}[2Jmake clean
allow 5e this once? y/n, esc leaves";
        let got = screen(&model, 36, 7);
        let (got, want): (Vec<&str>, Vec<&str>) = (got.lines().collect(), want.lines().collect());
        assert_eq!(got[1..], want[1..]);
        model.tasks(vec![asking(5, "5e", &["x\n".repeat(999).as_str()])]);
        let whole = screen(&model, 60, 20);
        assert!(whole.contains("shows all"), "{whole}");
        let small = screen(&model, 36, 6);
        assert!(
            small.contains("shows all") && small.contains("y/n"),
            "{small}"
        );
    }

    #[test]
    fn details_are_those_of_show_and_scroll() {
        let mut model = model();
        let id = model.selected.clone().unwrap();
        let at = |from| Mode::Details {
            id: id.clone(),
            from,
        };
        model.mode = at(0);
        let top = screen(&model, 80, 8);
        assert!(top.contains("1a blocked Fix it"), "{top}");
        let whole = screen(&model, 80, 30);
        assert!(whole.contains("placement  host"), "{whole}");
        model.mode = at(3);
        assert!(!screen(&model, 80, 8).contains("1a blocked Fix it"));
        model.mode = at(u16::MAX);
        assert!(screen(&model, 80, 8).contains("dispatch answer 1a"));
    }

    #[test]
    fn what_is_selected_stays_on_the_screen() {
        let mut model = Model::new(false);
        let tasks = (1..=50).map(|n| task(n, &format!("{n}"), RunState::Running));
        model.tasks(tasks.collect());
        model.step(isize::MAX);
        let last = screen(&model, 60, 10);
        assert!(last.contains("  50 "), "{last}");
        model.step(isize::MIN);
        assert!(screen(&model, 60, 10).contains("working (50)"));
        model.step(25);
        assert!(screen(&model, 60, 10).contains("  26 "));
    }

    #[test]
    fn without_colour_nothing_has_one_and_with_it_host_warns() {
        let model = model();
        let plain = buffer(&model, 110, 11, false);
        assert!(plain.content.iter().all(|cell| cell.fg == Color::Reset));
        let coloured = buffer(&model, 110, 11, true);
        let host = (0..110)
            .find(|x| coloured[(*x, 6)].symbol() == "h")
            .unwrap();
        assert_eq!(coloured[(host, 6)].fg, Color::Yellow);
        assert!(coloured[(host, 6)].modifier.contains(Modifier::BOLD));
        let cage = &coloured[(host, 4)];
        assert_eq!((cage.symbol(), cage.fg), ("c", Color::Reset));
        assert!(coloured[(0, 2)].modifier.contains(Modifier::REVERSED));
    }

    #[test]
    fn columns_hold_whatever_is_wide() {
        assert_eq!(fit("日本語です", 6), "日本… ");
        assert_eq!(fit("abc", 5), "abc  ");
        assert_eq!(fit("abcdef", 4), "abc…");
        let tokens = |tokens| spent(Spent { tokens, usd: 0.0 });
        assert_eq!(
            [0, 999, 12_340, 7_650_000].map(tokens),
            ["", "999", "12.3k", "7.6M"]
        );
    }
}
