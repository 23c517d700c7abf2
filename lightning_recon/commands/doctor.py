"""What is installed, which devices there are, and which data and checkpoints are found."""

import os
import platform
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

from packaging.requirements import Requirement
from rich.console import Console
from rich.text import Text

from lightning_recon import __version__
from lightning_recon.commands.shipped import shipped
from lightning_recon.documents import read_yaml
from lightning_recon.errors import InputError
from lightning_recon.files import expanded

_OPTIONAL = {
    "pytest": "the tests",
    "hypothesis": "the tests",
    "ruff": "the checks",
    "mypy": "the checks",
    "import-linter": "the checks",
    "setuptools": "the tests",
    "pytest-xdist": "the tests",
    "mkdocs-material": "the site",
    "mkdocstrings": "the site",
    "nbclient": "the notebook",
    "ipykernel": "the notebook",
    "shtab": "completion at the Tab key",
    "segment-anything": "masks by Segment Anything",
    "opencv-python-headless": "masks by GrabCut",
    "scikit-image": "the sample photographs",
    "scikit-learn": "the sample photographs",
    "matplotlib": "the figures of sweeps",
    "tensorboard": "TensorBoard, in whose place metrics.csv stands",
}
"""Packages that not every audit needs, and what does."""
_INPUTS = {"root": "data", "folder": "data", "checkpoint": "checkpoints", "weights": "checkpoints"}
"""Keys of the configurations that name files to bring along, and the heading to show them under."""
_STAND_INS = {
    "samples": "sample photographs are used",
    "grabcut": "GrabCut makes the masks",
}
"""By ``on_missing``: what happens without the files."""
_COLOURS = {"ok": "green", "missing": "yellow", "none": "yellow", "BROKEN": "bold red"}


class Finding(NamedTuple):
    """One line of the doctor's, and what to do about it."""

    status: Literal["ok", "missing", "none", "BROKEN"]
    text: str
    advice: str | None = None


class NamedInput(NamedTuple):
    """A file or folder that a configuration names."""

    heading: str
    path: str
    class_name: str | None
    """Class that reads it."""
    options: dict[str, Any]
    """Of that class."""


def doctor(configs: Path) -> int:
    """Print all findings.

    Args:
        configs: folder with the configurations whose data and checkpoints are looked for; paths
            in them are relative to the working directory, as in a run.

    Returns:
        The exit code: 1 if something is broken that every audit needs, or data are there that
        cannot be read, else 0.

    Raises:
        InputError: if there is no such folder.
    """
    if not configs.is_dir():
        raise InputError(f"no folder {configs.absolute()}; give one with configurations, --configs")
    files = [shipped("requirements") / name for name in ("run.txt", "dev.txt")]
    texts = [file.read_text(encoding="utf-8") for file in files if file.is_file()]
    packages = check_packages("".join(texts))
    sections = {"packages": packages}
    try:
        sections["devices"] = check_devices()
        sections |= check_inputs(configs)
    except ImportError as error:
        advice = "install it first; devices, data and checkpoints were not looked at"
        packages.append(Finding("BROKEN", f"import fails: {error}", advice))
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"lightning_recon {__version__}, Python {platform.python_version()}")
    for heading, findings in sections.items():
        console.print(f"\n{heading}", style="bold", markup=False)
        for finding in findings:
            status = Text(f"  {finding.status:<8}", style=_COLOURS[finding.status])
            console.print(status + Text(finding.text))
            if finding.advice:
                console.print(f"          {finding.advice}", markup=False)
    is_broken = any(found.status == "BROKEN" for part in sections.values() for found in part)
    return 1 if is_broken else 0


def check_packages(requirements: str) -> list[Finding]:
    """Compare what is installed with the lines of files of requirements."""
    findings = []
    for line in requirements.splitlines():
        wanted, _, reason = (part.strip() for part in line.partition("#"))
        if not wanted:
            continue
        requirement = Requirement(wanted)
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        use = _OPTIONAL.get(requirement.name)
        bad: Literal["missing", "BROKEN"] = "BROKEN" if use is None else "missing"
        why = f"only for {use}" if use else reason or "every audit needs it"
        advice = f"pip install -r requirements.txt ({why})"
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            findings.append(Finding(bad, f"{wanted} is not installed", advice))
            continue
        if requirement.specifier.contains(version, prereleases=True):
            findings.append(Finding("ok", f"{requirement.name} {version}"))
        else:
            text = f"{requirement.name} {version}, but {requirement.specifier} is needed"
            findings.append(Finding(bad, text, advice))
    return findings


def check_devices() -> list[Finding]:
    """Look at what attacks can run on."""
    import torch

    threads, cores = torch.get_num_threads(), os.cpu_count()
    findings = [Finding("ok", f"CPU: {threads} threads on {cores} cores")]
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        text = f"CUDA {index}: {device.name}, {device.total_memory / 2**30:.0f} GiB"
        findings.append(Finding("ok", text))
    if not torch.cuda.is_available():
        built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "has no CUDA"
        advice = "attacks run on the CPU; for a GPU see https://pytorch.org/get-started/locally"
        findings.append(
            Finding("none", f"CUDA: no device; torch {torch.__version__} {built}", advice)
        )
    is_mps = torch.backends.mps.is_available()
    findings.append(Finding("ok" if is_mps else "none", "MPS (Apple)" + ("" if is_mps else ": no")))
    return findings


def check_inputs(configs: Path) -> dict[str, list[Finding]]:
    """Look for the data and checkpoints that the configurations name.

    Args:
        configs: folder of YAML files, searched through.

    Returns:
        Findings by heading.
    """
    users: dict[tuple[str, str, str | None], list[str]] = {}
    first: dict[tuple[str, str, str | None], NamedInput] = {}
    sections: dict[str, list[Finding]] = {"data": [], "checkpoints": []}
    for file in sorted(configs.rglob("*.yaml")):
        try:
            content = read_yaml(file)
        except InputError as error:
            sections["data"].append(Finding("BROKEN", str(error)))
            continue
        for found in _named_inputs(content):
            key = (found.heading, found.path, found.class_name)
            first.setdefault(key, found)
            users.setdefault(key, []).append(str(file.relative_to(configs).with_suffix("")))
    for key, found in first.items():
        sections[found.heading].append(_look_for(found, sorted(set(users[key]))))
    return sections


def _named_inputs(node: Any, class_name: str | None = None) -> Iterator[NamedInput]:
    """Walk through a configuration."""
    if isinstance(node, list):
        for entry in node:
            yield from _named_inputs(entry, class_name)
    if not isinstance(node, dict):
        return
    if isinstance(node.get("class_path"), str):
        class_name = node["class_path"].rpartition(".")[2]
    for key, value in node.items():
        heading = _INPUTS.get(str(key).rpartition(".")[2])
        if heading and isinstance(value, str):
            yield NamedInput(heading, value, class_name, node)
        else:
            yield from _named_inputs(value, class_name)


def _look_for(wanted: NamedInput, users: Sequence[str]) -> Finding:
    from lightning_recon import data

    path = expanded(wanted.path)
    named = getattr(data, wanted.class_name or "", None)
    is_data_set = isinstance(named, type) and issubclass(named, data.ClientDataModule)
    data_set: Any = named if is_data_set else None
    shown = ", ".join(users[:3]) + (f" and {len(users) - 3} more" if len(users) > 3 else "")
    expected = "see checkpoints/README.md" if wanted.heading == "checkpoints" else "put it there"
    if data_set is not None:
        expected = f"expected {data_set.expected}"
        try:
            source = data_set(**_plain(wanted.options)).open_source(path)
        except (InputError, TypeError) as error:
            return Finding("BROKEN", f"{wanted.path}: {error}", f"used by {shown}")
        if source is not None and len(source):
            return Finding("ok", f"{wanted.path}: {len(source)} images for {shown}")
    elif path.exists():
        return Finding("ok", f"{wanted.path} for {shown}")
    until_then = _STAND_INS.get(str(wanted.options.get("on_missing")), "nothing of that runs")
    return Finding(
        "missing",
        f"{wanted.path}: would enable {shown}; until then {until_then}",
        f"looked for {path}; {expected}",
    )


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    """The options that are no objects, such as masks, which take no part in finding images."""
    return {
        name: value
        for name, value in options.items()
        if not (isinstance(value, dict) and "class_path" in value)
    }
