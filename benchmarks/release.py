"""What a release must pass: versions agree, the wheel installs into an empty environment, the demo runs from there.

    python -m benchmarks.release                   # about ten minutes, most of them for packages and the demo
    python -m benchmarks.release --without-demo    # only builds, installs and starts

Prints seconds from an empty environment to the first table; that is the first minute of a new user.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from graceful import __version__

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Check the release of this checkout; ends with a message at the first thing that is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch", default="torch==2.13.0", help="requirement that gets this machine's build")
    parser.add_argument("--without-demo", action="store_true", help="only install and start")
    options = parser.parse_args()
    require_one_version()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        run(sys.executable, "-m", "build", "--outdir", str(scratch / "dist"), cwd=ROOT)
        (wheel,) = (scratch / "dist").glob("*.whl")
        (sdist,) = (scratch / "dist").glob("*.tar.gz")
        print(f"{wheel.name} {wheel.stat().st_size / 1e6:.1f} MB, {sdist.name} {sdist.stat().st_size / 1e6:.1f} MB")
        started = time.monotonic()
        command = installed(wheel, scratch / "environment", torch=options.torch)
        print(f"installed after {time.monotonic() - started:.0f} s")
        printed = run(str(command), "--version", cwd=scratch)
        if __version__ not in printed:
            sys.exit(f"graceful --version prints {printed!r}, not {__version__}")
        if not options.without_demo:
            run(str(command), "demo", "--home", str(scratch / "home"), cwd=scratch, quiet=False)
            print(f"demo finished after {time.monotonic() - started:.0f} s")


def require_one_version() -> None:
    """Compare the package's version with those of the chart and the image."""
    chart = (ROOT / "helm/graceful/Chart.yaml").read_text(encoding="utf-8")
    image = (ROOT / "cluster/Dockerfile").read_text(encoding="utf-8")
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    written = {
        "helm/graceful/Chart.yaml version": re.search(r"^version: (\S+)", chart, re.MULTILINE),
        "helm/graceful/Chart.yaml appVersion": re.search(r"^appVersion: (\S+)", chart, re.MULTILINE),
        "cluster/Dockerfile VERSION": re.search(r"^ARG VERSION=(\S+)", image, re.MULTILINE),
        "CITATION.cff version": re.search(r"^version: (\S+)", citation, re.MULTILINE),
    }
    for where, match in written.items():
        if match is None or match[1].strip("\"'") != __version__:
            sys.exit(f"{where} is {match and match[1]}, the package is {__version__}")


def installed(wheel: Path, environment: Path, *, torch: str) -> Path:
    """Install a wheel with pinned dependencies into an empty environment and return its `graceful`."""
    run(sys.executable, "-m", "venv", str(environment), cwd=environment.parent)
    for requirement in (torch, str(wheel)):
        pip = (str(environment / "bin/python"), "-m", "pip", "install", "--quiet", "-c", str(ROOT / "constraints.txt"))
        run(*pip, requirement, cwd=environment.parent)
    return environment / "bin/graceful"


def run(*command: str, cwd: Path, quiet: bool = True) -> str:
    """Run a command without this checkout on its path, and return its output."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=quiet, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}\n{done.stdout or ''}{done.stderr or ''}")
    return done.stdout or ""


if __name__ == "__main__":
    main()
