"""What leaves a run: its metrics as a table, its student as a zip or as a repository of the hub."""

from __future__ import annotations

import csv
import io
import zipfile
from pathlib import Path

from opd.phases import announce
from opd.runs.checkpoints import model_files
from opd.runs.run import Run


def metrics_csv(run: Run) -> str:
    """Return a run's metrics as CSV, a row a step; what a step did not measure is empty."""
    rows = run.rows()
    columns = dict.fromkeys(name for row in rows for name in row)
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def export_zip(run: Run, target: Path, step: int | None = None) -> Path:
    """Write a trained student (adapter or weights) as a zip that unpacks to a folder transformers loads.

    Args:
        run: the run.
        target: the file to write; it appears whole or not at all.
        step: of which checkpoint; None = the newest.

    Raises:
        ValueError: there is no such checkpoint.
        OSError: the file cannot be written.
    """
    announce(f"Writing {target.name}")
    files = model_files(run.model_of(step))
    partial = target.with_name(target.name + ".partial")
    try:
        with zipfile.ZipFile(partial, "w") as archive:  # weights do not compress
            for name, path in files.items():
                archive.write(path, f"{run.name}/{name}")
        partial.replace(target)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    return target


def publish(run: Run, repo_id: str, token: str, *, step: int | None = None, private: bool = True) -> str:
    """Upload a trained student and the config that made it to the Hugging Face Hub.

    Args:
        run: the run.
        repo_id: where to, "owner/name"; made if it is not there.
        token: of an account that may write there; neither stored nor logged.
        step: of which checkpoint; None = the newest.
        private: whether a new repository can be seen by its owner alone.

    Returns:
        The address of the model's page.

    Raises:
        ValueError: there is no such checkpoint, or the hub refuses; the message names no token.
    """
    announce(f"Uploading the student of {run.name}")
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    files = model_files(run.model_of(step)) | {"opd-config.json": run.path / "config.json"}
    api = HfApi(token=token)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        operations = [CommitOperationAdd(name, str(path)) for name, path in files.items()]
        return str(
            api.create_commit(repo_id, operations, commit_message=f"Student of the run {run.name}").repo_url
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).replace(token, "…") if token else str(error)
        raise ValueError(f"The hub did not take the run {run.name}: {reason}") from None
