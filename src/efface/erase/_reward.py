"""What the pictures of a policy are worth: without the concept, and still what else was asked for.

    reward = meaning · cos(CLIP(picture), CLIP(sanitised caption)) - unsafe · detector(picture)

Both terms are standardised over the round before they are weighted, so that neither drowns the other.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from efface import models, networks
from efface.clip import Clip
from efface.core import Concept, Detector, worst
from efface.erase._policy import standardised
from efface.errors import EffaceError, UnknownName

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, slots=True)
class Ask:
    """A prompt, what its picture should show (None: nothing is said), and whether it asks for the concept."""

    prompt: str
    caption: str | None
    unsafe: bool


def asked(concepts: Sequence[Concept]) -> tuple[list[Ask], list[Ask]]:
    """Prompts that ask for a concept, and prompts that do not."""
    unsafe = [Ask(prompt, concept.anchor or None, True) for concept in concepts for prompt in concept.asked]
    unsafe += [Ask(shown, without, True) for concept in concepts for shown, without in concept.pairs]
    kept = [prompt for concept in concepts for prompt in (*concept.keep, *(without for _, without in concept.pairs))]
    names = {ask.prompt for ask in unsafe}
    benign = [Ask(prompt, prompt, False) for prompt in dict.fromkeys(kept) if prompt not in names]
    if not benign:
        warnings.warn("no kept prompts: nothing holds the pictures of everything else", stacklevel=4)
    return unsafe, benign


def some(asks: Sequence[Ask], count: int, repeats: int, dice: torch.Generator) -> list[Ask]:
    """So many prompts, each `repeats` times in a row; all of them before any comes again."""
    found: list[Ask] = []
    while len(found) < count:
        found += [asks[i] for i in torch.randperm(len(asks), generator=dice).tolist() for _ in range(repeats)]
    return found[:count]


def rewards(
    step: int,
    asks: Sequence[Ask],
    pictures: Sequence[Image],
    judge: Detector,
    clip: Clip,
    unsafe: float,
    meaning: float,
) -> list[dict[str, Any]]:
    """A row for each picture: score, similarity to the sanitised caption, whether it fired, reward."""
    scores, rows = judge.scores(pictures), list[dict[str, Any]]()
    captions = clip.text([ask.caption or "" for ask in asks])
    similar = (clip.image(pictures) * captions).sum(1).tolist()
    limit = judge.fitted if judge.fitted is not None else 0.5
    for i, (ask, found, near) in enumerate(zip(asks, scores, similar, strict=True)):
        if (highest := worst(found)[1]) != highest:
            raise EffaceError(f'step {step}: the detector gives no score for picture {i}, drawn for "{ask.prompt}"')
        rows.append({
            "prompt": ask.prompt, "score": sum(found.values()), "fired": highest >= limit,
            "similarity": None if ask.caption is None else near,
        })  # fmt: skip
    shown = standardised([row["score"] for row in rows], [row["score"] for row in rows])
    told = [row["similarity"] for row in rows if row["similarity"] is not None]
    for row, seen in zip(rows, shown, strict=True):
        like = 0.0 if row["similarity"] is None else standardised([row["similarity"]], told)[0]
        row["reward"] = meaning * like - unsafe * seen
    return rows


def judge_of(clip: Clip, concepts: Sequence[Concept], tagger: str = "", labels: Sequence[str] = ()) -> Detector:
    """A detector of the concepts: an image classifier's labels (by default the concepts' names), or CLIP's own."""
    if not tagger:
        return ZeroShot(clip, concepts)
    return Tagger(tagger, labels or [concept.name for concept in concepts], clip.model.device)


@dataclass(frozen=True, eq=False)
class ZeroShot(Detector):
    """The share of CLIP's softmax that falls on the concepts' words, against anchors and kept prompts."""

    reads: ClassVar[Any] = "image"

    clip: Clip
    concepts: Sequence[Concept]

    def scores(self, items: Sequence[Any]) -> list[Mapping[str, float]]:
        """One share for each picture."""
        asked = [prompt for concept in self.concepts for prompt in concept.asked]
        others = [prompt for concept in self.concepts for prompt in (concept.anchor, *concept.keep)]
        texts = self.clip.text([*asked, *others])
        shares = (self.clip.scale * self.clip.image(items) @ texts.T).softmax(-1)
        return [{"concept": share} for share in shares[:, : len(asked)].sum(1).tolist()]


class Tagger(Detector):
    """The probability of some labels of an image classifier: sigmoids where it is multi-label, a softmax otherwise."""

    reads: ClassVar[Any] = "image"

    def __init__(self, source: str, labels: Sequence[str], device: Any) -> None:
        from transformers import AutoModelForImageClassification

        # by its own file: transformers 5.17 says of the name at the top that it needs torchvision
        from transformers.models.auto.image_processing_auto import AutoImageProcessor

        where = models.locate(source)
        with networks.reading(f"{source}: no classifier"):
            network = networks.load(AutoModelForImageClassification, where, source, dtype=torch.float32)
            self._processor: Any = AutoImageProcessor.from_pretrained(where, backend="pil")
        known: Mapping[str, int] = network.config.label2id
        for label in labels:
            if label not in known:
                raise UnknownName(f"label of {source}", label, known, "name the labels that count (labels)")
        self._network: Any = network.eval().requires_grad_(False).to(device)
        self._at = {label: known[label] for label in labels}

    @torch.no_grad()
    def scores(self, items: Sequence[Any]) -> list[Mapping[str, float]]:
        """Each label's probability for each picture."""
        if not items:
            return []
        pixels = self._processor([picture.convert("RGB") for picture in items], return_tensors="pt").pixel_values
        logits = self._network(pixels.to(self._network.device)).logits.float()
        several = self._network.config.problem_type == "multi_label_classification"
        found = (logits.sigmoid() if several else logits.softmax(-1)).tolist()
        return [{label: row[i] for label, i in self._at.items()} for row in found]
