"""Examine a student and a teacher before a run."""

from __future__ import annotations

import argparse

from opd.cli.flags import add_settings, config_of
from opd.cli.output import FAILURE, say

add_flags = add_settings


def run(options: argparse.Namespace) -> int:
    """Print every finding on every teacher; one that forbids the run makes the command fail."""
    from opd.training.doctor import examine_run

    config, failed = config_of(options), False
    for lesson, _, findings in examine_run(config):
        if config.lessons:
            say(f"{lesson.teacher} for {lesson.task}:")
        for finding in findings:
            say(finding)
            failed |= finding.level == "fail"
    return FAILURE if failed else 0
