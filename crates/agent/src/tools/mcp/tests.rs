//! Servers of all kinds: a real one over HTTP, one of the newer generation, and those that die, hang,
//! flood or speak nonsense. A real program is in the tests of processes.

use std::{collections::BTreeMap, fs, sync::Arc, time::Duration};

use dispatch_core::{id::ServerName, native::ServedTool, servers::ServerTable, web::Reach};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use rmcp::{
    ErrorData, RoleServer, ServerHandler,
    model::{
        CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, Implementation,
        ListToolsResult, PaginatedRequestParams, ServerCapabilities, ServerConfig, Tool,
        ToolsCapability,
    },
    service::RequestContext,
    transport::{
        StreamableHttpService, streamable_http_server::session::local::LocalSessionManager,
    },
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{net::TcpListener, time::timeout};

use super::{Around, Served, Started};
use crate::{
    net::{Connector, Proxy},
    tools::site::{Page, Piece, Site},
};

/// Longer than any limit in these tests.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Clone, Debug)]
struct Shop;

impl ServerHandler for Shop {
    fn get_info(&self) -> ServerConfig {
        let mut can = ServerCapabilities::default();
        can.tools = Some(ToolsCapability::default());
        ServerConfig::new(can).with_server_info(Implementation::new("shop", "1"))
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let tool = |name: &str| -> Tool {
            serde_json::from_value(json!({"name": name, "description": "Sells.",
                "inputSchema": {"type": "object", "properties": {"what": {"type": "string"}}},
                "annotations": {"readOnlyHint": name == "look"}}))
            .unwrap()
        };
        Ok(ListToolsResult::with_all_items(
            ["look", "hang", "fail"].map(tool).to_vec(),
        ))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let arguments = Value::Object(request.arguments.unwrap_or_default());
        match request.name.as_ref() {
            "look" => {
                let parts = context.extensions.get::<hyper::http::request::Parts>();
                let token = parts.and_then(|parts| parts.headers.get("x-token").cloned());
                let text = format!("{arguments} {token:?}");
                Ok(CallToolResult::success(vec![ContentBlock::text(text)]).into())
            }
            "fail" => Ok(CallToolResult::error(vec![ContentBlock::text("sold out")]).into()),
            "hang" => {
                context.ct.cancelled().await;
                Err(ErrorData::internal_error("cancelled", None))
            }
            other => Err(ErrorData::invalid_params(format!("no {other}"), None)),
        }
    }
}

async fn shop() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/mcp", listener.local_addr().unwrap());
    let sessions = Arc::new(LocalSessionManager::default());
    let service = StreamableHttpService::new(|| Ok(Shop), sessions, Default::default());
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let service = TowerToHyperService::new(service.clone());
            let served = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service);
            tokio::spawn(async move { drop(served.await) });
        }
    });
    url
}

struct Yard {
    dir: TempDir,
    around: Around,
}

impl Yard {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let around = Around {
            connector: Connector::new(Proxy::default(), Duration::from_secs(5)),
            cwd: dir.path().to_owned(),
            hidden: ["CARGO_PKG_NAME".to_owned()].into(),
            reach: Reach::Everything,
        };
        Self { dir, around }
    }

    async fn start(&self, tables: Value) -> Started {
        self.start_again(tables, &[], None).await
    }

    async fn start_again(
        &self,
        tables: Value,
        known: &[(ServerName, Vec<ServedTool>)],
        names: Option<&[String]>,
    ) -> Started {
        let tables: BTreeMap<ServerName, ServerTable> = serde_json::from_value(tables).unwrap();
        let start = super::start(&tables, &self.around, known, names);
        timeout(PATIENCE, start).await.expect("it has limits")
    }

    /// Why the only server is not there.
    async fn why(&self, table: Value) -> String {
        let started = self.start(json!({"odd": table})).await;
        assert!(started.tools.is_empty() && started.new.is_empty());
        assert_eq!(started.notices.len(), 1, "{:?}", started.notices);
        let notice = started.notices.into_iter().next().unwrap();
        let why = notice.strip_prefix("MCP server odd is not there: ");
        why.unwrap_or_else(|| panic!("{notice}")).to_owned()
    }
}

fn names(tools: &[Served]) -> Vec<&str> {
    tools
        .iter()
        .map(|served| served.tool.name.as_str())
        .collect()
}

async fn call(started: &Started, name: &str, input: &str) -> Result<String, String> {
    let served = started.tools.iter().find(|served| served.tool.name == name);
    let served = served.unwrap();
    let called = served.server.call(&served.tool.tool, input);
    let called = timeout(PATIENCE, called).await.expect("it has limits");
    called.map_err(|wrong| wrong.to_string())
}

fn script(line: &str) -> Value {
    json!({"command": ["sh", "-c", line], "start_ms": 15_000})
}

#[tokio::test]
async fn a_server_over_http_is_used() {
    let yard = Yard::new();
    let table = json!({"url": shop().await, "headers": {"x-token": {"from": "CARGO_PKG_NAME"}}});
    let mut late = table.clone();
    late["call_ms"] = json!(200);
    late["tools"] = json!(["hang"]);
    let started = yard.start(json!({"shop": table, "late": late})).await;
    assert_eq!(started.notices, [""; 0]);
    assert_eq!(
        names(&started.tools),
        ["late__hang", "shop__fail", "shop__hang", "shop__look"]
    );
    let safe: Vec<bool> = started.tools.iter().map(|t| t.tool.safe).collect();
    assert_eq!(safe, [false, false, false, true]);
    let told = call(&started, "shop__look", r#"{"what": "shoes"}"#).await;
    assert_eq!(told.unwrap(), r#"{"what":"shoes"} Some("dispatch-agent")"#);
    let (failed, odd, late) = tokio::join!(
        call(&started, "shop__fail", ""),
        call(&started, "shop__look", "[1]"),
        call(&started, "late__hang", "{}"),
    );
    assert_eq!(failed.unwrap_err(), "error: sold out");
    assert!(odd.unwrap_err().contains("the arguments do not fit"));
    let late = late.unwrap_err();
    assert_eq!(
        late,
        "error: ask MCP server late: it took longer than 200ms"
    );
    super::end(&started.servers).await;
    let gone = call(&started, "shop__look", "{}").await.unwrap_err();
    assert!(gone.contains("losed"), "{gone}");
}

#[tokio::test]
async fn what_the_model_was_told_stays_whatever_the_server_says_now() {
    let yard = Yard::new();
    let tables = json!({"shop": {"url": shop().await}});
    let first = yard.start(tables.clone()).await;
    assert_eq!(first.new.len(), 1);
    let mut known = first.new.clone();
    // Told otherwise in an earlier run.
    known[0].1.truncate(2);
    known[0].1[0].help = "As it was.".into();
    let again = yard.start_again(tables.clone(), &known, None).await;
    assert!(again.new.is_empty());
    assert_eq!(names(&again.tools), ["shop__fail", "shop__hang"]);
    assert_eq!(again.tools[0].tool.help, "As it was.");
    // Its server is down now.
    let down = json!({"shop": {"url": "http://127.0.0.1:1/mcp"}, "b": script("exit 1")});
    let down = yard.start_again(down, &known, None).await;
    assert_eq!(names(&down.tools), names(&again.tools));
    let error = call(&down, "shop__fail", "{}").await.unwrap_err();
    assert!(error.contains("it is not there: "), "{error}");
    assert_eq!(down.notices.len(), 2);
    // A task that has it no more.
    assert!(
        yard.start_again(json!({}), &known, None)
            .await
            .tools
            .is_empty()
    );
    let mut fewer = tables.clone();
    fewer["shop"]["tools"] = json!(["look", "sell"]);
    let few = yard.start(fewer.clone()).await;
    assert_eq!(names(&few.tools), ["shop__look"]);
    assert_eq!(
        few.notices,
        ["MCP server shop has no tool \"sell\", which its table names"]
    );
    let narrowed = yard.start_again(fewer, &first.new, None).await;
    assert_eq!(names(&narrowed.tools), ["shop__look"]);
    let named = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
    for (wanted, there) in [
        (named(&["read_file"]), vec![]),
        (named(&["shop__l*"]), vec!["shop__look"]),
    ] {
        let started = yard.start_again(tables.clone(), &[], Some(&wanted)).await;
        assert_eq!(names(&started.tools), there);
    }
}

#[tokio::test]
async fn a_server_of_the_newer_generation_is_used() {
    let site = Site::start(|visit| {
        let id = &visit.body["id"];
        let result = |mut result: Value| {
            result["resultType"] = json!("complete");
            Page::json(&json!({"jsonrpc": "2.0", "id": id, "result": result}))
        };
        match visit.body["method"].as_str().unwrap_or_default() {
            "initialize" => {
                let error = json!({"code": -32601, "message": "no such method"});
                Page::json(&json!({"jsonrpc": "2.0", "id": id, "error": error})).status(400)
            }
            "server/discover" => result(json!({"supportedVersions": ["2026-07-28"],
                "capabilities": {"tools": {}}, "serverInfo": {"name": "new", "version": "1"},
                "ttlMs": 0, "cacheScope": "private"})),
            "tools/list" => result(
                json!({"tools": [{"name": "t", "inputSchema": {"type": "object"}}],
                "ttlMs": 0, "cacheScope": "private"}),
            ),
            "tools/call" => result(json!({"content": [{"type": "text", "text": "new"}]})),
            _ => Page::json(&json!({})).status(202),
        }
    })
    .await;
    let yard = Yard::new();
    let started = yard.start(json!({"new": {"url": site.url}})).await;
    assert_eq!(started.notices, [""; 0]);
    assert_eq!(call(&started, "new__t", "{}").await.unwrap(), "new");
    let visits = site.visits();
    assert!(
        !visits
            .iter()
            .any(|visit| visit.headers.contains_key("mcp-session-id"))
    );
}

#[tokio::test]
async fn a_program_that_is_no_server_is_named_and_left_out() {
    let yard = Yard::new();
    let mut hangs = script("echo $$ > hangs; sleep 86471 & sleep 86471");
    hangs["start_ms"] = json!(300);
    let mut floods = script("yes");
    floods["start_ms"] = json!(300);
    let mut endless = script("cat /dev/zero");
    endless["start_ms"] = json!(300);
    for (table, part) in [
        (
            json!({"command": ["/no/such/program"]}),
            "start /no/such/program: No such file",
        ),
        (
            script("echo going down >&2; exit 3"),
            "; it said: going down",
        ),
        (
            script("echo '{\"jsonrpc\":\"2.0\",\"id\":0,\"result\":[]}'; cat > /dev/null"),
            "",
        ),
        (hangs, "it was not ready after 300ms"),
        (floods, "it was not ready after 300ms"),
        (endless, "it was not ready after 300ms"),
        (
            json!({"command": ["x"], "env": {"A": {"from": "DISPATCH_NO_SUCH"}}}),
            "the variable DISPATCH_NO_SUCH is not set",
        ),
    ] {
        let why = yard.why(table).await;
        assert!(why.contains(part), "{part}: {why}");
    }
    let said = yard
        .why(script("echo going down >&2; sleep 0.1; exit 3"))
        .await;
    assert!(said.ends_with("; it said: going down"), "{said}");
    // Nothing of the one that hung is left.
    let pid = fs::read_to_string(yard.dir.path().join("hangs")).unwrap();
    let alive = || {
        let all = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
        all.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok())
            .any(|line| line == b"sleep\x0086471\0")
    };
    let gone = async {
        while alive() || fs::exists(format!("/proc/{}/exe", pid.trim())).unwrap() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, gone).await.expect("it is still there");
}

#[tokio::test]
async fn a_server_has_its_own_secret_and_none_of_ours() {
    let yard = Yard::new();
    let line = "echo \"${CARGO_PKG_NAME-none} $OWN $PLAIN\" > env; pwd > pwd; exit 1";
    let mut table = script(line);
    table["env"] = json!({"OWN": {"from": "CARGO_PKG_NAME"}, "PLAIN": "text"});
    yard.why(table).await;
    let read = |name| fs::read_to_string(yard.dir.path().join(name)).unwrap();
    assert_eq!(read("env"), "none dispatch-agent text\n");
    let here = yard.dir.path().canonicalize().unwrap();
    assert_eq!(read("pwd").trim(), here.to_str().unwrap());
}

#[tokio::test]
async fn an_address_that_is_no_server_is_named_and_left_out() {
    let endless = bytes::Bytes::from(vec![b'x'; 64 << 10]);
    let site = Site::start(move |visit| match visit.target.as_str() {
        "/html" => Page::html("<h1>Hello</h1>"),
        "/closed" => Page::html("who are you?").status(401),
        "/moved" => Page::moved("http://127.0.0.1:1/"),
        "/hangs" => Page::new("text/event-stream", "").piece(Piece::Hangs),
        "/long" => Page::new("application/json", "").piece(Piece::Endless(endless.clone())),
        "/line" => Page::new("text/event-stream", "").piece(Piece::Endless(endless.clone())),
        _ => Page::new("text/event-stream", "data: {}\n\n"),
    })
    .await;
    let mut yard = Yard::new();
    for (path, part) in [
        ("/html", "it answered 200 OK and no message"),
        ("/closed", "who are you?"),
        ("/moved", "it answered 302 Found and no message"),
        ("/hangs", "it was not ready after 300ms"),
        ("/long", "length limit exceeded"),
        ("/line", ""),
        ("/odd", ""),
    ] {
        let url = format!("{}{path}", site.url);
        let limit = if path == "/hangs" { 300 } else { 15_000 };
        let why = yard.why(json!({"url": url, "start_ms": limit})).await;
        assert!(why.contains(part), "{path}: {why}");
    }
    let asked = site.visits().len();
    yard.around.reach = Reach::Nothing;
    let why = yard.why(json!({"url": site.url})).await;
    assert_eq!(why, "it is reached over HTTP, and this task has no network");
    assert_eq!(site.visits().len(), asked);
}
