"""What an optimiser step of each fine-tuning method costs at Stable Diffusion 1.4's layout, by FLOP counter.

    python -m benchmarks.finetune.flops             # seconds: the weights are on the meta device, nothing is computed

The units (a forward pass of the U-Net, one with its backward, an encoding of a picture) are counted on the real layout;
a step is so many of them, as the tests count the calls. Three columns: as the published code does it; the same numbers
without what is thrown away; with the reuse that a method offers (off in the presets of the papers). One row of 64 x 64.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from benchmarks.origin import origin
from diffusers import AutoencoderKL, UNet2DConditionModel
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

HERE = Path(__file__).parent
STEPS = 50
"""Of a whole rollout."""
DRAWS, DUO_STEPS = 16, 1000
"""DUO's `draws`, whose reference predictions are kept, and the steps that use them."""


def counted(work: Any) -> float:
    """TFLOP, a multiplication and an addition being two."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 1e12


def asked(unet: nn.Module, rows: int = 1) -> Tensor:
    latents, states = torch.empty(rows, 4, 64, 64, device="meta"), torch.empty(rows, 77, 768, device="meta")
    return unet(latents, torch.empty(rows, device="meta"), encoder_hidden_states=states).sample


def units() -> dict[str, float]:
    """TFLOP of the parts that steps are made of."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2,
        )  # fmt: skip
    unet.requires_grad_(False)
    found = {"forward": counted(lambda: asked(unet))}

    def trained(which: Any) -> float:
        for name, parameter in unet.named_parameters():
            parameter.requires_grad_(which(name))
        return counted(lambda: asked(unet).sum().backward())

    found["full"] = trained(lambda name: True)
    found["cross"] = trained(lambda name: "attn2" in name)
    found["encode"] = counted(lambda: vae.encode(torch.empty(1, 3, 512, 512, device="meta")))
    unet.requires_grad_(False)
    layers = [n for n, m in unet.named_modules() if "attn1.to_" in n and isinstance(m, nn.Linear)]
    inject_adapter_in_model(LoraConfig(r=32, lora_alpha=32, target_modules=layers), unet)
    unet.to("meta")
    found["lora"] = counted(lambda: asked(unet).sum().backward())
    return found


def rows(u: dict[str, float]) -> list[dict[str, Any]]:
    """A step of each method: as published, without waste, with reuse."""
    F, mean = u["forward"], (STEPS - 1) / 2
    table = {
        # k = 0 runs the whole chain; every weight collects gradients
        "SDD": (
            ((STEPS + sum(range(STEPS))) / STEPS * 2 * F + F + u["full"]),
            mean * 2 * F + F + u["cross"],
            (STEPS - 1) * 2 * F / 10 + F + u["cross"],
            "ten steps share a rollout",
        ),
        "ESD": (
            mean * 2 * F + 2 * F + u["full"],
            mean * 2 * F + 2 * F + u["cross"],
            STEPS * 2 * F / STEPS + u["cross"],
            "fifty steps share a rollout of the frozen model, which holds their targets",
        ),
        "DUO": (
            2 * u["encode"] + 3 * F + 3 * u["lora"],
            3 * F + 3 * u["lora"],
            2.25 * u["lora"] + DRAWS * 2.25 * F / DUO_STEPS,
            f"latents cached; one keeping row for four pairs; the reference sees {DRAWS} batches in {DUO_STEPS} steps",
        ),
        "Forget-Me-Not": (u["encode"] + u["full"], u["full"], u["cross"], "latents cached; cross-attention alone"),
    }
    return [
        {"method": name, "published": a, "exact": b, "reuse": c, "factor": a / c, "how": how}
        for name, (a, b, c, how) in table.items()
    ]


def main() -> None:
    found = units()
    table = rows(found)
    print("TFLOP: " + ", ".join(f"{name} {value:.3f}" for name, value in found.items()))
    print(f"{'method':14} {'published':>10} {'exact':>8} {'reuse':>8} {'factor':>7}")
    for r in table:
        print(f"{r['method']:14} {r['published']:10.2f} {r['exact']:8.2f} {r['reuse']:8.2f} {r['factor']:7.1f}")
    result = {
        **origin(), "units": found, "rows": table,
    }  # fmt: skip
    HERE.joinpath("results").mkdir(exist_ok=True)
    HERE.joinpath("results", "flops.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
