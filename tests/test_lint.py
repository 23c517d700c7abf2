"""``lint``: figures that independent integrals confirm, and faults that it must find."""

import json
import math
import subprocess
import sys
from pathlib import Path

import dp_accounting
import pytest
import yaml
from dp_accounting.pld import PLDAccountant
from scipy.integrate import quad
from scipy.special import ndtri
from scipy.stats import laplace, norm
from test_privacy import integrated_delta

from lightning_recon.commands.plain import main
from lightning_recon.lint.checking import MECHANISMS, check
from lightning_recon.lint.figures import MEASURED
from lightning_recon.lint.reading import Entry, from_call, from_file
from lightning_recon.privacy.accounting import pld_epsilon, rero_sampled

ROOT = Path(__file__).parents[1]
NETS = """
import torch
from torch import nn

class Clip(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 3)
        self.logit_scale = nn.Parameter(torch.tensor(7.25))
        self.register_buffer("positions", torch.arange(5))

class Normed(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.BatchNorm2d(2))

class Plain(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2), nn.Flatten())
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    (tmp_path / "lint_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)


def linted(call, *, model=None, source=None, **facts):
    name, positional, args = from_call(call, "here")
    return check(Entry(name, "here", name, args, positional, facts, model, None, source))


def epsilon(report, adjacency, level="client", rounds=1):
    (found,) = (
        one.epsilon
        for one in report.figures
        if (one.level, one.adjacency, one.rounds) == (level, adjacency, rounds)
    )
    return found


def codes(report, severity=None):
    return {one.code for one in report.findings if severity in (None, one.severity)}


LOCAL = "LocalDpMod(clipping_norm={}, sensitivity={}, epsilon={}, delta=1e-5)"


class TestLocalDp:
    @pytest.mark.parametrize(
        ("clip", "sensitivity", "claimed", "present", "replaced"),
        [
            (10, 1, 1, 10.4, 25.4),
            (1, 1, 1000, 22181, 86967),
            (1, 1e-4, 10, 2.1e8, 8.5e8),
            (1, 1, 1, 0.75, 1.61),
        ],
    )
    def test_published_figures_by_an_integral(self, clip, sensitivity, claimed, present, replaced):
        report = linted(LOCAL.format(clip, sensitivity, claimed))
        std = sensitivity * math.sqrt(2 * math.log(1.25e5)) / claimed
        for adjacency, moved, told in (("add_remove", 1, present), ("replace", 2, replaced)):
            found = epsilon(report, adjacency)
            assert float(f"{found:.2g}") == float(f"{told:.2g}")
            assert integrated_delta(found, moved * clip / std) == pytest.approx(1e-5, rel=1e-4)
            assert epsilon(report, adjacency, "record") == found
        assert report.holds is False
        assert {"claim-does-not-hold", "sensitivity-misfit"} <= codes(report, "error")

    def test_what_it_takes_holds(self):
        report = linted(LOCAL.format(1, 1, 4))
        (misfit,) = (one.text for one in report.findings if one.code == "sensitivity-misfit")
        needed = float(misfit.split("takes sensitivity ")[1].split()[0])
        assert linted(LOCAL.format(1, needed * 1.001, 4)).holds
        assert not linted(LOCAL.format(1, needed * 0.999, 4)).holds

    @pytest.mark.parametrize(("claimed", "holds"), [(8.3, True), (8.5, False)])
    def test_the_classical_formula_is_integrated(self, claimed, holds):
        report = linted(LOCAL.format(1, 2, claimed))
        assert report.holds is holds
        assert ("classical-formula" in codes(report)) is not holds

    def test_adjacency_of_the_claim(self):
        assert not linted(LOCAL.format(1, 1, 1)).holds
        report = linted(LOCAL.format(1, 1, 1), adjacency="add_remove")
        assert report.holds
        assert codes(report) == {"global-generator"}

    def test_rounds(self):
        report = linted(LOCAL.format(1, 2, 1), rounds=10)
        assert report.holds
        ratio = 2 / (2 * math.sqrt(2 * math.log(1.25e5)))
        total = epsilon(report, "replace", rounds=10)
        assert integrated_delta(total, ratio * math.sqrt(10)) == pytest.approx(1e-5, rel=1e-4)
        assert "rounds-add-up" in codes(report, "warning")
        assert linted(LOCAL.format(1, 2, 1), rounds=10, claim=total * 1.01).holds
        assert not linted(LOCAL.format(1, 2, 1), rounds=10, claim=total * 0.99).holds

    def test_no_noise(self):
        report = linted(LOCAL.format(1, 0, 1))
        assert "no-noise" in codes(report, "error")
        assert math.isinf(epsilon(report, "replace"))
        assert math.isinf(report.bits_per_image)

    def test_rero_and_bits(self):
        report = linted(LOCAL.format(1, 1, 1), batch_size=4, num_parameters=1000)
        std = math.sqrt(2 * math.log(1.25e5))
        # the power of the most powerful test of two normal distributions, at a size of .001
        power = norm.sf(norm.isf(1e-3) - 2 / std)
        own = math.exp(epsilon(report, "replace")) / 1000 + 1e-5
        assert report.rero == pytest.approx(min(power, own), rel=1e-9)
        assert ndtri(report.rero) < ndtri(1e-3) + 2 / std + 1e-9
        bits = 1000 / 2 * math.log2(1 + 1 / (1000 * std**2)) / 4
        assert report.bits_per_image == pytest.approx(bits)

    def test_orientation_is_the_table_and_between(self):
        # s sqrt(B) / C = .0032 and, halfway in its logarithm to .008, .00506
        formula = math.sqrt(2 * math.log(1.25e5))
        for ratio, told in (
            (0.0032, "33.0"),
            (0.00506, "29.1"),
            (0.0001, "every pixel right"),
            (1, "under 20.1"),
        ):
            report = linted(LOCAL.format(1, ratio / 4 / formula, 1), batch_size=16)
            assert told in report.best_psnr

    def test_orientation_is_what_the_docs_say(self):
        """The best whole-image row at each noise, of the tables of two attacks."""
        best: dict[str, float] = {}
        for page in ("spectral", "coded"):
            heads: list[str] = []
            for line in (ROOT / f"docs/{page}.md").read_text().splitlines():
                cells = [cell.strip() for cell in line.split("|")]
                heads = cells if "sigma" in cells else heads if len(cells) > 1 else []
                if "PSNR" in heads and cells[heads.index("images")] == "whole":
                    sigma, psnr = (cells[heads.index(name)] for name in ("sigma", "PSNR"))
                    best[sigma] = max(best.get(sigma, 0.0), float(psnr))
        stored = {ratio * 10 / 4: psnr for ratio, psnr in MEASURED.items()}
        assert {float(sigma): psnr for sigma, psnr in best.items()} == pytest.approx(stored)


class TestModels:
    def test_scalars_and_whole_numbers(self):
        report = linted(LOCAL.format(1, 2, 1), model="lint_nets:Clip")
        (scalar,) = (one for one in report.findings if one.code == "scalar-unprotected")
        assert "logit_scale" in scalar.text
        assert "without noise" in scalar.text
        assert "integer-array" in codes(report)
        assert report.holds is False
        central = linted(CENTRAL, model="lint_nets:Clip", sends="parameters")
        assert "scalar-unprotected" in codes(central, "error")
        assert "integer-array" not in codes(central)

    def test_batch_norm(self):
        report = linted(LOCAL.format(1, 2, 1), model="lint_nets:Normed", steps=100)
        assert "integer-buffer" in codes(report, "error")
        (eaten,) = (one.text for one in report.findings if one.code == "buffers-eat-the-clip")
        assert f"{1 / math.hypot(1, 100 * math.sqrt(2)):.1%}" in eaten
        alone = linted(LOCAL.format(1, 2, 1), model="lint_nets:Normed", sends="parameters")
        assert alone.holds
        assert linted(LOCAL.format(1, 2, 1), model="lint_nets:Plain").holds

    def test_names_left_out(self):
        report = linted("ExcludeVars(exclude_vars=['0.weight'])", model="lint_nets:Plain")
        (left,) = (one.text for one in report.findings if one.code == "still-sent")
        assert left.startswith("25.0%")  # 2 of bias and 4 of the norm, of 24
        report = linted("ExcludeVars(exclude_vars='head')", model="lint_nets:Plain")
        assert "excludes-nothing" in codes(report, "error")

    def test_scalars_pass_svt(self):
        report = linted("SVTPrivacy()", model="lint_nets:Clip")
        assert "scalar-unprotected" in codes(report, "error")


CENTRAL = "DifferentialPrivacyServerSideFixedClipping(strategy, 1.0, 0.5, 10)"


class TestCentral:
    def test_figures(self):
        report = linted(CENTRAL, rounds=4)
        assert report.holds is None
        assert report.is_sound
        for adjacency, ratio in (("add_remove", 1), ("replace", 2)):
            found = epsilon(report, adjacency, rounds=4)
            assert integrated_delta(found, ratio * 2) == pytest.approx(1e-5, rel=1e-4)
        assert {"server-sees-all", "unequal-weights"} == codes(report, "warning")

    def test_a_secure_sum(self):
        call = CENTRAL.replace("Server", "Client")
        texts = {one.code: one.text for one in linted(call, secure_sum=True).findings}
        assert "sum of the updates without noise" in texts["server-sees-all"]
        assert (
            "clipped to 0.5" in {o.code: o.text for o in linted(call).findings}["server-sees-all"]
        )

    def test_weights(self):
        equal = linted(CENTRAL, largest_share=0.1)
        assert "unequal-weights" not in codes(equal)
        report = linted(CENTRAL, largest_share=0.3)
        assert integrated_delta(epsilon(report, "add_remove"), 3) == pytest.approx(1e-5, rel=1e-4)

    def test_claim(self):
        held = epsilon(linted(CENTRAL, rounds=4), "add_remove", rounds=4)
        assert linted(CENTRAL, rounds=4, claim=held * 1.001).holds
        assert linted(CENTRAL, rounds=4, claim=held * 0.999).holds is False

    def test_fixed_number_of_clients_drawn(self):
        report = linted(CENTRAL, rounds=5, clients=100)
        (text,) = (one.text for one in report.findings if one.code == "amplification")
        fixed = float(text.split("epsilon ")[1].split()[0])
        assert fixed < epsilon(report, "replace", rounds=5)
        coin = float(text.split("; ")[1].split()[0])
        accountant = PLDAccountant(value_discretization_interval=1e-3)
        event = dp_accounting.PoissonSampledDpEvent(0.1, dp_accounting.GaussianDpEvent(1.0))
        accountant.compose(event, 5)
        assert coin == pytest.approx(accountant.get_epsilon(1e-5), rel=5e-3)

    def test_the_count_is_not_centred(self):
        call = "DifferentialPrivacyServerSideAdaptiveClipping(strategy, 1.0, 20)"
        report = linted(call)
        # clipped_count_stddev is 1: on updates (1 - 1/4)^(-1/2); a bit moves the count by 1
        moved = math.sqrt((1 - 1 / 4) + 1)
        assert integrated_delta(epsilon(report, "add_remove"), moved) == pytest.approx(
            1e-5, rel=1e-4
        )
        assert integrated_delta(epsilon(report, "replace"), 2) == pytest.approx(1e-5, rel=1e-4)
        assert "uncentred-count" in codes(report)

    def test_no_noise(self):
        call = CENTRAL.replace("1.0, 0.5", "0.0, 0.5")
        assert "no-noise" in codes(linted(call), "error")


OPACUS = "Opacus(noise_multiplier=1.0, max_grad_norm=1.0, sample_rate={}, steps=1{})"


def sampled_delta(epsilon, rate, std, other):
    """The greater of both directions' deltas for one step, by an integral."""

    def density(x, mean):
        return (1 - rate) * norm.pdf(x, 0, std) + rate * norm.pdf(x, mean, std)

    def delta(first, second):
        def gain(x):
            return max(0.0, density(x, first) - math.exp(epsilon) * density(x, second))

        return quad(gain, -12, 12, limit=2000, epsabs=1e-13)[0]

    return max(delta(1, other), delta(other, 1))


class TestOpacus:
    def test_one_sampled_step_by_an_integral(self):
        report = linted(OPACUS.format(0.3, ""))
        present = epsilon(report, "add_remove", "record")
        assert sampled_delta(present, 0.3, 1.0, 0) == pytest.approx(1e-5, rel=0.02)
        replaced = epsilon(report, "replace", "record")
        assert sampled_delta(replaced, 0.3, 1.0, -1) == pytest.approx(1e-5, rel=0.02)
        assert report.is_sound
        assert report.rero == pytest.approx(rero_sampled(1.0, 0.3), rel=1e-6)

    @pytest.mark.parametrize(
        ("noise_multiplier", "rate", "steps", "told"),
        [(1.123046875, 1 / 891, 44550, 0.98352), (0.8, 0.02, 200, 3.26444)],
    )
    def test_another_accountant(self, noise_multiplier, rate, steps, told):
        # of Opacus 1.6, PRVAccountant at eps_error=.001
        assert pld_epsilon(noise_multiplier, 1e-5, steps, rate) == pytest.approx(told, abs=2e-3)

    def test_gdp_claims_too_little(self):
        call = OPACUS.format(0.1, ", accountant='gdp'").replace("=1.0, max", "=0.6, max")
        report = linted(call)
        assert sampled_delta(report.claim.epsilon, 0.1, 0.6, 0) > 1e-4
        assert report.holds is False
        assert "gdp-accountant" in codes(report)

    def test_without_poisson_sampling(self):
        report = linted(OPACUS.format(0.25, ", poisson_sampling=False").replace("steps", "epochs"))
        assert integrated_delta(epsilon(report, "add_remove", "record"), 1) == pytest.approx(
            1e-5, rel=1e-4
        )
        assert "no-poisson-sampling" in codes(report)
        assert report.rero == pytest.approx(norm.sf(norm.isf(1e-3) - 1))

    def test_an_engine_of_one_round(self):
        call = OPACUS.format(1.0, ", new_engine_each_round=True")
        assert linted(call, rounds=1).holds is None
        assert linted(call, rounds=3).holds is False

    def test_target(self):
        report = linted(OPACUS.format(1.0, ", target_epsilon=4.4"))
        held = epsilon(report, "add_remove", "record")
        assert integrated_delta(held, 1) == pytest.approx(1e-5, rel=1e-4)
        assert report.holds is (held <= 4.4)

    def test_all_records_at_once(self):
        report = linted(OPACUS.format(1.0, ""), dataset_size=8)
        assert integrated_delta(epsilon(report, "replace"), 16) == pytest.approx(1e-5, rel=1e-4)


class TestFilters:
    def test_svt(self):
        call = "SVTPrivacy(fraction=1.0, epsilon=0.5, noise_var=0.3, gamma=1e-3)"
        report = linted(call, num_parameters=3)
        # gamma against -gamma in all three entries, which are all chosen: the outcome gamma
        scale = 2e-3 / 0.3
        tail = laplace.sf([0, 2e-3], scale=scale)
        assert epsilon(report, "replace") == pytest.approx(3 * math.log(tail[0] / tail[1]))
        assert report.holds is False
        assert "svt-budget" in codes(report)
        cheap = linted(call.replace("noise_var=0.3", "noise_var=0.1"), num_parameters=3)
        assert epsilon(cheap, "replace") < cheap.claim.epsilon  # but the choice costs that too
        assert cheap.holds is False
        told = linted(call.replace("noise_var=0.3", "epsilon_release=0.9"), num_parameters=3)
        assert told.claim.epsilon == pytest.approx(1.4)
        assert told.holds

    def test_svt_past_its_proof(self):
        call = "SVTPrivacy(fraction=0.1, epsilon=0.1, epsilon_release=0.1)"
        report = linted(call, num_parameters=1000)
        assert "svt-acceptance" in codes(report, "error")
        assert report.holds is False

    def test_compression_is_no_privacy(self):
        report = linted("PercentilePrivacy()")
        assert not report.is_sound
        assert math.isinf(epsilon(report, "replace"))
        assert report.rero == 1


class TestSeeds:
    @pytest.mark.parametrize(
        ("line", "call", "is_found"),
        [
            ("np.random.seed(42)", LOCAL.format(1, 2, 1), True),
            ("np.random.seed()", LOCAL.format(1, 2, 1), False),
            ("np.random.seed(None)", LOCAL.format(1, 2, 1), False),
            ("random.seed(42)", LOCAL.format(1, 2, 1), False),
            ("torch.manual_seed(42)", LOCAL.format(1, 2, 1), False),
            ("pl.seed_everything(42)", LOCAL.format(1, 2, 1), True),
            ("torch.manual_seed(42)", OPACUS.format(1.0, ""), True),
            ("torch.Generator().manual_seed(42)", OPACUS.format(1.0, ""), False),
        ],
    )
    def test_of_the_generator_that_the_noise_is_from(self, line, call, is_found):
        Path("client").mkdir()
        Path("client/app.py").write_text(f"def train():\n    {line}\n")
        report = linted(call, source="client")
        assert ("seeded-noise" in codes(report, "error")) is is_found
        assert report.is_sound is not is_found

    def test_secure_mode_has_its_own(self):
        Path("app.py").write_text("torch.manual_seed(0)\n")
        report = linted(OPACUS.format(1.0, ", secure_mode=True"), source="app.py")
        assert "seeded-noise" not in codes(report)


class TestFiles:
    def test_twelve_real_configurations(self):
        entries = from_file(ROOT / "examples/lint.yaml")
        assert len(entries) == 12
        page = (ROOT / "docs/lint.md").read_text()
        for entry in entries:
            assert f"| {entry.title} |" in page
            assert entry.mechanism in MECHANISMS

    def test_of_flare(self):
        one = {"path": "nvflare.app_common.filters.PercentilePrivacy", "args": {"gamma": 0.5}}
        two = {"name": "ExcludeVars", "args": {"exclude_vars": "x"}}
        content = {"task_result_filters": [{"tasks": ["train"], "filters": [one, two]}]}
        Path("config_fed_client.json").write_text(json.dumps(content))
        first, second = from_file(Path("config_fed_client.json"))
        assert (first.mechanism, first.args) == ("PercentilePrivacy", {"gamma": 0.5})
        assert second.mechanism == "ExcludeVars"

    def test_of_a_run(self, capsys):
        assert main(["lint", str(ROOT / "configs/ldp_imagenet.yaml"), "--json"]) == 1
        (report,) = json.loads(capsys.readouterr().out)
        assert report["claimed"]["epsilon"] == 10
        figures = {one["adjacency"]: one["epsilon"] for one in report["figures"]}
        assert figures["replace"] == pytest.approx(5.0e7, rel=0.01)
        assert integrated_delta(figures["add_remove"], 10 / 0.002) == pytest.approx(1e-5, rel=1e-4)

    def test_of_a_run_with_a_clip_for_every_image(self):
        noise = {"clip_norm": 10.0, "num_samples": 16, "noise_multiplier": 0.001}
        model = {
            "client": {"class_path": "DPSGD", "init_args": {"clip_norm": 10.0}},
            "defenses": [{"class_path": "DPSGDNoise", "init_args": noise}],
        }
        content = {"model": {"init_args": model}, "data": {"init_args": {"batch_size": 16}}}
        Path("run.yaml").write_text(yaml.safe_dump(content))
        (entry,) = from_file(Path("run.yaml"))
        report = check(entry)
        found = epsilon(report, "replace", "record")
        assert integrated_delta(found, 2000) == pytest.approx(1e-5, rel=1e-4)
        assert report.bits_per_image == pytest.approx(1e6 / 2 / math.log(2))


class TestCommand:
    def test_exit_codes(self, capsys):
        assert main(["lint", "--mechanism", LOCAL.format(1, 2, 1)]) == 0
        assert "the claim holds" in capsys.readouterr().out
        assert main(["lint", "--mechanism", LOCAL.format(10, 1, 1), "--json"]) == 1
        (report,) = json.loads(capsys.readouterr().out)
        assert report["holds"] is False
        assert report["findings"][0]["code"] == "claim-does-not-hold"

    def test_needs_no_torch(self):
        code = (
            "import sys\n"
            "from lightning_recon.commands.plain import main\n"
            f"main(['lint', '--mechanism', '{LOCAL.format(1, 2, 1)}'])\n"
            "print([name for name in ('torch', 'dp_accounting') if name in sys.modules])"
        )
        words = [sys.executable, "-c", code]
        done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT)
        assert done.stdout.splitlines()[-1] == "[]"

    @pytest.mark.parametrize(
        ("words", "told"),
        [
            ([], "give a FILE or --mechanism"),
            (["--mechanism", "LocalDpMd(1)"], "did you mean LocalDpMod?"),
            (["--mechanism", "LocalDpMod(1, 1, 1)"], "needs delta"),
            (["--mechanism", "LocalDpMod(1, 1, 1, 2)"], "between 0 and 1, not 2"),
            (["--mechanism", "LocalDpMod(1, 1, 0, 1e-5)"], "epsilon should be a number above 0"),
            (["--mechanism", "LocalDpMod(cfg.clip, 1, 1, 1e-5)"], "clipping_norm is the variable"),
            (["--mechanism", "LocalDpMod(1, 1, 1, 1e-5, clip=2)"], "takes no argument clip"),
            (["--mechanism", "LocalDpMod(1, 1"], "is no call"),
            (["--mechanism", "SVTPrivacy()"], "give num_parameters"),
            (["--mechanism", "SVTPrivacy()", "--delta", "1e-5"], "leave out delta"),
            (["--mechanism", LOCAL.format(1, 2, 1), "--delta", "1e-6"], "1e-06 beside it"),
            (["--mechanism", "Opacus(1.0, 1.0)"], "give sample_rate"),
            (["--mechanism", "Opacus(1.0, 1.0, 0.1)"], "give the steps"),
            (
                ["--mechanism", "Opacus(1, 1, 1, 1)", "--claim", "9", "--level", "client"],
                "needs dataset_size",
            ),
            (["--mechanism", CENTRAL, "--largest-share", "0.05"], "at least 1/10"),
            (["--mechanism", CENTRAL, "--clients", "5"], "of only 5 clients"),
            (["--mechanism", "ExcludeVars('(')"], "is no pattern"),
            (["--mechanism", CENTRAL, "--secure-sum"], "cannot clip single updates"),
            (["--mechanism", LOCAL.format(1, 2, 1), "--rounds", "0"], "rounds should be a whole"),
            (["--mechanism", LOCAL.format(1, 2, 1), "--source", "no.py"], "there is no file"),
            (["lint.yaml"], "there is no file"),
        ],
    )
    def test_bad_input_is_one_line(self, words, told, capsys):
        assert main(["lint", *words]) == 2
        error = capsys.readouterr().err
        assert told in error
        assert error.count("\n") == 1

    @pytest.mark.parametrize(
        ("content", "told"),
        [
            ("[]", "names no mechanism"),
            ("a: [", "no YAML"),
            ("- mechanism: LocalDpMod()\n  round: 3", "there is no key round"),
            ("- rounds: 3", "has a key mechanism"),
            ("mechanism: 3", "mechanism is a call"),
            ("task_result_filters: 3", "should be a list"),
            ("task_result_filters: [{filters: [{name: SVTPrivacy, args: 3}]}]", "args of"),
            ("model: {init_args: {defenses: 3}}", "a list"),
            (
                "model: {init_args: {defenses: [{class_path: os.system}]}}",
                "there is no class system",
            ),
            ("model: {init_args: {defenses: [{class_path: ClipL2}]}}", "clip_norm"),
        ],
    )
    def test_bad_files_are_one_line(self, content, told, capsys):
        Path("bad.yaml").write_text(content)
        if "LocalDpMod()" in content:
            content = content.replace("LocalDpMod()", LOCAL.format(1, 2, 1))
            Path("bad.yaml").write_text(content)
        assert main(["lint", "bad.yaml"]) == 2
        error = capsys.readouterr().err
        assert told in error
        assert error.count("\n") == 1


class TestAgainstFlower:
    """Flower has an environment of its own."""

    def test_what_its_own_code_does(self):
        numpy = pytest.importorskip("numpy")
        privacy = pytest.importorskip("flwr.supercore.differential_privacy")
        before = [numpy.zeros(100_000, numpy.float32), numpy.array(0, numpy.float32)]
        after = [numpy.ones(100_000, numpy.float32), numpy.array(7.25, numpy.float32)]
        privacy.compute_clip_model_update(after, before, 1.0)
        privacy.add_gaussian_noise_inplace(after, 4.84)
        assert after[1] == numpy.float32(7.25)  # scalar-unprotected
        assert float(after[0].std()) == pytest.approx(4.84, rel=0.02)
        stddev, multiplier = privacy.compute_adaptive_noise_params(1.0, 20, None)
        assert stddev == 1.0
        assert multiplier == pytest.approx((1 - 1 / 4) ** -0.5)
