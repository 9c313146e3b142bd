"""Messages and tools <-> Qwen text. Pure: no torch, no langchain, no I/O.

`render_prompt` writes the prompt. In the other direction `parse_reply` (a whole reply) and `ReplyParser` (a reply
that is still arriving) take the text apart into content, reasoning, calls to run and calls that must not be run. Both
formats are read, in any mixture: Qwen3's JSON in `<tool_call>`, and the `<function=…>` XML of Qwen3-Coder and later.

    >>> reply = parse_reply('On it.\\n<tool_call>\\n{"name": "cd", "arguments": {"folder": "docs"}}\\n</tool_call>')
    >>> reply.content, reply.tool_calls
    ('On it.', (ParsedCall(name='cd', args={'folder': 'docs'}),))
"""

from envtune_agents.qwen.parser import ReplyParser, parse_reply
from envtune_agents.qwen.prompt import flatten_content, format_call, render_prompt
from envtune_agents.qwen.reply import InvalidCall, ParsedCall, ParsedReply

__all__ = [
    "InvalidCall",
    "ParsedCall",
    "ParsedReply",
    "ReplyParser",
    "flatten_content",
    "format_call",
    "parse_reply",
    "render_prompt",
]
