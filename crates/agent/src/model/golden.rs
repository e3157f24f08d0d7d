//! What is made of answers as providers stream them. Each `recordings/WIRE-NAME.sse` is one, written
//! by hand in the shape that the provider documents and sends; beside it lies what it must come to:
//! what is heard, and how the answer is sent back in each wire format.
//! Must not be edited to fit: after a change that was meant, take the new texts out of the failing
//! test and read the diff (`awk '/^=== /{f=$2; next} /^===$/{f=""} f{print > f}'`).

use std::{fs, path::Path};

use dispatch_core::{
    models::Wire,
    native::{Block, Chunk, Line, StepId},
};

use super::{
    Entry, Heard, ModelError, Origin, decoder, segment,
    sse::{self},
};
use crate::random::Random;

fn wire(name: &str) -> Wire {
    let word = name.split('-').next().unwrap();
    *Wire::ALL.iter().find(|wire| wire.word() == word).unwrap()
}

fn hear(wire: Wire, pieces: &[&[u8]]) -> (Vec<Heard>, Option<ModelError>) {
    let mut events = sse::Decoder::default();
    let mut decode = decoder(wire, "made".into());
    let mut all = Vec::new();
    let mut run = || -> Result<(), ModelError> {
        for piece in pieces {
            for event in events.push(piece)? {
                all.extend(decode.hear(&event)?);
            }
        }
        if let Some(event) = events.finish()? {
            all.extend(decode.hear(&event)?);
        }
        all.extend(decode.finish()?);
        Ok(())
    };
    let error = run().err();
    (all, error)
}

fn origin(wire: Wire) -> Origin {
    Origin {
        key: "k".parse().unwrap(),
        wire,
    }
}

fn sent_back(from: Wire, to: Wire, blocks: &[Block], cut: bool) -> String {
    let answer = Entry::Answer {
        origin: origin(from),
        blocks: blocks.to_vec(),
        cut,
    };
    match segment(&origin(to), &answer, &[]).unwrap() {
        Some(segment) => String::from_utf8(segment.bytes.to_vec()).unwrap(),
        None => "nothing".into(),
    }
}

fn closed(heard: &[Heard]) -> Vec<Block> {
    let blocks = heard.iter().filter_map(|heard| match heard {
        Heard::Closed(block) => Some(block.clone()),
        _ => None,
    });
    blocks.collect()
}

fn shown(wire: Wire, heard: &[Heard], error: Option<&ModelError>) -> String {
    let mut lines = Vec::new();
    for heard in heard {
        lines.push(match heard {
            Heard::Text(text) => format!("text {text:?}"),
            Heard::Thinking(text) => format!("thinking {text:?}"),
            Heard::Closed(block) => format!("closed {}", serde_json::to_string(block).unwrap()),
            Heard::Tokens(tokens) => format!("tokens {}", serde_json::to_string(tokens).unwrap()),
            Heard::Ended(end) => format!("ended {end:?}"),
        });
    }
    if let Some(error) = error {
        lines.push(format!("error {error}"));
    }
    let blocks = closed(heard);
    for to in Wire::ALL {
        let sent = sent_back(wire, to, &blocks, error.is_some());
        lines.push(format!("to {} {sent}", to.word()));
    }
    lines.join("\n") + "\n"
}

fn recordings() -> Vec<(String, Vec<u8>, String)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/model/recordings");
    let mut found = Vec::new();
    for entry in fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|ext| ext == "sse") {
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            let expected = fs::read_to_string(path.with_extension("out")).unwrap_or_default();
            found.push((name, fs::read(&path).unwrap(), expected));
        }
    }
    found.sort();
    assert!(found.len() >= 15, "{found:?}");
    found
}

#[test]
fn answers_come_to_what_is_written_beside_them() {
    let mut wrong = Vec::new();
    for (name, stream, expected) in recordings() {
        let wire = wire(&name);
        let (heard, error) = hear(wire, &[&stream]);
        let shown = shown(wire, &heard, error.as_ref());
        if shown != expected {
            wrong.push(format!("=== {name}.out\n{shown}==="));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn where_an_answer_is_cut_into_pieces_does_not_matter() {
    let mut random = Random::new(11);
    for (name, stream, _) in recordings() {
        let whole = hear(wire(&name), &[&stream]);
        for _ in 0..40 {
            let pieces = random.pieces(&stream);
            assert_eq!(hear(wire(&name), &pieces), whole, "{name}");
        }
    }
}

/// An answer that ends anywhere is an error or has been heard to its end, and what was closed before
/// is the beginning of what would have been closed.
#[test]
fn an_answer_that_breaks_off_anywhere_is_told_and_loses_nothing_closed() {
    for (name, stream, _) in recordings() {
        let wire = wire(&name);
        let whole = closed(&hear(wire, &[&stream]).0);
        for end in 0..stream.len() {
            let (heard, error) = hear(wire, &[&stream[..end]]);
            let ended = heard.iter().any(|heard| matches!(heard, Heard::Ended(_)));
            assert_eq!(ended, error.is_none(), "{name} at {end}");
            let closed = closed(&heard);
            if ended && wire == Wire::Chat {
                // There the end of the stream closes what is open, and a count may still miss.
                continue;
            }
            assert_eq!(closed[..], whole[..closed.len()], "{name} at {end}");
        }
    }
}

/// Bytes that are wrong in some place are an error or another answer, never a panic.
#[test]
fn a_broken_answer_is_only_an_error() {
    let mut random = Random::new(5);
    for (name, stream, _) in recordings() {
        for _ in 0..300 {
            let mut broken = stream.clone();
            for _ in 0..1 + random.below(4) {
                let at = random.below(broken.len());
                match random.below(3) {
                    _ if broken.is_empty() => {}
                    0 => broken[at] = b"{}[]\",:0\n"[random.below(9)],
                    1 => drop(broken.drain(at..(at + random.below(60)).min(broken.len()))),
                    _ => broken.truncate(at.max(1)),
                }
            }
            let (heard, error) = hear(wire(&name), &[&broken]);
            assert!(!heard.is_empty() || error.is_some(), "{name}");
        }
    }
}

/// A line in the output and back: what is sent after a restart has the bytes of before.
#[test]
fn what_was_recorded_is_sent_back_byte_for_byte() {
    for (name, stream, _) in recordings() {
        let wire = wire(&name);
        let (heard, error) = hear(wire, &[&stream]);
        let blocks = closed(&heard);
        let read_back = blocks.iter().map(|block| {
            let line = Line {
                n: 1,
                step: StepId::default(),
                chunk: Chunk::Block(block.clone()),
            };
            let text = serde_json::to_string(&line).unwrap();
            match serde_json::from_str::<Line>(&text).unwrap().chunk {
                Chunk::Block(block) => block,
                other => panic!("{other:?}"),
            }
        });
        let read_back: Vec<Block> = read_back.collect();
        assert_eq!(read_back, blocks, "{name}");
        for to in Wire::ALL {
            let cut = error.is_some();
            let before = sent_back(wire, to, &blocks, cut);
            assert_eq!(sent_back(wire, to, &read_back, cut), before, "{name}");
        }
    }
}
