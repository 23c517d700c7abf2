"""The packages: those of lightning_recon, and two folders beside it that go into the wheel."""

from setuptools import find_packages, setup

BESIDE = {f"lightning_recon.{name}": name for name in ("configs", "requirements")}

setup(packages=[*find_packages(include=["lightning_recon*"]), *BESIDE], package_dir=BESIDE)
