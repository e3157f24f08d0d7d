//! Asking again, where an engine went away or is still at it: one way for the command line and for MCP.
//! Must not send again what may have been carried out, unless a key makes the two one.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::ClientError;

/// From the first try to giving up, while an engine is away: it may be starting again.
const AWAY_MAX: Duration = Duration::from_secs(30);
/// The same while an engine answers the first try: what it does may take long.
const AT_WORK_MAX: Duration = Duration::from_secs(600);
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// What a second try could do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Twice {
    /// No harm: the request has a key, or changes nothing.
    Safe,
    /// Harm, unless the first one was not carried out.
    Unsafe,
    /// No good: whoever is asked is in this process, and no other comes.
    Useless,
}

/// How long one request has been tried.
#[derive(Debug)]
pub(crate) struct Patience {
    twice: Twice,
    began: Instant,
    pause: Duration,
}

impl Patience {
    pub(crate) fn new(twice: Twice) -> Self {
        Self {
            twice,
            began: Instant::now(),
            pause: PAUSE_FIRST,
        }
    }

    /// Returns when it is time to ask again.
    ///
    /// # Errors
    /// The error itself, where asking again would do harm, or no good.
    pub(crate) async fn again(&mut self, error: ClientError) -> Result<(), ClientError> {
        let pause = self.pause_after(error, Instant::now())?;
        sleep(pause).await;
        Ok(())
    }

    fn pause_after(&mut self, error: ClientError, now: Instant) -> Result<Duration, ClientError> {
        let pause = self.pause;
        let took = now.saturating_duration_since(self.began) + pause;
        if self.most(&error).is_none_or(|most| took > most) {
            return Err(error);
        }
        self.pause = (pause * 2).min(PAUSE_MAX);
        Ok(pause)
    }

    fn most(&self, error: &ClientError) -> Option<Duration> {
        match (self.twice, error) {
            (Twice::Useless, _) | (_, ClientError::Token(_)) => None,
            // The first try is still being carried out, whatever became of its answer.
            (_, ClientError::Refused(problem)) if problem.code == "key_in_use" => Some(AT_WORK_MAX),
            (Twice::Safe, ClientError::Lost(_)) => Some(AWAY_MAX),
            (_, error) => error.nothing_happened().then_some(AWAY_MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Problem;

    fn refused(code: &str) -> ClientError {
        ClientError::Refused(Problem {
            status: 409,
            code: code.into(),
            detail: "x".into(),
            task: None,
        })
    }

    fn lost() -> ClientError {
        ClientError::Lost("it broke off".into())
    }

    /// How long one has patience with this error.
    fn patience(twice: Twice, error: fn() -> ClientError) -> Duration {
        let mut patience = Patience::new(twice);
        let mut now = patience.began;
        while let Ok(pause) = patience.pause_after(error(), now) {
            now += pause;
        }
        now - patience.began
    }

    #[test]
    fn what_came_of_a_request_under_a_key_is_asked_for_until_it_is_told() {
        let near = |took: Duration, most: Duration| took <= most && most - took <= PAUSE_MAX;
        for twice in [Twice::Safe, Twice::Unsafe] {
            let in_use = patience(twice, || refused("key_in_use"));
            assert!(near(in_use, AT_WORK_MAX), "{in_use:?}");
            let gone = patience(twice, || refused("engine_gone"));
            assert!(near(gone, AWAY_MAX), "{gone:?}");
            for end in ["wrong_state", "done_unseen", "failed"] {
                let mut patience = Patience::new(twice);
                let now = patience.began;
                assert!(patience.pause_after(refused(end), now).is_err(), "{end}");
            }
        }
        let safe = patience(Twice::Safe, lost);
        assert!(near(safe, AWAY_MAX), "{safe:?}");
        // It may have been carried out.
        assert_eq!(patience(Twice::Unsafe, lost), Duration::ZERO);
        let useless = patience(Twice::Useless, || refused("engine_gone"));
        assert_eq!(useless, Duration::ZERO);
    }
}
