"""Tiny image models of transformers, saved as checkpoint folders: what users download, in kilobytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WIDTH = 16
TOKENS: dict[str, Any] = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32}
CONFIGS: dict[str, dict[str, Any]] = {
    "vit": {**TOKENS, "intermediate_size": 32, "patch_size": 8},
    "deit": {**TOKENS, "intermediate_size": 32, "patch_size": 8},
    "dinov2": {**TOKENS, "patch_size": 8},
    "swin": {
        "embed_dim": 8,
        "depths": [1, 1],
        "num_heads": [1, 2],
        "image_size": 32,
        "patch_size": 4,
        "window_size": 4,
    },
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, WIDTH], "depths": [1, 1], "layer_type": "basic"},
    "convnext": {"hidden_sizes": [8, WIDTH], "depths": [1, 1], "num_stages": 2},
}
"""Of each kind, a model whose embeddings have 16 numbers."""
PROCESSOR = {
    "do_resize": True,
    "size": {"shortest_edge": 40},
    "do_center_crop": True,
    "crop_size": {"height": 32, "width": 32},
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


def save(folder: Path, kind: str = "resnet", *, processor: dict[str, Any] | None = None, seed: int = 0) -> Path:
    """Write config.json, preprocessor_config.json and model.safetensors, and return the folder."""
    import torch
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(seed)
    AutoModel.from_config(AutoConfig.for_model(kind, **CONFIGS[kind])).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR if processor is None else processor))
    return folder
