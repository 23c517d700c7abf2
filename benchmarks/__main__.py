"""What the engine and the classic attacks reach, beside a public collection of attacks.

    pip install -r benchmarks/requirements.txt && python -m benchmarks [--quick]

Runs the parts of benchmarks/README.md one after the other.  A run that was stopped goes on where it
was.  Writes benchmarks/results/latest.csv and latest.png.
"""

from benchmarks import (
    exactness,
    lightning_share,
    parity,
    scaling,
    seed_figure,
    speed,
    time_to_quality,
)
from benchmarks.records import note_absent_peer, parser, records_of

PARTS = {
    "speed": speed.run,
    "lightning_share": lightning_share.run,
    "time_to_quality": time_to_quality.run,
    "parity": parity.run,
    "exactness": exactness.run,
    "seed_figure": seed_figure.run,
    "scaling": scaling.run,
}


def main() -> None:
    """Run the parts, and publish after each."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    options = arguments.parse_args()
    note_absent_peer()
    records = records_of(options)
    for name in options.parts:
        print(f"--- {name}", flush=True)
        records.publish(PARTS[name](options, records))


if __name__ == "__main__":
    main()
