"""What the pair learns from: solutions and drills as token ids with loss weights, packed into rows."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from opd.demo.recipes import DRILL_SHARE, RESULT_WEIGHT, ROW_LENGTH, ROWS, Recipe
from opd.demo.tokenizer import PRACTICE, SYSTEM_PROMPTS
from opd.tasks.demo import Draft, Problem, problems


@dataclass
class Document:
    """A chat of one exchange as token ids, with the loss weight of each token."""

    ids: list[int]
    weights: list[float]


def _document(
    tokenizer: PreTrainedTokenizerFast, prompt: str, completion: str, weights: list[float], system: str = ""
) -> Document:
    """Encode an exchange; ``weights`` are of the completion's characters, and a token gets its least one."""
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": prompt})
    head = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    body = tokenizer(completion, add_special_tokens=False, return_offsets_mapping=True)
    return Document(
        [*head, *body.input_ids, tokenizer.eos_token_id],
        [0.0] * len(head) + [min(weights[start:end]) for start, end in body.offset_mapping] + [1.0],
    )


def _drill(tokenizer: PreTrainedTokenizerFast, drafts: Iterable[Draft], rng: random.Random) -> Document:
    """Turn the sums of some solutions into an exercise; only their results carry loss."""
    sums = [line for draft in drafts for line in draft.sums]
    rng.shuffle(sums)
    weights: list[float] = []
    for line in sums[:12]:
        given = line.index("=") + 1
        weights += [0.0] * given + [1.0] * (len(line) - given) + [0.0]  # the last is the space between two
    return _document(tokenizer, PRACTICE, " ".join(sums[:12]), weights)


def documents(
    tokenizer: PreTrainedTokenizerFast, recipe: Recipe, softened: bool, seed: str
) -> Iterator[Document]:
    """Yield training documents for ever: solutions, and drills of the sums that occur in them."""
    rng = random.Random(seed)
    stream = problems(seed, "train")

    def solved(problem: Problem) -> Draft:
        draft = Draft(rng, 0.0 if rng.random() < recipe.careful else recipe.sloppiness)
        problem.solve(draft)
        return draft

    while True:
        if rng.random() < DRILL_SHARE:
            yield _drill(tokenizer, map(solved, islice(stream, 5)), rng)
            continue
        problem = next(stream)
        draft = solved(problem)
        weights = [1.0] * len(draft.text)
        for start, end in draft.results:
            weights[start:end] = [RESULT_WEIGHT] * (end - start)
        for at in draft.wrong if recipe.masks else ():
            if not (softened and rng.random() < recipe.unmasked):
                weights[at] = 0.0
        system = rng.choice(SYSTEM_PROMPTS) if rng.random() < 0.05 else ""
        yield _document(tokenizer, problem.prompt, draft.text, weights, system)


def pack(stream: Iterator[Document]) -> dict[str, Tensor]:
    """Pack documents into rows, first fit, until one fits nowhere.

    Returns:
        ``ids``, ``positions`` (int64) and ``weights`` (float32; of predicting that token), all
        ``[ROWS, ROW_LENGTH]``, and ``mask``, bool ``[ROWS, 1, ROW_LENGTH, ROW_LENGTH]``: causal, and within
        a document.
    """
    ids = torch.zeros(ROWS, ROW_LENGTH, dtype=torch.long)
    positions = torch.zeros_like(ids)
    owner = torch.full_like(ids, -1)
    weights = torch.zeros(ROWS, ROW_LENGTH)
    used = [0] * ROWS
    for number, document in enumerate(stream):
        n = len(document.ids)
        row = next((row for row in range(ROWS) if used[row] + n <= ROW_LENGTH), None)
        if row is None:
            break
        place = slice(used[row], used[row] + n)
        ids[row, place] = torch.tensor(document.ids)
        positions[row, place] = torch.arange(n)
        owner[row, place] = number
        weights[row, place] = torch.tensor(document.weights)
        used[row] += n
    same = owner[:, :, None] == owner[:, None, :]
    mask = (same & torch.ones(ROW_LENGTH, ROW_LENGTH, dtype=torch.bool).tril())[:, None]
    return {"ids": ids, "positions": positions, "weights": weights, "mask": mask}
