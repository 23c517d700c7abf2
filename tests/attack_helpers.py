"""What tests of attacks share."""

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
