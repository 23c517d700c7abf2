"""A federation of Flower on this machine: a server, two clients, four runs; and their audit.

python examples/flower_audit/run.py [--data FOLDER_OR_NPZ] [--output FOLDER] [--runs plain ...]

Needs flwr and opacus (pip install flwr opacus), and Fashion-MNIST (Debian's
package dataset-fashion-mnist) or CIFAR-10 as an .npz.  Everything listens on 127.0.0.1 and is ended
with the script.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
DATA = "/usr/share/datasets/fashion-mnist"
RUNS = {
    "plain": "",
    "local-dp-1": "local-dp-epsilon=1.0",
    "local-dp-1000": "local-dp-epsilon=1000.0",
    "opacus": "opacus-noise=1.0",
}
RED_TEAM = {
    f"{name}{suffix}": f'red-team="{name}" learning-rate=1.0 local-epochs=1 images=4{epsilon}'
    for name in ("RobbingTheFed", "CuriousAbandonHonesty", "SpectralLDPAttack")
    for suffix, epsilon in (
        ("", ""),
        ("-local-dp-1000", " local-dp-epsilon=1000.0"),
        ("-local-dp-1", " local-dp-epsilon=1.0"),
    )
}
STARTING = 60  # seconds until the server answers
RUNNING = 120  # seconds that a run may take


def main() -> None:
    """Run the federations, and audit what was captured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=DATA, help="folder of Fashion-MNIST, or an .npz")
    parser.add_argument("--output", default="flower_audit_output", type=Path)
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument(
        "--red-team",
        nargs="+",
        choices=RED_TEAM,
        metavar="RUN",
        help=f"instead: have the app ship a malicious model: {', '.join(RED_TEAM)}; "
        "the spectral one takes images of three channels",
    )
    arguments = parser.parse_args()
    data = Path(arguments.data).resolve()
    if not data.exists():
        sys.exit(f"no data at {data}: apt install dataset-fashion-mnist, or --data cifar10.npz")
    if missing := [name for name in ("flwr", "opacus") if find_spec(name) is None]:
        sys.exit(f"pip install {' '.join(missing)}, on Python 3.11 or later")
    output = arguments.output.resolve()
    if output.exists():
        sys.exit(f"{output} exists; choose another --output, or remove it")
    output.mkdir(parents=True)
    with federation(output) as environment:
        for name in arguments.red_team or arguments.runs:
            federated_run(name, data, output, environment)
    if arguments.red_team:
        folders = [str(output / name) for name in arguments.red_team]
        print(python(HERE / "red_team.py", *folders))
    else:
        audit(arguments.runs, data, output)


@contextmanager
def federation(output: Path) -> Iterator[dict[str, str]]:
    """Start a server and two clients; end them, and whatever they started, at the end."""
    home = output / "flower_home"
    home.mkdir()
    server, *clients = free_ports(3)
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n\n[superlink.here]\n'
        f'address = "127.0.0.1:{server}"\ninsecure = true\n'
    )
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    environment = os.environ | {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": paths,
    }
    link = ["flower-superlink", "--insecure", "--port", str(server)]
    commands = {"server": [*link, "--disable-runtime-dependency-installation"]}
    for place, port in enumerate(clients):
        node = ["flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{server}"]
        own = ["--port", str(port), "--node-config", f"partition-id={place}"]
        commands[f"client{place}"] = [*node, *own]
    processes = []
    try:
        for name, command in commands.items():
            with (output / f"{name}.log").open("wb") as log:
                process = subprocess.Popen(
                    command, env=environment, stdout=log, stderr=log, start_new_session=True
                )
            processes.append(process)
            if name == "server":
                wait_until_open(server, process, output / "server.log")
        yield environment
    finally:
        for process in reversed(processes):
            end(process)


def federated_run(name: str, data: Path, output: Path, environment: dict[str, str]) -> None:
    """Have Flower run the app once."""
    started = time.monotonic()
    folders = (
        f'data="{data}" capture="{output / name / "capture"}" truth="{output / name / "truth"}"'
    )
    command = ["flwr", "run", str(HERE), "here", "--stream"]
    command += ["--run-config", f"{folders} {(RUNS | RED_TEAM)[name]}".strip()]
    try:
        with (output / f"{name}.log").open("wb") as log:
            found = subprocess.run(
                command, env=environment, stdout=log, stderr=log, timeout=RUNNING, cwd=output
            )
    except subprocess.TimeoutExpired:
        sys.exit(f"{name}: no end after {RUNNING} s; see {output / name}.log and client0.log")
    replies = list((output / name / "capture").glob("rounds/*/*.json"))
    if found.returncode or len(replies) != 2:
        sys.exit(f"{name}: {len(replies)} of 2 replies; see {output / name}.log and client0.log")
    print(f"{name}: captured in {time.monotonic() - started:.0f} s", flush=True)


def audit(names: list[str], data: Path, output: Path) -> None:
    """Audit the captures by the command, and by hand."""
    net = "ColourNet" if data.suffix == ".npz" else "FashionNet"
    for name in names:
        folder = output / name
        options = ["--model", f"flower_audit.task:{net}", "--truth", str(folder / "truth")]
        options += ["--output", str(folder / "audit")]
        arguments = ["audit", str(folder / "capture"), *options]
        print(f"\n{name}: python cli.py audit\n{python(ROOT / 'cli.py', *arguments)}", flush=True)
    folders = [str(output / name) for name in names]
    print(f"\nby hand, in Python:\n{python(HERE / 'by_hand.py', *folders)}")


def python(program: Path, *arguments: str) -> str:
    """Return what a program of Python prints."""
    paths = os.pathsep.join([str(HERE), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths.rstrip(os.pathsep), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(program), *arguments]
    found = subprocess.run(command, env=environment, capture_output=True, text=True)
    if found.returncode:
        sys.exit(f"{program.name} failed: {found.stderr[-2000:]}")
    return found.stdout.strip()


def free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 on which nobody listens."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [found.getsockname()[1] for found in sockets]
    for found in sockets:
        found.close()
    return ports


def wait_until_open(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return when the server answers."""
    deadline = time.monotonic() + STARTING
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    sys.exit(f"the server did not answer within {STARTING} s; see {log}")


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started."""
    for sign in (signal.SIGTERM, signal.SIGKILL):  # what it started may outlive it
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, sign)
            process.wait(10)


if __name__ == "__main__":
    main()
