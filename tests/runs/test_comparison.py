"""Two checkpoints side by side."""

import numpy as np
import pytest

from opd.runs.comparison import compare_checkpoints

pytestmark = pytest.mark.engine


def test_two_checkpoints_answer_the_same_prompts_and_stay(trained):
    first, last = 2, 4
    pairs = list(compare_checkpoints((trained, first), (trained, last), n=3, seed=5))
    assert len(pairs) == 3
    for a, b in pairs:
        assert a.messages == b.messages
        assert a.student == f"trained, step {first}"
        assert np.array_equal(a.trajectory.prompt_ids, b.trajectory.prompt_ids)
    assert all((trained.checkpoint(step) / "pinned").exists() for step in (first, last))
    (same, again), *_ = compare_checkpoints((trained, last), (trained, last), n=1)
    assert same.text == again.text
