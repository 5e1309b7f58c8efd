"""The other programs that do the same work, each at its best settings."""

from __future__ import annotations

from opd.models import LanguageModel


def without_our_attention(model: LanguageModel) -> LanguageModel:
    """Give a model the attention back that transformers would use for it; a peer does not know ours."""
    model.causal_lm.set_attn_implementation("sdpa")
    return model
