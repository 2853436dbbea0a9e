"""`graceful demo`: three versions of an example, one after the other, and the chain they form. On the client."""

from __future__ import annotations

from pathlib import Path

from graceful import homes
from graceful.cli import output as out
from graceful.cli import programs
from graceful.errors import EXIT_HELD, EXIT_PASSED, InfrastructureError

SPECS = Path(__file__).with_name("demo")
VERSIONS = ("v1", "v2", "v3")


def run(*, home: Path | None, quiet: bool, verbose: int) -> int:
    """Refresh each version unless that has been done, show the lineage, and say what to look at next.

    Returns:
        0, also where the gate held a version; the exit code of the first refresh that failed otherwise.

    Raises:
        InfrastructureError: The specs are not in this installation.
    """
    specs = [SPECS / f"{version}.yaml" for version in VERSIONS]
    if not all(spec.is_file() for spec in specs):
        raise InfrastructureError(
            f"{SPECS}: the specs of the demo are not in this installation; run `graceful refresh jobs/glyphs/v1.yaml`,"
            " then v2 and v3, from a checkout"
        )
    for number, spec in enumerate(specs, start=1):
        resolved = programs.resolve(spec, (), home)
        out.talk(f"demo: {number} of {len(specs)}, {resolved.model} {resolved.name}: {resolved.description}")
        code = programs.start("refresh", resolved=resolved, quiet=quiet, verbose=verbose)
        if code not in (EXIT_PASSED, EXIT_HELD):
            return code
    return programs.start("lineage", arguments=("glyphs",), home=home) or _next(homes.folder(home))


def _next(folder: Path) -> int:
    out.talk(f"what flipped, with pictures:   {folder}/runs/glyphs-v3/report.html")
    out.talk("versions in a browser:         graceful ui")
    out.talk("your own data:                 graceful init PATH, with a folder of images or a file of rows")
    return EXIT_PASSED
