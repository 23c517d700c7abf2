"""The table of docs/local_steps.md, Rounds: one client that takes part in several rounds.

    python -m benchmarks.rounds_table --root data/imagenet --clients 20
    python -m benchmarks.rounds_table --root data/imagenet --clients 20 --local

Batches of 16, one clip of every update to 10, Gaussian noise, fresh in every round; Wiener's
filter throughout.  "averaging" is what the mean of so many rounds of one payload comes to: one
round at a noise smaller by the root of their number.  "others" is the control: after the first
round the client holds another batch; the first one is still to be shown as one round shows it, and
the rows of the later rounds are to be seen to be of new images.  An image that does not come back
counts with the public mean image.  Each client's figures are kept in --records, and are not
measured again.
"""

import argparse
import json
import math
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.coded_table import BATCH_SIZE, shown
from benchmarks.fedavg_table import CLIP_NORM, make_target
from benchmarks.records import Records
from benchmarks.spectral_table import line
from lightning_recon.attacks import SpectralLDPAttack
from lightning_recon.attacks.spectral.local_payload import LocalPayload
from lightning_recon.attacks.spectral.payload import RowsPayload
from lightning_recon.clients import Client, FedAvg, FedSGD
from lightning_recon.data import ImageNetDataModule
from lightning_recon.defenses import ClipL2, GaussianNoise
from lightning_recon.functional.image_quality import psnr
from lightning_recon.observation import Observation


class Watched(SpectralLDPAttack):
    """The attack, and what it knew after every round but the last."""

    def learn_public(self, images: Tensor) -> None:
        """Begin anew."""
        super().learn_public(images)
        self.seen: list[Tensor] = []

    def next_payload(self, observation: Observation) -> RowsPayload:
        """Return the next payload, and keep the images that it holds."""
        payload = super().next_payload(observation)
        assert isinstance(payload, LocalPayload)
        assert payload.known is not None
        self.seen.append(payload.known.images[1:])
        return payload


def make(sigma: float, num_rounds: int, client: Client, target: str) -> Watched:
    """Return the attack on clients that take part in so many rounds."""
    defenses = [ClipL2(CLIP_NORM), GaussianNoise(sigma)]
    return Watched(
        make_target(target, None), client, defenses, num_rounds=num_rounds, shrinkage_steps=0
    )


class Measurement:
    """What is measured of one client after the other.

    Args:
        data: who holds what.
        sigma: standard deviation of the noise.
        rounds: numbers of rounds to show.
        client: the protocol.
        target: name of the target.
    """

    def __init__(
        self, data: ImageNetDataModule, sigma: float, rounds: list[int], client: Client, target: str
    ) -> None:
        self.data = data
        self.rounds = rounds
        self.public = data.public_images()
        self.most = make(sigma, max(rounds), client, target)
        self.least = make(sigma, min(number for number in rounds if number > 1), client, target)
        self.means = {
            number: make(sigma / math.sqrt(number), 1, client, target) for number in rounds
        }
        self._bound: set[int] = set()

    def _scores(self, attack: Watched, images: Tensor, number: int) -> list[float]:
        truth = self.data.client(number).images
        return psnr(shown(images, truth, self.public.mean(0)), truth).tolist()

    def _play(
        self, attack: Watched, number: int, *, others: bool = False
    ) -> tuple[Tensor, dict[str, float]]:
        if id(attack) not in self._bound:
            attack.bind(self.data.spec, self.public)
            self._bound.add(id(attack))
        attack.seen.clear()
        batch = self.data.client(number)
        later = [self.data.client((number + 1) % self.data.num_clients)] if others else []
        with attack.computing():
            images, evidence = attack.initialize(attack.federation.play(batch, number, later=later))
        return images, evidence.notes

    def feedback(self, number: int) -> dict[str, object]:
        """Return the PSNR of each image after every round."""
        images, notes = self._play(self.most, number)
        after = [self._scores(self.most, one, number) for one in [*self.most.seen, images]]
        return {"psnr": after, "known": notes["rows_of_known"], "new": notes["rows_of_new"]}

    def others(self, number: int) -> dict[str, object]:
        """Return the PSNR of each image of the first round, where other images came later."""
        images, notes = self._play(self.least, number, others=True)
        scores = self._scores(self.least, images, number)
        return {"psnr": scores, "known": notes["rows_of_known"], "new": notes["rows_of_new"]}

    def averaging(self, number: int, rounds: int) -> list[float]:
        """Return the PSNR of each image, had so many rounds been averaged."""
        attack = self.means[rounds]
        return self._scores(attack, self._play(attack, number)[0], number)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", default="data/imagenet", help="ImageNet, folders by WordNet id")
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="number of the first client")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--target", default="resnet18", help="convnet, or torchvision's name")
    parser.add_argument("--sigma", type=float, default=0.02)
    parser.add_argument("--rounds", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--local", action="store_true", help="an epoch of 4 steps, momentum .9")
    parser.add_argument("--records", type=Path, default=Path("rounds_table.jsonl"))
    arguments = parser.parse_args()
    records = Records(arguments.records)
    clients = range(arguments.first, arguments.first + arguments.clients)
    data = ImageNetDataModule(
        root=arguments.root,
        batch_size=BATCH_SIZE,
        num_clients=clients.stop + 1,
        num_public=64,
        image_size=arguments.image_size,
    )
    data.setup()
    client = FedAvg(0.1, 1, 4, 0.9, weight_decay=5e-4) if arguments.local else FedSGD()
    rounds = arguments.rounds
    measured = Measurement(data, arguments.sigma, rounds, client, arguments.target)
    names = ("image_size", "target", "sigma", "rounds", "local")
    settings = [vars(arguments)[name] for name in names] + [data.num_clients]

    def get(part: str, number: int, *values: int) -> object:
        key = json.dumps([settings, part, number, *values])
        return records.get(key, lambda: getattr(measured, part)(number, *values))

    found = [get("feedback", number) for number in clients]
    control = [get("others", number) for number in clients]
    names_shown = ["rounds", "averaging", "feedback", "worst", "rows of known", "rows of new"]
    line(names_shown)
    line(["---"] * len(names_shown))
    for number in rounds:
        mean = torch.tensor([get("averaging", one, number) for one in clients])
        scores = torch.tensor([record["psnr"][number - 1] for record in found])
        cells = [str(number), f"{mean.mean():.2f}", f"{scores.mean():.2f}", f"{scores.min():.2f}"]
        is_last = number == max(rounds)
        cells += [_sum(found, part) if is_last else "" for part in ("known", "new")]
        line(cells)
    scores = torch.tensor([record["psnr"] for record in control])
    cells = [f"{scores.mean():.2f}", f"{scores.min():.2f}"]
    cells += [_sum(control, part) for part in ("known", "new")]
    line([f"{measured.least.num_rounds}, others", "", *cells])


def _sum(records: list[dict[str, float]], name: str) -> str:
    return str(int(sum(record[name] for record in records)))


if __name__ == "__main__":
    main()
