"""What a command may import: the start-up time of the client and the boundary between processes rest on it."""

from __future__ import annotations

import graphlib
import json
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

HEAVY = {"torch", "numpy", "ray", "mlflow", "deepspeed", "boto3", "safetensors", "sklearn", "PIL", "pandas"}
LATE = {"pydantic", "rich", "yaml", "asyncio", "http", "jsonschema", "packaging", "importlib.metadata"}

PROGRAM = """
import io, json, sys
from graceful.cli import main
sys.stdout = io.StringIO()
code = main(json.loads(sys.argv[1]))
sys.stderr.write(json.dumps({"code": code, "modules": sorted(sys.modules)}))
"""


def imported(*arguments: str) -> tuple[int, set[str]]:
    command = [sys.executable, "-c", PROGRAM, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    found = json.loads(done.stderr.strip().splitlines()[-1])
    return found["code"], set(found["modules"])


@pytest.mark.parametrize(
    "arguments", [("--help",), ("--version",), ("refresh", "--help"), ("schedule", "--help"), ("doctor", "--help")]
)
def test_help_imports_click_and_nothing_heavier(arguments: tuple[str, ...]) -> None:
    code, modules = imported(*arguments)
    assert code == 0
    assert "click" in modules
    assert not modules & (HEAVY | LATE)


@pytest.mark.parametrize("arguments", [("schema",), ("schema", "task.network", "-o", "json")])
def test_schema_imports_no_science(arguments: tuple[str, ...]) -> None:
    code, modules = imported(*arguments)
    assert code == 0
    assert not modules & HEAVY


def test_gate_judges_without_numpy_torch_or_mlflow(report_and_spec: tuple[Path, Path]) -> None:
    code, modules = imported("gate", *map(str, report_and_spec))
    assert code == 0
    assert not modules & HEAVY


def test_a_dry_run_imports_no_science(report_and_spec: tuple[Path, Path]) -> None:
    code, modules = imported("refresh", str(report_and_spec[1]), "--dry-run")
    assert code == 0
    assert not modules & HEAVY


@pytest.mark.parametrize("module", ["graceful.spec", "graceful.gate", "graceful.launch.local.backend"])
def test_what_the_client_shares_imports_no_science(module: str) -> None:
    program = f"import sys, json, {module}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=600)
    assert not set(json.loads(done.stdout)) & HEAVY


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = grimp.build_graph("graceful", exclude_type_checking_imports=True)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert len(imports) > 400
    graphlib.TopologicalSorter(imports).prepare()  # raises CycleError with the circle
