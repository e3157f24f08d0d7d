//! Files that a model is shown, as parts of a request: their bytes are read when a request is written,
//! and checked to be those that were handed over.
//! Must not fail a request for one of them: a file that is gone is told in words, and so is one that
//! the model does not take.

use std::{
    fs::File,
    io::{self, Read},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use dispatch_core::{attach::Media, hex, models::ModelRow, native::Handed};
use sha2::{Digest as _, Sha256};

/// A piece of what was said, before its words.
#[derive(Debug)]
pub(super) enum Part {
    Words(String),
    File {
        media: Media,
        name: String,
        /// In base64.
        data: String,
    },
}

/// Each of them with its path before it, by which it is spoken of; nothing of those that are told of in
/// the words.
pub(super) async fn parts(files: &[Handed], row: &ModelRow) -> Vec<Part> {
    let mut parts = Vec::new();
    for file in files {
        let Some(media) = file.shown else {
            continue;
        };
        let path = file.path.display();
        let why = if row.takes(media.kind()) {
            match data(file).await {
                Ok(data) => {
                    parts.push(Part::Words(format!("[Attached: {path}]")));
                    let name = file.path.file_name().unwrap_or_default();
                    parts.push(Part::File {
                        media,
                        name: name.to_string_lossy().into_owned(),
                        data,
                    });
                    continue;
                }
                Err(error) => format!("it cannot be shown any more: {error}"),
            }
        } else {
            "you cannot be shown it as it is; read it as a file, as far as your tools can"
                .to_owned()
        };
        let media = media.word();
        parts.push(Part::Words(format!("[Attached: {path} ({media}); {why}]")));
    }
    parts
}

async fn data(file: &Handed) -> io::Result<String> {
    let file = file.clone();
    let read = tokio::task::spawn_blocking(move || read(&file));
    read.await.map_err(io::Error::other)?
}

fn read(file: &Handed) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(&file.path)?
        .take(file.bytes.saturating_add(1))
        .read_to_end(&mut bytes)?;
    if hex::hex(&Sha256::digest(&bytes)) != file.sha256 {
        return Err(io::Error::other(
            "it is not what it was when it was attached",
        ));
    }
    Ok(STANDARD.encode(bytes))
}
