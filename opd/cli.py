"""The command line. Everything heavy is imported by the command that needs it, so that help is quick."""

from __future__ import annotations

import argparse
import json
import os
import sys
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

USAGE_ERROR, FAILURE = 2, 1

TASK_OPTIONS = ("prompt_column", "answer_column", "verifier", "on_malformed", "heldout_share", "task_split")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 2 for a wrong request, 1 for anything else."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        return options.run(options) or 0
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    except ValueError as error:
        print(f"opd: {error}", file=sys.stderr)
        return USAGE_ERROR
    except (OSError, RuntimeError) as error:
        print(f"opd: {error}", file=sys.stderr)
        return FAILURE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="opd",
        description="On-policy distillation you can look at: a teacher grades every token a student writes.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int | None], text: str) -> Any:  # noqa: ANN401
        made = commands.add_parser(name, help=text, description=text)
        made.set_defaults(run=run)
        return made

    app = command("app", _app, "start the app in the browser")
    app.add_argument("--port", type=int, help="port to listen on (default 7860, or GRADIO_SERVER_PORT)")
    app.add_argument("--host", help="address to listen on (default 127.0.0.1, or GRADIO_SERVER_NAME)")

    grade = command("grade", _grade, "sample from the student and print the teacher's grade of every token")
    grade.add_argument("--prompt", required=True, help="the question; - reads it from standard input")
    grade.add_argument("--system", help="a system prompt")
    grade.add_argument("-n", type=int, default=1, help="trajectories (default 1)")
    grade.add_argument("--temperature", type=float, default=1.0, help="sampling temperature (default 1)")
    grade.add_argument("--max-tokens", type=int, default=192, help="longest completion (default 192)")
    grade.add_argument("--seed", type=int, default=0, help="the same seed gives the same text (default 0)")
    grade.add_argument("--save", type=Path, metavar="FILE.json", help="write the review to a file")
    grade.add_argument("--no-color", action="store_true", help="plain text")
    _add_models(grade)

    train = command("train", _train, "distil the teacher into the student")
    train.add_argument("--name", help="name of the run (default: a new one)")
    train.add_argument("--resume", metavar="NAME", help="continue a run; its own settings apply")
    train.add_argument("--config", type=Path, metavar="FILE", help="settings from a .json or .toml file")
    _add_config(train)

    doctor = command("doctor", _doctor, "examine a student and a teacher before a run")
    _add_config(doctor)

    evaluate = command("eval", _evaluate, "score a model on held-out problems")
    evaluate.add_argument("model", help="folder, hub id, demo-student or demo-teacher")
    _add_config(evaluate, "task", *TASK_OPTIONS)
    evaluate.add_argument("-n", type=int, default=512, help="problems (default 512)")
    evaluate.add_argument("--split", choices=("test", "tuning"), default="test")
    evaluate.add_argument("--temperature", type=float, default=1.0, help="0 is greedy (default 1)")
    evaluate.add_argument("--max-tokens", type=int, default=192, help="longest answer (default 192)")
    evaluate.add_argument("--seed", type=int, default=0)
    evaluate.add_argument("--device", default="auto")
    evaluate.add_argument("--dtype", default="auto")
    evaluate.add_argument("--json", action="store_true", help="print JSON")

    make = command("make-pair", _make_pair, "make the embedded demo pair from nothing")
    make.add_argument("--out", type=Path, default=Path("assets/pair"), help="folder (default assets/pair)")
    make.add_argument("--seed", type=int, default=0)

    report = command("pair-report", _pair_report, "measure the embedded pair: accuracy, first errors, fixes")
    report.add_argument("-n", type=int, default=1000, help="held-out problems (default 1000)")
    report.add_argument("--json", action="store_true", help="print JSON")
    _add_models(report)
    return parser


def _add_models(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--student", default="demo-student", help="folder, hub id or demo-student")
    parser.add_argument("--teacher", default="demo-teacher", help="folder, hub id or demo-teacher")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16, float16")
    parser.add_argument("--teacher-device", help="device of the teacher, if another")
    parser.add_argument("--teacher-dtype", help="dtype of the teacher, if another")


def _add_config(parser: argparse.ArgumentParser, *only: str) -> None:
    """One flag a field of the config (or each of some), documented by the field."""
    from opd.config import DistillConfig

    for name, field in DistillConfig.model_fields.items():
        if name not in (only or DistillConfig.model_fields) or name == "lessons":  # a table: in files only
            continue
        flag = "--" + name.replace("_", "-")
        text = field.description.replace("%", "%%")
        if field.annotation is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
            continue
        if field.default is not None:
            text += f" (default {field.default})"
        kinds = _members(field.annotation)
        choices = [value for kind in kinds for value in typing.get_args(kind)] or None
        kind = next((k for k in (int, float) if k in kinds), str)
        parser.add_argument(flag, type=kind, choices=choices, default=None, help=text)


def _members(annotation: Any) -> tuple[Any, ...]:  # noqa: ANN401
    """The alternatives of an annotation: (int, None) of ``int | None``."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def _load_pair(options: argparse.Namespace) -> Any:  # noqa: ANN401
    import opd

    return opd.load_pair(
        options.student,
        options.teacher,
        device=options.device,
        dtype=options.dtype,
        teacher_device=options.teacher_device,
        teacher_dtype=options.teacher_dtype,
    )


def _app(options: argparse.Namespace) -> None:
    from opd.ui import launch

    launch(host=options.host, port=options.port)


def _grade(options: argparse.Namespace) -> None:
    import opd
    from opd.view.terminal import render

    prompt = sys.stdin.read() if options.prompt == "-" else options.prompt
    messages = [{"role": "user", "content": prompt}]
    if options.system:
        messages.insert(0, {"role": "system", "content": options.system})
    pair = _load_pair(options)
    trajectories = opd.sample(
        pair,
        [messages],
        n=options.n,
        seed=options.seed,
        temperature=options.temperature,
        max_tokens=options.max_tokens,
    )
    grades = opd.grade(pair, trajectories)
    reviews = [
        opd.review(pair, messages, t, g, seed=options.seed) for t, g in zip(trajectories, grades, strict=True)
    ]
    if options.save:
        opd.save_reviews(options.save, reviews)
    color = sys.stdout.isatty() and not options.no_color and "NO_COLOR" not in os.environ
    for review in reviews:
        print(render(review, color=color))
    if options.save:
        print(f"Saved to {options.save}.")


def _given(options: argparse.Namespace) -> dict[str, Any]:
    """The config's fields that the user set."""
    from opd.config import DistillConfig

    values = {name: getattr(options, name, None) for name in DistillConfig.model_fields}
    return {name: value for name, value in values.items() if value is not None}


def _doctor(options: argparse.Namespace) -> int:
    from opd.config import make_config
    from opd.doctor import examine
    from opd.models import load_model
    from opd.tasks import TaskOptions, load_task

    config = make_config(_given(options))
    task = load_task(config.task, TaskOptions.of(config))
    student = load_model(config.student, device=config.device, dtype=config.dtype)
    teacher = load_model(
        config.student if config.teacher == "self" else config.teacher,
        device=config.teacher_device or config.device,
        dtype=config.teacher_dtype or config.dtype,
    )
    findings = examine((student, teacher), config=config, task=task)
    for finding in findings:
        print(finding)
    return FAILURE if any(finding.level == "fail" for finding in findings) else 0


def _train(options: argparse.Namespace) -> None:
    from opd.config import make_config, read_config
    from opd.runs import create_run, new_name, open_run

    given = _given(options)
    if options.resume:
        if given or options.config or options.name:
            raise ValueError("--resume continues a run with its own settings; it takes no others.")
        run = open_run(options.resume)
    else:
        saved = read_config(options.config) if options.config else {}
        run = create_run(options.name or new_name(), make_config({**saved, **given}))
    _work(run)


def _work(run: Any) -> None:  # noqa: ANN401
    """Train a run here, with a progress bar; Ctrl-C stops it after the current step, with a checkpoint."""
    import signal

    from tqdm import tqdm

    from opd.jobs import work

    run.clear_control()
    seconds = 0.0
    with run.hold(), tqdm(total=run.config.steps, unit="step", dynamic_ncols=True) as bar:

        def show(report: Any) -> None:  # noqa: ANN401
            nonlocal seconds
            metrics = report.metrics
            bar.update(report.step - bar.n)
            if "reverse_kl" in metrics:
                bar.set_postfix_str(f"KL {metrics['reverse_kl']:.3f} nats/token")
                seconds += sum(metrics[f"seconds_{phase}"] for phase in ("sample", "teacher", "update"))
            if "heldout_accuracy" in metrics:
                bar.write(
                    f"step {report.step}: held-out accuracy {metrics['heldout_accuracy']:.1%} of "
                    f"{metrics['heldout_n']}, teacher {metrics['teacher_accuracy']:.1%}"
                )
            for note in (*report.notes, *report.alarms):
                bar.write(note)

        before = signal.signal(signal.SIGINT, lambda *_: run.request_stop())
        try:
            work(run, show)
        finally:
            signal.signal(signal.SIGINT, before)
    status = run.status()
    print(f"Run {run.name} {status.state} at step {status.step} of {status.steps}.")
    print(f"Training took {seconds:.1f} s, loading and evaluation not counted.")
    print(f"The student is in {run.model_dir}.")


def _evaluate(options: argparse.Namespace) -> None:
    from opd.config import make_config
    from opd.evaluation import evaluate
    from opd.models import load_model
    from opd.tasks import TaskOptions, load_task

    config = make_config(_given(options))
    task = load_task(config.task, TaskOptions.of(config))
    accuracy = evaluate(
        load_model(options.model, device=options.device, dtype=options.dtype),
        task,
        n=options.n,
        split=options.split,
        temperature=options.temperature,
        max_tokens=options.max_tokens,
        seed=options.seed,
    )
    if options.json:
        low, high = accuracy.interval
        print(json.dumps({"accuracy": accuracy.value, "n": accuracy.n, "low": low, "high": high}))
    else:
        print(f"{options.model} on {task.name}: {accuracy}")


def _make_pair(options: argparse.Namespace) -> None:
    from opd.demo.make_pair import make_pair

    make_pair(options.out, seed=options.seed)


def _pair_report(options: argparse.Namespace) -> None:
    from opd.demo.report import pair_report, report_table

    report = pair_report(_load_pair(options), n=options.n)
    print(json.dumps(report) if options.json else report_table(report))
