"""What the benchmark runner itself costs: the quick suite, the driver's share of it, and a store of 100,000 items.

    python -m benchmarks.bench.run            # about four minutes on two cores; writes results/runner.json

The driver's share is what is left of the working time when the units' own seconds and the making of the models are
taken off: planning, writing pictures and lines, the loop. Measuring and the report come after it and are apart.
"""

from __future__ import annotations

import json
import tempfile
import time
import tracemalloc
import warnings
from collections.abc import Mapping
from pathlib import Path

from benchmarks.origin import origin

from efface import __version__, models
from efface.bench import demo, suites, units
from efface.concepts import picto
from efface.core import Target
from efface.generate import Protected
from efface.patch import Patch

RESULTS = Path(__file__).parent / "results" / "runner.json"
ITEMS, BATCH = 100_000, 8


def quick(folder: Path) -> dict[str, float]:
    """The quick suite with one patch, from an empty folder to the report."""
    patch, making = folder / "uce.safetensors", [0.0]
    demo.eraser("uce").fit(models.load("picto"), picto("cigarette")).save(patch)

    def make() -> Mapping[str, Target]:
        begun = time.perf_counter()
        pipe = models.load("picto")
        made = {"none": Protected(pipe), "uce": Protected(pipe, (Patch.load(patch),))}
        making[0] = time.perf_counter() - begun
        return made

    begun = time.perf_counter()
    suites.picto_quick().run(
        folder / "run", make, {"uce": {"seconds": 0.0, "bytes": patch.stat().st_size, "method": "UCE"}}
    )
    whole = time.perf_counter() - begun
    spent = json.loads((folder / "run" / "timing.json").read_text())
    own = sum(row["seconds"] for row in spent["units"])
    driver = spent["seconds"] - own - making[0]
    return {
        "seconds": whole, "units": own, "making": making[0], "driver": driver,
        "driver_share": driver / spent["seconds"],
        "measuring_and_report": whole - spent["seconds"],
    }  # fmt: skip


def large(folder: Path) -> dict[str, float]:
    """Start a run that has 100,000 items behind it."""
    row = {"id": "named-000000@0", "prompt": "a dog on a blue background", "seed": 0, "file": "x.png", "verdicts": []}
    tail = json.dumps([row] * BATCH)
    with (folder / units.FILE).open("w") as file:
        file.writelines(f'{{"unit":"none/named/{i}","seconds":1.0,"rows":{tail}}}\n' for i in range(ITEMS // BATCH))
    (folder / units.CARD).write_text(json.dumps({"format": units.FORMAT, "efface": __version__}))
    begun = time.perf_counter()
    with units.opened(folder, {}, resume=True):
        seconds = time.perf_counter() - begun
    tracemalloc.start()
    with units.opened(folder, {}, resume=True):
        peak = tracemalloc.get_traced_memory()[1]
    return {"items": ITEMS, "file_bytes": (folder / units.FILE).stat().st_size, "seconds": seconds, "peak_bytes": peak}


def main() -> None:
    warnings.simplefilter("ignore")
    result = origin()
    for what in (large, quick):
        with tempfile.TemporaryDirectory() as folder:
            result[what.__name__] = what(Path(folder))
        print(what.__name__, json.dumps(result[what.__name__]), flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
