"""Branches, the teacher's line, fork value and point of no return."""

import json
from dataclasses import replace

import graded
import numpy as np
import pytest
import torch
from tiny import make_model

import opd
from opd.engines.sampling import requests
from opd.engines.transformers import TransformersSampler
from opd.grading.branching import (
    Option,
    branch,
    fork_value,
    fork_value_cost,
    judge_fork,
    more_rollouts,
    no_return_cost,
    point_of_no_return,
    rolling,
    teacher_choices,
    teacher_line,
    with_evidence,
)
from opd.grading.evaluation import newcombe
from opd.models.pair import Pair
from opd.reviews import BranchPoint
from opd.tasks import load_task
from opd.trajectory import Trajectory

pytestmark = pytest.mark.engine


def make_review(pair, prompt="What is 3 + 4?", *, seed=3, max_tokens=40, **options):
    (t,) = opd.sample(pair, [prompt], seed=seed, max_tokens=max_tokens, **options)
    (g,) = opd.grade(pair, [t])
    return opd.review(pair, prompt, t, g, seed=seed)


def last(states):
    *_, state = states
    return state


@pytest.fixture(scope="module")
def demo():
    """The embedded pair, its task, and a wrong answer with the index of its first error."""
    from opd.demo.report import first_wrong_token

    pair, task = opd.load_pair(), load_task("demo")
    for seed, example in enumerate(e for e in task.heldout(100) if e.family == "order"):
        review = make_review(pair, example.prompt, seed=seed, max_tokens=160)
        pieces = [*review.pieces[:-1], ""]
        error = first_wrong_token(example, pieces, stopped=True)
        if error:
            return pair, task, example, replace(review, correct=False), error
    raise AssertionError("no wrong answer among these")


def test_forcing_the_token_that_was_taken_gives_the_same_text(pair):
    review = make_review(pair)
    ids = review.trajectory.completion_ids
    assert len(ids) > 12
    for at in (0, 5, len(ids) - 2):
        again = last(branch(pair, review, at, int(ids[at]), max_tokens=40))
        assert np.array_equal(again.trajectory.completion_ids, ids)
        np.testing.assert_allclose(again.grades.penalty, review.grades.penalty, atol=1e-4)


def test_a_branch_keeps_the_ids_before_it_and_says_that_a_token_was_forced(pair):
    review = make_review(pair)
    ids = review.trajectory.completion_ids
    other = (int(ids[6]) + 1) % 256
    states = list(branch(pair, review, 6, other, parent=2, max_tokens=40))
    assert len(states) > 1
    assert [s.trajectory.finish_reason is None for s in states] == [True] * (len(states) - 1) + [False]
    made = states[-1]
    assert np.array_equal(made.trajectory.completion_ids[:7], [*ids[:6], other])
    assert np.array_equal(made.trajectory.prompt_ids, review.trajectory.prompt_ids)
    assert made.branch == BranchPoint(2, 6, "student")
    assert "forced" in made.grades.bias
    (plain,) = opd.grade(pair, [made.trajectory])
    np.testing.assert_allclose(made.grades.penalty, plain.penalty, atol=1e-4)


def test_a_branch_is_graded_as_its_main_line_is(pair):
    (t,) = opd.sample(pair, ["hi"], seed=1, temperature=0.7, max_tokens=20)
    (g,) = opd.grade(pair, [t], temperature=1.0)
    review = opd.review(pair, "hi", t, g, seed=1)
    made = last(branch(pair, review, 3, 7, max_tokens=20))
    assert (made.trajectory.temperature, made.grades.temperature) == (0.7, 1.0)


def test_text_is_encoded_once_and_several_tokens_are_forced(pair):
    review = make_review(pair)
    made = last(branch(pair, review, 4, "né", max_tokens=40))
    wanted = pair.tokenizer("né", add_special_tokens=False)["input_ids"]
    assert len(wanted) == 3
    assert made.trajectory.completion_ids[4:7].tolist() == wanted
    assert "".join(made.pieces[4:7]) == "né"
    assert made.branch.forced == 3
    card, after = opd.report_card(made), made.grades.penalty[7:]
    assert card.tokens == len(after)
    assert card.mean_penalty == pytest.approx(after.mean(), abs=1e-5)


def test_a_control_token_that_somebody_typed_is_forced_as_text(pair):
    made = last(branch(pair, make_review(pair), 4, "a<|end|>b", max_tokens=40))
    assert "".join(made.pieces[4:13]) == "a<|end|>b"
    assert not np.isin(made.trajectory.completion_ids[4:13], pair.student.eos_ids).any()


def test_forcing_the_end_ends_the_text(pair):
    review = make_review(pair)
    end = pair.student.eos_ids[0]
    (made,) = branch(pair, review, 4, end)
    assert made.trajectory.completion_ids.tolist() == [*review.trajectory.completion_ids[:4], end]
    assert made.trajectory.finish_reason == "stop"
    assert len(made.grades) == 5


def test_a_branch_of_a_branch(pair):
    review = make_review(pair)
    first = last(branch(pair, review, 4, 65, max_tokens=40))
    second = last(branch(pair, first, 9, 66, parent=1, max_tokens=40))
    assert np.array_equal(second.trajectory.completion_ids[:9], first.trajectory.completion_ids[:9])
    assert second.branch.parent == 1


@pytest.mark.parametrize(
    ("at", "forced", "message"),
    [
        (0, "", "nothing to force"),
        (0, [], "nothing to force"),
        (-1, 5, "no such token: the text has 40"),
        (999, 5, "no such token"),
        (0, 10**6, r"must lie in \[0, 261\)"),
        (0, -1, "must lie in"),
        (0, [65, 256, 66], "goes on after a token that ends"),
        (0, "\ud83d", "cannot be encoded"),
        (3, "x" * 40, "43 tokens stand before the branch, which leaves nothing of the 40"),
    ],
)
def test_what_cannot_be_forced_is_refused_in_a_sentence(pair, at, forced, message):
    with pytest.raises(ValueError, match=message):
        next(branch(pair, make_review(pair), at, forced, max_tokens=40))


def test_a_branch_beyond_the_context_of_either_model_is_refused(pair):
    review = make_review(pair)
    small = make_model(1, max_position_embeddings=24)
    with pytest.raises(ValueError, match="tiny can read 24"):
        next(branch(Pair(pair.student, small), review, 10, 65))


def test_a_review_of_another_vocabulary_is_refused(pair):
    demo_pair = opd.load_pair()
    with pytest.raises(ValueError, match="made with: tiny-student and tiny-teacher"):
        next(branch(demo_pair, make_review(pair), 2, 5))


def test_the_teachers_line_is_what_the_teacher_writes_after_its_own_prompt(pair):
    review = make_review(pair)
    told = pair.teacher.render("A hint. What is 3 + 4?")
    review = replace(review, trajectory=replace(review.trajectory, teacher_prompt_ids=told))
    line = last(teacher_line(pair, review, 6, max_tokens=30))
    ids = np.concatenate([told, review.trajectory.completion_ids[:6]])
    for token in line.trajectory.completion_ids[6:]:
        with torch.no_grad():
            logits = pair.teacher.model(input_ids=torch.tensor(ids)[None]).logits[0, -1]
        assert int(logits[: pair.vocabulary].argmax()) == token
        ids = np.append(ids, token)
    assert np.array_equal(line.trajectory.prompt_ids, review.trajectory.prompt_ids)
    assert line.trajectory.behaviour_logprobs is None
    assert "did not sample" in line.grades.bias
    assert line.branch == BranchPoint(0, 6, "teacher", forced=0)
    assert (line.grades.teacher.ranks[6:] == 0).all()


def test_newcombe_equals_its_published_examples():
    """Newcombe 1998, Table II, method 10, rows (a) to (f)."""
    published = {
        (56, 70, 48, 80): (0.0524, 0.3339),
        (9, 10, 3, 10): (0.1705, 0.8090),
        (6, 7, 2, 7): (0.0582, 0.8062),
        (5, 56, 0, 29): (-0.0381, 0.1926),
        (0, 10, 0, 20): (-0.1611, 0.2775),
        (10, 10, 0, 20): (0.6791, 1.0000),
    }
    for counts, interval in published.items():
        assert newcombe(*counts) == pytest.approx(interval, abs=5e-5), counts


def judged(right, taken, k=32):
    options = [Option(1, " a", "student", k, taken, 0.1), Option(2, " b", "teacher", k, right, 0.1)]
    return judge_fork(4, options, k)


def test_verdicts_of_a_fork():
    decisive = judged(30, 18)
    assert (decisive.verdict, decisive.more) == ("decisive", None)
    assert decisive.points == pytest.approx(37.5)
    assert decisive.low > 0
    assert "+38 points" in decisive.sentence
    worse = judged(5, 20)
    assert worse.verdict == "decisive"
    assert worse.high < 0
    style = judged(4000, 3990, k=4100)
    assert style.verdict == "style only"
    sure_but_small = judged(4000, 3900, k=4100)
    assert sure_but_small.low > 0
    assert sure_but_small.verdict == "style only"
    undecided = judged(20, 18)
    assert undecided.verdict == "undecided"
    assert f"About {undecided.more:,} more" in undecided.sentence


def test_there_is_no_verdict_before_all_rollouts_are_in():
    options = [Option(1, "a", "student", 8, 0), Option(2, "b", "teacher", 8, 8)]
    early = judge_fork(0, options, 32)
    assert early.low > 0
    assert (early.verdict, early.more) == ("undecided", None)
    assert judge_fork(0, options, 8).verdict == "decisive"


@pytest.mark.parametrize(("right", "other"), [(20, 16), (20, 20), (31, 29), (3, 0), (17, 15), (0, 0)])
def test_so_many_more_rollouts_decide(right, other):
    """With the rates as they are, the number asked for decides; the intervals' shapes differ by some."""
    more = more_rollouts(right, other, 32)
    scale = (32 + 1.35 * more) / 32
    low, high = newcombe(round(right * scale), round(32 * scale), round(other * scale), round(32 * scale))
    assert low > 0 or high < 0 or max(-low, high) < 0.10


def test_a_decisive_fork_at_the_first_error_of_a_wrong_answer(demo):
    pair, task, example, review, error = demo
    states = list(fork_value(pair, review, error, task=task, example=example))
    assert [s.options[0].n for s in states] == [8, 16, 24, 32]
    found = states[-1]
    taken, best = found.options[:2]
    assert (taken.token, taken.by) == (int(review.trajectory.completion_ids[error]), "student")
    assert best.token == teacher_choices(review, error)[0]
    assert found.verdict == "decisive"
    assert found.low > 0
    kept = with_evidence(with_evidence(review, found), replace(found, at=1))
    again = type(review).from_dict(json.loads(json.dumps(kept.to_dict())))
    assert set(again.evidence["forkValue"]) == {str(error), "1"}
    assert again.evidence["forkValue"][str(error)]["options"][1]["text"] == best.text


def test_the_rollouts_of_a_fork_are_counted_and_averaged(demo, monkeypatch):
    """Counts and KL against rollouts taken one by one, without batching, rounds or shared prefixes."""
    pair, task, example, review, error = demo
    seen = []
    sample = TransformersSampler.sample

    def spy(self, asked, **options):
        seen.extend((r.prefix_ids.tolist(), r.uniforms.tobytes(), r) for r in asked)
        return sample(self, asked, **options)

    monkeypatch.setattr(TransformersSampler, "sample", spy)
    found = last(fork_value(pair, review, error, task=task, example=example, k=10))
    monkeypatch.undo()
    assert len({u for _, u, _ in seen}) == len(seen) == 10 * len(found.options), "all draws are independent"
    before = review.trajectory.completion_ids[:error].tolist()
    for option in found.options:
        mine = [r for prefix, _, r in seen if prefix == [*before, option.token]]
        alone = [next(TransformersSampler(pair.student).sample([r])) for r in mine]
        assert option.n == len(alone) == 10
        assert option.right == sum(task.verify(example, pair.student.text(t.completion_ids)) for t in alone)
        kl = [g.reverse_kl[error + 1 :] for g in opd.grade(pair, alone)]
        assert option.kl == pytest.approx(np.concatenate(kl).mean(), abs=1e-4)


def test_rollouts_do_not_use_the_random_numbers_of_the_main_line(pair):
    """Whoever asks has seen where those led: the token taken must not be sure to end as it did."""
    review = make_review(pair, max_tokens=60)
    ids = review.trajectory.completion_ids
    room = len(ids)
    rollouts = rolling.roll(pair, review, [(ids[:1], rolling.NO_RETURN_STREAM, j) for j in range(8)], room)
    assert len({t.completion_ids.tobytes() for t in rollouts}) == 8
    assert not any(np.array_equal(t.completion_ids, ids) for t in rollouts)


def test_without_a_verifier_a_fork_has_a_kl_and_no_verdict(demo):
    pair, _, _, review, error = demo
    found = last(fork_value(pair, review, error, k=4))
    assert (found.verdict, found.points, found.options[0].right) == ("undecided", None, None)
    assert found.options[0].kl > 0
    assert "what is right is not known" in found.sentence


def test_the_cost_of_a_fork_value_is_said_before(demo):
    _, _, _, review, error = demo
    options = 1 + len(teacher_choices(review, error))
    cost = fork_value_cost(review, error, k=32)
    assert cost.rollouts == 32 * options
    assert cost.tokens == cost.rollouts * (len(review.trajectory) - error - 1)
    assert str(cost) == f"{cost.rollouts} rollouts, about {cost.tokens:,} tokens"


def test_where_the_teacher_has_no_other_choice_there_is_no_fork(demo):
    _, _, _, review, _ = demo
    sure = int(np.exp(review.grades.teacher.top_logprobs[:, 0]).argmax())
    assert review.grades.teacher.ranks[sure] == 0
    with pytest.raises(ValueError, match="no other way to go on"):
        teacher_choices(review, sure)


def test_the_point_of_no_return_is_the_first_error(demo):
    pair, task, example, review, error = demo
    states = list(point_of_no_return(pair, review, task=task, example=example))
    found = states[-1]
    assert found.at == error
    assert len(found.points) == len(states) - 1
    assert [p.index for p in found.points] == sorted(p.index for p in found.points)
    assert all(p.low <= p.right / p.n <= p.high for p in found.points)
    cost = no_return_cost(review)
    assert sum(p.n for p in found.points) <= cost.rollouts
    kept = with_evidence(review, found)
    assert type(review).from_dict(json.loads(json.dumps(kept.to_dict()))).evidence["noReturn"]["at"] == error


@pytest.mark.parametrize(
    ("rate", "at"),
    [
        (lambda i: 30 if i <= 17 else 0, 17),
        (lambda i: 30 if i <= 17 or i == 28 else 0, 28),  # it recovers once: not lost before
        (lambda i: 10 if i <= 5 else 28 if i <= 21 else 1, 21),  # it rises first
        (lambda i: 20, None),
        (lambda i: 0, None),
        (lambda i: 1 if i == 0 else 0, None),  # a fall too small to be sure of
        (lambda i: 30 - i // 3, None),  # it falls slowly and not to a half
    ],
)
def test_the_collapse_is_found_between_neighbours(pair, monkeypatch, rate, at):
    """Rollouts are replaced by their known number of right ones from each place."""
    review = make_review(pair)
    ids = np.arange(33) % 200
    review = replace(
        review,
        trajectory=Trajectory(np.arange(3), ids, None, "length", np.arange(3)),
        pieces=pair.student.pieces(ids),
    )
    monkeypatch.setattr(
        "opd.grading.branching.no_return.roll",
        lambda pair, review, asked, room: [
            replace(review.trajectory, completion_ids=np.array([j < rate(len(prefix))], dtype=np.int64))
            for prefix, _, j in asked
        ],
    )
    monkeypatch.setattr(type(pair.student), "text", lambda self, ids: "right" if ids[0] else "wrong")

    class Task:
        def verify(self, example, text, *, cut=False):
            return text == "right"

    example = load_task("demo").heldout(1)[0]
    found = last(point_of_no_return(pair, review, task=Task(), example=example, grid=9))
    assert found.at == at
    if at is not None:
        assert {at, at + 1} <= {p.index for p in found.points}


def test_requests_that_begin_alike_are_read_once_and_sample_the_same(pair):
    prompts = ["What is 7 + 3?", "A somewhat longer question?"]
    prefixes = [np.arange(70, 78), np.arange(70, 74)]
    asked = requests(pair.student, prompts, n=4, seed=2, max_tokens=40, prefixes=prefixes)
    counts = []
    read = type(pair.student).read

    def spy(self, sequences, **inputs):
        counts.append(len(sequences))
        return read(self, sequences, **inputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(pair.student), "read", spy)
        together = list(TransformersSampler(pair.student).sample(asked))
    assert counts == [2]
    alone = list(TransformersSampler(pair.student, in_flight=1).sample(asked))
    for t, u in zip(
        *(sorted(s, key=lambda t: (t.prompt_index, t.sample_index)) for s in (together, alone)), strict=True
    ):
        assert np.array_equal(t.completion_ids, u.completion_ids)
        np.testing.assert_allclose(t.behaviour_logprobs, u.behaviour_logprobs, atol=1e-5)


def run(*arguments):
    from opd.cli import main

    return main([str(a) for a in arguments])


def test_the_command_line_branches_measures_and_keeps_what_it_found(demo, tmp_path, capsys):
    _, _, _, review, error = demo
    path, kept = tmp_path / "r.json", tmp_path / "kept.json"
    opd.save_reviews(path, [review])
    place = ["--at", error + 1, "--save", kept]
    assert run("branch", path, *place) == 0
    main_line, made = opd.load_reviews(kept)
    assert main_line.branch is None
    assert made.branch == BranchPoint(0, error, "student")
    assert made.trajectory.completion_ids[error] == teacher_choices(review, error)[0]
    assert run("branch", kept, "--which", 2, "--teacher-line", *place) == 0
    assert list(opd.load_reviews(kept))[2].branch == BranchPoint(1, error, "teacher", forced=0)
    assert run("branch", kept, "--value", "-k", 8, *place) == 0
    assert run("branch", kept, "--no-return", "-k", 8, "--save", kept) == 0
    assert {"forkValue", "noReturn"} == set(next(iter(opd.load_reviews(kept))).evidence)
    printed = capsys.readouterr().out
    assert str(fork_value_cost(review, error, k=8)) in printed
    assert "Decisive" in printed
    assert "Lost at" in printed


def test_the_command_line_takes_the_pair_that_made_the_review(tmp_path, monkeypatch, capsys):
    """Another pair with the same tokenizer would go on in silence."""
    asked = []

    def load(student, teacher, **options):
        asked.append((student, teacher))
        raise ValueError(f"There is no model {student}.")

    monkeypatch.setattr(opd, "load_pair", load, raising=False)
    path = tmp_path / "r.json"
    opd.save_reviews(path, [graded.make_review([" a", " b"], penalty=[3.0, 0.0])])
    assert run("branch", path, "--at", 1) == 2
    told = capsys.readouterr().err
    assert "Loading a-student and a-teacher, as the review names it." in told
    assert "made with a-student and a-teacher. There is no model a-student." in told
    assert "with --student and --teacher" in told
    assert run("branch", path, "--at", 1, "--student", "moved/student") == 2
    assert asked == [("a-student", "a-teacher"), ("moved/student", "a-teacher")]


def test_what_a_review_names_is_not_fetched_from_the_hub(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        opd, "load_pair", lambda *names, **options: pytest.fail(f"loads {names}"), raising=False
    )
    review = replace(graded.make_review([" a", " b"], penalty=[3.0, 0.0]), student="stranger/model")
    opd.save_reviews(tmp_path / "r.json", [review])
    assert run("branch", tmp_path / "r.json", "--at", 1) == 2
    said = capsys.readouterr().err
    assert "names stranger/model, not on this machine" in said
    assert said.endswith("with --student and --teacher.\n")


def test_the_command_line_refuses_in_a_sentence(demo, tmp_path, capsys):
    _, _, _, review, _ = demo
    path = tmp_path / "r.json"
    opd.save_reviews(path, [replace(review, messages=[{"role": "user", "content": "Something else?"}])])
    for wrong, message in (
        (["--which", 2], "no trajectory 2"),
        (["--at", 0], "no such token"),
        (["--text", ""], "nothing to force"),
        (["--no-return"], "what is right is not known"),
        (["--value", "--at", 1, "-k", 0], "at least 1 rollout"),
    ):
        assert run("branch", path, *wrong) == 2
        assert message in capsys.readouterr().err
