"""Ends with 1 when a distribution's requirements are not met by what is installed: `check_pins.py NAME 'OTHER[extra]'`.

As `pip check` does, but for these distributions alone: an image that is not ours may have other wrongs of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution, version

from packaging.requirements import Requirement


def unmet(named: Requirement) -> Iterator[str]:
    """What `named` requires, with its extras, and does not find."""
    for text in distribution(named.name).requires or ():
        requirement = Requirement(text)
        if not _applies(requirement, named.extras):
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            yield f"{named.name} requires {text}, which is not installed"
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            yield f"{named.name} requires {text}, and {found} is installed"


def _applies(requirement: Requirement, extras: set[str]) -> bool:
    if requirement.marker is None:
        return True
    return any(requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras))


if __name__ == "__main__":
    problems = [problem for name in sys.argv[1:] for problem in unmet(Requirement(name))]
    print("\n".join(problems) or "what is required is there")
    sys.exit(1 if problems else 0)
