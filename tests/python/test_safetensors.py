"""Files of the `safetensors` package and of trainer/storage/ are the same to the bit, in both directions."""

import os
import pathlib
import subprocess

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

TESTS = pathlib.Path(__file__).parents[2] / "build/release/tests/cpp/uniattn_tests"


def bits(tensor):
    return tensor.reshape(-1).view(torch.uint8).tolist()


@pytest.mark.skipif(not TESTS.exists(), reason=f"the C++ tests are not built: {TESTS}")
def test_round_trip_with_the_reference_package(tmp_path):
    dtypes = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16]
    dtypes += [torch.int8, torch.uint8, torch.bool]
    tensors = {f"layer.{dtype}": (torch.randn(3, 5) * 50).to(dtype) for dtype in dtypes}
    tensors |= {"empty": torch.empty(0, 4), "scalar": torch.tensor(2.5), "größe": torch.full((2,), float("nan"))}
    theirs, ours = tmp_path / "theirs.safetensors", tmp_path / "ours.safetensors"
    save_file(tensors, theirs, metadata={"format": "pt"})

    environment = os.environ | {"UNIATTN_COPY_FROM": str(theirs), "UNIATTN_COPY_TO": str(ours)}
    subprocess.run([TESTS, "[interop]"], env=environment, check=True)

    loaded = load_file(ours)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype and loaded[name].shape == tensor.shape
        assert bits(loaded[name]) == bits(tensor)
    with safe_open(ours, "pt") as file:
        assert file.metadata() == {"format": "pt"}
