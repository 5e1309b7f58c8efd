"""The doctor: a sound pair passes every check, and each kind of broken pair fails its own."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from elsewhere import Elsewhere
from tiny import CHAT_TEMPLATE, THINKING, adapted, make_model, make_tokenizer, small_config

import opd
from opd.engines.transformers import TransformersSampler
from opd.models.network import LanguageModel
from opd.models.pair import Pair
from opd.tasks import Example, TaskOptions, load_task
from opd.training import doctor
from opd.training.distillation import distill
from opd.training.doctor import AGREEMENT, Finding, check_sampler, examine
from opd.training.memory import estimate_memory
from opd.training.patient import QUESTION, REPLY, Patient, bytes_of
from opd.trajectory import Trajectory

pytestmark = pytest.mark.engine


def findings_of(pair, *, task=None, sampler=None, config=None, **changes):
    found = examine(pair, config=config or small_config(**changes), task=task, sampler=sampler)
    return {f.check: f for f in found}


def found(check, pair, **options):
    return findings_of(pair, **options)[check]


def levels(pair, **options):
    return {check: f.level for check, f in findings_of(pair, **options).items()}


def test_a_sound_pair_passes_every_check(pair):
    embedded, task = opd.load_pair(), load_task("demo")
    assert set(levels(embedded, task=task, config=opd.DistillConfig()).values()) == {"pass"}
    assert set(levels(embedded).values()) == {"pass"}
    assert list(levels(pair)) == ["vocabulary", *doctor.CHECKS]


def test_the_examination_changes_nothing(pair):
    before = [p.clone() for model in (pair.student, pair.teacher) for p in model.model.parameters()]
    examine(pair, config=small_config())
    after = [p for model in (pair.student, pair.teacher) for p in model.model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(p.grad is None for p in after)


@pytest.mark.parametrize("changes", [{}, {"lora_rank": 4}], ids=["full", "lora"])
def test_a_pair_in_training_passes(pair, changes):
    run = distill(small_config(**changes), pair)
    list(run)
    trained = Pair(run.student, pair.teacher)
    assert "fail" not in levels(trained, config=run.config, sampler=run.sampler).values()


# --- vocabulary


def test_a_swapped_vocabulary_fails_and_ends_the_examination():
    student, teacher = make_model(0), make_model(1)
    vocabulary = json.loads(teacher.tokenizer.backend_tokenizer.to_str())
    mapping = vocabulary["model"]["vocab"]
    mapping["a"], mapping["b"] = mapping["b"], mapping["a"]
    from tokenizers import Tokenizer

    teacher.tokenizer = make_tokenizer().__class__(
        tokenizer_object=Tokenizer.from_str(json.dumps(vocabulary)), eos_token="<|end|>", pad_token="<|pad|>"
    )
    findings = examine((student, teacher), config=small_config())
    assert [(f.check, f.level) for f in findings] == [("vocabulary", "fail")]
    assert "2 of them mapped differently" in findings[0].message


def test_padded_rows_are_fine_and_missing_rows_are_not():
    assert found("vocabulary", (make_model(0), make_model(1, rows=280))).level == "pass"
    finding = found("vocabulary", (make_model(0), make_model(1, rows=260)))
    assert finding.level == "warn"
    assert "ids up to 260, its matrix 260 rows" in finding.message


# --- chat template


def with_template(model, template):
    model.tokenizer.chat_template = template
    return model


def test_a_template_that_differs_for_a_plain_question_is_measured(pair):
    with_template(pair.teacher, CHAT_TEMPLATE.replace("<|{{ m.role }}|>", "{{ m.role }}: "))
    finding = found("chat template", pair)
    assert finding.level in ("warn", "fail")
    assert "with a question they part at token 0, '<|user|>' against 'u'" in finding.message
    assert "nats a token" in finding.message


@pytest.mark.parametrize(("cost", "level"), [(0.287, "fail"), (0.02, "warn")])
def test_a_template_that_costs_much_fails(pair, monkeypatch, cost, level):
    with_template(pair.teacher, CHAT_TEMPLATE + " ")
    monkeypatch.setattr(Patient, "cost", lambda *args: cost)
    assert found("chat template", pair).level == level


def test_the_cost_of_a_template_is_what_the_teacher_loses_on_its_own_text(pair):
    """Against plain grading: what the teacher writes behind its own prompts, behind each of the two."""
    with_template(pair.teacher, CHAT_TEMPLATE.replace("<|assistant|>", "<|system|>"))
    patient = Patient(pair.student, pair.teacher, small_config(), None, TransformersSampler(pair.student))
    written = opd.sample(pair.teacher, patient.prompts, n=2, seed=1, max_tokens=24)
    read = [
        replace(t, teacher_prompt_ids=pair.student.render(patient.prompts[t.prompt_index])) for t in written
    ]
    own, theirs = (
        np.concatenate([g.teacher.logprobs for g in opd.grade(pair, trajectories)])
        for trajectories in (written, read)
    )
    prompts = [[model.render(prompt) for prompt in patient.prompts] for model in (pair.teacher, pair.student)]
    with torch.inference_mode():
        cost = patient.cost(pair.teacher, *prompts)
    assert cost == pytest.approx(own.mean() - theirs.mean(), abs=1e-4)
    assert cost > 0.01


@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "elsewhere"])
def test_a_student_without_template_costs_its_teacher_much(elsewhere):
    pair = opd.load_pair()
    if elsewhere:
        pair.elsewhere = Elsewhere(pair.teacher)
    with_template(pair.student, None)
    finding = found("chat template", pair)
    assert finding.level == "fail"
    cost = float(re.search(r"own text is (\S+) nats", finding.message)[1])
    assert cost > 0.2, finding


def test_a_template_that_never_opens_the_assistants_turn_fails():
    pair = opd.load_pair()
    closed = pair.student.tokenizer.chat_template.replace("if add_generation_prompt", "if false")
    for model in (pair.student, pair.teacher):
        with_template(model, closed)
    finding = found("chat template", pair)
    assert finding.level == "fail"
    assert "never opens the assistant's turn: answers stand behind '<|assistant|>'" in finding.message


@pytest.mark.parametrize(
    "old", ["<think>\n\n</think>\n\n", "\n<think></think>\n", "<|channel|>final<|message|>"]
)
def test_what_a_template_adds_to_old_answers_alone_is_no_missing_opening(pair, old):
    said = "{% if m.role == 'assistant' %}" + old + "{% endif %}{{ m.content }}"
    for model in (pair.student, pair.teacher):
        with_template(model, CHAT_TEMPLATE.replace("{{ m.content }}", said))
    assert found("chat template", pair).level == "pass"


NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"


def test_a_teacher_that_refuses_the_tasks_system_prompt_is_a_warning(pair, tmp_path):
    system = {"role": "system", "content": "Be brief."}
    task = written(tmp_path, [{"prompt": [system, {"role": "user", "content": f"{i}?"}]} for i in range(9)])
    with_template(pair.teacher, NO_SYSTEM + CHAT_TEMPLATE)
    findings = {f.check: f for f in examine(pair, task=task, config=small_config())}
    assert "fail" not in {f.level for f in findings.values()}, findings
    assert findings["chat template"].level == "warn"
    assert "into the question" in findings["chat template"].message


# --- start of text


class NeedsItsStart(LanguageModel):
    """Says the contrary of what it should unless the text begins with the start token."""

    def hidden(self, input_ids, **inputs):
        begins = (input_ids[:, :1] == self.tokenizer.bos_token_id)[..., None]
        return super().hidden(input_ids, **inputs) * torch.where(begins, 1.0, -2.0)


def starting(kind, template=None):
    model = make_model(0, tokenizer=make_tokenizer(("<|start|>",)))
    model.tokenizer.add_special_tokens({"bos_token": "<|start|>"})
    model.tokenizer.chat_template = template
    return kind("starting", model.model, model.tokenizer)


def test_a_start_token_that_the_model_needs_and_does_not_get_fails():
    needy, easy = starting(NeedsItsStart), starting(LanguageModel)
    finding = found("start of text", (needy, needy))
    assert finding.level == "fail"
    assert "do not begin with <|start|>" in finding.message
    assert found("start of text", (easy, easy)).level == "pass", "it can begin so, and need not"
    with_start = starting(NeedsItsStart, "{{ bos_token }}" + CHAT_TEMPLATE)
    assert found("start of text", (with_start, with_start)).level == "pass"


def test_a_start_token_that_comes_twice_is_found():
    model = starting(LanguageModel, "{{ bos_token }}{{ bos_token }}" + CHAT_TEMPLATE)
    finding = found("start of text", (model, model))
    assert finding.level != "pass"
    assert "begin with <|start|> twice" in finding.message


# --- system prompts, tasks


def test_a_template_that_differs_only_for_system_prompts_warns(pair):
    without = CHAT_TEMPLATE.replace(
        "{% for m in messages %}", "{% for m in messages if m.role != 'system' %}"
    )
    with_template(pair.teacher, without)
    finding = found("chat template", pair)
    assert finding.level == "warn"
    assert "differ for a system prompt" in finding.message
    with_template(pair.teacher, NO_SYSTEM + CHAT_TEMPLATE)
    assert "the teacher's, of tiny-teacher, refuses it" in found("chat template", pair).message
    with_template(pair.student, NO_SYSTEM + CHAT_TEMPLATE)
    assert found("chat template", pair).level == "pass"


def test_the_tasks_own_prompts_are_compared(pair, tmp_path):
    chat = [{"role": "tool", "content": "3"}, {"role": "user", "content": "How many?"}]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"prompt": chat}) + "\n")
    task = load_task(str(tmp_path / "chat.jsonl"), TaskOptions(heldout_share=0))
    without = CHAT_TEMPLATE.replace("{% for m in messages %}", "{% for m in messages if m.role != 'tool' %}")
    with_template(pair.teacher, without)
    assert found("chat template", pair).level == "pass"
    assert "differ for the task's prompts" in found("chat template", pair, task=task).message


def test_models_without_a_template_pass(pair):
    for model in (pair.student, pair.teacher):
        with_template(model, None)
    assert found("chat template", pair).level == "pass"
    with_template(pair.teacher, CHAT_TEMPLATE)
    assert found("chat template", pair).level != "pass"


OWN_PROMPT = (
    "{% if messages[0].role != 'system' %}<|system|>You are a helpful assistant named Tiny.{% endif %}"
)


def test_of_a_teacher_with_another_tokenizer_how_it_reads_prompts_is_told(monkeypatch):
    """A base model whose tokenizer adds no BOS, as Gemma's, would grade as if it had lost its mind."""
    student = make_model(0, name="student")
    teacher = make_model(1, name="teacher", tokenizer=make_tokenizer(("<|tool|>",)))
    teacher.tokenizer.add_special_tokens({"bos_token": "<|tool|>"})
    teacher.tokenizer.chat_template = None
    monkeypatch.setattr(doctor, "_cost_of_plain_text", lambda p, model, begin: 1.0 if begin else 4.0)
    pair = Pair(student, teacher, cross_tokenizer=True)
    findings = {f.check: f for f in examine(pair, config=small_config())}
    assert {check: f.level for check, f in findings.items()} == {
        "vocabulary": "warn",
        "chat template": "pass",
        "start of text": "fail",
    }
    assert "no run can train" in findings["vocabulary"].message
    assert "The teacher has no chat template" in findings["chat template"].message
    assert "Prompts of teacher do not begin with" in findings["start of text"].message


def both(own):
    return [with_template(make_model(i), own + CHAT_TEMPLATE) for i in range(2)]


def test_a_template_that_brings_a_system_prompt_of_its_own_is_told():
    """As SmolLM2's does; of the teacher's only where the teacher renders prompts itself."""
    for own, told in (
        (OWN_PROMPT, True),
        ("<|system|>Cutting Knowledge Date: May 2024\n", True),
        ("", False),
    ):
        finding = found("chat template", both(own))
        assert finding.level == "pass"
        assert ("The student's template puts words of its own before a question: " in finding.message) == told
        assert ("A system prompt takes their place." in finding.message) == (own == OWN_PROMPT)
        assert "The teacher's" not in finding.message
        finding = found("chat template", both(own), teacher_system="Be brief.")
        assert ("The teacher's template puts" in finding.message) == told
    assert "'You are a helpful assistant named Tiny.'" in found("chat template", both(OWN_PROMPT)).message


def test_a_model_without_a_template_is_told(pair):
    for model in (pair.student, pair.teacher):
        model.tokenizer.chat_template = None
    message = found("chat template", pair).message
    assert "Neither model has a chat template" in message
    assert "it reads messages as plain text, one below the other" in message


def test_options_that_no_template_asks_for_are_named(pair):
    pair.student.tokenizer.chat_template = pair.teacher.tokenizer.chat_template = THINKING
    known = Pair(*(model.prompted({"enable_thinking": False}) for model in (pair.student, pair.teacher)))
    assert found("thinking", known).message == "Both chat templates agree on thinking: a switch that is off."
    idle = Pair(*(model.prompted({"enable_thinkin": False}) for model in (pair.student, pair.teacher)))
    finding = found("thinking", idle)
    assert finding.level == "warn"
    assert "No chat template asks for enable_thinkin, so" in finding.message
    own = Pair(pair.student.prompted({"enable_thinking": False}), pair.teacher.prompted({"date": "May"}))
    assert "asks for date, so" in found("thinking", own).message


# --- length


class Dictated:
    """Samples what it is told to, up to the limit."""

    def __init__(self, model, text, *, ends=False):
        self.ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
        self.finish_reason = "stop" if ends else "length"

    def sample(self, asked, *, temperature, **_):
        for i, request in enumerate(asked):
            n = len(request.uniforms)
            ids = np.array((self.ids * n)[:n])
            zeros = np.zeros(n, np.float32)
            yield Trajectory(
                request.prompt_ids, ids, zeros, self.finish_reason, request.prompt_ids, prompt_index=i
            )


@pytest.mark.parametrize(
    ("text", "ends", "level", "said"),
    [
        ("<think>Hm", False, "warn", "while it still reasoned. Raise max_tokens."),
        ("<think>Hm</think>So we add them up, and", False, "warn", "before it stated one. Raise max_tokens."),
        ("<think>Hm</think>The answer is 7. ", False, "pass", "though not before it said something"),
        ("<think>Hm", True, "pass", "end by themselves"),
    ],
)
def test_answers_that_are_all_cut_before_they_come_to_one_are_told(
    pair, monkeypatch, text, ends, level, said
):
    student = pair.student
    task = SimpleNamespace(batch=lambda *_, **__: [Example("3 + 4?", "7")], heldout=lambda *_, **__: [])
    cut = [replace(t, finish_reason="length") for t in opd.sample(student, ["3 + 4?"], max_tokens=4)]
    patient = Patient(
        student, pair.teacher, small_config(max_tokens=40), task, Dictated(student, text, ends=ends)
    )
    patient.__dict__["probes"] = cut
    got, message = doctor._length(patient)
    assert (got, said in message) == (level, True), message
    student.tokenizer.chat_template = THINKING
    if "reasoned" in said:
        assert "or turn thinking off" in doctor._length(patient)[1]


def test_a_thinking_switch_on_one_side_only_warns(pair):
    switch = (
        CHAT_TEMPLATE
        + "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
    )
    with_template(pair.teacher, switch)
    finding = found("thinking", pair)
    assert finding.level == "warn"
    assert "tiny-student has no switch, tiny-teacher a switch that is on" in finding.message
    with_template(pair.student, switch)
    assert found("thinking", pair).level == "pass"
    with_template(
        pair.student,
        switch.replace("is defined and not enable_thinking", "is not defined or not enable_thinking"),
    )
    assert "a switch that is off" in found("thinking", pair).message


# --- end of sequence


def test_a_teacher_that_ends_with_another_token_fails(pair):
    """Base student and instruct teacher: the known length explosion."""
    pair.teacher.causal_lm.generation_config.eos_token_id = list(range(200))
    finding = found("end of sequence", pair)
    assert finding.level == "fail"
    assert "taught never to stop" in finding.message
    student = make_model(0)
    student.causal_lm.generation_config.eos_token_id = list(range(200))
    assert found("end of sequence", Pair(student, pair.teacher)).level != "fail"


def test_a_teacher_that_never_gives_the_end_token_warns(pair):
    eos = pair.student.eos_ids[0]
    model = make_model(1, name="tiny-teacher", tie_word_embeddings=False)
    head = model.causal_lm.lm_head

    def never_stop(hidden):
        logits = torch.nn.functional.linear(hidden, head.weight)
        logits[..., eos] = -60
        return logits

    head.forward = never_stop
    finding = found("end of sequence", Pair(pair.student, model))
    assert finding.level == "warn"
    assert "hardly ever stops" in finding.message


def test_a_student_without_an_end_fails(pair):
    pair.student.__dict__["eos_ids"] = ()
    assert "no end-of-sequence id" in found("end of sequence", pair).message


def test_an_answer_that_ends_before_it_begins_warns(pair):
    for model in (pair.student, pair.teacher):
        model.__dict__["eos_ids"] = tuple(range(250))
    finding = found("end of sequence", pair)
    assert finding.level == "warn"
    assert "before the first token" in finding.message


def test_the_masses_are_those_of_the_models(pair):
    """The figures in the sentence, against the plain forward of both models behind the canned reply."""
    student, teacher = pair.student, pair.teacher
    eos = student.eos_ids[0]
    patient = Patient(student, teacher, small_config(), None, TransformersSampler(student))
    ended = [t for t in patient.probes if t.finish_reason == "stop"]
    if ended:
        inputs = [[*t.prompt_ids, *t.completion_ids[:-1]] for t in ended]
    else:
        inputs = [[*student.render(QUESTION), *student.tokenizer(REPLY)["input_ids"]]]
    masses = [
        sum(float(model.model(torch.tensor([ids])).logits[0, -1, :261].softmax(-1)[eos]) for ids in inputs)
        / len(inputs)
        for model in (student, teacher)
    ]
    message = found("end of sequence", pair).message
    assert f"it gives {masses[0]:.2g} to <|end|> ({eos})" in message
    assert max(masses) < doctor.REAL_STOP


def test_a_model_that_does_not_end_a_complete_reply_warns(pair):
    """As base models do: a random one stands for them."""
    finding = found("end of sequence", pair)
    assert finding.level == "warn"
    assert "tiny-student does not end where a reply is complete" in finding.message
    taught = opd.load_pair()
    assert found("end of sequence", taught).level == "pass"


# --- scores


def test_broken_weights_fail(pair):
    with torch.no_grad():
        pair.teacher.causal_lm.model.norm.weight.fill_(float("nan"))
    assert found("self-grade", pair).message.startswith(
        "tiny-teacher gives tokens log-probs that are not finite"
    )
    with torch.no_grad():
        pair.teacher.causal_lm.model.norm.weight.zero_()
    finding = found("self-grade", pair)
    assert finding.level == "fail"
    assert "predicts the same at every place" in finding.message


def test_dropout_fails_the_self_grade(pair):
    pair.student.model.config.attention_dropout = 0.5
    for layer in pair.student.model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    pair.student.model.train()
    finding = found("self-grade", pair)
    assert finding.level == "fail"
    assert "not deterministic" in finding.message


class BatchDependent(LanguageModel):
    """Scores change with the number of tokens, as with experts that drop some."""

    def hidden(self, input_ids, **inputs):
        hidden = super().hidden(input_ids, **inputs)
        return hidden + 1e-3 * input_ids.numel()


def test_scores_that_depend_on_the_batch_fail():
    broken = BatchDependent("broken", make_model(0).model, make_tokenizer())
    finding = found("scoring", (broken, make_model(1)))
    assert finding.level == "fail"
    assert "differently in a batch than alone" in finding.message


def test_bfloat16_passes_within_its_own_bound():
    models = [make_model(seed) for seed in (0, 1)]
    for model in models:
        model.model.to(torch.bfloat16)
    pair = Pair(*models)
    assert "fail" not in levels(pair).values()


class Imprecise(LanguageModel):
    """Reads a token behind its cache less precisely than a whole text, as deep models do in bfloat16."""

    noise = 0.0

    def hidden(self, input_ids, **inputs):
        hidden = super().hidden(input_ids, **inputs)
        if input_ids.shape[1] > 1:
            return hidden
        return hidden + self.noise * torch.sin(1e3 * hidden)  # of no pattern, and the same every time


def test_the_bound_is_what_the_model_itself_shows(pair):
    model = Imprecise("imprecise", pair.student.model, pair.student.tokenizer)
    model.noise = 0.03
    imprecise = Pair(model, pair.teacher)
    finding = found("sampler", imprecise)
    assert finding.level == "pass"
    off = float(re.search(r"to (\S+) nats", finding.message)[1])
    assert off > 100 * AGREEMENT[torch.float32]
    for broken in (make_model(7), make_model(0, hidden_size=48)):
        assert found("sampler", imprecise, sampler=TransformersSampler(broken)).level == "fail"
    model.noise = 1.0
    assert found("sampler", imprecise).level == "fail", "so much is no round-off"


class Shifted(TransformersSampler):
    def sample(self, requests, *, temperature=1.0, snapshot_every=0):
        for t in super().sample(requests, temperature=temperature):
            yield replace(t, behaviour_logprobs=np.roll(t.behaviour_logprobs, 1))


def test_a_shift_by_one_fails_however_imprecise_the_model_is(pair):
    model = Imprecise("imprecise", pair.student.model, pair.student.tokenizer)
    model.noise = 0.03
    assert found("sampler", Pair(model, pair.teacher), sampler=Shifted(model)).level == "fail"


def test_a_sampler_with_stale_weights_fails(pair):
    stale = TransformersSampler(make_model(0))
    assert found("sampler", pair, sampler=stale).level == "pass"
    with torch.no_grad():
        for p in pair.student.model.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.manual_seed(3)))
    finding = found("sampler", pair, sampler=stale)
    assert finding.level == "fail"
    assert "Synchronise it" in finding.message
    assert check_sampler(pair.student, stale).level == "fail"
    assert check_sampler(pair.student, TransformersSampler(pair.student), temperature=0.7).level == "pass"


def test_an_adapter_that_does_not_reach_the_sampler_fails(pair):
    run = distill(small_config(lora_rank=4, learning_rate=5e-2), pair)
    list(run)
    assert check_sampler(run.student, run.sampler).level == "pass"
    assert check_sampler(run.student, TransformersSampler(make_model(0))).level == "fail"


class WrongTemperature(TransformersSampler):
    def sample(self, requests, *, temperature=1.0, snapshot_every=0):
        return super().sample(requests, temperature=1.0, snapshot_every=snapshot_every)


def test_a_sampler_that_ignores_the_temperature_fails(pair):
    ignores = WrongTemperature(pair.student)
    assert found("sampler", pair, sampler=ignores).level == "pass"
    assert found("sampler", pair, sampler=ignores, temperature=0.7).level == "fail"


def test_round_off_is_far_below_what_a_stale_sampler_shows():
    assert AGREEMENT[torch.float32] < AGREEMENT[torch.float16] < AGREEMENT[torch.bfloat16] <= 0.05


# --- teacher, context, memory


def test_a_teacher_that_is_the_student_warns(pair):
    assert "nothing to learn" in found("teacher", Pair(pair.student, make_model(0))).message
    assert found("teacher", Pair(pair.teacher, pair.student)).level == "warn"
    assert "smaller" in found("teacher", Pair(pair.teacher, pair.student)).message


def test_completions_beyond_the_context_fail(pair):
    assert found("prompts", pair, max_tokens=255).level == "fail"
    short = Pair(pair.student, make_model(1, name="short", max_position_embeddings=64))
    finding = found("prompts", short, max_tokens=60)
    assert finding.level == "fail"
    assert "4 of the run's 4 prompts" in finding.message
    assert "exceeds the 64 tokens short can read" in finding.message


def written(tmp_path, rows, **options):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_task(str(path), TaskOptions(**options))


@pytest.mark.parametrize("heldout", [0.0, 0.5])
def test_one_prompt_too_long_anywhere_in_the_task_is_named(pair, tmp_path, heldout):
    rows = [{"prompt": f"{'x' * (240 if i == 90 else 5)} {i}"} for i in range(120)]
    task = written(tmp_path, rows, heldout_share=heldout)
    long_run = {"steps": 60, "eval_prompts": 99 if heldout else 0}
    finding = found("prompts", pair, task=task, **long_run)
    assert finding.level == "fail"
    said = r"1 of the run's \d+ prompts cannot be used. The first, line 91: The prompt is"
    assert re.search(said, finding.message)
    assert "exceeds the 256 tokens" in finding.message
    assert found("prompts", pair, task=task, max_tokens=8, **long_run).level == "pass"


def test_every_prompt_of_the_probes_is_examined_however_few_answers_are_verified(pair, tmp_path):
    rows = [{"prompt": f"{i}?"} for i in range(120)]
    long = written(tmp_path, rows, heldout_share=0.6).heldout(64)[40].prompt
    task = written(
        tmp_path,
        [{"prompt": r["prompt"] + "x" * 240 * (r["prompt"] == long)} for r in rows],
        heldout_share=0.6,
    )
    few = {"steps": 1, "eval_prompts": 8}
    finding = found("prompts", pair, task=task, **few)
    assert finding.level == "fail"
    assert "1 of the run's" in finding.message


def test_prompts_that_are_too_long_are_one_finding_and_no_more(pair, tmp_path):
    task = written(tmp_path, [{"prompt": f"{i} {'x' * 300}"} for i in range(9)], heldout_share=0)
    failed = {check for check, level in levels(pair, task=task).items() if level == "fail"}
    assert failed == {"prompts"}


def test_a_text_that_the_tokenizer_takes_apart_is_no_shorter_than_its_tokens(pair):
    ligature = Example("\ufdfa" * 9)  # eighteen letters, two bytes each
    patient = Patient(pair.student, pair.teacher, small_config(), None, TransformersSampler(pair.student))
    assert bytes_of(patient, ligature) >= 9 * 18


def test_prompts_are_examined_as_the_teacher_reads_them(pair, tmp_path):
    task = written(tmp_path, [{"prompt": f"{i}?", "answer": "y" * i} for i in range(1, 230)], heldout_share=0)
    told = {"teacher": "self", "steps": 60}
    assert found("prompts", pair, task=task, **told, teacher_system="Think.").level == "pass"
    too_long = found("prompts", pair, task=task, **told, teacher_system="x" * 300)
    assert too_long.level == "fail"
    assert "As the teacher reads it" in too_long.message
    hint = found("prompts", pair, task=task, **told, teacher_hint="It is {answer}.")
    assert hint.level == "fail"
    assert re.search(r"\d+ of the run's 229 prompts cannot be used. The first, line 2\d\d: As", hint.message)
    with_template(pair.teacher, NO_SYSTEM + CHAT_TEMPLATE)
    refused = found("prompts", pair, task=task, **told, teacher_system="Think.")
    assert refused.level == "fail"
    assert "no system" in refused.message
    assert levels(pair, task=task, **told, teacher_system="Think.")["self-grade"] == "pass"


WORKED = [{"prompt": f"{i} + 1?", "answer": f"One more than {i}.\n#### {i + 1}"} for i in range(30)]


@pytest.mark.parametrize(
    ("rows", "verifier", "level", "said"),
    [
        (WORKED, "exact", "fail", "Set verifier to numeric"),
        (WORKED, "numeric", "pass", ""),
        ([{"prompt": "Who?", "answer": "Nobody"}], "exact", "pass", ""),
        ([*WORKED[:2], *({"prompt": f"{i}?", "answer": "no"} for i in range(9))], "exact", "warn", "2 of 11"),
        ([{"prompt": "a?", "answer": "B"}, {"prompt": "b?", "answer": "(C) three"}], "exact", "pass", ""),
        ([{"prompt": "a?", "answer": r"\d+"}], "regex", "pass", ""),
        ([{"prompt": "a?"}], "exact", "pass", "no reference"),
    ],
)
def test_reference_answers_are_given_to_their_verifier(pair, tmp_path, rows, verifier, level, said):
    task = written(tmp_path, rows, heldout_share=0, verifier=verifier)
    finding = found("answers", pair, task=task, steps=20, verifier=verifier)
    assert finding.level == level, finding
    assert said in finding.message


def test_generation_settings_that_cannot_be_written_again_are_said(pair):
    settings = pair.student.causal_lm.generation_config
    settings.temperature, settings.top_p = 0.6, 0.9
    finding = found("saving", pair)
    assert finding.level == "warn"
    assert "temperature, top_p" in finding.message
    assert found("saving", pair, lora_rank=4).level == "pass", "an adapter has no such file"
    assert (settings.temperature, settings.top_p) == (0.6, 0.9)


def test_a_student_that_a_library_refuses_to_write_fails_before_it_trains(pair, monkeypatch):
    def refuses(*args, **kwargs):
        raise ValueError("The model is quantized and is not serializable")

    monkeypatch.setattr(pair.student.model, "save_pretrained", refuses)
    finding = found("saving", pair)
    assert finding.level == "fail"
    assert "not serializable" in finding.message


def test_an_adapter_that_came_with_whole_modules_can_be_saved(pair):
    own = adapted(pair.student, modules_to_save=["lm_head"])
    student = LanguageModel("adapted", own, pair.student.tokenizer)
    finding = found("saving", Pair(student, pair.teacher), lora_rank=4)
    assert finding.level == "pass", finding


def test_memory_that_is_not_there_fails(pair, monkeypatch):
    need = estimate_memory(pair.student.model, pair.teacher.model, small_config(), prompt_tokens=50).total
    for free, level in ((need // 4, "fail"), (4 * need, "pass"), (None, "warn")):
        monkeypatch.setattr(doctor, "free_memory", lambda device, free=free: free)
        finding = found("memory", pair)
        assert finding.level == level, finding
    monkeypatch.setattr(doctor, "free_memory", lambda device: need // 4)
    assert "gradient_checkpointing" in found("memory", pair).message


# --- the examination itself


def test_a_check_that_raises_is_a_finding(pair, monkeypatch):
    def breaks(patient):
        raise RuntimeError("out of\nmemory.")

    monkeypatch.setitem(doctor.CHECKS, "scoring", breaks)
    finding = found("scoring", pair)
    assert finding == Finding("scoring", "fail", "This could not be examined: out of memory.")
    assert found("memory", pair).level == "pass"


def test_a_finding_reads_as_one_line(pair):
    for finding in examine(pair, config=small_config()):
        line = str(finding)
        assert "\n" not in line
        assert line.startswith(f"{finding.level}  {finding.check}: ")
        assert line.endswith(".")
