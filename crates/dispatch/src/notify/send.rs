//! One try to deliver one notice: a program, or a POST. Must not try twice, must not follow a
//! redirect (it would take the token along), and must not word a secret: a URL may be one.

use std::{
    error::Error as _,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use dispatch_core::{
    causes::chain,
    config::EnvValue,
    hex::hex,
    id::HookName,
    notify::{Hook, Way, check_url},
    redact::Redactor,
    secret::Secret,
};
use http_body_util::Full;
use hyper::{
    Request, StatusCode,
    body::Bytes,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, USER_AGENT},
};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use ring::hmac;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{io::AsyncWriteExt, process::Command, time::timeout};

use crate::{api::notice::Notice, secrets::SecretError, settings::Settings};

const DESKTOP_PROGRAM: &str = "notify-send";
const SIGNATURE: &str = "x-dispatch-signature";
const DELIVERY: &str = "x-dispatch-delivery";

/// Why a try failed; the text goes on from "failed to".
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    #[error("find {program}: install it (Debian, Ubuntu: `apt install libnotify-bin`)")]
    NoDesktop { program: &'static str },
    #[error("run {program}")]
    Run {
        program: String,
        #[source]
        source: std::io::Error,
    },
    #[error("run {program}: it ended with {status}")]
    Ended { program: String, status: ExitStatus },
    #[error("take {what} of the hook")]
    Secret {
        what: &'static str,
        #[source]
        source: SecretError,
    },
    #[error(
        "take {what} of the hook: it is not set in the environment of {who}",
        who = "whoever serves"
    )]
    NoSecret { what: &'static str },
    #[error("use the hook: {0}")]
    Address(String),
    #[error("read the system's certificates (install ca-certificates)")]
    Roots(#[source] std::io::Error),
    /// Worded before it comes here, because an address may be quoted in it.
    #[error("post to the hook: {0}")]
    Post(String),
    #[error("post to the hook: it answered {0}")]
    Status(StatusCode),
    #[error("deliver within {limit_s} s (limits.notify_wall_clock_s)")]
    Slow { limit_s: u64 },
    #[error("go on: the task of the runtime ended")]
    Gone,
}

impl SendError {
    /// Another try would end the same way.
    pub(crate) fn lasts(&self) -> bool {
        match self {
            Self::NoDesktop { .. } | Self::Address(_) => true,
            Self::Status(status) => {
                status.is_redirection()
                    || (status.is_client_error()
                        && !matches!(
                            *status,
                            StatusCode::REQUEST_TIMEOUT
                                | StatusCode::TOO_EARLY
                                | StatusCode::TOO_MANY_REQUESTS
                        ))
            }
            Self::Run { .. }
            | Self::Ended { .. }
            | Self::Secret { .. }
            | Self::NoSecret { .. }
            | Self::Roots(_)
            | Self::Post(_)
            | Self::Slow { .. }
            | Self::Gone => false,
        }
    }
}

/// Delivers notices of one hook.
#[derive(Clone, Debug)]
pub(crate) struct Sender {
    name: HookName,
    hook: Hook,
    settings: Settings,
}

impl Sender {
    pub(crate) fn new(name: HookName, hook: Hook, settings: Settings) -> Self {
        Self {
            name,
            hook,
            settings,
        }
    }

    /// One try, within its time.
    pub(crate) async fn send(&self, notice: &Notice) -> Result<(), SendError> {
        let limit_s = self.settings.config.limits.notify_wall_clock_s;
        match timeout(Duration::from_secs(limit_s), self.deliver(notice)).await {
            Ok(sent) => sent,
            Err(_) => Err(SendError::Slow { limit_s }),
        }
    }

    async fn deliver(&self, notice: &Notice) -> Result<(), SendError> {
        match &self.hook.way {
            Way::Desktop => self.desktop(notice).await,
            Way::Command { argv } => self.command(argv, notice).await,
            Way::Ntfy { url, topic, token } => {
                let base = self.needed("the url", url).await?;
                let token = self.secret("the token", token.as_ref()).await?;
                let target = format!("{}/{topic}", base.expose().trim_end_matches('/'));
                let mut request = Request::post(target)
                    .header(CONTENT_TYPE, "text/plain; charset=utf-8")
                    .header("title", &notice.title)
                    .header("tags", &notice.on);
                if let Some(token) = &token {
                    over_tls(&base)?;
                    request = request.header(AUTHORIZATION, bearer(token)?);
                }
                let known = [Some(&base), token.as_ref()];
                post(request, notice, notice.text.clone().into_bytes(), &known).await
            }
            Way::Webhook { url, secret } => {
                let url = self.needed("the url", url).await?;
                let secret = self.secret("the secret", secret.as_ref()).await?;
                let body = body(notice)?;
                let mut request =
                    Request::post(url.expose()).header(CONTENT_TYPE, "application/json");
                if let Some(secret) = &secret {
                    request = request.header(SIGNATURE, signature(secret, &body));
                }
                let known = [Some(&url), secret.as_ref()];
                post(request, notice, body, &known).await
            }
        }
    }

    async fn desktop(&self, notice: &Notice) -> Result<(), SendError> {
        let program = self
            .settings
            .find(DESKTOP_PROGRAM)
            .ok_or(SendError::NoDesktop {
                program: DESKTOP_PROGRAM,
            })?;
        let args = ["--app-name=dispatch", "--", &notice.title].map(str::to_owned);
        // Many servers read the text as markup.
        let text = notice.text.replace('&', "&amp;").replace('<', "&lt;");
        run(program, args.into_iter().chain([text]), Vec::new()).await
    }

    async fn command(&self, argv: &[String], notice: &Notice) -> Result<(), SendError> {
        let (program, args) = argv
            .split_first()
            .ok_or_else(|| SendError::Address("its command is empty".to_owned()))?;
        let found = self.settings.find(program);
        let program = found.unwrap_or_else(|| PathBuf::from(program));
        run(program, args.iter().cloned(), body(notice)?).await
    }

    async fn needed(&self, what: &'static str, value: &EnvValue) -> Result<Secret, SendError> {
        let url = self.secret(what, Some(value)).await?;
        let url = url.ok_or(SendError::NoSecret { what })?;
        check_url(url.expose()).map_err(SendError::Address)?;
        Ok(url)
    }

    /// Read anew for each try: whoever mends it is heard without a restart. A program may take long.
    async fn secret(
        &self,
        what: &'static str,
        value: Option<&EnvValue>,
    ) -> Result<Option<Secret>, SendError> {
        let Some(value) = value.cloned() else {
            return Ok(None);
        };
        let (settings, key) = (self.settings.clone(), format!("notify.{}", self.name));
        let taken = tokio::task::spawn_blocking(move || settings.value(&key, &value)).await;
        match taken {
            Ok(Ok(Some(secret))) => Ok(Some(secret)),
            Ok(Ok(None)) => Err(SendError::NoSecret { what }),
            Ok(Err(source)) => Err(SendError::Secret { what, source }),
            Err(_) => Err(SendError::Gone),
        }
    }
}

fn body(notice: &Notice) -> Result<Vec<u8>, SendError> {
    serde_json::to_vec(notice).map_err(|error| SendError::Post(error.to_string()))
}

/// `sha256=` and the hex of the HMAC of the body, as other senders of webhooks write it.
pub(crate) fn signature(secret: &Secret, body: &[u8]) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.expose().as_bytes());
    let tag = hmac::sign(&key, body);
    format!("sha256={}", hex(tag.as_ref()))
}

fn bearer(token: &Secret) -> Result<HeaderValue, SendError> {
    let text = format!("Bearer {}", token.expose());
    let mut value = HeaderValue::from_str(&text)
        .map_err(|_| SendError::Address("the token holds what no header can carry".to_owned()))?;
    value.set_sensitive(true);
    Ok(value)
}

/// A token never goes over a wire that others can read.
fn over_tls(url: &Secret) -> Result<(), SendError> {
    let Some(rest) = url.expose().strip_prefix("http://") else {
        return Ok(());
    };
    let authority = rest.split('/').next().unwrap_or_default();
    let here = ["localhost", "127.0.0.1", "[::1]"];
    let on_this_machine = here.iter().any(|host| {
        authority
            .strip_prefix(host)
            .is_some_and(|port| port.is_empty() || port.starts_with(':'))
    });
    if on_this_machine {
        Ok(())
    } else {
        let rule = "it has a token and its url is not https, so everybody on the way could read it";
        Err(SendError::Address(rule.to_owned()))
    }
}

async fn post(
    request: hyper::http::request::Builder,
    notice: &Notice,
    body: Vec<u8>,
    known: &[Option<&Secret>],
) -> Result<(), SendError> {
    let request = request
        .header(USER_AGENT, concat!("dispatch/", env!("CARGO_PKG_VERSION")))
        .header(DELIVERY, &notice.id)
        .body(Full::new(Bytes::from(body)))
        .map_err(|_| SendError::Address("its url or its texts fit no request".to_owned()))?;
    let masked = |error: &dyn std::error::Error| {
        let values = known.iter().flatten().map(|secret| secret.expose());
        SendError::Post(Redactor::new(values).redact(&chain(error)))
    };
    let builder = Client::builder(TokioExecutor::new());
    let answer = if request.uri().scheme_str() == Some("https") {
        let provider = rustls::crypto::ring::default_provider();
        let tls = HttpsConnectorBuilder::new()
            .with_provider_and_native_roots(provider)
            .map_err(SendError::Roots)?
            .https_only()
            .enable_http1()
            .build();
        builder.build(tls).request(request).await
    } else {
        builder.build(HttpConnector::new()).request(request).await
    };
    let status = answer.map_err(|error| masked(&error))?.status();
    if status.is_success() {
        Ok(())
    } else {
        Err(SendError::Status(status))
    }
}

/// A program in a group of its own, so that all of it can be ended when its time is over.
async fn run(
    program: PathBuf,
    args: impl Iterator<Item = String>,
    input: Vec<u8>,
) -> Result<(), SendError> {
    let name = program.display().to_string();
    let failed = |source| SendError::Run {
        program: name.clone(),
        source,
    };
    let mut child = Command::new(&program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let _group = Group(child.id());
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not want to know closes its input; how it ends is what counts.
        drop(stdin.write_all(&input).await);
    }
    let status = child.wait().await.map_err(failed)?;
    if status.success() {
        Ok(())
    } else {
        Err(SendError::Ended {
            program: name,
            status,
        })
    }
}

/// What is left of a group when the try is over, however it ended.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        let raw = self.0.and_then(|id| i32::try_from(id).ok());
        if let Some(group) = raw.and_then(Pid::from_raw) {
            // Most often there is nobody left.
            match kill_process_group(group, Signal::KILL) {
                Ok(()) | Err(_) => {}
            }
        }
    }
}

/// How it is told to a person.
pub(crate) fn told(name: &HookName, error: &SendError) -> String {
    let text = if error.source().is_some() {
        chain(error)
    } else {
        error.to_string()
    };
    format!("notify.{name}: failed to {text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The second case of RFC 4231.
    #[test]
    fn bodies_are_signed_as_everybody_does() {
        let got = signature(&"Jefe".into(), b"what do ya want for nothing?");
        assert_eq!(
            got,
            "sha256=5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }

    #[test]
    fn a_token_stays_off_the_open_wire() {
        for (url, good) in [
            ("https://ntfy.example.org", true),
            ("http://127.0.0.1:80", true),
            ("http://localhost/x", true),
            ("http://[::1]:9", true),
            ("http://ntfy.example.org", false),
            ("http://localhost.example.org", false),
            ("http://127.0.0.1.example.org", false),
        ] {
            assert_eq!(over_tls(&url.into()).is_ok(), good, "{url}");
        }
    }

    #[test]
    fn what_another_try_cannot_mend_is_not_tried_again() {
        let lasts = |code| SendError::Status(StatusCode::from_u16(code).unwrap()).lasts();
        assert_eq!(
            [301, 400, 401, 404, 408, 429, 500, 503].map(lasts),
            [true, true, true, true, false, false, false, false]
        );
    }
}
