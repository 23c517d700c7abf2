"""The server: federated averaging, recorded."""

from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, Strategy

from flower_audit.task import build, load_data
from lightning_recon.integrations.flower import Recorder, inject

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run one round."""
    settings = context.run_config
    shape = tuple(load_data(str(settings["data"]))[0].shape[1:])
    strategy: Strategy = FedAvg(fraction_evaluate=0.0)
    if settings["red-team"]:
        from flower_audit.malice import attack_of

        epsilon, images = float(settings["local-dp-epsilon"]), int(settings["images"])
        attack = attack_of(str(settings["red-team"]), shape, epsilon, images)
        strategy = inject(strategy, attack.federation.payload, red_team=True)
    strategy = Recorder(strategy, str(settings["capture"]), image_shape=shape)
    told = {name: settings[name] for name in ("learning-rate", "local-epochs", "red-team")}
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(build(shape).state_dict()),
        train_config=ConfigRecord({**told, "batch-size": settings["images"]}),
        num_rounds=1,
        timeout=120,
    )
