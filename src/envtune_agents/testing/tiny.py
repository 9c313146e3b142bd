"""A tiny random-weight Qwen3 checkpoint on disk, so that real loading and decoding paths run offline in a second.

Comes in: a folder. Goes out: a safetensors checkpoint with a byte-level BPE tokenizer and a ChatML template that
renders tools, laid out as Qwen3's. It says nothing sensible; it is the real architecture, not a double of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from envtune_agents.errors import require

INSTALL = "pip install 'envtune-agents[local]'"
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
PLAIN_ADDED_TOKENS = ("<tool_call>", "</tool_call>", "<think>", "</think>", "<tool_response>", "</tool_response>")
"""Added tokens with special=False, as in Qwen3: one token each, kept by `skip_special_tokens=True`."""

CHAT_TEMPLATE = r"""
{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\n\n' }}
    {%- endif %}
    {{- "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n" }}
    {{- "You are provided with function signatures within <tools></tools> XML tags:\n<tools>" }}
    {%- for tool in tools %}
        {{- "\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\n</tools>\n\nFor each function call, return a json object with function name and arguments within " }}
    {{- "<tool_call></tool_call> XML tags:\n<tool_call>\n{\"name\": <function-name>, \"arguments\": " }}
    {{- "<args-json-object>}\n</tool_call><|im_end|>\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>assistant\n' + (message.content or '') }}
        {%- for tool_call in message.tool_calls or [] %}
            {%- if not loop.first or message.content %}{{- '\n' }}{%- endif %}
            {%- set call = tool_call.function or tool_call %}
            {{- '<tool_call>\n{"name": "' + call.name + '", "arguments": ' }}
            {{- call.arguments if call.arguments is string else call.arguments | tojson }}
            {{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or messages[loop.index0 - 1].role != "tool" %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\n<tool_response>\n' + message.content + '\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != "tool" %}{{- '<|im_end|>\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}
""".strip()

_CORPUS = (
    'You may call one or more functions to assist with the user query. {"name": "get_weather", "arguments": {"city": ',
    "The quick brown fox jumps over the lazy dog. What is the weather like in Paris and in Berlin today?",
    '{"type": "function", "function": {"name": "add", "description": "Add two numbers", "parameters": {"type": ',
    '"object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["a", "b"]}}}',
    "For each function call, return a json object with function name and arguments within XML tags.",
)


def tiny_qwen(
    folder: str | Path, *, seed: int = 0, chat_template: str | None = CHAT_TEMPLATE, head_dim: int = 16
) -> Path:
    """A random-weight Qwen3 checkpoint written to `folder`: 2 layers, hidden 64, about 100,000 parameters.

    The same `seed` gives the same bytes. `chat_template=None` leaves the template out. `head_dim=128`, as in the real
    ones, is what transformers takes every Qwen3 in a GGUF file for. Its context is 2,048 tokens, and
    it decodes any text because the tokenizer is byte-level.
    """
    transformers = require("transformers", feature="tiny_qwen", install=INSTALL)
    torch = require("torch", feature="tiny_qwen", install=INSTALL)
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(chat_template)
    config = transformers.Qwen3Config(
        architectures=["Qwen3ForCausalLM"],
        dtype="float32",
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=head_dim,
        max_position_embeddings=2048,
        initializer_range=0.2,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
        pad_token_id=tokenizer.convert_tokens_to_ids("<|endoftext|>"),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.Qwen3ForCausalLM(config)
    model.generation_config.save_pretrained(path)
    config.save_pretrained(path)
    _save_tensors(model, path / "model.safetensors")
    tokenizer.save_pretrained(path)
    return path


def _save_tensors(model: Any, file: Path) -> None:
    """What `model.save_pretrained` writes, without its progress bar."""
    saving = require("safetensors.torch", feature="tiny_qwen", install=INSTALL)
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    saving.save_file(tensors, file, metadata={"format": "pt"})


def _tokenizer(chat_template: str | None) -> Any:
    transformers = require("transformers", feature="tiny_qwen", install=INSTALL)
    tokenizers = require("tokenizers", feature="tiny_qwen", install=INSTALL)
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=480,
        show_progress=False,
        special_tokens=[],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
    )
    bpe.train_from_iterator(_CORPUS, trainer)
    added = tokenizers.AddedToken
    bpe.add_special_tokens([added(text, special=True, normalized=False) for text in SPECIAL_TOKENS])
    bpe.add_tokens([added(text, special=False, normalized=False) for text in PLAIN_ADDED_TOKENS])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>", clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = chat_template
    return tokenizer
