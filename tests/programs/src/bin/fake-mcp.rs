//! An MCP server over standard input and output, with rmcp's own code, whose tools do what a server
//! may do: answer, fail, hang, die, leave processes behind, say too much. Its arguments are the names
//! of the tools it offers. Must not be a server for anybody but tests.

use std::{
    process::{Command, Stdio, exit},
    time::Duration,
};

use rmcp::{
    ErrorData, RoleServer, ServerHandler, ServiceExt,
    model::{
        CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, Implementation,
        ListToolsResult, PaginatedRequestParams, ServerCapabilities, ServerConfig, Tool,
        ToolsCapability,
    },
    service::RequestContext,
    transport::stdio,
};
use serde_json::json;

#[derive(Clone, Debug)]
struct Server {
    tools: Vec<String>,
}

impl ServerHandler for Server {
    fn get_info(&self) -> ServerConfig {
        let mut can = ServerCapabilities::default();
        can.tools = Some(ToolsCapability::default());
        ServerConfig::new(can).with_server_info(Implementation::new("fake-mcp", "1"))
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let schema = json!({"type": "object", "properties": {"text": {"type": "string"}}});
        let schema = schema.as_object().cloned().unwrap_or_default();
        let tool = |name: &String| {
            let help = format!("Does {name}.");
            Tool::new(name.clone(), help, schema.clone())
        };
        let tools = self.tools.iter().map(tool).collect();
        Ok(ListToolsResult::with_all_items(tools))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let arguments = request.arguments.unwrap_or_default();
        let text = arguments.get("text").and_then(|text| text.as_str());
        let text = text.unwrap_or_default().to_owned();
        let answer = match request.name.as_ref() {
            "env" => std::env::vars().map(|(name, _)| name + "\n").collect(),
            "flood" => "flood\n".repeat(200_000),
            "fail" => {
                let failed = CallToolResult::error(vec![ContentBlock::text("it failed")]);
                return Ok(failed.into());
            }
            // Into a pipe: whoever reads it knows that the call has begun.
            "hang" => {
                let told = std::fs::write(&text, "hanging");
                told.map_err(|error| ErrorData::internal_error(error.to_string(), None))?;
                std::future::pending().await
            }
            "die" => {
                last_word("out of memory");
                exit(7);
            }
            // In the group of its server, and deaf to its end.
            "leave" => {
                let left = Command::new("sh")
                    .args(["-c", "trap '' TERM HUP; sleep 86462; sleep 86462"])
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .spawn();
                format!("left {:?}", left.map(|child| child.id()))
            }
            _ => text,
        };
        let answer = CallToolResult::success(vec![ContentBlock::text(answer)]);
        Ok(answer.into())
    }
}

fn last_word(text: &str) {
    use std::io::Write as _;
    match writeln!(std::io::stderr().lock(), "{text}") {
        // It goes down all the same.
        Ok(()) | Err(_) => {}
    }
}

fn main() -> anyhow::Result<()> {
    let tools = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let served = Server { tools }.serve(stdio()).await?;
        served.waiting().await?;
        anyhow::Ok(())
    })?;
    runtime.shutdown_timeout(Duration::from_millis(10));
    Ok(())
}
