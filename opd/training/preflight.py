"""Before a run is queued: all that can be known of it with no weights loaded and the hub not asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec

from opd.config import DistillConfig
from opd.engines.vllm import must_be_installed
from opd.models.load import check_dtype, resolve_device
from opd.tasks import is_hub_data_set
from opd.training.lessons import (
    check_models,
    load_lesson_task,
    must_compile,
    must_only_score,
    prompts_of_lessons,
)


def preflight(config: DistillConfig) -> None:
    """Look whether a run could begin: its devices, models, tasks and the packages that it needs.

    A data set of the hub is not looked at: it would have to be asked for.

    Raises:
        ValueError: what is wrong, all of it, a sentence or two each.
    """
    problems = []
    for check in _checks(config):
        try:
            check()
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError(" ".join(dict.fromkeys(problems)))


def _checks(config: DistillConfig) -> Iterator[Callable[[], object]]:
    for device in filter(None, (config.device, config.teacher_device)):
        yield partial(resolve_device, device)
    for dtype in filter(None, (config.dtype, config.teacher_dtype)):
        yield partial(check_dtype, dtype)
    yield partial(check_models, config)
    for task in dict.fromkeys((config.task, *(lesson.task for lesson in config.lessons))):
        if not is_hub_data_set(task):
            yield partial(load_lesson_task, task, config)
        elif find_spec("datasets") is None:
            yield partial(load_lesson_task, task, config)  # it says what to install
    yield partial(prompts_of_lessons, config)
    if config.compile:
        yield partial(must_compile, config)
    if config.engine == "vllm":
        yield must_be_installed
    if config.teacher_url:
        yield partial(must_only_score, config)
    if config.report_to != "none":
        yield partial(must_have_tracker, config.report_to)


def must_have_tracker(name: str) -> None:
    """Refuse a tracker that is not installed.

    Raises:
        ValueError: it is not.
    """
    if find_spec(name) is None:
        raise ValueError(f"report_to {name} needs the package {name}: pip install {name}.")
