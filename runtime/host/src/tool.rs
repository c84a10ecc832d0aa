//! Tools: who runs them, by name, and the ones that come with the runtime.

mod builtin;
mod call;
mod client;

use std::{collections::BTreeMap, fmt, sync::Arc};

use rspp_proto::spec::{HttpExecutor, ToolDeclaration, ToolExecutor};
use rspp_provider_api::Tool;

pub(crate) use call::{Gate, ToolInvocation, ToolSetup, crashed};
pub(crate) use client::{CameBack, ClientCalls, ClientTool};

/// Makes a tool that posts to a server.
pub type HttpToolFactory =
    Arc<dyn Fn(&HttpExecutor) -> Result<Arc<dyn Tool>, String> + Send + Sync>;

/// The tools that pipelines may declare: `clock` and `end_call`, and what the program adds.
#[derive(Clone)]
pub struct ToolRegistry {
    tools: BTreeMap<String, Arc<dyn Tool>>,
    http: Option<HttpToolFactory>,
    /// Who answers instead of clients.
    clients: Option<Arc<dyn Tool>>,
}

/// Who runs a declared tool.
pub(crate) enum Runner {
    Program(Arc<dyn Tool>),
    Client,
}

impl Default for ToolRegistry {
    fn default() -> Self {
        let mut tools = BTreeMap::<String, Arc<dyn Tool>>::new();
        tools.insert("clock".to_owned(), builtin::clock());
        tools.insert("end_call".to_owned(), builtin::end_call());
        Self {
            tools,
            http: None,
            clients: None,
        }
    }
}

impl ToolRegistry {
    /// What comes with the runtime, and what servers run.
    pub fn with_http(
        make: impl Fn(&HttpExecutor) -> Result<Arc<dyn Tool>, String> + Send + Sync + 'static,
    ) -> Self {
        let mut tools = Self::default();
        tools.serve_http(Arc::new(make));
        tools
    }

    /// Adds a tool; one of the same name is replaced.
    pub fn register(&mut self, name: impl Into<String>, tool: Arc<dyn Tool>) -> &mut Self {
        self.tools.insert(name.into(), tool);
        self
    }

    /// Lets pipelines declare tools that servers run.
    pub fn serve_http(&mut self, factory: HttpToolFactory) -> &mut Self {
        self.http = Some(factory);
        self
    }

    /// Has this answer the calls that clients would be told of, as where no client is there.
    pub fn stand_in_for_clients(&mut self, tool: Arc<dyn Tool>) -> &mut Self {
        self.clients = Some(tool);
        self
    }

    /// The registered names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tools.keys().map(String::as_str)
    }

    /// Who runs a declared tool, or why nobody does.
    pub(crate) fn find(&self, declared: &ToolDeclaration) -> Result<Runner, String> {
        let tool = match &declared.run {
            ToolExecutor::Registered => {
                self.tools.get(&declared.name).cloned().ok_or_else(|| {
                    let known: Vec<_> = self.names().collect();
                    format!("it is not registered; known: {}", known.join(", "))
                })?
            }
            ToolExecutor::Http(server) => match &self.http {
                Some(make) => make(server)?,
                None => return Err("this runtime posts to no servers".to_owned()),
            },
            ToolExecutor::Client => match &self.clients {
                Some(stand_in) => Arc::clone(stand_in),
                None => return Ok(Runner::Client),
            },
        };
        Ok(Runner::Program(tool))
    }
}

impl fmt::Debug for ToolRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.tools.keys()).finish()
    }
}
