"""envtune-agents for LangChain's `create_agent` and for MCP tools: hints and progress as middleware, an interceptor."""

from envtune_langchain.mcp import McpInterceptor, mcp_interceptor
from envtune_langchain.middleware import HintMiddleware
from envtune_langchain.progress import ProgressMiddleware, ProgressState

__all__ = ["HintMiddleware", "McpInterceptor", "ProgressMiddleware", "ProgressState", "mcp_interceptor"]
