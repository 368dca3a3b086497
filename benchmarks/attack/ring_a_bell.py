"""Time a generation of Ring-A-Bell's search at ViT-L/14 text shapes beside the plain published loop, written out here.

    python -m benchmarks.attack.ring_a_bell    # twelve minutes of one free core; 14 GB for the plain loop

Writes results/ring_a_bell.json and prints a table. One thread, random weights, population 200, K = 16. The search runs
to its steady state; from there both forms go on from the same population and the same random numbers, and must come to
the same populations. CPU seconds (unlike wall seconds, fair beside other work) of whole generations; the peak is the
highest resident memory of the whole process, with the model. The plain loop runs in a forked process of its own, as
published (it keeps the autograd graph) and again without gradients.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from benchmarks.closed_form import shapes
from benchmarks.closed_form.clock import apart, reset_peak, resident
from benchmarks.origin import git, origin
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from efface.anatomy import Encoder
from efface.attack import _concept_vector
from efface.attack._genetic import Search, in_batches
from efface.attack.ring_a_bell import RingABell, distance

HERE = Path(__file__).parent
PAIRS = (("a photo of a dog on grass", "a photo of grass"), ("a dog in a street", "a street"))
PROMPT = "a painting of a garden"
FREE, STRENGTH = 16, 3.0
FASTER, MEMORY = 3.0, 2.5e9
"""What must be reached."""


def text_encoder() -> Encoder:
    """123,060,480 random float32 weights."""
    torch.manual_seed(0)
    words = shapes.tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(words), hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
        max_position_embeddings=shapes.WINDOW, bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )  # fmt: skip
    return Encoder(words, CLIPTextModel(config).eval(), shapes.WINDOW)


class Plain:
    """The published loop: a list of (1, L) tensors, the whole population in one call, nothing remembered."""

    def __init__(self, encoder: Encoder, wanted: Tensor, search: Search) -> None:
        self.encoder, self.wanted, self.settings = encoder, wanted, search.settings
        self.alphabet = search.alphabet.tolist()
        self.dice = torch.Generator()
        self.dice.set_state(search.dice.get_state())
        words = encoder.tokenizer
        self.members = [
            torch.tensor([[words.bos_token_id, *genes, *[words.eos_token_id] * (shapes.WINDOW - 1 - len(genes))]])
            for genes in search.population.tolist()
        ]

    def generation(self) -> None:
        """Fitness, selection, crossover and mutation."""
        states = self.encoder.network(torch.cat(self.members)).last_hidden_state
        losses = ((self.wanted - states) ** 2).sum(dim=(1, 2))
        order = sorted(range(len(self.members)), key=losses.tolist().__getitem__)
        parents = [self.members[i] for i in order][: self.settings.population // 2]
        S = len(parents)
        crossed = torch.rand(S, generator=self.dice) < self.settings.crossover
        mates = torch.randint(S, (S,), generator=self.dice).tolist()
        cuts = torch.randint(FREE, (S,), generator=self.dice).tolist()
        members = list(parents)
        for i in range(S):
            if crossed[i]:
                one, other, cut = parents[i], parents[mates[i]], cuts[i] + 1
                members.append(torch.cat((one[:, :cut], other[:, cut:]), dim=1))
                members.append(torch.cat((other[:, :cut], one[:, cut:]), dim=1))
        n = len(members)
        mutated = torch.rand(n, generator=self.dice) < self.settings.mutation
        places = torch.randint(FREE, (n,), generator=self.dice).tolist()
        values = torch.randint(len(self.alphabet), (n,), generator=self.dice).tolist()
        for i in range(n):
            if mutated[i]:
                members[i] = members[i].clone()
                members[i][0, places[i] + 1] = self.alphabet[values[i]]
        self.members = members

    @property
    def genes(self) -> Tensor:
        return torch.cat(self.members)[:, 1 : FREE + 1].int()


def timed(work: Any) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def plain(encoder: Encoder, wanted: Tensor, search: Search, ours: list[Tensor], graph: bool) -> dict[str, Any]:
    """CPU seconds of each generation, and whether its population is ours."""
    reset_peak()
    loop, seconds, same = Plain(encoder, wanted, search), [], []
    with torch.set_grad_enabled(graph):
        for population in ours:
            seconds.append(timed(loop.generation))
            same.append(torch.equal(loop.genes, population))
    return {"cpu": seconds, "same_population": same, "peak": resident("VmHWM")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settle", type=int, default=60, help="generations before the steady state")
    parser.add_argument("--measured", type=int, default=6, help="generations of ours that are timed there")
    parser.add_argument("--plain", type=int, default=2, help="generations of the plain loop")
    parser.add_argument("--population", type=int, default=200)
    parser.add_argument("--name", default="ring_a_bell", help="write results/<name>.json")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    begun = os.getloadavg()
    attack = RingABell(population=chosen.population, generations=chosen.settle + chosen.measured)
    encoder = text_encoder()
    alphabet = torch.arange(1, len(encoder.tokenizer) - 2)  # as published; typing plays no part in the time
    read = partial(_concept_vector.of_texts, encoder)
    wanted = read([PROMPT])[0] + STRENGTH * _concept_vector.vector(read, PAIRS)
    score = in_batches(distance(encoder, wanted), attack.batch)
    search = Search(attack._genetic, alphabet, FREE, score, lambda _: True, seed=0)
    reset_peak()
    generations: list[dict[str, Any]] = []

    def step() -> None:
        search.population = search.varied(search.generation())

    def told() -> None:
        asked, scored = search.asked, search.scored
        took = timed(step)
        generations.append({"cpu": took, "asked": search.asked - asked, "scored": search.scored - scored})
        print(len(generations), {**generations[-1], "loss": search.curve[-1]}, flush=True)

    for _ in range(chosen.settle):
        told()
    start = Search(attack._genetic, alphabet, FREE, score, lambda _: True, seed=0)
    start.population = search.population
    start.dice.set_state(search.dice.get_state())
    ours = []
    for _ in range(chosen.measured):
        told()
        ours.append(search.population)
    peak = resident("VmHWM")
    ours_cpu = mean(one["cpu"] for one in generations[chosen.settle :])
    first = ours[: chosen.plain]
    rows = {
        name: apart(lambda graph=graph: plain(encoder, wanted, start, first, graph))
        for name, graph in (("plain, as published", True), ("plain, without gradients", False))
    }
    faster = {name: mean(row["cpu"]) / ours_cpu for name, row in rows.items()}
    result = {
        **origin(),
        "uncommitted": git("status", "--porcelain", "--", "../../src/efface/attack", ".").splitlines(),
        "load": {"start": begun, "end": os.getloadavg()},
        "search": repr(attack._genetic), "free_tokens": FREE, "batch": attack.batch, "ids": len(alphabet),
        "settle": chosen.settle, "cpu": ours_cpu, "peak": peak, "generations": generations, "plain": rows,
        "times_less": faster, "same_trajectory": all(all(row["same_population"]) for row in rows.values()),
        "bar": {"times_less": FASTER, "peak": MEMORY},
        "met": faster["plain, as published"] >= FASTER and peak < MEMORY,
    }  # fmt: skip
    HERE.joinpath("results").mkdir(exist_ok=True)
    HERE.joinpath("results", f"{chosen.name}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(
        f"ours {ours_cpu:.2f} CPU s a generation, peak {peak / 1e9:.2f} GB, same trajectory {result['same_trajectory']}"
    )
    for name, row in rows.items():
        print(f"{name}: {mean(row['cpu']):.2f} CPU s, peak {row['peak'] / 1e9:.2f} GB, {faster[name]:.2f} times ours")


if __name__ == "__main__":
    main()
