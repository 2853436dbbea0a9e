"""The JSON that DeepSpeed reads, derived from a spec. Pure; runs in every process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graceful.errors import SpecError
from graceful.spec.engines import DeepSpeedEngine
from graceful.spec.training import AdamW, Optimizer, Train

_DTYPES = {"bf16": "bfloat16", "fp16": "float16"}
_KEYS = {
    "train_batch_size": "train.batch_size",
    "train_micro_batch_size_per_gpu": "train.batch_size and accumulation",
    "gradient_accumulation_steps": "train.accumulation",
    "gradient_clipping": "train.clip",
    "optimizer": "train.optimizer",
    "torch_autocast": "train.precision",
    "zero_optimization.stage": "train.engine.zero_stage",
}
"""Where a spec says what a key of DeepSpeed is."""
_LARGEST_BUCKET, _SMALLEST_BUCKET = 500_000_000, 1_000_000
"""Numbers in a bucket of gradients: DeepSpeed's default, and what is so small that messages cost more than it."""


def optimizer_options(section: Optimizer) -> tuple[str, dict[str, Any]]:
    """Return the name in torch.optim and keyword arguments; all engines use them, so all take the same steps."""
    common = {"lr": section.lr, "weight_decay": section.weight_decay}
    if isinstance(section, AdamW):
        return "AdamW", {**common, "betas": [section.beta1, section.beta2], "eps": section.eps}
    nesterov = section.nesterov and section.momentum > 0.0
    return "SGD", {**common, "momentum": section.momentum, "nesterov": nesterov}


def deepspeed_config(train: Train, *, world_size: int, gpu_parameters: int | None = None) -> dict[str, Any]:
    """Return the JSON that DeepSpeed reads: what follows from the spec, and what `engine.config` adds.

    No scheduler section (the caller sets each step's rate) and no fused optimiser (torch's own is built everywhere and
    takes the same steps as the plain engine's; fused ones compile C++ on first use).

    Args:
        train: The spec's section; its engine must be DeepSpeed.
        world_size: Ranks; batch_size must divide by ranks x accumulation.
        gpu_parameters: Of the network, on GPUs, for buckets that suit them; None: not known, or on the CPU.

    Raises:
        SpecError: `engine.config` gives a key that follows from the spec another value.
    """
    engine = train.engine
    assert isinstance(engine, DeepSpeedEngine)
    owned, defaults = _owned(train, engine, world_size=world_size), _defaults(engine, gpu_parameters)
    config = _joined(defaults, engine.config)
    _require_agreement(engine.config, owned)
    return _joined(owned, config, first=owned)


def _owned(train: Train, engine: DeepSpeedEngine, *, world_size: int) -> dict[str, Any]:
    """Return what follows from other keys of the spec, or what the training loop relies on."""
    name, options = optimizer_options(train.optimizer)
    if name == "AdamW":
        options["torch_adam"] = True
    config: dict[str, Any] = {
        "train_batch_size": train.batch_size,
        "train_micro_batch_size_per_gpu": train.batch_size // (world_size * train.accumulation),
        "gradient_accumulation_steps": train.accumulation,
        "gradient_clipping": train.clip,
        "optimizer": {"type": name, "params": options},
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": engine.zero_stage},
        "steps_per_print": 2**31 - 1,
        "wall_clock_breakdown": False,
    }
    if train.precision != "fp32":
        config["torch_autocast"] = {"enabled": True, "dtype": _DTYPES[train.precision]}
    return config


def _defaults(engine: DeepSpeedEngine, gpu_parameters: int | None) -> dict[str, Any]:
    """Return what `engine.config` may change."""
    zero: dict[str, Any] = {}
    config: dict[str, Any] = {"zero_optimization": zero}
    if engine.zero_stage == 3:
        zero["stage3_param_persistence_threshold"] = 0
    if engine.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": gpu_parameters is not None}
        config["zero_force_ds_cpu_optimizer"] = False
    if engine.offload == "all":
        zero["offload_param"] = {"device": "cpu", "pin_memory": gpu_parameters is not None}
    if gpu_parameters is not None and engine.zero_stage > 0:
        bucket = min(max(gpu_parameters // 8, _SMALLEST_BUCKET), _LARGEST_BUCKET)
        zero |= {"overlap_comm": True, "contiguous_gradients": True, "reduce_bucket_size": bucket}
        zero["stage3_prefetch_bucket_size" if engine.zero_stage == 3 else "allgather_bucket_size"] = bucket
    return config


def _joined(
    low: Mapping[str, Any], high: Mapping[str, Any], *, first: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return both documents as one; a value of `high` counts where both have one, one of `first` before all."""
    joined = dict(low)
    for key, value in high.items():
        before = joined.get(key)
        joined[key] = _joined(before, value) if isinstance(before, Mapping) and isinstance(value, Mapping) else value
    for key, value in (first or {}).items():
        rest = joined.get(key)
        joined[key] = _joined(rest, value) if isinstance(rest, Mapping) and isinstance(value, Mapping) else value
    return joined


def _require_agreement(config: Mapping[str, Any], owned: Mapping[str, Any], path: str = "") -> None:
    for key, value in config.items():
        name = f"{path}{key}"
        if key not in owned:
            continue
        ours = owned[key]
        if isinstance(ours, Mapping) and isinstance(value, Mapping):
            _require_agreement(value, ours, f"{name}.")
        elif value != ours:
            source = next((text for prefix, text in _KEYS.items() if name.startswith(prefix)), None)
            what = f"{source} makes it" if source else "the training loop needs"
            raise SpecError(
                f"train.engine.config.{name}: got {value!r:.60}, and {what} {ours!r:.60}; leave it out"
                + (f", or change {source}" if source else "")
            )
