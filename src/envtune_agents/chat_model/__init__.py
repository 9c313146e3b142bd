"""A LangChain chat model over a local checkpoint, with exact token ids.

Comes in: LangChain messages and tools. Goes out: `AIMessage`s with tool calls, usage and the sampled tokens. Decoding
is the engine's, text formats are `qwen`'s, grammars are `grammar`'s.
"""

from envtune_agents.chat_model.engines import release_engines
from envtune_agents.chat_model.loading import let_langchain_load
from envtune_agents.chat_model.model import ChatTransformers
from envtune_agents.chat_model.token_model import TokenChatModel, TokenEngine

__all__ = ["ChatTransformers", "TokenChatModel", "TokenEngine", "release_engines"]

let_langchain_load(ChatTransformers)
