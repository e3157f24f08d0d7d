//! What the fold knows of a run.
//! Must not change but by `State::apply`.

use crate::{
    Millis,
    drivers::DriverKind,
    event::{CheckState, PromptMade, Sealed, Verified},
    id::{CheckName, Seq, SiteName},
    job::{Exit, ExitReport},
    message::Chain,
    review::{Range, Review},
    run::{RunCause, RunState},
    update::Usage,
};

#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    pub n: u32,
    pub cause: RunCause,
    /// To which it belongs: that of what started it, or of what it has heard since.
    pub chain: Chain,
    pub state: RunState,
    pub queued_seq: Seq,
    pub queued_at: Millis,
    pub prompt: Option<PromptMade>,
    pub site: Option<SiteName>,
    pub driver: Option<DriverKind>,
    pub enforced: Option<String>,
    pub started_at: Option<Millis>,
    pub ended_at: Option<Millis>,
    pub session: Option<String>,
    pub report: Option<ExitReport>,
    pub usage: Option<Usage>,
    pub sealed: Option<Sealed>,
    pub checks: Vec<Check>,
    pub verified: Verified,
    /// The commits under review.
    pub range: Option<Range>,
    pub review: Option<Review>,
    /// Its end was not its task's: that waited for what it had asked for.
    pub parked: bool,
}

impl Run {
    /// Whether its agent can be at work: started or about to be, and not seen to have ended.
    #[must_use]
    pub fn may_knock(&self) -> bool {
        match self.state {
            RunState::Preparing | RunState::Running | RunState::Stopping { .. } => {
                self.report.is_none()
            }
            RunState::Queued | RunState::Checking | RunState::Finished(_) => false,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Check {
    pub name: CheckName,
    pub state: CheckState,
    pub exit: Option<Exit>,
    pub note: String,
}
