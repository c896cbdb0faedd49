"""Shared fixtures. Tests make their own models and data; UNIATTN_MATERIAL names a directory of real ones (optional)."""

import importlib.util
import os
import sys
import tempfile

# Before `transformers` is imported: remote code is cached in a directory of this session, and nothing asks the network.
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="uniattn-hf-")
os.environ["HF_HUB_OFFLINE"] = "1"

from pathlib import Path

import pytest
import torch
import transformers
from support.models import LLAMA3, write_base
from support.program import Program
from support.runs import VOCAB, Project
from support.stories import Stories

torch.set_num_threads(1)
transformers.utils.logging.disable_progress_bar()

REPOSITORY = Path(__file__).resolve().parents[2]
if importlib.util.find_spec("uniattn") is None:  # not installed: the package of the source tree
    sys.path.insert(0, str(REPOSITORY / "python"))


@pytest.fixture(scope="session")
def binary():
    path = Path(os.environ.get("UNIATTN_BINARY", REPOSITORY / "build" / "release" / "uniattn"))
    if not path.is_file():
        pytest.skip(f"no program at {path}: build it, or set UNIATTN_BINARY")
    return path


@pytest.fixture(scope="session")
def run_uniattn(binary):
    """run_uniattn("eval", "--model", …) → the parsed object of `--json`; fails the test on another exit code than 0."""
    return Program(binary)


@pytest.fixture(scope="session")
def material():
    path = os.environ.get("UNIATTN_MATERIAL")
    if path is None:
        pytest.skip("UNIATTN_MATERIAL does not name a directory of real models and data")
    return Path(path)


@pytest.fixture(scope="session")
def stories(material, tmp_path_factory):
    """stories260K as a Hugging Face directory, and text sampled from it."""
    return Stories(material, tmp_path_factory.mktemp("stories"))


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("models") / "base", vocab_size=VOCAB, scaling=LLAMA3)


@pytest.fixture
def project(tmp_path, base):
    return Project(tmp_path, base)


@pytest.fixture(scope="session")
def finished(run_uniattn, base, tmp_path_factory):
    """(result, run folder, project) of one whole `uniattn run`."""
    project = Project(tmp_path_factory.mktemp("finished"), base)
    config, run = project.config("whole")
    return run_uniattn("run", config), run, project
