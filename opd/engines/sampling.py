"""From prompts to trajectories: render, give every token its random number, let the student write."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from opd.engines.transformers import TransformersSampler
from opd.models.network import LanguageModel
from opd.models.pair import Pair
from opd.models.parallel import exchange, rank, world
from opd.models.text import ModelText
from opd.phases import count
from opd.protocols import Sampler, SampleRequest
from opd.trajectory import Prompt, Trajectory


def uniforms(
    n: int, *, seed: int, step: int, prompt_index: int, sample_index: int, stream: int = 0
) -> NDArray[np.float64]:
    """Return the random numbers of one trajectory's positions, float64 ``[n]`` in [0, 1).

    They depend on nothing else than these arguments; a longer request begins with the shorter one's numbers.
    """
    key = np.random.SeedSequence((seed, step, prompt_index, sample_index, stream))
    return np.random.Generator(np.random.Philox(key)).random(n)


def requests(
    pair: Pair | ModelText,
    prompts: Sequence[Prompt],
    *,
    n: int = 1,
    seed: int = 0,
    step: int = 0,
    stream: int = 0,
    max_tokens: int = 256,
    prefixes: Sequence[ArrayLike] | None = None,
) -> list[SampleRequest]:
    """Turn prompts into requests, flat and prompt-major: all samples of the first prompt come first.

    Args:
        pair: the student whose chat template renders the prompts, or the pair that it is of, whose teacher
            may render them too (:attr:`Pair.teacher_renders`).
        prompts: texts or lists of messages.
        n: samples a prompt.
        seed: with ``step``, ``stream``, prompt and sample index, decides every random number.
        step: the training step; 0 elsewhere.
        stream: which of the independent streams of random numbers: each lesson of a step has its own.
        max_tokens: bound on each completion, forced prefix included.
        prefixes: token ids each prompt's completions must begin with, one array a prompt.

    Raises:
        ValueError: an empty prompt, one too long for the context of the student or the teacher, n or
            max_tokens below 1, or a prefix that leaves no token to sample.
    """
    if n < 1:
        raise ValueError(f"The number of samples a prompt must be at least 1, not {n}.")
    if max_tokens < 1:
        raise ValueError(f"The completion length must be at least 1 token, not {max_tokens}.")
    if seed < 0:
        raise ValueError(f"The seed must be 0 or a positive integer, not {seed}.")
    if prefixes is not None and len(prefixes) != len(prompts):
        raise ValueError(f"There are {len(prompts)} prompts but {len(prefixes)} prefixes; give one each.")
    model = pair.student if isinstance(pair, Pair) else pair
    out = []
    for i, prompt in enumerate(prompts):
        ids = model.render(prompt, room=max_tokens, side="student")
        teacher_ids = pair.teacher_prompt(prompt, ids, room=max_tokens) if isinstance(pair, Pair) else None
        prefix = None if prefixes is None else np.asarray(prefixes[i], dtype=np.int64)
        if prefix is not None and len(prefix) >= max_tokens:
            raise ValueError(f"A prefix of {len(prefix)} tokens leaves nothing to sample of {max_tokens}.")
        for j in range(n):
            u = uniforms(max_tokens, seed=seed, step=step, prompt_index=i, sample_index=j, stream=stream)
            out.append(SampleRequest(ids, u, prefix, teacher_ids, prompt_index=i, sample_index=j))
    return out


def sample(
    pair: Pair | LanguageModel,
    prompts: Sequence[Prompt],
    *,
    n: int = 1,
    seed: int = 0,
    temperature: float = 1.0,
    max_tokens: int = 256,
    prefixes: Sequence[ArrayLike] | None = None,
) -> list[Trajectory]:
    """Sample ``n`` trajectories a prompt from the student.

    Args:
        pair: the pair whose student writes, or a single model.
        prompts: texts or lists of messages.
        n: samples a prompt.
        seed: the same seed gives the same trajectories, however they are batched.
        temperature: divides the logits; 0 takes the likeliest token every time.
        max_tokens: bound on each completion.
        prefixes: token ids each prompt's completions must begin with, one array a prompt.

    Returns:
        ``len(prompts) * n`` trajectories, prompt-major.

    Raises:
        ValueError: see :func:`requests`; or a negative temperature.
    """
    check_temperature(temperature)
    model = pair.student if isinstance(pair, Pair) else pair
    asked = requests(pair, prompts, n=n, seed=seed, max_tokens=max_tokens, prefixes=prefixes)
    done = sample_together(TransformersSampler(model), asked, temperature=temperature)
    return sorted(done, key=lambda t: (t.prompt_index, t.sample_index))


def sample_together(
    sampler: Sampler,
    asked: Sequence[SampleRequest],
    *,
    temperature: float,
    finished: Callable[[Trajectory], None] = lambda _: None,
) -> list[Trajectory]:
    """Sample, each process its share of the prompts; all get all trajectories, in no particular order.

    What is sampled does not depend on the number of processes: the requests bring their random numbers. Each
    of this process's own trajectories is given to ``finished`` while others still grow.
    """
    mine = [request for request in asked if request.prompt_index % world() == rank()]
    written = []
    for trajectory in sampler.sample(mine, temperature=temperature):
        finished(trajectory)
        written.append(trajectory)
        count(len(written), len(mine))
    return [t for part in exchange(written) for t in part]


def check_temperature(temperature: float) -> None:
    """Refuse a temperature nobody can sample at.

    Raises:
        ValueError: it is negative or not a number.
    """
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"The temperature must be 0 or a positive number, not {temperature}.")
