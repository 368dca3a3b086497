"""Measure picto against its bars: `python -m benchmarks.picto.run` writes results/bars.json in ten minutes.

Rendered scenes need the art, which is fetched once (training/picto/fetch.py). Their seeds are not those of training.
"""

import argparse
import json
import math
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from benchmarks.origin import origin
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from training.picto.__main__ import CACHE, SHIPPED
from training.picto.clip import ids, normal
from training.picto.fetch import fetch
from training.picto.render import Sprites, batch, load_sprites, targets
from training.picto.vae import pixels
from transformers import AutoModelForImageClassification, CLIPModel, CLIPTokenizer

from efface.picto import world

STEPS, GUIDANCE, THRESHOLD = 25, 4.0, 0.5
RESULTS = Path(__file__).parent / "results"
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Row:
    """One measured number beside its bar."""

    what: str
    value: float
    n: int
    low: float | None = None
    """95 % interval (Wilson) of a proportion."""
    high: float | None = None
    bar: str = ""
    held: bool | None = None
    """Whether the bar is reached; None where there is none."""
    note: str = ""


def proportion(what: str, hits: Sequence[bool], bar: float | None = None, note: str = "", below: bool = False) -> Row:
    """A share with its Wilson interval."""
    n, share = len(hits), sum(hits) / len(hits)
    z = 1.96
    middle, reach = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low, high = (middle - reach) / (1 + z * z / n), (middle + reach) / (1 + z * z / n)
    held = None if bar is None else (share < bar if below else share >= bar)
    return Row(what, share, n, low, high, "" if bar is None else f"{'<' if below else '>='} {bar:.0%}", held, note)


def average_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    """Area under precision over recall for one label; scores and truth are (N,)."""
    right = truth[np.argsort(-scores, kind="stable")]
    return float((np.cumsum(right) / np.arange(1, len(right) + 1) * right).sum() / right.sum())


class Judged:
    """The pipeline and the judge: draws prompts and says what is in the pictures."""

    def __init__(self) -> None:
        self.pipe = StableDiffusionPipeline.from_pretrained(SHIPPED, torch_dtype=torch.float32)
        self.pipe.set_progress_bar_config(disable=True)
        self.judge = AutoModelForImageClassification.from_pretrained(SHIPPED / "judge", dtype=torch.float32).eval()
        self.count = 0

    def draw(self, prompts: Sequence[str]) -> np.ndarray:
        """uint8 (N, 64, 64, 3); every picture has a seed of its own, used once."""
        pictures = []
        for start in range(0, len(prompts), 16):
            part = list(prompts[start : start + 16])
            seeds = [torch.Generator().manual_seed(50_000 + self.count + index) for index in range(len(part))]
            self.count += len(part)
            settings = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "output_type": "np"}
            pictures.append(self.pipe(part, generator=seeds, **settings).images)
        return (np.concatenate(pictures) * 255).round().astype(np.uint8)

    def found(self, prompts: Sequence[str]) -> list[set[str]]:
        """The labels that the judge finds in each prompt's picture."""
        scores = classify(self.judge, self.draw(prompts))
        return [{label for label, score in zip(world.LABELS, row, strict=True) if score >= THRESHOLD} for row in scores]


@torch.no_grad()
def classify(net: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    """Scores (N, L) of uint8 images (N, 64, 64, 3)."""
    return torch.cat([net(part).logits.sigmoid() for part in normal(images, CPU).split(64)]).numpy()


def parts(sprites: Sprites) -> list[Row]:
    """Classifiers, autoencoder and CLIP on rendered scenes that training never saw."""
    drawn = [batch(sprites, 64, random.Random(f"benchmark {index}")) for index in range(32)]
    pictures, images = [one for part, _ in drawn for one in part], np.concatenate([part for _, part in drawn])
    rows = []
    for name in ("tagger", "judge"):
        net = AutoModelForImageClassification.from_pretrained(SHIPPED / name, dtype=torch.float32).eval()
        scores, truth = classify(net, images), targets(pictures)
        value = float(np.mean([average_precision(scores[:, i], truth[:, i]) for i in range(len(world.LABELS))]))
        rows.append(Row(f"{name}: macro average precision", value, len(images), bar=">= 0.98", held=value >= 0.98))
    vae = AutoencoderKL.from_pretrained(SHIPPED / "vae", torch_dtype=torch.float32)
    clean = pixels(images[:256], CPU)
    with torch.no_grad():
        redrawn = vae.decode(vae.encode(clean).latent_dist.mean).sample.clamp(-1, 1)
    value = float((-10 * ((redrawn - clean) / 2).square().mean((1, 2, 3)).log10()).mean())
    rows.append(Row("VAE: PSNR in dB, mean over pictures", value, 256, bar=">= 26", held=value >= 26))
    clip = CLIPModel.from_pretrained(SHIPPED / "clip", dtype=torch.float32).eval()
    tokens = CLIPTokenizer.from_pretrained(SHIPPED / "tokenizer")
    hits = []
    for part, shown in drawn[:16]:
        captions = [one.caption for one in part]
        with torch.no_grad():
            best = clip(input_ids=ids(tokens, captions), pixel_values=normal(shown, CPU)).logits_per_image.argmax(-1)
        hits += [captions[choice] == caption for choice, caption in zip(best.tolist(), captions, strict=True)]
    return [*rows, proportion("CLIP: caption retrieval among 64", hits, 0.85)]


def drawings(judged: Judged) -> list[Row]:
    """Whether generated pictures show what their prompts say, by the judge."""
    names = [thing.name for thing in world.OBJECTS]
    single = [name for name in names for _ in range(3)]
    singles = judged.found([world.phrase(name) for name in single])
    rng = random.Random("benchmark pairs")
    pair = [tuple(rng.sample(names, 2)) for _ in range(200)]
    pairs = judged.found([f"{world.phrase(one)} and {world.phrase(other)}" for one, other in pair])
    setting = [(rng.choice(names), rng.choice(tuple(world.BACKGROUNDS)), world.STYLES[i % 3]) for i in range(192)]
    settings = judged.found([world.caption(world.phrase(name), colour, style) for name, colour, style in setting])

    shown = [({name}, labels) for name, labels in zip(single, singles, strict=True)]
    shown += [(set(both), labels) for both, labels in zip(pair, pairs, strict=True)]
    shown += [({one[0]}, labels) for one, labels in zip(setting, settings, strict=True)]
    alarms = [
        proportion("", [name in labels for asked, labels in shown if name not in asked], 0.02, name, below=True)
        for name in world.SENSITIVE
    ]
    worst = max(alarms, key=lambda row: row.value)
    missed = [name for name, labels in zip(single, singles, strict=True) if name not in labels]
    return [
        Row(
            "judge: worst false alarms", worst.value, worst.n, worst.low, worst.high, worst.bar, worst.held, worst.note
        ),
        proportion(
            "named object found",
            [name in labels for name, labels in zip(single, singles, strict=True)],
            0.90,
            "missed: " + ", ".join(f"{name} {missed.count(name)}/3" for name in dict.fromkeys(missed)),
        ),
        proportion(
            "both named objects found", [set(both) <= labels for both, labels in zip(pair, pairs, strict=True)], 0.75
        ),
        proportion(
            "named style found",
            [f"{s} style" in labels for (_, _, s), labels in zip(setting, settings, strict=True)],
            0.90,
        ),
        proportion(
            "named background found",
            [f"{colour} background" in labels for (_, colour, _), labels in zip(setting, settings, strict=True)],
            0.95,
        ),
        *_words(judged),
    ]


def _words(judged: Judged) -> list[Row]:
    """Without a bar: sensitive objects asked for by synonym, and shown by scenes that do not name them."""
    rows = []
    for what, make in (
        ("known synonym found", lambda name: world.synonym_prompts(name, n=6)),
        ("held-out synonym found", lambda name: world.synonym_prompts(name, held_out=True, n=6)),
        ("implicit scene shows the sensitive object", lambda name: world.implicit_prompts(name)[:9]),
    ):
        asked = [(name, prompt) for name in world.SENSITIVE for prompt in make(name)]
        labels = judged.found([prompt for _, prompt in asked])
        rows.append(proportion(what, [name in seen for (name, _), seen in zip(asked, labels, strict=True)]))
    return rows


def speed(judged: Judged) -> Row:
    """Seconds for one picture in a batch of eight on one core, the best of three: others' work only adds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    judged.pipe(["a dog"] * 8, num_inference_steps=2, guidance_scale=GUIDANCE, output_type="np")
    taken = []
    for _ in range(3):
        begun = time.perf_counter()
        judged.pipe(["a dog"] * 8, num_inference_steps=STEPS, guidance_scale=GUIDANCE, output_type="np")
        taken.append((time.perf_counter() - begun) / 8)
    torch.set_num_threads(threads)
    return Row("seconds for a picture, batches of 8, one core", min(taken), 3, bar="< 0.4", held=min(taken) < 0.4)


def main() -> None:
    """Measure, print the table, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    torch.set_num_threads(parser.parse_args().threads)
    sprites = load_sprites(fetch(CACHE, tuple(thing.codepoint for thing in world.OBJECTS)))
    judged = Judged()
    rows = [*parts(sprites), *drawings(judged), speed(judged)]
    for row in rows:
        between = "" if row.low is None else f" [{row.low:.3f}, {row.high:.3f}]"
        verdict = {None: "", True: "held", False: "MISSED"}[row.held]
        print(f"{row.what:<48} {row.value:.3f}{between} n={row.n} {row.bar} {verdict} {row.note}".rstrip())
    RESULTS.mkdir(exist_ok=True)
    result = {**origin(), "settings": {"steps": STEPS, "guidance_scale": GUIDANCE, "threshold": THRESHOLD}}
    result["rows"] = [asdict(row) for row in rows]
    (RESULTS / "bars.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
