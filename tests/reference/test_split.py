"""Prefill in one process and decoding in another: the tokens of one process, with and without guesses."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed

from auditor.errors import OptionError
from auditor.reference.decode import Ask, generate
from auditor.reference.drafters import SuffixDrafter
from auditor.reference.model import Model
from auditor.reference.noise import noise_scheme
from auditor.reference.ranks import Ranks
from auditor.reference.sampling import SamplingSpec
from auditor.reference.split import decode, prefill

TARGET = Path(__file__).parents[2] / "reference" / "demo" / "target"
PROMPTS = [(1, 300, 41, 77), (1,), (1, 512, 9, 1000, 1001, 2222, 48), tuple(range(60, 160))]
SECONDS = 300


def asks():
    spec = SamplingSpec(top_p=0.95)
    return [
        Ask(prompt, len(prompt), spec, seed, noise_scheme("gumbel-pos-v1"), 16, frozenset())
        for seed, prompt in enumerate(PROMPTS)
    ]


def worker(rank, folder):
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    ranks = Ranks.joined()
    model, found = Model.load(TARGET), {}
    for name, drafter in (("plain", None), ("guessing", SuffixDrafter())):
        if rank == 0:
            prefill(model, asks(), ranks)
        else:
            found[name] = list(decode(model, asks(), ranks, batch_size=3, drafter=drafter))
    other = model if rank == 0 else Model.load(TARGET, dtype=torch.bfloat16)
    try:
        prefill(other, [], ranks)
    except OptionError as problem:
        found["other"] = str(problem)
    Path(folder, f"{rank}.pickle").write_bytes(pickle.dumps(found))
    distributed.destroy_process_group()  # a gloo thread that outlives the interpreter aborts the process


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("split")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    running = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(folder)], env=environment)
        for rank in (0, 1)
    ]
    try:
        codes = [process.wait(SECONDS) for process in running]
    finally:
        for process in running:
            process.kill()
    assert codes == [0, 0]
    return [pickle.loads(Path(folder, f"{rank}.pickle").read_bytes()) for rank in (0, 1)]


def test_two_processes_give_the_tokens_of_one(found):
    expected = list(generate(Model.load(TARGET), asks()))
    assert found[1]["plain"] == expected
    assert found[1]["guessing"] == expected


def test_two_sides_with_different_models_are_told(found):
    assert all("different models" in side["other"] for side in found)


if __name__ == "__main__":
    torch.set_num_threads(1)
    worker(int(sys.argv[1]), sys.argv[2])
