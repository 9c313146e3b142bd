"""A `create_agent` app written for a hosted chat model, with a local checkpoint in its place: one line differs.

The checkpoint is a tiny one with random weights, so that this runs anywhere in seconds. It would say anything, and yet
its calls and its answer fit their schemas: a grammar decodes them. Needs `pip install langchain`.
"""

import tempfile

from langchain.agents import create_agent
from langchain.agents.middleware import wrap_model_call
from langchain.agents.structured_output import ProviderStrategy
from langchain_core.tools import tool
from pydantic import BaseModel

from envtune_agents import ChatTransformers
from envtune_agents.testing import tiny_qwen


@tool
def get_weather(city: str) -> str:
    """Get the weather of a city."""
    return "sunny, 20°C"


class Report(BaseModel):
    """The weather, for a newspaper."""

    celsius: int
    sunny: bool


@wrap_model_call
def look_first(request, handler):
    """The app's own rule, for any chat model: first a tool, then the report."""
    if request.messages[-1].type == "human":
        return handler(request.override(tool_choice="any", response_format=None))
    return handler(request.override(tools=[]))


# model = ChatOpenAI(model="gpt-5-mini", max_tokens=96)
model = ChatTransformers(model=tiny_qwen(tempfile.mkdtemp()), precision="fp32", seed=1, max_tokens=96)  # the one line

agent = create_agent(model, [get_weather], middleware=[look_first], response_format=ProviderStrategy(Report))
state = agent.invoke({"messages": [("user", "What is the weather like in Paris?")]})

_, call, result, answer = state["messages"]
trace = call.response_metadata["token_trace"]
print(f"ai: calls {call.tool_calls[0]['name']} with {sorted(call.tool_calls[0]['args'])}")
print(f"tool: {result.content}")
print("answer:", type(state["structured_response"]).__name__, sorted(state["structured_response"].model_dump()))
print("every sampled token is kept:", len(trace["completion_token_ids"]) == len(trace["logprobs"]) > 0)

# Expected output:
# ai: calls get_weather with ['city']
# tool: sunny, 20°C
# answer: Report ['celsius', 'sunny']
# every sampled token is kept: True
