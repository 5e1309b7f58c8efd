"""Small random models, so that tests need no download and no assets."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerFast, Qwen3Config

from opd.config import DistillConfig
from opd.models.language_model import LanguageModel

CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_tokenizer(extra: tuple[str, ...] = (), *, pad: str = "<|pad|>") -> PreTrainedTokenizerFast:
    """A byte-level tokenizer: one token a byte, so multi-byte characters span tokens."""
    vocabulary = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for token in ("<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", *extra):
        vocabulary[token] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token=pad)
    fast.add_special_tokens({"additional_special_tokens": ["<|system|>", "<|user|>", "<|assistant|>"]})
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_model(
    seed: int,
    *,
    name: str = "tiny",
    rows: int = 264,
    tokenizer: PreTrainedTokenizerFast | None = None,
    **config: object,
) -> LanguageModel:
    """A random Qwen3 with more matrix rows than tokens, sharp enough to have clear preferences."""
    torch.manual_seed(seed)
    tokenizer = tokenizer or make_tokenizer()
    settings = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "tie_word_embeddings": True,
        "max_position_embeddings": 256,
        "initializer_range": 0.3,
        "eos_token_id": tokenizer.eos_token_id,
    } | config
    model = AutoModelForCausalLM.from_config(Qwen3Config(vocab_size=rows, **settings))
    model.eval().requires_grad_(False)
    return LanguageModel(name, model, tokenizer)


def model_of(config: PreTrainedConfig, *, sharpness: float) -> LanguageModel:
    """A random model of any family, its weights multiplied so that it has clear preferences."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    config.eos_token_id = tokenizer.eos_token_id
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(sharpness)
    return LanguageModel("m", model, tokenizer)


def small_config(**changes: object) -> DistillConfig:
    """The settings of a run of two small steps, unless they are changed."""
    small = {"steps": 2, "warmup_steps": 0, "prompts_per_step": 4, "max_tokens": 24, "eval_prompts": 0}
    return DistillConfig(**small | changes)
