"""The reference for SpectralLDPAttack: a linear code, rows known, one decoder, no prior.

    python -m benchmarks.linear_code --root data/imagenet --masks MASKS --clients 5

Images of a batch are sent through a water-filled filter (Fourier transform, opponent colours, the
public mean subtracted, spectrum averaged over rings), scaled by ONE clip of the whole batch to
norm C, Gaussian noise is added, and Wiener's filter decodes each image, which is known to belong to
its row.  Written independently of the package's own code, in NumPy.
"""

import argparse

import numpy as np

from lightning_recon.data import ImageNetDataModule, MaskFolder

SIGMAS = (0.0005, 0.002, 0.008, 0.02, 0.05)
RECOVERED_PSNR = 19.0  # dB, from which the project calls an image recovered


def to_spectrum(images: np.ndarray) -> np.ndarray:
    """Return the orthonormal Fourier coefficients of opponent colours, B 3 H W, complex."""
    axes = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])
    return np.fft.fft2(np.einsum("oc,bchw->bohw", axes, images), norm="ortho")


def from_spectrum(spectrum: np.ndarray) -> np.ndarray:
    """Undo :func:`to_spectrum`."""
    axes = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])
    return np.einsum("oc,bohw->bchw", axes, np.fft.ifft2(spectrum, norm="ortho").real)


def ring_means(power: np.ndarray) -> np.ndarray:
    """Return ``power``, 3 H W, averaged over rings one cycle an image wide."""
    height, width = power.shape[1:]
    frequency = np.hypot(np.fft.fftfreq(height)[:, None] * height, np.fft.fftfreq(width) * width)
    ring = np.rint(frequency).astype(int)
    count = np.bincount(ring.ravel())
    means = [np.bincount(ring.ravel(), channel.ravel()) / count for channel in power]
    return np.stack(means)[:, ring] + 1e-12


def water_fill(power: np.ndarray, noise: float, energy: float) -> np.ndarray:
    """Return max(0, sqrt(noise power / level) - noise), of sum ``energy``, by bisection."""
    low, high = -60.0, 60.0
    for _ in range(100):
        middle = (low + high) / 2
        sent = np.maximum(np.sqrt(noise * power / np.exp(middle)) - noise, 0)
        low, high = (middle, high) if sent.sum() > energy else (low, middle)
    return sent


def reference(
    clients: list[np.ndarray], public: np.ndarray, sigma: float, clip_norm: float = 10.0
) -> np.ndarray:
    """Return the PSNR in dB of every image.

    Args:
        clients: batches, B 3 H W in [0, 1].
        public: images of no client, N 3 H W.
        sigma: standard deviation of the noise on every coordinate.
        clip_norm: C of one clip over the batch.
    """
    mean = public.mean((0, 2, 3))[:, None, None]
    power = ring_means((np.abs(to_spectrum(public - mean)) ** 2).mean(0))
    energy = clip_norm**2 / len(clients[0])
    gain = np.sqrt(water_fill(power, sigma**2, energy) / power)
    random = np.random.default_rng(0)
    values: list[float] = []
    for images in clients:
        code = gain * to_spectrum(images - mean)
        clip = clip_norm / np.linalg.norm(code)
        # white noise of the same level in the code's real picture
        noise = np.fft.fft2(sigma * random.standard_normal(images.shape), norm="ortho")
        total = clip * gain
        wiener = total * power / (total**2 * power + sigma**2)
        found = np.clip(from_spectrum(wiener * (clip * code + noise)) + mean, 0, 1)
        errors = ((found - images) ** 2).mean((1, 2, 3))
        values += list(-10 * np.log10(errors))
    return np.array(values)


def load(root: str, masks: str | None, num_clients: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the batches that the command line attacks with seed 0, and 48 public images."""
    data = ImageNetDataModule(
        root=root,
        batch_size=16,
        num_clients=num_clients,
        num_public=48,
        masks=MaskFolder(masks) if masks else None,
    )
    data.setup()
    clients = [data.client(index).images.double().numpy() for index in range(num_clients)]
    return clients, data.public_images().double().numpy()


def main() -> None:
    """Print one line a noise level."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", required=True, help="ImageNet, folders by WordNet id")
    parser.add_argument("--masks", help="folder with subject masks; without: whole images")
    parser.add_argument("--clients", type=int, default=5)
    arguments = parser.parse_args()
    clients, public = load(arguments.root, arguments.masks, arguments.clients)
    for sigma in SIGMAS:
        psnr = reference(clients, public, sigma)
        passed = (psnr >= RECOVERED_PSNR).mean()
        print(f"sigma {sigma:g}: {psnr.mean():.2f} dB; {passed:.1%} above {RECOVERED_PSNR:g} dB")


if __name__ == "__main__":
    main()
