//! All tasks, page by page. Must not hold a page back until the last one is there: it is one list.

use hyper::{Method, header::HeaderMap};

use super::{Client, ClientError, collect, decode};
use crate::api::task::Task;

/// So many pages of the most that one has are more tasks than fit into memory.
const PAGES_MAX: usize = 10_000;

impl Client {
    /// Every task, the oldest first, and a position of the log up to which nothing is missing.
    pub(crate) async fn tasks(&self) -> Result<(Vec<Task>, u64), ClientError> {
        let (mut all, mut seq, mut path) = (Vec::new(), None, "/v1/tasks".to_owned());
        for _ in 0..PAGES_MAX {
            let response = self.send(Method::GET, &path, Vec::new()).await?;
            let at = number(response.headers(), "dispatch-seq");
            let next = text(response.headers(), "dispatch-next").map(str::to_owned);
            let page: Vec<Task> = decode(&collect(response).await?)?;
            all.extend(page);
            // Later pages are younger: what happened meanwhile is heard again.
            seq = seq.or(at);
            match next {
                Some(next) => path = format!("/v1/tasks?after={next}"),
                None => return Ok((all, seq.unwrap_or(0))),
            }
        }
        Err(ClientError::Lost("the list of tasks does not end".into()))
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    text(headers, name)?.parse().ok()
}
