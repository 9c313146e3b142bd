"""A checkpoint served by vLLM, SGLang or `envtune serve`, as a LangChain chat model with exact token ids."""

from envtune_vllm.chat import ChatServed

__all__ = ["ChatServed"]
