"""Every stage takes a step, and what the stages make is a folder that plain diffusers draws with."""

import random
from pathlib import Path

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from training.picto import classify, clip, tokenizer, unet, vae
from training.picto.export import export, text_tower
from training.picto.loop import Budget
from training.picto.render import batch, imagine
from transformers import CLIPTokenizer

from tests.picto.art import sprites

ONE = Budget(steps=1)


@pytest.fixture(scope="module")
def tokens() -> CLIPTokenizer:
    rng = random.Random(0)
    return tokenizer.learn(imagine(rng).caption for _ in range(4000))


def test_every_caption_fits_and_any_text_can_be_typed(tokens: CLIPTokenizer) -> None:
    rng = random.Random(1)
    captions = [imagine(rng).caption for _ in range(2000)]
    assert max(len(ids) for ids in tokens(captions).input_ids) <= tokenizer.LENGTH
    typed = tokens("zq9 ü!").input_ids
    assert tokens.eos_token_id not in typed[1:-1]
    assert tokens.decode(typed, skip_special_tokens=True) == "zq 9 ü !"


def test_text_is_pooled_at_the_first_end_token(tokens: CLIPTokenizer) -> None:
    net = clip.new(tokens).eval()
    ids = clip.ids(tokens, ["a dog"])
    out = text_tower(net)(ids)
    end = ids[0].tolist().index(tokens.eos_token_id)
    assert torch.equal(out.pooler_output[0], out.last_hidden_state[0, end])
    assert ids[0, end:].eq(tokens.eos_token_id).all()
    assert net.config.text_config.eos_token_id == tokens.eos_token_id != 2


def test_standardising_keeps_the_pictures() -> None:
    torch.manual_seed(0)
    net = vae.new()
    clean = vae.pixels(batch(sprites(), 4, random.Random(0))[1], torch.device("cpu"))
    with torch.no_grad():
        before = net.decode(net.encode(clean).latent_dist.mean).sample
        vae._standardise(net, sprites(), 32)
        latents = net.encode(clean).latent_dist.mean
        after = net.decode(latents).sample
    torch.testing.assert_close(after, before, atol=1e-4, rtol=0)
    assert net.config.scaling_factor == 1
    assert 0.2 < latents.std() < 3


def test_stages_step_and_export_draws(tokens: CLIPTokenizer, tmp_path: Path) -> None:
    torch.manual_seed(0)
    parts = {name: tmp_path / name for name in ("vae", "clip", "tokenizer", "tagger", "judge", "unet")}
    autoencoder = vae.fit(vae.new(), sprites(), ONE, tmp_path / "vae.pt", size=2)
    pair = clip.fit(clip.new(tokens), tokens, sprites(), ONE, tmp_path / "clip.pt", size=2)
    tagger = classify.fit(classify.new_tagger(), sprites(), ONE, tmp_path / "tagger.pt", "tagger", size=2)
    judge = classify.fit(classify.new_judge(), sprites(), ONE, tmp_path / "judge.pt", "judge", size=2)
    cache = unet.remember(autoencoder, text_tower(pair), tokens, sprites(), tmp_path / "latents.pt", count=4)
    denoiser = unet.fit(unet.new(), cache, ONE, tmp_path / "unet.pt", size=2)
    nets = {"vae": autoencoder, "clip": pair, "tokenizer": tokens, "tagger": tagger, "judge": judge, "unet": denoiser}
    for name, net in nets.items():
        net.save_pretrained(parts[name])
    export(parts, tmp_path / "weights")
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "weights", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    drawn = pipe("a dog", num_inference_steps=2, output_type="np").images
    assert drawn.shape == (1, 64, 64, 3)
    assert not (tmp_path / "weights.part").exists()
    assert not [file for file in (tmp_path / "weights").rglob("*.json") if str(tmp_path) in file.read_text()]


def test_v_is_what_the_schedule_inverts() -> None:
    schedule = unet.scheduler()
    clean, noise = torch.randn(2, 1, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    time = torch.tensor([400])
    keep = schedule.alphas_cumprod[400]
    noised = schedule.add_noise(clean, noise, time)
    v = keep.sqrt() * noise - (1 - keep).sqrt() * clean
    schedule.set_timesteps(1000)
    found = schedule.step(v, 400, noised).pred_original_sample
    torch.testing.assert_close(found, clean, atol=1e-4, rtol=0)
