"""Data: fixed clients over images and tables, masks of the subjects, and captured updates."""

from lightning_recon.data.arrays import ArrayDataModule
from lightning_recon.data.base import ClientDataModule
from lightning_recon.data.caltech256 import Caltech256DataModule
from lightning_recon.data.captured import CapturedUpdate, CapturedUpdatesDataModule
from lightning_recon.data.cifar import CIFAR10DataModule, CIFAR100DataModule
from lightning_recon.data.flowers102 import Flowers102DataModule
from lightning_recon.data.folder import ImageFolderDataModule
from lightning_recon.data.imagenet import ImageNetDataModule
from lightning_recon.data.masks import MaskFolder, MaskSource, SubjectMasks
from lightning_recon.data.samples import SampleImagesDataModule
from lightning_recon.data.sharing import AuditDataModule
from lightning_recon.data.sources import ArraySource, FileSource, ImageSource, SquareSource
from lightning_recon.data.tabular import TabularDataModule
from lightning_recon.data.torchvision_sets import TorchvisionDataModule

__all__ = [
    "ArrayDataModule",
    "ArraySource",
    "AuditDataModule",
    "CIFAR10DataModule",
    "CIFAR100DataModule",
    "Caltech256DataModule",
    "CapturedUpdate",
    "CapturedUpdatesDataModule",
    "ClientDataModule",
    "FileSource",
    "Flowers102DataModule",
    "ImageFolderDataModule",
    "ImageNetDataModule",
    "ImageSource",
    "MaskFolder",
    "MaskSource",
    "SampleImagesDataModule",
    "SquareSource",
    "SubjectMasks",
    "TabularDataModule",
    "TorchvisionDataModule",
]
