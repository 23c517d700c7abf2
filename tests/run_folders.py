"""Run folders as a run leaves them, for the tests of pages; and what those pages must hold to."""

import csv
import json
import re
from html.parser import HTMLParser

import torch

from lightning_recon.audit.scores import METRICS, aggregate
from lightning_recon.report.pictures import save_pictures

VOID = {"meta", "img", "br", "hr", "link", "input"}
EVIL = '<img src=x onerror="alert(1)">&</script>{{ "z" * 9 }}'


class Page(HTMLParser):
    """Collects a page's tags and text, and demands that every tag is closed in order."""

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.attributes, self.text, self._open = [], "", []
        self.feed(self.source)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.attributes.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] not in ("style", "script"):
            self.text += data

    def of(self, tag):
        return [attributes for name, attributes in self.attributes if name == tag]

    @property
    def cards(self):
        return re.findall(r"Client (\d+), image (\d+)</h3>", self.source)

    def must_be_self_contained_and_accessible(self):
        markup = re.sub(r"<script>.*</script>", "", self.source, flags=re.DOTALL)
        assert not re.search(r"https?:|@import|url\(|<link|\son\w+=", markup)
        assert all(image["src"].startswith("data:image/") for image in self.of("img"))
        assert all(image["alt"] for image in self.of("img"))
        assert self.of("html") == [{"lang": "en"}]
        assert len(self.of("h1")) == len(self.of("main")) == 1
        assert all(head["scope"] in ("row", "col") for head in self.of("th"))
        identifiers = [a["id"] for _, a in self.attributes if "id" in a]
        assert len(identifiers) == len(set(identifiers))
        targets = [a["href"][1:] for a in self.of("a")]
        targets += [a["aria-labelledby"] for a in self.of("section") if "aria-labelledby" in a]
        targets += [a["data-table"] for a in self.of("div") if "data-table" in a]
        targets += [a["data-copy"] for a in self.of("button") if "data-copy" in a]
        assert set(targets) <= set(identifiers)
        scrolling = [a for a in self.of("div") if a.get("class") == "scroll"]
        assert scrolling
        assert all(a["tabindex"] == "0" and a["aria-label"] for a in scrolling)
        charts = [a for a in self.of("svg") if "aria-hidden" not in a]
        assert all(a["role"] == "img" and a["aria-label"] for a in charts)

    def must_not_run(self, text):
        """Demand that hostile text is shown as text."""
        assert all("onerror" not in attributes for _, attributes in self.attributes)
        assert "<img src=x" not in self.source
        assert len(self.of("script")) == 1
        assert "z" * 9 not in self.text
        return self.text.count(text)


def make_rows(num_clients, batch=4, seed=0, is_recovered=lambda client, image: image % 2 == 0):
    random = torch.Generator().manual_seed(seed)
    rows = []
    for client in range(num_clients):
        for image in range(batch):
            recovered = is_recovered(client, image)
            noise = torch.randn(4, generator=random).tolist()
            row = {
                "client": client,
                "image": image,
                "index": 1000 * client + image,
                "label": image % 3,
                "matched": image if recovered else -1,
                "recovered": int(recovered),
            }
            for name in METRICS:
                row[name] = (30 if recovered else 12) + noise[0] if "psnr" in name else 0.5
            row |= {"mask_area": 0.25, "psnr_mean_image": 12 + noise[1] / 10}
            row |= {"psnr_nearest_public": 14 + noise[2] / 10, "identified": int(recovered)}
            row["score"] = noise[3] if recovered else float("nan")
            rows.append(row)
    return rows


def make_results(rows, **more):
    results = {
        "experiment": "ldp_imagenet",
        "attack": "LDPAttack",
        "citation": "You et al., 2025",
        "threat_model": "The server sees the update after its defenses.",
        "oracles": ["labels"],
        "target": "resnet18",
        "defenses": ["ClipL2", "GaussianNoise"],
        "data": {"name": "imagenet", "fallback": None, "description": "validation images"},
        "masks": {"method": "sam", "mean_area": 0.31, "replaced": 2},
        "privacy": {
            "clip_norm": 10.0,
            "noise_std": 0.002,
            "claimed": {"epsilon": 10.0, "rule": "record_mean"},
            "actual": {"epsilon": 48213.7, "delta": 1e-5},
            "statement": "Not a theorem about what is released.",
        },
        "seed": 7,
        "num_clients": len({row["client"] for row in rows}),
        "failures": [],
        "clients_unrecovered": [],
        **aggregate(rows, len(rows), 1000),
        "recovered_psnr": 19.0,
        "notes": [{"client": 0, "rows_hit": 3}],
        "curves": [
            {"client": client, "iteration": [1, 2, 3], "objective": [9.0, 3.0, 1.0 + client]}
            for client in range(2)
        ],
        "wall_seconds": 312.4,
        "peak_memory_bytes": 3 * 2**30,
        "import_memory_bytes": 2**29,
        "device": "cpu, 2 threads",
        "num_processes": 2,
        "trainer_precision": "32-true",
        "versions": {"torch": "2.15.0"},
        "command": "python cli.py fit --config configs/ldp_imagenet.yaml",
    }
    results["null"]["noise_only"] = {"psnr": 9.9, "recovered": 0}
    return results | more


def write_rows(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: "" if v != v else v for k, v in row.items()})


def truth_of(row, size=16):
    random = torch.Generator().manual_seed(int(row["index"]))
    return torch.rand(3, size, size, generator=random)


def write_run(folder, rows, results=None, pictured_clients=2, config="seed: 7\n", size=16):
    """Write a run folder; the reconstruction of an image is half as bright as the image."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results or make_results(rows)))
    if rows:
        write_rows(folder / "clients.csv", rows)
    if config:
        (folder / "config.yaml").write_text(config)
    for row in rows:
        if row["client"] < pictured_clients:
            truth = truth_of(row, size)
            shown = truth / 2 if row["matched"] >= 0 else None
            place = row["client"], row["image"]
            save_pictures(folder / "reconstructions", *place, truth, shown)
    return folder
