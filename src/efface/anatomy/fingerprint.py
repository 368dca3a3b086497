"""What the texts of prompts depend on, as a key for a cache."""

from __future__ import annotations

from collections.abc import Sequence

from efface import cache
from efface.anatomy.family import Family
from efface.anatomy.place import stored


def fingerprint(family: Family, prompts: Sequence[str]) -> list[str]:
    """Each encoder's weights and their use, window, padding and ids (so also the tokenizer)."""
    key = []
    for encoder in family.encoders:
        ids = encoder.tokenizer(list(prompts), truncation=True, max_length=encoder.window).input_ids
        weights = (
            stored(module, name)
            for module in encoder.network.modules()
            for name, _ in module.named_parameters(recurse=False)
        )
        window = f"{encoder.window} {encoder.tokenizer.pad_token_id}"
        key += [cache.digest(*weights), encoder.network.config.to_json_string(), window, repr(ids)]
    return key
