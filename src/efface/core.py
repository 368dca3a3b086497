"""The library on one page: its nouns (data) and its interfaces. Imports no torch.

A Concept says what to forget. An Eraser computes a Patch; a Guidance steers sampling; a Guard judges prompts and
pictures: all three are Defenses. A Detector scores a prompt or a picture. An Attack looks for inputs that get through.
A Metric turns samples into a Score.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from efface.errors import BadInput

if TYPE_CHECKING:
    from pathlib import Path

    from diffusers import DiffusionPipeline as Pipe
    from PIL.Image import Image
    from torch import Tensor

    from efface.anatomy import Text
    from efface.generate import White
    from efface.patch import Patch


@dataclass(frozen=True, slots=True)
class Concept:
    """A thing to erase: how people ask for it, and what they should get instead."""

    name: str
    """Short name; it names files and report rows."""
    prompts: tuple[str, ...] = ()
    """Ways of asking for it; empty means the name itself."""
    anchor: str = ""
    """Draw this instead; empty means the unconditional (empty) prompt."""
    keep: tuple[str, ...] = ()
    """Prompts whose pictures must not change."""
    pairs: tuple[tuple[str, str], ...] = ()
    """(with, without) captions, for methods that learn a direction."""
    images: str = ""
    """Folder of pictures of it, for methods that want some."""

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise BadInput("a concept needs a name, got an empty one")
        for field_name in ("prompts", "keep"):
            if isinstance(getattr(self, field_name), str):  # its letters would be taken for prompts
                raise BadInput(f'concept "{self.name}": {field_name} must be a tuple of texts, got one text')
        if any(not prompt.strip() for prompt in self.prompts):
            raise BadInput(f'concept "{self.name}": an empty prompt asks for nothing and cannot be erased')

    @property
    def asked(self) -> tuple[str, ...]:
        """The prompts that ask for it: `prompts`, or the name where there are none."""
        return self.prompts or (self.name,)


@dataclass(frozen=True, slots=True)
class Soft:
    """A prompt with embeddings in place of some of its words. Text guards refuse it: they cannot read it."""

    text: str
    """The prompt, in which the keys of `tokens` stand as words."""
    tokens: Mapping[str, Tensor]
    """Placeholder word -> its token embeddings (n, D)."""


@dataclass(frozen=True, slots=True)
class Request:
    """One picture to draw."""

    id: str
    prompt: str | Soft
    seed: int
    negative: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the pipeline call for this picture, over those of the whole call."""

    @property
    def words(self) -> str:
        """The prompt as text."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt.text


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a guard found. `score` and `threshold` are in 0..1; a NaN score means that it could not judge."""

    by: str
    allowed: bool
    score: float
    threshold: float
    label: str
    note: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sample:
    """An answer to a request: a picture, or none and the verdict that says why."""

    request: Request
    image: Image | None
    verdicts: tuple[Verdict, ...] = ()


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try of an attack, with all that is needed to replay it."""

    sample: Sample
    kind: Literal["text", "ids", "embedding"]
    ids: tuple[int, ...]
    file: str
    queries: int
    seconds: float
    score: float
    hit: bool


@dataclass(frozen=True, slots=True)
class Score:
    """A number with its 95 % interval and the number of items it rests on."""

    value: float
    n: int
    low: float
    high: float


class Defense(Protocol):
    """Stands in one or more of three places; the default in each is to do nothing."""

    def on(self, pipe: Pipe) -> AbstractContextManager[None]:
        """Inside: the pipeline's weights or its sampling are changed; after, it is as before."""
        return nullcontext()

    def screen(self, requests: Sequence[Request], text: Text | None) -> list[Verdict]:
        """Judge requests before drawing: one verdict for each, or an empty list. `text`: their encoded states."""
        return []

    def inspect(self, samples: Sequence[Sample]) -> list[Verdict]:
        """Judge pictures after drawing: one verdict for each, or an empty list."""
        return []


@dataclass(frozen=True)
class Eraser(ABC):
    """Computes a change of a model. Fields are the method's settings: its repr is its provenance."""

    paper: ClassVar[str]
    """arXiv id or DOI."""
    seed: int = 0
    """Seed of everything random in the method; closed-form methods have nothing random."""

    @abstractmethod
    def fit(self, pipe: Pipe, *concepts: Concept, work: Path | None = None) -> Patch:
        """Compute the change. Leaves `pipe` exactly as it was found. `work`: checkpoints to resume from."""


class Detector(ABC):
    """How much of each concept is in a prompt or a picture."""

    reads: ClassVar[Literal["text", "image"]]
    fitted: float | None = None
    """Threshold fitted or fixed for this detector, in 0..1; None: the user has to give one."""
    floor: float = 0.0
    """The lowest score above 0 that it gives: a threshold below it finds what this one finds."""

    @property
    def limits(self) -> Mapping[str, float]:
        """Fitted thresholds of single labels; `fitted` holds for all others."""
        return {}

    @property
    def about(self) -> Mapping[str, str]:
        """What a verdict must say for others to repeat it: version and hash of the weights, classes, lowest score."""
        return {}

    @abstractmethod
    def scores(self, items: Sequence[Any]) -> list[Mapping[str, float]]:
        """One mapping for each item: label -> 0 (absent) .. 1 (present); NaN where it cannot tell."""

    def fits(self, pipe: Pipe) -> bool:
        """Whether `encoded` can read this pipeline's text: the same encoder and tokenizer, by their hashes."""
        return False

    def encoded(self, text: Text, items: Sequence[str]) -> list[Mapping[str, float]]:
        """`scores` of prompts whose text, one row each, a pipeline that fits has computed already. A text holds only
        as many words as the encoder's window: what a prompt says beyond it is to be read too."""
        raise NotImplementedError(f"{type(self).__name__} reads prompts, not encoded text")

    def __call__(self, items: Sequence[Any]) -> list[float]:
        """The largest label's score for each item; a NaN label makes the item's score NaN."""
        return [worst(scores)[1] for scores in self.scores(items)]


def worst(scores: Mapping[str, float]) -> tuple[str, float]:
    """The label with the largest score. NaN counts as the largest, and so does no label: unknown must not pass."""
    if not scores:
        return "", float("nan")
    return max(scores.items(), key=lambda item: float("inf") if item[1] != item[1] else item[1])


class Target(Protocol):
    """What an attack can query: a Protected, or anything that draws and can be opened."""

    def __call__(self, requests: Sequence[Request | str], seed: int = 0, **settings: Any) -> list[Sample]:
        """One answer for each request; plain prompt i is drawn with seed + i."""
        ...

    def opened(self, through: Literal["patches", "all"] = "all") -> AbstractContextManager[White]:
        """Inside: the model with its defenses on, open to gradients."""
        ...


@dataclass(frozen=True)
class Attack(ABC):
    """Looks for inputs that get through a Protected model."""

    paper: ClassVar[str]
    needs: ClassVar[Literal["pictures", "text-encoder", "weights"]]

    @abstractmethod
    def run(
        self, target: Target, reference: Target, concept: Concept, requests: Sequence[Request], judge: Detector
    ) -> Iterator[Attempt]:
        """Yield attempts as they happen, never inside `target.opened()`; the caller stops when it has seen enough.
        `reference` is the undefended model."""


@dataclass(frozen=True)
class Metric(ABC):
    """Turns samples into a number with an interval."""

    better: ClassVar[Literal["higher", "lower"]]
    kind: ClassVar[Literal["share", "number"]] = "share"
    """Whether the number is a share, 0..1, or has a scale of its own."""
    compares: ClassVar[bool] = False
    """Whether it needs the undefended model's pictures beside those it is about."""
    least: ClassVar[int] = 1
    """Fewest pictures of a model that it can be taken of: with fewer, nothing need be drawn."""

    @abstractmethod
    def __call__(self, samples: Sequence[Sample], reference: Sequence[Sample] = ()) -> Score:
        """`reference`: the same requests drawn by the undefended model, for metrics that compare."""
