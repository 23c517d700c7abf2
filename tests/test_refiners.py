"""Refiners: what passes through them, and files of weights."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from lightning_recon.errors import InputError
from lightning_recon.priors import FFDNet
from lightning_recon.refiners import (
    AverageRefiner,
    ChainedRefiner,
    ConditionalGenerator,
    DenoisingRefiner,
    SuperResolution,
    UNetDenoiser,
)
from lightning_recon.refiners.base import decode, encode


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def perturbed(refiner):
    """Move every tensor away from where it begins, so that each has a say in the result."""
    generator = torch.Generator().manual_seed(5)
    for tensor in refiner.state_dict().values():
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=generator)
            tensor.copy_(0.9 * tensor + 0.2 * (noise - 0.5))
    return refiner


def small_refiners():
    ffdnet = FFDNet(num_layers=3, num_features=4)
    network = perturbed(SuperResolution(num_blocks=2, num_features=4))
    generator = perturbed(ConditionalGenerator(num_classes=5, width=2))
    denoiser = perturbed(UNetDenoiser(width=2))
    return {
        "super-resolution": network,
        "generator": generator,
        "U-Net": denoiser,
        "U-Net on the image": perturbed(UNetDenoiser(width=2, scale=1)),
        "FFDNet": DenoisingRefiner(ffdnet, noise_std=0.1),
        "chain": ChainedRefiner([denoiser, network]),
        "average": AverageRefiner([generator, network]),
    }


class TestLatents:
    def test_a_decoded_latent_is_found_again(self):
        latents = 0.3 + 0.4 * random(2, 3, 8, 12)
        images = decode(latents, 4)
        assert images.shape == (2, 3, 32, 48)
        torch.testing.assert_close(encode(images, 4), latents, atol=1e-5, rtol=0)

    def test_no_other_latent_comes_closer(self):
        images = random(1, 1, 16, 24)
        # every pixel of the latent on its own, decoded, is a column of the least-squares problem
        columns = F.interpolate(torch.eye(24).view(24, 1, 4, 6), scale_factor=4, mode="bicubic")
        found = torch.linalg.lstsq(columns.flatten(1).T, images.flatten()[:, None]).solution
        torch.testing.assert_close(encode(images, 4).flatten(), found[:, 0], atol=1e-5, rtol=0)

    def test_decoding_stays_in_range(self):
        decoded = decode(torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(1, 1, 4, 4), 4)
        assert decoded.min() == 0
        assert decoded.max() == 1
        assert torch.equal(
            decode(torch.tensor([[[[-0.5, 2.0]]]]), 1).flatten(), torch.tensor([0, 1.0])
        )

    def test_sides_must_be_multiples(self):
        with pytest.raises(InputError, match="multiples of 4, not 18x16; take images"):
            encode(torch.zeros(1, 3, 18, 16), 4)


class TestRefiners:
    @pytest.mark.parametrize("name", list(small_refiners()))
    def test_contract(self, name):
        refiner = small_refiners()[name]
        images, labels = random(3, 3, 64, 128), torch.tensor([1, 4, 0])
        kept = images.clone()
        with torch.no_grad():
            refined = refiner(images, labels)
            assert refined.shape == images.shape
            assert refined.dtype == torch.float32
            assert 0 <= refined.min() < refined.max() <= 1
            assert torch.equal(refiner(images, labels), refined)
            assert torch.equal(images, kept)
            # an image's result depends on that image and its label alone
            alone = torch.cat([refiner(images[n : n + 1], labels[n : n + 1]) for n in range(3)])
            torch.testing.assert_close(alone, refined, atol=1e-5, rtol=0)
            without = refiner(images)
        assert without.shape == images.shape
        is_conditional = name in {"generator", "average"}
        assert torch.equal(without, refined) != is_conditional
        assert not any(module.training for module in refiner.modules())

    @pytest.mark.parametrize("scale", [1, 2, 4])
    def test_an_untrained_super_resolution_decodes_the_latent(self, scale):
        images = decode(0.2 + 0.5 * random(1, 3, 8, 8), scale)
        with torch.no_grad():
            refined = SuperResolution(num_blocks=1, num_features=4, scale=scale)(images)
        torch.testing.assert_close(refined, images, atol=1e-5, rtol=0)

    def test_super_resolution_is_the_mean_over_the_orientations(self):
        images = decode(0.4 + 0.2 * random(1, 3, 8, 12), 4)
        refiner = SuperResolution(num_blocks=1, num_features=4)
        torch.nn.init.normal_(refiner.tail.weight, std=0.005)
        with torch.no_grad():
            refined = refiner(images)
            assert not torch.allclose(refined, images, atol=1e-3)
            for turns in range(4):
                turned = torch.rot90(refiner(torch.rot90(images, turns, (2, 3))), -turns, (2, 3))
                torch.testing.assert_close(turned, refined, atol=1e-5, rtol=0)
            torch.testing.assert_close(refiner(images.flip(3)).flip(3), refined, atol=1e-5, rtol=0)
            refiner.train()
            single = [
                refiner(images), refiner(images.flip(3)).flip(3), refiner(images.flip(2)).flip(2),
                refiner(images.flip(2, 3)).flip(2, 3),
            ]  # fmt: skip
            across = images.mT
            single += [
                refiner(across).mT, refiner(across.flip(3)).flip(3).mT,
                refiner(across.flip(2)).flip(2).mT, refiner(across.flip(2, 3)).flip(2, 3).mT,
            ]  # fmt: skip
        assert not torch.allclose(single[0], refined, atol=1e-3)
        torch.testing.assert_close(torch.stack(single).mean(dim=0), refined, atol=1e-5, rtol=0)

    def test_untrained_u_nets_are_about_the_identity(self):
        images = decode(0.3 + 0.4 * random(2, 3, 16, 16), 4)
        with torch.no_grad():
            for refiner in (UNetDenoiser(width=2), ConditionalGenerator(width=2)):
                assert (refiner(images) - images).abs().mean() < 0.06

    def test_a_class_that_was_never_trained_is_the_average_one(self):
        generator = ConditionalGenerator(num_classes=3, width=2)
        with torch.no_grad():
            generator.norms[0].gain.weight[1] = 1
            images = random(1, 3, 64, 64)
            unknown, untrained, trained = (
                generator(images, labels) for labels in (None, torch.tensor([0]), torch.tensor([1]))
            )
        assert torch.equal(unknown, untrained)
        assert not torch.equal(unknown, trained)

    def test_chain_average_and_ffdnet_by_hand(self):
        images = decode(random(2, 3, 8, 8), 4)
        ffdnet = FFDNet(num_layers=3, num_features=4)
        torch.nn.init.normal_(ffdnet.layers[-1].weight, std=0.1)
        first = DenoisingRefiner(ffdnet, noise_std=0.2)
        second = perturbed(SuperResolution(num_blocks=1, num_features=4))
        with torch.no_grad():
            latents = ffdnet(encode(images, 4), torch.tensor([0.2]))
            denoised = F.interpolate(latents, scale_factor=4, mode="bicubic").clamp(0, 1)
            assert torch.equal(first(images), denoised)
            assert torch.equal(ChainedRefiner([first, second])(images), second(denoised))
            mean = (denoised + second(images)) / 2
            torch.testing.assert_close(AverageRefiner([first, second])(images), mean)

    @pytest.mark.parametrize(
        ("make", "words"),
        [
            (lambda: SuperResolution(scale=0), "SuperResolution: scale must be at least 1, not 0"),
            (lambda: SuperResolution(num_blocks=0), "num_blocks and num_features must be"),
            (lambda: UNetDenoiser(width=0), "UNetDenoiser: width and num_classes must be"),
            (lambda: ConditionalGenerator(num_classes=0), "must be at least 1, not 64 and 0"),
            (lambda: DenoisingRefiner(FFDNet(None, 2, 2), 0.0), "noise_std must be above 0"),
            (lambda: ChainedRefiner([]), "ChainedRefiner: refiners must name at least one"),
            (lambda: AverageRefiner([]), "AverageRefiner: refiners must name at least one"),
            (
                lambda: ConditionalGenerator(num_classes=2, width=1)(
                    torch.zeros(2, 3, 64, 64), torch.tensor([0, 2])
                ),
                "labels from 0 to 2, but its num_classes is 2",
            ),
            (
                lambda: UNetDenoiser(width=1)(torch.zeros(1, 3, 32, 32)),
                "UNetDenoiser takes sides that are multiples of 8 and at least 16, not 8x8",
            ),
        ],
    )
    def test_bad_input(self, make, words):
        with pytest.raises(InputError, match=words) as caught:
            make()
        assert "\n" not in str(caught.value)


def authors_tensors(width: int, num_classes: int | None) -> dict[str, torch.Tensor]:
    """Tensors by the names and shapes of the released networks, at any width."""
    w = width
    convolution, transposed = (
        ("conv", "convT") if num_classes else ("conv_block.0", "convT_block.0")
    )
    shapes = {
        "Conv1": (w, 3, 5), "Conv2": (2 * w, w, 3), "Conv3": (4 * w, 2 * w, 3),
        "Conv4": (8 * w, 4 * w, 3), "ConvT1": (8 * w, 8 * w, 4), "Conv5": (8 * w, 8 * w, 3),
        "ConvT2": (12 * w, 12 * w, 4), "Conv6": (4 * w, 12 * w, 3), "ConvT3": (6 * w, 6 * w, 4),
        "Conv7": (2 * w, 6 * w, 3), "Conv8": (w, 3 * w, 3), "Conv9": (3, 3 + w, 3),
    }  # fmt: skip
    state: dict[str, torch.Tensor] = {}
    for seed, (name, (out, channels, side)) in enumerate(shapes.items()):
        inner = "" if name in {"Conv8", "Conv9"} else f".{convolution}"
        inner = f".{transposed}" if "T" in name else inner
        state[f"{name}{inner}.weight"] = random(out, channels, side, side, seed=seed) - 0.5
        state[f"{name}{inner}.bias"] = random(out, seed=100 + seed)
        if num_classes and name in {"ConvT1", "ConvT2", "ConvT3", "Conv5", "Conv6", "Conv7"}:
            for part in ("gain", "bias"):
                table = random(num_classes, out, seed=200 + seed + len(part))
                state[f"{name}.bn.{part}.weight"] = table
            state[f"{name}.bn.stored_mean"] = random(out, seed=300 + seed)
            state[f"{name}.bn.stored_var"] = 0.5 + random(out, seed=400 + seed)
    return state


def authors_output(state, x, labels):
    """The released networks' forward pass, from their tensors."""

    def tensors(name):
        weight, bias = (
            next(v for k, v in state.items() if k.startswith(f"{name}.") and k.endswith(end)
                 and ".bn." not in k)
            for end in (".weight", ".bias")
        )  # fmt: skip
        return weight, bias

    def standard(x):
        mean = x.mean((2, 3), keepdim=True)
        return (x - mean) / (x.var((2, 3), keepdim=True, unbiased=False) + 1e-5).sqrt()

    def by_class(x, name):
        if labels is None:
            return standard(x)
        columns = {
            part: state[f"{name}.bn.{part}"][:, None, None]
            for part in ("stored_mean", "stored_var")
        }
        x = (x - columns["stored_mean"]) / (columns["stored_var"] + 1e-5).sqrt()
        gain, bias = (state[f"{name}.bn.{part}.weight"][labels] for part in ("gain", "bias"))
        return (1 + gain)[:, :, None, None] * x + bias[:, :, None, None]

    down = [F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), *tensors("Conv1"))]
    down[0] = standard(down[0]).clamp(min=0)
    for number in (2, 3, 4):
        y = F.conv2d(down[-1], *tensors(f"Conv{number}"), stride=2, padding=1)
        down.append(standard(y).clamp(min=0))
    y = down[3]
    for number in (1, 2, 3):
        y = F.conv_transpose2d(y, *tensors(f"ConvT{number}"), stride=2, padding=1)
        y = (y if labels is not None else standard(y)).clamp(min=0)
        name = f"Conv{4 + number}"
        y = by_class(F.conv2d(y, *tensors(name), padding=1), name).clamp(min=0)
        y = torch.cat([y, down[3 - number]], dim=1)
    y = F.conv2d(y, *tensors("Conv8"), padding=1)
    return torch.sigmoid(2 * F.conv2d(torch.cat([y, x], dim=1), *tensors("Conv9"), padding=1))


class TestWeights:
    def test_the_authors_generator(self):
        state = authors_tensors(2, 6)
        torch.save({"gen_state_dict": state, "dis_state_dict": {"a": torch.ones(1)}}, "post.pth")
        latents, labels = 0.3 + 0.4 * random(2, 3, 16, 16).double(), torch.tensor([5, 2])
        generator = ConditionalGenerator("post.pth", num_classes=6, width=2).double()
        state = {name: tensor.double() for name, tensor in state.items()}
        with torch.no_grad():
            found = generator(decode(latents, 4), labels)
        enlarged = F.interpolate(latents, scale_factor=4, mode="bilinear")
        expected = authors_output(state, enlarged, labels)
        torch.testing.assert_close(found, expected, atol=1e-8, rtol=0)
        assert expected.std() > 0.05

    def test_the_authors_denoiser(self):
        state = authors_tensors(2, None)
        torch.save({"gen_state_dict": state}, "denoiser.pth")
        latents = 0.3 + 0.4 * random(2, 3, 16, 24).double()
        state = {name: tensor.double() for name, tensor in state.items()}
        with torch.no_grad():
            found = UNetDenoiser("denoiser.pth", width=2).double()(decode(latents, 4))
        expected = decode(authors_output(state, latents, None), 4)
        torch.testing.assert_close(found, expected, atol=1e-8, rtol=0)
        assert expected.std() > 0.05

    def test_the_default_has_the_released_sizes(self):
        shapes = [tuple(x.shape) for x in authors_tensors(64, None).values()]
        assert sorted(shapes) == sorted(tuple(x.shape) for x in UNetDenoiser().parameters())

    @pytest.mark.parametrize("name", ["super-resolution", "generator", "U-Net"])
    def test_own_file(self, name):
        refiner = small_refiners()[name]
        torch.save(refiner.state_dict(), "weights.pth")
        options = {
            "super-resolution": {"num_blocks": 2, "num_features": 4},
            "generator": {"num_classes": 5, "width": 2},
            "U-Net": {"width": 2},
        }
        again = type(refiner)("weights.pth", **options[name])
        images, labels = random(1, 3, 64, 64), torch.tensor([3])
        with torch.no_grad():
            assert torch.equal(again(images, labels), refiner(images, labels))

    @pytest.mark.parametrize(
        ("make", "words"),
        [
            (
                lambda: SuperResolution("unet.pth", num_blocks=1),
                r"unet.pth do not fit the model: it lacks head.weight \(and 9 more\) of "
                r"SuperResolution; SuperResolution of these sizes has no down.0.weight \(and 23",
            ),
            (
                lambda: SuperResolution("network.pth", num_blocks=2, num_features=4),
                r"it lacks blocks.1.first.weight \(and 3 more\) of SuperResolution$",
            ),
            (
                lambda: UNetDenoiser("unet.pth", width=4),
                r"down.0.weight \(and 22 more\) is \(2, 3, 5, 5\) there and \(4, 3, 5, 5\) here",
            ),
            (lambda: UNetDenoiser("network.pth"), "UNetDenoiser of these sizes has no head.weight"),
            (
                lambda: ConditionalGenerator("unet.pth", width=2),
                r"it lacks norms.0.batch_norm.running_mean \(and 11 more\)",
            ),
            (lambda: SuperResolution("none.pth"), "no weights file at"),
            (lambda: SuperResolution("text.pth"), "no readable weights file"),
        ],
    )
    def test_a_checkpoint_of_another_architecture(self, make, words):
        torch.save(UNetDenoiser(width=2).state_dict(), "unet.pth")
        torch.save(SuperResolution(num_blocks=1, num_features=4).state_dict(), "network.pth")
        Path("text.pth").write_text("no weights")
        with pytest.raises(InputError, match=words) as caught:
            make()
        assert "\n" not in str(caught.value)
