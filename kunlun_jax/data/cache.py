"""Where prepared data sets and indices are kept between runs."""

import os
from pathlib import Path


def default_cache() -> Path:
    """The folder of the environment variable ``KUNLUN_CACHE``, else ``~/.cache/kunlun_jax``; it may not exist yet."""
    named = os.environ.get("KUNLUN_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "kunlun_jax"
