//! Tasks of MCP, and what a task needs.
