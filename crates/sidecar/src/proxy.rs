//! The proxy: CONNECT to a listed host, resolved here, connected to exactly the address that was
//! looked at. It sees names and ports; what goes through is between the agent and the host.
//! Must not speak anything but CONNECT, and must not resolve a name twice.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use dispatch_core::network::{AllowList, Host, HostName, Refused, Target};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, lookup_host},
    time::timeout,
};

use crate::{
    refusals::Refusals,
    tunnel::{self, carry},
};

const HEAD_BYTES_MAX: usize = 8 << 10;
/// From a connection's begin to the end of its request's head.
const HEAD: Duration = Duration::from_secs(10);
const RESOLVE: Duration = Duration::from_secs(10);
/// To each address.
const CONNECT: Duration = Duration::from_secs(10);
/// Of a name; more are not tried.
const ADDRESSES_MAX: usize = 8;
/// For an answer to a client that does not read.
const ANSWER: Duration = Duration::from_secs(10);
const TUNNEL_OPEN: &[u8] = b"HTTP/1.1 200 Connection established\r\n\r\n";

pub(crate) struct Proxy {
    list: AllowList,
    refusals: Arc<Refusals>,
}

/// What a client's first line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    Connect(Result<Target, Refused>),
    /// A method of plain HTTP, and what it was for.
    Other(String),
    Nonsense,
}

impl Asked {
    /// Of a whole head, its last empty line included.
    pub(crate) fn parse(head: &[u8]) -> Self {
        let line = head.split(|b| *b == b'\r').next().unwrap_or_default();
        let Ok(line) = std::str::from_utf8(line) else {
            return Self::Nonsense;
        };
        let mut words = line.split(' ');
        let parts = (words.next(), words.next(), words.next(), words.next());
        let (Some(method), Some(target), Some("HTTP/1.1" | "HTTP/1.0"), None) = parts else {
            return Self::Nonsense;
        };
        if method.is_empty() || !method.bytes().all(|b| b.is_ascii_alphabetic() || b == b'-') {
            return Self::Nonsense;
        }
        if method == "CONNECT" {
            return Self::Connect(target.parse());
        }
        Self::Other(target.to_owned())
    }
}

/// How an exchange ends that becomes no tunnel.
struct Answer {
    status: &'static str,
    text: String,
}

impl Proxy {
    pub(crate) fn new(list: AllowList, refusals: Arc<Refusals>) -> Self {
        Self { list, refusals }
    }

    pub(crate) async fn serve(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin) {
        let (head, rest) = match timeout(HEAD, read_head(&mut stream)).await {
            Ok(Ok(Some(head))) => head,
            Ok(Ok(None)) => {
                let text = format!("a request's head has {HEAD_BYTES_MAX} bytes at most");
                let status = "431 Request Header Fields Too Large";
                return answer(&mut stream, &Answer { status, text }).await;
            }
            // Nobody is there who could be told.
            Ok(Err(_)) | Err(_) => return,
        };
        let mut remote = match self.open(&head).await {
            Ok(remote) => remote,
            Err(refused) => return answer(&mut stream, &refused).await,
        };
        let opened = async {
            stream.write_all(TUNNEL_OPEN).await?;
            remote.write_all(&rest).await
        };
        if let Ok(Ok(())) = timeout(ANSWER, opened).await {
            carry(stream, remote, tunnel::IDLE).await;
        }
    }

    async fn open(&self, head: &[u8]) -> Result<TcpStream, Answer> {
        let target = match Asked::parse(head) {
            Asked::Connect(Ok(target)) => target,
            Asked::Connect(Err(why)) => return Err(self.refused("an unreadable target", why)),
            Asked::Other(what) => {
                self.refusals
                    .refuse(&what, &"plain HTTP, only CONNECT is let through");
                return Err(Answer {
                    status: "403 Forbidden",
                    text:
                        "this sandbox reaches the network by CONNECT only: use https, or ask for \
                           the host to be reached some other way"
                            .into(),
                });
            }
            Asked::Nonsense => {
                return Err(Answer {
                    status: "400 Bad Request",
                    text: "that is no request of HTTP/1.1".into(),
                });
            }
        };
        let refused = |why| self.refused(&target.to_string(), why);
        self.list.target(&target).map_err(refused)?;
        let addresses = match &target.host {
            Host::Address(address) => vec![*address],
            Host::Name(name) => {
                let found = resolve(name, target.port).await?;
                // One that is not public among public ones is a trick, so it spoils all of them.
                for address in &found {
                    let good = self.list.resolved(*address, target.port);
                    good.map_err(refused)?;
                }
                found
            }
        };
        connect(&target, &addresses).await
    }

    fn refused(&self, what: &str, why: Refused) -> Answer {
        self.refusals.refuse(what, &why);
        Answer {
            status: "403 Forbidden",
            text: format!(
                "{what} is not let through: {why}; the placement's list of allowed hosts decides"
            ),
        }
    }
}

/// The head, and what came behind it; `None`: it is too long.
async fn read_head(
    stream: &mut (impl AsyncRead + Unpin),
) -> io::Result<Option<(Vec<u8>, Vec<u8>)>> {
    let mut head = Vec::new();
    loop {
        let begin = head.len();
        let room = (HEAD_BYTES_MAX - begin) as u64;
        if room == 0 {
            return Ok(None);
        }
        if (&mut *stream).take(room).read_buf(&mut head).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let from = begin.saturating_sub(3);
        let end = head[from..].windows(4).position(|four| four == b"\r\n\r\n");
        if let Some(end) = end {
            let rest = head.split_off(from + end + 4);
            return Ok(Some((head, rest)));
        }
    }
}

async fn resolve(name: &HostName, port: u16) -> Result<Vec<IpAddr>, Answer> {
    let failed = |why: String| Answer {
        status: "502 Bad Gateway",
        text: format!("resolve {}: {why}", name.as_str()),
    };
    let found = match timeout(RESOLVE, lookup_host((name.as_str(), port))).await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => return Err(failed(error.to_string())),
        Err(_) => return Err(failed("no answer in time".into())),
    };
    let mut addresses: Vec<IpAddr> = found.map(|found| found.ip()).collect();
    addresses.dedup();
    if addresses.is_empty() {
        return Err(failed("it has no address".into()));
    }
    Ok(addresses)
}

async fn connect(target: &Target, addresses: &[IpAddr]) -> Result<TcpStream, Answer> {
    let mut why = String::new();
    for address in addresses.iter().take(ADDRESSES_MAX) {
        let to = SocketAddr::new(*address, target.port);
        match timeout(CONNECT, TcpStream::connect(to)).await {
            Ok(Ok(stream)) => match stream.set_nodelay(true) {
                Ok(()) => return Ok(stream),
                Err(error) => why = error.to_string(),
            },
            Ok(Err(error)) => why = error.to_string(),
            Err(_) => why = "no answer in time".into(),
        }
    }
    Err(Answer {
        status: "502 Bad Gateway",
        text: format!("connect to {target}: {why}"),
    })
}

async fn answer(stream: &mut (impl AsyncWrite + Unpin), answer: &Answer) {
    let body = format!("dispatch: {}\n", answer.text);
    let text = format!(
        "HTTP/1.1 {}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        answer.status,
        body.len()
    );
    let told = async {
        stream.write_all(text.as_bytes()).await?;
        stream.shutdown().await
    };
    match timeout(ANSWER, told).await {
        // The client is gone, or does not read what it asked for.
        Ok(Ok(()) | Err(_)) | Err(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy(entries: &[&str]) -> Proxy {
        let texts: Vec<String> = entries.iter().map(|e| (*e).to_owned()).collect();
        let refusals = Arc::new(Refusals::new(io::sink()));
        Proxy::new(texts.try_into().unwrap(), refusals)
    }

    async fn ask(proxy: &Proxy, request: &[u8]) -> String {
        let (mut client, server) = tokio::io::duplex(64 << 10);
        let asking = async {
            client.write_all(request).await.unwrap();
            client.shutdown().await.unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            answer
        };
        tokio::join!(proxy.serve(server), asking).1
    }

    #[test]
    fn only_connect_is_a_target() {
        let good = Asked::parse(b"CONNECT a.test:443 HTTP/1.1\r\nHost: b.test\r\n\r\n");
        assert_eq!(good, Asked::Connect("a.test:443".parse()));
        let other = Asked::parse(b"GET http://a.test/ HTTP/1.1\r\n\r\n");
        assert_eq!(other, Asked::Other("http://a.test/".into()));
        for nonsense in [
            &b"\r\n\r\n"[..],
            b"CONNECT a.test:443\r\n\r\n",
            b"CONNECT  a.test:443 HTTP/1.1\r\n\r\n",
            b"CONNECT a.test:443 HTTP/2.0\r\n\r\n",
            b"CONNECT a.test:443 HTTP/1.1 x\r\n\r\n",
            b"\x16\x03\x01\x02\r\n\r\n",
            b"C\xffNNECT a.test:443 HTTP/1.1\r\n\r\n",
        ] {
            assert_eq!(Asked::parse(nonsense), Asked::Nonsense);
        }
        let lower = Asked::parse(b"connect a.test:443 HTTP/1.1\r\n\r\n");
        assert_eq!(lower, Asked::Other("a.test:443".into()));
    }

    #[tokio::test]
    async fn what_is_not_let_through_is_told_why() {
        let proxy = proxy(&["localhost:1", "a.test"]);
        for (request, status, why) in [
            ("CONNECT evil.test:443 HTTP/1.1", "403", "not in the list"),
            ("CONNECT 127.0.0.1:1 HTTP/1.1", "403", "an address, and not"),
            (
                "CONNECT [::ffff:127.0.0.1]:1 HTTP/1.1",
                "403",
                "an address, and not",
            ),
            ("CONNECT localhost:1 HTTP/1.1", "403", "which is not public"),
            (
                "CONNECT 127.1:443 HTTP/1.1",
                "403",
                "no host name with a port",
            ),
            ("GET http://a.test/ HTTP/1.1", "403", "by CONNECT only"),
            ("nonsense", "400", "no request"),
        ] {
            let answer = ask(&proxy, format!("{request}\r\nHost: x\r\n\r\n").as_bytes()).await;
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status} ")),
                "{request}: {answer}"
            );
            assert!(answer.contains(why), "{request}: {answer}");
        }
        let long = [
            b"CONNECT a.test:443 HTTP/1.1\r\nX: ".as_slice(),
            &[b'x'; HEAD_BYTES_MAX],
        ]
        .concat();
        assert!(ask(&proxy, &long).await.contains("bytes at most"));
    }

    #[tokio::test]
    async fn a_listed_host_is_reached_and_early_bytes_are_not_lost() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let entries = ["localhost", "127.0.0.1", "[::1]"].map(|host| format!("{host}:{port}"));
        let proxy = proxy(&entries.each_ref().map(String::as_str));
        for host in ["localhost", "127.0.0.1"] {
            let request = format!("CONNECT {host}:{port} HTTP/1.1\r\n\r\nearly");
            let serve = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut asked = String::new();
                stream.read_to_string(&mut asked).await.unwrap();
                stream.write_all(b"answer").await.unwrap();
                asked
            };
            let (asked, answer) = tokio::join!(serve, ask(&proxy, request.as_bytes()));
            assert_eq!(asked, "early");
            assert_eq!(answer, "HTTP/1.1 200 Connection established\r\n\r\nanswer");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_says_nothing_is_not_waited_for() {
        let (_client, server) = tokio::io::duplex(64);
        proxy(&["a.test"]).serve(server).await;
    }
}
