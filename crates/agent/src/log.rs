//! The record and the conversation that follows from it, always together.
//! Must not let the one say what the other does not.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
};

use dispatch_core::native::{Chunk, Line, Live, StepId};

use crate::{
    conversation::Conversation,
    record::{Record, RecordError},
};

/// Of an earlier run's output.
const LINE_BYTES_MAX: u64 = 64 << 20;

#[derive(Debug)]
pub(crate) struct Log {
    record: Record,
    pub(crate) conversation: Conversation,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ResumeError {
    #[error("read the earlier run's record {}: {source}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("read the earlier run's record {}, line {line}: {source}", path.display())]
    Line {
        path: PathBuf,
        line: u64,
        #[source]
        source: serde_json::Error,
    },
}

impl Log {
    pub(crate) fn new(record: Record, conversation: Conversation) -> Self {
        Self {
            record,
            conversation,
        }
    }

    pub(crate) async fn put(&mut self, step: StepId, chunk: Chunk) -> Result<(), RecordError> {
        self.record.put(step, &chunk).await?;
        self.conversation.apply(step, &chunk);
        Ok(())
    }

    /// The same, and taken by whoever keeps our output: before something is done that cannot be
    /// undone.
    pub(crate) async fn put_first(
        &mut self,
        step: StepId,
        chunk: Chunk,
    ) -> Result<(), RecordError> {
        self.record.put_and_wait(step, &chunk).await?;
        self.conversation.apply(step, &chunk);
        Ok(())
    }

    /// For lines that no conversation is made of.
    pub(crate) fn aside(&self) -> Record {
        self.record.clone()
    }

    pub(crate) fn show(&mut self, live: Live) -> Result<(), RecordError> {
        self.record.show(self.conversation.step(), live)
    }
}

/// What earlier runs wrote, one after the other. A last line that was cut is none; a line that is no
/// JSON was not ours (a library's warning, a panic); one that is JSON and not understood is an error,
/// because what follows would be another conversation.
pub(crate) fn resume(paths: &[PathBuf]) -> Result<Conversation, ResumeError> {
    let mut conversation = Conversation::default();
    for path in paths {
        read(path, &mut conversation)?;
    }
    conversation.outs.begin_anew();
    Ok(conversation)
}

fn read(path: &Path, into: &mut Conversation) -> Result<(), ResumeError> {
    let failed = |source| ResumeError::Read {
        path: path.to_owned(),
        source,
    };
    let mut input = BufReader::with_capacity(256 << 10, File::open(path).map_err(failed)?);
    let mut bytes = Vec::new();
    for number in 1.. {
        bytes.clear();
        let limited = (&mut input).take(LINE_BYTES_MAX);
        let n = { limited }.read_until(b'\n', &mut bytes).map_err(failed)?;
        if n == 0 || bytes.last() != Some(&b'\n') {
            break;
        }
        match serde_json::from_slice::<Line>(&bytes) {
            Ok(line) => into.apply(line.step, &line.chunk),
            Err(error) if error.is_data() => {
                return Err(ResumeError::Line {
                    path: path.to_owned(),
                    line: number,
                    source: error,
                });
            }
            Err(_) => {}
        }
    }
    Ok(())
}
