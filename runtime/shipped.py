"""The bundles that ship with the runtime, found by name."""

from __future__ import annotations

import os
from pathlib import Path

from pcsr.runtime.bundle import MANIFEST
from pcsr.runtime.errors import BundleError

__all__ = ["DEFAULT", "find_bundle", "shipped_bundle", "shipped_bundles"]

DEFAULT = "carn"

# Through links: an editable install links modules one by one, and not what lies beside them.
FOLDER = Path(os.path.realpath(__file__)).parent / "bundles"


def shipped_bundles() -> tuple[str, ...]:
    """Names of the bundles that ship with the runtime, in alphabetical order."""
    return tuple(sorted(manifest.parent.name for manifest in FOLDER.glob(f"*/{MANIFEST}")))


def shipped_bundle(name: str = DEFAULT) -> Path:
    """Folder of a bundle that ships with the runtime.

    Raises:
        BundleError: none of that name does.
    """
    names = shipped_bundles()
    if name not in names:
        raise BundleError(f"no bundle named {name} ships with pcsr, only {', '.join(names) or 'none at all'}")
    return FOLDER / name


def find_bundle(bundle: str | os.PathLike[str]) -> Path:
    """Folder of the bundle that a user means, by name or by path.

    A `str` that is the name of a shipped bundle means that one; everything else is a path. Where a bundle
    of the user's lies in a folder of that very name, neither is guessed.

    Raises:
        BundleError: the name could mean either of two bundles, or is neither a shipped one's nor a path.
    """
    path, names = Path(bundle), shipped_bundles()
    if not isinstance(bundle, str) or bundle not in names:
        if isinstance(bundle, str) and path.name == bundle and not os.path.lexists(path):
            raise BundleError(
                f"no bundle named {bundle!r} ships with pcsr (there are: {', '.join(names)}), and there is no "
                "folder of that name here; make one with: pcsr-export CHECKPOINT -o BUNDLE"
            )
        return path
    if (path / MANIFEST).is_file():
        raise BundleError(
            f"{bundle} is a bundle in this folder and the name of one that ships with pcsr; "
            f"write ./{bundle} for yours, or {FOLDER / bundle} for the other"
        )
    return FOLDER / bundle
