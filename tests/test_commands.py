"""The commands that run no Trainer, the help of all, and completion in a real shell."""

import importlib
import inspect
import json
import pkgutil
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import yaml
from command_line import run_cli
from PIL import Image

import lightning_recon
from lightning_recon.commands import doctor
from lightning_recon.commands.doctor import Finding, check_inputs, check_packages
from lightning_recon.commands.names import LIGHT, LIGHTNING, TRAINED
from lightning_recon.commands.plain import main
from lightning_recon.errors import InputError
from lightning_recon.runs.making import making
from lightning_recon.runs.resume import going_on

ROOT = Path(__file__).parents[1]
COMMANDS = [*LIGHTNING, *LIGHT]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


HEAVY = ["fit", "sweep", "defenses", "doctor", "completion bash"]
ONE_AFTER_ANOTHER = f"""
import contextlib, io, json, os, sys, tempfile
sys.path[0] = os.getcwd()
import cli
os.chdir(tempfile.gettempdir())  # away from the configurations
done = []
for command in {HEAVY}:
    out, err = io.StringIO(), io.StringIO()
    sys.argv[1:] = command.split()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(sys.argv[1:])
    done.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(done))
"""


@pytest.fixture(scope="module")
def heavy():
    """Code, output and errors of the commands that import much, by one process for all of them."""
    done = run_python(ONE_AFTER_ANOTHER)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    (line,) = done.stdout.splitlines()  # and nothing past what the commands print
    return dict(zip(HEAVY, json.loads(line), strict=True))


class TestHelp:
    def test_every_command_has_its_line(self):
        done = run_cli("--help")
        assert done.returncode == 0
        assert done.stderr == ""
        listed = re.findall(r"^    (\w+)(?: {2,}|\n)", done.stdout, flags=re.MULTILINE)
        assert listed == COMMANDS
        text = " ".join(done.stdout.split())
        for summary in (LIGHTNING | LIGHT).values():
            assert summary in text

    @pytest.mark.parametrize("command", [name for name in LIGHT if name not in TRAINED])
    def test_of_a_command(self, command, capsys):
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0
        text = capsys.readouterr().out
        assert text.startswith(f"usage: python cli.py {command} ")
        assert LIGHT[command].split()[0] in text
        assert "<class" not in text

    @pytest.mark.parametrize("command", LIGHTNING)
    def test_of_lightnings_commands(self, command, capsys):
        from lightning_recon.commands.lightning import main as run

        with pytest.raises(SystemExit) as stop:
            run([command, "--help"])
        assert stop.value.code == 0
        first, _, second, *_ = text = capsys.readouterr().out.splitlines()
        assert first == f"usage: python cli.py {command} --config FILE [OPTION ...]"
        assert second == LIGHTNING[command]
        assert any("--model.help CLASS" in line for line in text)
        resumes = any(line.startswith("  --resume RUN") for line in text)
        assert resumes == (command in ("test", "predict"))

    @pytest.mark.parametrize("args", [["--help"], ["compare", "--help"], ["nonsense"], []])
    def test_needs_no_torch(self, args):
        done = run_python(
            "import sys, cli\n"
            f"try: code = cli.main({args})\n"
            "except SystemExit as stop: code = stop.code\n"
            "print([name for name in ('torch', 'pytorch_lightning') if name in sys.modules], code)"
        )
        assert done.stdout.splitlines()[-1] == f"[] {0 if '--help' in args else 2}"

    def test_version(self):
        done = run_cli("--version")
        assert (done.returncode, done.stdout) == (
            0,
            f"lightning_recon {lightning_recon.__version__}\n",
        )


class TestBadCommand:
    @pytest.mark.parametrize(
        ("args", "words"),
        [
            ([], "a command is missing: one of fit, validate"),
            (["frobnicate"], "there is no command frobnicate; there are fit, validate"),
            (["atacks"], "there is no command atacks; did you mean attacks?"),
            (["--config", "x.yaml", "fit"], "the command comes first, before --config"),
            (["doctor", "--frob"], "there is no option --frob; there are --configs"),
            (["attacks", "more"], "nothing takes the word more"),
            (["compare"], "compare.runs; see --help"),
            (["compare", "one"], "compare takes 2 to 26 runs"),
            (["compare", "one", "two"], "one holds no results.json"),
            (["report", "nowhere"], "there is no folder nowhere"),
            (["report", str(ROOT / "configs")], "no results.json (a run), results.csv (a"),
            (["completion", "cmd"], "there is no shell cmd; there are bash, tcsh, zsh"),
            (["doctor", "--configs", "nowhere"], "no folder"),
        ],
    )
    def test_one_line(self, args, words, capsys):
        assert main(args) == 2
        out, error = capsys.readouterr()
        assert out == ""
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert words in error

    @pytest.mark.parametrize("args", [[], ["frobnicate"]])
    def test_in_a_process_of_its_own(self, args):
        done = run_cli(*args)
        assert done.returncode == 2
        assert done.stdout == ""
        assert re.fullmatch(r"error: .+\n", done.stderr)

    @pytest.mark.parametrize("command", ["fit", "sweep"])
    def test_in_a_process_without_pytest(self, heavy, command):
        code, out, err = heavy[command]
        assert code == 2
        assert out == ""
        assert re.fullmatch(r"error: .+\n", err)

    def test_without_the_libraries(self):
        done = subprocess.run(
            [sys.executable, "-S", str(ROOT / "cli.py"), "--help"],  # -S: no site-packages
            capture_output=True, text=True, check=False, env={},
        )  # fmt: skip
        assert done.returncode == 1
        assert done.stderr.endswith("run: pip install -r requirements.txt\n")
        assert done.stderr.count("\n") == 1


def classes_below(package: str, base: type) -> set[str]:
    """By another way than the command's: look into every module."""
    found = set()
    root = importlib.import_module(package)
    for module in pkgutil.iter_modules(root.__path__, f"{package}."):
        for _, item in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if issubclass(item, base) and not inspect.isabstract(item):
                found.add(item.__name__)
    return found


class TestLists:
    @pytest.mark.parametrize(
        ("command", "bases"),
        [
            ("attacks", ["Attack"]),
            ("defenses", ["Defense"]),
            ("data", ["AuditDataModule"]),
            ("targets", ["Target"]),
            ("clients", ["Client"]),
            ("priors", ["Prior", "ActivationPrior"]),
            ("refiners", ["Refiner"]),
        ],
    )
    def test_every_class_with_its_first_sentence(self, command, bases, capsys):
        package = f"lightning_recon.{command}"
        assert main([command, "--json"]) == 0
        entries = json.loads(capsys.readouterr().out)
        names = [entry["name"] for entry in entries]
        assert names == sorted(names)
        parents = tuple(getattr(importlib.import_module(package), base) for base in bases)
        parts = {"Target", "WrappedClient"}  # to build on, and of no use by themselves
        assert set(names) == classes_below(package, parents) - parts
        for entry in entries:
            module, _, name = entry["class_path"].rpartition(".")
            docstring = getattr(importlib.import_module(module), name).__doc__
            assert entry["summary"].endswith(".")
            assert " ".join(docstring.replace("``", "").split()).startswith(entry["summary"])

    def test_citations(self, capsys):
        assert main(["attacks"]) == 0
        text = capsys.readouterr().out
        assert "\nLDPAttack\n  " in f"\n{text}"
        assert "You et al., IEEE TIFS 20:1519-1534, 2025" in text
        assert "no publication" not in text

    def test_no_citation_is_asked_of_networks(self, capsys):
        assert main(["targets"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[lines.index("LeNet") + 1].startswith("  ")
        assert "no publication" not in "".join(lines)

    def test_in_a_process_without_pytest(self, heavy):
        code, out, _ = heavy["defenses"]
        assert code == 0
        lines = out.splitlines()
        assert lines[::3] == sorted(lines[::3])
        assert lines[lines.index("ClipL2") + 1].startswith("  Scales the whole update down")

    def test_no_list_imports_torch(self):
        code = (
            "import sys; from lightning_recon.commands import names, plain; "
            "assert not any(plain.main([name]) for name in names.LISTS); "
            "sys.exit('torch' in sys.modules)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


class TestDoctor:
    def test_packages(self):
        installed = metadata.version("numpy")
        findings = check_packages(
            "# a heading\n"
            "numpy>=1.0  # arrays\n"
            "numpy>=999,<1000  # for its speed\n"
            "no-such-package-at-all>=1  # sums\n"
            "ruff>=999\n"
            'no-such-package-either; python_version < "3"\n'
        )
        assert [finding.status for finding in findings] == ["ok", "BROKEN", "BROKEN", "missing"]
        assert findings[0] == Finding("ok", f"numpy {installed}")
        assert f"numpy {installed}, but <1000,>=999 is needed" in findings[1].text
        assert findings[1].advice == "pip install -r requirements.txt (for its speed)"
        assert "no-such-package-at-all>=1 is not installed" in findings[2].text
        assert findings[3].advice == "pip install -r requirements.txt (only for the checks)"

    def test_data_and_checkpoints(self, tmp_path):
        masks = {"class_path": "SubjectMasks", "init_args": {"checkpoint": "in/sam.pth"}}
        write_config("a", "ImageFolderDataModule", "in/pictures", masks=masks)
        masks["init_args"]["on_missing"] = "grabcut"
        write_config("b/c", "ImageFolderDataModule", "in/pictures", masks=masks)
        write_config("d", "CIFAR10DataModule", "in/cifar10.npz", on_missing="samples")
        write_config("e", "CIFAR10DataModule", "in/nothing")
        (tmp_path / "configs/sweep.yaml").write_text("base: a.yaml\naxes: {x: [1, 2]}\n")
        Path("in/pictures").mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (8, 8)).save(f"in/pictures/{number}.png")
        found = check_inputs(tmp_path / "configs")
        assert found["data"] == [
            Finding("ok", "in/pictures: 3 images for a, b/c"),
            Finding(
                "missing",
                "in/cifar10.npz: would enable d; until then sample photographs are used",
                found["data"][1].advice,
            ),
            Finding(
                "missing",
                "in/nothing: would enable e; until then nothing of that runs",
                found["data"][2].advice,
            ),
        ]
        for finding, name in zip(found["data"][1:], ("in/cifar10.npz", "in/nothing"), strict=True):
            assert finding.advice.startswith(f"looked for {tmp_path / name}; expected the folder")
        (sam,) = found["checkpoints"]
        assert sam.status == "missing"
        assert "would enable a, b/c; until then" in sam.text
        assert sam.advice.endswith("; see checkpoints/README.md")

        Path("in/sam.pth").write_bytes(b"weights")
        np.savez(
            "in/cifar10.npz",
            x_test=np.zeros((5, 32, 32, 3), np.uint8),
            y_test=np.zeros(5, np.int64),
        )
        found = check_inputs(tmp_path / "configs")
        assert found["data"][1] == Finding("ok", "in/cifar10.npz: 5 images for d")
        assert found["checkpoints"] == [Finding("ok", "in/sam.pth for a, b/c")]

    def test_damaged_data_and_configs_are_an_error(self, tmp_path, capsys):
        write_config("a", "CIFAR10DataModule", "broken.npz")
        assert main(["doctor", "--configs", "configs"]) == 0
        Path("broken.npz").write_bytes(b"no archive")
        assert main(["doctor", "--configs", "configs"]) == 1
        assert "BROKEN  broken.npz: " in capsys.readouterr().out
        Path("broken.npz").unlink()
        Path("configs/b.yaml").write_text("a: [1")
        assert main(["doctor", "--configs", "configs"]) == 1
        assert "b.yaml, line 2, column 1: no YAML" in capsys.readouterr().out

    def test_in_a_process_without_pytest(self, heavy):
        code, out, err = heavy["doctor"]
        assert code == 0, out
        assert err == ""
        for heading in ("packages", "devices", "data", "checkpoints"):
            assert f"\n{heading}\n" in out
        assert f"  ok      torch {metadata.version('torch')}\n" in out
        assert "  ok      CPU: " in out
        assert "data/imagenet: would enable " in out
        assert "sam_vit_h_4b8939.pth: would enable " in out

    def test_without_torch(self):
        done = run_python(
            "import sys; sys.modules['torch'] = None; import cli; sys.exit(cli.main(['doctor']))"
        )
        assert done.returncode == 1
        assert "BROKEN  import fails: " in done.stdout
        assert done.stderr == ""

    def test_every_optional_package_is_a_requirement(self):
        text = "".join(file.read_text() for file in (ROOT / "requirements").iterdir())
        assert all(re.search(rf"^{name}\b", text, re.M) for name in doctor._OPTIONAL)


def write_config(name: str, data: str, root: str, **init_args: object) -> None:
    path = Path("configs", f"{name}.yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    section = {"class_path": data, "init_args": {"root": root, **init_args}}
    path.write_text(yaml.safe_dump({"data": section}))


@pytest.fixture(scope="module")
def script(tmp_path_factory, heavy):
    """What ``completion bash`` prints."""
    code, out, err = heavy["completion bash"]
    assert code == 0, err
    path = tmp_path_factory.mktemp("completion") / "script.bash"
    path.write_text(out)
    return path


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
class TestCompletion:
    @pytest.mark.parametrize(
        ("line", "expected"),
        [
            ("python cli.py ", set(COMMANDS)),
            ("./cli.py do", {"doctor"}),
            ("python some/where/cli.py comp", {"compare", "completion"}),
            ("python other.py do", set()),
            ("python cli.py fit --confi", {"--config"}),
            ("python cli.py fit --config conf", {"configs"}),
            ("python cli.py test --res", {"--resume"}),
            ("python cli.py fit --res", set()),
            ("python cli.py test --model.num_b", {"--model.num_bins"}),
            ("python cli.py test --trainer.strategy ddp_s", {"ddp_spawn"}),
            ("python cli.py completion ", {"bash", "zsh", "tcsh"}),
            ("python cli.py attacks --", {"--help", "--json"}),
            ("python cli.py compare conf", {"configs"}),
        ],
    )
    def test_in_bash(self, script, line, expected):
        Path("configs").mkdir()
        words = line.split(" ")
        function = "_shtab_cli_py" if words[0] == "./cli.py" else "_lightning_recon_python"
        code = (
            f'source {script}; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); {function}; '
            'printf "%s\\n" "${COMPREPLY[@]}"'
        )
        done = subprocess.run(
            ["bash", "-c", code, "bash", *words], capture_output=True, text=True, check=True
        )
        assert done.stderr == ""
        offered = set(done.stdout.split())
        assert expected <= offered if "ddp_s" in line else expected == offered

    def test_classes_are_offered(self, script):
        text = script.read_text()
        assert "lightning_recon.attacks.LDPAttack" in text
        assert "lightning_recon.data.CIFAR10DataModule" in text
        assert len(text) < 5_000_000

    def test_says_what_is_missing(self, monkeypatch, capsys):
        monkeypatch.setattr("lightning_recon.commands.completion.find_spec", lambda name: None)
        assert main(["completion", "bash"]) == 2
        assert "completion needs the package shtab: pip install shtab" in capsys.readouterr().err


def test_a_run_that_was_stopped_says_how_to_go_on(tmp_path):
    assert going_on(tmp_path, ["test", "--config", "x.yaml"]) is None
    (tmp_path / "config.yaml").touch()
    assert going_on(tmp_path, ["test"]) == f"python cli.py test --resume {tmp_path}"
    assert going_on(tmp_path, ["fit", "--config", "a b.yaml"]) is None
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/last.ckpt").touch()
    line = going_on(tmp_path, ["fit", "--config", "a b.yaml"])
    assert (
        line
        == f"python cli.py fit --config 'a b.yaml' --ckpt_path {tmp_path}/checkpoints/last.ckpt"
    )


def test_a_logger_without_its_package_is_told_by_name():
    said = r"trainer\.logger \(WandbLogger\): it needs a package: pip install 'wandb>=0.12.10'$"
    with (
        pytest.raises(InputError, match=said),
        making("trainer.logger", {}, "WandbLogger"),
    ):
        raise ModuleNotFoundError("Requirement 'wandb>=0.12.10' not met. HINT: Try running pip")
