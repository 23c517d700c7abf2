"""What builds each class that a room offers, small: the rows of the contract."""

import math
from functools import partial

import numpy
import torch
from data_helpers import imagenet_tree

from lightning_recon import attacks, clients, data, defenses, priors, refiners, targets
from lightning_recon.data.photographs import NUM_PHOTOGRAPHS
from lightning_recon.updates import PrivateBatch

SIZE, BATCH, CLASSES = 16, 2, NUM_PHOTOGRAPHS


def random(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def random_batch(num_samples):
    images, labels = random(num_samples, 3, SIZE, SIZE), torch.arange(num_samples)
    return PrivateBatch(images, labels, torch.ones_like(images[:, :1], dtype=torch.bool), labels)


def lenet(seed=0):
    return targets.LeNet(CLASSES, SIZE, seed=seed)


def lbfgs(parameters):
    return torch.optim.LBFGS(parameters, max_iter=2)


def on(kind, target=lenet, **settings):
    """What builds an attack on a target, and takes further settings."""
    return lambda **more: kind(target(), **settings, **more)


READABLE = {
    "transformer": lambda: targets.TinyViT(CLASSES, SIZE, depth=1),
    "convolutions": lambda: targets.PlainConvNet(CLASSES, SIZE, (4, 12), (2, 1)),
    "linear": lambda: targets.MLP(CLASSES, SIZE, (64,)),
    "linear end": lambda: targets.ROGLeNet(CLASSES, SIZE, num_features=64),
    "pools": lambda: targets.TutorialCNN(CLASSES, SIZE),
}
QUICK = {"num_rehearsals": 2, "decoder_steps": 2, "refined_error": math.inf, "iterations": 2}
ATTACKS = {
    "APRIL": on(attacks.APRIL, READABLE["transformer"]),
    "AnnealedInversion": on(attacks.AnnealedInversion, READABLE["pools"], iterations=2),
    "CocktailParty": on(attacks.CocktailParty, READABLE["linear"]),
    "CodedLDPAttack": on(attacks.CodedLDPAttack, num_bins=64, shrinkage_steps=2),
    "CuriousAbandonHonesty": on(attacks.CuriousAbandonHonesty, num_rows=64),
    "DLG": on(attacks.DLG, iterations=2, optimizer=lbfgs),
    "ExactInversion": on(attacks.ExactInversion, READABLE["linear"]),
    "FeatureInversionAttack": on(
        attacks.FeatureInversionAttack, READABLE["linear end"], kernel_size=3, **QUICK
    ),
    "Fishing": on(attacks.Fishing, iterations=2),
    "GaussNewtonInversion": on(attacks.GaussNewtonInversion, iterations=2),
    "GradInversion": on(attacks.GradInversion, num_restarts=2, iterations=2),
    "IDLG": on(attacks.IDLG, iterations=2, optimizer=lbfgs),
    "InvertingGradients": on(attacks.InvertingGradients, iterations=2),
    "LDPAttack": on(attacks.LDPAttack, num_bins=64, iterations=2),
    "LinearLayerInversion": on(attacks.LinearLayerInversion, READABLE["linear"]),
    "Loki": on(attacks.Loki),
    "ModelInconsistency": on(attacks.ModelInconsistency, READABLE["linear"]),
    "ModernInvertingGradients": on(attacks.ModernInvertingGradients, iterations=2),
    "MultiScale": on(attacks.MultiScale, num_scales=2, iterations=2),
    "RGAP": on(attacks.RGAP, READABLE["convolutions"]),
    "ROGAttack": on(attacks.ROGAttack, iterations=2),
    "RobbingTheFed": on(attacks.RobbingTheFed, num_bins=64),
    "ScaleMIA": on(attacks.ScaleMIA, READABLE["pools"], decoder_steps=2),
    "Seer": on(attacks.Seer, READABLE["pools"], steps=20, decoder_steps=2),
    "SolitonBiases": on(attacks.SolitonBiases, READABLE["linear"]),
    "SpectralLDPAttack": on(attacks.SpectralLDPAttack, num_bins=64, shrinkage_steps=2),
    "TabLeak": on(attacks.TabLeak, num_restarts=2, iterations=2),
}
SINGLE = {"APRIL", "IDLG", "RGAP"}
"""Those that read updates of one sample."""
UNCOUNTED = {
    *("AnnealedInversion", "FeatureInversionAttack", "GradInversion", "IDLG"),
    *("Fishing", "GaussNewtonInversion", "InvertingGradients"),
    *("ModernInvertingGradients", "MultiScale", "ROGAttack", "TabLeak"),
}
"""Those to which the number of samples need not be granted."""
DEFENSES = {
    "ClipL2": lambda: defenses.ClipL2(1.0),
    "DPSGDNoise": lambda: defenses.DPSGDNoise(1.0, BATCH, noise_multiplier=1.0),
    "Duchi": lambda: defenses.Duchi(1.0, clip_value=1.0),
    "FrozenLayers": lambda: defenses.FrozenLayers(["weight"]),
    "GaussianNoise": lambda: defenses.GaussianNoise(0.1),
    "Hybrid": lambda: defenses.Hybrid(1.0, clip_value=1.0),
    "Laplace": lambda: defenses.Laplace(1.0, clip_norm=1.0),
    "LaplaceNoise": lambda: defenses.LaplaceNoise(0.1),
    "Piecewise": lambda: defenses.Piecewise(1.0, clip_value=1.0),
    "PowerSGD": lambda: defenses.PowerSGD(1),
    "PrivUnit2": lambda: defenses.PrivUnit2(4.0, clip_norm=1.0),
    "PrivUnitG": lambda: defenses.PrivUnitG(4.0, clip_norm=1.0),
    "QSGD": defenses.QSGD,
    "RandomK": lambda: defenses.RandomK(0.5),
    "SignSGD": defenses.SignSGD,
    "TernGrad": defenses.TernGrad,
    "TopK": lambda: defenses.TopK(0.5),
    "UniformQuantiser": lambda: defenses.UniformQuantiser(4),
}


def fallback(name, folder):
    """A data set that is not there, for which the sample photographs stand in."""
    settings = {"batch_size": BATCH, "image_size": SIZE, "num_public": 1}
    return getattr(data, name)(root=str(folder), on_missing="samples", **settings)


def pictures(folder):
    imagenet_tree(folder / "pictures")
    return data.ImageFolderDataModule(
        root=str(folder / "pictures"), batch_size=BATCH, image_size=SIZE, num_public=1
    )


def captured(folder):
    batch, model = random_batch(BATCH), lenet()
    update = clients.FedSGD()(model, batch, seed=0)
    content = {"update": update, "num_samples": BATCH, "labels": batch.labels}
    torch.save({**content, "image_shape": (3, SIZE, SIZE)}, folder / "one.pt")
    return data.CapturedUpdatesDataModule(str(folder))


def arrays(folder):
    images = (255 * random(NUM_PHOTOGRAPHS, SIZE, SIZE, 3)).byte().numpy()
    path = folder / "images.npz"
    numpy.savez(path, x_test=images, y_test=numpy.arange(NUM_PHOTOGRAPHS))
    return data.ArrayDataModule(root=str(path), batch_size=BATCH, num_public=1)


def table(folder):
    return data.TabularDataModule(batch_size=BATCH, num_public=1)


def torchvision_set(folder):
    return data.TorchvisionDataModule(
        "FashionMNIST", root=str(folder), on_missing="samples", image_size=SIZE, channels=3,
        batch_size=BATCH, num_public=1,
    )  # fmt: skip


WITH_FALLBACK = (
    *("CIFAR100DataModule", "CIFAR10DataModule", "Caltech256DataModule", "Flowers102DataModule"),
    *("ImageNetDataModule", "SampleImagesDataModule"),
)
DATA = {
    "ArrayDataModule": arrays,
    "TabularDataModule": table,
    "TorchvisionDataModule": torchvision_set,
    "CapturedUpdatesDataModule": captured,
    "ImageFolderDataModule": pictures,
    **{name: partial(fallback, name) for name in WITH_FALLBACK},
}
CLIENTS = {
    "Aggregate": lambda: clients.Aggregate(clients.FedSGD(), 2),
    "DPSGD": lambda: clients.DPSGD(1.0),
    "FedAvg": lambda: clients.FedAvg(0.1, epochs=2, minibatch_size=2),
    "FedAvgAdamW": lambda: clients.FedAvgAdamW(0.01, epochs=2, minibatch_size=2),
    "FedSGD": clients.FedSGD,
    "InstaHide": lambda: clients.InstaHide(clients.FedSGD(), 2),
    "MixUp": lambda: clients.MixUp(clients.FedSGD()),
    "OpacusDPSGD": lambda: clients.OpacusDPSGD(1.0),
    "Soteria": lambda: clients.Soteria(clients.FedSGD(), 0.5),
}
TARGETS = {  # by seed
    "ConvNet": lambda seed: targets.ConvNet(5, width=2, seed=seed),
    "Dropout": lambda seed: targets.Dropout(lenet(seed=seed)),
    "EfficientNetLite0": lambda seed: targets.EfficientNetLite0(),
    "LeNet": lambda seed: lenet(seed=seed),
    "MLP": lambda seed: targets.MLP(5, SIZE, (8,), seed=seed),
    "ModuleTarget": lambda seed: targets.ModuleTarget(
        lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * SIZE**2, 5)),
        5,
        mean=0.5,
        seed=seed,
    ),
    "NormFreeResNet18": lambda seed: targets.NormFreeResNet18(5, seed=seed),
    "PlainConvNet": lambda seed: targets.PlainConvNet(5, SIZE, (4, 8), (2, 1), seed=seed),
    "ROGLeNet": lambda seed: targets.ROGLeNet(5, SIZE, num_features=8, seed=seed),
    "ResNet9": lambda seed: targets.ResNet9(5, width=2, seed=seed),
    "TimmClassifier": lambda seed: targets.TimmClassifier("resnet10t", num_classes=5, seed=seed),
    "TinyViT": lambda seed: targets.TinyViT(5, SIZE, width=16, depth=1, num_heads=2, seed=seed),
    "TorchvisionClassifier": lambda seed: targets.TorchvisionClassifier(
        "shufflenet_v2_x0_5", num_classes=5, seed=seed
    ),
    "TutorialCNN": lambda seed: targets.TutorialCNN(5, SIZE, seed=seed),
    "VGG7": lambda seed: targets.VGG7(5, SIZE, width=2, seed=seed),
    "VariationalBottleneck": lambda seed: targets.VariationalBottleneck(lenet(), 8, seed=seed),
}
OPTIONAL = {
    "EfficientNetLite0": "efficientnet_lite_pytorch",
    "OpacusDPSGD": "opacus",
    "TimmClassifier": "timm",
}
"""Of packages that are not among the requirements."""
TRAINED = {"EfficientNetLite0"}
"""Targets whose weights no seed draws."""
PRIORS = {
    "AnisotropicTotalVariation": lambda: priors.AnisotropicTotalVariation(1.0),
    "BatchNormStatistics": lambda: priors.BatchNormStatistics(1.0),
    "DeepFeatures": lambda: priors.DeepFeatures(1.0),
    "DenoiserPrior": lambda: priors.DenoiserPrior(priors.FFDNet(None, 2, 4), noise_std=0.1),
    "DoubleOpponentTotalVariation": priors.DoubleOpponentTotalVariation,
    "SquaredNorm": priors.SquaredNorm,
    "TotalVariation": priors.TotalVariation,
    "WaveletSparsity": priors.WaveletSparsity,
}


def super_resolution():
    return refiners.SuperResolution(num_blocks=1, num_features=4)


REFINERS = {
    "AverageRefiner": lambda: refiners.AverageRefiner([super_resolution()]),
    "ChainedRefiner": lambda: refiners.ChainedRefiner([super_resolution(), super_resolution()]),
    "ConditionalGenerator": lambda: refiners.ConditionalGenerator(num_classes=5, width=2),
    "DenoisingRefiner": lambda: refiners.DenoisingRefiner(priors.FFDNet(None, 2, 4), 0.1),
    "SuperResolution": super_resolution,
    "UNetDenoiser": lambda: refiners.UNetDenoiser(width=2),
}
ROWS = {
    **{"attacks": ATTACKS, "defenses": DEFENSES, "data": DATA, "clients": CLIENTS},
    **{"targets": TARGETS, "priors": PRIORS, "refiners": REFINERS},
}
PARTS = {"WrappedClient"}
"""Concrete classes of the package that are parts of others, and not offered."""
UNPUBLISHED = {
    *("ClipL2", "FrozenLayers", "GaussianNoise"),
    *("ArrayDataModule", "CapturedUpdatesDataModule", "ImageFolderDataModule"),
    *("SampleImagesDataModule", "TorchvisionDataModule"),
}
"""Of "no publication"."""
