"""What a chat model is before it is loaded: which files it stands for, and what it can do."""

from __future__ import annotations

import hashlib
from typing import Any, cast

from langchain_core.language_models import ModelProfile

from envtune_agents.weights import checkpoint_files, context_length


def files_stamp(model: str) -> str:
    """16 hex digits that change when a local checkpoint's files do; "" for a hub id, whose revision tells."""
    files = checkpoint_files(model)
    if not files:
        return ""
    state = "|".join(f"{file.name}:{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in files)
    return hashlib.sha256(state.encode()).hexdigest()[:16]


def model_profile(model: str, max_context: int | None, max_tokens: int) -> ModelProfile:
    """LangChain's profile: text in, text, tool calls and JSON out. Reads headers of local files, asks no network."""
    profile: dict[str, Any] = {
        "name": model,
        "open_weights": True,
        "text_inputs": True,
        "text_outputs": True,
        "tool_calling": True,
        "tool_choice": True,
        "tool_call_streaming": True,
        "structured_output": True,
        "temperature": True,
        "max_output_tokens": max_tokens,
        "mid_conversation_system_messages": True,
        **dict.fromkeys(_NOT_SUPPORTED, False),
    }
    context = max_context or context_length(model)
    if context:
        profile["max_input_tokens"] = context
    return cast("ModelProfile", profile)


_NOT_SUPPORTED = (
    "image_inputs",
    "image_url_inputs",
    "pdf_inputs",
    "audio_inputs",
    "video_inputs",
    "image_tool_message",
    "pdf_tool_message",
    "image_outputs",
    "audio_outputs",
    "video_outputs",
    "attachment",
)
