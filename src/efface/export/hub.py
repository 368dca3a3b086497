"""Publish a patch on the Hugging Face hub: the patch and its model card."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from efface.errors import BadInput, EffaceError
from efface.export.readme import FILE, model_card
from efface.patch import Patch


def push_to_hub(patch: Patch, repo_id: str, token: str | None = None, private: bool = False, **card: Any) -> str:
    """Upload the patch and its card as one commit, and give the page's address. The repository is made if need be.

    `token`: None takes the one that `hf auth login` stored. `card`: `licence` and `measured` of `model_card`.
    Raises BadInput for a name the hub does not allow, and EffaceError if the hub cannot be reached or refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, HTTPError

    text = model_card(patch, **card)
    api = HfApi(token=token)
    with TemporaryDirectory() as folder:
        patch.save(Path(folder, FILE))
        Path(folder, "README.md").write_text(text, encoding="utf-8")
        try:
            page = api.create_repo(repo_id, private=private, exist_ok=True)
            api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload a patch made with efface")
        except HFValidationError as error:
            raise BadInput(f"{repo_id}: not a name for a repository (expected owner/name): {_line(error)}") from error
        except (OSError, HTTPError) as error:
            raise EffaceError(f"{repo_id}: could not be uploaded: {_line(error)}") from error
    return str(page)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
