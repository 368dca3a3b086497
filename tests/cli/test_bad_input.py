"""Every way to use the command line wrongly: one clear line, the right code, no new file."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image
from safetensors.torch import save_file
from tests.cli.conftest import Result
from tests.test_picture_file import png_of
from tests.tiny import tiny_pipeline

from efface.patch import Patch

LAYER = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
FLAT = f"lora_unet_{LAYER.replace('.', '_')}"
SEEING = "classifier:model=picto/judge,labels=beer"
SUITES = {
    "suite": (SEEING, 'metrics = ["rate"]'),
    "suite_detector": ("clasifier", 'metrics = ["rate"]'),
    "suite_reader": ("blocklist", 'metrics = ["rate"]'),
    "suite_label": (SEEING, 'metrics = ["rate"]\nshows = "bear"'),
    "suite_key": (SEEING, 'metrics = ["rate"]\nshow = "beer"'),
    "suite_kind": (SEEING, 'metrics = "rate"'),
    "suite_metric": (SEEING, 'metrics = ["rates"]'),
    "suite_few": (SEEING, 'metrics = ["kid"]'),
}
"""Suite files by what is wrong with them, the first one nothing."""
TOML_TYPO = '[ball]\nprompt = ["a ball"]\n'


def _files(folder: Path, patch: Path) -> dict[str, Path]:
    """Every kind of damaged or foreign file that a command can be given."""
    whole = patch.read_bytes()
    made = {name: folder / f"{name}.safetensors" for name in ("truncated", "noise", "absurd", "foreign", "misfit")}
    made["truncated"].write_bytes(whole[: len(whole) // 2])
    made["noise"].write_bytes(b"this is not a safetensors file at all")
    said = {"efface": "patch 1", "card": "{}", "shared": "{}"}
    huge = {"dtype": "F32", "shape": [10**12, 10**6], "data_offsets": [0, 4]}
    header = json.dumps({"__metadata__": said, "x|up": huge}).encode()
    made["absurd"].write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)
    save_file({"a": torch.zeros(2)}, made["foreign"])
    good = Patch.load(patch)
    name = next(iter(good.deltas))
    Patch({name: torch.zeros(3, 5)}, good.card).save(made["misfit"])
    made["pickle"] = folder / "pickle.safetensors"
    torch.save({"a": torch.zeros(2)}, made["pickle"])
    made["typo"] = folder / "typo.toml"
    made["typo"].write_text(TOML_TYPO)
    made["unseen"] = folder / "unseen.toml"
    made["unseen"].write_text(f'[cigarette]\nimages = "{folder / "empty"}"\n')
    made["none"] = folder / "none.txt"
    made["none"].write_text("\n  \n")
    made["empty"] = folder / "empty"
    made["empty"].mkdir()
    made["bin"] = folder / "bin"
    made["bin"].mkdir()
    (made["bin"] / "model_index.json").write_text("{}")
    torch.save({}, made["bin"] / "weights.bin")
    made["ckpt"] = folder / "model.ckpt"
    torch.save({}, made["ckpt"])
    network = {"model.diffusion_model.w": torch.zeros(2)}
    made["part"] = folder / "unet.safetensors"
    save_file(network, made["part"])
    made["single"] = folder / "sd.safetensors"
    save_file({**network, "first_stage_model.w": torch.zeros(2), "cond_stage_model.w": torch.zeros(2)}, made["single"])
    for kind, ending in (
        ("loha", "hada_w1_a"),
        ("lokr", "lokr_w1"),
        ("dora", "dora_scale"),
        ("tucker", "lora_mid.weight"),
    ):
        made[kind] = folder / f"{kind}.safetensors"
        save_file({f"{FLAT}.{ending}": torch.zeros(2, 2)}, made[kind])
    made["lora"] = folder / "lora.safetensors"
    save_file({f"{FLAT}.lora_down.weight": torch.ones(1, 99), f"{FLAT}.lora_up.weight": torch.ones(9, 1)}, made["lora"])
    made["wide"] = folder / "wide.safetensors"
    save_file({f"{LAYER}.weight": torch.ones(3, 5)}, made["wide"])
    made["lacking"] = folder / "lacking.safetensors"
    save_file({"model.diffusion_model.out.2.bias": torch.ones(4)}, made["lacking"])
    made["bias"] = folder / "bias.safetensors"
    Patch({"unet.conv_in.bias": torch.ones(16)}).save(made["bias"])
    made["wordless"] = folder / "wordless"
    network = UNet2DModel(8, block_out_channels=(8,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
                          norm_num_groups=4)  # fmt: skip
    DDPMPipeline(network, DDPMScheduler()).save_pretrained(made["wordless"])
    made["pairs"] = folder / "pairs.csv"
    made["pairs"].write_text("safe,unsafe,tag\na soda,a beer,drinks\n")
    made["half"] = folder / "half.csv"
    made["half"].write_text("safe,tag\na soda,drinks\n")
    made["textfile"] = folder / "picture.png"
    made["textfile"].write_text("not a picture")
    made["cut"] = folder / "cut.png"
    Image.new("RGB", (64, 64)).save(made["cut"])
    made["cut"].write_bytes(made["cut"].read_bytes()[:-30])
    made["bomb"] = folder / "bomb.png"
    made["bomb"].write_bytes(png_of(50_000, 50_000))
    made["book"] = folder / "book.txt"
    made["book"].write_text("a " * 500_000)
    made["captions"] = folder / "captions.csv"
    made["captions"].write_text("prompt,evaluation_seed,artist\na dog,1,Monet\na cat,2,Klee\n")
    made["mine"] = folder / "mine"
    made["mine"].mkdir()
    (made["mine"] / "letter.txt").write_text("precious")
    made["older"] = folder / "older"
    made["older"].mkdir()
    (made["older"] / "card.json").write_text('{"format": 0, "efface": "0.0.1"}')
    for name, (judge, more) in SUITES.items():
        made[name] = folder / f"{name}.toml"
        made[name].write_text(
            f'title = "x"\njudge = "{judge}"\nconcept = "beer"\n[sets.bars]\nprompts = ["a bar"]\n{more}\n'
        )
    return made


CASES = {
    "unknown command": ("oblitrate", "No such command"),
    "unknown method": ("erase rce cigarette", 'unknown erase method "rce" (did you mean rece'),
    "unknown concept": ("erase uce cigarete", "did you mean cigarette?"),
    "no concept": ("erase uce", "nothing to erase"),
    "unknown model": ("erase uce cigarette --model pikto", 'unknown model "pikto"'),
    "unknown flag": ("generate a --stepz 3", "No such option"),
    "unknown field": ("erase rece cigarette --epoch 3", 'unknown field of rece "epoch" (did you mean epochs?)'),
    "field of a wrong kind": ("erase rece cigarette --epochs many", 'epochs must be int, got "many"'),
    "field of a wrong choice": ("erase uce cigarette --rows first", "rows must be"),
    "field without a value": ("erase rece cigarette --epochs", "--epochs needs a value"),
    "unknown preset": ("erase rece cigarette --preset nudes", 'unknown preset of rece "nudes"'),
    "singular settings": ("erase uce cigarette --ridge 0 --model {model}", "ridge must be above 0"),
    "training without pictures": (
        "erase forget_me_not --concept-file {unseen} --model {model} -o p.safetensors", "no training pictures"
    ),
    "more points than a rollout has": ("erase sdd cigarette --model {model} --points 60", "points must be 1 to"),
    "no step to train": ("erase esd cigarette --model {model} --steps 0", "steps must be at least 1, got 0"),
    "work of another run": ("erase sdd cigarette --model {model} --work {bin}", "holds the work of an earlier run"),
    "no adapter to train": ("erase duo cigarette --model {model} --rank 0", "rank"),
    "unknown list": ("list methods", "unknown list"),
    "unknown detector": ("screen hi --guard block", "unknown detect method"),
    "unknown guidance": ("generate hi --guide slt:cigarette", "unknown guide method"),
    "sheet without a guidance": ("generate hi --sheet", "one prompt at several strengths of each --guide"),
    "sheet of two prompts": ("generate hi ho --guide negative:beer --sheet", "got 2 prompts and 1 guidances"),
    "SLD that would do nothing": ("generate hi --guide sld:beer:guidance_scale=1", "must be finite and above 1"),
    "concept longer than the window": (
        "generate hi --model {model} --steps 1 --guide sld:unsafe", 'SLD: the prompts of concept "unsafe" together'
    ),
    "guidance too strong": ("generate hi --guide sld:beer:strength=2", "strength must be in 0..1, got 2.0"),
    "tau out of range": ("generate hi --guide dual_latent:beer:tau=2", "tau must be in 0..1, got 2.0"),
    "no safe prompt": ("generate hi --guide dual_latent:beer:source=prompt", "needs a safe text, got an empty one"),
    "pairs without a column": ("generate hi --guide dual_latent:beer:pairs={half}", "row 1 has no column unsafe"),
    "unknown tag": ("generate hi --guide dual_latent:beer:pairs={pairs},tag=food", "its tags are: drinks"),
    "unknown preset of a guidance": ("generate hi --guide sld:beer:preset=most", 'unknown sld preset "most"'),
    "detector that reads pictures": ("generate hi --guide dual_latent:beer:detector=classifier", "Detector that reads"),
    "threshold out of range": ("screen hi --guard blocklist:50", "did you mean 0.5?"),
    "threshold no number": ("screen hi --guard blocklist:high", "must be a number from 0 to 1"),
    "guard without a threshold": ("screen hi.png --guard clip_zero_shot", "no such picture file"),
    "guard field without value": ("screen hi --guard blocklist:0.5:phrases", "expected FIELD=VALUE"),
    "nobody judges": ("screen hi", "nothing judges"),
    "nobody reads pictures": ("screen {textfile} --guard blocklist", "no guard given reads pictures"),
    "not a picture": ("screen {textfile} --guard classifier", "not a picture that can be read"),
    "damaged picture": ("screen {cut} --guard classifier", "not a picture that can be read"),
    "enormous picture": ("screen {bomb} --guard classifier", "more than 64,000,000 pixels: not decoded"),
    "prompt of a megabyte": ("generate --model {model} --prompts {book} -o out", "a prompt may have 10,000"),
    "patch missing": ("generate hi --patch nowhere.safetensors", "no such patch file"),
    "patch truncated": ("generate hi --patch {truncated}", "truncated"),
    "patch not safetensors": ("generate hi --patch {noise}", "truncated, or not a safetensors file"),
    "patch with absurd shapes": ("generate hi --patch {absurd}", "claims shape"),
    "patch of something else": ("show {foreign}", "not an efface patch"),
    "patch is a pickle": ("show {pickle}", "pickle, which efface never reads"),
    "patch does not fit": ("generate hi --model {model} --steps 1 --patch {misfit}", "expected shape (16, 32)"),
    "negative scale": ("generate hi --patch {patch}:-1", "negative scale amplifies"),
    "concept file typo": ("erase uce --concept-file {typo}", 'unknown key of [ball] in concept file'),
    "concept file missing": ("erase uce --concept-file nowhere.toml", "cannot be read"),
    "no prompts": ("generate", "no prompts"),
    "empty prompt": ("generate {nothing}", "an empty prompt"),
    "prompt file without prompts": ("generate --prompts {none}", "holds no prompts"),
    "folder without a model": ("generate hi --model {empty}", "holds no diffusers model"),
    "pickled folder": ("generate hi --model {bin}", "never reads"),
    "pickled checkpoint": ("generate hi --model {ckpt}", "never reads"),
    "pickle named safetensors": ("generate hi --model {pickle}", "a pickle, which efface never reads; convert it"),
    "single file with missing parts": ("generate hi --model {part}", "it lacks vae, text_encoder; read it as a patch"),
    "single file without a config": ("erase uce cigarette --model {single}", "--config FOLDER"),
    "config beside a folder": ("generate hi --model {model} --config {model}", "is for single files"),
    "unknown family": ("erase uce cigarette --model {wordless}", "DDPMPipeline is of a family that efface"),
    "unknown family drawn": ("generate hi --model {wordless}", "known: Stable Diffusion 1.x or 2.x"),
    "unknown dtype": ("generate hi --model {model} --dtype float23", 'unknown dtype "float23"'),
    "run folder without a report": ("report {empty}", "not the folder of a finished run"),
    "patch saved under a wrong name": ("erase uce cigarette --model {model} -o p.ckpt", "a .safetensors file"),
    "export to an unknown format": ("export {patch} --to kohia -o p.safetensors", 'unknown format "kohia"'),
    "export of nothing": ("export nowhere.safetensors --to kohya -o p.safetensors", "no such patch, LoRA or weights"),
    "export of a pickle": ("export {pickle} --to kohya -o p.safetensors", "a pickle, which efface never reads"),
    "export of a cut file": ("export {truncated} --to kohya -o p.safetensors", "truncated"),
    "export of an empty folder": ("export {empty} --to kohya -o p.safetensors", "neither a diffusers model nor"),
    "export to another ending": ("export {patch} --to kohya -o p.ckpt", "a .safetensors file, got the ending .ckpt"),
    "LoRA for another base": (
        "export {lora} --to patch --model {model} -o p.safetensors",
        f"a LoRA for another base: 1 of 1 layers do not fit: unet.{LAYER}.weight ((9, 99), the base (32, 32))",
    ),
    "LoHa": ("export {loha} --to patch -o p.safetensors", f"{FLAT} is a LoHa layer; only LoRA"),
    "LoKr": ("export {lokr} --to patch -o p.safetensors", f"{FLAT} is a LoKr layer; only LoRA"),
    "DoRA": ("export {dora} --to patch -o p.safetensors", f"{FLAT} is a DoRA layer; only LoRA"),
    "LoRA with a core": ("export {tucker} --to patch -o p.safetensors", f"{FLAT} is a Tucker"),
    "weights without their base": ("export {wide} --to patch -o p.safetensors", "give the model they were made from"),
    "weights of another architecture": (
        "export {wide} --to patch --model {model} -o p.safetensors", f"made for another base: unet.{LAYER}.weight"
    ),
    "single file with missing layers": (
        "export {lacking} --to patch --model {model} -o p.safetensors", "incomplete, it lacks model.diffusion_model."
    ),
    "rank above the full one": ("export {patch} --to kohya --rank 33 -o p.safetensors", "1 to 32, the full rank of"),
    "rank of 0": ("export {patch} --to diffusers --rank 0 -o p.safetensors", "from 1 to 32, the full rank of"),
    "rank of a full change": ("export {patch} --to diff --rank 2 -o p.safetensors", "diff keeps everything"),
    "bias in a LoRA": ("export {bias} --to kohya -o p.safetensors", "unet.conv_in.bias: not the weight of a"),
    "no map of the text": ("export {misfit} --to transform -o p.safetensors", "do not all change by one map"),
    "checkpoint of another model": ("export {misfit} --to checkpoint --model {model} -o out", "expected shape (16,"),
    "checkpoint over a folder": ("export {patch} --to checkpoint --model {model} -o {bin}", "the folder is not empty"),
    "picto concept unknown to the demo": ("demo --concept dog -o out", 'unknown picto concept "dog"'),
    "benchmark of nothing": ("bench picto-quick --model {model}", "at least one --patch, --guide or --guard"),
    "unknown suite": ("bench pickto --patch {patch}", 'unknown suite "pickto" (did you mean picto'),
    "two suites": ("bench picto coco --patch {patch}", 'bench takes one suite, got also "coco"'),
    "unknown setting of a suite": ("bench picto --patch {patch} --seed 3", 'unknown field of picto "seed" (did you'),
    "suite without its file": ("bench coco --patch {patch} --model {model}", "coco needs --prompts: the CSV of"),
    "setting beside a suite file": ("bench {suite} --patch {patch} --seeds 2", 'unknown option of bench "--seeds"'),
    "suite file missing": ("bench nowhere.toml --patch {patch} --model {model}", "nowhere.toml cannot be read"),
    "suite file that is no TOML": ("bench {textfile}.toml --patch {patch} --model {model}", "cannot be read"),
    "suite file typo": ("bench {typo} --patch {patch} --model {model}", 'unknown key of suite'),
    "suite file's unknown key": ("bench {suite_key} --patch {patch} --model {model}", '"show" (did you mean shows?)'),
    "suite file's wrong kind": (
        "bench {suite_kind} --patch {patch} --model {model}", "[sets.bars] metrics must be a list, got 'rate'"
    ),
    "suite file's unknown detector": (
        "bench {suite_detector} --patch {patch} --model {model}", 'unknown detect method "clasifier" (did you mean'
    ),
    "suite file's judge that reads prompts": (
        "bench {suite_reader} --patch {patch} --model {model}", "judge blocklist reads prompts"
    ),
    "suite file's unknown label": ("bench {suite_label} --patch {patch} --model {model}", 'gives no label "bear"'),
    "suite file's unknown metric": ("bench {suite_metric} --patch {patch} --model {model}", 'measure method "rates"'),
    "metric without enough pictures": (
        "bench {suite_few} --patch {patch} --model {model} -o out",
        "kid of bars needs at least 1001 pictures of each model, the set has 1: draw more",
    ),
    "Inception without its weights": (
        "bench coco --prompts {captions} --patch {patch} --model {model} -o out", "give weights=FILE, the safetensors"
    ),
    "Inception's weights missing": (
        "bench coco --prompts {captions} --weights w.safetensors --patch {patch} --model {model} -o out",
        "w.safetensors: no such file or folder of Inception weights",
    ),
    "style that no prompt asks for": (
        "bench styles --prompts {captions} --erased Manet --classifier classifier --patch {patch} --model {model}",
        'no row has "Manet" as its style or object or artist',
    ),
    "benchmark of another version": (
        "bench {suite} --patch {patch} --model {model} --resume -o {older}", "was written by efface 0.0.1 (format 0)"
    ),
    "benchmark over something else": ("bench {suite} --patch {patch} --model {model} -o {mine}", "is not empty"),
    "nothing to resume": (
        "bench {suite} --patch {patch} --model {model} --resume -o {mine}", "could be resumed, but letter.txt"
    ),
    "no cluster's workers": (
        "bench {suite} --patch {patch} --model {model} --ray local --workers -1", "workers"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_one_clear_line_and_code_2(
    case: str, efface: Callable[..., Result], model: Path, patch: Path, tmp_path: Path
) -> None:
    command, expected = CASES[case]
    given = _files(tmp_path, patch) | {"model": model, "patch": patch, "nothing": ""}
    before = sorted(tmp_path.rglob("*"))
    result = efface(*(word.format(**given) for word in command.split(" ")))
    assert (result.code, result.err.count("\n"), expected in result.err) == (2, 1, True), result
    assert "Traceback" not in result.err
    assert [path for path in sorted(tmp_path.rglob("*")) if "cache" not in path.parts] == before


def test_an_anchor_equal_to_the_concept_warns_that_nothing_changes(efface: Callable[..., Result], model: Path) -> None:
    result = efface("erase", "uce", "nudity", "--anchor", "nudity", "--model", model)
    assert result.code == 0
    assert 'its anchor equals its prompt "nudity": nothing will change' in result.err
    assert result.err.count("\n") == 1


def test_a_prompt_longer_than_the_window_says_which_words_are_cut(efface: Callable[..., Result], model: Path) -> None:
    result = efface("generate", "a dog and " * 8 + "a flower", "--model", model, "--steps", 1, "-o", "out")
    assert result.code == 0
    assert "is cut from" in result.err
    assert "flower" in result.err


def test_a_full_disk_leaves_nothing_behind(
    efface: Callable[..., Result], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    result = efface("erase", "uce", "nudity", "--model", model, "-o", "p.safetensors")
    assert result.code == 1
    assert "nothing was saved" in result.err
    assert "No space left" in result.err
    assert not list(Path.cwd().iterdir())


def test_a_full_disk_stops_a_run_with_one_line(
    efface: Callable[..., Result], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    result = efface("generate", "a dog", "--model", model, "--steps", 1, "-o", "out")
    assert (result.code, "No space left" in result.err) == (1, True)
    assert not [path for path in Path("out").rglob("*") if path.is_file()]


def test_ctrl_c_is_one_line_and_code_1(efface: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("efface.concepts.ready", interrupted)
    result = efface("list", "concepts")
    assert (result.code, result.out, result.err) == (1, "", "efface: stopped\n")


def test_quantised_and_compiled_models_name_the_embedding_transform(patch: Path) -> None:
    pipe = tiny_pipeline()
    pipe.unet.compile()
    with pytest.raises(ValueError, match="embedding transform"), Patch.load(patch).on(pipe):
        pass


def test_debug_shows_the_traceback(model: Path) -> None:
    from efface.cli import main
    from efface.errors import UnknownName

    with pytest.raises(UnknownName):
        main(["erase", "rce", "cigarette", "--debug"])


def test_a_folder_that_holds_something_is_not_written_into(efface: Callable[..., Result], model: Path) -> None:
    Path("out").mkdir()
    Path("out/mine.txt").write_text("precious")
    for command in (("generate", "hi", "--model", model, "--steps", 1), ("demo",)):
        result = efface(*command, "-o", "out")
        assert (result.code, "is not empty" in result.err) == (2, True)
    assert [path.name for path in Path("out").iterdir()] == ["mine.txt"]
