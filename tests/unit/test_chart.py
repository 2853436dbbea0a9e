"""The chart's values and the image's recipe, as far as they can be judged without helm and without building."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

import graceful
from graceful import spec
from graceful.launch.kuberay.profile import KubeRay
from graceful.launch.kubernetes import harden

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm/graceful"
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
VALUES = (CHART / "values.yaml").read_text()
DEFAULTS = yaml.safe_load(VALUES)
VALIDATOR = jsonschema.Draft7Validator(SCHEMA)
SHAPES = sorted((CHART / "ci").glob("*-values.yaml"))
DOCKERFILE = (ROOT / "cluster/Dockerfile").read_text()
FREE = {"global", "profiles.*", "podSelector", "namespaceSelector"}
"""Objects whose keys are somebody else's: Helm's, the profile's (checked by graceful), Kubernetes' selectors."""


def resolve(schema: dict[str, Any]) -> dict[str, Any]:
    name = schema.get("$ref")
    return schema if name is None else SCHEMA["definitions"][name.rpartition("/")[2]]


def objects(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object that the schema describes, with its path; `*` is any key, `-` any item."""
    schema = resolve(schema)
    if schema.get("type") == "object":
        yield path, schema
        below = {**schema.get("properties", {})}
        if isinstance(schema.get("additionalProperties"), dict):
            below["*"] = schema["additionalProperties"]
        for key, value in below.items():
            yield from objects(value, f"{path}.{key}".strip("."))
    elif schema.get("type") == "array":
        yield from objects(schema["items"], f"{path}.-")


def at(values: dict[str, Any], path: str) -> Any:
    for part in filter(None, path.split(".")):
        values = values[part]
    return values


OBJECTS = dict(objects(SCHEMA))
SECTIONS = [
    path for path, schema in OBJECTS.items() if "properties" in schema and not {"*", "-"} & set(path.split("."))
]


def merged(over: dict[str, Any], under: dict[str, Any]) -> dict[str, Any]:
    """As Helm does: mappings key by key, null removes."""
    result = dict(under)
    for key, value in over.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = merged(value, result[key])
        else:
            result[key] = value
    return result


def single_values() -> list[str]:
    """Paths of all values that are not sections of others."""
    below = [f"{path}.{key}".strip(".") for path in SECTIONS for key in at(DEFAULTS, path)]
    return [path for path in below if path not in SECTIONS]


def test_the_schema_is_one() -> None:
    broken = {**SCHEMA, "type": "mapping"}
    assert VALIDATOR.check_schema(SCHEMA) is None
    with pytest.raises(jsonschema.SchemaError, match="'mapping' is not valid"):
        VALIDATOR.check_schema(broken)


def test_every_object_of_the_schema_names_its_keys() -> None:
    loose = [
        path
        for path, schema in OBJECTS.items()
        if "additionalProperties" not in schema and path not in FREE and path.rpartition(".")[2] not in FREE
    ]
    assert not loose
    assert all(schema["additionalProperties"] is False for schema in OBJECTS.values() if "properties" in schema)


@pytest.mark.parametrize("path", SECTIONS, ids=lambda path: path or "root")
def test_a_misspelt_value_is_refused_at_every_depth(path: str) -> None:
    values = copy.deepcopy(DEFAULTS)
    VALIDATOR.validate(values)
    at(values, path)["mispelt"] = True
    with pytest.raises(jsonschema.ValidationError, match="mispelt"):
        VALIDATOR.validate(values)


@pytest.mark.parametrize("key", ["crom", "timezone", "suspended"])
def test_a_misspelt_key_of_a_schedule_is_refused(key: str) -> None:
    values = {"schedules": {"nightly": {"cron": "0 3 * * *", "spec": "model: m", key: "x"}}}
    with pytest.raises(jsonschema.ValidationError, match=key):
        VALIDATOR.validate(values)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("podSecurity.user", 0),
        ("image.digest", "sha256:abc"),
        ("image.pullPolicy", "always"),
        ("mlflow.uri", "mlflow:5000"),
        ("networkPolicy.s3.ports", []),
        ("networkPolicy.apiServer.cidrs", ["10.0.0.1"]),
        ("quota.hard", {"pods": "many"}),
        ("rbac.schedulers", [{"kind": "Pod", "name": "x"}]),
        ("scheduled.spec", {"containers": []}),
        ("gc.olderThan", "a week"),
        ("schedules", {"nightly": {"cron": "3 am", "spec": "model: m"}}),
        ("schedules", {"nightly": {"spec": "model: m"}}),
        ("schedules", {"profiles": {"cron": "@daily", "spec": "model: m"}}),
        ("env", {"NOT-A-NAME": "x"}),
    ],
)
def test_a_value_that_cannot_work_is_refused(path: str, value: object) -> None:
    values = copy.deepcopy(DEFAULTS)
    *parents, key = path.split(".")
    at(values, ".".join(parents))[key] = value
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate(values)


@pytest.mark.parametrize("path", SECTIONS, ids=lambda path: path or "root")
def test_values_and_schema_know_the_same_keys(path: str) -> None:
    described = OBJECTS[path]["properties"]
    assert set(at(DEFAULTS, path)) == set(described) - {"global"}


def test_every_value_is_documented_where_it_stands() -> None:
    lines = VALUES.splitlines()
    undocumented = []

    def walk(node: yaml.MappingNode, path: str) -> None:
        for key, value in node.value:
            here = f"{path}.{key.value}".strip(".")
            above = list(reversed(lines[: key.start_mark.line]))
            comment = above[: next(i for i, line in enumerate(above) if not line.strip().startswith("#"))]
            if any(line.strip().startswith("# -- ") for line in comment):
                continue
            if here in SECTIONS:
                walk(value, here)
            else:
                undocumented.append(here)

    walk(yaml.compose(VALUES), "")
    assert not undocumented


@pytest.mark.parametrize("shape", SHAPES, ids=lambda path: path.stem)
def test_supported_shapes_fit_the_schema_and_hold_real_specs(shape: Path, tmp_path: Path) -> None:
    values = merged(yaml.safe_load(shape.read_text()), DEFAULTS)
    VALIDATOR.validate(values)
    for name, schedule in values["schedules"].items():
        (tmp_path / name).mkdir()
        for file, text in {**schedule.get("files", {}), "spec.yaml": schedule["spec"]}.items():
            (tmp_path / name / file).write_text(text)
        loaded = spec.load(tmp_path / name / "spec.yaml", schedule.get("set", []))
        assert loaded.model in ("glyphs", "wine")


def test_there_is_a_shape_per_supported_cluster() -> None:
    names = [shape.stem.removesuffix("-values") for shape in SHAPES]
    assert names == ["eks", "every", "gke", "gpu-queue", "kuberay", "machine", "minimal", "openshift"]


def test_every_value_is_set_by_a_shape() -> None:
    """What lint, rendering and dry runs of the shapes say is said of every value then."""
    shapes = [merged(yaml.safe_load(shape.read_text()), DEFAULTS) for shape in SHAPES]

    def differs(shape: dict[str, Any], path: str) -> bool:
        *parents, key = path.split(".")
        return bool(at(shape, ".".join(parents)).get(key) != at(DEFAULTS, path))  # null has removed it

    assert not [path for path in single_values() if not any(differs(shape, path) for shape in shapes)]


def test_versions_of_package_chart_and_image_agree() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == graceful.__version__
    assert f"ARG VERSION={graceful.__version__}\n" in DOCKERFILE


# --- image ------------------------------------------------------------------------------------------------------------


def pins(path: str) -> dict[str, str]:
    lines = (ROOT / path).read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_the_image_runs_the_ray_that_profiles_expect() -> None:
    assert pins("constraints.txt")["ray"] == KubeRay.model_fields["ray_version"].default


def test_no_package_is_pinned_twice() -> None:
    first, second = ({name.lower().replace("_", "-") for name in pins(path)} for path in PINS)
    assert not first & second


PINS = ("constraints.txt", "cluster/constraints.txt")


def test_every_image_starts_from_the_one_base_that_a_build_names() -> None:
    stages = re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, re.MULTILINE)
    names = {name for _, name in stages}
    assert len(stages) == len(re.findall("^FROM", DOCKERFILE, re.MULTILINE))
    assert {origin for origin, _ in stages} - names == {"${BASE}"}
    assert stages[-1] == ("${BASE}", "runtime")


def test_what_pip_installs_is_pinned_and_not_cached() -> None:
    code = re.sub(r"\\\n", " ", DOCKERFILE)
    calls = re.findall(r"-m pip install [^;]*", code)
    assert calls
    assert all("constraints.txt" in call or "--no-deps" in call for call in calls)
    assert "PIP_NO_CACHE_DIR=1" in DOCKERFILE


def test_the_user_is_a_number_so_that_kubernetes_can_check_it() -> None:
    (user,) = re.findall(r"^USER (\d+):\d+$", DOCKERFILE, re.MULTILINE)
    assert int(user) == KubeRay.model_fields["user"].default != 0


def test_the_image_writes_only_where_pods_mount_volumes() -> None:
    _, _, env = DOCKERFILE.rpartition("ENV PATH=")
    places = re.findall(r"(?:HOME|DIR)=(/\S+)", env)
    assert f"HOME={harden.HOME} " in env
    assert places
    assert all(place.startswith(tuple(harden.WRITABLE.values())) for place in places)


def test_nothing_enters_the_build_that_is_not_named() -> None:
    patterns = (ROOT / ".dockerignore").read_text().splitlines()
    assert patterns[1] == "*"
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    named = {pattern.removeprefix("!") for pattern in patterns if pattern.startswith("!")}
    assert {word for words in copied for word in words.split()} == named
