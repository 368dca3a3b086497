"""What a guidance costs at Stable Diffusion 1.4's layout: rows of the denoiser, and CPU time beyond them.

    python -m benchmarks.guide.rows                   # ten minutes on one core
    python -m benchmarks.guide.rows --only sld        # one guidance; the file's other rows stay

Rows are counted on a tiny pipeline at 50 steps: they do not depend on size. Time is CPU time of this process on the
real layout with random weights at 32 x 32 latents: what is spent in the guidance's own methods, over what the stock
step takes, median of 7 steps; what is done once for a picture is added, spread over 50 steps. At 64 x 64 the network's
self-attention grows faster than anything that a guidance does, so the shares are smaller there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from benchmarks.guide.settings import GUIDANCES, guidance
from benchmarks.origin import origin
from diffusers import DDIMScheduler, UNet2DConditionModel
from tests import tiny
from transformers import CLIPTextConfig, CLIPTextModel

from efface.core import Concept
from efface.steer import Guidance

RESULTS = Path(__file__).parent / "results" / "rows.json"
STEPS, TIMED, SIZE = 50, 7, 256
CONCEPT = Concept("cigarette", ("a cigarette",), anchor="a flower", pairs=(("a cigarette", "a flower"),))
PROMPT = "a dog with a cigarette"
METHODS = ("prepare", "rows", "steer", "attend", "after")


def counted(given: Guidance | None) -> int:
    """Rows that reach the denoiser for one picture at 50 steps."""
    pipe, rows = tiny.tiny_pipeline(), 0
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)

    def count(_: Any, args: Any) -> None:
        nonlocal rows
        rows += len(args[0])

    pipe.unet.conv_in.register_forward_pre_hook(count)
    with given.on(pipe) if given else warnings.catch_warnings():
        pipe(PROMPT, num_inference_steps=STEPS, output_type="latent")
    return rows


@contextmanager
def clocked(cls: type[Guidance]) -> Iterator[dict[str, list[float]]]:
    """CPU seconds of each call of the guidance's own methods, by name."""
    spent: dict[str, list[float]] = {name: [] for name in METHODS}
    before = {name: getattr(cls, name) for name in METHODS}

    def timed(name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            begun = time.process_time()
            try:
                return before[name](*args, **kwargs)
            finally:
                spent[name].append(time.process_time() - begun)

        return call

    own = [name for name in METHODS if getattr(cls, name) is not getattr(Guidance, name)]
    for name in own:
        setattr(cls, name, timed(name))
    try:
        yield spent
    finally:
        for name in own:
            setattr(cls, name, before[name])


def real() -> Any:
    """A pipeline with Stable Diffusion 1.4's U-Net and text encoder, random weights, a small autoencoder."""
    pipe = tiny.tiny_pipeline()
    torch.manual_seed(0)
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    vocabulary = pipe.text_encoder.config.vocab_size
    ends = {"bos_token_id": pipe.tokenizer.bos_token_id, "eos_token_id": pipe.tokenizer.eos_token_id}
    encoder = CLIPTextModel(CLIPTextConfig(
        vocab_size=vocabulary, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
        **ends,
    ))  # fmt: skip
    pipe.register_modules(unet=unet.eval().requires_grad_(False), text_encoder=encoder.eval().requires_grad_(False))
    return pipe


def drawn(pipe: Any, given: Guidance | None) -> list[float]:
    """CPU seconds of each denoising step, the guidance's share in it."""
    ends = [0.0]

    def told(*args: Any) -> Any:
        ends.append(time.process_time())
        return args[3]

    ends[0] = time.process_time()
    with given.on(pipe) if given else warnings.catch_warnings():
        pipe(PROMPT, num_inference_steps=TIMED, height=SIZE, width=SIZE, output_type="latent",
             callback_on_step_end=told)  # fmt: skip
    return [after - before for before, after in pairwise(ends)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="guidances whose name holds this")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found = {row["guidance"]: row for row in json.loads(RESULTS.read_text())["rows"]} if RESULTS.exists() else {}
    pipe = real()
    pipe.vae_scale_factor = 8
    stock = statistics.median(drawn(pipe, None)[1:])  # the first also encodes the prompt
    found["stock"] = {"guidance": "stock", "rows": counted(None), "step": stock}
    for name in (name for name in GUIDANCES if given.only in name):
        one = guidance(name, CONCEPT)
        with clocked(type(one)) as spent:
            drawn(pipe, one)
        calls = {method: len(times) // TIMED for method, times in spent.items() if len(times) >= TIMED}
        each = {
            m: statistics.median(sum(spent[m][i * k : (i + 1) * k]) for i in range(TIMED)) for m, k in calls.items()
        }
        once = sum(spent["prepare"]) + sum(max(0.0, spent[m][0] - each[m] / calls[m]) for m in calls)
        share = (sum(each.values()) + once / STEPS) / stock
        found[name] = {"guidance": name, "settings": repr(one), "rows": counted(one), "once": once, "each": each,
                       "overhead": share}  # fmt: skip
        print(f"{name:24} {found[name]['rows']:4} rows, {share:.2%} beyond them ({once:.2f} s once)", flush=True)
        result = {
            **origin(), "steps": STEPS, "timed": TIMED, "rows": list(found.values()),
        }  # fmt: skip
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
