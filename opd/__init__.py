"""OPD Studio: on-policy distillation you can look at.

    import opd

    pair = opd.load_pair()
    trajectories = opd.sample(pair, ["What is 7 + 3 × (9 - 4)?"], n=4)
    grades = opd.grade(pair, trajectories)
    for report in opd.distill(opd.DistillConfig(steps=60)):
        print(report.step, report.metrics)

Importing the package is cheap: torch, transformers and gradio load when something that needs them is used.
"""

from importlib import import_module

_HOMES = {
    "DistillConfig": "opd.config",
    "Evaluation": "opd.evaluation",
    "Finding": "opd.doctor",
    "Grades": "opd.trajectory",
    "Pair": "opd.models",
    "Review": "opd.trajectory",
    "StepReport": "opd.trajectory",
    "Trajectory": "opd.trajectory",
    "TaskOptions": "opd.tasks",
    "branch": "opd.branching",
    "distill": "opd.distillation",
    "evaluate": "opd.evaluation",
    "examine": "opd.doctor",
    "fork_value": "opd.branching",
    "grade": "opd.grading",
    "load_pair": "opd.models",
    "load_reviews": "opd.saved_reviews",
    "load_task": "opd.tasks",
    "point_of_no_return": "opd.branching",
    "report_card": "opd.summary",
    "review": "opd.reviewing",
    "review_chat": "opd.reviewing",
    "review_prompts": "opd.reviewing",
    "review_text": "opd.reviewing",
    "sample": "opd.sampling",
    "save_reviews": "opd.saved_reviews",
    "stream_reviews": "opd.reviewing",
    "swaps": "opd.summary",
    "teacher_line": "opd.branching",
    "token_map": "opd.summary",
    "worst_tokens": "opd.summary",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'opd' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
