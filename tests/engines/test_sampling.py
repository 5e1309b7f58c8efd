"""What cannot be sampled or graded is refused in a sentence before anything is computed."""

import pytest
from tiny import make_model, model_of
from transformers import GPT2Config

import opd
from opd.models.pair import Pair
from opd.training.lessons import load_lessons
from opd.training.rollouts import gather


def gpt2(seed, *, name, max_position_embeddings):
    model = model_of(
        GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=max_position_embeddings), sharpness=3
    )
    model.name = name
    return model


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"prompts": [""]}, "The prompt is empty"),
        ({"prompts": ["   \n"]}, "The prompt is empty"),
        ({"prompts": [[{"content": "x"}]]}, "A prompt is a text or a list of messages"),
        ({"prompts": ["x" * 400]}, "400|exceeds the 256 tokens"),
        ({"prompts": ["hi"], "max_tokens": 255}, "exceeds the 256 tokens"),
        ({"prompts": ["hi"], "n": 0}, "at least 1, not 0"),
        ({"prompts": ["hi"], "max_tokens": 0}, "at least 1 token, not 0"),
        ({"prompts": ["hi"], "temperature": -1.0}, "not -1.0"),
        ({"prompts": ["hi"], "temperature": float("nan")}, "not nan"),
        ({"prompts": ["hi"], "seed": -1}, "not -1"),
    ],
)
def test_bad_requests_are_refused_in_a_sentence(pair, call, message):
    with pytest.raises(ValueError, match=message):
        opd.sample(pair, **{"max_tokens": 8} | call)


@pytest.mark.parametrize("make", [make_model, gpt2])
def test_a_teacher_of_a_shorter_context_is_never_read_beyond_it(pair, make):
    """Rotary positions go on in silence, learned ones end in an IndexError."""
    short = Pair(pair.student, make(1, name="short", max_position_embeddings=40))
    assert len(opd.grade(short, opd.sample(short, ["hi"], max_tokens=10))) == 1
    message = "the 40 tokens short can read"
    with pytest.raises(ValueError, match=message):
        opd.sample(short, ["hi"], max_tokens=60)
    with pytest.raises(ValueError, match=message):
        next(opd.review_prompts(short, ["hi"], max_tokens=60))
    (long,) = (t for t in opd.sample(pair, ["hi"], n=20, max_tokens=60) if t.sample_index == 3)
    assert len(long) == 60
    with pytest.raises(ValueError, match=message + r"\. Shorten the text, or use a model"):
        opd.grade(short, [long])
    config = opd.DistillConfig(max_tokens=60, prompts_per_step=4, device="cpu")
    with pytest.raises(ValueError, match=message):
        gather(config, load_lessons(config, short), None, 1)


def test_nothing_to_grade_is_refused(pair):
    (t,) = opd.sample(pair, ["hi"], max_tokens=3)
    empty = opd.Trajectory(t.prompt_ids, t.completion_ids[:0], None, "stop", t.prompt_ids)
    with pytest.raises(ValueError, match="nothing to grade"):
        opd.grade(pair, [empty])
    alien = opd.Trajectory(t.prompt_ids, t.completion_ids + 10**6, None, "stop", t.prompt_ids)
    with pytest.raises(ValueError, match="Token ids"):
        opd.grade(pair, [alien])
