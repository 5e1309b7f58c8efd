"""What we use of transformers, imported in one place and whole.

Its names are imported when they are first asked for. Where two threads of the app ask at once, one may find a
module half made ("cannot import name 'AutoConfig'"); of this module Python lets only one thread be the first.
"""

from threading import Lock

from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    DynamicCache,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.utils import logging

__all__ = [
    "ROPE_INIT_FUNCTIONS",
    "AttentionInterface",
    "AttentionMaskInterface",
    "AutoConfig",
    "AutoModelForCausalLM",
    "AutoTokenizer",
    "BitsAndBytesConfig",
    "Cache",
    "DynamicCache",
    "DynamicLayer",
    "DynamicSlidingWindowLayer",
    "GenerationConfig",
    "PreTrainedModel",
    "PreTrainedTokenizerFast",
    "bytes_to_unicode",
    "logging",
    "one_at_a_time",
    "sdpa_attention_forward",
    "sdpa_mask",
]

one_at_a_time = Lock()
"""Held by whoever loads: transformers patches modules meanwhile, and of two that load at once one misses tied
weights."""
