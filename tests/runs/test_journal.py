"""Files of JSON lines: a line that is being written waits, a torn one is passed over."""

from opd.reports import StepReport


def test_lines_survive_a_writer_that_died_inside_one(run):
    run.append(StepReport(0, {"loss": 1.0}))
    run.append(StepReport(1, {"loss": 2.0}))
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 2, "lo')
    assert [row["loss"] for row in run.rows()] == [1.0, 2.0]
    run.append(StepReport(2, {"loss": 3.0}))
    run.append(StepReport(1, {"loss": 9.0}))
    assert [row["loss"] for row in run.rows()] == [1.0, 9.0, 3.0]
    assert [row["step"] for row in run.rows(since=1)] == [2]


def test_a_line_that_is_being_written_waits_and_a_torn_one_is_passed_over(run):
    run.append(StepReport(0, {"loss": 1.0}))
    cursor = run.read_from().cursor
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 1, "lo')
        file.flush()
        assert run.read_from(cursor).rows == []
        file.write(b'ss": 3.0}\n{"step": 2, "l')
    news = run.read_from(cursor)
    assert news.rows == [{"step": 1, "loss": 3.0}]
    run.append(StepReport(2, {}))
    assert [row["step"] for row in run.read_from(news.cursor).rows] == [2]
