"""Published attacks, one a file."""

from lightning_recon.attacks.analytic import AnalyticAttack
from lightning_recon.attacks.annealed_inversion import AnnealedInversion
from lightning_recon.attacks.april import APRIL
from lightning_recon.attacks.base import Attack
from lightning_recon.attacks.cocktail_party import CocktailParty
from lightning_recon.attacks.coded import CodedLDPAttack
from lightning_recon.attacks.curious_abandon_honesty import CuriousAbandonHonesty
from lightning_recon.attacks.dlg import DLG
from lightning_recon.attacks.exact import ExactInversion
from lightning_recon.attacks.feature_inversion import FeatureInversionAttack
from lightning_recon.attacks.fishing import Fishing
from lightning_recon.attacks.gauss_newton_inversion import GaussNewtonInversion
from lightning_recon.attacks.grad_inversion import GradInversion
from lightning_recon.attacks.gradient_matching import GradientMatching
from lightning_recon.attacks.idlg import IDLG
from lightning_recon.attacks.inverting_gradients import InvertingGradients
from lightning_recon.attacks.ldp import LDPAttack
from lightning_recon.attacks.linear_layer import LinearLayerInversion
from lightning_recon.attacks.loki import Loki
from lightning_recon.attacks.model_inconsistency import ModelInconsistency
from lightning_recon.attacks.modern import ModernInvertingGradients
from lightning_recon.attacks.multi_scale import MultiScale
from lightning_recon.attacks.optimization import OptimizationAttack
from lightning_recon.attacks.r_gap import RGAP
from lightning_recon.attacks.robbing_the_fed import RobbingTheFed
from lightning_recon.attacks.rog import ROGAttack
from lightning_recon.attacks.scale_mia import ScaleMIA
from lightning_recon.attacks.seer import Seer
from lightning_recon.attacks.soliton_biases import SolitonBiases
from lightning_recon.attacks.spectral import SpectralLDPAttack
from lightning_recon.attacks.tab_leak import TabLeak

__all__ = [
    "APRIL",
    "DLG",
    "IDLG",
    "RGAP",
    "AnalyticAttack",
    "AnnealedInversion",
    "Attack",
    "CocktailParty",
    "CodedLDPAttack",
    "CuriousAbandonHonesty",
    "ExactInversion",
    "FeatureInversionAttack",
    "Fishing",
    "GaussNewtonInversion",
    "GradInversion",
    "GradientMatching",
    "InvertingGradients",
    "LDPAttack",
    "LinearLayerInversion",
    "Loki",
    "ModelInconsistency",
    "ModernInvertingGradients",
    "MultiScale",
    "OptimizationAttack",
    "ROGAttack",
    "RobbingTheFed",
    "ScaleMIA",
    "Seer",
    "SolitonBiases",
    "SpectralLDPAttack",
    "TabLeak",
]
