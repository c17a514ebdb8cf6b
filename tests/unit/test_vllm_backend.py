"""vLLM's backend against vLLM's published signatures. vLLM itself needs a GPU and has never run here.

The engine below takes vLLM's arguments by vLLM's names (LLM and LLM.generate of vllm/entrypoints/llm.py,
SamplingParams, CompletionOutput with the end token among its token_ids) and answers with transformers from the
folder it is given.
"""

import sys
import types
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from train.benchmarks.hf_backend import HFBackend
from train.benchmarks.interface import Choice, Request
from train.benchmarks.prompts import PromptEncoder
from train.benchmarks.vllm_backend import VLLMBackend
from train.config import ModelConfig
from train.errors import ConfigError
from train.model import add_adapters, context_length, load_model
from train.tokenizer import load_tokenizer

CPU = torch.device("cpu")


@dataclass
class SamplingParams:
    temperature: float = 1.0
    seed: int | None = None
    stop: str | list[str] | None = None
    max_tokens: int | None = 16


@dataclass
class CompletionOutput:
    text: str
    token_ids: Sequence[int]
    finish_reason: str | None


@dataclass
class RequestOutput:
    outputs: list[CompletionOutput] = field(default_factory=list)


class LLM:
    def __init__(
        self, model: str, *, dtype: str = "auto", seed: int | None = None, max_model_len: int | None = None
    ) -> None:
        assert dtype == "float32"
        assert (Path(model) / "tokenizer.json").is_file()
        config = ModelConfig(name="x", source="local", path=model)
        self.model, self.tokenizer = load_model(config, CPU).eval(), load_tokenizer(config)
        self.max_model_len = max_model_len

    def generate(
        self, prompts: Any, sampling_params: Any = None, *, use_tqdm: bool = True, lora_request: Any = None
    ) -> list[RequestOutput]:
        found = []
        for prompt, how in zip(prompts, sampling_params, strict=True):
            ids = prompt["prompt_token_ids"]
            assert len(ids) + how.max_tokens <= self.max_model_len
            assert how.temperature == 0
            assert how.seed is None
            written = self.model.generate(
                torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
                do_sample=False,
                max_new_tokens=how.max_tokens,
            )[0, len(ids) :].tolist()
            text = self.tokenizer.decode(written, skip_special_tokens=True)
            ended = self.tokenizer.eos_token_id in written
            for stop in how.stop or ():
                if stop in text:
                    text, ended = text[: text.index(stop)], True
            found.append(RequestOutput([CompletionOutput(text, written, "stop" if ended else "length")]))
        return found


@pytest.fixture
def hf():
    config = ModelConfig(name="embedded", source="embedded")
    model, tokenizer = load_model(config, CPU).eval(), load_tokenizer(config)
    encoder = PromptEncoder(tokenizer, template="raw", model_add_bos=None, add_bos=None)
    return HFBackend(model, tokenizer, CPU, encoder, context_length=context_length(model))


@pytest.fixture
def engine(monkeypatch):
    module = types.ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, SamplingParams
    monkeypatch.setitem(sys.modules, "vllm", module)


REQUESTS = [
    Request("a", prompt="the fox", max_new_tokens=12),
    Request("b", prompt="one and two make", max_new_tokens=40),
    Request("c", prompt="dan walks to the", max_new_tokens=20, stop=(".",)),
    Request("d", prompt="the fox " * 200, max_new_tokens=6),
]


def test_it_writes_what_transformers_writes(hf, engine):
    backend = VLLMBackend(hf, context_length(hf.model))
    expected, found = hf.generate(REQUESTS), backend.generate(REQUESTS)
    assert [one.text for one in found] == [one.text for one in expected]
    assert [one.is_truncated for one in found] == [one.is_truncated for one in expected]
    assert [one.is_cut for one in found] == [False, False, False, True]
    without_stops = [0, 1, 3]  # vLLM also counts what it wrote of the token that stopped it
    assert [found[n].num_tokens for n in without_stops] == [expected[n].num_tokens for n in without_stops]
    choices = [Choice("the fox", " runs"), Choice("the fox", " sleeps")]
    assert backend.likelihoods(choices) == hf.likelihoods(choices)


def test_adapters_are_merged_into_what_it_loads(hf, engine):
    from train.compose import compose_run

    words = ["objective.prompt_weight=0", "objective.response_weight=1", "seed=0", "train.method=lora"]
    adapted = add_adapters(hf.model, compose_run(words).train, 0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(len(name)))
    hf.model = adapted.eval()
    expected = hf.generate(REQUESTS)
    found = VLLMBackend(hf, context_length(hf.model)).generate(REQUESTS)
    assert [one.text for one in found] == [one.text for one in expected]


def test_without_it_the_line_says_what_to_type(hf, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(
        ConfigError, match=r"eval\.backend=vllm, which isn't installed.*'\.\[vllm\]'"
    ) as caught:
        VLLMBackend(hf, 256)
    assert "\n" not in str(caught.value)
