"""What tests of attacks share."""

from contract_rows import SIZE

from lightning_recon import data
from lightning_recon.updates import DataSpec


def bind(attack, public, batch_size=1):
    """Bind an attack to public images, N C H W, and return it."""
    attack.bind(DataSpec(tuple(public.shape[1:]), None, batch_size), public)
    return attack


def bind_to(attack, data):
    """Bind an attack to a data module, which stays at hand as ``attack.data``; return it."""
    attack.data = data
    attack.bind(data.spec, data.public_images())
    attack.play = lambda client, *, noise_only=False: attack.data.play(
        attack.federation, client, noise_only=noise_only
    )
    return attack


def bound(attack, batch_size=2):
    """An attack in float64, bound to photographs, and its one client's batch."""
    source = data.SampleImagesDataModule(
        batch_size=batch_size, num_clients=1, image_size=SIZE, num_public=12
    )
    attack = bind_to(attack.double(), source)
    batch = source.client(0)
    return attack, batch._replace(images=batch.images.double())
