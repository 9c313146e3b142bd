"""What LangChain's own suites are told about our chat model: every flag on that a text model can have."""

from __future__ import annotations

from typing import ClassVar


class Flags:
    """To be inherited before a suite."""

    has_tool_calling = True
    has_tool_choice = True
    has_structured_output = True
    supports_json_mode = True
    supports_anthropic_inputs = True
    returns_usage_metadata = True
    supports_model_override = True
    model_override_value = "tuned"
    supported_usage_metadata_details: ClassVar = {"invoke": ["cache_read_input"], "stream": ["cache_read_input"]}
