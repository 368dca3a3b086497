"""Where a parameter path leads in a pipeline, and where the numbers behind it are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from efface.errors import DoesNotFit

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as Pipe


def place(pipe: Pipe, path: str) -> tuple[nn.Module, str]:
    """The module and the attribute name that a parameter path like `unet.mid_block...to_k.weight` means."""
    part, _, rest = path.partition(".")
    owner, _, name = rest.rpartition(".")
    try:
        module = unwrapped(pipe.components[part].get_submodule(owner))
        getattr(module, name)
    except (KeyError, AttributeError) as error:
        raise DoesNotFit(f"{path}: the model has no such parameter, so the patch was made for another one") from error
    return module, name


def unwrapped(module: nn.Module) -> nn.Module:
    """The layer itself, where peft has put its adapters around it."""
    inner = getattr(module, "base_layer", None)
    return inner if isinstance(inner, nn.Module) else module


def stored(module: nn.Module, name: str) -> Tensor:
    """The tensor that holds a parameter's numbers: the parameter, or, with sequential CPU offload, what it is loaded
    from whenever its module is called. Weights offloaded to disk have none: a meta tensor is given."""
    weight: Tensor = getattr(module, name)
    kept = getattr(getattr(module, "_hf_hook", None), "weights_map", None)
    if kept is None or not weight.is_meta:  # a quantised layer's `weight` may be no tensor
        return weight
    found = kept[name]
    return found if found.data_ptr() == kept[name].data_ptr() else weight  # from disk, a copy each time
