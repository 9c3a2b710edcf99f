"""`load_weights` and the digests: what is read, what is hashed, and checkpoints that attack the reader."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from auditor.errors import (
    ModelCorruptError,
    ModelNotFoundError,
    ModelUnsafeError,
    ModelUnsupportedError,
)
from auditor.reference.model import Model
from auditor.reference.weights import load_weights, template_digest, tokenizer_digest, weights_digest

ROOT = Path(__file__).parents[2]
TARGET = ROOT / "reference" / "demo" / "target"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture
def sharded(tmp_path):
    save_file({"a": torch.ones(2), "b": torch.zeros(3)}, tmp_path / FIRST)
    save_file({"c": torch.full((2, 2), 7.0)}, tmp_path / SECOND)
    write_index(tmp_path, {"a": FIRST, "b": FIRST, "c": SECOND})
    return tmp_path


def write_index(directory, weight_map):
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_digests_are_those_of_the_recorded_traces():
    with gzip.open(ROOT / "tests" / "traces" / "vllm-cpu-bf16-plain.jsonl.gz", "rt") as file:
        trace = json.loads(file.readline())
    assert weights_digest(TARGET) == trace["model_digest"]
    assert tokenizer_digest(TARGET) == trace["tokenizer_digest"]
    assert template_digest(TARGET) == trace["template_digest"]


def test_tensors_are_read_as_stored(tmp_path):
    stored = {"x": torch.randn(3, 2).bfloat16(), "y": torch.randn(4).half()}
    save_file(stored, tmp_path / "model.safetensors")
    loaded = load_weights(tmp_path)
    assert loaded.keys() == stored.keys()
    assert all(loaded[name].dtype == stored[name].dtype for name in stored)
    assert all(torch.equal(loaded[name], stored[name]) for name in stored)


def test_shards_are_joined(sharded):
    assert {name: list(tensor.shape) for name, tensor in load_weights(sharded).items()} == {
        "a": [2],
        "b": [3],
        "c": [2, 2],
    }


def test_shard_digest_is_the_digest_of_sorted_lines(sharded):
    lines = "".join(
        f"{n} {hashlib.sha256((sharded / n).read_bytes()).hexdigest()}\n" for n in (FIRST, SECOND)
    )
    expected = f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"
    assert weights_digest(sharded) == expected
    write_index(sharded, {"c": SECOND, "b": FIRST, "a": FIRST})
    assert weights_digest(sharded) == expected
    save_file({"c": torch.full((2, 2), 7.5)}, sharded / SECOND)
    assert weights_digest(sharded) != expected


def test_template_digest_is_the_same_from_file_and_field(tmp_path):
    assert template_digest(tmp_path) is None
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "Grüße {{ x }}"}))
    from_field = template_digest(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("Grüße {{ x }}", encoding="utf-8")
    assert from_field == template_digest(tmp_path)
    assert from_field == f"sha256:{hashlib.sha256('Grüße {{ x }}'.encode()).hexdigest()}"


def test_missing_directory_weights_and_tokenizer(tmp_path):
    for attempt in (load_weights, weights_digest):
        with pytest.raises(ModelNotFoundError):
            attempt(tmp_path / "absent")
        with pytest.raises(ModelNotFoundError):
            attempt(tmp_path)
    with pytest.raises(ModelNotFoundError):
        tokenizer_digest(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickles_are_never_opened(tmp_path, name):
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    for attempt in (load_weights, weights_digest):
        with pytest.raises(ModelUnsafeError, match="convert the checkpoint to safetensors"):
            attempt(tmp_path)


def test_pickles_beside_safetensors_are_left_alone(sharded):
    (sharded / "training_args.bin").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    assert len(load_weights(sharded)) == 3


@pytest.mark.parametrize(
    "shard",
    [
        "../stolen.safetensors",
        "/etc/stolen.safetensors",
        "sub/x.safetensors",
        "..\\x.safetensors",
        "x.bin",
        7,
    ],
)
def test_a_shard_outside_the_directory_is_refused(sharded, shard):
    save_file({"c": torch.ones(1)}, sharded.parent / "stolen.safetensors")
    write_index(sharded, {"a": FIRST, "b": FIRST, "c": shard})
    for attempt in (load_weights, weights_digest):
        with pytest.raises(ModelCorruptError, match="not the name of a safetensors file"):
            attempt(sharded)


@pytest.mark.parametrize(
    "weight_map",
    [
        None,
        [],
        {},
        {"a": FIRST, "b": FIRST, "c": "model-00003-of-00002.safetensors"},
        {"a": FIRST, "c": SECOND},  # the file has b as well
        {"a": FIRST, "b": SECOND, "c": SECOND},
        {"a": FIRST, "b": FIRST, "c": SECOND, "d": SECOND},
    ],
)
def test_an_index_that_contradicts_its_shards_is_refused(sharded, weight_map):
    write_index(sharded, weight_map)
    with pytest.raises(ModelCorruptError):
        load_weights(sharded)


def test_a_tensor_in_two_shards_is_refused(sharded):
    save_file({"a": torch.zeros(2), "c": torch.ones(2, 2)}, sharded / SECOND)
    with pytest.raises(ModelCorruptError, match="tensor a"):
        load_weights(sharded)


def test_two_sets_of_weights_in_one_directory_are_refused(sharded):
    save_file({"a": torch.ones(2)}, sharded / "model.safetensors")
    for attempt in (load_weights, weights_digest):
        with pytest.raises(ModelCorruptError, match="both"):
            attempt(sharded)


@pytest.mark.parametrize("keep", [0, 4, 8, 60, -1])
def test_a_truncated_file_is_refused(tmp_path, keep):
    whole = (TARGET / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:keep])
    with pytest.raises(ModelCorruptError, match="not a readable safetensors file"):
        load_weights(tmp_path)


def test_a_header_that_claims_too_much_is_refused(tmp_path):
    (tmp_path / "model.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")
    with pytest.raises(ModelCorruptError):
        load_weights(tmp_path)


def test_quantized_tensors_are_refused(tmp_path):
    save_file({"x": torch.zeros(4, dtype=torch.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelUnsupportedError, match="int8"):
        load_weights(tmp_path)


@pytest.fixture
def tampered(tmp_path):
    def load(change):
        shutil.copy(TARGET / "config.json", tmp_path)
        tensors = load_file(TARGET / "model.safetensors")
        change(tensors)
        save_file(tensors, tmp_path / "model.safetensors")
        return Model.load(tmp_path)

    return load


def test_missing_misshapen_and_broken_tensors_are_refused(tampered):
    name = "model.layers.3.self_attn.k_proj.weight"
    for change in (
        lambda tensors: tensors.pop(name),
        lambda tensors: tensors.update({name: tensors[name][:64].clone()}),
        lambda tensors: tensors.update({name: tensors[name].T.contiguous()}),
        lambda tensors: tensors[name].fill_(float("nan")),
    ):
        with pytest.raises(ModelCorruptError, match=r"model\.layers\.3\.self_attn\.k_proj"):
            tampered(change)


def test_leftover_tensors_are_refused_unless_they_mean_nothing(tampered):
    embedding = "model.embed_tokens.weight"
    tampered(lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(32)}))
    tampered(lambda tensors: tensors.update({"lm_head.weight": tensors[embedding].clone()}))
    for change in (
        lambda tensors: tensors.update({"lm_head.weight": tensors[embedding] + 1}),
        lambda tensors: tensors.update({"model.layers.0.self_attn.q_norm.weight": torch.ones(64)}),
        lambda tensors: tensors.update({"model.layers.5.input_layernorm.weight": torch.ones(256)}),
    ):
        with pytest.raises(ModelUnsupportedError):
            tampered(change)
