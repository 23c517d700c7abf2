"""What an honest client computes on the model that the server sent."""

from lightning_recon.clients.adamw import FedAvgAdamW
from lightning_recon.clients.aggregate import Aggregate
from lightning_recon.clients.base import Client
from lightning_recon.clients.dpsgd import DPSGD
from lightning_recon.clients.fedavg import FedAvg
from lightning_recon.clients.fedsgd import FedSGD
from lightning_recon.clients.mixup import InstaHide, MixUp
from lightning_recon.clients.opacus import OpacusDPSGD
from lightning_recon.clients.soteria import Soteria

__all__ = [
    "DPSGD",
    "Aggregate",
    "Client",
    "FedAvg",
    "FedAvgAdamW",
    "FedSGD",
    "InstaHide",
    "MixUp",
    "OpacusDPSGD",
    "Soteria",
]
