"""Every attack's objective or closed form, in float64, against an independent computation."""

import closed_forms
import formulas
import pytest
from contract_rows import ATTACKS

from lightning_recon.attacks import GradientMatching

MATCHING = [name for name, make in ATTACKS.items() if isinstance(make(), GradientMatching)]
ORACLES = {
    **dict.fromkeys(MATCHING, formulas.matching),
    "APRIL": closed_forms.april,
    "AnnealedInversion": formulas.annealed,
    "CocktailParty": closed_forms.cocktail,
    "CodedLDPAttack": closed_forms.coded,
    "CuriousAbandonHonesty": closed_forms.curious,
    "ExactInversion": closed_forms.exact,
    "FeatureInversionAttack": formulas.features,
    "GaussNewtonInversion": formulas.gauss_newton,
    "LDPAttack": formulas.ldp,
    "Loki": closed_forms.loki,
    "ModelInconsistency": closed_forms.exact,
    "ScaleMIA": closed_forms.scale_mia,
    "Seer": closed_forms.seer,
    "LinearLayerInversion": closed_forms.linear_layer,
    "RGAP": closed_forms.r_gap,
    "RobbingTheFed": closed_forms.robbing,
    "SolitonBiases": closed_forms.soliton,
    "SpectralLDPAttack": formulas.spectral,
}


def test_every_attack_has_an_oracle():
    assert ORACLES.keys() == ATTACKS.keys()


@pytest.mark.parametrize("name", ATTACKS)
def test_the_attack_is_its_formula_in_float64(name):
    ORACLES[name](name)
