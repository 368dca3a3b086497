"""A CLIP tokenizer of our own: byte pairs learnt from captions, and every single byte, so any text can be typed."""

import json
from collections.abc import Iterable

from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer

LENGTH = 24  # tokens, with start and end: the longest caption takes 20
START, END = "<|startoftext|>", "<|endoftext|>"


def learn(captions: Iterable[str], pieces: int = 1000) -> CLIPTokenizer:
    """A tokenizer with about `pieces` pieces beyond the single bytes; seconds."""
    backend = CLIPTokenizer().backend_tokenizer
    backend.model = BPE(continuing_subword_prefix="", end_of_word_suffix="</w>")
    letters = sorted(ByteLevel.alphabet())
    trainer = BpeTrainer(
        vocab_size=2 * len(letters) + pieces, initial_alphabet=letters, end_of_word_suffix="</w>", show_progress=False
    )
    backend.train_from_iterator(captions, trainer)
    learnt = backend.get_vocab(with_added_tokens=False)
    # the trainer keeps only the letters that it saw at the end of a word
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    words += [word for word in sorted(learnt, key=lambda word: learnt[word]) if word not in words]
    vocab = {word: index for index, word in enumerate([*words, START, END])}
    merges = [(left, right) for left, right in json.loads(backend.to_str())["model"]["merges"]]
    # padding is the end token, as in Stable Diffusion; the encoder pools at the first one
    return CLIPTokenizer(vocab, merges, model_max_length=LENGTH)
