"""envtune-agents for LangChain's `create_agent`: hints as middleware."""

from envtune_langchain.middleware import HintMiddleware

__all__ = ["HintMiddleware"]
