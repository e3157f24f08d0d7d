//! What a model may call: our own tools, and those of MCP servers behind them.
//! Must not change in the middle of a conversation.

use std::time::Duration;

use dispatch_core::{
    rules::{Group, Subject},
    toolset,
    web::WebTable,
};

use super::{Given, Planned, Run, TOOLS, Tool, Wrong, blocking, mcp};
use crate::model::ToolSpec;

/// Of a help that somebody else wrote, for the list in the system prompt.
const LINE_CHARS_MAX: usize = 120;

/// How long somebody's word waits for a server: long enough for a call that is nearly over.
const SPOKEN_TO_MAX: Duration = Duration::from_secs(1);
const SPOKEN_TO: &str = "somebody has said something, so this call was interrupted; it may have had \
                         some of its effects";

#[derive(Clone, Debug)]
pub(crate) enum Granted {
    Own(&'static Tool),
    Served(mcp::Served),
}

impl Granted {
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Own(tool) => tool.name,
            Self::Served(served) => &served.tool.name,
        }
    }

    /// For a person and for the list in the system prompt.
    pub(crate) fn line(&self) -> String {
        match self {
            Self::Own(tool) => tool.line.to_owned(),
            Self::Served(served) => {
                let line = served.tool.help.lines().next().unwrap_or_default();
                let line = line.trim().trim_end_matches('.');
                match line.char_indices().nth(LINE_CHARS_MAX) {
                    Some((at, _)) => format!("{}...", &line[..at]),
                    None => line.to_owned(),
                }
            }
        }
    }

    pub(crate) fn group(&self) -> Group {
        match self {
            Self::Own(tool) => tool.group,
            Self::Served(_) => Group::Mcp,
        }
    }

    /// Changes nothing: may run beside others of its kind, and again after a crash.
    pub(crate) fn is_safe(&self) -> bool {
        match self {
            Self::Own(tool) => tool.safe,
            Self::Served(served) => served.tool.safe,
        }
    }

    pub(crate) fn spec(&self) -> ToolSpec {
        match self {
            Self::Own(tool) => ToolSpec {
                name: tool.name.to_owned(),
                help: tool.help.to_owned(),
                schema: (tool.schema)(),
            },
            Self::Served(served) => ToolSpec {
                name: served.tool.name.clone(),
                help: served.tool.help.clone(),
                schema: serde_json::from_str(served.tool.schema.text()).unwrap_or_default(),
            },
        }
    }

    /// Off the threads that must not wait: paths are looked up.
    pub(crate) async fn plan(&self, given: Given) -> Result<Planned, Wrong> {
        match self {
            Self::Own(tool) => {
                let plan = tool.plan;
                blocking(move || plan(&given)).await
            }
            // Only its server knows what its arguments mean.
            Self::Served(served) => {
                let served = served.clone();
                let subjects = vec![Subject::name(served.tool.name.clone())];
                Ok(Planned::new(subjects, async move |run: Run| {
                    tokio::select! {
                        biased;
                        done = served.server.call(&served.tool.tool, &given.input) => done,
                        () = run.place.spoken_to_for(SPOKEN_TO_MAX) => Err(Wrong::new(SPOKEN_TO)),
                    }
                }))
            }
        }
    }
}

/// Our own of these names, in our order. A slice comes with its file, jobs with their shell, and the
/// list of what is to do with everything. Where none is named, those are left out that have nothing
/// behind them. Names of servers' tools are looked up when the servers are there.
pub(crate) fn granted(names: Option<&[String]>, web: &WebTable) -> Result<Vec<Granted>, String> {
    let own = |tools: Vec<&'static Tool>| tools.into_iter().map(Granted::Own).collect();
    let Some(names) = names else {
        let works = |tool: &&&Tool| match tool.name {
            "web_search" => web.search.is_some(),
            "youtube_transcribe" => web.transcribe.is_some(),
            _ => true,
        };
        return Ok(own(TOOLS.iter().filter(works).copied().collect()));
    };
    let is_ours = |name: &str| TOOLS.iter().any(|tool| tool.name == name);
    let unknown = names
        .iter()
        .find(|name| !is_ours(name) && !name.contains(mcp::BETWEEN));
    if let Some(name) = unknown {
        let all: Vec<&str> = TOOLS.iter().map(|tool| tool.name).collect();
        let there = all.join(", ");
        return Err(format!(
            "use tool {name}: it is not known; there are {there}, and SERVER__TOOL of MCP servers"
        ));
    }
    let comes = |tool: &&&Tool| toolset::names(names, tool.name);
    Ok(own(TOOLS.iter().filter(comes).copied().collect()))
}

pub(crate) fn find(tools: &[Granted], name: &str) -> Option<Granted> {
    tools.iter().find(|tool| tool.name() == name).cloned()
}

pub(crate) fn list(tools: &[Granted]) -> String {
    let names: Vec<&str> = tools.iter().map(Granted::name).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use dispatch_core::web::{SearchShape, SearchTable};

    use super::*;

    #[test]
    fn what_comes_with_what_is_granted() {
        let granted = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            granted(Some(&names), &WebTable::default()).map(|tools| list(&tools))
        };
        assert_eq!(granted(&[]).unwrap(), "todo");
        let both = granted(&["run_shell", "read_file"]).unwrap();
        assert_eq!(
            both,
            "read_file, read_file_slice, run_shell, shell_jobs, todo"
        );
        assert!(
            granted(&["fly"])
                .unwrap_err()
                .contains("there are read_file,")
        );
        let mut web = WebTable::default();
        let all = |web: &WebTable| list(&super::granted(None, web).unwrap());
        assert!(!all(&web).contains("web_search") && all(&web).contains("web_fetch"));
        web.search = Some(SearchTable {
            shape: SearchShape::Searxng,
            url: "http://127.0.0.1:1".into(),
            key: None,
        });
        assert!(all(&web).contains("web_search"));
    }
}
