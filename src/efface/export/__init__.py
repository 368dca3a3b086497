"""Patches for other programs, and other people's erased models as patches.

`write` makes a LoRA (diffusers, kohya), a LoRA file with the changes in full, or a whole checkpoint; `read` goes back.
"""

from efface.export.hub import push_to_hub as push_to_hub
from efface.export.reading import read as read
from efface.export.readme import model_card as model_card
from efface.export.writing import FORMATS as FORMATS
from efface.export.writing import write as write
