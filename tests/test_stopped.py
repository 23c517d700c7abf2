"""Nothing is lost: runs that meet each other, a signal, a full disk, or a lost process."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from command_line import CLI, TINY_RUN
from pytorch_lightning.trainer.states import TrainerFn

from lightning_recon.attacks import InvertingGradients
from lightning_recon.audit import records
from lightning_recon.audit.records import read_records
from lightning_recon.commands.lightning import main
from lightning_recon.errors import InputError
from lightning_recon.federation import Federation
from lightning_recon.runs import ledger, requeue, stopping
from lightning_recon.runs.claiming import claimed, held

TINY = {**TINY_RUN, "audit": {"null_controls": False, "num_candidates": 0}}
SWEEP = {
    "base": "tiny.yaml",
    "axes": {"seed": {"key": "seed_everything", "values": [0, 1]}},
    "trainer": {"accelerator": "cpu", "enable_progress_bar": False},
}
LOGS = Path("lightning_logs")
RUN = LOGS / "version_0"


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(yaml.safe_dump(TINY))
    Path("sweep.yaml").write_text(yaml.safe_dump(SWEEP))
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)
    yield
    signal.signal(signal.SIGTERM, before[0])
    signal.signal(signal.SIGUSR1, before[1])


def run(monkeypatch, command, *options):
    """Run a command, as the command line that it may name to go on with."""
    config = "sweep.yaml" if command == "sweep" else "tiny.yaml"
    words = [command, *([] if "--resume" in options else ["--config", config]), *options]
    monkeypatch.setattr(sys, "argv", ["cli.py", *words])
    return main()


def go_on(monkeypatch, printed, before="go on with: "):
    """Run the line that a stopped run printed."""
    (line,) = (one for one in printed.splitlines() if one.startswith(before))
    words = line.removeprefix(f"{before}python cli.py ").split()
    monkeypatch.setattr(sys, "argv", ["cli.py", *words])
    assert main() == 0


def figures(folder=RUN):
    return [(one.client, one.rows, one.curve) for one in read_records(folder)]


def at_iteration(monkeypatch, number, act):
    """Act at an iteration, counted over all clients; return the list of iterations done."""
    done, iterate = [], InvertingGradients.iterate

    def watched(*args):
        done.append(len(done) + 1)
        if len(done) == number:
            act()
        return iterate(*args)

    monkeypatch.setattr(InvertingGradients, "iterate", watched)
    return done


def strays():
    """Files that no run should leave."""
    hidden = {path for path in Path().rglob(".*") if path.name != ".slurm_job"}
    return hidden | set(Path().rglob("*.tmp"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The figures of runs that were never stopped, by command."""
    found = {}
    for command in ("test", "fit", "predict", "sweep"):
        folder = tmp_path_factory.mktemp(command)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            Path("tiny.yaml").write_text(yaml.safe_dump(TINY))
            Path("sweep.yaml").write_text(yaml.safe_dump(SWEEP))
            assert run(patch, command) == 0
            found[command] = figures(folder_of(command))
    return found


def folder_of(command):
    return LOGS / "sweep/version_0" if command == "sweep" else RUN


class TestFolders:
    def test_the_second_takes_the_next_number(self):
        with claimed([Path("a"), Path("b")]) as first:
            Path("b/version_3").mkdir()
            with claimed([Path("b")]) as second, claimed([Path("b"), Path("a")]) as third:
                Path("b", second, "x").touch()
        assert (first, second, third) == ("version_0", "version_4", "version_5")
        assert not Path("a").exists()  # nothing was written: taken back
        assert {path.name for path in Path("b").iterdir()} == {"version_3", "version_4"}

    def test_somebody_makes_the_folder_in_between(self, monkeypatch):
        mkdir, others = os.mkdir, ["b/version_0", "b/version_1"]

        def late(path, *args):
            if others and Path(path) == Path(others[0]):
                mkdir(others.pop(0))
            mkdir(path, *args)

        monkeypatch.setattr(os, "mkdir", late)
        with claimed([Path("a"), Path("b")]) as version:
            assert version == "version_2"
            assert [path.name for path in Path("a").iterdir()] == ["version_2"]

    def test_a_run_is_resumed_once_at_a_time(self):
        with held(Path("run")):
            with pytest.raises(InputError, match="another process writes into"), held(Path("run")):
                pass
            Path("run/x").touch()
        with held(Path("run")):
            pass
        assert [path.name for path in Path("run").iterdir()] == ["x"]

    @pytest.mark.parametrize("logger", ["true", "false"])
    def test_runs_side_by_side(self, logger, monkeypatch, capsys, whole):
        """The second begins while the first is at its second client; so does a second resume."""

        def others():
            options = ["--trainer.logger", logger]
            assert run(monkeypatch, "test", *options) == 0
            assert run(monkeypatch, "fit", *options) == 0
            assert run(monkeypatch, "test", "--resume", str(RUN)) == 2
            assert "another process writes into" in capsys.readouterr().err

        at_iteration(monkeypatch, 6, others)
        assert run(monkeypatch, "test", "--trainer.logger", logger) == 0
        assert {path.name for path in LOGS.iterdir()} == {f"version_{n}" for n in range(3)}
        for number, command in enumerate(["test", "test", "fit"]):
            assert figures(LOGS / f"version_{number}") == whole[command]

    def test_sweeps_side_by_side(self, monkeypatch, whole):
        at_iteration(monkeypatch, 6, lambda: run(monkeypatch, "sweep"))
        assert run(monkeypatch, "sweep") == 0
        for number in range(2):
            assert figures(LOGS / f"sweep/version_{number}") == whole["sweep"]

    def test_what_a_killed_process_left_is_removed(self):
        Path("run/checkpoints").mkdir(parents=True)
        Path("run/checkpoints/.last.ckpt.abc.tmp").touch()
        Path("run/checkpoints/last.ckpt").touch()
        with held(Path("run")):
            assert [path.name for path in Path("run/checkpoints").iterdir()] == ["last.ckpt"]


class TestSignals:
    @pytest.mark.parametrize(
        ("command", "how"),
        [
            *((command, signal.SIGTERM) for command in ("test", "predict", "fit", "sweep")),
            ("fit", KeyboardInterrupt),
        ],
    )
    def test_stopped_within_the_second_client(self, command, how, monkeypatch, capsys, whole):
        def act():
            if how is KeyboardInterrupt:
                raise how
            os.kill(os.getpid(), how)

        every = ["--checkpoint.every_n_train_steps", "2"] if command == "fit" else []
        with monkeypatch.context() as patch:
            done = at_iteration(patch, 6, act)
            with pytest.raises(SystemExit) as stopped:
                run(patch, command, *every)
        assert len(done) == 6
        assert stopped.value.code == (143 if how == signal.SIGTERM else 1)
        go_on(monkeypatch, capsys.readouterr().out)
        folder = folder_of(command)
        assert [path.name for path in folder.parent.iterdir()] == ["version_0"]
        assert figures(folder) == whole[command]
        assert not strays()

    def test_a_run_that_was_done_by_then_is_done(self, monkeypatch):
        report = ledger.write_report

        def stop(folder):
            os.kill(os.getpid(), signal.SIGTERM)
            return report(folder)

        monkeypatch.setattr(ledger, "write_report", stop)
        assert run(monkeypatch, "test") == 0

    def test_before_the_run_begins(self, monkeypatch):
        def stop(*_):
            os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr("lightning_recon.data.SampleImagesDataModule.setup", stop)
        with pytest.raises(SystemExit) as stopped:
            run(monkeypatch, "test")
        assert stopped.value.code == 143
        assert not LOGS.exists()

    def test_slurm_starts_a_fit_again(self, monkeypatch, tmp_path, whole):
        asked = tmp_path / "asked"
        scontrol = tmp_path / "bin/scontrol"
        scontrol.parent.mkdir()
        scontrol.write_text(f'#!/bin/sh\necho "$@" > {asked}\n')
        scontrol.chmod(0o755)
        monkeypatch.setenv("PATH", str(scontrol.parent), prepend=os.pathsep)
        monkeypatch.setenv("SLURM_JOB_ID", "77")
        with monkeypatch.context() as patch:
            at_iteration(patch, 6, lambda: os.kill(os.getpid(), requeue.SIGNAL))
            with pytest.raises(SystemExit) as stopped:
                run(patch, "fit")
        assert stopped.value.code == 128 + requeue.SIGNAL
        assert asked.read_text() == "requeue 77\n"
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
        done = at_iteration(monkeypatch, 0, None)
        assert run(monkeypatch, "fit") == 0
        assert len(done) == 12 - 6
        assert figures() == whole["fit"]
        assert [path.name for path in LOGS.iterdir()] == ["version_0"]
        shutil.rmtree(RUN / "checkpoints")  # another job, or other words, begin anew
        monkeypatch.setenv("SLURM_JOB_ID", "78")
        assert run(monkeypatch, "fit") == 0
        assert len(list(LOGS.iterdir())) == 2


class TestOrder:
    @pytest.mark.parametrize("command", ["test", "predict", "fit", "validate", "sweep"])
    def test_the_configuration_comes_before_the_first_record(self, command, monkeypatch):
        append, seen = records.append_record, []

        def watched(folder, *args):
            name = "sweep.yaml" if command == "sweep" else "config.yaml"
            seen.append((folder / name).is_file())
            append(folder, *args)

        for module in ("ledger", "items"):
            monkeypatch.setattr(f"lightning_recon.runs.{module}.append_record", watched)
        assert run(monkeypatch, command) == 0
        assert seen
        assert all(seen)

    def test_killed_while_the_configuration_is_written(self, monkeypatch):
        replace = os.replace

        def die(source, target):
            if Path(target).name == "config.yaml":
                raise MemoryError  # as near to a kill as one process can come
            replace(source, target)

        monkeypatch.setattr(os, "replace", die)
        assert run(monkeypatch, "test") == 2
        assert not list(Path().rglob("*.jsonl"))
        assert not list(Path().rglob("config.yaml"))

    def test_a_checkpoint_is_renamed_within_its_folder(self, monkeypatch):
        moved, replace = [], os.replace

        def watched(source, target):
            if str(target).endswith(".ckpt"):
                moved.append(Path(source).parent == Path(target).parent)
                assert torch.load(source, weights_only=True)["state_dict"]
            replace(source, target)

        monkeypatch.setattr(os, "replace", watched)
        assert run(monkeypatch, "fit") == 0
        assert moved
        assert all(moved)

    def test_a_torn_checkpoint_names_one_that_is_whole(self, monkeypatch, capsys):
        options = ["--checkpoint.every_n_train_steps", "6"]
        assert run(monkeypatch, "fit", *options) == 0
        last = RUN / "checkpoints/last.ckpt"
        (other,) = set(last.parent.iterdir()) - {last}
        last.write_bytes(last.read_bytes()[:1000])
        assert run(monkeypatch, "fit", "--ckpt_path", str(last)) == 2
        said = capsys.readouterr().err
        assert f"{last.absolute()} is no readable checkpoint" in said
        assert f"{other.absolute()} is whole" in said


class TestFit:
    def test_goes_on_in_its_own_folder_with_the_pictures(self, monkeypatch, whole):
        with monkeypatch.context() as patch:
            at_iteration(patch, 6, lambda: os.kill(os.getpid(), signal.SIGTERM))
            with pytest.raises(SystemExit):
                run(patch, "fit")
        config = (RUN / "config.yaml").read_text()
        last = str(RUN / "checkpoints/last.ckpt")
        assert run(monkeypatch, "fit", "--ckpt_path", last) == 0
        assert figures() == whole["fit"]
        assert (RUN / "config.yaml").read_text() == config
        pictures = {path.name for path in (RUN / "reconstructions").iterdir()}
        assert {f"client{n:05d}.png" for n in range(3)} <= pictures
        assert list((RUN / "checkpoints").glob("last*")) == [Path(last)]
        lines = (RUN / "records/process0000.jsonl").read_text().splitlines()
        assert len(lines) == 3

    def test_another_experiment_has_a_folder_of_its_own(self, monkeypatch, capsys):
        every = ["--checkpoint.every_n_train_steps", "6"]
        assert run(monkeypatch, "fit", *every, "--trainer.max_epochs", "2") == 0
        before = figures()
        changed = ["--ckpt_path", str(RUN / "checkpoints/last.ckpt"), "--audit.recovered_psnr", "9"]
        assert run(monkeypatch, "fit", *every, *changed) == 0
        assert "recovered_psnr is 9.0, but the run has 19.0" in capsys.readouterr().out
        assert figures() == before
        assert len(figures(LOGS / "version_1")) == 3


class TestFaults:
    def test_a_full_disk(self, monkeypatch, capfd, whole):
        append = records.append_record

        def full(folder, rank, record, origin):
            if record.client == 1:
                with records.naming(records.records_file(folder, rank)):
                    raise OSError(errno.ENOSPC, "No space left on device")
            append(folder, rank, record, origin)

        with monkeypatch.context() as patch:
            patch.setattr(ledger, "append_record", full)
            assert run(patch, "test") == 2
        said = capfd.readouterr()
        (line,) = (one for one in said.err.splitlines() if "error" in one)
        assert line.endswith("process0000.jsonl: No space left on device")
        go_on(monkeypatch, said.out)
        assert figures() == whole["test"]

    def test_the_disk_is_full_when_a_file_is_written(self, monkeypatch, tmp_path):
        opener = partial(open, "/dev/full")
        monkeypatch.setattr(
            "lightning_recon.files.open", lambda _, mode: opener(mode), raising=False
        )
        with pytest.raises(OSError, match="No space left") as error:
            ledger.write_json(tmp_path / "x.json", {"a": 1})
        assert error.value.filename == str(tmp_path / "x.json")
        assert not list(tmp_path.glob("*x.json*"))

    def test_a_folder_that_cannot_be_made(self, monkeypatch, capfd):
        LOGS.write_text("a file")
        assert run(monkeypatch, "test") == 2
        (line,) = (one for one in capfd.readouterr().err.splitlines() if "error" in one)
        assert "lightning_logs" in line

    @pytest.mark.parametrize(
        "error",
        [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")],
        ids=["python", "torch"],
    )
    def test_no_memory(self, error, monkeypatch, capfd, whole):
        def fail():
            raise error

        with monkeypatch.context() as patch:
            at_iteration(patch, 6, fail)
            assert run(patch, "test") == 2
        said = capfd.readouterr()
        assert "error: out of memory" in said.err
        go_on(monkeypatch, said.out)
        assert figures() == whole["test"]

    def test_one_client_of_nan(self, monkeypatch, capfd, whole):
        play = Federation.play

        def spoilt(self, batch, client):
            images = batch.images * torch.nan if client == 1 else batch.images
            return play(self, batch._replace(images=images), client)

        monkeypatch.setattr(Federation, "play", spoilt)
        assert run(monkeypatch, "test") == 2
        said = capfd.readouterr()
        (line,) = (one for one in said.err.splitlines() if "error" in one)
        assert "holds NaN or infinity" in line
        go_on(monkeypatch, said.out, "go on past this client with: ")
        found = figures()
        assert [found[0], found[2]] == [whole["test"][0], whole["test"][2]]
        assert read_records(RUN)[1].failure

    def test_seconds_are_those_of_all_sessions(self, monkeypatch):
        now = [0.0]
        clock = SimpleNamespace(monotonic=lambda: now[0])
        monkeypatch.setattr(ledger, "time", clock)
        iterate = InvertingGradients.iterate

        def slow(*args):
            now[0] += 1
            return iterate(*args)

        monkeypatch.setattr(InvertingGradients, "iterate", slow)
        with monkeypatch.context() as patch:
            patch.setattr(ledger, "write_csv", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                run(patch, "test", "--trainer.limit_test_batches", "2")
        now[0] += 1000  # nobody was at work
        assert run(monkeypatch, "test", "--resume", str(RUN)) == 0
        assert json.loads((RUN / "results.json").read_text())["wall_seconds"] == 12

    @pytest.mark.parametrize(
        ("fn", "promise"), [(TrainerFn.FITTING, ""), (TrainerFn.TESTING, "; what is done is kept")]
    )
    def test_a_fit_of_several_processes_promises_nothing(self, fn, promise, monkeypatch):
        """It resumes on one process alone, and what several wrote not at all."""
        before = signal.getsignal(signal.SIGTERM)
        told: list[str] = []
        monkeypatch.setattr(stopping, "say_lost", told.append)
        monkeypatch.setattr(os, "_exit", lambda code: told.append(str(code)))
        trainer = SimpleNamespace(
            world_size=2,
            state=SimpleNamespace(fn=fn),
            strategy=SimpleNamespace(launcher=None),
        )
        module = SimpleNamespace(loop=SimpleNamespace(resumes=True))
        watching = stopping.Stopping(lambda folder: f"again {folder}", lambda _: RUN)
        try:
            watching._begin(trainer, module)
        finally:
            signal.signal(signal.SIGTERM, before)
        watching._watch_process(1, SimpleNamespace(wait=lambda: 3))
        go_on = f"{promise}, go on with: again {RUN}" if promise else ""
        assert told == [f"process 1 of the run ended; its message says why{go_on}", "3"]

    @pytest.mark.slow
    @pytest.mark.alone
    def test_a_lost_process(self, monkeypatch):
        options = ["--model.init_args.iterations", "200", "--data.init_args.num_clients", "8"]
        devices = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
        words = ["test", "--config", "tiny.yaml", *options, *devices]
        process = subprocess.Popen(
            [sys.executable, str(CLI), *words], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        second = RUN / "records/process0001.jsonl"
        while not second.exists():
            assert process.poll() is None
            time.sleep(0.1)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for child in map(int, children):
            if b"cli.py" in Path(f"/proc/{child}/cmdline").read_bytes():
                os.kill(child, signal.SIGKILL)
        _, said = process.communicate()
        (line,) = (one for one in said.decode().splitlines() if "error" in one)
        assert "process 1 of the run was ended by SIGKILL; what is done is kept" in line
        assert line.endswith(f"go on with: python cli.py test --resume {RUN}")
        assert process.returncode == 1
        done = {one.client for one in read_records(RUN)}
        assert run(monkeypatch, "test", "--resume", str(RUN), "--trainer.devices", "1") == 0
        assert {one.client for one in read_records(RUN)} == set(range(8)) > done

    def test_nobody_listens(self):
        process = subprocess.Popen(
            [sys.executable, str(CLI), "attacks", "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        process.stdout.close()
        assert process.wait() == 141
        assert process.stderr.read() == b""

    def test_nowhere_to_write(self):
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [sys.executable, str(CLI), "attacks"], stdout=full, stderr=subprocess.PIPE
            )
        assert done.returncode == 2
        assert done.stderr.decode().count("\n") == 1
