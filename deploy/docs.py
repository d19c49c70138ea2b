# SPDX-License-Identifier: GPL-2.0-only
"""Generates the parts of docs/ that are derived from the code: `make docs`.

<!-- begin NAME: made by `make docs` -->
...
<!-- end NAME -->
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from bdr.common.status.metrics import table
from deploy import state_diagrams

DOCS = Path(__file__).parent.parent / "docs"
PARTS: Mapping[str, Mapping[str, Callable[[], str]]] = {
    "metrics.md": {"metrics": table},
    "states.md": state_diagrams.parts(),
}
"""Page to its parts by name, and the generator of each."""


def page(name: str) -> str:
    """The up-to-date content of a page."""
    text = (DOCS / name).read_text()
    for part, make in PARTS[name].items():
        before, begin, rest = text.partition(f"<!-- begin {part}: made by `make docs` -->\n")
        _, end, after = rest.partition(f"<!-- end {part} -->\n")
        assert end, f"{name}: found no begin and end of {part}"
        text = f"{before}{begin}\n{make()}\n{end}{after}"
    return text


def main() -> None:
    """Writes every page."""
    for name in PARTS:
        (DOCS / name).write_text(page(name))


if __name__ == "__main__":
    main()
