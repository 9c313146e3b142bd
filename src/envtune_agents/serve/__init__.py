"""Serve a checkpoint over HTTP: with vLLM, with SGLang, or with our own engine behind OpenAI's protocol.

Comes in: where the weights are and which backend shall run them. Goes out: that backend's exact command, a healthy
server, or an ASGI application of our own. Clients are elsewhere: `ChatServed` of envtune-vllm is one.
"""

from envtune_agents.serve.app import serving_app
from envtune_agents.serve.plan import BACKENDS, ServePlan, client_lines, server_command
from envtune_agents.serve.run import serve

__all__ = ["BACKENDS", "ServePlan", "client_lines", "serve", "server_command", "serving_app"]
