"""Latent Guard: which of a list of concepts a prompt asks for, by a small head on a frozen text encoder."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal
from weakref import WeakKeyDictionary

from torch import Tensor

from efface import anatomy, cache, models
from efface.core import Detector
from efface.detect import _concept_prompts, _mapping, _text_states, _weights
from efface.errors import BadInput, DoesNotFit
from efface.wording import LONGEST

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as Pipe

    from efface.anatomy import Text

RELEASED = "openai/clip-vit-large-patch14"
"""The text encoder of the released weights, which come without a configuration."""


@dataclass(frozen=True)
class LatentGuard(Detector):
    """How much of each listed concept is in a prompt; 7 ms for 578 concepts beyond the text encoding. arXiv:2404.08031.

    The prompt's states z are read through each concept c by attention; score = (cos(p', c') + 1) / 2, where p' is what
    c found in z and c' a map of c (Sec. 3). A prompt is refused when its largest score reaches the threshold. The list
    is data: adding or removing concepts needs no training, but a longer list refuses more harmless prompts, so fit the
    threshold again. Meanings near the training's concepts are found; others, attacks on the head, and prompts given as
    embeddings are not. Long prompts are read in windows; beyond 10,000 characters every score is NaN (refused).
    Needs: the text encoder it was trained with; a pipeline's own states are used where the encoder is the same.
    Weights: picto's are ours (Apache-2.0); the released ones (BSD-3-Clause) once converted to safetensors.
    Compared with: Blocklist (words, not meanings), Q16 and NudeNet (pictures: they cost a generation first).
    """

    reads: ClassVar[Literal["text", "image"]] = "text"

    model: str = "picto/latent_guard"
    """"picto/latent_guard", a folder that `efface train latent_guard` wrote, or the released weights as safetensors."""
    concepts: tuple[str, ...] = ()
    """What to look for, in place of the list that came with the weights."""
    file: str = ""
    """Text file with one concept a line, used in place of `concepts`; # starts a comment."""
    encoder: str = ""
    """Folder or hub id of the text encoder, where it lies elsewhere than the weights' configuration says."""
    device: str = "cpu"
    """Where the encoder and the head run."""

    def __post_init__(self) -> None:
        if self.file:
            _concept_prompts.listed(self.file)
        elif self.concepts:
            _concept_prompts.checked(self.concepts, "LatentGuard's concepts")

    @property
    def fitted(self) -> float | None:  # type: ignore[override]
        """The threshold that was fitted for these weights; None where they came without one."""
        return self._threshold.get("threshold")

    @property
    def limits(self) -> Mapping[str, float]:
        """Thresholds of single concepts, where the weights' threshold file has some ("limits")."""
        return self._threshold.get("limits", {})

    @property
    def about(self) -> Mapping[str, str]:
        """Which weights and encoder, how many concepts and a hash of them, and what the threshold was fitted for."""
        known = cache.digest(*sorted(self._listed))[:16]
        said = {"weights": self._hash, "encoder": self._encoder_name, "concepts": str(len(self._listed)), "list": known}
        if "concepts" in self._threshold:
            said["threshold_fitted_for"] = f"{self._threshold['concepts']} concepts"
        return said

    def scores(self, items: Sequence[Any]) -> list[Mapping[str, float]]:
        """Each concept's score for each prompt."""
        return self._scores([str(item) for item in items], None)

    def fits(self, pipe: Pipe) -> bool:
        """Whether the pipeline has one text encoder, and it and its tokenizer are those of the weights, by their hash.

        The hash is computed again when the encoder's weights have been written to.
        """
        try:
            encoders = anatomy.of(pipe).encoders
        except DoesNotFit:
            return False
        if len(encoders) != 1 or any(weight.is_meta for weight in encoders[0].network.parameters()):
            return False
        network, tokenizer = encoders[0].network, encoders[0].tokenizer
        stamp = (id(tokenizer), *((w.data_ptr(), w._version, w.dtype) for w in network.parameters()))
        known = self._seen.get(network)
        if known is None or known[0] != stamp:
            known = self._seen[network] = (stamp, _text_states.identity(network, tokenizer) == self._identity)
        return known[1]

    def encoded(self, text: Text, items: Sequence[str]) -> list[Mapping[str, float]]:
        """`scores` of prompts from a fitting pipeline's text; only what its window cuts off is encoded here."""
        if len(text.states) != len(items) or text.states.shape[-1] != self._head.width:
            raise DoesNotFit(
                f"text of shape {tuple(text.states.shape)} for {len(items)} prompts; this guard reads one row of "
                f"states of width {self._head.width} for each"
            )
        return self._scores(list(items), text.states)

    def _scores(self, texts: list[str], states: Tensor | None) -> list[Mapping[str, float]]:
        short = [i for i, text in enumerate(texts) if len(text) <= LONGEST]
        found: list[Mapping[str, float]] = [dict.fromkeys(self._listed, math.nan) for _ in texts]
        if short:
            first = None if states is None else states[short]
            rows = _mapping.scores(self._head, self._encoder, self._side, [texts[i] for i in short], first).tolist()
            for i, row in zip(short, rows, strict=True):
                found[i] = dict(zip(self._listed, row, strict=True))
        return found

    @cached_property
    def _folder(self) -> Path:
        """Where mapping.safetensors lies, or the file itself."""
        return Path(models.locate(self.model)).expanduser()

    @property
    def _file(self) -> Path:
        return self._folder / _mapping.FILE if self._folder.is_dir() else self._folder

    @cached_property
    def _config(self) -> Mapping[str, Any]:
        """What the folder says of the weights; empty for weights alone, which are taken for the released ones."""
        return _said(self._folder / _mapping.CONFIG) if self._folder.is_dir() else {}

    @cached_property
    def _threshold(self) -> Mapping[str, Any]:
        path = self._folder / _mapping.THRESHOLD
        said = _said(path) if self._folder.is_dir() else {}
        if said and said.get("weights") != self._hash:
            raise BadInput(
                f"{path}: fitted for other weights ({said.get('weights')}) than those beside it ({self._hash}): a "
                "threshold means nothing for another training; fit it again, or take the file away and give one"
            )
        for value in (*([said["threshold"]] if "threshold" in said else []), *said.get("limits", {}).values()):
            if not isinstance(value, (int, float)) or not 0 <= value <= 1:
                raise BadInput(f"{path}: a threshold must be in 0..1, got {value}")
        return said

    @cached_property
    def _hash(self) -> str:
        self._head  # noqa: B018  says first what is wrong with the file
        return _weights.of_file(self._file)

    @cached_property
    def _listed(self) -> tuple[str, ...]:
        if self.file:
            return _concept_prompts.listed(self.file)
        return _concept_prompts.checked(self.concepts or self._config.get("concepts", ()), f"{self.model}'s concepts")

    @property
    def _encoder_name(self) -> str:
        return self.encoder or str(self._config.get("encoder", RELEASED))

    @cached_property
    def _head(self) -> _mapping.EmbeddingMapping:
        return _mapping.read(self._file, int(self._config.get("heads", _mapping.HEADS))).to(self.device)

    @cached_property
    def _encoder(self) -> _text_states.TextStates:
        loaded = _text_states.TextStates.load(self._encoder_name, self.device)
        if loaded.width != self._head.width:
            raise DoesNotFit(
                f"{self.model} reads states of width {self._head.width}, {self._encoder_name} gives {loaded.width}; "
                "give the encoder it was trained with (encoder=)"
            )
        wanted = self._config.get("encoder_hash", loaded.identity)
        if loaded.identity != wanted:
            raise DoesNotFit(
                f"{self.model} was trained on another text encoder or tokenizer than {self._encoder_name}: give that "
                "one (encoder=), or train again: efface train latent_guard"
            )
        return loaded

    @property
    def _identity(self) -> str:
        return self._config.get("encoder_hash") or self._encoder.identity

    @cached_property
    def _side(self) -> _mapping.ConceptSide:
        """Encoded once for each list, weights and encoder, and kept on disk."""
        encoder, head = self._encoder, self._head

        def make() -> Mapping[str, Tensor]:
            side = head.concept_side(encoder.summaries(self._listed))
            return {"queries": side.queries, "units": side.units}

        key = ("latent_guard", self._hash, str(head.heads), encoder.identity, self.device, *self._listed)
        held = cache.cached("latent_guard", key, make)
        return _mapping.ConceptSide(*(held[name].to(self.device) for name in ("queries", "units")))

    @cached_property
    def _seen(self) -> WeakKeyDictionary[Any, tuple[Any, bool]]:
        return WeakKeyDictionary()


def _said(path: Path) -> dict[str, Any]:
    """A JSON file beside the weights; empty where there is none."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: cannot be read: {error}") from error
    if not isinstance(said, dict):
        raise BadInput(f"{path}: expected a JSON object")
    return said
