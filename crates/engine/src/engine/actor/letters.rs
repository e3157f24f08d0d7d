//! Letters that agents leave for each other, as the actor keeps them; what they are is in
//! `crate::letters`.
//! Must not wake anybody.

use dispatch_core::{
    event::{Kind, Subject},
    letter::{Letter, Written},
    message::Sender,
};

use super::Actor;
use crate::{
    letters::{self, Post},
    view::{Inbox, VerbError},
};

impl Actor {
    pub(super) fn post(&mut self, post: Post) {
        match post {
            Post::Send {
                workspace,
                written,
                reply,
            } => {
                let sent = self.send_letter(&workspace, written);
                self.reply_later(reply, sent);
            }
            Post::Fetch {
                workspace,
                reader,
                limit,
                reply,
            } => {
                let inbox = self.fetch_letters(&workspace, &reader, limit);
                self.reply_later(reply, inbox);
            }
            Post::Between {
                workspace,
                names,
                limit,
                reply,
            } => {
                let found = letters::between(&self.state, &workspace, &names, limit);
                self.reply_later(reply, found);
            }
        }
    }

    fn send_letter(&mut self, workspace: &str, written: Written) -> Result<Letter, VerbError> {
        let config = &self.ctx.settings.config;
        let (task, letter) = letters::address(&self.state, config, workspace, &written)?;
        let sent = Kind::LetterSent {
            letter,
            written,
            // Who signs is what the letter says; who may send is a person's to say.
            from: Sender::Person,
        };
        self.put(Subject::Task(task), sent);
        // As it was kept, with what was masked in it.
        let kept = self.state.letterbox(workspace);
        let kept = kept.and_then(|post| post.letters().find(|kept| kept.id == letter));
        kept.cloned().ok_or_else(|| VerbError::BadInput {
            what: "send a letter: it could not be kept; see the log's last note".to_owned(),
        })
    }

    fn fetch_letters(
        &mut self,
        workspace: &str,
        reader: &str,
        limit: usize,
    ) -> Result<Inbox, VerbError> {
        let (subject, read, handed) = letters::fetched(&self.state, workspace, reader, limit)?;
        let new = match &read {
            Some(Kind::LettersRead { letters }) => letters.len(),
            Some(_) | None => 0,
        };
        if let Some(read) = read {
            self.put(subject, read);
        }
        Ok(letters::inbox(&self.state, workspace, reader, &handed, new))
    }
}
