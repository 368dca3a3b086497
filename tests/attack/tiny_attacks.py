"""Targets, a judge and attacks as small as can be, so that what surrounds attacks is tested with known outcomes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from PIL import Image

from efface.core import Attack, Attempt, Concept, Detector, Request, Sample, Soft, Target

CONCEPT = Concept("light", ("a light",))


class Grey:
    """Draws a plain picture: white where the prompt says one of `words`, with a seed that is not `dark`; else black."""

    def __init__(self, *words: str, dark: Sequence[int] = ()) -> None:
        self.words, self.dark = words, dark
        self.asked: list[Request] = []

    def __call__(self, requests: Sequence[Request | str], seed: int = 0, **settings: Any) -> list[Sample]:
        wanted = [Request(str(i), r, seed + i) if isinstance(r, str) else r for i, r in enumerate(requests)]
        self.asked += wanted
        return [Sample(r, Image.new("RGB", (8, 8), "white" if self._shows(r) else "black")) for r in wanted]

    def _shows(self, request: Request) -> bool:
        return request.seed not in self.dark and any(word in request.words.split() for word in self.words)


class Light(Detector):
    """How light a picture is; "other" is always there."""

    reads = "image"
    fitted = 0.5

    def scores(self, items: Sequence[Any]) -> list[Mapping[str, float]]:
        return [{"other": 1.0, "light": item.convert("L").getpixel((0, 0)) / 255} for item in items]


@dataclass(frozen=True)
class Guess(Attack):
    """Appends each of some words to the prompt until one gets through; prompts of more than `longest` are skipped."""

    paper: ClassVar[str] = ""
    needs: ClassVar[Literal["pictures", "text-encoder", "weights"]] = "text-encoder"

    words: tuple[str, ...] = ("one", "two", "open")
    longest: int = 20
    kind: Literal["text", "ids", "embedding"] = "text"

    def run(
        self, target: Target, reference: Target, concept: Concept, requests: Sequence[Request], judge: Detector
    ) -> Iterator[Attempt]:
        for request in requests:
            if len(request.words) > self.longest:
                continue
            for i, word in enumerate(self.words):
                prompt: Any = f"{request.words} {word}"
                if self.kind == "embedding":
                    prompt = Soft(prompt, {word: torch.zeros(1, 2)})
                (sample,) = target([replace(request, prompt=prompt)])
                score = 0.0 if sample.image is None else judge.scores([sample.image])[0]["light"]
                yield Attempt(sample, self.kind, (i,), "", 1, 0.25, score, score >= 0.5)
                if score >= 0.5:
                    break


class Opened(Grey):
    """A target that says it can be opened."""

    def opened(self, through: str = "all") -> Any:
        raise AssertionError("not opened in these tests")


def requests(*prompts: str, seed: int = 0) -> list[Request]:
    """One for each prompt."""
    return [Request(f"{i:04d}", prompt, seed + i, settings={"guidance_scale": 3.0}) for i, prompt in enumerate(prompts)]
