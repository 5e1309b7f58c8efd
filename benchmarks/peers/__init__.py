"""The other programs that do the same work, each at its best settings."""

from __future__ import annotations

from torch import nn

from opd.engines.linear import OneDnnLinear
from opd.models import LanguageModel


def without_our_layers(model: LanguageModel) -> LanguageModel:
    """Give a model the attention and the linear layers back that transformers would use for it."""
    model.causal_lm.set_attn_implementation("sdpa")
    for module in model.causal_lm.modules():
        if type(module) is OneDnnLinear:
            module.__class__ = nn.Linear
    return model
