"""Safe-CLIP: tune CLIP so that an unsafe text or picture lands where its safe counterpart was."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from efface import anatomy, tokens
from efface.anatomy import Family
from efface.clip import Clip
from efface.core import Concept, Eraser
from efface.erase import _given, _made
from efface.erase._finetune import Recipe, Training
from efface.erase._quadruplets import Quadruplets, Towers, drawn, halves, made, read
from efface.erase._student import Adapters, Student, still
from efface.errors import BadInput, DoesNotFit, EffaceError
from efface.patch import Delta

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as Pipe

    from efface.patch import Patch

TERMS = (
    "text safe", "text unsafe", "image safe", "image unsafe",
    "text-image safe", "text-image unsafe", "image-text safe", "image-text unsafe",
)  # fmt: skip
"""The eight losses, in the order of the weights."""
SCALE = 100.0
"""Factor of the cosines in a contrast: a temperature of 0.01."""
LAYERS = ("k_proj", "v_proj", "out_proj", "fc1", "fc2", "patch_embedding")


@dataclass(frozen=True)
class SafeCLIP(Eraser):
    """Sanitise CLIP by adapters in its towers; the text tower is the pipeline's. Minutes. arXiv:2311.16254.

        redirect   N(T(U), I0(V))   dc(T(U), T0(S))   N(T0(S), I(G))   dc(I(G), I0(V))
        preserve   N(T(S), I0(V))   dc(T(S), T0(S))   N(T0(S), I(V))   dc(I(V), I0(V))

    S, V are a safe caption and its picture, U, G the unsafe ones; T, I the towers in training, T0, I0 those that were
    found; dc = 1 - cosine, N the symmetric InfoNCE of a batch at scale 100. The loss is the mean of the eight by
    `weights`. Defaults are the published code's, without its defects: there the "frozen" towers share the adapters
    (nothing is preserved), and all batches but one of an accumulated step are thrown away.

    A term trains one tower only: the text tower, which is all that a pipeline uses, comes out the same bit for bit with
    and without the image tower (`vision`). All terms read the pooled text; the token states that the denoiser reads
    change along with it, because they come out of the same layers, and nothing holds or aims them otherwise.

    Needs: one CLIP text encoder (SD 1.x, 2.x); for the terms with pictures, `clip`. Quadruplets from `data`, or from
    the concepts' pairs, prompts, anchors and kept prompts (ours), of which the pipeline draws the pictures.
    Compared with closed-form erasers: slower, needs counterparts, and costs more elsewhere (re-evaluations saw the
    zero-shot accuracy of CLIP L/14 fall from 74 to 52 %); it changes the encoder, so it serves any denoiser behind it.
    An attack on the encoder still succeeds often.
    """

    paper: ClassVar[str] = "arXiv:2311.16254"

    clip: str = ""
    """Folder or id of the CLIP whose text half is the pipeline's text encoder. Empty: the one that lies beside the
    pipeline's own parts, and where there is none the two terms without pictures, on the text before its projection."""
    data: str = ""
    """CSV of quadruplets: columns safe, unsafe, safe_image, unsafe_image (no pictures: the last two left out)."""
    pictures: bool = True
    """Draw the pictures where `data` has none. False: then the two terms without pictures."""
    vision: bool = False
    """Also train the image tower; the patch then has the whole CLIP too, as clip.*: `only("text_encoder")` is for the
    pipeline, `only("clip")` for a `Clip`."""
    epochs: int = 50
    """Passes over the quadruplets (code: at most 50, stopped early by its validation)."""
    batch: int = 16
    """Quadruplets of a step (code: 16 in its job script, 128 in its parser)."""
    accumulate: int = 1
    """Batches of a step. Means are as of one large batch; contrasts see their own batch only."""
    learning_rate: float = 1e-3
    """Adam's."""
    rank: int = 16
    """Of the adapters, on keys, values, attention outputs, both layers of every MLP, and the patch convolution."""
    alpha: float = 1.0
    """The adapters count alpha / rank."""
    dropout: float = 0.1
    """On what enters an adapter; the reference has none."""
    weights: tuple[float, ...] = (0.1, 0.1, 0.1, 0.2, 0.25, 0.25, 0.25, 0.5)
    """Of the terms: text safe, text unsafe, image safe, image unsafe, then the contrasts S-V, U-V, V-S, G-S (code; only
    their ratios count)."""
    sampling_steps: int = 25
    """Steps in which pictures are drawn (ours)."""
    guidance: float = 7.5
    """Guidance scale at which pictures are drawn (ours)."""

    def fit(self, pipe: Pipe, *concepts: Concept, work: Path | None = None) -> Patch:
        """Train, and leave the pipeline as it was found. `work`: checkpoints and the loss log, to resume from.

        Raises DoesNotFit for a pipeline with several encoders or a CLIP with another text half, BadInput for
        quadruplets that cannot be read, EffaceError for a loss that is not a number.
        """
        begun = time.perf_counter()
        family = self._checked(pipe, concepts)
        with ExitStack() as stack:
            stack.enter_context(still(pipe))
            clip = self._clip(pipe)
            known = self._quadruplets(family, concepts, clip)
            towers = Towers(family, clip, known)
            layers = _layers(pipe.text_encoder)
            about = _made.card(self, pipe, concepts, [f"text_encoder.{layer}.weight" for layer in layers])
            student = _Student(self, pipe, clip)
            stack.callback(student.close)
            per_epoch = -(-len(known) // (self.batch * self.accumulate))
            recipe = Recipe(self.epochs * per_epoch, self.learning_rate, clip=None, accumulate=self.accumulate)
            identity = f"{_made.identity(about)} {towers.digest}"
            training = Training(student, recipe, identity, self.seed, work)

            def losses(step: int, dice: torch.Generator) -> dict[str, Tensor]:
                index = known.batch(self.batch, dice)
                with _dice(pipe, dice):
                    text = towers.text(index)  # first: the image tower must not change what it draws
                    image = towers.image(index) if self.vision else None
                pictures = None if towers.safe_pictures is None else towers.safe_pictures[index]
                found = terms(text, towers.safe_texts[index], pictures, image)
                return {"loss": total(found, self.weights), **found}

            training.run(losses)
            student.dropout(False)
            with student.on(training.values), torch.no_grad():
                about |= towers.diagnosed()
            used = TERMS if self.vision else TERMS[0:2] + (TERMS[4:6] if known.safe_images else ())
            about |= {"quadruplets": str(len(known)), "losses": ", ".join(used)}
            return _made.patch(training, about, begun)

    def _checked(self, pipe: Pipe, concepts: Sequence[Concept]) -> Family:
        """The pipeline's anatomy, once the settings and the model are known to be sound."""
        for name in ("epochs", "batch", "accumulate", "rank", "sampling_steps"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise BadInput(f"dropout must be in 0..1, 1 excluded, got {self.dropout}")
        if len(self.weights) != len(TERMS) or min(self.weights) < 0 or not sum(self.weights):
            raise BadInput(f"weights must be {len(TERMS)} numbers, none below 0 and not all 0, got {self.weights}")
        family = _given.checked(pipe, concepts)
        if len(family.encoders) > 1:
            raise DoesNotFit(
                f"{family.title} has {len(family.encoders)} text encoders: Safe-CLIP tunes one CLIP, and the others "
                "would still say the concept"
            )
        for part in ("text_encoder", family.part):
            for name, _ in pipe.components[part].named_parameters():
                weight = anatomy.stored(*anatomy.place(pipe, f"{part}.{name}"))
                if weight.is_floating_point() and not weight.isfinite().all():
                    raise EffaceError(f"{part}.{name}: the model's weights are damaged: numbers that are not finite")
        return family

    def _clip(self, pipe: Pipe) -> Clip | None:
        """The CLIP whose text half the pipeline has; None where none was given and none lies beside the pipeline."""
        home: str = pipe.name_or_path or ""
        if not self.clip and not (home and Path(home, "clip").is_dir()):
            if self.vision:
                raise BadInput("to train the image tower (vision), give a CLIP that has one (clip)")
            return None
        clip = Clip.load(self.clip or pipe, str(tokens.execution_device(pipe.text_encoder)))
        own, other = halves(pipe, clip)
        if own != other:
            raise DoesNotFit(
                f"the text half of CLIP {self.clip or 'beside the pipeline'} ({other[:12]}) is not the text encoder of "
                f"{home or type(pipe).__name__} ({own[:12]}): give the CLIP that it was taken "
                "from; one that stops before the last layer (SD 2.x) has none: leave `clip` empty"
            )
        return clip

    def _quadruplets(self, family: Family, concepts: Sequence[Concept], clip: Clip | None) -> Quadruplets:
        """With pictures where they can be had and looked at."""
        known = read(self.data) if self.data else made(concepts)
        if clip is None or not (self.pictures or known.safe_images):
            why = "none to be drawn (pictures)" if clip else "no CLIP to look at them (clip)"
            if self.vision:
                raise BadInput(f"the image tower (vision) cannot be trained without pictures: {why}")
            if self.pictures:
                warnings.warn(f"Safe-CLIP without pictures: two of its eight losses; {why}", stacklevel=3)
            return Quadruplets(known.safe, known.unsafe)
        if known.safe_images:
            return known
        return drawn(family, known, self.sampling_steps, self.guidance, self.seed)


class _Student(Student):
    """Adapters of the text tower in the pipeline and, if wanted, of the image tower in the CLIP."""

    def __init__(self, settings: SafeCLIP, pipe: Pipe, clip: Clip | None) -> None:
        like = (settings.rank, settings.alpha, settings.seed, False, settings.dropout)
        self._towers = [Adapters(pipe, "text_encoder", _layers(pipe.text_encoder), *like)]
        self._networks: list[nn.Module] = [pipe.text_encoder]
        if settings.vision and clip is not None:
            owner: Any = SimpleNamespace(clip=clip.model)
            layers = [name for name in _layers(clip.model) if name.startswith("vision_model.")]
            self._towers.append(Adapters(owner, "clip", layers, *like))
            self._networks.append(clip.model)
        self.parameters = {name: p for tower in self._towers for name, p in tower.parameters.items()}
        self.dropout(True)

    def dropout(self, on: bool) -> None:
        """Whether the adapters drop; everything else is in eval mode, so nothing without adapters ever does."""
        from peft.tuners.lora import LoraLayer

        for network in self._networks:
            for module in network.modules():
                if isinstance(module, LoraLayer):
                    module.lora_dropout.train(on)

    @contextmanager
    def on(self, values: Mapping[str, Tensor] | None = None) -> Iterator[None]:
        with ExitStack() as stack:
            for tower in self._towers:
                stack.enter_context(tower.on({n: v for n, v in (values or {}).items() if n in tower.parameters}))
            yield

    @contextmanager
    def off(self) -> Iterator[None]:
        with ExitStack() as stack:
            for tower in self._towers:
                stack.enter_context(tower.off())
            yield

    def deltas(self, values: Mapping[str, Tensor]) -> dict[str, Delta]:
        """With the image tower, the text tower also under its name in the CLIP; the factors are shared."""
        found = [tower.deltas(values) for tower in self._towers]
        if len(found) > 1:
            inner = "clip." if hasattr(self._networks[0], "text_model") else "clip.text_model."
            found.append({path.replace("text_encoder.", inner, 1): delta for path, delta in found[0].items()})
        return {path: delta for some in found for path, delta in some.items()}

    def close(self) -> None:
        for tower in self._towers:
            tower.close()


def terms(
    text: tuple[Tensor, Tensor],
    safe_texts: Tensor,
    safe_pictures: Tensor | None = None,
    image: tuple[Tensor, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The losses: `text` T(S), T(U) and `image` I(V), I(G) are in training, T0(S) and I0(V) as they were found; all
    (B, D) of unit length. Without pictures two are left, without an image tower in training four."""
    found = {name: distance(rows, safe_texts) for name, rows in zip(TERMS[0:2], text, strict=True)}
    if safe_pictures is None:
        return found
    found |= {name: contrast(rows, safe_pictures) for name, rows in zip(TERMS[4:6], text, strict=True)}
    if image is not None:
        found |= {name: distance(rows, safe_pictures) for name, rows in zip(TERMS[2:4], image, strict=True)}
        found |= {name: contrast(safe_texts, rows) for name, rows in zip(TERMS[6:8], image, strict=True)}
    return found


def total(found: Mapping[str, Tensor], weights: Sequence[float]) -> Tensor:
    """Their sum by weights that are normalised over all eight, whether a term is there or not."""
    share = {name: weight / sum(weights) for name, weight in zip(TERMS, weights, strict=True)}
    return torch.stack([share[name] * value for name, value in found.items()]).sum()


def distance(rows: Tensor, targets: Tensor) -> Tensor:
    """1 - cosine, mean over rows."""
    return 1 - (rows * targets).sum(-1).mean()


def contrast(rows: Tensor, others: Tensor) -> Tensor:
    """Symmetric InfoNCE: row i belongs to other i and to no other of the batch."""
    cosines = SCALE * rows @ others.T  # (B, B)
    right = torch.arange(len(rows), device=rows.device)
    return (cross_entropy(cosines, right) + cross_entropy(cosines.T, right)) / 2


def _layers(network: nn.Module) -> list[str]:
    """The layers that get an adapter: not the queries."""
    return [name for name, _ in network.named_modules() if name.rpartition(".")[2] in LAYERS]


@contextmanager
def _dice(pipe: Pipe, dice: torch.Generator) -> Iterator[None]:
    """Inside: dropout draws from `dice`; after: the global dice as they were."""
    seed = int(torch.randint(2**62, (), generator=dice))
    device = tokens.execution_device(pipe.text_encoder)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


PRESETS: dict[str, SafeCLIP] = {
    # ours: with pictures, the contrasts (batch 16, scale 100) undo most of the redirection on picto's few captions
    "picto": SafeCLIP(pictures=False),
}
