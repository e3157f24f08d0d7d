//! The official conformance suite against our own server: engine, door, token, routes and all; only the
//! rows it asks for are added. `DISPATCH_TEST_AGENTS` names the folder whose `node_modules` hold it
//! (`cargo xtask test` sets it); without it nothing is tested here, said aloud.
//! Must not expect a failure of any scenario.

use std::{
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use dispatch_core::Millis;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
    process::Command,
    time::timeout,
};

use super::fixtures::SUITE;
use crate::{
    http::{
        caller::Scope,
        server::{Net, Server},
        tokens::Tokens,
    },
    settings::{Env, Settings},
};

const FOLDER: &str = "DISPATCH_TEST_AGENTS";
/// Of all its scenarios together.
const PATIENCE: Duration = Duration::from_secs(180);
const HEAD_BYTES_MAX: usize = 64 << 10;

/// Node and the suite; `None`: skipped.
fn suite() -> Option<(PathBuf, PathBuf)> {
    let Some(folder) = std::env::var_os(FOLDER) else {
        // Past the test harness, which would keep it to itself.
        let mut out = std::io::stderr().lock();
        let why = format!("{FOLDER} is not set; `cargo xtask test` installs it");
        writeln!(out, "SKIPPED: the conformance suite of MCP: {why}").unwrap();
        return None;
    };
    let modules = Path::new(&folder).join("node_modules");
    let found = [
        "node/bin/node",
        "@modelcontextprotocol/conformance/dist/index.js",
    ]
    .map(|path| modules.join(path).canonicalize().unwrap());
    let [node, suite] = found;
    Some((node, suite))
}

/// The suite has no place for a token, so each of its requests is given one on its way; nothing else
/// is changed.
async fn bring_token(listener: TcpListener, to: SocketAddr, token: String) {
    loop {
        let (mut client, _) = listener.accept().await.unwrap();
        let token = token.clone();
        tokio::spawn(async move {
            let (mut head, mut byte) = (Vec::new(), [0]);
            while !head.ends_with(b"\r\n\r\n") && head.len() < HEAD_BYTES_MAX {
                if client.read(&mut byte).await.unwrap_or(0) == 0 {
                    return;
                }
                head.push(byte[0]);
            }
            let head = String::from_utf8(head).unwrap();
            let lines = head.lines().filter(|line| {
                let name = line.split(':').next().unwrap_or_default();
                // One request of a connection: the next one needs its token too.
                !name.eq_ignore_ascii_case("connection") && !line.is_empty()
            });
            let mut head: String = lines.map(|line| format!("{line}\r\n")).collect();
            head.push_str(&format!(
                "authorization: Bearer {token}\r\nconnection: close\r\n\r\n"
            ));
            let mut server = TcpStream::connect(to).await.unwrap();
            server.write_all(head.as_bytes()).await.unwrap();
            // However it ends, the suite sees it.
            drop(copy_bidirectional(&mut client, &mut server).await);
        });
    }
}

fn settings(home: &Path) -> Settings {
    let path = Env::read().text("PATH").unwrap().to_owned();
    let env = Env::of(&[("DISPATCH_HOME", home.to_str().unwrap()), ("PATH", &path)]);
    Settings::from_env(env, home).unwrap()
}

/// What the suite found: scenario, check, verdict, words.
fn verdicts(results: &Path) -> Vec<(String, String, String, String)> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(results).unwrap() {
        let dir = entry.unwrap().path();
        let scenario = dir.file_name().unwrap().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(dir.join("checks.json")).unwrap();
        let checks: Value = serde_json::from_str(&text).unwrap();
        for check in checks.as_array().unwrap() {
            let word = |key: &str| check[key].as_str().unwrap_or_default().to_owned();
            all.push((
                scenario.clone(),
                word("id"),
                word("status"),
                word("errorMessage"),
            ));
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn every_server_scenario_passes() {
    let Some((node, suite)) = suite() else {
        return;
    };
    let home = tempfile::tempdir().unwrap();
    let settings = settings(home.path());
    let net = Net {
        listen: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
        ..Net::default()
    };
    let server = Server::open_with(&settings, net, SUITE).await.unwrap();
    let scopes = Scope::ALL.into_iter().collect();
    let (token, _) = Tokens::of(&settings.paths.data)
        .make(None, scopes, None::<Millis>, 0)
        .unwrap();
    let to: SocketAddr = server
        .url()
        .unwrap()
        .strip_prefix("http://")
        .unwrap()
        .parse()
        .unwrap();
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = format!("http://{}/mcp", listener.local_addr().unwrap());
    let proxy = tokio::spawn(bring_token(listener, to, token));
    let results = home.path().join("results");
    let run = Command::new(node)
        .arg(suite)
        .args(["server", "--suite", "all", "--url", &url, "--output-dir"])
        .arg(&results)
        .current_dir(home.path())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let run = timeout(PATIENCE, run).await.unwrap().unwrap();
    proxy.abort();
    server.close().await.unwrap();
    let told =
        String::from_utf8_lossy(&run.stdout).into_owned() + &String::from_utf8_lossy(&run.stderr);
    let verdicts = verdicts(&results);
    let bad: Vec<_> = verdicts
        .iter()
        .filter(|(_, _, status, _)| !["SUCCESS", "INFO"].contains(&status.as_str()))
        .collect();
    assert!(bad.is_empty() && run.status.success(), "{bad:#?}\n{told}");
    // Not only told as a remark: the stream was closed in the middle of a call, and the rest came.
    let resumed = |(_, id, status, _): &(String, String, String, String)| {
        id == "server-sse-disconnect-resume" && status == "SUCCESS"
    };
    assert!(verdicts.iter().any(resumed), "{told}");
    let mut scenarios: Vec<_> = verdicts.iter().map(|(scenario, ..)| scenario).collect();
    scenarios.dedup();
    assert!(scenarios.len() >= 32, "{scenarios:?}");
}
