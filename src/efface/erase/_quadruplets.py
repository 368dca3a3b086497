"""Quadruplets (safe caption, unsafe caption, safe picture, unsafe picture): from a CSV file, or made of concepts and
drawn by the pipeline itself; and what CLIP's towers make of them.

Pictures are there for every quadruplet or for none.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from efface import anatomy, cache, picture_file, tokens
from efface.anatomy import Family
from efface.clip import BATCH, Clip
from efface.core import Concept
from efface.erase._rollout import nothing, rolled
from efface.errors import BadInput
from efface.noise import decoded
from efface.progress import track
from efface.tokens import Tokens

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as Pipe

CAPTIONS, PICTURES = ("safe", "unsafe"), ("safe_image", "unsafe_image")
AT_ONCE = 8
"""Pictures drawn in one call."""
NEIGHBOURS, SHOWN = 10, 512
"""K of the neighbours, and the safe captions at most that the diagnostics look at."""


@dataclass(frozen=True, slots=True)
class Quadruplets:
    """N of them. A picture is a file, opened when it is needed, or in memory."""

    safe: tuple[str, ...]
    unsafe: tuple[str, ...]
    safe_images: tuple[Path | Image.Image, ...] = ()
    unsafe_images: tuple[Path | Image.Image, ...] = ()

    def __len__(self) -> int:
        return len(self.safe)

    def batch(self, size: int, dice: torch.Generator) -> Tensor:
        """Indices of at most `size` quadruplets, no safe caption twice: in a contrast two equal ones would be each
        other's wrong answer."""
        chosen: dict[str, int] = {}
        for index in torch.randperm(len(self), generator=dice).tolist():
            chosen.setdefault(self.safe[index], index)
            if len(chosen) == size:
                break
        return torch.tensor(list(chosen.values()))


def read(path: str | Path) -> Quadruplets:
    """The rows of a CSV file with the columns safe, unsafe and, if it has pictures, safe_image and unsafe_image (files,
    relative to the CSV's folder). Raises BadInput naming the row and what is wrong with it."""
    path = Path(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file)
            columns = tuple(table.fieldnames or ())
            rows = list(table)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{path}: the quadruplets cannot be read: {error}") from error
    pictures = [name for name in PICTURES if name in columns]
    wanted = CAPTIONS + (PICTURES if pictures else ())
    if missing := [name for name in wanted if name not in columns]:
        raise BadInput(
            f"{path}: no column {', '.join(missing)}; expected safe, unsafe and, for pictures, safe_image and "
            f"unsafe_image, found {', '.join(columns) or 'an empty file'}"
        )
    if not rows:
        raise BadInput(f"{path}: the file has no quadruplets, only its first line")
    for line, row in enumerate(rows, start=2):
        if empty := next((name for name in wanted if not (row[name] or "").strip()), None):
            raise BadInput(f"{path}: row {line} has no {empty}")
        for name in pictures:
            if not path.parent.joinpath(row[name]).is_file():
                raise BadInput(f"{path}: row {line}: there is no picture {row[name]}")
    safe, unsafe = (tuple(row[name] for row in rows) for name in CAPTIONS)
    if not pictures:
        return Quadruplets(safe, unsafe)
    files = [tuple(path.parent / row[name] for row in rows) for name in PICTURES]
    return Quadruplets(safe, unsafe, *files)


def made(concepts: Sequence[Concept]) -> Quadruplets:
    """Captions alone: the concepts' pairs, their prompts with their anchor, and each kept prompt with itself (to be
    redirected to itself is to be preserved)."""
    rows = dict.fromkeys(
        row
        for concept in concepts
        for row in (
            *((without, asked) for asked, without in concept.pairs),
            *((concept.anchor, asked) for asked in concept.asked),
            *((kept, kept) for kept in concept.keep),
        )
    )
    return Quadruplets(tuple(safe for safe, _ in rows), tuple(unsafe for _, unsafe in rows))


@torch.no_grad()
def drawn(family: Family, captions: Quadruplets, steps: int, guidance: float, seed: int) -> Quadruplets:
    """The same with pictures that the model draws of its captions; a caption that stands on both sides is drawn once.

    They are looked at by CLIP alone, and neither shown nor kept.
    """
    pairs = zip(captions.safe, captions.unsafe, strict=True)
    wanted = [(row, side, text) for row, pair in enumerate(pairs) for side, text in enumerate(dict.fromkeys(pair))]
    found: dict[tuple[int, int], Image.Image] = {}
    for start in track(range(0, len(wanted), AT_ONCE), "drawing quadruplets"):
        some = wanted[start : start + AT_ONCE]
        dice = torch.Generator().manual_seed(seed * len(wanted) + start)
        found |= {(row, side): picture for (row, side, _), picture in
                  zip(some, _pictures(family, [t for *_, t in some], steps, guidance, dice), strict=True)}  # fmt: skip
    rows = range(len(captions))
    return replace(
        captions,
        safe_images=tuple(found[row, 0] for row in rows),
        unsafe_images=tuple(found.get((row, 1), found[row, 0]) for row in rows),
    )


def opened(pictures: Sequence[Path | Image.Image]) -> list[Image.Image]:
    """The pictures themselves. Raises BadInput naming a file that is none."""
    return [picture if isinstance(picture, Image.Image) else picture_file.read(picture) for picture in pictures]


def _pictures(
    family: Family, prompts: Sequence[str], steps: int, guidance: float, dice: torch.Generator
) -> list[Image.Image]:
    """The end of a rollout, decoded."""
    text, null = family.encode(prompts), nothing(family)
    null = null[torch.zeros(len(prompts), dtype=torch.long, device=null.states.device)]
    latents = rolled(family, text, null, guidance, steps, steps, dice)[-1].latents
    return decoded(family, latents)


class Towers:
    """What the towers make of the quadruplets; the rows of the safe ones as they were found. N quadruplets, B of them
    in a batch, D the width of the shared space. All rows have unit length."""

    safe_texts: Tensor
    """T0(S), (N, D)."""
    safe_pictures: Tensor | None
    """I0(V), (N, D), where there are pictures."""

    def __init__(self, family: Family, clip: Clip | None, known: Quadruplets) -> None:
        self._encoder, self._clip, self._known = family.encoders[0].network, clip, known
        self._read = family.tokenize([*known.safe, *known.unsafe], "longest")[0]
        chunks = torch.arange(len(known)).split(BATCH)
        with torch.no_grad():
            pairs = [[rows.clone() for rows in self.text(index)] for index in chunks]
            self.safe_texts, self._unsafe_texts = (torch.cat(rows) for rows in zip(*pairs, strict=True))
            self.safe_pictures = None
            if clip is not None and known.safe_images:
                pictures = known.safe_images
                self.safe_pictures = torch.cat([clip.image(opened([pictures[i] for i in index])) for index in chunks])

    @property
    def digest(self) -> str:
        """Hash of the captions and of what the pictures are to CLIP."""
        pictures = () if self.safe_pictures is None else (self.safe_pictures,)
        return cache.digest(*self._known.safe, *self._known.unsafe, *pictures)

    def text(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """T(S), T(U), each (B, D); keeps gradients."""
        both = torch.cat([index, index + len(self._known)])
        mask = self._read.mask[both] if self._read.mask is not None else None
        length = int(mask.sum(1).max()) if mask is not None else self._read.ids.shape[1]
        # what follows the end marker is never read: the attention is causal
        out = tokens.encode(self._encoder, Tokens(self._read.ids[both, :length]))
        if (rows := getattr(out, "text_embeds", None)) is None:
            rows = out.pooler_output.float()
            rows = rows if self._clip is None else self._clip.model.text_projection(rows)
        safe, unsafe = normalize(rows.float(), dim=-1).chunk(2)
        return safe, unsafe

    def image(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """I(V), I(G), each (B, D); keeps gradients."""
        clip, known = self._clip, self._known
        assert clip is not None  # pictures are there only where something looks at them
        pictures = [side[i] for side in (known.safe_images, known.unsafe_images) for i in index.tolist()]
        pixels = clip.processor([p.convert("RGB") for p in opened(pictures)], return_tensors="pt").pixel_values
        out = clip.model.vision_model(pixels.to(clip.model.device)).pooler_output
        safe, unsafe = normalize(clip.model.visual_projection(out), dim=-1).chunk(2)
        return safe, unsafe

    def diagnosed(self) -> dict[str, str]:
        """What became of the space, called where the student is on: how far unsafe captions went and safe ones did."""
        rows = {caption: i for i, caption in enumerate(self._known.safe)}
        index = torch.tensor(list(rows.values())[:SHOWN])
        parts = [self.text(some) for some in index.split(BATCH)]
        safe, unsafe = (torch.cat(side) for side in zip(*parts, strict=True))
        before = self.safe_texts[index]
        k = min(NEIGHBOURS, len(index) - 1)
        return {
            "redirected": f"{_cosine(self._unsafe_texts[index], before):.3f} -> {_cosine(unsafe, before):.3f}",
            "preserved": f"{_cosine(safe, before):.3f}",
            "spread": f"{float(spread(safe) / spread(before)) if k else 1:.3f}",
            "neighbours": f"{neighbours(before, safe, k) if k else 1.0:.3f}",
        }


def halves(pipe: Pipe, clip: Clip) -> tuple[str, str]:
    """Hashes of the pipeline's text encoder and of the CLIP's text half, in the pipeline's precision."""
    names = [name for name, _ in pipe.text_encoder.named_parameters()]
    own = {_inner(n): anatomy.stored(*anatomy.place(pipe, f"text_encoder.{n}")) for n in names}
    prefixes = ("text_model.", "text_projection.") if "text_projection.weight" in own else ("text_model.",)
    other = {_inner(n): p for n, p in clip.model.named_parameters() if n.startswith(prefixes)}
    precision = next(iter(own.values())).dtype
    hashed = (cache.digest(*(x for n in sorted(half) for x in (n, half[n].to(precision)))) for half in (own, other))
    return next(hashed), next(hashed)


def spread(rows: Tensor) -> Tensor:
    """How far unit rows (N, D) lie from their mean, mean of squares: 0 where all have become one."""
    return (rows - rows.mean(0)).square().sum(1).mean()


def neighbours(before: Tensor, after: Tensor, k: int) -> float:
    """Share of the k nearest rows that stayed: |both| / |either|, mean over rows (N, D)."""
    at = torch.arange(len(before))
    near = []
    for rows in (before, after):
        cosines = (rows @ rows.T).index_put((at.to(rows.device),) * 2, torch.tensor(-2.0, device=rows.device))
        near.append(torch.zeros_like(cosines, dtype=torch.bool).scatter(1, cosines.topk(k).indices, True))
    one, two = near
    return float(((one & two).sum(1) / (one | two).sum(1)).mean())


def _cosine(rows: Tensor, others: Tensor) -> float:
    return float((rows * others).sum(1).mean())


def _inner(name: str) -> str:
    return name.removeprefix("text_model.")
