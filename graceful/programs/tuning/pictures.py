"""Write the pictures of a finished search and the page that holds them. Runs in the driver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from graceful.programs.tuning.study import Tried
from graceful.programs.tuning.words import conclusion
from graceful.storage import write_text
from graceful.views.rendering import render
from graceful.views.search import bars, growth, pareto


def write_pictures(folder: Path, document: Mapping[str, Any], trials: Sequence[Tried]) -> list[Path]:
    """Write pareto.svg, importance.svg, hypervolume.svg and tune.html, which holds them; returns the files.

    A picture that has nothing to show yet (no complete trial, importances of one) is left out.
    """
    pictures = {
        "pareto": pareto(document, trials),
        "importance": bars(document["importances"], title="Share in what changes the negative flip rate"),
        "hypervolume": growth(document["hypervolume"]),
    }
    shown = {name: svg for name, svg in pictures.items() if svg}
    files = [write_text(folder / f"{name}.svg", svg) for name, svg in shown.items()]
    page = render(
        "search.html.j2", run_id=document["run_id"], conclusion=conclusion(document), pictures=list(shown.values())
    )
    return [*files, write_text(folder / "tune.html", page)]
