"""What the runs of one process share: weights as loaded, tokenizers, tokenised data.

A job is a worker that serves many runs; loading and tokenising once per process instead of once per run is most
of the time of a small one. A run gets the model with its weights set back to the loaded ones, bit for bit.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from train.config import RunConfig
from train.errors import ModelError
from train.model import context_length, load_model
from train.tokenizer import load_tokenizer
from train.tokens import TokenData, load_token_data


@dataclass
class Workbench:
    """`cache_folder`: tokenised data shared by all processes of one root; None keeps it in memory only."""

    cache_folder: Path | None
    _models: dict[tuple[str, str], tuple[nn.Module, dict[str, torch.Tensor]]] = field(default_factory=dict)
    _tokenizers: dict[str, Any] = field(default_factory=dict)
    _data: dict[tuple[str, ...], TokenData] = field(default_factory=dict)

    def tokenizer(self, config: RunConfig, model_identity: str) -> Any:
        """The model's tokenizer, loaded once."""
        if model_identity not in self._tokenizers:
            self._tokenizers[model_identity] = load_tokenizer(config.model)
        return self._tokenizers[model_identity]

    def model(self, config: RunConfig, model_identity: str, device: torch.device) -> nn.Module:
        """The model with its loaded weights, every parameter trainable. One base model is kept at a time."""
        key = (model_identity, str(device))
        if key not in self._models:
            self._models.clear()
            model = load_model(config.model, device)
            self._check_vocabulary(config, model, self.tokenizer(config, model_identity))
            self._models[key] = (
                model,
                {name: value.detach().clone() for name, value in model.named_parameters()},
            )
        model, loaded = self._models[key]
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(loaded[name])
                parameter.requires_grad_(True)
                parameter.grad = None
        model.config.attention_dropout = config.train.dropout  # type: ignore[union-attr]
        for module in model.modules():
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = config.train.dropout  # type: ignore[assignment]
        return model

    def data(
        self, config: RunConfig, model: nn.Module, model_identity: str, dataset_identity: str
    ) -> TokenData:
        """The tokenised splits, made once per (data, tokenizer, template, length) and never per weight."""
        key = (model_identity, dataset_identity, repr(config.dataset), repr(config.model))
        if key not in self._data:
            self._data.clear()
            self._data[key] = load_token_data(
                config.dataset,
                config.model,
                self.tokenizer(config, model_identity),
                context_length=context_length(model),
                dataset_identity=dataset_identity,
                model_identity=model_identity,
                cache_folder=self.cache_folder,
            )
        return self._data[key]

    @staticmethod
    def _check_vocabulary(config: RunConfig, model: nn.Module, tokenizer: Any) -> None:
        rows = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator,union-attr]
        if len(tokenizer) > rows:
            raise ModelError(
                f"model {config.model.name}: its tokenizer has {len(tokenizer)} tokens, its embedding "
                f"{rows} rows",
                "a tokenizer that belongs to the checkpoint",
                "check model.path",
            )
