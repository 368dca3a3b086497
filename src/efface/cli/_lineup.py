"""The defenses of a benchmark as they are written on the command line, and the models that stand behind them.

Texts travel to the workers, which make the models: weights never do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.cli import _options
from efface.errors import BadInput

if TYPE_CHECKING:
    from efface.core import Target

Texts = tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]
"""What --patch, --guide and --guard were given."""
Lineup = Mapping[str, Texts]


def of(patches: Sequence[str] | None, guides: Sequence[str] | None, guards: Sequence[str] | None, each: bool) -> Lineup:
    """All defenses together under "defended"; with `each`, every one alone too, under a name of its own."""
    given = (tuple(patches or ()), tuple(guides or ()), tuple(guards or ()))
    if not any(given):
        raise BadInput("bench measures defenses: give at least one --patch, --guide or --guard")
    found: dict[str, Texts] = {}
    for place, texts in enumerate(given) if each else ():
        for text in texts:
            name = _name(text, place == 0)
            if name in found:
                raise BadInput(f'two defenses would go by the name "{name}": rename a file, or leave --each out')
            alone: list[tuple[str, ...]] = [(), (), ()]
            alone[place] = (text,)
            found[name] = (alone[0], alone[1], alone[2])
    return found | ({"defended": given} if len(found) != 1 else {})


def costs(lineup: Lineup) -> dict[str, dict[str, Any]]:
    """What each costs to make, by its patches' cards. Raises BadInput for what does not stand for a defense."""
    found: dict[str, dict[str, Any]] = {}
    for name, texts in lineup.items():
        made = _options.defenses(*texts)
        cards = [getattr(one, "card", {}) for one in made]
        found[name] = {
            "seconds": round(sum(float(card.get("seconds", 0)) for card in cards), 3),
            "bytes": sum(getattr(one, "bytes", 0) for one in made),
            "method": "; ".join(
                f"{card['method']} on {card.get('base', '?')}" if "method" in card else repr(one)
                for one, card in zip(made, cards, strict=True)
            ),
        }
    return found


def targets(
    model: str, device: str, dtype: str, variant: str | None, config: str | None, lineup: Lineup
) -> dict[str, Target]:
    """The models under test, which share one pipeline."""
    pipe = _options.pipeline(model, device, dtype, variant, config)
    from efface.bench.work import NONE
    from efface.generate import Protected

    own = {name: Protected(pipe, tuple(_options.defenses(*texts))) for name, texts in lineup.items()}
    return {NONE: Protected(pipe), **own}


def _name(text: str, patch: bool) -> str:
    words = Path(text.partition(":")[0]).stem if patch else text
    return "-".join("".join(c if c.isalnum() else " " for c in words).split())
