"""Train picto and install its weights: two hours on two cores, minutes on a GPU. Killed, it goes on where it was."""

import argparse
import dataclasses
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import distributed
from training.picto import classify, clip, latent_guard, unet, vae
from training.picto.export import export, text_tower
from training.picto.fetch import fetch
from training.picto.loop import Budget, place
from training.picto.render import load_sprites
from transformers import CLIPModel, CLIPTokenizer, RegNetForImageClassification, ResNetForImageClassification

from efface.picto.world import OBJECTS

HERE = Path(__file__).parent
CACHE, RUNS = HERE / "cache", HERE / "runs"
SHIPPED = HERE.parents[1] / "src" / "efface" / "picto" / "weights"

WAVES = (("vae", "clip"), ("tagger", "judge"), ("unet",))  # stages of one wave do not need each other
BUDGETS = {
    "vae": Budget(12, rate=2e-3, average=0.998),
    "clip": Budget(12, rate=1e-3, average=0.998),
    "tagger": Budget(5, rate=2e-3, average=0.998),
    "judge": Budget(5, rate=2e-3, average=0.998),
    "unet": Budget(76, rate=1e-3, average=0.999),
}
CLASSES = {
    "vae": AutoencoderKL,
    "clip": CLIPModel,
    "tokenizer": CLIPTokenizer,
    "tagger": ResNetForImageClassification,
    "judge": RegNetForImageClassification,
    "unet": UNet2DConditionModel,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the stages asked for, wave by wave, and install what they made."""
    options = _options(arguments)
    if "WORLD_SIZE" in os.environ:
        distributed.init_process_group("gloo")
    for wave in WAVES:
        stages = [stage for stage in wave if stage in options.stages]
        if len(stages) == 2 and options.threads >= 2:
            _side_by_side(stages, options.minutes, options.device)
            continue
        if stages == ["unet"] and options.threads >= 2 and options.device == "cpu":
            _split(options.threads, options.minutes)
            continue
        for stage in stages:
            torch.set_num_threads(options.threads)
            torch.manual_seed(sum(stage.encode()))  # for the first weights; the loop seeds every step itself
            minutes = options.minutes.get(stage, BUDGETS[stage].minutes)
            run(stage, dataclasses.replace(BUDGETS[stage], minutes=minutes), torch.device(options.device))
    if options.install:
        export({part: source(part) for part in CLASSES}, SHIPPED)
        latent_guard.install()  # it reads the text encoder's states: a new encoder needs a new guard
        print(f"installed {SHIPPED}")


def run(stage: str, budget: Budget, device: torch.device) -> None:
    """Train one stage, from its checkpoint or the shipped weights or nothing, and keep the result under runs/STAGE."""
    sprites = load_sprites(fetch(CACHE, tuple(thing.codepoint for thing in OBJECTS)))
    tokens = load("tokenizer") if source("tokenizer").exists() else clip.words()
    makers = {
        "vae": vae.new,
        "clip": lambda: clip.new(tokens),
        "tagger": classify.new_tagger,
        "judge": classify.new_judge,
        "unet": unet.new,
    }
    net = (load(stage) if source(stage).exists() else makers[stage]()).to(device)
    checkpoint = RUNS / f"{stage}.pt"
    if stage == "vae":
        net = vae.fit(net, sprites, budget, checkpoint)
    elif stage == "clip":
        tokens.save_pretrained(RUNS / "tokenizer")
        net = clip.fit(net, tokens, sprites, budget, checkpoint)
    elif stage == "unet":
        text = text_tower(load("clip")).to(device)
        cache = unet.remember(load("vae").to(device), text, tokens, sprites, RUNS / "latents.pt")
        net = unet.fit(net, cache, budget, checkpoint)
    else:
        net = classify.fit(net, sprites, budget, checkpoint, seed=stage)
    if place()[0] == 0:
        net.save_pretrained(RUNS / stage)


def source(part: str) -> Path:
    """Where a part is: this run's if it is finished, else the shipped one."""
    return RUNS / part if (RUNS / part).exists() else SHIPPED / part


def load(part: str):
    """A trained part in float32, or the tokenizer."""
    found = CLASSES[part].from_pretrained(source(part))
    return found if part == "tokenizer" else found.float().eval()


def _side_by_side(stages: Sequence[str], minutes: Mapping[str, float], device: str) -> None:
    """One process and one thread each: threads that fight for a busy core are fifty times slower."""
    children = []
    for stage in stages:
        command = [
            sys.executable,
            "-m",
            "training.picto",
            "--stages",
            stage,
            "--threads",
            "1",
            "--device",
            device,
            "--no-install",
        ]
        if stage in minutes:
            command += ["--minutes", f"{stage}={minutes[stage]}"]
        children.append(subprocess.Popen(command))
    if any(child.wait() for child in children):
        raise SystemExit(f"a stage of {', '.join(stages)} failed; its message is above")


def _split(processes: int, minutes: Mapping[str, float]) -> None:
    """The UNet in processes of one thread that share each batch: they meet once a step, threads at every layer."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command += ["-m", "training.picto", "--stages", "unet", "--threads", "1", "--device", "cpu", "--no-install"]
    command += [word for stage in minutes if stage == "unet" for word in ("--minutes", f"unet={minutes[stage]}")]
    subprocess.run(command, check=True)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    def budget(text: str) -> tuple[str, float]:
        stage, _, number = text.partition("=")
        if stage not in BUDGETS:
            raise argparse.ArgumentTypeError(f"no stage {stage!r}; there are {', '.join(BUDGETS)}")
        return stage, float(number)

    parser = argparse.ArgumentParser(prog="python -m training.picto", description=__doc__)
    parser.add_argument("--stages", nargs="+", choices=BUDGETS, default=list(BUDGETS), help="default: all of them")
    parser.add_argument(
        "--minutes", nargs="+", type=budget, default=[], metavar="STAGE=N", help="time budgets, resumed runs included"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--install",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="write src/efface/picto/weights at the end",
    )
    options = parser.parse_args(arguments)
    options.minutes = dict(options.minutes)
    return options


if __name__ == "__main__":
    main()
