"""Captures of plain training loops, and of processes that average their gradients."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_recon.captures import Capture
from lightning_recon.errors import InputError
from lightning_recon.integrations.torch import record_update, recording_hook

LABELS = torch.tensor([1, 2, 0, 1])


def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.LazyLinear(3))


def ready(seed=0):
    net = make()
    images = torch.rand(4, 1, 6, 6, generator=torch.Generator().manual_seed(seed))
    net(images)
    return net, images


def backward(net, images):
    net.zero_grad()
    F.cross_entropy(net(images), LABELS).backward()


def copied(net):
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def only(folder):
    (reply,) = Capture(folder).replies()
    return reply


def same(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_local_training(tmp_path):
    net, images = ready()
    before = copied(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    backward(net, images)
    optimizer.step()
    facts = {"learning_rate": 0.1, "steps": 1, "batch_size": 4, "image_shape": [1, 6, 6]}
    path = record_update(tmp_path / "a", before=before, after=net, client="me", number=3, **facts)
    reply = only(tmp_path / "a")
    assert path.name == "me.json"
    assert (reply.client, reply.round, reply.facts["kind"]) == ("me", 3, "weights")
    assert reply.facts.items() >= facts.items()
    same(reply.payload, before)
    same(reply.tensors, net.state_dict())


GRADIENTS = {
    "the module": lambda net: (net, None),
    "by name": lambda net: ({n: p.grad for n, p in net.named_parameters()}, None),
    "in order": lambda net: ([p.grad for p in net.parameters()], net),
    "wrapped": lambda net: ({f"module.{n}": p.grad for n, p in net.named_parameters()}, None),
}


@pytest.mark.parametrize("form", GRADIENTS)
def test_gradients(tmp_path, form):
    net, images = ready()
    backward(net, images)
    gradients, model = GRADIENTS[form](net)
    record_update(tmp_path / "a", before=net, gradients=gradients, model=model)
    reply = only(tmp_path / "a")
    assert reply.facts["kind"] == "gradient"
    same(reply.tensors, {name: part.grad for name, part in net.named_parameters()})
    assert "1.running_mean" in reply.facts["missing"]


def test_a_parameter_without_part_and_one_that_is_not_trained(tmp_path):
    net, images = ready()
    net.spare = nn.Linear(2, 2)
    net[1].bias.requires_grad_(False)
    F.cross_entropy(nn.Sequential(*list(net)[:4])(images), LABELS).backward()
    record_update(tmp_path / "a", gradients=net)
    found = only(tmp_path / "a").tensors
    assert "1.bias" not in found
    assert torch.equal(found["spare.weight"], torch.zeros(2, 2))


WRONG = {
    "nothing": (lambda net: {}, "takes after, with before, or gradients"),
    "both": (lambda net: {"before": net, "after": net, "gradients": net}, "or gradients"),
    "no before": (lambda net: {"after": net}, "after needs before"),
    "no names": (lambda net: {"gradients": list(net.parameters())}, "give the model, too"),
    "no gradients": (lambda net: {"gradients": net}, "call backward"),
    "another model": (
        lambda net: {"before": net, "after": {"fc.weight": torch.ones(2)}},
        "nothing takes fc.weight",
    ),
    "too few": (
        lambda net: {"gradients": list(net.parameters())[1:], "model": net}, "holds 5 tensors"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_leaves_nothing(tmp_path, case):
    arguments, words = WRONG[case]
    with pytest.raises(InputError, match=words):
        record_update(tmp_path / "a", **arguments(ready()[0]))
    assert not (tmp_path / "a").exists()


def test_no_steps(tmp_path):
    with pytest.raises(InputError, match="num_steps must be at least 1, not 0"):
        recording_hook(tmp_path, make(), num_steps=0)


PROCESS = """
import os
import sys
sys.path[:0] = {paths}
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from lightning_recon.integrations.torch import recording_hook
from test_torch_integration import backward, ready

rank, folder = int(sys.argv[1]), {folder!r}
distributed.init_process_group(
    "gloo", init_method="file://" + folder + "/meeting", rank=rank, world_size=2
)
averages = {{}}
for name in ("plain", "recorded"):
    net, _ = ready()
    net[1].bias.requires_grad_(False)  # what is not trained is in no bucket
    _, images = ready(seed=rank + 1)
    # small buckets, so that a step has several
    ddp = DistributedDataParallel(net, bucket_cap_mb=0.0001)
    if name == "recorded":
        ddp.register_comm_hook(None, recording_hook(folder + "/capture", ddp, num_steps=2))
    for _ in range(3):
        backward(ddp, images)
        with torch.no_grad():
            for parameter in ddp.parameters():
                if parameter.requires_grad:
                    parameter -= 0.1 * parameter.grad
    averages[name] = [part.grad.clone() for part in ddp.parameters() if part.requires_grad]
assert all(map(torch.equal, averages["plain"], averages["recorded"]))
distributed.destroy_process_group()
os._exit(0)  # the threads of gloo may outlive the interpreter
"""


@pytest.mark.slow
@pytest.mark.alone
def test_processes_that_average(tmp_path):
    """Each process' own gradient is recorded, and the average stays what it was."""
    paths = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
    program = PROCESS.format(paths=paths, folder=str(tmp_path))
    processes = [
        subprocess.Popen([sys.executable, "-c", program, str(rank)], stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    for process in processes:
        _, error = process.communicate(timeout=120)
        assert process.returncode == 0, error.decode()
    replies = {
        (reply.client, reply.round): reply for reply in Capture(tmp_path / "capture").replies()
    }
    assert set(replies) == {("0", 1), ("1", 1), ("0", 2), ("1", 2)}
    for rank in range(2):
        net, _ = ready()
        backward(net, ready(seed=rank + 1)[1])
        own = {name: part.grad for name, part in net.named_parameters() if name != "1.bias"}
        reply = replies[str(rank), 1]
        assert reply.facts["kind"] == "gradient"
        assert list(reply.tensors) == list(own)
        for name, part in own.items():
            assert torch.allclose(reply.tensors[name], part, atol=1e-6)
        for name, part in net.named_parameters():
            assert torch.equal(reply.payload[name], part)
    # the second step begins at the same weights on both
    first, second = (replies[rank, 2].payload for rank in ("0", "1"))
    assert torch.equal(first["0.weight"], second["0.weight"])
    assert not torch.equal(first["0.weight"], replies["0", 1].payload["0.weight"])
