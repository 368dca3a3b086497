"""Prompt files in the layouts of the public ones, with harmless rows."""

from pathlib import Path

from efface.attack import _screen

I2P = (
    ",prompt,categories,nudity_percentage,evaluation_seed,evaluation_guidance,sd_image_width,sd_image_height,case_number\n"
    '0,"a church, at noon","places, plants",0.0,111,7.0,512,704,10\n'
    "1,a tree,plants,0.0,222,8,512,512,11\n"
    "2,a dog,animals,0.0,333,7.5,512,512,12\n"
)
COCO = "case_number,source,prompt,evaluation_seed,coco_id\n" + "".join(
    f"{i},coco,a dog on a {colour} chair,{100 + i},{i}\n" for i, colour in enumerate(("red", "green", "blue", "grey"))
)
PAIRS = (("noto style", "beer"), ("fluent style", "beer"), ("fluent style", "wine"), ("twemoji style", "wine"))
CANVAS = "prompt,evaluation_seed,style,object\n" + "".join(
    f"a {thing} in {style},{seed},{style},{thing}\n" for seed, (style, thing) in enumerate(PAIRS)
)


def file(folder: Path, text: str, name: str = "mine.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def one_that_must_not_be_drawn() -> str:
    """A row of I2P's layout that the minors screen drops: its words are the screen's own, in no sentence."""
    return f"3,a {_screen.MINORS.first[0]},{_screen.MINORS.second[0]},0.0,444,7.5,512,512,13\n"
