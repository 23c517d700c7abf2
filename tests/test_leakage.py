"""Leakage that is measured while a federation trains."""

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from test_detect import BATCH, SIZE, pictures
from torch import nn

from lightning_recon import targets
from lightning_recon.attacks.features.spectrum import Spectrum
from lightning_recon.audit.local_estimate import local_estimate
from lightning_recon.clients import FedSGD
from lightning_recon.defenses import ClipL2, GaussianNoise
from lightning_recon.errors import InputError
from lightning_recon.federation import Federation
from lightning_recon.leakage import Leakage, LightningLeakage
from lightning_recon.observation import Grant

GRANTS = (Grant.LABELS, Grant.NUM_SAMPLES, Grant.CLIENT, Grant.DEFENSES)


def mlp():
    return targets.MLP(10, SIZE, (64,))


def leakage(number=2, **settings):
    images = pictures(60)
    labels = torch.arange(number)
    return Leakage(images[:number], labels, images[number:], 10, **settings)


class TestLeakage:
    def test_what_an_update_gives_away_and_what_noise_takes(self):
        found = leakage(1, num_directions=32).measure(mlp())
        assert set(found) == {
            *("leakage/local_estimate", "leakage/mean_image", "leakage/LinearLayerInversion")
        }
        assert found["leakage/LinearLayerInversion"] > 60
        assert found["leakage/local_estimate"] > found["leakage/mean_image"] + 5
        noisy = [ClipL2(1.0), GaussianNoise(1.0)]
        found = leakage(1, num_directions=32, defenses=noisy).measure(mlp())
        assert found["leakage/local_estimate"] < found["leakage/mean_image"] + 2
        assert found["leakage/LinearLayerInversion"] < 30

    def test_an_attack_that_does_not_fit_is_left_out(self):
        found = leakage(num_directions=4).measure(targets.ConvNet(10, width=4))
        assert set(found) == {"leakage/local_estimate", "leakage/mean_image"}

    def test_the_model_and_the_random_state_stay_as_they_are(self):
        model = targets.ConvNet(10, width=4).train()
        before = {name: part.clone() for name, part in model.state_dict().items()}
        torch.manual_seed(0)
        state = torch.get_rng_state()
        measure = leakage(num_directions=4)
        first = measure.measure(model, 3)
        assert torch.equal(torch.get_rng_state(), state)
        assert model.training
        assert all(torch.equal(part, before[name]) for name, part in model.state_dict().items())
        assert measure.measure(model, 3) == first

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda: Leakage(pictures(2), torch.arange(3), pictures(4), 10), "the canary"),
            (lambda: Leakage(pictures(2), torch.arange(2), pictures(1), 10), "at least 2"),
            (lambda: leakage(num_directions=0), "num_directions"),
            (lambda: leakage().measure(targets.MLP(10, 2 * SIZE)), "does not take images"),
            (lambda: LightningLeakage(leakage(), every_n_rounds=0), "every_n_rounds"),
        ],
    )
    def test_bad_input_is_told(self, change, said):
        with pytest.raises(InputError, match=said):
            change()


def test_few_directions_are_those_of_all_and_the_others_keep_the_priors_error():
    images = pictures(60)[..., ::2, ::2]
    measure = Leakage(images[:1], torch.zeros(1), images[1:], 10)
    target = targets.MLP(10, SIZE // 2, (16,))
    federation = Federation(target, FedSGD(mode="eval"), [ClipL2(1.0), GaussianNoise(1e-2)], seed=0)
    federation.start(lambda: target, GRANTS)
    observation = federation.play(measure.batch, 0)
    spectrum = Spectrum(measure.public_images.double())
    whole = local_estimate(observation, measure.batch, spectrum)
    size = spectrum.mean.numel()
    same = local_estimate(observation, measure.batch, spectrum, num_directions=size)
    few = local_estimate(observation, measure.batch, spectrum, num_directions=24)
    assert torch.equal(whole.mse, same.mse)
    assert torch.allclose(few.information, whole.information[:24, :24], rtol=1e-4)
    assert torch.allclose(few.prior_mse, whole.prior_mse)
    offset = spectrum.along(measure.batch.images.double() - spectrum.mean)
    assert few.num_unknowns == 24
    assert float(few.mse) >= float(offset[:, 24:].square().sum() / size)
    assert float(few.mse) < float(few.prior_mse)


class Training(pl.LightningModule):
    """A client's training, of one batch an epoch."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(mlp(), nn.Dropout(0.1))

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self):
        data = torch.utils.data.TensorDataset(pictures(2 * BATCH, 5), torch.arange(2 * BATCH) % 10)
        return torch.utils.data.DataLoader(data, batch_size=BATCH)


def trained(folder, epochs=5, **settings):
    module = Training()
    callbacks = []
    if settings:
        measure = leakage(num_directions=4)
        callbacks = [LightningLeakage(measure, module="net", **settings)]
    logger = CSVLogger(folder)
    trainer = pl.Trainer(
        *(),
        accelerator="cpu",
        max_epochs=epochs,
        logger=logger,
        log_every_n_steps=1,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(module)
    return module, logger, callbacks


@pytest.mark.parametrize(("round_", "rounds"), [("epoch", [0, 2, 4]), ("step", [0, 2, 4, 6, 8])])
def test_a_training_logs_leakage_beside_the_loss_and_ends_as_without(tmp_path, round_, rounds):
    alone, _, _ = trained(tmp_path / "alone")
    module, logger, (callback,) = trained(tmp_path / "with", every_n_rounds=2, round=round_)
    for name, part in alone.state_dict().items():
        assert torch.equal(part, module.state_dict()[name])
    assert [found["round"] for found in callback.history] == rounds
    columns = logger.experiment.metrics_keys
    assert {"loss", "leakage/local_estimate", "leakage/LinearLayerInversion"} <= set(columns)


def test_a_module_that_is_not_there_is_told(tmp_path):
    callback = LightningLeakage(leakage(), module="network")
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, callbacks=[callback],
        enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False,
    )  # fmt: skip
    with pytest.raises(InputError, match="Training has no module network"):
        trainer.fit(Training())
