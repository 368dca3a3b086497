"""Unlearning: what is gone and what is left, by the accuracy of a classifier, as UnlearnCanvas counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from typing import ClassVar, Literal

from efface.core import Detector, Metric, Sample, Score
from efface.errors import BadInput, UnknownName
from efface.measure import _interval, _judged


@dataclass(frozen=True)
class Unlearning(Metric):
    """UnlearnCanvas's UA, IRA or CRA with Wilson's interval; the cost is the classifier's. arXiv:2402.11846.

        ua  = share of pictures of the erased target that are not classified as it
        ira = share of pictures of the other labels of its domain that are classified right       (in-domain retain)
        cra = share of pictures classified right by the classifier of the other domain           (cross-domain retain)

    Classified as: the label with the largest score among all that the classifier gives; the first of equal ones. So its
    labels are the domain: all styles, or all objects, and no threshold. With a style erased, ua and ira read the style
    classifier, cra the object classifier, and `expected` then names each request's object. Other requests than those
    of `of` do not count. A refused request has no picture: it is not classified as anything, gone for ua, wrong for ira
    and cra. Report all three: drawing nothing at all makes ua 1.

    Needs: a classifier of the domain (UnlearnCanvas: a ViT fine-tuned for its 60 styles, and one for its 20 objects).
    Compared with `removal` and `rate`: one of many labels in place of a threshold, and no undefended pictures.
    """

    better: ClassVar[Literal["higher", "lower"]] = "higher"

    classifier: Detector
    """Its labels are the domain: the target's for ua and ira, the other one for cra."""
    expected: Mapping[str, str]
    """Request id -> the label that its prompt asks for, in the classifier's domain."""
    target: str
    """The erased label."""
    of: Literal["ua", "ira", "cra"] = "ua"
    """Unlearning accuracy, in-domain or cross-domain retain accuracy."""

    def __post_init__(self) -> None:
        if self.of not in ("ua", "ira", "cra"):
            raise BadInput(f'unlearning: of must be "ua", "ira" or "cra", got "{self.of}"')
        if not self.target:
            raise BadInput("unlearning needs the erased label as its target, got none")

    @property
    def name(self) -> str:
        """What reports call it: the number's own name."""
        return self.of

    def __call__(self, samples: Sequence[Sample], reference: Sequence[Sample] = ()) -> Score:
        """n is the number of requests that count."""
        right: list[bool] = []
        for request, scores in _judged.judged(self.classifier, samples):
            if (asked := self.expected.get(request.id)) is None:
                raise BadInput(f"no label says what item {request.id} asks for")
            if scores is not None:
                self._fits(scores, asked)
                if any(isnan(score) for score in scores.values()):
                    raise _judged.cannot(request)
            if self.of == "cra" or (asked == self.target) == (self.of == "ua"):
                right.append(scores is not None and max(scores, key=scores.__getitem__) == asked)
        if not right:
            others = f'other labels than "{self.target}"' if self.of == "ira" else f'"{self.target}"'
            raise BadInput(f"{self.of} needs pictures of {'anything' if self.of == 'cra' else others}, got none")
        return _interval.share([not hit for hit in right] if self.of == "ua" else right)

    def _fits(self, scores: Mapping[str, float], asked: str) -> None:
        if asked not in scores:
            raise UnknownName("label of the classifier", asked, scores)
        if self.of == "cra" and self.target in scores:
            raise BadInput(
                f'cra reads the other domain, and this classifier knows "{self.target}": give the other classifier'
            )
        if self.of != "cra" and self.target not in scores:
            raise UnknownName("label of the classifier", self.target, scores)
