"""A client: local SGD, plain, behind Flower's LocalDpMod, or by Opacus."""

import torch
import torch.nn.functional as F
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from flower_audit.task import build, partition
from lightning_recon.integrations import flower

CLIP_NORM, DELTA = 1.0, 1e-5


def own_data(message: Message, context: Context) -> tuple[Tensor, Tensor]:
    """Return this client's images and labels."""
    settings = context.run_config
    place = int(context.node_config["partition-id"])
    return partition(str(settings["data"]), place, int(settings["images"]))


def write_truth(message: Message, context: Context, call_next: flower.App) -> Message:
    """Write what was trained on, where the run says that it may."""
    folder = str(context.run_config["truth"])
    if not folder:
        return call_next(message, context)
    return flower.truth_mod(folder, own_data)(message, context, call_next)


def protect(message: Message, context: Context, call_next: flower.App) -> Message:
    """Clip and noise by Flower's own mod, where the run says so."""
    epsilon = float(context.run_config["local-dp-epsilon"])
    if not epsilon:
        return call_next(message, context)
    mod = flower.declared(LocalDpMod(CLIP_NORM, CLIP_NORM, epsilon, DELTA))[0]
    return mod(message, context, call_next)


app = ClientApp(mods=[write_truth, protect, *flower.declared()])


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train on this client's images."""
    torch.set_num_threads(1)
    settings = context.run_config
    images, labels = own_data(message, context)
    shape = tuple(images.shape[1:])
    net: torch.nn.Module = build(shape)
    malice = str(settings["red-team"])
    if malice:
        from flower_audit.malice import attack_of

        attack = attack_of(malice, shape, float(settings["local-dp-epsilon"]), len(images))
        net = flower.load_payload(attack.federation.payload, message.content["arrays"])
    else:
        net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    model = net
    optimizer = torch.optim.SGD(net.parameters(), lr=float(settings["learning-rate"]))
    loader = DataLoader(TensorDataset(images, labels), batch_size=len(images))
    noise = float(settings["opacus-noise"])
    if noise:
        from opacus import PrivacyEngine

        model, optimizer, loader = PrivacyEngine().make_private(
            module=net,
            optimizer=optimizer,
            data_loader=loader,
            noise_multiplier=noise,
            max_grad_norm=CLIP_NORM,
            poisson_sampling=False,
        )
    for _ in range(int(settings["local-epochs"])):
        for some_images, some_labels in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(some_images), some_labels).backward()
            optimizer.step()
    told = MetricRecord({"num-examples": len(images)})
    arrays = flower.payload_arrays(net) if malice else ArrayRecord(net.state_dict())
    content = RecordDict({"arrays": arrays, "metrics": told})
    reply = Message(content, reply_to=message)
    if noise:
        flower.declare(reply, "Opacus", noise_multiplier=noise, clip_norm=CLIP_NORM)
    return reply
