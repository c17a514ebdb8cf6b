"""vLLM behind the same two methods: for generation on a GPU, all prompts in one call.

An extra (`pip install -e '.[vllm]'`), never run here for want of a GPU: a test holds the calls to vLLM's published
signatures, no more. vLLM loads a folder, so the model's weights
are written to a temporary one; likelihoods stay with `HFBackend`, because vLLM recomputes the whole prompt for
prompt_logprobs, without its prefix cache.
"""

import tempfile
from collections.abc import Sequence
from typing import Any

from train.benchmarks.hf_backend import HFBackend
from train.benchmarks.interface import Choice, Likelihood, Output, Request
from train.errors import ConfigError


class VLLMBackend:
    """hf: the backend of the same model, which encodes the prompts and scores choices."""

    def __init__(self, hf: HFBackend, context_length: int | None) -> None:
        try:
            import vllm  # type: ignore[import-not-found]
        except ImportError:
            raise ConfigError(
                "eval.backend=vllm, which isn't installed", "the extra vllm", "pip install -e '.[vllm]'"
            ) from None
        self._hf, self._vllm, self._context = hf, vllm, context_length or 1 << 30
        model: Any = hf.model.merge_and_unload() if hasattr(hf.model, "peft_config") else hf.model  # type: ignore[operator]
        dtype = str(next(model.parameters()).dtype).removeprefix("torch.")  # its own choice would be another
        with tempfile.TemporaryDirectory(prefix="vllm-") as folder:  # read while the engine is made
            model.save_pretrained(folder)
            hf.tokenizer.save_pretrained(folder)
            self._engine = vllm.LLM(model=folder, max_model_len=context_length, dtype=dtype, seed=0)

    def generate(self, requests: Sequence[Request]) -> list[Output]:
        """In one call: vLLM batches continuously."""
        prompts, settings, cut = [], [], []
        for request in requests:
            limit = min(request.max_new_tokens, max(1, self._context // 2))
            ids = self._hf.encoder.encode(request)
            cut.append(len(ids) > self._context - limit)
            prompts.append({"prompt_token_ids": ids[-(self._context - limit) :]})
            settings.append(
                self._vllm.SamplingParams(
                    temperature=request.temperature,
                    max_tokens=limit,
                    stop=list(request.stop) or None,
                    seed=request.seed if request.temperature > 0 else None,
                )
            )
        found = self._engine.generate(prompts, settings, use_tqdm=False)
        return [
            Output(
                one.text,
                sum(token not in self._hf.end_ids for token in one.token_ids),  # vLLM counts the end token
                one.finish_reason == "length",
                is_cut,
            )
            for one, is_cut in zip((answer.outputs[0] for answer in found), cut, strict=True)
        ]

    def likelihoods(self, choices: Sequence[Choice]) -> list[Likelihood]:
        """By the model in memory."""
        return self._hf.likelihoods(choices)
