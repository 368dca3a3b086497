"""Q16: CLIP and two tuned prompt vectors, the detector of "inappropriate" pictures that papers report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor
from torch.nn.functional import normalize

from efface.clip import Clip
from efface.core import Detector
from efface.detect import _pictures, _weights
from efface.errors import BadInput, DoesNotFit
from efface.export import files

BATCH = 16
SCALE = 100.0
"""Factor of the cosines before the softmax, as published (ml-research/Q16)."""
CONVERT = (
    "import codecs, numpy, pickle; from safetensors.numpy import save_file; "
    "known = {{'_reconstruct': numpy.array(0).__reduce__()[0], 'ndarray': numpy.ndarray, 'dtype': numpy.dtype, "
    "'encode': codecs.encode}}; "
    "Reader = type('Reader', (pickle.Unpickler,), {{'find_class': lambda self, module, name: known[name]}}); "
    "save_file({{'prompts': Reader(open('{old}', 'rb')).load().astype('float32')}}, '{new}')"
)
"""What to run once on the published prompts.p: numpy's own names are all that it lets the pickle call."""


@dataclass(frozen=True)
class Q16(Detector):
    """Share of the "inappropriate" prompt among Q16's two, by CLIP; one CLIP image encoding a picture.

    share = softmax(100 cos(picture, prompts))[1]. Decision: 0.5, the larger of the two, as published. arXiv:2202.06675.
    Broad (violence, blood, misconduct, nudity) and noisy: expect false alarms on harmless pictures, and calibrate.
    Two prompt files are about, one of them tuned further; the verdict carries the hash of the one that was used.
    Needs: the CLIP that the vectors were tuned on (ViT-L/14 for the published file of 768 numbers) and the vectors as
    safetensors: one tensor (2, D), first "not inappropriate", then "inappropriate". The published prompts.p is a
    pickle, which is refused with the line that converts it.
    Compared with: nudenet and open_nsfw see nudity only; clip_zero_shot takes words in place of tuned vectors.
    """

    reads: ClassVar[Literal["text", "image"]] = "image"
    fitted: ClassVar[float | None] = 0.5  # type: ignore[misc]  # the larger of two shares

    prompts: str = ""
    """Safetensors file of the two vectors."""
    model: str = "openai/clip-vit-large-patch14"
    """The CLIP that they were tuned on: a folder or a hub id."""
    device: str = "cpu"
    """Where CLIP runs."""

    def __post_init__(self) -> None:
        _ = self._vectors  # a wrong file is said before anything is drawn

    @cached_property
    def about(self) -> Mapping[str, str]:  # type: ignore[override]
        """Hashes of CLIP and of the prompt vectors."""
        clip, _ = self._parts
        return {"weights": _weights.of_network(clip.model), "prompts": _weights.of_file(self._file)}

    def scores(self, items: Sequence[Any]) -> list[Mapping[str, float]]:
        """The share for each picture (PIL, RGB array or path)."""
        clip, vectors = self._parts
        found: list[Mapping[str, float]] = []
        for start in range(0, len(items), BATCH):
            rows = clip.image([_pictures.rgb(item) for item in items[start : start + BATCH]])
            shares = (SCALE * rows @ vectors.T).softmax(dim=-1)  # (B, 2)
            found += [{"inappropriate": share} for share in shares[:, 1].tolist()]
        return found

    @property
    def _file(self) -> Path:
        return Path(self.prompts).expanduser()

    @cached_property
    def _vectors(self) -> Tensor:
        if not self.prompts:
            raise BadInput("Q16 needs its prompt vectors: give prompts=FILE, a safetensors file of one tensor (2, D)")
        if not self._file.is_file():
            raise BadInput(f"{self.prompts}: no such file of Q16 prompt vectors")
        _weights.refuse_pickle(self._file, CONVERT)
        tensors, _ = files.read(self._file)
        shapes = [tuple(tensor.shape) for tensor in tensors.values()]
        if len(shapes) != 1 or len(shapes[0]) != 2 or shapes[0][0] != 2:
            raise BadInput(f"{self.prompts}: expected one tensor (2, D) of Q16 prompt vectors, got {shapes}")
        vectors = next(iter(tensors.values())).float()
        if not (vectors.norm(dim=-1) > 0).all():
            raise BadInput(f"{self.prompts}: a Q16 prompt vector is zero, which points nowhere")
        return normalize(vectors, dim=-1)

    @cached_property
    def _parts(self) -> tuple[Clip, Tensor]:
        clip = Clip.load(self.model, self.device)
        if (width := clip.model.config.projection_dim) != self._vectors.shape[1]:
            raise DoesNotFit(
                f"{self.prompts}: vectors of {self._vectors.shape[1]} numbers, but {self.model} has {width}; "
                "give the CLIP that they were tuned on"
            )
        return clip, self._vectors.to(self.device)
