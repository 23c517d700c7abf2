"""The command ``audit``: from a capture to a verdict."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_recon.captures import Capture
from lightning_recon.data import ImageFolderDataModule, SampleImagesDataModule
from lightning_recon.errors import InputError
from lightning_recon.files import expanded
from lightning_recon.functional.image_size import check_comparable
from lightning_recon.functional.stateless import left_as_found
from lightning_recon.runs.captured import audit_capture, output_folder
from lightning_recon.targets.importing import imported_module, json_arguments
from lightning_recon.verdict import Auditor, Setting

_NUM_PUBLIC = 256


def audit(options: Any) -> str:
    """Audit a capture as the command line says, and return what is to be printed.

    Args:
        options: of the command, by name.

    Raises:
        InputError: if something cannot be used.
    """
    capture = Capture(expanded(options.capture))
    shape = _image_shape(capture, options.image_shape)
    make = imported_module(options.model, json_arguments(options.model_args))
    model = make()
    mean, std = _normalisation(options.normalize, shape[0])
    public, of_whom = _public(options.public, shape)
    truth = None if options.truth is None else expanded(options.truth)
    if truth is not None and not truth.is_dir():
        raise InputError(f"there is no folder {truth}; see --truth")
    settings = {
        "capture": str(capture.folder),
        "model": options.model,
        "model arguments": options.model_args,
        "image shape": list(shape),
        "mean": mean,
        "std": std,
        "learning rate": options.lr,
        "batch size": options.batch_size,
        "steps": options.steps,
        "public images": of_whom,
        "effort": options.effort,
        "seed": options.seed,
        "truth": None if truth is None else str(truth),
    }
    if options.estimate:
        if truth is None:
            raise InputError("--estimate is of a client whose images are known; add --truth FOLDER")
        settings["estimate"] = True
    if options.mode is not None:  # an audit that was begun without the option goes on
        settings["mode"] = options.mode
    auditor = Auditor(
        model,
        _num_classes(model, shape),
        Setting(shape, public, options.effort, options.seed),
        mean=mean,
        std=std,
        learning_rate=options.lr,
        batch_size=options.batch_size,
        steps=options.steps,
        mode=options.mode,
    )
    folder = (
        output_folder(capture.folder, settings, Path("lightning_logs").absolute())
        if options.output is None
        else expanded(options.output)
    )
    found = audit_capture(capture, auditor, folder, settings, truth)
    return _words(found, folder)


def _words(found: Mapping[str, Any], folder: Path) -> str:
    """Return the verdicts for a terminal."""
    lines = []
    for client in found["clients"]:
        lines.append(f"{client['name']}: {client['verdict'].upper()}: {client['reason']}")
        lines += [f"  {finding['kind']}: {finding['text']}" for finding in client["findings"]]
        if client["truth"]:
            truth = client["truth"]
            lines.append(f"  by the truth: {truth['right']} of {truth['num_images']} images right")
            if estimate := truth.get("local_estimate"):
                lines.append(
                    "  by the mean squared error: mean image {psnr_mean_image:.1f} dB, best attack "
                    "{psnr_attack:.1f} dB, a linearised attacker {psnr:.1f} dB; no bound".format(
                        **estimate
                    )
                )
    return "\n".join([*lines, f"report: {folder / 'report.html'}"])


def _image_shape(capture: Capture, given: list[int] | None) -> tuple[int, int, int]:
    """Return C, H, W, as the command line or the capture has it."""
    shape: Any = given or capture.facts.get("image_shape")
    for path in [] if shape else capture.files:
        with suppress(InputError):  # told when the reply is audited
            if shape := capture.said(path).get("image_shape"):
                break
    if not shape:
        raise InputError(
            "the capture does not say what images the model takes; add --image-shape C H W, such "
            "as --image-shape 3 32 32"
        )
    if len(shape) != 3 or not all(isinstance(size, int) and size > 0 for size in shape):
        raise InputError(f"--image-shape should be C H W, three numbers above 0, not {shape}")
    channels, height, width = shape
    check_comparable(height, width)
    return channels, height, width


def _num_classes(model: nn.Module, shape: tuple[int, int, int]) -> int:
    """Return how many logits a model gives."""
    parameter = next(model.parameters(), None)
    if parameter is None:
        raise InputError("the model has no parameters; nothing of it can be sent")
    try:
        with left_as_found(model, training=False, keeps_buffers=True), torch.no_grad():
            output = model(torch.zeros(2, *shape).to(parameter))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"the model does not take images of {'x'.join(map(str, shape))}: {reason}; see "
            "--image-shape"
        ) from error
    if not isinstance(output, Tensor) or output.ndim != 2:
        raise InputError(
            f"the model gives a {type(output).__name__}, not logits, B x classes; name one that "
            "returns the logits alone (docs/python.md)"
        )
    return output.shape[1]


def _normalisation(
    given: list[str] | None, channels: int
) -> tuple[list[float] | None, list[float] | None]:
    """Return mean and standard deviation a channel, of ``--normalize M S``."""
    if given is None:
        return None, None
    both = []
    for text in given:
        try:
            numbers = [float(part) for part in text.split(",")]
        except ValueError as error:
            raise InputError(
                f"--normalize takes a mean and a standard deviation, numbers or lists such as "
                f".49,.48,.45, not {text}"
            ) from error
        if len(numbers) not in (1, channels):
            raise InputError(
                f"--normalize: {text} has {len(numbers)} numbers for {channels} channels"
            )
        both.append(numbers)
    return both[0], both[1]


def _public(root: str | None, shape: tuple[int, int, int]) -> tuple[Tensor, str]:
    """Return public images and where they are from."""
    channels, height, width = shape
    if channels not in (1, 3):
        images = torch.rand(_NUM_PUBLIC, *shape, generator=torch.Generator().manual_seed(0))
        return images, "noise: there are no photographs of so many channels"
    sizes: dict[str, Any] = {"image_size": [height, width], "channels": channels, "batch_size": 1}
    data: Any
    if root is None:
        data = SampleImagesDataModule(root="", num_clients=1, num_public=_NUM_PUBLIC, **sizes)
    else:
        data = ImageFolderDataModule(
            root=root, num_clients=1, num_public=_NUM_PUBLIC, resize="crop", **sizes
        )
    data.setup()
    images = data.public_images()
    if len(images) < 4:
        raise InputError(f"--public {root}: at least 5 images are needed")
    return images, data.describe()
