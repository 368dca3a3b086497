"""The sheet of `efface generate --sheet`: one prompt at five strengths of each guidance, a row for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from io import BytesIO
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont

from efface.bench.store import Folder
from efface.core import Defense, Sample
from efface.generate import Protected
from efface.progress import track
from efface.steer import Guidance

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as Pipe

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
SIDE = 256
"""Pixels that a picture's longer side has at most; smaller ones are made larger by whole factors."""
GAP = 12
LEFT = 230
INK, GREY, PAPER, NONE, EDGE = "#1a1a1a", "#666666", "#ffffff", "#e4e4e4", "#c8c8c8"


@dataclass(frozen=True, slots=True)
class Row:
    """One guidance at each of `STRENGTHS`, everything else as given."""

    guidance: Guidance
    samples: tuple[Sample, ...]


def draw(pipe: Pipe, defenses: Sequence[Defense], given: Sample, settings: Mapping[str, Any]) -> list[Row]:
    """Draw the rows. `given`: the request's answer with all defenses as they are, which need not be drawn again."""
    guides = [(i, one) for i, one in enumerate(defenses) if isinstance(one, Guidance)]
    cells = [(i, one, strength) for i, one in guides for strength in STRENGTHS]
    samples: list[Sample] = []
    for i, one, strength in track(cells, "drawing the sheet"):
        sample = given
        if strength != one.strength:
            changed = (*defenses[:i], replace(one, strength=strength), *defenses[i + 1 :])
            (sample,) = Protected(pipe, changed)([given.request], **settings)
        number = len(samples) // len(STRENGTHS)
        name = f"{number + 1}-{type(one).__name__.lower()}-{strength:g}"
        samples.append(replace(sample, request=replace(sample.request, id=name)))
    of_each = zip(*[iter(samples)] * len(STRENGTHS), strict=True)
    return [Row(one, found) for (_, one), found in zip(guides, of_each, strict=True)]


def keep(run: Folder, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Write the pictures and the sheet; gives what the card says of them."""
    kept = []
    for row in rows:
        pictures = [
            {"strength": strength, **run.keep(sample, "sheet")}
            for strength, sample in zip(STRENGTHS, row.samples, strict=True)
        ]
        kept.append({"guidance": repr(row.guidance), "strengths": list(STRENGTHS), "pictures": pictures})
    png = BytesIO()
    picture(rows).save(png, format="PNG")
    run.write("sheet.png", png.getvalue())
    return kept


def picture(rows: Sequence[Row]) -> Image.Image:
    """All rows as one picture with labels."""
    width, height = _size([sample.image for row in rows for sample in row.samples])
    top = 3 * GAP + 3 * 22
    page = Image.new("RGB", (LEFT + (width + GAP) * len(STRENGTHS), top + (height + GAP) * len(rows)), PAPER)
    pen = ImageDraw.Draw(page)
    request = rows[0].samples[0].request
    others = ", the other guidances as given" if len(rows) > 1 else ""
    inside = page.width - 2 * GAP
    _write(pen, (GAP, GAP), f'"{request.words}", seed {request.seed}', inside, 18, INK, lines=1)
    about = f"each row: one guidance, from off to full strength{others}"
    _write(pen, (GAP, GAP + 22), about, inside, 14, GREY, lines=1)
    for k, strength in enumerate(STRENGTHS):
        left = LEFT + k * (width + GAP)
        _write(pen, (left, 2 * GAP + 2 * 22), _heading(strength), width, 16, INK, lines=1)
        for j, row in enumerate(rows):
            corner = (left, top + j * (height + GAP))
            image = row.samples[k].image
            edge = (corner[0] - 1, corner[1] - 1, corner[0] + width, corner[1] + height)
            pen.rectangle(edge, NONE, outline=EDGE)
            if image is None:
                _write(pen, (left + GAP, corner[1] + GAP), "refused by a guard", width - 2 * GAP, 16, GREY, lines=3)
            else:
                page.paste(image.convert("RGB").resize((width, height), _smooth(image, width)), corner)
    for j, row in enumerate(rows):
        at = top + j * (height + GAP)
        end = at + height
        label = f"{type(row.guidance).__name__} away from {row.guidance.concept.name}"
        at = _write(pen, (GAP, at), label, LEFT - 2 * GAP, 18, INK, lines=4)
        for said in _settings(row.guidance):
            if at + 2 * 17 <= end:  # more would run into the next row; the card has them all
                at = _write(pen, (GAP, at), said, LEFT - 2 * GAP, 13, GREY, lines=2)
    return page


def _heading(strength: float) -> str:
    return {0.0: "strength 0: off", 1.0: "1: full"}.get(strength, f"{strength:g}")


def _settings(guidance: Guidance) -> list[str]:
    """The settings that are not the usual ones, in words; those that all guidances have are on the sheet already."""
    own = [one for one in fields(guidance) if one.name not in ("concept", "strength")]
    changed = [(one.name, value) for one in own if (value := getattr(guidance, one.name)) != one.default]
    return [f"{name.replace('_', ' ')} {value:g}" if isinstance(value, float) else f"{name.replace('_', ' ')} {value}"
            for name, value in changed]  # fmt: skip


def _size(images: Sequence[Image.Image | None]) -> tuple[int, int]:
    """Of one picture on the sheet."""
    width, height = next((image.size for image in images if image is not None), (SIDE, SIDE))
    longer = max(width, height)
    scale = SIDE // longer if longer <= SIDE else SIDE / longer
    return round(width * scale), round(height * scale)


def _smooth(image: Image.Image, width: int) -> Image.Resampling:
    return Image.Resampling.LANCZOS if width < image.width else Image.Resampling.NEAREST


def _write(
    pen: ImageDraw.ImageDraw, at: tuple[int, int], text: str, width: int, size: int, ink: str, lines: int
) -> int:
    """Write words below one another so that they stay inside; gives the height at which they end."""
    font, wrapped = ImageFont.load_default(size), [""]
    for word in text.split():
        longer = f"{wrapped[-1]} {word}".strip()
        if wrapped[-1] and pen.textlength(longer, font) > width:
            wrapped.append(word)
        else:
            wrapped[-1] = longer
    if len(wrapped) > lines:
        wrapped[lines - 1 :] = [f"{wrapped[lines - 1]} ..."]
    for i, line in enumerate(wrapped):
        pen.text((at[0], at[1] + i * (size + 4)), line, ink, font)
    return at[1] + len(wrapped) * (size + 4)
