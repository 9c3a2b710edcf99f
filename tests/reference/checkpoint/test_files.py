"""What is read of a model directory, lazily, and checkpoints that attack the reader."""

from __future__ import annotations

import io
import json
import pickle
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
from auditor.reference.checkpoint.digests import tokenizer_digest, weights_digest
from auditor.reference.checkpoint.files import Checkpoint, load_weights
from auditor.reference.checkpoint.headers import DTYPES, MAX_HEADER_BYTES
from auditor.reference.model import Model

ROOT = Path(__file__).parents[3]
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


def test_headers_tell_names_shapes_and_dtypes_without_data(sharded):
    checkpoint = Checkpoint.open(sharded)
    assert checkpoint.names == {"a", "b", "c"}
    assert (checkpoint.shape("c"), checkpoint.dtype("c")) == ((2, 2), torch.float32)
    assert [path.name for path in checkpoint.files] == [FIRST, SECOND]
    assert torch.equal(checkpoint.tensor("c"), torch.full((2, 2), 7.0))


def test_only_the_tensor_asked_for_is_read(tmp_path):
    """A file far larger than what may be allocated: the hole in it is never read."""
    size = 64 << 30
    entries = {
        "huge": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]},
        "small": {"dtype": "F32", "shape": [2], "data_offsets": [size, size + 8]},
    }
    path = raw_file(tmp_path, entries)
    with path.open("r+b") as file:
        file.seek(0, io.SEEK_END)
        file.truncate(file.tell() + size)
        file.seek(0, io.SEEK_END)
        file.write(torch.tensor([1.5, -2.0]).numpy().tobytes())
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.shape("huge") == (size,)
    assert checkpoint.tensor("small").tolist() == [1.5, -2.0]


def test_a_tensor_that_was_read_does_not_follow_the_file(tmp_path):
    save_file({"x": torch.ones(4)}, tmp_path / "model.safetensors")
    tensor = Checkpoint.open(tmp_path).tensor("x")
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.seek(-16, io.SEEK_END)
        file.write(bytes(16))
    assert tensor.tolist() == [1.0] * 4


def test_a_file_that_changes_after_opening_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"x": torch.ones(4)}, path)
    checkpoint = Checkpoint.open(tmp_path)
    save_file({"x": torch.zeros(4)}, path)
    with pytest.raises(ModelCorruptError, match=r"model\.safetensors: the file changed"):
        checkpoint.tensor("x")
    other = Checkpoint.open(tmp_path)
    path.unlink()
    with pytest.raises(ModelCorruptError, match="tensor x is not readable"):
        other.tensor("x")


def test_the_library_reads_the_same():
    checkpoint, theirs = Checkpoint.open(TARGET), load_file(TARGET / "model.safetensors")
    assert checkpoint.names == theirs.keys()
    assert all(torch.equal(checkpoint.tensor(name), tensor) for name, tensor in theirs.items())


@pytest.mark.parametrize("shape", [(), (0,), (1, 0, 3), (1, 1, 1)])
def test_odd_shapes(tmp_path, shape):
    save_file(
        {"x": torch.ones(shape, dtype=torch.bfloat16), "y": torch.ones(3)}, tmp_path / "model.safetensors"
    )
    assert torch.equal(Checkpoint.open(tmp_path).tensor("x"), torch.ones(shape, dtype=torch.bfloat16))


def test_a_tensor_that_is_not_there_is_named(sharded):
    checkpoint = Checkpoint.open(sharded)
    for attempt in (checkpoint.shape, checkpoint.dtype, checkpoint.tensor, checkpoint.where):
        with pytest.raises(ModelCorruptError, match="tensor d is missing"):
            attempt("d")


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_every_dtype_is_read_as_it_is_stored(tmp_path, dtype):
    stored = (
        torch.arange(8, dtype=torch.uint8).repeat(8).view(dtype) if dtype != torch.bool else torch.ones(3) > 0
    )
    save_file({"x": stored.clone()}, tmp_path / "model.safetensors")
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.dtype("x") == dtype
    assert torch.equal(checkpoint.tensor("x").view(torch.uint8), stored.view(torch.uint8))


def test_a_pickle_under_the_name_of_safetensors_is_refused_by_its_content(sharded):
    archive = io.BytesIO()
    torch.save({"c": torch.ones(2, 2)}, archive)
    old = io.BytesIO()
    torch.save({"c": torch.ones(2, 2)}, old, _use_new_zipfile_serialization=False)
    contents = [archive.getvalue(), old.getvalue(), b"cos\nsystem\n(S'touch pwned'\ntR."]
    contents += [pickle.dumps({"c": [1.0]}, protocol=protocol) for protocol in range(6)]
    contents += [bytes(257) + b"ustar" + bytes(300)]
    for content in contents:
        (sharded / SECOND).write_bytes(content)
        with pytest.raises(ModelUnsafeError, match=f"{SECOND}: a .*convert the checkpoint"):
            Checkpoint.open(sharded)


def raw_file(directory, entries, data=b"", *, text=None):
    header = json.dumps(entries).encode() if text is None else text
    path = directory / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


def entry(begin, end, dtype="F32", shape=None):
    return {
        "dtype": dtype,
        "shape": [(end - begin) // 4] if shape is None else shape,
        "data_offsets": [begin, end],
    }


@pytest.mark.parametrize(
    ("entries", "data", "message"),
    [
        ({"a": entry(0, 8), "b": entry(4, 12)}, 12, "begin at byte 4, not at 8"),  # overlap
        ({"a": entry(0, 4), "b": entry(8, 12)}, 12, "begin at byte 8, not at 4"),  # hole
        ({"a": entry(0, 8)}, 4, "4 bytes of data, 8 in the header"),  # outside the file
        ({"a": entry(0, 4)}, 8, "8 bytes of data, 4 in the header"),  # data of nobody
        ({"a": entry(0, 8, shape=[3])}, 8, r"\[3\] of F32 in 8 bytes"),
        ({"a": entry(0, 8, shape=[2, -1])}, 8, "shape of a"),
        ({"a": entry(0, 8, shape=[2.0])}, 8, "shape of a"),
        ({"a": entry(0, 8, shape=[True])}, 8, "shape of a"),
        ({"a": entry(0, 8, shape=[1] * 65)}, 8, "shape of a"),
        ({"a": {"dtype": "F32", "shape": [0], "data_offsets": [8, 0]}}, 8, "rising"),
        ({"a": {"dtype": "F32", "shape": [0]}}, 0, "needs dtype"),
        ({"a": entry(0, 4) | {"x": 1}}, 4, "needs dtype"),
        ({"a": [0, 4]}, 4, "needs dtype"),
        ({"a": entry(0, 4), "__metadata__": {"format": 1}}, 4, "__metadata__"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path, entries, data, message):
    raw_file(tmp_path, entries, bytes(data))
    with pytest.raises(ModelCorruptError, match=message):
        Checkpoint.open(tmp_path)


def test_a_name_that_stands_twice_in_a_header_is_refused(tmp_path):
    """The library takes the last one; another reader may take the first."""
    one = json.dumps(entry(0, 4))[1:-1]
    text = b'{"a": {%s}, "a": {%s}}' % (one.encode(), one.replace("F32", "I32").encode())
    raw_file(tmp_path, None, bytes(4), text=text)
    with pytest.raises(ModelCorruptError, match="a is in the header twice"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("text", [b"{" * 100_000, b'{"a": ', b"{\xff}", b"{]"])
def test_a_header_that_is_not_json_is_refused(tmp_path, text):
    raw_file(tmp_path, None, text=text)
    with pytest.raises(ModelCorruptError, match="not a readable safetensors file"):
        Checkpoint.open(tmp_path)


def test_a_header_larger_than_the_bound_is_not_parsed(tmp_path):
    path = raw_file(tmp_path, {})
    with path.open("r+b") as file:
        file.write((MAX_HEADER_BYTES + 1).to_bytes(8, "little"))
        file.truncate(MAX_HEADER_BYTES * 2)
    with pytest.raises(ModelCorruptError, match="no header of at most 32 MiB"):
        Checkpoint.open(tmp_path)


def test_a_dtype_that_the_reference_cannot_hold_is_refused(tmp_path):
    raw_file(tmp_path, {"a": entry(0, 4, dtype="F4", shape=[8])}, bytes(4))
    with pytest.raises(ModelUnsupportedError, match="tensor a has the dtype F4"):
        Checkpoint.open(tmp_path)


def test_the_declared_quantization_is_kept_as_it_stood(sharded):
    assert Checkpoint.open(sharded).quantization_config is None
    (sharded / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "fp8"}}))
    checkpoint = Checkpoint.open(sharded)
    (sharded / "config.json").write_text("{}")
    assert checkpoint.quantization_config == {"quant_method": "fp8"}
    (sharded / "config.json").write_text(json.dumps({"quantization_config": "fp8"}))
    with pytest.raises(ModelCorruptError, match="quantization_config must be an object"):
        Checkpoint.open(sharded)
    (sharded / "config.json").write_text(json.dumps({"compression_config": {}}))
    with pytest.raises(ModelUnsupportedError, match="compression_config"):
        Checkpoint.open(sharded)


def test_one_file_outside_a_model_directory(tmp_path):
    save_file({"x": torch.ones(2)}, tmp_path / "adapter_model.safetensors")
    assert Checkpoint.of_file(tmp_path / "adapter_model.safetensors").names == {"x"}
    with pytest.raises(ModelNotFoundError):
        Checkpoint.of_file(tmp_path / "absent.safetensors")
