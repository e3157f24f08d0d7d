//! The connection to a provider: one at a time, kept for the next request.
//! Must not follow a redirect, or put a limit on a whole answer: a model may think for long. Silence
//! has a limit.

use std::time::Duration;

use dispatch_core::native::Fault;
use hyper::{Method, Request, Response, Uri, body::Incoming, header::HOST};
use tokio::time::timeout;

use super::{ModelError, body::Pieces};
use crate::net::{Connection, Connector, Guard, Host, NetError, NetFault, host_header, path_of};

impl From<NetError> for ModelError {
    fn from(error: NetError) -> Self {
        let fault = match error.fault {
            NetFault::Request | NetFault::Refused => Fault::BadRequest,
            NetFault::Network => Fault::Network,
            NetFault::Timeout => Fault::Timeout,
            NetFault::Answer => Fault::Protocol,
            NetFault::Key => Fault::Key,
        };
        Self::new(fault, error.message)
    }
}

#[derive(Debug)]
pub(crate) struct Http {
    connector: Connector,
    kept: Option<Connection<Pieces>>,
    head_limit: Duration,
}

impl Http {
    pub(crate) fn new(connector: Connector, head_limit: Duration) -> Self {
        Self {
            connector,
            kept: None,
            head_limit,
        }
    }

    /// The head of the answer; its body comes as it comes.
    pub(crate) async fn post(
        &mut self,
        uri: &Uri,
        mut request: Request<Pieces>,
    ) -> Result<Response<Incoming>, ModelError> {
        let host = Host::of(uri)?;
        request.headers_mut().insert(HOST, host_header(uri)?);
        *request.method_mut() = Method::POST;
        *request.uri_mut() = path_of(uri)?;
        let mut connection = self.connection(host).await?;
        let sent = timeout(self.head_limit, connection.sender.send_request(request)).await;
        let response = sent.map_err(|_| NetError::timed_out("no answer began"))?;
        let response =
            response.map_err(|error| NetError::unreachable("read the answer", &error))?;
        self.kept = Some(connection);
        Ok(response)
    }

    /// What is not to be used again: an answer that was not read to its end.
    pub(crate) fn forget(&mut self) {
        self.kept = None;
    }

    async fn connection(&mut self, host: Host) -> Result<Connection<Pieces>, ModelError> {
        if let Some(mut kept) = self.kept.take()
            && kept.host == host
            && !kept.sender.is_closed()
            && kept.sender.ready().await.is_ok()
        {
            return Ok(kept);
        }
        Ok(self.connector.connect(host, Guard::Open).await?)
    }
}
