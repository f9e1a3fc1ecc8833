"""Which fleet this is: the version and a digest of the package's files, equal on all nodes of a cluster."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


@cache
def revision() -> str:
    """Return `VERSION+DIGEST`, e.g. `0.1.0+3f2a9c01d4e7`; the digest is over the package's Python and SQL files."""
    digest = hashlib.sha256()
    root = Path(__file__).parent
    for file in sorted(root.rglob("*")):
        if file.suffix in (".py", ".sql"):
            digest.update(str(file.relative_to(root)).encode())
            digest.update(file.read_bytes())
    return f"{package_version()}+{digest.hexdigest()[:12]}"


def package_version() -> str:
    """Return the installed version, `0` for a checkout that is not installed."""
    try:
        return version("fleet")
    except PackageNotFoundError:
        return "0"
