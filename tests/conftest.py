import fcntl
import os
from functools import cache
from pathlib import Path

# before torch is imported, and for every process that a test starts: the workers of pytest-xdist
# share the cores among them, and small models run faster on one thread than on several
os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
os.environ.pop("MASTER_PORT", None)  # every run over several processes looks for a free one
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # the same figures with and without a GPU

import pytest
import torch

from lightning_recon.data import SampleImagesDataModule, photographs
from lightning_recon.updates import PrivateBatch

torch.set_num_threads(1)
torch.set_num_interop_threads(1)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Run a test marked ``alone``, with the fixtures it sets up, while no worker runs another."""
    if item.get_closest_marker("alone") is None:
        return (yield)
    with Path(__file__).open("r+") as file:  # opened for writing, as locks over NFS demand
        fcntl.flock(file, fcntl.LOCK_EX)  # closing the file lets it go
        return (yield)


@pytest.fixture(scope="session", autouse=True)
def _photographs_are_decoded_once():
    """Most runs use the sample photographs, and decoding them is a third of a small run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(photographs, "open_picture", cache(photographs.open_picture))
        yield


@pytest.fixture(scope="session")
def sample_data():
    """Clients of eight photographs of 32x32, and the server's own ones."""
    data = SampleImagesDataModule(batch_size=8, num_clients=2, image_size=32, num_public=24)
    data.prepare_data()
    data.setup()
    return data


@pytest.fixture
def batch(sample_data) -> PrivateBatch:
    return sample_data.client(0)


@pytest.fixture(autouse=True)
def _keep_global_random_state():
    with torch.random.fork_rng(devices=[]):
        yield
