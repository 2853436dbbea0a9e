"""Texts: tokenised, embedded by a transformer, and both kept with the version."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from graceful.errors import DataError, SpecError
from graceful.learners import run
from graceful.learners.text import TextLearner
from graceful.learners.words import without_some
from graceful.models.text_network import pool
from graceful.spec.networks import TransformersNetwork
from graceful.spec.table import Columns, WordDropout
from tests.support import text_checkpoint

TEXTS = ["small red ball", "an old blue cup and a new green box", "large"]
CLASSES = ("blue", "green", "red")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_checkpoint.save(tmp_path_factory.mktemp("checkpoint"))


def learner(checkpoint: Path, *, pair: str | None = None, **network: Any) -> TextLearner:
    section = TransformersNetwork(checkpoint=str(checkpoint), max_length=16, **network)
    return TextLearner(Columns(text="text", pair=pair), section)


def test_texts_become_padded_tokens_and_one_embedding_each(checkpoint: Path) -> None:
    texts = learner(checkpoint)
    batch = texts.collate(TEXTS, None)
    assert batch["input_ids"].shape == (3, 16)  # ten tokens, padded to a multiple of eight
    assert batch["attention_mask"].sum(1).tolist() == [5, 11, 3]
    network = texts.network(CLASSES).eval()
    together = run(texts, network, batch)
    alone = [run(texts, network, texts.collate([text], None)) for text in TEXTS]
    for row, outputs in enumerate(alone):  # padding changes nothing
        assert torch.allclose(together.embedding[row], outputs.embedding[0], atol=1e-5)
        assert torch.allclose(together.logits[row], outputs.logits[0], atol=1e-5)


def test_pairs_are_read_together(checkpoint: Path) -> None:
    pairs = learner(checkpoint, pair="other")
    batch = pairs.collate([("red ball", "blue box")], None)
    assert batch["token_type_ids"][0].tolist() == [0, 0, 0, 0, 1, 1, 1, 0]
    assert batch["input_ids"][0, :7].tolist() == [2, 4, 7, 3, 6, 8, 3]


def test_a_view_leaves_out_the_same_words_for_every_tokenizer(checkpoint: Path, tmp_path: Path) -> None:
    other = text_checkpoint.save(tmp_path / "other", words=text_checkpoint.WORDS[::-1])
    section = TransformersNetwork(checkpoint=str(checkpoint), max_length=16)
    augment, others = WordDropout(p=0.5), section.model_copy(update={"checkpoint": str(other)})
    first = TextLearner(Columns(text="text"), section, augment=augment)
    second = TextLearner(Columns(text="text"), others, augment=augment)
    views = np.arange(3, dtype=np.uint64)
    seen, again = first.collate(TEXTS, views), first.collate(TEXTS, views)
    assert seen["input_ids"].equal(again["input_ids"])
    lengths = seen["attention_mask"].sum(1)
    assert second.collate(TEXTS, views)["attention_mask"].sum(1).equal(lengths)
    assert (lengths >= 3).all()  # one word stays
    assert lengths.tolist() != [5, 11, 3]
    assert not first.collate(TEXTS, views + np.uint64(3))["input_ids"].equal(seen["input_ids"])
    assert first.collate(TEXTS, None)["attention_mask"].sum(1).tolist() == [5, 11, 3]
    pair = without_some(("red ball", "blue box"), share=0.5, view=1)
    assert pair == without_some(("red ball", "blue box"), share=0.5, view=1)


@pytest.mark.parametrize(("how", "row"), [("cls", 0), ("last", 2), ("mean", None)])
def test_pooling_ignores_padding(how: str, row: int | None) -> None:
    tokens = torch.randn(1, 5, 4)
    mask = torch.tensor([[1, 1, 1, 0, 0]])
    wanted = tokens[:, :3].mean(1) if row is None else tokens[:, row]
    assert torch.allclose(pool(tokens, mask, how), wanted)


def test_a_network_has_the_layers_projection_head_and_frozen_parts_of_its_section(checkpoint: Path) -> None:
    section = {"layers": 1, "projection": 6, "head": "cosine", "normalise": True, "freeze": "body"}
    network = learner(checkpoint, **section).network(CLASSES)
    assert len(network.body.encoder.layer) == 1
    assert network.body.pooler is None
    outputs = run(learner(checkpoint), network.eval(), learner(checkpoint).collate(TEXTS, None))
    assert outputs.embedding.shape == (3, 6)
    assert torch.allclose(outputs.embedding.norm(dim=1), torch.ones(3))
    trained = {name.split(".")[0] for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert trained == {"projection", "head"}


def test_weights_are_those_of_the_checkpoint_or_random(checkpoint: Path) -> None:
    def words(**network: Any) -> torch.Tensor:
        torch.manual_seed(1)
        return learner(checkpoint, **network).network(CLASSES).body.get_input_embeddings().weight

    assert words().equal(words(layers=1))
    assert not words().equal(words(weights="random"))
    assert words(weights="random").equal(words(weights="random"))  # they follow from torch's seed


def test_a_version_has_its_own_tokenizer_and_needs_no_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    old = text_checkpoint.save(tmp_path / "old", words=text_checkpoint.WORDS[::-1], hidden=8)
    texts = learner(old)
    files, ids = texts.assets(), texts.collate(TEXTS, None)["input_ids"]
    network = texts.network(CLASSES).eval()
    shutil.rmtree(old)
    restored = learner(old).restored(json.loads(json.dumps(files)))
    assert restored.collate(TEXTS, None)["input_ids"].equal(ids)
    assert not learner(checkpoint).collate(TEXTS, None)["input_ids"].equal(ids)
    rebuilt = restored.network(CLASSES).eval()
    rebuilt.load_state_dict(network.state_dict())
    batch = restored.collate(TEXTS, None)
    assert run(restored, rebuilt, batch).logits.equal(run(texts, network, batch).logits)


def test_a_recorded_configuration_loads_no_code(checkpoint: Path) -> None:
    """A person who may write to a registry may name a kernel of the hub, or a class of a repository."""
    files = dict(learner(checkpoint).assets())
    names = {"attn_implementation": "owner/kernel", "_attn_implementation_internal": "owner/kernel"}
    files["config.json"] = {**files["config.json"], **names, "auto_map": {"AutoModel": "owner/repo--model.Model"}}
    network = learner(checkpoint).restored(files).network(CLASSES)
    assert network.body.config._attn_implementation in ("sdpa", "eager")
    files["config.json"] = {**files["config.json"], "quantization_config": {"quant_method": "x"}}
    with pytest.raises(DataError, match="the weights are quantised"):
        learner(checkpoint).restored(files).network(CLASSES)


def broken(checkpoint: Path, folder: Path, change: str) -> Path:
    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    if change == "no tokenizer":
        (folder / "tokenizer.json").unlink()
    elif change == "code":
        (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "model.Model"}}))
    elif change == "pickle":
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    elif change == "no such model":
        (folder / "config.json").write_text(json.dumps({**config, "model_type": "nosuchmodel"}))
    elif change == "cut":
        (folder / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    elif change == "no JSON":
        (folder / "config.json").write_text("{")
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("no tokenizer", "tokenizer.json is missing; save the model and its fast tokenizer there"),
        ("code", "needs code of its repository"),
        ("pickle", "the weights cannot be loaded"),
        ("cut", "the weights cannot be loaded"),
        ("no such model", "transformers cannot build this model"),
        ("no JSON", "config.json: no JSON"),
    ],
)
def test_a_checkpoint_that_cannot_be_used_is_refused(
    change: str, message: str, checkpoint: Path, tmp_path: Path
) -> None:
    texts = learner(broken(checkpoint, tmp_path / "broken", change))
    with pytest.raises((DataError, SpecError), match=message):
        texts.network(CLASSES)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"layers": 3}, "layers: the checkpoint has 2, got 3; write fewer"),
        ({"checkpoint": "/none"}, "/none is not a folder"),
    ],
)
def test_a_section_that_does_not_fit_its_checkpoint_is_refused(
    network: dict[str, Any], message: str, checkpoint: Path
) -> None:
    section = TransformersNetwork(**{"checkpoint": str(checkpoint), "max_length": 16, **network})
    with pytest.raises((DataError, SpecError), match=message):
        TextLearner(Columns(text="text"), section).network(CLASSES)
    with pytest.raises(SpecError, match="max_length: must be at most 32"):
        TextLearner(Columns(text="t"), TransformersNetwork(checkpoint=str(checkpoint))).network(CLASSES)
