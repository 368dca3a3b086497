"""AlexNet from the user's safetensors: torchvision's layers, the paper's heads, and what is said of a wrong file."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from efface.errors import BadInput
from efface.measure._alexnet import SMALLEST, AlexNet

WIDTHS = (64, 192, 384, 256, 256)


def torchvisions(seed: int = 0) -> nn.Sequential:
    """AlexNet's features as torchvision lays them out, without its last pooling; random weights."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(),
    ).requires_grad_(False)  # fmt: skip


def backbone() -> dict[str, Tensor]:
    return {f"features.{name}": tensor for name, tensor in torchvisions().state_dict().items()}


def heads(seed: int = 1) -> dict[str, Tensor]:
    dice = torch.Generator().manual_seed(seed)
    return {f"lin{i}.model.1.weight": torch.rand(1, n, 1, 1, generator=dice) for i, n in enumerate(WIDTHS)}


def save(folder: Path, **parts: dict[str, Tensor]) -> str:
    """A folder with a safetensors file for each part."""
    for name, tensors in parts.items():
        save_file(tensors, folder / f"{name}.safetensors")
    return str(folder)


def test_the_layers_are_those_of_torchvisions_network_after_the_papers_scaling(tmp_path: Path) -> None:
    pixels = torch.rand(2, 3, 40, 33, generator=torch.Generator().manual_seed(2)) * 2 - 1
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    x = ((pixels.movedim(1, 3) - shift) / scale).movedim(3, 1)
    wanted = []
    for layer in torchvisions():
        x = layer(x)
        if isinstance(layer, nn.ReLU):
            wanted.append(x)
    found = AlexNet.read(save(tmp_path, alexnet=backbone())).layers(pixels)
    assert len(found) == len(wanted) == 5
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_heads_come_from_the_same_file_or_beside_it_and_are_ones_without(tmp_path: Path) -> None:
    one = tmp_path / "one.safetensors"
    save_file(backbone() | heads() | {"classifier.1.bias": torch.zeros(4096)}, one)
    folder = tmp_path / "two"
    folder.mkdir()
    for source in (str(one), save(folder, alexnet=backbone(), lpips=heads())):
        network = AlexNet.read(source)
        assert network.learnt
        for head, given in zip(network.heads, heads().values(), strict=True):
            assert torch.equal(head, given.flatten())
    (folder / "lpips.safetensors").unlink()
    network = AlexNet.read(str(folder))
    assert not network.learnt and all(bool((head == 1).all()) for head in network.heads)
    assert [len(head) for head in network.heads] == list(WIDTHS)


def test_half_precision_is_read_as_single(tmp_path: Path) -> None:
    network = AlexNet.read(save(tmp_path, alexnet={name: tensor.half() for name, tensor in backbone().items()}))
    assert all(layer.dtype == torch.float32 for layer in network.layers(torch.zeros(1, 3, 31, 31)))


@pytest.mark.parametrize("name", ["features.6.bias", "features.10.weight"])
def test_a_missing_or_misshapen_tensor_is_named(tmp_path: Path, name: str) -> None:
    tensors = backbone()
    given = tensors.pop(name)
    with pytest.raises(BadInput, match=f"holds no {name} "):
        AlexNet.read(save(tmp_path, alexnet=tensors))
    with pytest.raises(BadInput, match=rf"{name} has shape \(2, 2\), AlexNet's is \({given.shape[0]},"):
        AlexNet.read(save(tmp_path, alexnet=tensors | {name: torch.zeros(2, 2)}))


def test_some_heads_without_the_others_are_an_error(tmp_path: Path) -> None:
    some = heads()
    del some["lin3.model.1.weight"]
    with pytest.raises(BadInput, match=r"holds no lin3\.model\.1\.weight \(1, 256, 1, 1\)"):
        AlexNet.read(save(tmp_path, alexnet=backbone(), lpips=some))


@pytest.mark.parametrize("in_a_folder", [True, False])
def test_a_pickle_is_never_read_and_the_line_that_converts_it_works(tmp_path: Path, in_a_folder: bool) -> None:
    pickle = tmp_path / "alexnet.pth"
    torch.save(backbone() | heads(), pickle)
    with pytest.raises(BadInput, match="a pickle, which efface never reads") as caught:
        AlexNet.read(str(tmp_path if in_a_folder else pickle))
    message = str(caught.value)
    assert "\n" not in message
    exec(message.split('python -c "')[1].removesuffix('"'), {})
    assert AlexNet.read(str(tmp_path)).learnt


def test_what_holds_no_weights_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such file or folder"):
        AlexNet.read(str(tmp_path / "nothing"))
    with pytest.raises(BadInput, match=r"expected a \.safetensors file"):
        AlexNet.read(str(tmp_path))
    disguised = tmp_path / "alexnet.safetensors"
    torch.save(backbone(), disguised)
    with pytest.raises(BadInput, match="pickle"):
        AlexNet.read(str(disguised))


def test_pictures_too_small_for_the_last_layer_are_refused(tmp_path: Path) -> None:
    network = AlexNet.read(save(tmp_path, alexnet=backbone()))
    assert network.layers(torch.zeros(1, 3, SMALLEST, 64))[-1].shape == (1, 256, 1, 3)
    with pytest.raises(BadInput, match="at least 31 pixels a side, got 64 x 30"):
        network.layers(torch.zeros(1, 3, 30, 64))
