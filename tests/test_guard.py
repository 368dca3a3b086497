"""A guard fails closed: what it cannot judge does not pass."""

import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import pytest
import torch

from efface import anatomy
from efface.anatomy import Text
from efface.core import Detector, Request, Sample, Soft
from efface.errors import BadInput, EffaceError
from efface.guard import Guard
from efface.patch import Patch
from tests import tiny

Action = Literal["refuse", "blur", "flag"]


@dataclass(frozen=True)
class ByWord(Detector):
    """Scores of a prompt by what it says."""

    reads: ClassVar[Literal["text", "image"]] = "text"

    known: tuple[tuple[str, tuple[tuple[str, float], ...]], ...] = ()

    def scores(self, items: Sequence[Any]) -> list[Mapping[str, float]]:
        return [dict(dict(self.known)[item]) for item in items]


class Broken(Detector):
    """A network that is not there."""

    reads = "text"
    fitted = 0.5

    def scores(self, items: Sequence[Any]) -> list[Mapping[str, float]]:
        raise RuntimeError("out of memory")


class TooFew(Detector):
    """Forgets the last item."""

    reads = "text"
    fitted = 0.5

    def scores(self, items: Sequence[Any]) -> list[Mapping[str, float]]:
        return [{"x": 0.0} for _ in items[1:]]


class Misused(Detector):
    """Its settings are wrong."""

    reads = "text"
    fitted = 0.5

    def scores(self, items: Sequence[Any]) -> list[Mapping[str, float]]:
        raise BadInput("no such label")


class Darkness(Detector):
    """How dark a picture is."""

    reads = "image"

    def scores(self, items: Sequence[Any]) -> list[Mapping[str, float]]:
        return [{"dark": 1 - sum(i.convert("L").tobytes()) / 255 / (i.width * i.height)} for i in items]


class Finds(Detector):
    """1 where the prompt says cat, as one word."""

    reads = "text"
    fitted = 0.5

    def scores(self, items: Sequence[Any]) -> list[Mapping[str, float]]:
        return [{"cat": float("cat" in item.split())} for item in items]


@dataclass(frozen=True)
class Encoded(Detector):
    """Reads a pipeline's text: the score is 0, or NaN where it has to encode a prompt itself."""

    reads: ClassVar[Literal["text", "image"]] = "text"
    fitted: ClassVar[float | None] = 0.5  # type: ignore[misc]
    fitting: bool = True
    given: list[tuple[Text, list[str]]] = field(default_factory=list, compare=False)
    read: list[str] = field(default_factory=list, compare=False)

    def fits(self, pipe: Any) -> bool:
        return self.fitting

    def scores(self, items: Sequence[Any]) -> list[Mapping[str, float]]:
        self.read.extend(items)
        return [{"x": 0.25} for _ in items]

    def encoded(self, text: Text, items: Sequence[str]) -> list[Mapping[str, float]]:
        self.given.append((text, list(items)))
        return [{"x": 0.0} for _ in items]


@dataclass(frozen=True)
class Calibrated(ByWord):
    """Has fitted thresholds, and says where its numbers come from."""

    fitted: float | None = None  # type: ignore[assignment]
    own: tuple[tuple[str, float], ...] = ()

    @property
    def limits(self) -> Mapping[str, float]:
        return dict(self.own)

    @property
    def about(self) -> Mapping[str, str]:
        return {"version": "1", "weights": "abc"}


def says(**scores: float) -> ByWord:
    return ByWord((("p", tuple(scores.items())),))


def verdict(guard: Guard, prompt: str = "p") -> Any:
    (found,) = guard.screen([Request("0", prompt, 0)], None)
    return found


@pytest.mark.parametrize(("score", "allowed"), [(0.0, True), (0.49, True), (0.5, False), (1.0, False)])
def test_allowed_means_below_the_threshold(score: float, allowed: bool) -> None:
    found = verdict(Guard(says(x=score), 0.5))
    assert (found.allowed, found.score, found.threshold, found.label) == (allowed, score, 0.5, "x")
    assert found.by == "ByWord"


# C20
@pytest.mark.parametrize("scores", [{"x": math.nan}, {"x": 0.1, "y": math.nan}, {}])
def test_a_score_that_is_nan_or_missing_refuses(scores: dict[str, float]) -> None:
    found = verdict(Guard(says(**scores), 0.5))
    assert not found.allowed
    assert math.isnan(found.score)


@pytest.mark.parametrize("detector", [Broken(), TooFew()])
def test_a_detector_that_fails_refuses_every_item(detector: Detector) -> None:
    requests = [Request(str(i), "p", 0) for i in range(3)]
    found = Guard(detector).screen(requests, None)
    assert [v.allowed for v in found] == [False] * 3
    assert all(math.isnan(v.score) and "could not judge" in v.label for v in found)


def test_wrong_settings_of_a_detector_are_an_error_not_a_refusal() -> None:
    with pytest.raises(EffaceError, match="no such label"):
        verdict(Guard(Misused()))


def test_ctrl_c_is_not_a_verdict() -> None:
    class Slow(Broken):
        def scores(self, items: Sequence[Any]) -> list[Mapping[str, float]]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verdict(Guard(Slow()))


def test_a_soft_prompt_is_refused_and_words_beside_it_are_read() -> None:
    detector = ByWord((("good", (("x", 0.0),)), ("bad", (("x", 1.0),))))
    requests = [Request("0", "good", 0), Request("1", Soft("good", {}), 0), Request("2", "bad", 0)]
    found = Guard(detector, 0.5).screen(requests, None)
    assert [v.allowed for v in found] == [True, False, False]
    assert math.isnan(found[1].score) and "embedding" in found[1].label


def test_requests_with_the_same_id_are_judged_each_for_itself() -> None:
    detector = ByWord((("good", (("x", 0.0),)), ("bad", (("x", 1.0),))))
    found = Guard(detector, 0.5).screen([Request("0", "bad", 0), Request("0", "good", 0)], None)
    assert [v.allowed for v in found] == [False, True]


def test_each_label_has_its_threshold() -> None:
    limits = {"x": 0.2, "y": 0.9}
    assert verdict(Guard(says(x=0.1, y=0.8), limits)).allowed
    found = verdict(Guard(says(x=0.3, y=0.8), limits))
    assert (found.allowed, found.label, found.score, found.threshold) == (False, "x", 0.3, 0.2)


def test_a_label_without_a_threshold_may_not_pass() -> None:
    found = verdict(Guard(says(x=0.1, z=0.0), {"x": 0.5}))
    assert (found.allowed, found.label) == (False, "z")


def test_the_fitted_threshold_is_used_where_none_is_given() -> None:
    found = Guard(Broken()).screen([Request("0", "p", 0)], None)[0]
    assert found.threshold == 0.5


def test_without_any_threshold_a_guard_cannot_be_made() -> None:
    with pytest.raises(BadInput, match="ByWord has no fitted threshold: give one"):
        Guard(ByWord())


@pytest.mark.parametrize(("threshold", "said"), [
    (50, "got 50; did you mean 0.5?"), (-0.1, "got -0.1$"), (101, "got 101$"), (math.nan, "got nan$"),
    ({"x": 0.5, "y": 20}, "did you mean 0.2?"),
])  # fmt: skip
def test_a_threshold_outside_0_to_1_is_an_error(threshold: Any, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        Guard(says(x=0.0), threshold)


def test_an_unknown_action_is_an_error() -> None:
    with pytest.raises(BadInput, match='"refuse", "blur" or "flag", got "burn"'):
        Guard(says(x=0.0), 0.5, "burn")  # type: ignore[arg-type]


@pytest.mark.parametrize(("action", "allowed"), [("refuse", False), ("blur", False), ("flag", True)])
def test_a_verdict_carries_its_action_and_only_flag_lets_a_find_pass(action: Action, allowed: bool) -> None:
    found = verdict(Guard(says(x=1.0), 0.5, action))
    assert (found.allowed, found.note["action"], found.score) == (allowed, action, 1.0)


def test_a_guard_stands_only_where_its_detector_reads() -> None:
    request = Request("0", "p", 0)
    sample = Sample(request, tiny.picture(0))
    assert Guard(says(x=1.0), 0.5).inspect([sample]) == []
    assert Guard(Darkness(), 0.5).screen([request], None) == []


def test_pictures_are_judged_and_samples_without_one_have_nothing_to_judge() -> None:
    from PIL import Image

    requests = [Request(str(i), "p", i) for i in range(3)]
    black, white = (Image.new("RGB", (8, 8), colour) for colour in ("black", "white"))
    samples = [Sample(r, image) for r, image in zip(requests, (black, None, white), strict=True)]
    found = Guard(Darkness(), 0.5).inspect(samples)
    assert [v.allowed for v in found] == [False, True, True]
    assert [v.label for v in found] == ["dark", "no picture", "dark"]


def test_nothing_to_judge_costs_nothing() -> None:
    assert Guard(Broken()).judge([]) == []
    assert Guard(Darkness(), 0.5).inspect([]) == []


def test_one_item_that_breaks_the_detector_does_not_lose_the_others() -> None:
    detector = ByWord((("good", (("x", 0.0),)), ("bad", (("x", 1.0),))))
    found = Guard(detector, 0.5).judge(["good", "unheard of", "bad"])
    assert [(v.allowed, math.isnan(v.score)) for v in found] == [(True, False), (False, True), (False, False)]


# C20
def test_negative_prompts_are_no_wishes() -> None:
    found = Guard(Finds()).screen([Request("0", "a dog", 0, negative="a cat"), Request("1", "a cat", 0)], None)
    assert [v.allowed for v in found] == [True, False]


# C20
def test_a_soft_prompt_passes_where_that_is_allowed_and_its_words_are_read() -> None:
    x = torch.zeros(1, 4)
    requests = [Request(str(i), Soft(text, {"<x>": x}), 0) for i, text in enumerate(["a <x> dog", "a <x> cat", "<x>"])]
    found = Guard(Finds(), allow_unread=True).screen(requests, None)
    assert [v.allowed for v in found] == [True, False, True]
    assert math.isnan(found[2].score) and found[2].label == "embedding in place of words, allowed"
    assert not any(v.allowed for v in Guard(Finds()).screen(requests, None))


# C20
@pytest.mark.parametrize("name", ["ip_adapter_image", "ip_adapter_image_embeds"])
def test_a_picture_as_prompt_is_refused_as_nobody_has_read_it(name: str) -> None:
    requests = [Request("0", "a dog", 0, settings={name: [tiny.picture(0)]}), Request("1", "a dog", 0)]
    found = Guard(Finds()).screen(requests, None)
    assert [v.allowed for v in found] == [False, True]
    assert found[0].label == f"{name} in place of words"
    assert Guard(Finds(), allow_unread=True).screen(requests, None)[0].allowed


# C30
@pytest.mark.parametrize("prompt", ["", "  ", "\u200b", "\u3164 \ufe0f"])
def test_a_prompt_that_says_nothing_is_unknown_and_not_safe(prompt: str) -> None:
    found = verdict(Guard(Finds()), prompt)
    assert (found.allowed, found.label) == (False, "nothing to read") and math.isnan(found.score)


@pytest.mark.parametrize(
    "prompt", ["a c\u0430t", "a ｃａｔ", "a c\u200bat", "red\u200bcat", "a cát", "\u0441\u0430\u0442"]
)
def test_a_disguised_word_is_found_and_the_raw_prompt_is_kept(prompt: str) -> None:
    found = verdict(Guard(Finds()), prompt)
    assert (found.allowed, found.label, found.score) == (False, "cat", 1.0)
    assert found.note["raw"] == prompt and "cat" in found.note["read"].split()


def test_a_detector_that_forgets_a_reading_refuses_the_disguised_prompt() -> None:
    class Forgets(Finds):
        def scores(self, items: Sequence[Any]) -> list[Mapping[str, float]]:
            return [{"cat": 0.0} for item in items if item.startswith("red")]

    found = Guard(Forgets()).judge(["red dog", "red d\u043eg", "r\u0435d dog"])
    assert [v.allowed for v in found] == [True, True, False]


def test_a_prompt_is_judged_as_it_stands_too() -> None:
    found = verdict(Guard(ByWord((("ｐ", (("x", 1.0),)), ("p", (("x", 0.0),)))), 0.5), "ｐ")
    assert not found.allowed and found.note["raw"] == "ｐ"


def test_a_plain_prompt_is_read_once_and_its_note_holds_no_copy_of_it() -> None:
    detector = Encoded()
    found = verdict(Guard(detector), "a dog")
    assert detector.read == ["a dog"] and "raw" not in found.note


def test_a_text_of_a_megabyte_is_an_error_before_any_encoder_sees_it() -> None:
    detector = Encoded()
    with pytest.raises(BadInput, match="a prompt may have 10,000"):
        Guard(detector).judge(["a dog", "a" * 1_000_000])
    assert detector.read == []


def test_a_long_prompt_reaches_the_detector_in_full() -> None:
    detector = Encoded()
    verdict(Guard(detector), "dog " * 2000)
    assert detector.read == ["dog " * 2000]


def test_fitted_thresholds_of_labels_count_and_given_ones_go_before_them() -> None:
    detector = Calibrated(says(x=0.3, y=0.5).known, 0.6, (("x", 0.2),))
    assert (verdict(Guard(detector)).label, verdict(Guard(detector)).threshold) == ("x", 0.2)
    assert verdict(Guard(detector, {"x": 0.4})).allowed  # y has the fitted 0.6
    assert verdict(Guard(detector, 0.4)).label == "y"
    assert verdict(Guard(detector, {"y": 0.9})).label == "x"


def test_thresholds_of_single_labels_are_enough_and_other_labels_may_not_pass() -> None:
    assert verdict(Guard(Calibrated(says(x=0.1).known, own=(("x", 0.2),)))).allowed
    assert verdict(Guard(Calibrated(says(x=0.1, y=0.0).known, own=(("x", 0.2),)))).label == "y"


def test_a_fitted_threshold_of_a_label_that_is_no_number_is_an_error() -> None:
    with pytest.raises(BadInput, match="got nan"):
        Guard(Calibrated(says(x=0.1).known, 0.5, (("x", math.nan),)))


# C28
def test_a_verdict_says_where_its_number_comes_from() -> None:
    found = verdict(Guard(Calibrated(says(x=0.1).known, 0.5)))
    assert found.note == {"version": "1", "weights": "abc", "action": "refuse"}


# C20
def test_missing_weights_are_said_before_anything_is_drawn(pipe: Any) -> None:
    class Missing(Broken):
        @property
        def about(self) -> Mapping[str, str]:
            raise EffaceError("no such weights")

    with pytest.raises(EffaceError, match="no such weights"), Guard(Missing()).on(pipe):
        pass


def requested(*prompts: str) -> list[Request]:
    return [Request(str(i), prompt, 0) for i, prompt in enumerate(prompts)]


# C4
def test_the_pipelines_own_text_is_read_where_it_fits_and_disguised_prompts_are_encoded_besides(pipe: Any) -> None:
    detector = Encoded()
    prompts = ["a dog", "a café", "a cat"]
    text = anatomy.of(pipe).encode(prompts)
    guard = Guard(detector)
    with guard.on(pipe):
        found = guard.screen(requested(*prompts), text)
    ((given, items),) = detector.given
    assert items == prompts and torch.equal(given.states, text.states)
    assert detector.read == ["a cafe"]
    assert [v.score for v in found] == [0.0, 0.25, 0.0]


def test_rows_stay_with_their_prompts_where_some_are_not_read(pipe: Any) -> None:
    detector = Encoded()
    guard = Guard(detector)
    text = anatomy.of(pipe).encode(["a dog", "a cat", "a flower"])
    requests = requested("a dog", "a cat", "a flower")
    requests[1] = replace(requests[1], prompt=Soft("<x>", {}))
    with guard.on(pipe):
        guard.screen(requests, text)
    ((given, items),) = detector.given
    assert items == ["a dog", "a flower"] and torch.equal(given.states, text.states[[0, 2]])


@pytest.mark.parametrize("why", ["does not fit", "not on", "on twice", "patched before", "patched after"])
def test_otherwise_the_detector_encodes_for_itself(why: str, pipe: Any) -> None:
    detector = Encoded(fitting=why != "does not fit")
    guard = Guard(detector)
    name = next(n for n, _ in pipe.text_encoder.named_parameters() if n.endswith("layers.0.mlp.fc1.bias"))
    patch = Patch({f"text_encoder.{name}": torch.ones(pipe.text_encoder.get_parameter(name).shape)})
    with ExitStack() as stack:
        on = {
            "not on": (),
            "on twice": (guard.on(pipe), guard.on(tiny.tiny_pipeline())),
            "patched before": (patch.on(pipe), guard.on(pipe)),
            "patched after": (guard.on(pipe), patch.on(pipe)),
        }.get(why, (guard.on(pipe),))
        for one in on:
            stack.enter_context(one)
        guard.screen(requested("a dog"), anatomy.of(pipe).encode(["a dog"]))
    assert (detector.given, detector.read) == ([], ["a dog"])
    assert guard._on == []


def test_a_patch_of_the_denoiser_leaves_the_text_readable(pipe: Any) -> None:
    detector = Encoded()
    guard = Guard(detector)
    with guard.on(pipe), Patch({"unet.conv_in.bias": torch.ones(16)}).on(pipe):
        guard.screen(requested("a dog"), anatomy.of(pipe).encode(["a dog"]))
    assert detector.read == []


def test_a_guard_is_equal_to_another_of_the_same_settings_whether_it_is_on_or_not(pipe: Any) -> None:
    guard = Guard(Encoded(), 0.5)
    with guard.on(pipe):
        assert guard == Guard(Encoded(), 0.5) and repr(guard) == repr(Guard(Encoded(), 0.5))


# C34
def test_the_same_prompt_gets_the_same_verdict_in_any_company() -> None:
    prompts = ["a dog", "a c\u0430t", "", "a cat", "red\u200bcat", "a café"]
    guard = Guard(Finds())
    alone = [guard.judge([prompt])[0] for prompt in prompts]
    assert [repr(v) for v in guard.judge(prompts)] == [repr(v) for v in alone]
    assert [repr(v) for v in guard.judge(prompts[::-1])] == [repr(v) for v in alone[::-1]]


@pytest.mark.parametrize(("threshold", "warned"), [(0.0, 0), (0.2, 1), (0.25, 0), (0.4, 0), ({"x": 0.1, "y": 0.9}, 1)])
def test_a_threshold_below_the_detectors_lowest_score_warns(threshold: Any, warned: int) -> None:  # C28
    class Floored(ByWord):
        floor = 0.25

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        Guard(Floored(), threshold)
    assert ["finds what 0.25 finds" in str(one.message) for one in said] == [True] * warned
