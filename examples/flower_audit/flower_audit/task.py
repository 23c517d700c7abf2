"""The model and the data, which know nothing of lightning_recon."""

import gzip
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

NUM_CLASSES = 10


class Net(nn.Module):
    """A perceptron with one hidden layer of rectified units."""

    def __init__(self, num_inputs: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(num_inputs, 64)
        self.output = nn.Linear(64, NUM_CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of B C H W images in [0, 1]."""
        logits: Tensor = self.output(torch.relu(self.hidden(images.flatten(1))))
        return logits


class FashionNet(Net):
    """For Fashion-MNIST, 1 x 28 x 28."""

    def __init__(self) -> None:
        super().__init__(28 * 28)


class ColourNet(Net):
    """For CIFAR-10, 3 x 32 x 32."""

    def __init__(self) -> None:
        super().__init__(3 * 32 * 32)


def load_data(data: str) -> tuple[Tensor, Tensor]:
    """Return images, N C H W in [0, 1], and labels, N.

    Args:
        data: a folder with Fashion-MNIST's test images, or an .npz with x_test and y_test.
    """
    if data.endswith(".npz"):
        with np.load(data) as file:
            images, labels = file["x_test"].transpose(0, 3, 1, 2), file["y_test"]
    else:
        pixels = gzip.decompress((Path(data) / "t10k-images-idx3-ubyte.gz").read_bytes())
        digits = gzip.decompress((Path(data) / "t10k-labels-idx1-ubyte.gz").read_bytes())
        images = np.frombuffer(pixels, np.uint8, offset=16).reshape(-1, 1, 28, 28)
        labels = np.frombuffer(digits, np.uint8, offset=8)
    return torch.from_numpy(images.copy()).float() / 255, torch.from_numpy(labels.astype("int64"))


def partition(data: str, place: int, count: int) -> tuple[Tensor, Tensor]:
    """Return the images and labels of one of two clients, which take turns."""
    images, labels = load_data(data)
    mine = slice(place, place + 2 * count, 2)
    return images[mine].contiguous(), labels[mine].contiguous()


def build(image_shape: tuple[int, ...]) -> Net:
    """Return the model as the federation starts with it."""
    torch.manual_seed(1)
    return FashionNet() if image_shape[0] == 1 else ColourNet()
