//! A page as Markdown, for a model to read: headings, paragraphs, lists, links, code and tables.
//! One pass over the tokens, with no tree: what a tree of a hostile page would take is not linear in
//! the page. Must not recurse, and must not grow beyond what it was given room for.

use dispatch_core::address::Address;
use html5gum::{DefaultEmitter, EndTag, StartTag, Token, Tokenizer};

/// Deeper lists and quotes are written as if they were this deep.
const DEPTH_MAX: usize = 8;
/// Marks that are open at once; a page with more has forgotten to close them.
const MARKS_MAX: usize = 16;
const LINK_BYTES_MAX: usize = 2048;
const TITLE_BYTES_MAX: usize = 512;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Page {
    pub(super) title: String,
    pub(super) markdown: String,
}

/// `bytes_max`: about as much as is told; the rest of the page is left out.
pub(super) fn page(html: &str, at: &Address, bytes_max: usize) -> Page {
    let (page, lost) = Writer::new(at, bytes_max, true).read(html);
    if !lost {
        return page;
    }
    // Something that was to be left out has no end: then nothing is.
    Writer::new(at, bytes_max, false).read(html).0
}

/// Nothing to read is in these.
const SILENT: [&str; 12] = [
    "script", "style", "noscript", "template", "svg", "iframe", "object", "canvas", "select",
    "math", "audio", "video",
];
/// What is around the text of a page.
const AROUND: [&str; 2] = ["nav", "footer"];

enum Mark {
    Link(Option<Address>),
    /// What stands before and after it.
    Around(&'static str),
}

struct Open {
    tag: &'static str,
    mark: Mark,
    /// Where its text begins.
    from: usize,
}

/// Rows and cells of the outermost table.
#[derive(Default)]
struct Table {
    depth: usize,
    rows: usize,
    cells: usize,
}

struct Writer {
    base: Address,
    bytes_max: usize,
    skips_around: bool,
    out: String,
    title: String,
    in_title: bool,
    /// Lines to be ended before the next text: 0, 1, or 2 for an empty one between.
    gap: usize,
    space: bool,
    /// What is left out just now, and how many of its kind are open.
    silent: Option<(String, usize)>,
    lists: Vec<Option<u64>>,
    quotes: usize,
    /// In how many of them the last text is.
    quoted: usize,
    pre: usize,
    marks: Vec<Open>,
    table: Table,
}

impl Writer {
    fn new(at: &Address, bytes_max: usize, skips_around: bool) -> Self {
        Self {
            base: at.clone(),
            bytes_max,
            skips_around,
            out: String::new(),
            title: String::new(),
            in_title: false,
            gap: 0,
            space: false,
            silent: None,
            lists: Vec::new(),
            quotes: 0,
            quoted: 0,
            pre: 0,
            marks: Vec::new(),
            table: Table::default(),
        }
    }

    /// The page, and whether the end of something that was left out is missing.
    fn read(mut self, html: &str) -> (Page, bool) {
        let mut emitter = DefaultEmitter::default();
        emitter.naively_switch_states(true);
        for Ok(token) in Tokenizer::new_with_emitter(html, emitter) {
            match token {
                Token::StartTag(tag) => self.start(&tag),
                Token::EndTag(tag) => self.end(&tag),
                Token::String(text) => self.text(&String::from_utf8_lossy(&text)),
                Token::Comment(_) | Token::Doctype(_) | Token::Error(_) => {}
            }
            if self.out.len() > self.bytes_max {
                break;
            }
        }
        if self.pre > 0 {
            self.end_code();
        }
        let lost = matches!(&self.silent, Some((tag, _)) if AROUND.contains(&tag.as_str()));
        let page = Page {
            title: self.title.trim().to_owned(),
            markdown: self.out.trim().to_owned(),
        };
        (page, lost)
    }

    fn start(&mut self, tag: &StartTag<()>) {
        let name = String::from_utf8_lossy(&tag.name);
        let name = name.as_ref();
        if let Some((silent, open)) = &mut self.silent {
            if silent == name && !tag.self_closing {
                *open += 1;
            }
            return;
        }
        let around = self.skips_around && AROUND.contains(&name);
        if (SILENT.contains(&name) || around) && !tag.self_closing {
            self.silent = Some((name.to_owned(), 1));
            return;
        }
        let value = |wanted: &str| {
            let value = tag.attributes.get(wanted.as_bytes());
            value.map(|value| String::from_utf8_lossy(value).into_owned())
        };
        match name {
            "title" if self.title.is_empty() && !tag.self_closing => self.in_title = true,
            "base" => {
                let base = value("href").filter(|href| href.len() <= LINK_BYTES_MAX);
                if let Some(Ok(base)) = base.map(|href| self.base.join(&href)) {
                    self.base = base;
                }
            }
            "a" => {
                self.close("a");
                let link = value("href").filter(|href| href.len() <= LINK_BYTES_MAX);
                // A place in this page says nothing to whoever reads it as text.
                let link = link.filter(|href| !href.starts_with('#'));
                let link = link.and_then(|href| self.base.join(&href).ok());
                self.mark("a", Mark::Link(link));
            }
            "b" | "strong" => self.mark("strong", Mark::Around("**")),
            "i" | "em" => self.mark("em", Mark::Around("*")),
            "code" | "kbd" | "samp" if self.pre == 0 => self.mark("code", Mark::Around("`")),
            "img" => {
                let alt = value("alt").unwrap_or_default();
                if !alt.trim().is_empty() {
                    self.text(&format!("[image: {}]", alt.trim()));
                }
            }
            "br" if self.pre > 0 => self.out.push('\n'),
            "br" => self.line(1),
            "hr" => {
                self.line(2);
                self.word("---");
                self.line(2);
            }
            "h1" | "h2" | "h3" | "h4" | "h5" | "h6" => {
                self.line(2);
                let level = usize::from(name.as_bytes()[1] - b'0');
                self.word(&"#".repeat(level));
                self.space = true;
            }
            "pre" => {
                self.pre += 1;
                if self.pre == 1 {
                    self.line(2);
                    self.begin_code();
                }
            }
            "ul" | "ol" => {
                self.line(if self.lists.is_empty() { 2 } else { 1 });
                let first = value("start").and_then(|start| start.parse().ok());
                let first = (name == "ol").then(|| first.unwrap_or(1));
                self.lists.push(first);
            }
            "li" => self.item(),
            "blockquote" => {
                self.line(2);
                self.quotes += 1;
            }
            "table" => {
                self.line(2);
                self.table.depth += 1;
                if self.table.depth == 1 {
                    self.table.rows = 0;
                }
            }
            "tr" if self.table.depth == 1 => {
                self.end_row();
                self.line(1);
            }
            "td" | "th" if self.table.depth == 1 => {
                self.gap = if self.table.cells == 0 { self.gap } else { 0 };
                self.space = self.table.cells > 0;
                self.word("|");
                self.space = true;
                self.table.cells += 1;
            }
            name => self.line(gap_of(name)),
        }
    }

    fn end(&mut self, tag: &EndTag<()>) {
        let name = String::from_utf8_lossy(&tag.name);
        let name = name.as_ref();
        if let Some((silent, open)) = &mut self.silent {
            if silent == name {
                *open -= 1;
                if *open == 0 {
                    self.silent = None;
                }
            }
            return;
        }
        match name {
            "title" => self.in_title = false,
            "a" => self.close("a"),
            "b" | "strong" => self.close("strong"),
            "i" | "em" => self.close("em"),
            "code" | "kbd" | "samp" => self.close("code"),
            "pre" if self.pre > 0 => {
                self.pre -= 1;
                if self.pre == 0 {
                    self.end_code();
                    self.line(2);
                }
            }
            "ul" | "ol" => {
                self.lists.pop();
                self.line(if self.lists.is_empty() { 2 } else { 1 });
            }
            "blockquote" => {
                self.quotes = self.quotes.saturating_sub(1);
                self.line(2);
            }
            "table" if self.table.depth > 0 => {
                if self.table.depth == 1 {
                    self.end_row();
                }
                self.table.depth -= 1;
                self.line(2);
            }
            "tr" if self.table.depth == 1 => self.end_row(),
            "td" | "th" if self.table.depth == 1 => {
                self.marks.clear();
                self.gap = 0;
                self.space = true;
            }
            "h1" | "h2" | "h3" | "h4" | "h5" | "h6" => self.line(2),
            name => self.line(gap_of(name)),
        }
    }

    fn end_row(&mut self) {
        let cells = std::mem::take(&mut self.table.cells);
        if cells == 0 {
            return;
        }
        self.gap = 0;
        self.space = false;
        self.out.push_str(" |");
        self.table.rows += 1;
        if self.table.rows == 1 {
            self.line(1);
            // A page may have more of them than there is room for.
            let cells = cells.min(64);
            self.word(&format!("|{}", "---|".repeat(cells)));
        }
        self.line(1);
    }

    fn item(&mut self) {
        self.line(1);
        let depth = self.lists.len().saturating_sub(1).min(DEPTH_MAX);
        let bullet = match self.lists.last_mut() {
            Some(Some(n)) => {
                let bullet = format!("{n}.");
                *n = n.saturating_add(1);
                bullet
            }
            Some(None) | None => "-".to_owned(),
        };
        self.word(&format!("{}{bullet}", "  ".repeat(depth)));
        self.space = true;
    }

    /// The lines before the next text end here.
    fn line(&mut self, gap: usize) {
        if gap == 0 {
            return;
        }
        if self.table.cells > 0 {
            // A cell is one line.
            self.space = true;
            return;
        }
        self.gap = self.gap.max(gap);
        self.space = false;
        self.marks.clear();
    }

    fn begin_code(&mut self) {
        self.word("```");
        self.out.push('\n');
    }

    fn end_code(&mut self) {
        if !self.out.ends_with('\n') {
            self.out.push('\n');
        }
        self.out.push_str("```");
    }

    /// As it is, behind the lines that are to be ended and the space before it.
    fn word(&mut self, text: &str) {
        if !self.out.is_empty() {
            for n in 0..std::mem::take(&mut self.gap) {
                if n > 0 {
                    self.quote(self.quoted.min(self.quotes));
                }
                self.out.push('\n');
            }
        }
        self.gap = 0;
        if self.out.is_empty() || self.out.ends_with('\n') {
            self.quote(self.quotes);
            self.space = false;
        }
        self.quoted = self.quotes;
        if std::mem::take(&mut self.space) {
            self.out.push(' ');
        }
        self.out.push_str(text);
    }

    fn quote(&mut self, quotes: usize) {
        let quotes = quotes.min(DEPTH_MAX);
        self.out.push_str(&"> ".repeat(quotes));
    }

    fn text(&mut self, text: &str) {
        if self.silent.is_some() {
            return;
        }
        if self.in_title {
            let room = TITLE_BYTES_MAX.saturating_sub(self.title.len());
            let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
            let mut end = room.min(words.len());
            while !words.is_char_boundary(end) {
                end -= 1;
            }
            self.title.push_str(&words[..end]);
            return;
        }
        if self.pre > 0 {
            self.out.push_str(text);
            return;
        }
        if text.starts_with(char::is_whitespace) {
            self.space |= self.gap == 0 && !self.out.is_empty();
        }
        let mut words = text.split_whitespace().peekable();
        while let Some(word) = words.next() {
            self.word(word);
            self.space = words.peek().is_some() || text.ends_with(char::is_whitespace);
        }
    }

    fn mark(&mut self, tag: &'static str, mark: Mark) {
        if self.pre > 0 || self.marks.len() >= MARKS_MAX {
            return;
        }
        // The lines before it are no part of it.
        self.word("");
        let from = self.out.len();
        self.marks.push(Open { tag, mark, from });
    }

    fn close(&mut self, tag: &str) {
        let Some(at) = self.marks.iter().rposition(|open| open.tag == tag) else {
            return;
        };
        let open = self.marks.swap_remove(at);
        self.marks.truncate(at);
        let Some(text) = self.out.get(open.from..) else {
            return;
        };
        let text = text.trim();
        if text.is_empty() {
            return;
        }
        let marked = match &open.mark {
            Mark::Link(None) => return,
            Mark::Link(Some(uri)) => format!("[{text}]({uri})"),
            Mark::Around(mark) => format!("{mark}{text}{mark}"),
        };
        self.out.truncate(open.from);
        self.out.push_str(&marked);
    }
}

fn gap_of(name: &str) -> usize {
    match name {
        "p" | "section" | "article" | "main" | "header" | "aside" | "figure" | "dl" | "details"
        | "form" | "fieldset" | "nav" | "footer" | "body" => 2,
        "div" | "li" | "dt" | "dd" | "tr" | "td" | "th" | "figcaption" | "summary" | "caption"
        | "address" | "legend" | "option" | "center" => 1,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    const ROOM: usize = 1 << 20;

    fn markdown(html: &str) -> String {
        let at = Address::parse("https://a.example/docs/x").unwrap();
        page(html, &at, ROOM).markdown
    }

    #[test]
    fn a_page_reads_as_it_looks() {
        let html = "<!doctype html><html><head><title> A &amp; B\n </title>\
            <style>p { color: red }</style><script>if (a < b) { '</p>' }</script></head>\
            <body><nav><a href=/>Home</a></nav><h1>Intro</h1>\n<p>One <b>bold </b>word,\n \
            <a href='../y?q=1#z'>a  link</a> &mdash; and <code>x &lt; y</code>.<br>Next</p>\
            <ul><li>one<li>two<ol start=3><li>deep</ol></ul>\
            <pre><code>fn main() {\n    1;\n}</code></pre>\
            <blockquote><p>said</p><p>more</p></blockquote>\
            <table><tr><th>k<th>v</tr><tr><td>a</td><td><p>1</p></td></tr></table>\
            <img src=x.png alt='a dog'><footer>(c)</footer></body></html>";
        let at = Address::parse("https://a.example/docs/x").unwrap();
        let page = page(html, &at, ROOM);
        assert_eq!(page.title, "A & B");
        let expected = "# Intro\n\nOne **bold** word, [a link](https://a.example/y?q=1) \u{2014} and \
            `x < y`.\nNext\n\n- one\n- two\n  3. deep\n\n```\nfn main() {\n    1;\n}\n```\n\n\
            > said\n> \n> more\n\n| k | v |\n|---|---|\n| a | 1 |\n\n[image: a dog]";
        assert_eq!(page.markdown, expected);
    }

    #[test]
    fn what_is_not_closed_takes_nothing_away() {
        assert_eq!(markdown("<nav>menu<p>text"), "menu\n\ntext");
        assert_eq!(markdown("<p><a href=/x>link<p>text"), "link\n\ntext");
        assert_eq!(markdown("</p></ul></table></blockquote>text"), "text");
        assert_eq!(markdown("<pre>code"), "```\ncode\n```");
        assert_eq!(markdown("a<b>"), "a");
        assert_eq!(markdown("<b>a<i>b</b>c</i>"), "**ab**c");
        assert_eq!(markdown(""), "");
    }

    #[test]
    fn links_that_lead_nowhere_are_text() {
        for html in [
            "<a href='javascript:x()'>t</a>",
            "<a href='#part'>t</a>",
            "<a>t</a>",
            "<a href='data:text/html,x'>t</a>",
        ] {
            assert_eq!(markdown(html), "t", "{html}");
        }
        let based = "<base href='https://b.example/q/'><a href=x>t</a>";
        assert_eq!(markdown(based), "[t](https://b.example/q/x)");
    }

    /// Whatever the tags are: no panic, no more than there is room for, and all words in their order.
    #[test]
    fn no_page_loses_a_word() {
        const TAGS: [&str; 24] = [
            "<p>",
            "</p>",
            "<a href='x'>",
            "</a>",
            "<b>",
            "</b>",
            "<em>",
            "</em>",
            "<code>",
            "</code>",
            "<pre>",
            "</pre>",
            "<ul>",
            "<li>",
            "</ul>",
            "<blockquote>",
            "</blockquote>",
            "<table>",
            "<tr>",
            "<td>",
            "</table>",
            "<br>",
            "<h2>",
            "<div title='<p>'>",
        ];
        let mut random = Random::new(7);
        for _ in 0..3000 {
            let mut html = String::new();
            let count = 1 + random.below(40);
            for n in 0..count {
                html.push_str(TAGS[random.below(TAGS.len())]);
                if random.below(2) == 0 {
                    html.push(' ');
                }
                html.push_str(&format!("w{n}w"));
            }
            let told = markdown(&html);
            let mut rest = told.as_str();
            for n in 0..count {
                let word = format!("w{n}w");
                let at = rest.find(&word);
                let at = at.unwrap_or_else(|| panic!("{word} is lost\n{html}\n{told}"));
                rest = &rest[at + word.len()..];
            }
            assert!(told.len() < 200 * count, "{html}");
        }
    }

    /// What would be quadratic, or deeper than a stack, in a tree: there this test would not end.
    #[test]
    fn a_hostile_page_takes_no_more_than_its_size() {
        let count = 50_000;
        let many = |piece: &str| piece.repeat(count);
        let fonts: String = (0..count)
            .map(|n| format!("<p><font a{n}><b><a href=x>"))
            .collect();
        let rows = format!("<table>{}", many("<tr><td>"));
        for html in [
            many("<div>"),
            many("<b>"),
            many("<ul><li>"),
            many("<blockquote>x"),
            many("<pre>"),
            many("<a href=x>y"),
            many("<table><tr><td>"),
            many("<select>"),
            many("<!--"),
            many("&"),
            many("<"),
            rows,
            fonts,
        ] {
            let at = Address::parse("https://a.example/").unwrap();
            let told = page(&html, &at, 240_000);
            assert!(told.markdown.len() < 250_000, "{}", &html[..20]);
        }
    }
}
