"""Read networks of diffusers and transformers, and refuse any whose file does not hold exactly its weights.

transformers and diffusers give random numbers to a weight that a file lacks or names otherwise, leave out what they do
not know, and only log it: an attack would then measure another model than the edited one, a guard let everything pass.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.errors import BadInput, DoesNotFit, EffaceError

if TYPE_CHECKING:
    import torch

HARMLESS = "position_ids"
"""How the names of buffers end that older releases of transformers saved and newer ones count out themselves."""


def read(folder: Path, dtype: torch.dtype, variant: str | None = None) -> dict[str, Any]:
    """Each network that the folder's model_index.json names, by its name there; seconds, each file is read once.

    What is no network of diffusers or transformers (tokenizers, schedulers, code of its own) is left to diffusers.
    Raises DoesNotFit for missing, unknown or misshapen weights, BadInput and EffaceError for what cannot be read.
    """
    from safetensors import SafetensorError

    try:
        index: dict[str, Any] = json.loads(folder.joinpath("model_index.json").read_text(encoding="utf-8"))
        kinds = {name: kind for name, entry in index.items() if (kind := _class(entry))}
    except (OSError, ValueError, AttributeError) as error:
        raise BadInput(f"{folder}: its model_index.json cannot be read: {_first_line(error)}") from error
    files = {name: sorted(folder.joinpath(name).glob("*.*")) for name in kinds}
    marked = {name for name in kinds if any(f".{variant}" in path.name for path in files[name])}
    if variant and not marked:
        raise BadInput(f"{folder}: no part of it has files of variant={variant}")
    found: dict[str, Any] = {}
    for name, kind in kinds.items():
        place = folder / name if (folder / name).is_dir() else folder  # some repositories keep a part at their top
        options: dict[str, Any] = {"dtype": dtype}
        if name in marked:
            options["variant"] = variant
        where = f"{name}: {_weights(files[name], options.get('variant')) or place}"
        try:
            found[name] = load(kind, str(place), where, **options)
        except BadInput:  # also a ValueError
            raise
        except (OSError, SafetensorError) as error:
            raise EffaceError(f"{where} could not be loaded: {_first_line(error)}") from error
        except (ValueError, RuntimeError) as error:
            raise BadInput(f"{where} could not be loaded: {_first_line(error)}") from error
    return found


def load(kind: Any, place: str, where: str, unread: tuple[str, ...] = (), **options: Any) -> Any:
    """The network of a class, from a folder or hub id; DoesNotFit unless each of its weights comes from the file.

    `where`: what the message calls the file. `unread`: for a network that is a part of its file (half of a CLIP, an
    encoder without its head), modules that nobody reads: where the file lacks them they are taken out, not random, and
    the file may hold other parts. `options` are those of `from_pretrained`, which raises what it does.
    """
    network, said = kind.from_pretrained(  # mismatched sizes are "ignored" into what is said, for `check`
        place, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True, **options
    )
    if unread:
        lacking = {_top(name) for name in said["missing_keys"]} & set(unread)
        for module in lacking:
            setattr(network, module, None)
        said = {
            **said,
            "missing_keys": [name for name in said["missing_keys"] if _top(name) not in lacking],
            "unexpected_keys": [
                name for name in said["unexpected_keys"] if _top(name) not in unread and hasattr(network, _top(name))
            ],
        }
    check(network, said, where)
    return network


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Say in one line that `what` ("FOLDER: no CLIP") could be loaded, whatever a library raises while it reads."""
    from safetensors import SafetensorError

    try:
        yield
    except BadInput:  # also a ValueError
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise EffaceError(f"{what} could be loaded: {_first_line(error)}") from error


def check(network: Any, said: Mapping[str, Iterable[Any]], where: str) -> None:
    """Raise DoesNotFit unless the file gave each of the network's weights and nothing else.

    `said`: what `from_pretrained(output_loading_info=True)` gives beside the network: names after the library's own
    renaming, without tied weights. `where`: the part and its file, for the message.
    """
    missing = sorted(said["missing_keys"])
    unknown = sorted(name for name in said["unexpected_keys"] if not name.endswith(HARMLESS))
    misshapen = sorted(said["mismatched_keys"])
    wrong = []
    if missing:
        wrong.append(f"lacks {len(missing)} of {len(network.state_dict())} weights (such as {missing[0]})")
    if unknown:
        wrong.append(f"holds {len(unknown)} that are none of them (such as {unknown[0]})")
    if misshapen:
        name, held, wanted = misshapen[0]
        wrong.append(f"holds {len(misshapen)} of another shape (such as {name}, {tuple(held)}, not {tuple(wanted)})")
    if wrong:
        raise DoesNotFit(
            f"{where} does not fit {type(network).__name__}: it {', and '.join(wrong)}; "
            "give the whole file, named as save_pretrained does (by newer diffusers or transformers: update yours)"
        )


def _class(entry: Any) -> Any:
    """The network class that an entry of model_index.json, [library, class], names; None for whatever else."""
    import diffusers
    import transformers

    if not (isinstance(entry, list) and len(entry) == 2 and all(isinstance(word, str) for word in entry)):
        return None
    library, name = entry
    homes = {"diffusers": diffusers, "transformers": transformers}
    home = homes.get(library) or getattr(diffusers.pipelines, library, None)
    kind = getattr(home, name, None)
    networks = (diffusers.ModelMixin, transformers.PreTrainedModel)
    return kind if isinstance(kind, type) and issubclass(kind, networks) else None


def _weights(files: Iterable[Path], variant: str | None) -> Path | None:
    """The one file of weights that is read, if it is one."""
    ending = f".{variant}.safetensors" if variant else ".safetensors"
    held = [path for path in files if path.name.endswith(ending) and (variant or path.name.count(".") == 1)]
    return held[0] if len(held) == 1 else None


def _top(name: str) -> str:
    return name.split(".", 1)[0]


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0]
