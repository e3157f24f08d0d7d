//! A client of MCP for tests: rmcp's own, in both lifecycles, on standard input and output and over
//! HTTP. It writes down what it is told and answers what it is asked.
//! Must not know what a tool does.
#![allow(
    deprecated,
    reason = "the older generation is a part of what is tested"
)]

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use rmcp::{
    ClientHandler, ClientLifecycleMode, ClientServiceExt, ErrorData, RoleClient,
    model::{
        CallToolRequestParams, CallToolResponse, CallToolResult, ClientCapabilities, ClientConfig,
        CustomNotification, ElicitRequestParams, ElicitResult, ElicitationAction,
        ElicitationCapability, FormElicitationCapability, Implementation, JsonObject,
        LoggingMessageNotificationParam, ProgressNotificationParam, ProtocolVersion,
        ResourceUpdatedNotificationParam, TASKS_EXTENSION_ID, Tool,
    },
    service::{NotificationContext, RequestContext, RunningService, ServiceError},
    transport::{
        StreamableHttpClientTransport, streamable_http_client::StreamableHttpClientTransportConfig,
    },
};
use serde_json::{Value, json};
use tokio::{
    process::{Child, Command},
    sync::{Notify, mpsc},
    time::timeout,
};

use super::world::TestWorld;

/// No test waits that long; one that would has found a bug.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// What a client can do beyond the least.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Can {
    pub(crate) enter: bool,
    pub(crate) tasks: bool,
    pub(crate) channel: bool,
}

/// As what is entered: nothing, until it is needed no more.
pub(crate) const HOLDS: &str = "holds";

/// What it was told without asking.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Told {
    Progress(f64, Option<f64>, String),
    Updated(String),
    Listed,
    Logged(Value),
    Other(String, Value),
    /// It was asked this.
    Asked(String),
    /// What it was asked is needed no more.
    Withdrawn,
}

/// The ways to speak to the server: transport and generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Way {
    pub(crate) http: bool,
    pub(crate) modern: bool,
}

pub(crate) const WAYS: [Way; 4] = [
    Way {
        http: false,
        modern: false,
    },
    Way {
        http: false,
        modern: true,
    },
    Way {
        http: true,
        modern: false,
    },
    Way {
        http: true,
        modern: true,
    },
];
pub(crate) const STDIO: Way = WAYS[0];

#[derive(Clone)]
pub(crate) struct Listener {
    can: Can,
    told: mpsc::UnboundedSender<Told>,
    /// What is entered, one after the other; none: declined.
    entries: Arc<Mutex<Vec<Value>>>,
    held: Arc<Notify>,
}

impl Listener {
    fn note(&self, told: Told) {
        // A test that has seen enough does not listen.
        drop(self.told.send(told));
    }
}

impl ClientHandler for Listener {
    fn get_info(&self) -> ClientConfig {
        let mut can = ClientCapabilities::default();
        if self.can.enter {
            let form = FormElicitationCapability::new();
            can.elicitation = Some(ElicitationCapability::new().with_form(form));
        }
        if self.can.tasks {
            can.extensions = Some([(TASKS_EXTENSION_ID.to_owned(), JsonObject::new())].into());
        }
        if self.can.channel {
            let channel = ("claude/channel".to_owned(), JsonObject::new());
            can.experimental = Some([channel].into());
        }
        ClientConfig::new(can, Implementation::new("test", "1"))
    }

    async fn create_elicitation(
        &self,
        request: ElicitRequestParams,
        context: RequestContext<RoleClient>,
    ) -> Result<ElicitResult, ErrorData> {
        let ElicitRequestParams::FormElicitationParams { message, .. } = request else {
            panic!("no form: {request:?}");
        };
        self.note(Told::Asked(message));
        let entry = self.entries.lock().unwrap().pop();
        if entry == Some(HOLDS.into()) {
            self.held.notify_one();
            context.ct.cancelled().await;
            self.note(Told::Withdrawn);
        }
        Ok(match entry {
            Some(entry) => ElicitResult::new(ElicitationAction::Accept).with_content(entry),
            None => ElicitResult::new(ElicitationAction::Decline),
        })
    }

    async fn on_progress(
        &self,
        told: ProgressNotificationParam,
        _: NotificationContext<RoleClient>,
    ) {
        let message = told.message.unwrap_or_default();
        self.note(Told::Progress(told.progress, told.total, message));
    }

    async fn on_resource_updated(
        &self,
        told: ResourceUpdatedNotificationParam,
        _: NotificationContext<RoleClient>,
    ) {
        self.note(Told::Updated(told.uri));
    }

    async fn on_resource_list_changed(&self, _: NotificationContext<RoleClient>) {
        self.note(Told::Listed);
    }

    async fn on_logging_message(
        &self,
        told: LoggingMessageNotificationParam,
        _: NotificationContext<RoleClient>,
    ) {
        self.note(Told::Logged(told.data));
    }

    async fn on_custom_notification(
        &self,
        told: CustomNotification,
        _: NotificationContext<RoleClient>,
    ) {
        self.note(Told::Other(told.method, told.params.unwrap_or_default()));
    }
}

/// One connection.
pub(crate) struct Client {
    pub(crate) served: RunningService<RoleClient, Listener>,
    pub(crate) told: mpsc::UnboundedReceiver<Told>,
    entries: Arc<Mutex<Vec<Value>>>,
    /// Somebody holds a form and enters nothing.
    pub(crate) held: Arc<Notify>,
    tools: HashMap<String, Tool>,
    /// The server, where it is a process of ours.
    server: Option<Child>,
}

impl Client {
    pub(crate) async fn connect(world: &TestWorld, way: Way, can: Can) -> Self {
        if way.http {
            // Somebody serves; a verb starts it.
            world.serve();
            return Self::over(&world.socket(), None, way, can).await;
        }
        Self::spawned(&mut world.command(&["mcp"]), way, can).await
    }

    /// The server is this command.
    pub(crate) async fn spawned(command: &mut std::process::Command, way: Way, can: Can) -> Self {
        let mut command = Command::from(std::mem::replace(
            command,
            std::process::Command::new("true"),
        ));
        let mut server = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let transport = (server.stdout.take().unwrap(), server.stdin.take().unwrap());
        let (listener, told) = listener(can);
        let entries = Arc::clone(&listener.entries);
        let held = Arc::clone(&listener.held);
        let served = listener.serve_with_lifecycle(transport, lifecycle(way));
        let served = timeout(PATIENCE, served).await.unwrap().unwrap();
        let made = Self {
            served,
            told,
            entries,
            held,
            tools: HashMap::new(),
            server: Some(server),
        };
        made.with_tools().await
    }

    /// Over HTTP on a socket, with a token or as its owner.
    pub(crate) async fn over(socket: &Path, token: Option<&str>, way: Way, can: Can) -> Self {
        let served = Self::try_over(socket, token, way, can).await;
        served.unwrap()
    }

    pub(crate) async fn try_over(
        socket: &Path,
        token: Option<&str>,
        way: Way,
        can: Can,
    ) -> Result<Self, String> {
        let mut config = StreamableHttpClientTransportConfig::with_uri("/mcp");
        if let Some(token) = token {
            config = config.auth_header(token);
        }
        let socket = socket.to_str().unwrap();
        let transport = StreamableHttpClientTransport::from_unix_socket_with_config(socket, config);
        let (listener, told) = listener(can);
        let entries = Arc::clone(&listener.entries);
        let held = Arc::clone(&listener.held);
        let served = listener.serve_with_lifecycle(transport, lifecycle(way));
        let served = timeout(PATIENCE, served).await.unwrap();
        let made = Self {
            served: served.map_err(|error| error.to_string())?,
            told,
            entries,
            held,
            tools: HashMap::new(),
            server: None,
        };
        Ok(made.with_tools().await)
    }

    async fn with_tools(mut self) -> Self {
        let tools = self.served.list_all_tools().await.unwrap();
        let named = |tool: Tool| (tool.name.to_string(), tool);
        self.tools = tools.into_iter().map(named).collect();
        self
    }

    pub(crate) fn tools(&self) -> &HashMap<String, Tool> {
        &self.tools
    }

    /// The last one is entered first.
    pub(crate) fn will_enter(&self, entries: &[Value]) {
        *self.entries.lock().unwrap() = entries.to_vec();
    }

    pub(crate) async fn try_call(
        &self,
        tool: &str,
        arguments: Value,
    ) -> Result<CallToolResponse, ServiceError> {
        let called = self.served.call_tool_once(params(tool, arguments));
        timeout(PATIENCE, called).await.unwrap()
    }

    /// What a tool gives, which must be what its schema says.
    #[track_caller]
    pub(crate) fn call(&self, tool: &str, arguments: Value) -> impl Future<Output = Value> + '_ {
        let at = std::panic::Location::caller();
        let params = params(tool, arguments);
        let schema = self.tools[tool].output_schema.clone();
        async move {
            let called = timeout(PATIENCE, self.served.call_tool(params)).await;
            let result = called.unwrap_or_else(|_| panic!("{at}: no answer"));
            let result = result.unwrap_or_else(|error| panic!("{at}: {error}"));
            assert_ne!(result.is_error, Some(true), "{at}: {result:?}");
            let given = result.structured_content.clone().unwrap();
            let schema = Value::Object((*schema.unwrap()).clone());
            if let Err(error) = fits(&given, &schema, "") {
                panic!("{at}: {error} in {given:#}");
            }
            let text = result.content[0].as_text().unwrap().text.clone();
            let same: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(same, given, "{at}: as text too");
            given
        }
    }

    /// Why a tool refuses.
    #[track_caller]
    pub(crate) fn refused(
        &self,
        tool: &str,
        arguments: Value,
    ) -> impl Future<Output = String> + '_ {
        let at = std::panic::Location::caller();
        let params = params(tool, arguments);
        async move {
            let called = timeout(PATIENCE, self.served.call_tool(params)).await;
            let result: CallToolResult = called.unwrap().unwrap();
            assert_eq!(result.is_error, Some(true), "{at}: {result:?}");
            result.content[0].as_text().unwrap().text.clone()
        }
    }

    /// The next thing it is told that fits.
    pub(crate) async fn told(&mut self, fits: impl Fn(&Told) -> bool) -> Told {
        let mut seen = Vec::new();
        loop {
            match timeout(PATIENCE, self.told.recv()).await {
                Ok(Some(told)) if fits(&told) => return told,
                Ok(Some(told)) => seen.push(told),
                Ok(None) | Err(_) => panic!("never told; but {seen:#?}"),
            }
        }
    }

    /// Closes the connection; what the server wrote beside it.
    pub(crate) async fn close(mut self) -> String {
        self.served.close().await.unwrap();
        drop(self.served);
        let Some(server) = self.server else {
            return String::new();
        };
        let output = timeout(PATIENCE, server.wait_with_output()).await;
        let output = output.unwrap().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    }
}

fn params(tool: &str, arguments: Value) -> CallToolRequestParams {
    let arguments = match arguments {
        Value::Object(arguments) => arguments,
        _ => JsonObject::new(),
    };
    CallToolRequestParams::new(tool.to_owned()).with_arguments(arguments)
}

fn listener(can: Can) -> (Listener, mpsc::UnboundedReceiver<Told>) {
    let (told, notices) = mpsc::unbounded_channel();
    let listener = Listener {
        can,
        told,
        entries: Arc::default(),
        held: Arc::default(),
    };
    (listener, notices)
}

fn lifecycle(way: Way) -> ClientLifecycleMode {
    if way.modern {
        ClientLifecycleMode::Discover {
            preferred_versions: vec![ProtocolVersion::V_2026_07_28],
        }
    } else {
        ClientLifecycleMode::Initialize
    }
}

/// Whether a value is what a schema says, as far as our schemas go.
pub(crate) fn fits(value: &Value, schema: &Value, at: &str) -> Result<(), String> {
    if let Some(kinds) = schema["anyOf"].as_array() {
        let one = kinds.iter().any(|kind| fits(value, kind, at).is_ok());
        return one
            .then_some(())
            .ok_or_else(|| format!("{at} is none of {kinds:?}"));
    }
    if let Some(words) = schema["enum"].as_array()
        && !words.contains(value)
    {
        return Err(format!("{at} is {value}, none of {words:?}"));
    }
    let types = match &schema["type"] {
        Value::String(one) => vec![one.as_str()],
        Value::Array(all) => all.iter().filter_map(Value::as_str).collect(),
        _ => return Ok(()),
    };
    let is = |name: &&str| match *name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        _ => false,
    };
    if !types.iter().any(is) {
        return Err(format!("{at} is {value}, no {types:?}"));
    }
    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
        fits(item, &schema["items"], &format!("{at}[{index}]"))?;
    }
    let Some(members) = value.as_object() else {
        return Ok(());
    };
    for name in schema["required"].as_array().into_iter().flatten() {
        if !members.contains_key(name.as_str().unwrap()) {
            return Err(format!("{at} has no {name}"));
        }
    }
    for (name, value) in members {
        match schema["properties"].get(name) {
            Some(schema) => fits(value, schema, &format!("{at}.{name}"))?,
            None if schema["additionalProperties"].is_object() => {
                fits(
                    value,
                    &schema["additionalProperties"],
                    &format!("{at}.{name}"),
                )?;
            }
            None => return Err(format!("{at}.{name} is not in the schema")),
        }
    }
    Ok(())
}

/// The text of a resource.
pub(crate) async fn read(client: &Client, uri: &str) -> String {
    let params = rmcp::model::ReadResourceRequestParams::new(uri);
    let read = timeout(PATIENCE, client.served.read_resource(params)).await;
    let contents = read.unwrap().unwrap().contents;
    match serde_json::to_value(&contents[0]).unwrap() {
        Value::Object(contents) => {
            assert_eq!(contents["uri"], json!(uri));
            contents["text"].as_str().unwrap().to_owned()
        }
        other => panic!("{other}"),
    }
}

/// A file with a token of these scopes.
pub(crate) fn token_file(world: &TestWorld, scopes: &str) -> (String, PathBuf) {
    let made = world.dispatch(&["token", "new", "--scope", scopes, "--json"]);
    let token = made.exits(0).json()["token"].as_str().unwrap().to_owned();
    let path = world.path(&format!("token-{scopes}"));
    std::fs::write(&path, format!("{token}\n")).unwrap();
    (token, path)
}
