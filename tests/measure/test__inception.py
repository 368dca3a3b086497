"""The FID's Inception: torch-fidelity's numbers, and what is said of a wrong file."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from efface.errors import BadInput
from efface.measure._inception import SIDE, SMALLEST, WIDTH, Inception, shapes

GOLD = [0.0, 0.00552, 0.47432, 0.58355, 0.0, 0.54552]
"""Every 400th of torch-fidelity's numbers, and their mean."""
MEAN = 0.6847


def weights(seed: int = 0) -> dict[str, Tensor]:
    """Random ones under which numbers neither grow nor vanish from layer to layer."""
    dice = torch.Generator().manual_seed(seed)
    given = {}
    for name, shape in shapes():
        if name.endswith("conv.weight"):
            given[name] = torch.randn(shape, generator=dice) * (2 / (shape[1] * shape[2] * shape[3])) ** 0.5
        elif name.endswith(("running_var", "bn.weight")):
            given[name] = torch.rand(shape, generator=dice) * 0.5 + 0.75
        else:
            given[name] = torch.randn(shape, generator=dice) * 0.1
    return given


def test_features_are_those_of_torch_fidelitys_network() -> None:
    """The numbers are of torch-fidelity 0.4.0's FeatureExtractorInceptionV3 with the same weights and picture.

    There all 2048 were equal to the last bit; the names and shapes of its tensors were those of `shapes`.
    """
    picture = torch.randint(0, 256, (2, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(7))
    found = Inception(weights()).features(picture[:1].float())
    assert found.shape == (1, WIDTH)
    torch.testing.assert_close(found[0, ::400], torch.tensor(GOLD), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.mean(), torch.tensor(MEAN), atol=1e-4, rtol=1e-4)


def test_a_file_is_read_and_what_is_missing_or_misshapen_is_named(tmp_path: Path) -> None:
    given = {name: torch.zeros(shape, dtype=torch.float16) for name, shape in shapes()}
    path = tmp_path / "inception.safetensors"
    save_file(given | {"fc.bias": torch.zeros(1008)}, path)
    assert Inception.read(str(path)).tensors.keys() == given.keys()
    last = given.pop("Mixed_7c.branch_pool.bn.bias")
    save_file(given, path)
    with pytest.raises(BadInput, match=r"holds no Mixed_7c\.branch_pool\.bn\.bias \(192,\); expected the FID's"):
        Inception.read(str(path))
    save_file(given | {"Mixed_7c.branch_pool.bn.bias": last[:3].clone()}, path)
    with pytest.raises(BadInput, match=r"bn\.bias has shape \(3,\), the FID's Inception's is \(192,\)"):
        Inception.read(str(path))


def test_pictures_too_small_are_refused() -> None:
    network = Inception({name: torch.zeros(shape) for name, shape in shapes()})
    assert network.features(torch.zeros(1, 3, SMALLEST, SMALLEST)).shape == (1, WIDTH)
    with pytest.raises(BadInput, match="at least 75 pixels a side, got 80 x 74"):
        network.features(torch.zeros(1, 3, SMALLEST - 1, 80))
