"""Guard rails for every test: a silent rank promotion or a NaN is an error."""

import os
import signal
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of a test's time is compilation: LLVM's optimisation makes it three times longer.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
)

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # As in a job in the background: the programs that tests start would ignore it, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)

import jax
import pytest

import programs
from cryjax.data import subjects

# Tests prepare datasets with a subject key of their own.
os.environ.setdefault(subjects.VARIABLE, programs.environment()[subjects.VARIABLE])
subjects.read_or_make_key()

# The longest files, started first: at the end one process would wait for another's.
_LONGEST = (
    "test_launch.py",
    "test_topology.py",
    "test_pretrain.py",
    "test_plan.py",
    "test_reproduce.py",
    "test_parallel.py",
)


def pytest_collection_modifyitems(items):
    places = {name: place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture(autouse=True)
def guard_rails():
    with jax.numpy_rank_promotion("raise"), jax.debug_nans(True):
        yield


@pytest.fixture(scope="session", autouse=True)
def own_temporary_folder(tmp_path_factory):
    """What libraries and killed programs leave there goes with pytest's own folders."""
    folder = tmp_path_factory.mktemp("temporary")
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A prepared dataset: 60 synthetic cries of 6 infants at 8 kHz, labelled, split 'train'."""
    out = tmp_path_factory.mktemp("data") / "cries"
    programs.succeed(
        "prepare", "--synthetic=cries", "--examples=60", "--sample_rate=8000", f"--out={out}"
    )
    return out
