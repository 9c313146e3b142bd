"""Answers in JSON: `with_structured_output`, and what a prompt says about the form of the answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Literal

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import BaseMessage, SystemMessage
from langchain_core.output_parsers import BaseOutputParser, JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_json_schema
from langchain_core.utils.pydantic import is_basemodel_subclass

from envtune_agents.chat_model.settings import offered_tools
from envtune_agents.errors import ConstraintError, unknown
from envtune_agents.qwen import flatten_content

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

Method = Literal["function_calling", "json_schema", "json_mode"]
METHODS = ("function_calling", "json_schema", "json_mode")
_INSTRUCTION = "# Answer format\n\nGive your final answer as JSON that follows this schema, and nothing else:\n"


def structured(
    model: BaseChatModel,
    schema: Any,
    method: str,
    *,
    include_raw: bool,
    strict: bool | None,
    tools: Sequence[Any] | None,
) -> Runnable[LanguageModelInput, Any]:
    """`model`, then a parser for `schema`; the arguments are those of `ChatTransformers.with_structured_output`."""
    if method not in METHODS:
        raise ConstraintError(unknown("method", method, METHODS))
    if schema is None and method != "json_mode":
        raise ConstraintError(f"method {method!r} needs a schema: a pydantic class, a TypedDict or a JSON schema.")
    if tools and method != "json_schema":
        raise ConstraintError(f"tools go with method 'json_schema' only, not with {method!r}.")
    note = {"kwargs": {"method": method, "strict": strict}, "schema": schema if schema is not None else {}}
    given: dict[str, Any] = {} if strict is None else {"strict": strict}
    if schema is not None:
        given["ls_structured_output_format"] = note
    if method == "function_calling":
        (shown,) = offered_tools([schema])
        name = shown["function"]["name"]
        bound = model.bind_tools([schema], tool_choice=name, parallel_tool_calls=False, **given)
        parser = _call_parser(schema, name)
    else:
        bound = model.bind_tools(tools or [], response_format=_response_format(schema, method), **given)
        parser = _text_parser(schema)
    return _with_raw(bound, parser) if include_raw else bound | parser


def _response_format(schema: Any, method: str) -> dict[str, Any]:
    if method == "json_mode":
        return {"type": "json_object"} if schema is None else {"type": "json_object", "schema": _json_schema(schema)}
    plain = _json_schema(schema)
    return {"type": "json_schema", "json_schema": {"name": plain.get("title", "answer"), "schema": plain}}


def _json_schema(schema: Any) -> dict[str, Any]:
    try:
        return convert_to_json_schema(schema)
    except Exception as error:  # as in `offered_tools`
        reason = str(error).strip().splitlines()
        raise ConstraintError(
            f"{schema!r} is no schema ({reason[0] if reason else error!r}). Wanted: a pydantic class, a TypedDict, or "
            "a JSON schema with a title."
        ) from error


def _call_parser(schema: Any, name: str) -> BaseOutputParser[Any]:
    if isinstance(schema, type) and is_basemodel_subclass(schema):
        return PydanticToolsParser(tools=[schema], first_tool_only=True)
    return JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)


def _text_parser(schema: Any) -> BaseOutputParser[Any]:
    if isinstance(schema, type) and is_basemodel_subclass(schema):
        return PydanticOutputParser(pydantic_object=schema)
    return JsonOutputParser()


def _with_raw(bound: Runnable[Any, Any], parser: BaseOutputParser[Any]) -> Runnable[LanguageModelInput, Any]:
    """A dict of the message ("raw"), what it says ("parsed"), and why that could not be read ("parsing_error")."""
    parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
    nothing: Runnable[Any, Any] = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=bound) | parsed.with_fallbacks([nothing], exception_key="parsing_error")


def told_the_schema(
    messages: Sequence[BaseMessage], response_format: Mapping[str, Any] | None
) -> Sequence[BaseMessage]:
    """`messages` with the answer's schema in the system message where the format is "json_schema".

    The grammar makes the JSON fit in any case; names and descriptions of the fields are for the model to read.
    """
    if response_format is None or response_format.get("type") != "json_schema":
        return messages
    schema = json.dumps(response_format["json_schema"]["schema"], ensure_ascii=False)
    text = _INSTRUCTION + schema
    if messages and isinstance(messages[0], SystemMessage):
        own = flatten_content(messages[0].content)
        return [SystemMessage(f"{own}\n\n{text}" if own else text), *messages[1:]]
    return [SystemMessage(text), *messages]
