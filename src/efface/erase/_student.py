"""What is trained of a model: some of its weights, or adapters beside them.

A student leaves the model alone: outside `on()` the pipeline is the one that was found, bit for bit. The reference of a
loss is simply the pipeline, and there is never a second denoiser.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from efface import anatomy
from efface.errors import DoesNotFit, MissingExtra
from efface.patch import Delta, LowRank

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as Pipe


class Student(ABC):
    """Trainable numbers in float32, by name, and the model that has them."""

    parameters: dict[str, nn.Parameter]

    @abstractmethod
    def on(self, values: Mapping[str, Tensor] | None = None) -> Any:
        """Inside: the pipeline computes with the student's numbers, or with others under the same names (an average).

        Backward belongs inside too: with gradient checkpointing it computes forward again.
        """

    @abstractmethod
    def off(self) -> Any:
        """Inside, also where the student is on: the pipeline is the one that was found."""

    @abstractmethod
    def deltas(self, values: Mapping[str, Tensor]) -> dict[str, Delta]:
        """What the numbers change, by parameter path."""


class Weights(Student):
    """Some of a pipeline's own weights, as float32 masters."""

    def __init__(self, pipe: Pipe, paths: Sequence[str]) -> None:
        if not paths:
            raise DoesNotFit("nothing to train: no weight of this model has a name that the method asks for")
        self._places = {path: anatomy.place(pipe, path) for path in paths}
        self._found = {path: module._parameters[name] for path, (module, name) in self._places.items()}
        self.parameters = {
            path: nn.Parameter(anatomy.stored(*where).detach().to(torch.float32, copy=True))
            for path, where in self._places.items()
        }

    @contextmanager
    def on(self, values: Mapping[str, Tensor] | None = None) -> Iterator[None]:
        """The weights are replaced by casts of the masters, through which gradients flow, and put back."""
        worn = {path: value.to(self._found[path]) for path, value in (values or self.parameters).items()}
        with self._worn(worn):
            yield

    def off(self) -> Any:
        """The weights that were found."""
        return self._worn(self._found)

    @contextmanager
    def _worn(self, values: Mapping[str, Any]) -> Iterator[None]:
        before = {path: module._parameters[name] for path, (module, name) in self._places.items()}
        try:
            for path, (module, name) in self._places.items():
                module._parameters[name] = values[path]
            yield
        finally:
            for path, (module, name) in self._places.items():
                module._parameters[name] = before[path]

    def deltas(self, values: Mapping[str, Tensor]) -> dict[str, Delta]:
        """Dense differences; weights that did not move are left out."""
        with torch.no_grad():
            found = {p: values[p].cpu() - anatomy.stored(*where).cpu().float() for p, where in self._places.items()}
        return {path: delta for path, delta in found.items() if delta.any()}


class Adapters(Student):
    """Low-rank adapters (peft) beside the linear layers and convolutions of one part; taken out again by `close`.

    To be made inside `still`, which would switch their gradients off if it came later.
    """

    def __init__(
        self, pipe: Pipe, part: str, layers: Sequence[str], rank: int, alpha: float, seed: int, gaussian: bool = True,
        dropout: float = 0.0,
    ) -> None:  # fmt: skip
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError as error:
            raise MissingExtra("low-rank training", "train") from error
        if not layers:
            raise DoesNotFit("nothing to train: no layer of this model has a name that the method asks for")
        network: nn.Module = getattr(pipe, part)
        if any(hasattr(module, "base_layer") for module in network.modules()):
            raise DoesNotFit(f"{part} has a LoRA already: fuse it or unload it, then train")
        config = LoraConfig(
            r=rank, lora_alpha=alpha, target_modules=list(layers), lora_dropout=dropout,  # type: ignore[arg-type]
            init_lora_weights="gaussian" if gaussian else True,
        )  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # peft draws from the global dice
            inject_adapter_in_model(config, network, adapter_name="efface")
        self._network = network
        self._layers: dict[str, Any] = {f"{part}.{layer}.weight": network.get_submodule(layer) for layer in layers}
        self.parameters = {}
        for path, layer in self._layers.items():
            for factor in ("lora_A", "lora_B"):
                found = getattr(layer, factor)["efface"]
                found.to(torch.float32).requires_grad_(True)
                self.parameters[f"{path}|{factor}"] = found.weight
        for layer in self._layers.values():
            layer._disable_adapters = True

    @contextmanager
    def on(self, values: Mapping[str, Tensor] | None = None) -> Iterator[None]:
        """Only the layers' own flag is flipped: nobody's requires_grad changes, as with peft's own switch."""
        kept = {name: parameter.data for name, parameter in self.parameters.items()}
        try:
            for name, value in (values or {}).items():
                self.parameters[name].data = value
            with self._enabled(True):
                yield
        finally:
            for name, data in kept.items():
                self.parameters[name].data = data

    def off(self) -> Any:
        """The adapters switched off."""
        return self._enabled(False)

    def deltas(self, values: Mapping[str, Tensor]) -> dict[str, Delta]:
        """The product of the factors, times alpha / rank; convolutions as matrices."""
        found: dict[str, Delta] = {}
        for path, layer in self._layers.items():
            down, up = (values[f"{path}|{factor}"].detach().cpu().flatten(1) for factor in ("lora_A", "lora_B"))
            found[path] = LowRank(up * layer.scaling["efface"], down.clone())
        return found

    def close(self) -> None:
        """Put the layers back that stood there before."""
        for path, layer in self._layers.items():
            _, _, name = path.removesuffix(".weight").partition(".")
            owner, _, child = name.rpartition(".")
            setattr(self._network.get_submodule(owner), child, layer.base_layer)
        if vars(self._network).get("peft_config", {}).pop("efface", None) and not self._network.peft_config:
            del self._network.peft_config  # peft's note of what it put in

    @contextmanager
    def _enabled(self, on: bool) -> Iterator[None]:
        before = [layer._disable_adapters for layer in self._layers.values()]
        try:
            for layer in self._layers.values():
                layer._disable_adapters = not on
            yield
        finally:
            for layer, was in zip(self._layers.values(), before, strict=True):
                layer._disable_adapters = was


@contextmanager
def still(pipe: Pipe, checkpointing: bool = False) -> Iterator[None]:
    """Inside: every part in eval mode and without gradients of its own, the denoiser with gradient checkpointing if
    asked for. After: modes, flags and gradients as they were."""
    parts = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    modes = [(module, module.training) for part in parts for module in part.modules()]
    flags = [(parameter, parameter.requires_grad) for part in parts for parameter in part.parameters()]
    denoiser = anatomy.of(pipe).denoiser
    had = bool(getattr(denoiser, "is_gradient_checkpointing", False))
    try:
        for part in parts:
            part.eval().requires_grad_(False)
        if checkpointing and not had:
            denoiser.enable_gradient_checkpointing()
        yield
    finally:
        if checkpointing and not had:
            denoiser.disable_gradient_checkpointing()
        for module, training in modes:
            module.training = training
        for parameter, wanted in flags:
            parameter.requires_grad_(wanted)
