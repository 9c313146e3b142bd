"""A chat model that says what a script tells it: a real `BaseChatModel` without weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import SkipValidation

from envtune_agents.qwen import format_call, parse_reply
from envtune_agents.types import Task

Reply = AIMessage | str


class ScriptedChatModel(BaseChatModel):
    """Answers the n-th model call of any conversation with the n-th entry of its script.

        model = ScriptedChatModel(script=["<tool_call>…</tool_call>", "Done."])

    `script` is a list of replies, or a function from the conversation to a reply. A reply that is text is read as a
    Qwen reply, so tool calls in it become `tool_calls` and broken ones `invalid_tool_calls`. The position is the
    number of AI messages in the conversation, so one instance serves any number of conversations at the same time;
    after the last entry it says "".
    """

    script: SkipValidation[Sequence[Reply] | Callable[[list[BaseMessage]], Reply]]
    model_name: str = "scripted"

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Runnable[LanguageModelInput, AIMessage]:
        """The model itself, with the tools noted as any other model's would be."""
        return self.bind(tools=[convert_to_openai_tool(tool) for tool in tools], **kwargs)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self._reply(messages))])

    def _reply(self, messages: list[BaseMessage]) -> AIMessage:
        if callable(self.script):
            reply: Reply = self.script(messages)
        else:
            position = sum(isinstance(message, AIMessage) for message in messages)
            reply = self.script[position] if position < len(self.script) else ""
        message = ai_message(reply, position=len(messages)) if isinstance(reply, str) else reply.model_copy()
        message.response_metadata = {"model_name": self.model_name, **message.response_metadata}
        return message


def ai_message(text: str, *, position: int = 0) -> AIMessage:
    """The message that a Qwen reply of this text amounts to; `position` makes its call ids unique in a conversation."""
    parsed = parse_reply(text)
    return AIMessage(
        content=parsed.content,
        tool_calls=[
            {"name": call.name, "args": call.args, "id": f"call_{position}_{index}", "type": "tool_call"}
            for index, call in enumerate(parsed.tool_calls)
        ],
        invalid_tool_calls=[
            {
                "name": call.name,
                "args": call.text,
                "id": f"invalid_{position}_{index}",
                "error": call.error,
                "type": "invalid_tool_call",
            }
            for index, call in enumerate(parsed.invalid)
        ],
    )


def calls_message(*calls: tuple[str, dict[str, Any]], position: int = 0) -> AIMessage:
    """The message of a reply that makes these calls: `calls_message(("cd", {"folder": "a"}))`."""
    return ai_message("\n".join(format_call(name, args) for name, args in calls), position=position)


def solution_model(tasks: Sequence[Task]) -> ScriptedChatModel:
    """A model that plays each of these playground tasks by its own solution: all calls of a turn in one reply.

    The conversations are told apart by their first user message.
    """
    scripts = {task.turns[0]: _solution_script(task) for task in tasks}

    def reply(messages: list[BaseMessage]) -> AIMessage:
        opening = next(str(message.text) for message in messages if message.type == "human")
        position = sum(isinstance(message, AIMessage) for message in messages)
        return scripts[opening][position]

    return ScriptedChatModel(script=reply, model_name="solution")


def _solution_script(task: Task) -> list[AIMessage]:
    script: list[AIMessage] = []
    for calls in task.data["solution"]:
        if calls:
            script.append(calls_message(*calls, position=len(script)))
        script.append(AIMessage("Done."))
    return script
