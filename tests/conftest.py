import os

import pytest
import torch

from lightning_recon.data import SampleImagesDataModule
from lightning_recon.updates import PrivateBatch

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # the same figures with and without a GPU


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


@pytest.fixture(scope="module")
def one_thread():
    """Small models: on a busy machine a second thread costs more than it brings."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _keep_global_random_state():
    with torch.random.fork_rng(devices=[]):
        yield
