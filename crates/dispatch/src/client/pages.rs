//! Tasks, page by page. Must not hold a page back until the last one is there: it is one list.

use axum::body::Body;
use hyper::{Method, Response};

use super::{Asked, Client, ClientError, collect, decode, header};
use crate::{
    api::task::Task,
    http::reads::{NEXT, SEQ},
};

/// So many pages of the most that one has are more tasks than fit into memory.
const PAGES_MAX: usize = 10_000;

/// Tasks of one page.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) tasks: Vec<Task>,
    /// The one that the next page begins behind, if there is one.
    pub(crate) next: Option<String>,
    /// The position of the log that it is true at.
    pub(crate) seq: u64,
}

impl Client {
    /// Every task, the oldest first, and a position of the log up to which nothing is missing.
    pub(crate) async fn tasks(&self) -> Result<(Vec<Task>, u64), ClientError> {
        let (mut all, mut seq, mut path) = (Vec::new(), None, "/v1/tasks".to_owned());
        for _ in 0..PAGES_MAX {
            let page = self.page(&path).await?;
            all.extend(page.tasks);
            // Later pages are younger: what happened meanwhile is heard again.
            seq = seq.or(Some(page.seq));
            match page.next {
                Some(next) => path = format!("/v1/tasks?after={next}"),
                None => return Ok((all, seq.unwrap_or(0))),
            }
        }
        Err(ClientError::Lost("the list of tasks does not end".into()))
    }

    /// Where the log ends now. Whoever is let in at all may ask.
    pub(crate) async fn position(&self) -> Result<u64, ClientError> {
        let response = self.send(Asked::new(Method::GET, "/v1/door")).await?;
        seq_of(&response)
    }

    pub(crate) async fn page(&self, path: &str) -> Result<Page, ClientError> {
        let response = self.send(Asked::new(Method::GET, path)).await?;
        let next = header(&response, &NEXT).map(str::to_owned);
        let seq = seq_of(&response)?;
        Ok(Page {
            seq,
            tasks: decode(&collect(response).await?)?,
            next,
        })
    }
}

fn seq_of(response: &Response<Body>) -> Result<u64, ClientError> {
    let seq = header(response, &SEQ).and_then(|seq| seq.parse().ok());
    let missing = || ClientError::Lost("it does not say what position of the log it is at".into());
    seq.ok_or_else(missing)
}
