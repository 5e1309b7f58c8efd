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
    "Evaluation": "opd.grading.evaluation",
    "Finding": "opd.training.doctor",
    "Grades": "opd.trajectory",
    "Pair": "opd.models.pair",
    "Review": "opd.reviews",
    "StepReport": "opd.reports",
    "Trajectory": "opd.trajectory",
    "TaskOptions": "opd.tasks",
    "branch": "opd.grading.branching",
    "distill": "opd.training.distillation",
    "evaluate": "opd.grading.evaluation",
    "examine": "opd.training.doctor",
    "fork_value": "opd.grading.branching",
    "grade": "opd.grading.grading",
    "load_pair": "opd.models.pair",
    "load_reviews": "opd.grading.saved_reviews",
    "load_task": "opd.tasks",
    "point_of_no_return": "opd.grading.branching",
    "report_card": "opd.grading.summary",
    "review": "opd.grading.reviewing",
    "review_chat": "opd.grading.reviewing",
    "review_prompts": "opd.grading.reviewing",
    "review_text": "opd.grading.reviewing",
    "sample": "opd.engines.sampling",
    "save_reviews": "opd.grading.saved_reviews",
    "stream_reviews": "opd.grading.reviewing",
    "swaps": "opd.grading.summary",
    "teacher_line": "opd.grading.branching",
    "token_map": "opd.grading.summary",
    "worst_tokens": "opd.grading.summary",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'opd' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
