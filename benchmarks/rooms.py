"""Print how the code is divided: files, lines and imports between the parts of a package.

    python -m benchmarks.rooms                                  graceful.launch and graceful.programs
    python -m benchmarks.rooms graceful --root ../other         another package, in another working tree

A part is a module or a package directly inside the package. An arrow is a pair of parts of which one imports the other,
however many of their modules do. Imports inside functions count; imports for type checkers do not.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp


def main() -> None:
    """Read the code below a root and print a table for each package."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="*", default=["graceful.launch", "graceful.programs"])
    parser.add_argument("--root", type=Path, default=Path(), help="folder that holds `graceful`")
    options = parser.parse_args()
    sys.path.insert(0, str(options.root.resolve()))
    graph = grimp.build_graph("graceful", exclude_type_checking_imports=True, cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    for package in options.packages:
        show(package, imports, options.root)


def show(package: str, imports: dict[str, set[str]], root: Path) -> None:
    """Print the parts of a package, what they import of each other, and the sums."""
    part_of = {module: part(module, package) for module in imports if module.startswith(f"{package}.")}
    files, lines = Counter[str](), Counter[str]()
    arrows: dict[str, set[str]] = {name: set() for name in part_of.values()}
    for module, name in part_of.items():
        files[name] += 1
        lines[name] += length(module, root)
        arrows[name] |= {part_of[other] for other in imports[module] if other in part_of} - {name}
    count = sum(map(len, arrows.values()))
    print(
        f"{package}: {sum(files.values())} files, {len(arrows)} parts, {count} arrows, {circle(arrows) or 'no circle'}"
    )
    print(f"  {'part':<20} {'files':>5} {'lines':>6} {'imports':>8} {'imported by':>12}  parts that it imports")
    for name in sorted(arrows):
        users = sum(name in others for others in arrows.values())
        row = f"  {name:<20} {files[name]:>5} {lines[name]:>6} {len(arrows[name]):>8} {users:>12}"
        print(row, "", " ".join(sorted(arrows[name])))


def part(module: str, package: str) -> str:
    """Return the name of the module or package directly inside a package that holds a module."""
    return module.removeprefix(f"{package}.").split(".")[0]


def length(module: str, root: Path) -> int:
    """Return the number of lines of a module."""
    path = root / module.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return len(file.read_text(encoding="utf-8").splitlines())


def circle(arrows: dict[str, set[str]]) -> str:
    """Return one circle of parts that import each other; empty where there is none."""
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as e:
        return "circle: " + " > ".join(e.args[1])
    return ""


if __name__ == "__main__":
    main()
