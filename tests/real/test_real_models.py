"""What was proven on tiny models holds on real ones: SmolLM2 135M, whole and pruned, and Gemma 3 270M."""

from pathlib import Path

import numpy as np
import pytest
import torch
from running import train
from transformers import AutoModelForCausalLM

import opd
from opd.config import make_config
from opd.models.load import load_model
from opd.models.network import LanguageModel
from opd.models.pair import Pair
from opd.presets import preset
from opd.runs.run import create_run
from opd.training.doctor import examine
from opd.trajectory import Trajectory

PROMPTS = (
    "What is rain?",
    "List three facts about tea.",
    "Write a Python function that adds two numbers.",
    "Why do cats purr? Answer with an emoji.",
)
EMOJI = "Cats purr when they are content 🐈, and when they heal 🦜🏔"


def log_probs(network, prompt: np.ndarray, completion: np.ndarray) -> torch.Tensor:
    """Log-probs of all tokens at each place of a completion, by plain transformers; ``[T, V]``."""
    ids = torch.from_numpy(np.append(prompt, completion))[None]
    with torch.no_grad():
        logits = network(ids).logits[0, len(prompt) - 1 : -1]
    return logits.double().log_softmax(-1)


def as_read(text: str, pair: Pair, *, cut: int = 0) -> Trajectory:
    """A text as a completion, without its last tokens."""
    ids = pair.student.encode(text)
    ids = ids[: len(ids) - cut]
    prompts = [model.render(PROMPTS[3]) for model in (pair.student, pair.teacher)]
    return Trajectory(prompts[0], ids, None, None, prompts[1])


@pytest.fixture(scope="module")
def written(pair) -> list[Trajectory]:
    """Short answers of the pruned student at temperature 1, and a long one."""
    short = opd.sample(pair, PROMPTS, max_tokens=24)
    return [*short, *opd.sample(pair, PROMPTS[:1], max_tokens=400, seed=1)]


def test_a_name_is_all_that_a_user_gives(graded, pair):
    assert "graded by smollm2" in graded.stdout
    assert pair.student.causal_lm.config.num_hidden_layers == 26
    assert pair.teacher.causal_lm.config.num_hidden_layers == 30
    (told,) = opd.sample(pair.teacher, ["What is the capital of France?"], temperature=0, max_tokens=12)
    assert pair.teacher.text(told.completion_ids).strip() == "The capital of France is Paris."


def test_grades_are_those_of_plain_transformers_in_float64(pair, folders, written):
    plain = [
        AutoModelForCausalLM.from_pretrained(folders[name], dtype=torch.float64)
        for name in ("smollm2-pruned", "smollm2")
    ]
    for t, grades in zip(written, opd.grade(pair, written), strict=True):
        ours, theirs = (log_probs(network, t.prompt_ids, t.completion_ids) for network in plain)
        ids = torch.from_numpy(t.completion_ids)[:, None]
        penalty = (ours - theirs).gather(1, ids)[:, 0]
        assert np.abs(grades.penalty - penalty.numpy()).max() < 5e-4
        reverse_kl = (ours.exp() * (ours - theirs)).sum(-1)
        assert np.abs(grades.reverse_kl - reverse_kl.numpy()).max() < 5e-4
        own = ours.gather(1, ids)[:, 0].numpy()
        assert np.abs(t.behaviour_logprobs - own).max() < 5e-4
    assert max(map(len, written)) > 200


def test_a_model_under_itself_is_exactly_0_and_alone_as_beside_others(smollm2, written):
    itself = Pair(smollm2, smollm2)
    for grades in opd.grade(itself, written):
        assert not grades.penalty.any()
        assert not grades.reverse_kl.any()
    together = opd.grade(itself, written)
    for t, grades in zip(written[:2], together, strict=False):
        (alone,) = opd.grade(itself, [t])
        assert np.abs(alone.student.logprobs - grades.student.logprobs).max() < 2e-4


def test_an_emoji_that_is_cut_in_the_middle_is_graded_as_the_ids_that_it_is(pair):
    t = as_read(EMOJI, pair, cut=2)
    pieces = pair.student.pieces(t.completion_ids)
    assert pieces[-1].endswith("\ufffd")
    assert "🐈" in "".join(pieces)
    (grades,) = opd.grade(pair, [t])
    assert np.isfinite(grades.penalty).all()


def test_the_doctor_finds_nothing_wrong_with_the_pair_and_says_what_it_is_made_of(pair):
    findings = {finding.check: finding for finding in examine(pair)}
    assert not [finding for finding in findings.values() if finding.level == "fail"]
    assert "dequantised from Q4_1, Q8_0 of SmolLM2-135M-Instruct.Q4_1.gguf" in findings["weights"].message


def test_every_weight_is_the_file_s(gemma, gemma_file):
    """Of Gemma's norms the file has one more than the weight; its other tensors stand as they are."""
    gguf = pytest.importorskip("gguf")
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(gemma_file).tensors}
    weights = gemma.model.state_dict()
    for there, here, more in (
        ("token_embd.weight", "model.embed_tokens.weight", 0),
        ("blk.7.ffn_down.weight", "model.layers.7.mlp.down_proj.weight", 0),
        ("blk.3.attn_q.weight", "model.layers.3.self_attn.q_proj.weight", 0),
        ("output_norm.weight", "model.norm.weight", 1),
    ):
        tensor = stored[there]
        found = gguf.dequantize(tensor.data, tensor.tensor_type) - more
        assert np.array_equal(weights[here].numpy(), found), here


def test_a_base_model_of_a_file_begins_its_texts_as_the_file_says(gemma):
    ids = gemma.render("The sky is blue because the air scatters blue light more than red light.")
    assert ids[0] == gemma.tokenizer.bos_token_id
    with_start, without = (
        log_probs(gemma.model, ids[begin:2], ids[2:]).gather(1, torch.from_numpy(ids[2:])[:, None]).mean()
        for begin in (0, 1)
    )
    assert with_start > without + 1, "nats a token that it is worth"


def test_a_teacher_with_another_tokenizer_grades_the_same_text(pair, gemma):
    crossed = Pair(pair.student, gemma, cross_tokenizer=True)
    whole, half = as_read(EMOJI, crossed), as_read(EMOJI, crossed, cut=2)
    grades, cut = opd.grade(crossed, [whole, half])
    assert grades.graded.all()
    assert not cut.graded[-1]
    assert cut.graded[:-3].all()
    ids = gemma.tokenizer(EMOJI, add_special_tokens=False)["input_ids"]
    theirs = log_probs(gemma.model, whole.teacher_prompt_ids, np.array(ids))
    total = theirs.gather(1, torch.tensor(ids)[:, None]).sum()
    assert grades.student.logprobs.sum() - grades.penalty.sum() == pytest.approx(float(total), abs=1e-2)


def small(folders, **settings) -> opd.DistillConfig:
    """The preset that heals, in a small way."""
    models = {"student": folders["smollm2-pruned"], "teacher": folders["smollm2"]}
    rest = {"max_tokens": 32, "warmup_steps": 0, "eval_prompts": 0, "ignore_doctor": True}
    return make_config({**preset("heal").changes, **models, **rest, **settings})


@pytest.fixture(scope="module")
def healed(folders, tmp_path_factory) -> Path:
    """The newest checkpoint of a run of three steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPD_HOME", str(tmp_path_factory.mktemp("healed")))
        run = train(create_run("small", small(folders, steps=3)))
        assert run.status().state == "finished", run.status()
        return run.newest_checkpoint


def mean_kl(student: LanguageModel, teacher: LanguageModel) -> float:
    """Mean reverse KL, nats a token, over what the student writes to some prompts that no run trains on."""
    of = Pair(student, teacher)
    written = opd.sample(of, PROMPTS, n=4, seed=7, max_tokens=24)
    return float(np.mean(np.concatenate([grades.reverse_kl for grades in opd.grade(of, written)])))


def test_three_steps_heal(pair, healed):
    before, after = (mean_kl(student, pair.teacher) for student in (pair.student, load_model(str(healed))))
    assert after < 0.9 * before


def test_a_checkpoint_is_the_same_model_in_plain_transformers(pair, healed, written):
    plain, ours = AutoModelForCausalLM.from_pretrained(healed), load_model(str(healed))
    assert_equal(plain, ours, written[0])
    assert not np.array_equal(ours.causal_lm.lm_head.weight, pair.student.causal_lm.lm_head.weight)


def test_an_adapter_is_the_same_model_in_plain_peft(pair, folders, tmp_path, written):
    from peft import AutoPeftModelForCausalLM

    distillation = opd.distill(small(folders, steps=1, lora_rank=8, learning_rate=1e-3, prompts_per_step=4))
    assert [report.step for report in distillation] == [0, 1]
    distillation.student.save(tmp_path / "adapter")
    plain, ours = (
        AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter"),
        load_model(str(tmp_path / "adapter")),
    )
    assert_equal(plain, ours, written[0])
    (base,), (adapted,) = (opd.grade(Pair(m, m), written[:1]) for m in (pair.student, ours))
    assert np.abs(base.student.logprobs - adapted.student.logprobs).max() > 1e-3, "it was trained"


def assert_equal(plain, ours: LanguageModel, t: Trajectory) -> None:
    """Both models say the same of a text."""
    (grades,) = opd.grade(Pair(ours, ours), [t])
    ids = torch.from_numpy(t.completion_ids)[:, None]
    theirs = log_probs(plain.eval(), t.prompt_ids, t.completion_ids).gather(1, ids)[:, 0]
    assert np.abs(grades.student.logprobs - theirs.numpy()).max() < 5e-4
