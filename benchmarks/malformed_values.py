"""Valid documents, and values that no key, option or argument takes. For `benchmarks.malformed`."""

from __future__ import annotations

from typing import Any

Document = dict[str, Any]

_GATE = {"constraints": [{"metric": "negative_flip_rate", "bound": 0.03}, {"metric": "error_rate", "bound": 0.3}]}
_LOSSES: list[Document] = [
    {"kind": "focal_distillation", "weight": 0.3, "focus": "all"},
    {"kind": "logit_displacement", "margin": 0.5, "top_k": 4},
    {"kind": "influence", "scale": 16.0},
    {"kind": "embedding_regression", "distance": "l2"},
]
SPECS: tuple[Document, ...] = (
    {
        "model": "glyphs",
        "name": "v2",
        "description": "a second link",
        "task": {"kind": "glyphs", "fonts": 0.7, "classes": 40, "network": {"size": "s2", "head": "cosine"}},
        "train": {
            "epochs": 2,
            "optimizer": {"kind": "sgd", "lr": 0.05},
            "engine": {"kind": "deepspeed", "zero_stage": 2},
        },
        "compatibility": {"against": "latest", "losses": _LOSSES, "weighting": {"kind": "decay", "factor": 0.5}},
        "gate": _GATE,
        "registry": {"webhook": "https://example.org/hook"},
        "parents": ["glyphs@champion"],
    },
    {
        "model": "digits",
        "name": "v3",
        "task": {"kind": "digits", "share": 0.5, "classes": 5},
        "train": {"batch_size": 64, "optimizer": {"kind": "adamw", "lr": 0.001}, "engine": {"kind": "torch"}},
        "compatibility": {
            "against": ["v1", "v2"],
            "losses": _LOSSES[:1],
            "weighting": {"kind": "adaptive", "relative": 0.2, "bounds": {"v1": 0.1}},
            "reference": {"runs": 2, "weight": 3.0},
            "targets": {"mode": "keyed", "views": 4},
        },
        "evaluate": {"retrieval": True, "batch_size": 512, "bootstrap": 1000},
        "gate": {"family": "bonferroni", **_GATE},
        "tune": {"trials": 24, "space": {"distillation": [0.3, 30.0], "runs": [1, 3]}, "final": {"seeds": 3}},
    },
    {
        "model": "photos",
        "name": "v1",
        "task": {"kind": "image_folder", "root": "images", "size": 32, "classes": ["cat", "dog"]},
        "gate": {"constraints": [{"metric": "self_test_recall_at_1", "direction": "at_least", "bound": 0.5}]},
    },
    {
        "model": "wine",
        "name": "v1",
        "task": {"kind": "python", "file": "task.py", "options": {"width": 16}},
        "train": {"num_workers": 0, "start": "latest"},
        "compatibility": {"interpolation": 0.1},
    },
)
PROFILES: tuple[Document, ...] = (
    {"kind": "local", "env": {"A": "b"}},
    {
        "kind": "rayjobs",
        "address": "http://127.0.0.1:8265",
        "home": "/runs",
        "mlflow": {"uri": "http://mlflow:5000"},
        "env": {"A": "b"},
    },
    {
        "kind": "kuberay",
        "namespace": "team-a",
        "image": "registry.example.com/graceful@sha256:" + "0" * 64,
        "head": {"cpu": 2, "memory": "4Gi", "tolerations": [{"key": "a", "operator": "Exists"}]},
        "worker": {"cpu": "500m", "memory": "3Gi", "gpu": 1, "spot": True, "node_selector": {"a": "b"}},
        "storage": {"uri": "s3://bucket/prefix"},
        "mlflow": {"uri": "http://mlflow:5000", "token_secret": "token"},
        "retries": {"job": 3, "submitter": 2},
        "deadlines": {"start": 1800, "keep": 300},
        "prices": {"currency": "USD", "cpu": 0.04, "spot_factor": 0.4},
        "user": 1000,
        "env_from_secrets": ["s3"],
    },
)
REPORT: Document = {
    "schema": 1,
    "model": "glyphs",
    "version": "v2",
    "data": {"test": "0" * 64},
    "measurements": {
        "error_rate": {"value": 0.06, "lower": 0.05, "upper": 0.08, "count": None, "n": 1000, "reason": None}
    },
    "comparisons": [
        {
            "against": "v1",
            "model_id": "m-1",
            "distance": 1,
            "measurements": {
                "negative_flip_rate": {
                    "value": 0.02,
                    "lower": 0.01,
                    "upper": 0.03,
                    "count": None,
                    "n": 1000,
                    "reason": None,
                }
            },
        }
    ],
    "notes": [],
}
FREE = {"options", "env", "bounds", "node_selector", "data", "measurements"}
"""Mappings whose keys are the user's."""

HUGE = 10**400
NAMES = ("", "V1", "v_1", "-v1", "v1-", "v 1", "v1\n", "v" * 64, "é", "v1/../v2", "²", "v1\0", "\u202ev1", "..", "v1.0")
ADDRESSES = (
    "http://[::1",
    "http://",
    "ftp://a/b",
    "https://a b/c",
    "http://a:port/",
    "http://a:99999/",
    "\n",
    "http:///x",
)
SPEC_VALUES: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("model", NAMES),
    ("name", (*NAMES, "self", "latest", "all", 1, 1.5, True, None)),
    ("task/kind", ("glyfs", "", None, 7)),
    ("task/network/size", ("xl", 3, "", "XS")),
    ("task/network/embedding", (1, 4097, -3, 0.5, HUGE, "many", True)),
    ("task/network/scale", (0, -1, "wide", HUGE)),
    ("train/epochs", (0, -1, 1.5, "two", HUGE, True, None, "²", "1e999", 2**63)),
    ("train/batch_size", (0, -2, "all", 2**70, 1.5)),
    ("train/seed", (-1, 2**31, 0.5, HUGE)),
    ("train/warmup", (-0.1, 1.1, "half", float("nan"), float("inf"))),
    ("train/timeout", (0, -1, "soon", float("inf"))),
    ("train/num_workers", (-1, 0.5, "all", False)),
    ("train/schedule", ("linear", 1, "")),
    ("train/precision", ("fp8", 16)),
    ("train/optimizer", ("adam", {"kind": "adam"}, {"kind": "sgd", "momentum": 1.0}, {"lr": 0}, {"lr": -1e-3}, [])),
    ("train/engine", ("horovod", {"zero_stage": 4}, {"kind": "torch", "zero_stage": 1})),
    ("compatibility/against", ([], "newest", 7, None, {})),
    ("compatibility/losses", ([{"kind": "influense"}], [{}], [None], ["x"], [[]], {"kind": "influence"}, "influence")),
    (
        "compatibility/losses",
        ([{"kind": "focal_distillation", "temperature": 2}], [{"kind": "influence", "weight": 101}]),
    ),
    (
        "compatibility/losses",
        ([{"kind": "focal_distillation", "alpha": 0}], [{"kind": "focal_distillation", "beta": 50}]),
    ),
    ("compatibility/weighting", ("sum", {"kind": "decay", "factor": 0}, {"kind": "decay", "factor": 2}, 3)),
    ("compatibility/reference", ({"runs": 0}, {"runs": 17}, 3, "yes please")),
    ("compatibility/targets", ({"mode": "dirty"}, {"views": 0}, {"views": 65}, {"top": 1}, 4)),
    ("gate/family", ("holm", 3)),
    ("gate/constraints", ([{"metric": "accuracy", "bound": 0.1}], [{"metric": "error_rate"}], [{"bound": 0.1}])),
    ("gate/constraints", ([{"metric": "self_test_map", "direction": "at_most", "bound": 0.9}], {}, "none", [3])),
    ("gate/constraints", ([{"metric": "backward_trust", "direction": "at_most", "bound": 0.9}],)),
    ("gate/constraints", ([{"metric": "negative_flip_rate", "direction": "at_least", "bound": 0.1}],)),
    ("gate/constraints", ([{"metric": "error_rate", "bound": 30}], [{"metric": "error_rate", "bound": HUGE}])),
    (
        "gate/constraints",
        ([{"metric": "old_error_rate", "bound": 0.1}], [{"metric": "usage_weighted_nfr", "bound": 1}]),
    ),
    ("gate/constraints", ([{"metric": "error_rate", "bound": 0.1, "against": "v1"}],)),
    ("evaluate/bootstrap", (99, 100_001, "many", 1e3 + 0.5)),
    ("registry/webhook", ADDRESSES),
    ("registry/uri", ("http://[::1", "http://a:port/", "http://a:99999/")),
    ("parents", (["glyphs@"], ["Glyphs"], [""], ["glyphs:"], "glyphs@champion", [1], ["a@b@c"], ["glyphs"])),
    ("tune", ({"trials": 0}, {"error": 2}, {"space": {"distillation": [2, 1]}}, {"space": {"runs": []}}, {"final": 3})),
    ("home", ("~nosuchuser/x", "nul\0", "x" * 5000, "a/" + "y" * 300, 7)),
)
PROFILE_VALUES: tuple[tuple[int, str, tuple[Any, ...]], ...] = (
    (0, "kind", ("locall", None, 7, "", [], {})),
    (0, "env", ("A=b", [], {"A": 1}, {"A": None}, {"A": ["b"]})),
    (
        1,
        "address",
        ("127.0.0.1:8265", "ftp://a", "http://[::1", "", 7, "http://a:port", "http://a:99999", "http://", "http:///"),
    ),
    (1, "home", ("runs", "~/runs", "", 7, "/nul\0")),
    (1, "mlflow/uri", (7, [], "http://[::1", "http://a:99999/")),
    (2, "namespace", (*NAMES, 7)),
    (2, "image", (7, None, [])),
    (2, "user", (0, -1, "root", 1.5, HUGE, 2**70, True)),
    (2, "head/cpu", ("two", "", "-1", "1 Gi", "²", [])),
    (2, "head/memory", ("4GB", "lots", "\u0664Gi", "4 Gi", "Gi")),
    (2, "head/gpu", (1, -1)),
    (2, "worker/gpu", (-1, "one", 0.5, HUGE)),
    (2, "worker/spot", ("perhaps", 7, [])),
    (2, "storage/uri", ("bucket", "s3:/bucket", "gs://bucket", "s3://", 7)),
    (2, "storage/path", ("runs", "/a:b", "")),
    (2, "ray_version", ("2.60", "latest", 2.6, "\u0662.60.0", "")),
    (2, "pull_policy", ("Sometimes", "always", 7)),
    (2, "retries/job", (-1, "often", 0.5)),
    (2, "deadlines/start", (0, -5, "soon", 1.5)),
    (2, "prices/cpu", (-1, "cheap", float("inf"), float("nan"))),
    (2, "prices/spot_factor", (1.5, -0.1)),
    (2, "env_from_secrets", ("s3", [7], ["S3"], [None])),
    (2, "queue", NAMES),
)
OVERRIDES = (
    "",
    "=",
    "=3",
    "a",
    "a.b",
    "..=1",
    "train..epochs=1",
    "train.epochs.=1",
    ".train.epochs=1",
    "train.epochs=[",
    "train.epochs={",
    "train.epochs=!!int x",
    "train.epochs=*a",
    "train.epochs=&a [*a]",
    "train.epochs=1: 2: 3",
    f"train.epochs={HUGE}",
    "train.epochs=²",
    "train.epochs=2024-13-45",
    "train.epochs=\udcff",
    "\udcff=1",
    "train.epochs=\0",
    "train.epochs=--- 1\n--- 2",
    "train.epochs=" + "[" * 5000,
    "train=7",
    "model.x=3",
    "gate.constraints.²=1",
    "gate.constraints.\u0661.bound=0.1",
    "gate.constraints.9.bound=0.1",
    f"gate.constraints.{HUGE}.bound=1",
    "gate.constraints.-1.bound=0.1",
    "gate.constraints.last=1",
    "train.epochs = two",
    "task=",
    "name=",
    "name=!!str",
    "registry.webhook=http://[::1",
    "home=~nosuchuser/x",
    "zz=1",
    "train.zz=1",
    "task.zz=1",
)
PATHS = (
    "nowhere.yaml",
    "~nosuchuser/v1.yaml",
    "x" * 300,
    "d/" * 3000,
    "nul\0.yaml",
    "",
    ".",
    "/",
    "/dev/null",
    "/dev/zero",
    "\udcff",
)
NUMBERS = ("x", "-1", "1.5", "²", "\u0661", "9" * 400, "", "nan", "1e3", "0x10", " ")
DURATIONS = ("x", "15", "m", "-1m", "1.5h", "²d", "\u0661d", "9" * 400 + "d", "9" * 5000 + "d", "", "1 y", "15m15s")
CRONS = (
    "",
    "x",
    "* * * *",
    "* * * * * *",
    "60 * * * *",
    "* 24 * * *",
    "0 0 30 2 *",
    "*/0 * * * *",
    "² * * * *",
    "5-1 * * * *",
    "@often",
    "\u0661 * * * *",
    f"{HUGE} * * * *",
    "*/² * * * *",
    "\0 * * * *",
)
ZONES = ("", "Europe/Berlinn", "../../etc/passwd", "/etc/passwd", "\0", "UTC+1", "x" * 5000, "Europe", "²")
VERSIONS = ("", "Glyphs", "glyphs:", "glyphs@", "a:b:c", "a@b@c", "../x", "glyphs:V1", "\udcff", "g" * 64, "a b", "²")
HANDLES = ("kuberay://", "kuberay://a/", "://a/b", "local:///", "rayjobs://", "zz://a/b", "kuberay://team-a/UPPER")
SPEC_COMMANDS: tuple[tuple[str, ...], ...] = (
    ("refresh", "{}"),
    ("refresh", "{}", "--dry-run"),
    ("refresh", "{}", "--if-new-data"),
    ("train", "{}"),
    ("tune", "{}", "--dry-run"),
    ("tune", "{}"),
    ("evaluate", "{}"),
    ("evaluate", "{}", "--matrix"),
    ("gate", "report.json", "{}"),
    ("plan", "{}", "--on", "kuberay.yaml", "--offline"),
    ("submit", "{}", "--on", "local", "--yes"),
    ("schedule", "apply", "nightly", "{}", "--cron", "@daily", "--dry-run"),
    ("diff", "glyphs:1", "glyphs:2", "--spec", "{}"),
)
PROFILE_COMMANDS: tuple[tuple[str, ...], ...] = (
    ("plan", "v2.yaml", "--on", "{}", "--offline"),
    ("submit", "v2.yaml", "--on", "{}", "--yes"),
    ("status", "glyphs-v2", "--on", "{}"),
    ("logs", "glyphs-v2", "--on", "{}"),
    ("stop", "glyphs-v2", "--on", "{}"),
    ("resume", "glyphs-v2", "--on", "{}"),
    ("list", "--on", "{}"),
    ("gc", "--on", "{}"),
    ("doctor", "--on", "{}"),
    ("schedule", "list", "--on", "{}"),
    ("schedule", "pause", "nightly", "--on", "{}"),
    ("schedule", "apply", "nightly", "v2.yaml", "--cron", "@daily", "--on", "{}"),
)
TOO_FEW: tuple[tuple[str, ...], ...] = (
    *((name,) for name in ("refresh", "train", "tune", "evaluate", "gate", "lineage", "diff", "promote", "rollback")),
    *((name,) for name in ("history", "status", "logs", "stop", "resume", "plan", "submit")),
    ("gate", "report.json"),
    ("diff", "glyphs:1"),
    ("promote", "glyphs:1"),
    ("hold", "--reason", "x"),
    ("retire", "glyphs:1"),
    ("plan", "v2.yaml"),
    ("submit", "v2.yaml"),
    ("schedule", "apply"),
    ("schedule", "apply", "x", "v2.yaml"),
    ("schedule", "pause"),
    ("lineage", "repair"),
)
