//! Tools of MCP servers that the settings name. Each server is started or connected to once, and the
//! model is told of its tools as `SERVER__TOOL`, with the schemas as they are.
//! Must not wait for a server without a limit, must not fail because one does, and must not change
//! what the model was told of once: a prompt's beginning stays.
//!
//! * [`names`] what a model is told of; [`link`] a connection; [`http`] the one over HTTP
//! * [`said`] what a tool answered, as text

mod http;
mod link;
mod names;
mod said;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use dispatch_core::{
    id::{BadId, KeyName, ServerName},
    models::KeySource,
    native::ServedTool,
    rules::fits,
    servers::{Given, ServerTable},
    web::Reach,
};
use rmcp::{
    model::{CallToolRequestParams, CallToolResponse, Tool},
    service::ServiceError,
};
use serde_json::{Map, Value};
use tokio::{task::JoinSet, time::timeout};

use super::Wrong;
use crate::{keys, net::Connector};
use link::Link;
pub(super) use names::BETWEEN;

/// From asking all servers to end until they are ended: all of a stop is over within a second.
const END_ALL: Duration = Duration::from_millis(900);

/// What servers are started with.
#[derive(Clone, Debug)]
pub(crate) struct Around {
    pub(crate) connector: Connector,
    pub(crate) cwd: PathBuf,
    /// Variables that no server is given unless its own table names them.
    pub(crate) hidden: BTreeSet<String>,
    pub(crate) reach: Reach,
}

/// One server, or why it is not there.
#[derive(Debug)]
pub(crate) struct Server {
    name: ServerName,
    call_limit: Duration,
    link: Result<Link, String>,
}

/// A tool of a server, as it was granted.
#[derive(Clone, Debug)]
pub(crate) struct Served {
    pub(crate) tool: ServedTool,
    pub(crate) server: Arc<Server>,
}

#[derive(Debug, Default)]
pub(crate) struct Started {
    pub(crate) servers: Vec<Arc<Server>>,
    /// In the order in which the model is told of them.
    pub(crate) tools: Vec<Served>,
    /// Of servers that the conversation did not know yet.
    pub(crate) new: Vec<(ServerName, Vec<ServedTool>)>,
    /// What did not go well, for people.
    pub(crate) notices: Vec<String>,
}

/// What came of a server's start.
type Opened = Result<(Link, Vec<Tool>), String>;

/// Starts all of them beside each other. Tools that the model was told of before stay as they were,
/// and come first, whether their server is there now or not.
pub(crate) async fn start(
    tables: &BTreeMap<ServerName, ServerTable>,
    around: &Around,
    known: &[(ServerName, Vec<ServedTool>)],
    names: Option<&[String]>,
) -> Started {
    let mut starts = JoinSet::new();
    for (name, table) in tables {
        let (name, table, around) = (name.clone(), table.clone(), around.clone());
        starts.spawn(async move {
            let opened = opened(&name, &table, &around).await;
            (name, opened)
        });
    }
    let mut opened = BTreeMap::new();
    let mut started = Started::default();
    while let Some(one) = starts.join_next().await {
        match one {
            Ok((name, one)) => {
                opened.insert(name, one);
            }
            Err(error) => {
                let notice = format!("start an MCP server: {error}");
                started.notices.push(notice);
            }
        }
    }
    let mut listed = known.to_vec();
    for (name, table) in tables {
        if let Some(opened) = opened.remove(name) {
            started.met(name, table, opened, &mut listed);
        }
    }
    for (name, tools) in listed {
        started.grant(tables.get(&name), &name, tools, names);
    }
    started
}

impl Started {
    /// One server, in the order of their names.
    fn met(
        &mut self,
        name: &ServerName,
        table: &ServerTable,
        opened: Opened,
        listed: &mut Vec<(ServerName, Vec<ServedTool>)>,
    ) {
        let link = match opened {
            Ok((link, tools)) => {
                if !listed.iter().any(|(known, _)| known == name) {
                    let tools = self.wanted(name, table, tools);
                    let (tools, left_out) = names::told(name, tools, listed);
                    self.notices.extend(left_out);
                    self.new.push((name.clone(), tools.clone()));
                    listed.push((name.clone(), tools));
                }
                Ok(link)
            }
            Err(why) => {
                self.notices
                    .push(format!("MCP server {name} is not there: {why}"));
                Err(why)
            }
        };
        self.servers.push(Arc::new(Server {
            name: name.clone(),
            call_limit: Duration::from_millis(table.call_ms),
            link,
        }));
    }

    /// Those of its tools that its table names.
    fn wanted(&mut self, name: &ServerName, table: &ServerTable, tools: Vec<Tool>) -> Vec<Tool> {
        let Some(own) = &table.tools else {
            return tools;
        };
        for missing in own
            .iter()
            .filter(|own| !tools.iter().any(|t| t.name == **own))
        {
            self.notices.push(format!(
                "MCP server {name} has no tool {missing:?}, which its table names"
            ));
        }
        let is_own = |tool: &Tool| own.iter().any(|own| *own == tool.name);
        tools.into_iter().filter(is_own).collect()
    }

    /// What the model may call of what it was told of. A server that the task has no more has nothing,
    /// and settings that name fewer tools now hold, too.
    fn grant(
        &mut self,
        table: Option<&ServerTable>,
        name: &ServerName,
        tools: Vec<ServedTool>,
        names: Option<&[String]>,
    ) {
        let server = self.servers.iter().find(|server| server.name == *name);
        let (Some(server), Some(table)) = (server.cloned(), table) else {
            return;
        };
        let offered = |tool: &ServedTool| {
            let own = table.tools.as_ref();
            own.is_none_or(|own| own.contains(&tool.tool))
        };
        let wanted = |tool: &ServedTool| {
            let fits = |names: &[String]| names.iter().any(|name| fits(name, &tool.name));
            names.is_none_or(fits)
        };
        let tools = tools
            .into_iter()
            .filter(|tool| offered(tool) && wanted(tool));
        self.tools.extend(tools.map(|tool| Served {
            tool,
            server: Arc::clone(&server),
        }));
    }
}

/// One by itself, whose tools no model is told of.
pub(crate) async fn one(
    name: &str,
    table: &ServerTable,
    around: &Around,
) -> Result<Arc<Server>, String> {
    let name: ServerName = name.parse().map_err(|error: BadId| error.to_string())?;
    let (link, _) = opened(&name, table, around).await?;
    Ok(Arc::new(Server {
        name,
        call_limit: Duration::from_millis(table.call_ms),
        link: Ok(link),
    }))
}

/// Connected, and the list of its tools.
async fn opened(name: &ServerName, table: &ServerTable, around: &Around) -> Opened {
    let limit = Duration::from_millis(table.start_ms);
    let opened = timeout(limit, link::open(name, table, around)).await;
    opened.unwrap_or_else(|_| Err(format!("it was not ready after {limit:?}")))
}

/// A value of a server's table, read where it says.
async fn given(name: &ServerName, given: &Given) -> Result<String, String> {
    let source: &KeySource = match given {
        Given::Text(text) => return Ok(text.clone()),
        Given::Taken(source) => source,
    };
    let name: Result<KeyName, _> = format!("mcp.{name}").parse();
    let name = name.map_err(|error| error.to_string())?;
    let secret = keys::read(&name, source).await;
    let secret = secret.map_err(|error| error.to_string())?;
    Ok(secret.expose().to_owned())
}

impl Server {
    pub(super) async fn call(&self, tool: &str, input: &str) -> Result<String, Wrong> {
        let link = match &self.link {
            Ok(link) => link,
            Err(why) => return Err(self.wrong(&format!("it is not there: {why}"))),
        };
        let input = input.trim();
        let input = if input.is_empty() { "{}" } else { input };
        let input: Map<String, Value> = serde_json::from_str(input)
            .map_err(|error| Wrong::new(format!("the arguments do not fit: {error}")))?;
        let asked = CallToolRequestParams::new(tool.to_owned()).with_arguments(input);
        // Whoever does not wait any more has it told to the server, too.
        let answered = timeout(self.call_limit, link.peer().call_tool_once(asked)).await;
        let answered = answered
            .map_err(|_| self.wrong(&format!("it took longer than {:?}", self.call_limit)))?;
        match answered {
            Ok(CallToolResponse::Complete(result)) => said::text(&result),
            Ok(CallToolResponse::InputRequired(_)) => {
                Err(self.wrong("it asks for an input that nobody here can give"))
            }
            Ok(CallToolResponse::Task(_)) => {
                Err(self.wrong("it answered with a task, which is not supported"))
            }
            Ok(_) => Err(self.wrong("it answered what is not known")),
            Err(error @ ServiceError::McpError(_)) => Err(self.wrong(&error.to_string())),
            Err(error) => {
                let words = link.last_words().await;
                Err(self.wrong(&format!("{error}{words}")))
            }
        }
    }

    /// Whether it can be asked still.
    pub(crate) fn is_open(&self) -> bool {
        let link = self.link.as_ref();
        link.is_ok_and(|link| !link.peer().is_transport_closed())
    }

    fn wrong(&self, what: &str) -> Wrong {
        Wrong::new(format!("ask MCP server {}: {what}", self.name))
    }

    /// Nothing of it is left after this.
    pub(crate) async fn end(&self) {
        if let Ok(link) = &self.link {
            link.end().await;
        }
    }
}

/// All of them at once.
pub(crate) async fn end(servers: &[Arc<Server>]) {
    let mut ends = JoinSet::new();
    for server in servers {
        let server = Arc::clone(server);
        ends.spawn(async move { server.end().await });
    }
    let all = async { while ends.join_next().await.is_some() {} };
    match timeout(END_ALL, all).await {
        // What is left is killed as it is let go of.
        Ok(()) | Err(_) => {}
    }
}
