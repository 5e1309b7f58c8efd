"""Small random models, so that tests need no download and no assets."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerFast, Qwen3Config

from opd.config import DistillConfig
from opd.models.kernels import prepare
from opd.models.network import LanguageModel
from opd.models.text import ModelText

SMALL = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 264, "head_dim": 16,
    "num_attention_heads": 2, "num_key_value_heads": 1,
}  # fmt: skip
"""Sizes that most families know by these names."""

CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

THINKING = CHAT_TEMPLATE.replace(
    "<|assistant|>",
    "<|assistant|>{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}",
)
"""Thinks unless it is told not to, as Qwen3's does."""


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


def make_text(tokenizer: PreTrainedTokenizerFast | None = None) -> ModelText:
    """What a tiny model reads and writes, without a network."""
    tokenizer = tokenizer or make_tokenizer()
    return ModelText("tiny", tokenizer, Qwen3Config(vocab_size=400, max_position_embeddings=256), None)


def make_model(
    seed: int,
    *,
    name: str = "tiny",
    rows: int = 264,
    tokenizer: PreTrainedTokenizerFast | None = None,
    **config: object,
) -> LanguageModel:
    """A random Qwen3 with more matrix rows than tokens, sharp enough to have clear preferences."""
    shape = SMALL | {"vocab_size": rows, "head_dim": 32, "tie_word_embeddings": True}
    shape |= {"max_position_embeddings": 256, "initializer_range": 0.3} | config
    model = model_of(Qwen3Config(**shape), seed=seed, name=name, tokenizer=tokenizer)
    model.model.requires_grad_(False)
    return model


def model_of(
    config: PreTrainedConfig,
    *,
    seed: int = 0,
    name: str = "tiny",
    tokenizer: PreTrainedTokenizerFast | None = None,
    sharpness: float = 1.0,
) -> LanguageModel:
    """A random model of any family, its weights multiplied so that it has clear preferences."""
    torch.manual_seed(seed)
    tokenizer = tokenizer or make_tokenizer()
    config.eos_token_id = tokenizer.eos_token_id
    network = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for p in network.parameters():
            p.mul_(sharpness)
    prepare(network)
    return LanguageModel(name, network, tokenizer)


def adapted(model: LanguageModel, **settings: object) -> PeftModel:
    """The network of a model under a random adapter; its own weights stay as they are."""
    lora = LoraConfig(task_type="CAUSAL_LM", **{"r": 4, "target_modules": "all-linear"} | settings)
    peft = get_peft_model(model.model, lora).eval()
    with torch.no_grad():
        for name, p in peft.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                p.add_(torch.rand_like(p) * 0.1)
    return peft


def save_adapter(base: Path | str, folder: Path) -> Path:
    """Write an adapter of a tiny model that lies in a folder, or on the hub."""
    model = make_model(0)
    model.model.name_or_path = str(base)
    adapted(model).save_pretrained(folder)
    return folder


def small_config(**changes: object) -> DistillConfig:
    """The settings of a run of two small steps, unless they are changed."""
    small = {"steps": 2, "warmup_steps": 0, "prompts_per_step": 4, "max_tokens": 24, "eval_prompts": 0}
    return DistillConfig(**small | changes)
