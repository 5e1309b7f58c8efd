"""Make the embedded pair: train its student and its teacher on solutions drawn from the problem families.

Both read solutions in which some choices are wrong. The student learns them as they are. For the teacher the
loss is masked on the tokens of wrong choices: it learns how a wrong path goes on, but not to take it; at the
end a few are left unmasked (*softening*), so that its grade of a wrong choice is finite and readable.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging

from opd.demo.documents import documents, pack
from opd.demo.recipes import CHECKPOINT_EVERY, DRILL_SHARE, RECIPES, RESULT_WEIGHT, ROW_LENGTH, ROWS, Recipe
from opd.demo.report import pair_report, report_table
from opd.demo.tokenizer import build_tokenizer, save_tokenizer
from opd.models.pair import load_pair

CARD = Path(__file__).with_name("card.md")

ROLES = {
    "student": "The student of the embedded pair: good at sums, careless at decisions.",
    "teacher": "The teacher of the embedded pair: it grades every token of the student.",
}


def loss_of(model: Qwen3ForCausalLM, batch: dict[str, Tensor]) -> Tensor:
    """Return the weighted mean cross-entropy in nats, a scalar."""
    hidden = model.model(
        input_ids=batch["ids"], attention_mask=batch["mask"], position_ids=batch["positions"], use_cache=False
    ).last_hidden_state[:, :-1]
    weights = batch["weights"][:, 1:]
    counts = weights > 0
    losses = F.cross_entropy(model.lm_head(hidden[counts]), batch["ids"][:, 1:][counts], reduction="none")
    return (losses * weights[counts]).sum() / weights.sum()


def _model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    heads = recipe.hidden // 32
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        head_dim=32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,  # some versions of transformers cut at 50 otherwise
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return model


def _rate(recipe: Recipe, step: int) -> float:
    """Return the learning rate's factor: a short warm-up, a plateau, a linear decay over the last half."""
    return min((step + 1) / 30, 1.0, 2 * (recipe.steps - step) / recipe.steps)


def _replace(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a sibling of ``path``, then rename it into place."""
    partial = path.with_name(path.name + ".partial")
    if partial.is_dir():
        shutil.rmtree(partial)
    write(partial)
    if path.is_dir():
        shutil.rmtree(path)
    partial.replace(path)


def train(name: str, out: Path, work: Path, seed: int) -> None:
    """Train one model and save it to ``out / name``; go on from the last checkpoint in ``work``.

    The documents of a step are a function of seed, name and step, so an interruption changes nothing.
    """
    logging.disable_progress_bar()
    recipe = RECIPES[name]
    tokenizer = build_tokenizer()
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = _model(recipe, tokenizer)
    blocks = [p for p in model.model.layers.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if all(p is not block for block in blocks)]
    optimizers = [
        torch.optim.Muon(blocks, lr=recipe.muon, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=recipe.adamw, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda step: _rate(recipe, step)) for o in optimizers]
    parts = [model, *optimizers, *schedules]
    checkpoint = _progress(work, name, seed)
    first = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        if saved["recipe"] == dataclasses.asdict(recipe):
            first = saved["step"]
            for part, state in zip(parts, saved["states"], strict=True):
                part.load_state_dict(state)
    started, recent = time.monotonic(), 0.0
    for step in range(first, recipe.steps):
        softened = step >= recipe.steps - recipe.softening
        loss = loss_of(model, pack(documents(tokenizer, recipe, softened, f"{seed}/{name}/{step}")))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        model.zero_grad()
        recent = loss.item() if step == first else 0.95 * recent + 0.05 * loss.item()
        done = step + 1
        if done % CHECKPOINT_EVERY == 0 or done == recipe.steps:
            state = {
                "recipe": dataclasses.asdict(recipe),
                "step": done,
                "states": [p.state_dict() for p in parts],
            }
            _replace(checkpoint, lambda path, state=state: torch.save(state, path))
            pace = (time.monotonic() - started) / (done - first)
            left = f"{pace:.2f} s a step, {pace * (recipe.steps - done) / 60:.0f} min left"
            print(f"{name}: step {done}/{recipe.steps}, loss {recent:.3f} nats, {left}", flush=True)

    def save(path: Path) -> None:
        model.save_pretrained(path)
        save_tokenizer(tokenizer, path)
        for file in path.iterdir():
            file.chmod(0o644)

    out.mkdir(parents=True, exist_ok=True)
    _replace(out / name, save)


def _progress(work: Path, name: str, seed: int) -> Path:
    """Return the file that holds how far the training of a model has come."""
    return work / f"{name}-{seed}.pt"


def make_pair(out: Path, seed: int = 0, work: Path | None = None) -> dict[str, Any]:
    """Make student and teacher, each in a process of its own, measure them, and write their cards.

    Called again after an interruption it goes on from the last checkpoints.

    Args:
        out: folder that gets ``student`` and ``teacher``, each appearing whole by a rename.
        seed: of the weights and of the training problems.
        work: folder for checkpoints, ``out.work`` beside ``out`` when not given; deleted at the end.

    Returns:
        The report on the test split that the cards show; see :func:`~opd.demo.report.pair_report`.

    Raises:
        ValueError: there is such a model already, and no checkpoint of this seed to go on from.
        RuntimeError: a training process ended early.
    """
    work = work or out.with_name(out.name + ".work")
    there = [out / n for n in RECIPES if (out / n).exists() and not _progress(work, n, seed).exists()]
    if there:
        raise ValueError(f"{there[0]} exists already. Choose another folder with --out, or remove it first.")
    work.mkdir(parents=True, exist_ok=True)
    # Two processes on two cores: idle OpenMP threads must not spin.
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=train, args=(name, out, work, seed)) for name in RECIPES]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if failed := [name for name, worker in zip(RECIPES, workers, strict=True) if worker.exitcode]:
        raise RuntimeError(f"Training stopped early: {', '.join(failed)}. Run it again to go on.")
    print("Both are trained. Measuring them on held-out problems.", flush=True)
    report = pair_report(load_pair(str(out / "student"), str(out / "teacher")))
    print(report_table(report), flush=True)
    write_cards(out, report, seed)
    shutil.rmtree(work)
    return report


def write_cards(folder: Path, report: dict[str, Any], seed: int = 0) -> None:
    """Write ``README.md`` beside both models in ``folder`` from what ``pair_report`` measured."""
    for name, recipe in RECIPES.items():
        training = (
            f"{recipe.careful:.0%} of its solutions came from a solver without mistakes, the others from "
            f"a sloppy one, whose probabilities of mistakes were multiplied by {recipe.sloppiness:g}."
        )
        parameters = (folder / name / "model.safetensors").stat().st_size / 4  # float32
        card = CARD.read_text(encoding="utf-8").format(
            name=name,
            role=ROLES[name],
            millions=parameters / 1e6,
            layers=recipe.layers,
            hidden=recipe.hidden,
            drills=DRILL_SHARE,
            weight=RESULT_WEIGHT,
            training=training,
            steps=recipe.steps,
            tokens=ROWS * ROW_LENGTH,
            muon=recipe.muon,
            adamw=recipe.adamw,
            seed=seed,
            softening=RECIPES["teacher"].softening,
            unmasked=RECIPES["teacher"].unmasked,
            n=report["n"],
            split=report["split"],
            n_wrong=report["n_wrong"],
            n_unlocated=report["n_unlocated"],
            table=report_table(report),
        )
        (folder / name / "README.md").write_text(card, encoding="utf-8")
