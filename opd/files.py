"""Where things lie: what the app keeps, and what is shipped with it."""

from __future__ import annotations

import os
from pathlib import Path


def home_dir() -> Path:
    """Return the folder of runs and stored reviews: ``$OPD_HOME``, else the working directory."""
    return Path(os.environ.get("OPD_HOME", "."))


def assets_dir() -> Path:
    """Return the folder of shipped assets: inside the wheel, or beside the package in a checkout."""
    inside = Path(__file__).parent / "assets"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "assets"
