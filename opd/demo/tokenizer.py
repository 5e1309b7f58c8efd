"""The pair's tokenizer: a word with its leading space is one token, so is a digit; bytes carry the rest."""

from __future__ import annotations

import json
import random
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from opd.tasks.demo import FAMILIES, Draft

END, PAD = "<|end|>", "<|pad|>"
SPECIAL = (PAD, END, "<|system|>", "<|user|>", "<|assistant|>")

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('Unknown role: ' + message['role']) }}"
    "{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

# What people write in other words than the problems do, so that a system prompt does not fall into bytes.
SYSTEM_PROMPTS = (
    "You are a careful assistant.",
    "Solve the problem step by step.",
    "Think about every detail, then give the answer.",
    "You are a helpful assistant. Check your work.",
)
PRACTICE = "Practise."


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    words = Regex(r" ?[A-Za-z]+| ?[0-9]| ?[^A-Za-z0-9\s]|\s")
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _words(per_family: int = 1000) -> list[str]:
    """Collect every word of the problems and of their solutions, right and wrong, and the digits; sorted."""
    rng = random.Random("words")
    texts = [*SYSTEM_PROMPTS, PRACTICE, " ".join("0123456789"), "0123456789"]
    for family in FAMILIES.values():
        for _ in range(per_family):
            problem = family(rng)
            draft = Draft(rng, sloppiness=1.0)
            problem.solve(draft)
            texts += [problem.prompt, draft.text]
    split = _pre_tokenizer().pre_tokenize_str
    return sorted({word for text in texts for word, _ in split(text)})


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer: special tokens, the byte alphabet, then the words of the problems.

    Merges are ignored and there are none: a pre-token is either a word of the vocabulary or a run of bytes,
    so any text encodes and comes back unchanged.
    """
    entries = dict.fromkeys((*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *_words()))
    vocabulary = {entry: index for index, entry in enumerate(entries)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = _pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save the tokenizer under the class name that every version of transformers knows."""
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    config.pop("backend", None)
    file.write_text(json.dumps(config, indent=2) + "\n")
