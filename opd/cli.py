"""The command line. Everything heavy is imported by the command that needs it, so that help is quick."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

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
        _say(f"opd: {error}", sys.stderr)
        return USAGE_ERROR
    except (OSError, RuntimeError) as error:
        _say(f"opd: {error}", sys.stderr)
        return FAILURE


def _say(text: Any, file: TextIO | None = None) -> None:  # noqa: ANN401
    """Print text for people: what a file or a model says in it cannot act on the terminal."""
    print(_harmless(text), file=file)


def _harmless(text: Any) -> str:  # noqa: ANN401
    """Return text with control codes made visible; line breaks stay."""
    from opd.view.payload import visible

    return "\n".join(map(visible, str(text).split("\n")))


def _parser() -> argparse.ArgumentParser:
    from opd.presets import PRESETS

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

    grade = command("grade", _grade, "print the teacher's grade of every token of sampled or given text")
    source = grade.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", help="the question; - reads it from standard input")
    source.add_argument(
        "--file",
        type=Path,
        help="prompts, and in a column completion or response what is graded: .jsonl, .csv, .parquet (with "
        "pip install opd-studio[data]); or prompts alone, one a line in .txt",
    )
    source.add_argument(
        "--chat",
        type=Path,
        metavar="FILE",
        help="a chat, every assistant turn graded: JSON, or user: … lines",
    )
    source.add_argument("--open", metavar="REVIEW", help="a saved review, by its file or its id")
    grade.add_argument(
        "--text",
        type=Path,
        metavar="FILE",
        help="grade this text as the answer to --prompt, without sampling",
    )
    grade.add_argument("--system", help="a system prompt before --prompt")
    grade.add_argument("-n", type=int, default=1, help="trajectories a prompt (default 1)")
    grade.add_argument("--temperature", type=float, default=1.0, help="sampling temperature (default 1)")
    grade.add_argument("--max-tokens", type=int, default=192, help="longest completion (default 192)")
    grade.add_argument("--seed", type=int, default=0, help="the same seed gives the same text (default 0)")
    grade.add_argument("--save", type=Path, metavar="FILE.json", help="write the review to a file")
    grade.add_argument("--csv", type=Path, metavar="FILE.csv", help="write a table, one row a token")
    grade.add_argument("--html", type=Path, metavar="FILE.html", help="write a page that works offline")
    grade.add_argument("--no-color", action="store_true", help="plain text")
    _add_models(grade)
    grade.add_argument(
        "--cross-tokenizer",
        action="store_true",
        help="let a teacher with another tokenizer grade aligned spans of text",
    )

    branch = command(
        "branch", _branch, "go another way at a token of a saved review, or measure what it is worth"
    )
    branch.add_argument("review", help="a saved review, by its file or its id")
    branch.add_argument("--which", type=int, default=1, help="number of the trajectory in it (default 1)")
    branch.add_argument("--at", type=int, help="number of the token (default: the strongest fork)")
    way = branch.add_mutually_exclusive_group()
    way.add_argument("--text", help="force this text (default: the teacher's choice); the student goes on")
    way.add_argument("--teacher-line", action="store_true", help="let the teacher go on instead")
    way.add_argument("--value", action="store_true", help="fork value: does the choice decide the answer?")
    way.add_argument("--no-return", action="store_true", help="where along the text was the answer lost?")
    branch.add_argument("-k", type=int, default=32, help="rollouts of each option or place (default 32)")
    branch.add_argument("--max-tokens", type=int, default=192, help="longest completion (default 192)")
    branch.add_argument(
        "--save", type=Path, metavar="FILE.json", help="write the review, with what was found"
    )
    branch.add_argument("--no-color", action="store_true", help="plain text")
    _add_models(branch, of_review=True)

    command("reviews", _reviews, "list the ids of saved reviews, the newest first, and of the gallery")

    train = command("train", _led(_train), "distil the teacher into the student")
    train.add_argument("--name", help="name of the run (default: a new one)")
    train.add_argument(
        "--resume",
        metavar="NAME",
        help="continue a run; its own settings apply, but more --steps prolong it",
    )
    train.add_argument("--config", type=Path, metavar="FILE", help="settings from a .json or .toml file")
    train.add_argument("--preset", metavar="NAME", help=f"over these settings, one of {', '.join(PRESETS)}")
    train.add_argument(
        "--dry-run", action="store_true", help="sample and grade one batch, and say what it would train"
    )
    _add_config(train)

    race = command("race", _led(_race), "train the same pair with several methods, one after another")
    race.add_argument("name", help="name of the race; its runs are called NAME-PRESET")
    race.add_argument(
        "--methods",
        nargs="+",
        metavar="PRESET",
        default=["full", "sft", "rl"],
        help="presets (default %(default)s)",
    )
    race.add_argument("--budget-tokens", type=int, help="each method ends after so many completion tokens")
    race.add_argument("--budget-seconds", type=float, help="each method ends after so long a training")
    race.add_argument("--config", type=Path, metavar="FILE", help="settings from a .json or .toml file")
    _add_config(race)

    runs = command("runs", _list_runs, "list runs, compare and export them")
    runs.add_argument("--json", action="store_true", help="print JSON")
    runs.add_argument("--search", default="", metavar="WORDS", help="only runs with all of these words")
    _add_run_actions(runs)

    doctor = command("doctor", _doctor, "examine a student and a teacher before a run")
    doctor.add_argument("--config", type=Path, metavar="FILE", help="settings from a .json or .toml file")
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
    report.add_argument("--split", choices=("test", "tuning"), default="test")
    report.add_argument("--json", action="store_true", help="print JSON")
    _add_models(report)
    return parser


def _add_run_actions(runs: argparse.ArgumentParser) -> None:
    actions = runs.add_subparsers(title="actions", metavar="ACTION")

    def action(name: str, run: Callable[[argparse.Namespace], int | None], text: str) -> Any:  # noqa: ANN401
        made = actions.add_parser(name, help=text, description=text)
        made.set_defaults(run=run)
        made.add_argument("name", help="the run")
        return made

    action("delete", _delete_run, "delete a run").add_argument(
        "--yes", action="store_true", help="without asking"
    )
    action("diff", _diff_runs, "print the settings in which two runs differ").add_argument(
        "other", help="the other run"
    )
    action("csv", _print_csv, "print the metrics as CSV")
    action("report", _report_run, "write a page about a run that works offline").add_argument(
        "file", type=Path, metavar="FILE.html", help="the file to write"
    )
    action("note", _note_run, "write a note about a run").add_argument("text", help="the note")
    action("pin", _pin_run, "make a run the baseline that others are compared with")
    for name, run, text in (
        ("zip", _zip_run, "write the trained student, adapter or weights, as a zip"),
        ("publish", _publish_run, "upload the trained student to the hub; the token is asked for"),
    ):
        made = action(name, run, text)
        if name == "zip":
            made.add_argument("file", type=Path, help="the file to write")
        else:
            made.add_argument("repo", help="where to, owner/name")
            made.add_argument("--public", action="store_true", help="a new repository is for everybody")
        made.add_argument("--step", type=int, help="of which checkpoint (default: the newest)")


def _add_models(parser: argparse.ArgumentParser, *, of_review: bool = False) -> None:
    """The flags that name a pair; ``of_review``: without them it is the one that made the review."""
    for role in ("student", "teacher"):
        demo = f"demo-{role}"
        usual = "the one that the review names" if of_review else demo
        parser.add_argument(
            f"--{role}",
            default=None if of_review else demo,
            help=f"folder, hub id or {demo} (default {usual})",
        )
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
        cross_tokenizer=getattr(options, "cross_tokenizer", False),
    )


def _app(options: argparse.Namespace) -> None:
    port = os.environ.get("GRADIO_SERVER_PORT") if options.port is None else str(options.port)
    if port and not (port.isdecimal() and 0 < int(port) < 2**16):
        raise ValueError(f"The port must be a number from 1 to 65535, not {port}.")
    from opd.ui import launch

    launch(host=options.host, port=options.port)


def _grade(options: argparse.Namespace) -> None:
    from opd.grading.saved_reviews import ReviewSet, save_reviews, to_csv
    from opd.trajectory import write_atomically
    from opd.view.terminal import render

    if (options.text or options.system) and not options.prompt:
        raise ValueError("--text and --system go with --prompt.")
    reviews = _open_review(options.open) if options.open else ReviewSet.of(_graded(options))
    color = sys.stdout.isatty() and not options.no_color and "NO_COLOR" not in os.environ
    for review in reviews:
        print(render(review, color=color))
    if options.save:
        save_reviews(options.save, reviews)
    if options.csv:
        write_atomically(options.csv, to_csv(reviews))
    if options.html:
        from opd.view.page import render_page

        write_atomically(options.html, render_page(reviews))
    for path in (options.save, options.csv, options.html):
        if path:
            print(f"Saved to {path}.")


def _reviews(options: argparse.Namespace) -> None:
    from opd.grading.saved_reviews import gallery, heading, open_review, stored_reviews

    for ident in (*stored_reviews(), *gallery()):
        try:
            _say(f"{ident} {heading(open_review(ident))}")
        except (ValueError, OSError) as error:
            _say(f"{ident} cannot be opened: {error}")


def _open_review(name: str) -> Any:  # noqa: ANN401
    from opd.grading.saved_reviews import load_reviews, open_review

    return load_reviews(name) if Path(name).is_file() else open_review(name)


def _graded(options: argparse.Namespace) -> list[Any]:
    """Grade what the options name: given text, or what the student samples."""
    import opd
    from opd.grading.own_text import read_chat, read_prompts
    from opd.tasks.demo import known_problems

    if options.chat:
        chat = read_chat(_read_text(options.chat))
        return opd.review_chat(_load_pair(options), chat)
    if options.file:
        asked = read_prompts(options.file)
        for row in asked.malformed:
            _say(f"opd: row {row.line} of {options.file} is left out: {row.reason}.", sys.stderr)
        prompts, texts = asked.prompts, asked.completions
    else:
        prompt = sys.stdin.read().removeprefix("\ufeff") if options.prompt == "-" else options.prompt
        system = [{"role": "system", "content": options.system}] if options.system else []
        prompts = [[*system, {"role": "user", "content": prompt}] if system else prompt]
        texts = [_read_text(options.text) if options.text else None]
    known = known_problems()
    *_, reviews = opd.review_prompts(
        _load_pair(options),
        prompts,
        texts,
        n=options.n,
        seed=options.seed,
        temperature=options.temperature,
        max_tokens=options.max_tokens,
        task=opd.load_task("demo"),
        examples=[known.get(prompt.strip()) if isinstance(prompt, str) else None for prompt in prompts],
    )
    return reviews


def _read_text(path: Path) -> str:
    """Read a text as it is, but for the line break that ends a file."""
    from opd.files import read_text

    return read_text(path).removesuffix("\n").removesuffix("\r")


def _branch(options: argparse.Namespace) -> None:
    from dataclasses import replace

    from opd.grading import branching
    from opd.grading.saved_reviews import save_reviews
    from opd.tasks import load_task
    from opd.tasks.demo import known_problems
    from opd.verdicts import DEFAULT_FORKS, strongest_forks
    from opd.view.terminal import render

    reviews = _open_review(options.review)
    if not 1 <= options.which <= len(reviews):
        raise ValueError(f"There is no trajectory {options.which}: {options.review} holds {len(reviews)}.")
    main = list(reviews)[options.which - 1]
    group = next(g for g in reviews.groups if any(r is main for r in g.reviews))
    place = next(i for i, r in enumerate(group.reviews) if r is main)
    at = int(strongest_forks(main.grades, DEFAULT_FORKS, 1)[0]) if options.at is None else options.at - 1
    example = known_problems().get(main.messages[-1]["content"].strip()) if len(main.messages) == 1 else None
    verified = {"task": load_task("demo"), "example": example, "max_tokens": options.max_tokens}
    if options.no_return and example is None:
        raise ValueError("Nobody verifies the answers to this prompt, so right and wrong cannot be told.")
    pair = _pair_of(main, options)
    group_reviews = list(group.reviews)
    if options.value or options.no_return:
        if options.value:
            print(f"{branching.fork_value_cost(main, at, k=options.k)}.")
            states = branching.fork_value(pair, main, at, k=options.k, **verified)
        else:
            print(f"{branching.no_return_cost(main, k=options.k)}.")
            states = branching.point_of_no_return(pair, main, k=options.k, **verified)
        *_, found = states
        _say(found.sentence)
        group_reviews[place] = branching.with_evidence(main, found)
    else:
        if options.teacher_line:
            states = branching.teacher_line(pair, main, at, parent=place, **verified)
        else:
            forced = branching.teacher_choices(main, at)[0] if options.text is None else options.text
            states = branching.branch(pair, main, at, forced, parent=place, **verified)
        *_, made = states
        group_reviews.append(made)
        color = sys.stdout.isatty() and not options.no_color and "NO_COLOR" not in os.environ
        print(render(made, color=color))
    if options.save:
        groups = [replace(g, reviews=group_reviews) if g is group else g for g in reviews.groups]
        save_reviews(options.save, replace(reviews, groups=groups))
        print(f"Saved to {options.save}.")


def _pair_of(review: Any, options: argparse.Namespace) -> Any:  # noqa: ANN401
    """Load the pair that made a review, or what the user names instead.

    Raises:
        ValueError: it cannot be loaded.
    """
    from opd.view.payload import visible

    options.student = options.student or review.student
    options.teacher = options.teacher or review.teacher
    try:
        return _load_pair(options)
    except (ValueError, OSError) as error:
        made = visible(f"{review.student} and {review.teacher}")
        raise ValueError(
            f"This review was made with {made}. {error} Say where that pair is with --student and --teacher."
        ) from error


def _given(options: argparse.Namespace) -> dict[str, Any]:
    """The config's fields that the user set."""
    from opd.config import DistillConfig

    values = {name: getattr(options, name, None) for name in DistillConfig.model_fields}
    return {name: value for name, value in values.items() if value is not None}


def _doctor(options: argparse.Namespace) -> int:
    from opd.config import make_config, read_config
    from opd.presets import combine
    from opd.training.preview import examined

    saved = read_config(options.config) if options.config else {}
    config, failed = make_config(combine(saved, given=_given(options))), False
    for lesson, _, findings in examined(config):
        if config.lessons:
            _say(f"{lesson.teacher} for {lesson.task}:")
        for finding in findings:
            _say(finding)
            failed |= finding.level == "fail"
    return FAILURE if failed else 0


def _led(run: Callable[[argparse.Namespace], int | None]) -> Callable[[argparse.Namespace], int]:
    """Under torchrun, let the first process do what a command says and all others take part in its runs."""

    def led(options: argparse.Namespace) -> int:
        from opd.models.parallel import FailedElsewhere, processes, rank, tell
        from opd.runs.worker import follow

        first, code = True, None
        try:
            with processes():
                first = rank() == 0
                if first or getattr(options, "dry_run", False):
                    code = run(options)
                    tell(None)
                else:
                    follow()
        except FailedElsewhere:
            if first:
                raise
            return FAILURE
        return code or 0

    return led


def _train(options: argparse.Namespace) -> int | None:
    from opd.config import make_config, read_config
    from opd.presets import combine
    from opd.runs.jobs import enter, refuse_finished
    from opd.runs.run import new_name, open_run

    given = _given(options)
    if options.resume:
        steps = given.pop("steps", None)
        if given or options.config or options.name or options.preset or options.dry_run:
            raise ValueError("--resume continues a run with its own settings; it takes none but --steps.")
        run = open_run(options.resume)
        refuse_finished(run, steps)
        return _work(run, steps)
    saved = read_config(options.config) if options.config else {}
    config = make_config(combine(saved, options.preset, given))
    if options.dry_run:
        return _dry_run(config)
    return _work(enter(config, options.name or new_name()))


def _dry_run(config: Any) -> int:  # noqa: ANN401
    """Print what the doctor does not pass and, unless that forbids the run, what its first step would do."""
    from opd.models.parallel import rank
    from opd.presets import as_command
    from opd.training.preview import look_ahead

    findings, found = look_ahead(config)
    if rank() == 0:
        if not config.lessons:  # they have no flags
            _say(as_command(config))
        for finding in findings:
            if finding.level != "pass":
                _say(finding)
        if found:
            _print_preview(found)
    return 0 if found else FAILURE


def _print_preview(p: Any) -> None:  # noqa: ANN401
    from opd.view.payload import visible

    def line(text: str) -> str:
        return visible(text).replace("\n", "")

    for sentence in p.sentences():
        _say(sentence)
    for title, tokens in (("Punished", p.punished), ("Rewarded", p.rewarded)):
        print(f"\n{title} most: advantage, the [token] in its context, the teacher's first choice")
        for t in tokens:
            context = f"{line(t.before[-30:])}[{line(t.text)}]{line(t.after[:15])}"
            print(f"{t.advantage:+8.2f}  {context}  → {line(t.teacher_choice)}")


def _race(options: argparse.Namespace) -> None:
    from opd.config import read_config
    from opd.presets import race_configs
    from opd.runs.jobs import enter_race
    from opd.runs.run import Race

    saved = read_config(options.config) if options.config else {}
    configs = race_configs(options.methods, saved, _given(options))
    for run in enter_race(configs, Race(options.name, options.budget_tokens, options.budget_seconds)):
        _work(run)
        if run.status().state == "stopped":
            break


def _list_runs(options: argparse.Namespace) -> None:
    from opd.runs.collection import summaries
    from opd.view.payload import visible

    found = summaries(options.search)
    if options.json:
        print(json.dumps([asdict(summary) for summary in found]))
        return
    for s in found:
        best = "-" if s.best_kl is None else f"KL {s.best_kl:.3f}"
        best = best if s.best_accuracy is None else f"{s.best_accuracy:.1%}"
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(s.started))
        mark = "* " if s.baseline else "  "
        state = f"{s.state} ⚠" if s.alarmed else s.state
        line = f"{mark}{s.name}  {state}  step {s.step} of {s.steps}  best {best}  {when}  {s.objective}"
        if s.fault:
            line = f"{mark}{s.name}  {s.state}  {when}  {s.fault}"
        print(visible(line + (f"  {s.note}" if s.note else "")).replace("\n", " "))


def _delete_run(options: argparse.Namespace) -> None:
    from opd.runs.collection import delete_run
    from opd.runs.run import open_run

    run = open_run(options.name)
    if options.yes or input(f"Delete the run {run.name} and its checkpoints for good? [y/N] ") in (
        "y",
        "yes",
    ):
        delete_run(run)
        print(f"The run {run.name} is deleted.")


def _diff_runs(options: argparse.Namespace) -> None:
    from opd.runs.collection import config_diff
    from opd.runs.run import open_run

    for name, values in config_diff(open_run(options.name), open_run(options.other)).items():
        print(f"{name}: {values[0]!r} | {values[1]!r}")


def _print_csv(options: argparse.Namespace) -> None:
    from opd.runs.export import metrics_csv
    from opd.runs.run import open_run

    print(metrics_csv(open_run(options.name)), end="")


def _report_run(options: argparse.Namespace) -> None:
    from opd.runs.collection import read_note
    from opd.runs.run import open_run
    from opd.trajectory import write_atomically
    from opd.view.report import render_report

    run = open_run(options.name)
    write_atomically(options.file, render_report(run, read_note(run)))
    print(f"Saved to {options.file}.")


def _note_run(options: argparse.Namespace) -> None:
    from opd.runs.collection import write_note
    from opd.runs.run import open_run

    write_note(open_run(options.name), options.text)


def _pin_run(options: argparse.Namespace) -> None:
    from opd.runs.collection import pin_baseline
    from opd.runs.run import open_run

    pin_baseline(open_run(options.name))


def _zip_run(options: argparse.Namespace) -> None:
    from opd.runs.export import export_zip
    from opd.runs.run import open_run

    print(f"Saved to {export_zip(open_run(options.name), options.file, options.step)}.")


def _publish_run(options: argparse.Namespace) -> None:
    from getpass import getpass

    from opd.runs.export import publish
    from opd.runs.run import open_run

    run = open_run(options.name)
    token = os.environ.get("HF_TOKEN") or getpass("Token of the hub (not stored): ")
    print(publish(run, options.repo, token, step=options.step, private=not options.public))


def _work(run: Any, steps: int | None = None) -> None:  # noqa: ANN401
    """Train a run here, with a progress bar; Ctrl-C stops it after the current step, with a checkpoint.

    ``steps`` prolongs it first.
    """
    import signal

    from tqdm import tqdm

    from opd.runs.jobs import prolong
    from opd.runs.worker import work

    seconds = 0.0
    with run.hold():
        if steps is not None:
            prolong(run, steps)
            _say(run.notes()[-1])
        with tqdm(total=run.config.steps, unit="step", dynamic_ncols=True) as bar:

            def show(report: Any) -> None:  # noqa: ANN401
                nonlocal seconds
                metrics = report.metrics
                bar.update(report.step - bar.n)
                if "reverse_kl" in metrics:
                    least = "≥ " if "reverse_kl_top_k" in metrics else ""
                    bar.set_postfix_str(f"KL {least}{metrics['reverse_kl']:.3f} nats/token")
                    seconds += sum(metrics[f"seconds_{phase}"] for phase in ("sample", "teacher", "update"))
                if "heldout_accuracy" in metrics:
                    taught = metrics.get("teacher_accuracy")  # one that only scores answers nothing
                    bar.write(
                        f"step {report.step}: held-out accuracy {metrics['heldout_accuracy']:.1%} of "
                        f"{metrics['heldout_n']}" + ("" if taught is None else f", teacher {taught:.1%}")
                    )

            run.take_over()
            before = signal.signal(signal.SIGINT, lambda *_: run.ask("stop"))
            try:
                work(run, show, lambda sentence: bar.write(_harmless(sentence)))
            finally:
                signal.signal(signal.SIGINT, before)
    status = run.status()
    _say(f"Run {run.name} {status.state} at step {status.step} of {status.steps}. {status.message}".strip())
    print(f"Training took {seconds:.1f} s, loading and evaluation not counted.")
    if run.model_dir:
        _say(f"The student is in {run.model_dir}.")


def _evaluate(options: argparse.Namespace) -> None:
    from opd.grading.evaluation import evaluate
    from opd.models.load import load_model
    from opd.tasks import TaskOptions, load_task

    asked = {name: getattr(options, name) for name in TASK_OPTIONS}
    task = load_task(options.task or "demo", TaskOptions(**{k: v for k, v in asked.items() if v is not None}))
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
        _say(f"{options.model} on {task.name}: {accuracy}")


def _make_pair(options: argparse.Namespace) -> None:
    from opd.demo.make_pair import make_pair

    make_pair(options.out, seed=options.seed)


def _pair_report(options: argparse.Namespace) -> None:
    from opd.demo.report import forks_table, pair_report, report_table

    report = pair_report(_load_pair(options), n=options.n, split=options.split)
    print(json.dumps(report) if options.json else f"{report_table(report)}\n\n{forks_table(report)}")
