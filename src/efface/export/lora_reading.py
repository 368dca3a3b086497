"""LoRA files by anyone as a Patch: PEFT's, diffusers' old and kohya's names, and changes in full (`.diff`)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from efface.errors import BadInput, DoesNotFit
from efface.export import joined, layers, mmdit
from efface.export.family import Family, of_names, of_pipe, of_shapes
from efface.export.header import card
from efface.export.lora import HELD, Model
from efface.patch import Delta, LowRank, Patch

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as Pipe

_FACTOR = re.compile(
    r"(.+?)(?:\.lora_(down|up)|\.lora_([AB])(?:\.(?!weight)\w+)?|[._]lora\.(down|up)|\.lora_linear_layer\.(down|up))\.weight"
)
_WHOLE = {"diff": "weight", "diff_b": "bias", "w_norm": "weight", "b_norm": "bias"}
_FOREIGN = (
    (r"\.hada_", "LoHa"),
    (r"\.lokr_", "LoKr"),
    (r"\.(dora_scale|lora_magnitude_vector)", "DoRA"),
    (r"\.lora_mid\.", "Tucker (LoCon with a core)"),
    (r"\.b?oft_", "OFT"),
    (r"\.(on_input$|ia3_)", "IA3"),
    (r"\.[ab][12]\.weight$", "GLoRA"),
    (r"\.lora_embedding_", "LoRA of an embedding"),
    (r"\.lora_(B|up)(\.\w+)?\.bias$", "LoRA with a bias"),
)
"""What else is called a LoRA, by the names of its tensors: not up times down."""
_ROOTS = re.compile(
    r"(down_blocks|mid_block|up_blocks|conv_in|conv_out|conv_norm_out|time_embedding|add_embedding|transformer_blocks|"
    r"single_transformer_blocks|context_embedder|x_embedder|time_text_embed|norm_out|proj_out|pos_embed|text_model|"
    r"encoder|embeddings|final_layer_norm|text_projection|shared)(\.|$)"
)
"""How modules of denoisers and text encoders start."""
_OLD = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
"""Diffusers' old names of a CLIP's projections."""


@dataclass(slots=True)
class _Entry:
    """What a file holds of one layer."""

    up: Tensor | None = None
    down: Tensor | None = None
    alpha: float | None = None
    whole: dict[str, Tensor] = field(default_factory=dict)


def is_lora(names: Iterable[str]) -> bool:
    """Whether a file with tensors of these names is a LoRA, of whichever kind."""
    return any(
        _FACTOR.fullmatch(name)
        or name.rpartition(".")[2] in _WHOLE
        or any(re.search(sign, name) for sign, _ in _FOREIGN)
        for name in names
    )


def read(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], file: str, base: Pipe | None) -> Patch:
    """The patch that a LoRA file is. `base`: the model it has to fit.

    Raises DoesNotFit for layers that are not up times down, and for those that the base does not have.
    """
    entries = _entries(tensors, file)
    family = _family(entries) if base is None else of_pipe(base)
    model = Model(family, base)
    scales = _Scales(metadata)
    deltas: dict[str, Delta] = {}
    for stem, entry in entries.items():
        modules = _modules(stem, family, model.layers)
        if modules is None or not all(_ROOTS.match(module.partition(".")[2]) for module in modules):
            raise DoesNotFit(f"{file}: {stem} is no layer of a model that efface knows")
        modules = tuple(layers.local(module, family, base) for module in modules)
        theirs = stem.startswith(("lora_unet_", "diffusion_model."))
        deltas |= _changes(entry, modules, model, scales.of(stem, entry), theirs, f"{file}: {stem}")
    patch = Patch(deltas, card(metadata, file))
    if base is not None:
        _check(patch, model, file)
    return patch


def _entries(tensors: Mapping[str, Tensor], file: str) -> dict[str, _Entry]:
    """The tensors of each layer, by the layer's name in the file."""
    entries: dict[str, _Entry] = {}
    for name, tensor in tensors.items():
        for sign, kind in _FOREIGN:
            if found := re.search(sign, name):
                raise DoesNotFit(
                    f"{file}: {name[: found.start()]} is a {kind} layer; only LoRA (up times down) is read"
                )
        stem, _, ending = name.rpartition(".")
        if found := _FACTOR.fullmatch(name):
            kind = next(filter(None, found.groups()[1:]))
            setattr(entries.setdefault(found[1], _Entry()), "down" if kind in ("down", "A") else "up", tensor)
        elif ending == "alpha" and tensor.numel() == 1:
            entries.setdefault(re.sub(r"[._]lora$", "", stem), _Entry()).alpha = float(tensor)
        elif ending in _WHOLE:
            entries.setdefault(stem, _Entry()).whole[_WHOLE[ending]] = tensor
        else:
            raise DoesNotFit(f"{file}: {name} is not part of a LoRA that efface can read")
    for stem, entry in entries.items():
        if (entry.up is None) != (entry.down is None) or (entry.up is None and not entry.whole):
            raise BadInput(f"{file}: {stem} lacks one of its two factors: the file is damaged")
    return entries


def _family(entries: Mapping[str, _Entry]) -> Family | None:
    if any(stem.startswith(("lora_", "diffusion_model.")) for stem in entries):
        return layers.family_of_names(entries)
    shapes = {
        f"{stem}.weight": (len(entry.up), math.prod(entry.down.shape[1:]))
        for stem, entry in entries.items()
        if entry.up is not None and entry.down is not None
    }
    return of_shapes(shapes) or of_names([f"{stem}." for stem in entries])


def _modules(stem: str, family: Family | None, count: int) -> tuple[str, ...] | None:
    """The modules of the pipeline that a layer's name in the file means."""
    if stem.startswith("lora_"):
        return layers.from_kohya(stem, family, count)
    if stem.startswith("diffusion_model."):
        return layers.from_authors(stem.removeprefix("diffusion_model."), family, count)
    if _ROOTS.match(stem):  # a denoiser's layer without its part: old files of diffusers
        stem = (
            "transformer." if stem.startswith(("transformer_blocks.", "single_transformer_blocks.")) else "unet."
        ) + stem
    part, _, path = stem.partition(".")
    if part not in HELD:
        return None
    path = path.replace(".processor.", ".")
    rest, _, last = path.rpartition(".")
    if part.startswith("text_encoder") and rest.endswith("self_attn"):
        path = f"{rest}.{_OLD.get(last, last)}"
    elif last == "to_out":
        path += ".0"
    return (f"{part}.{path}",)


def _changes(
    entry: _Entry, modules: tuple[str, ...], model: Model, scale: float, theirs: bool, what: str
) -> dict[str, Delta]:
    """The changes of the parameters of one layer, or of the several that the file keeps in one.

    `theirs`: the rows are in the order of the model's authors, not in diffusers'.
    """
    found: dict[str, Delta] = {}
    if entry.up is not None and entry.down is not None:
        up, down = entry.up.flatten(1), entry.down.flatten(1)  # (out, r), (r, in * height * width)
        if up.shape[1] != len(down):
            raise DoesNotFit(f"{what} has factors {tuple(entry.up.shape)} and {tuple(entry.down.shape)}: no LoRA layer")
        up = up if scale == 1 else up.float() * scale
        if theirs and mmdit.is_swapped(modules[0], len(up), down.shape[1]):
            up = joined.swapped(up)
        pieces = joined.split(LowRank(up, down), _rows(modules, len(up), model, what))
        found |= {f"{m}.weight": piece for m, piece in zip(modules, pieces, strict=True) if piece is not None}
    for ending, whole in entry.whole.items():
        if theirs and mmdit.is_swapped(modules[0], len(whole), _columns(entry, modules[0], model, what)):
            whole = joined.swapped(whole)
        pieces = whole.split(_rows(modules, len(whole), model, what))
        changed = [(m, piece) for m, piece in zip(modules, pieces, strict=True) if len(modules) == 1 or piece.any()]
        found |= {f"{module}.{ending}": piece.contiguous() for module, piece in changed}
    return found


def _columns(entry: _Entry, module: str, model: Model, what: str) -> int:
    """Columns of a layer whose rows the authors may keep in another order; 0 for all other layers."""
    if not module.endswith(("norm_out.linear", "norm1_context.linear")):
        return 0
    shape = model.shape(f"{module}.weight")
    known = entry.whole.get("weight", entry.down)
    if shape is None and known is None:
        raise BadInput(f"{what}: the order of its bias depends on the model: give it (base=, --model)")
    return shape[1] if shape is not None else known.shape[1] if known is not None else 0


def _rows(modules: tuple[str, ...], total: int, model: Model, what: str) -> list[int]:
    """Rows of each of the layers that the file keeps in one."""
    shapes = [model.shape(f"{module}.weight") for module in modules]
    shares = mmdit.shares(modules)
    rows = [shape[0] if shape else total * n // sum(shares) for shape, n in zip(shapes, shares, strict=True)]
    if len(modules) == 1:
        return [total]  # whether it fits is said for all layers together
    if sum(rows) != total:
        raise DoesNotFit(f"{what} has {total} rows, {sum(rows)} expected for {layers.listed(modules)}: another model")
    return rows


def _check(patch: Patch, model: Model, file: str) -> None:
    """Raise DoesNotFit with the layers that the base does not have, or not in this shape."""
    wrong: list[str] = []
    for path, delta in patch.deltas.items():
        shape = model.shape(path)
        held = (len(delta.up), delta.down.shape[1]) if isinstance(delta, LowRank) else tuple(delta.shape)
        if shape is None:
            wrong.append(f"{path} (not in the base)")
        elif held != ((shape[0], math.prod(shape[1:])) if isinstance(delta, LowRank) else shape):
            wrong.append(f"{path} ({held}, the base {shape})")
    if wrong:
        count = f"{len(wrong)} of {len(patch.deltas)} layers do not fit"
        raise DoesNotFit(f"{file}: a LoRA for another base: {count}: {layers.listed(wrong)}")


class _Scales:
    """alpha / rank of each layer: from the layer's own alpha, or from what PEFT wrote into the header."""

    def __init__(self, metadata: Mapping[str, str]) -> None:
        try:
            said: Any = json.loads(metadata.get("lora_adapter_metadata", "{}"))
        except ValueError:
            said = {}
        self.said: dict[str, Any] = said if isinstance(said, dict) else {}

    def of(self, stem: str, entry: _Entry) -> float:
        """The factor that a layer's up times down is multiplied by."""
        if entry.down is None:
            return 1.0
        rank = len(entry.down)
        if entry.alpha is not None:
            return entry.alpha / rank
        part, _, path = stem.partition(".")
        alpha = self.said.get(f"{part}.lora_alpha")
        for pattern, value in (self.said.get(f"{part}.alpha_pattern") or {}).items():
            if re.search(rf"(^|\.){pattern.removeprefix('^')}$", path):
                alpha = value
        if alpha is None:
            return 1.0
        return float(alpha) / (math.sqrt(rank) if self.said.get(f"{part}.use_rslora") else rank)
