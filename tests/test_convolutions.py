"""Which kernels convolve: the count that decides, and that both give the same."""

import pytest
import torch
from torch import nn

from lightning_recon.attacks import InvertingGradients
from lightning_recon.attacks.matching.convolutions import (
    FEW_PRODUCTS,
    largest_convolution,
    without_onednn,
)
from lightning_recon.data import SampleImagesDataModule
from lightning_recon.targets import ConvNet, LeNet


def test_products_are_those_of_the_largest_convolution():
    assert largest_convolution(LeNet(), torch.zeros(1, 3, 32, 32)) == 12 * 16 * 16 * 3 * 25
    strided = nn.Sequential(nn.Conv2d(4, 8, 3, stride=2, groups=2), nn.Conv2d(8, 2, 1))
    assert largest_convolution(strided, torch.zeros(1, 4, 9, 9)) == 8 * 4 * 4 * 2 * 9
    assert largest_convolution(nn.Flatten(), torch.zeros(1, 3, 8, 8)) == 0


def test_counting_changes_nothing():
    network = ConvNet(width=4).train()
    network.features[1].eval()
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    largest_convolution(network, torch.rand(1, 3, 32, 32))
    for name, buffer in network.named_buffers():
        assert torch.equal(buffer, before[name])
    assert network.training
    assert not network.features[1].training
    assert not network.features[0]._forward_hooks


def test_onednn_is_back_after_an_error():
    def fail():
        assert not torch.backends.mkldnn.enabled
        raise RuntimeError("broken")

    assert torch.backends.mkldnn.enabled
    with pytest.raises(RuntimeError, match="broken"), without_onednn():
        fail()
    assert torch.backends.mkldnn.enabled


@pytest.mark.parametrize(("num_restarts", "is_native"), [(1, True), (2, True), (3, False)])
def test_few_small_images_pass_torchs_own_kernels_to_the_same_gradient(
    num_restarts, is_native, monkeypatch
):
    """230,400 products an image: up to two are few."""
    assert 2 * 230400 <= FEW_PRODUCTS < 3 * 230400
    attack = InvertingGradients(LeNet(20), num_restarts=num_restarts)
    attack.data = SampleImagesDataModule(batch_size=1, num_clients=1, image_size=32)
    attack.bind(attack.data.spec, attack.data.public_images())
    start, evidence = attack.initialize(attack.federation.play(attack.data.client(0), 0))
    seen = []
    objective = attack.objective
    monkeypatch.setattr(
        attack.engine,
        "_objective",
        lambda *args: (seen.append(torch.backends.mkldnn.enabled), objective(*args))[1],
    )
    _, gradient = attack.differentiate(start, evidence)
    assert seen == [not is_native]
    monkeypatch.setattr(attack.engine, "_convolves_little", lambda *_: is_native is False)
    _, other = attack.differentiate(start, evidence)
    assert seen == [not is_native, is_native]
    torch.testing.assert_close(gradient, other, rtol=0, atol=float(1e-5 * gradient.abs().max()))
