"""Exchanges with real servers, replayed over HTTP, and answers written after a server's source."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from exchanges import CASES, DATA, Sender, local_server, replayed, streamed, wider_tiny_qwen

from envtune_agents import ChatTransformers
from envtune_agents.weights import Weights, tokenizer_only
from envtune_vllm import ChatServed

GREEDY = [name for name in CASES if name != "sampled"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wider_tiny_qwen(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def local(folder: Path) -> ChatTransformers:
    return ChatTransformers(model=folder, precision="fp32", temperature=0, max_tokens=16)


@pytest.fixture(scope="module")
def vllm(folder: Path) -> Iterator[ChatServed]:
    """vLLM 0.32 on a CPU with the tiny checkpoint in fp32, as `envtune serve --backend vllm` started it."""
    with replayed(DATA / "vllm-0.32.json") as address:
        yield ChatServed(model="tiny", base_url=address, tokenizer=folder, temperature=0, max_tokens=16)


@pytest.mark.parametrize("case", [name for name in GREEDY if name != "a demanded answer"])
def test_vllm_samples_what_our_engine_samples(case: str, vllm: ChatServed, local: ChatTransformers) -> None:
    theirs, ours = CASES[case](vllm), CASES[case](local)
    one, other = theirs.response_metadata["token_trace"], ours.response_metadata["token_trace"]
    assert one.pop("logprobs") == pytest.approx(other.pop("logprobs"), abs=1e-3)
    assert one == other
    assert theirs.content == ours.content
    assert theirs.response_metadata["finish_reason"] == ours.response_metadata["finish_reason"]


def test_vllm_decodes_by_our_grammar(vllm: ChatServed) -> None:
    reply = CASES["a demanded answer"](vllm)
    assert json.loads(str(reply.text)).keys() == {"days", "class_of_travel"}
    assert reply.response_metadata["token_trace"]["constrained"]


def test_vllms_log_probabilities_were_found_to_know_the_temperature(vllm: ChatServed) -> None:
    trace = CASES["sampled"](vllm).response_metadata["token_trace"]
    assert len(trace["logprobs"]) == len(trace["completion_token_ids"]) > 0


def sglang(
    weights: Weights, ids: list[int], logprobs: list[float], *, repeat: bool
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A whole answer and a stream as SGLang 0.5.23 writes them (`tokenizer_manager.py`); `repeat` says everything anew
    in each event, as it does unless started with --incremental-streaming-output."""
    pairs = [[logprob, token, None] for logprob, token in zip(logprobs, ids, strict=True)]
    counts = {"id": "1", "prompt_tokens": 9, "weight_version": "default", "cached_tokens": 4}
    events = []
    for end in range(1, len(ids) + 1):
        finish = {"type": "stop", "matched": ids[-1]} if end == len(ids) else None
        shown = pairs[:end] if repeat else pairs[end - 1 : end]
        meta = {**counts, "finish_reason": finish, "completion_tokens": end, "input_token_logprobs": []}
        meta |= {"output_token_logprobs": shown, "output_token_logprobs_length": end}
        start = 0 if repeat else end - 1
        text = weights.decode([token for token in ids[start:end] if token not in weights.end_token_ids])
        events.append({"text": text, "output_ids": [pair[1] for pair in shown], "meta_info": meta})
    whole = {**events[-1]["meta_info"], "output_token_logprobs": pairs}
    text = weights.decode(ids[:-1])
    return {"text": text, "output_ids": ids, "meta_info": whole}, events


@pytest.mark.parametrize("repeat", [True, False])
def test_sglang_is_asked_and_read_its_own_way(repeat: bool, folder: Path) -> None:
    weights = tokenizer_only(folder)
    ids = [*weights.encode("sunny ✓ today"), weights.end_token_ids[-1]]
    logprobs = [-0.5 - place / 8 for place in range(len(ids))]
    whole, events = sglang(weights, ids, logprobs, repeat=repeat)
    asked: list[dict[str, Any]] = []

    def answer(method: str, path: str, body: bytes, sender: Sender) -> None:
        if path == "/v1/models":
            card = {"id": "tiny", "owned_by": "sglang", "root": "tiny", "max_model_len": 2048}
            sender.send(200, json.dumps({"object": "list", "data": [card, {**card, "id": "tuned", "parent": "tiny"}]}))
            return
        assert path == "/generate"
        asked.append(json.loads(body))
        if asked[-1]["stream"]:
            lines = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
            sender.send(200, f"{lines}data: [DONE]\n\n", "text/event-stream")
        else:
            sender.send(200, json.dumps(whole))

    with local_server(answer) as address:
        model = ChatServed(model="tiny", base_url=address, tokenizer=folder, temperature=0.7, seed=3, max_tokens=50)
        for reply in (model.invoke("Hello"), streamed(model, "Hello", model="tuned", stop=["!"])):
            trace = reply.response_metadata["token_trace"]
            assert trace["completion_token_ids"] == ids
            assert trace["logprobs"] == logprobs
            assert reply.text == "sunny ✓ today"
            assert reply.response_metadata["finish_reason"] == "stop"
            assert reply.usage_metadata["input_token_details"]["cache_read"] == 4
    plain, stream = asked
    assert plain["input_ids"] == trace["prompt_token_ids"]
    assert plain["return_logprob"]
    assert plain["sampling_params"]["sampling_seed"] == 3
    assert plain["sampling_params"]["top_k"] == -1
    assert "lora_path" not in plain
    assert stream["lora_path"] == "tuned"
    assert stream["sampling_params"]["stop"] == ["!"]
