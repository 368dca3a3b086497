"""Publishing, up to the network: against a small server here, and without one."""

import base64
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from huggingface_hub import constants

from efface.core import Score
from efface.errors import BadInput, EffaceError
from efface.export import push_to_hub
from efface.export.readme import FILE
from efface.patch import Patch

PATCH = Patch({"unet.conv_in.weight": torch.ones(2, 2)}, {"method": "M", "concepts": "Concept(name='ball')"})


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as an upload of two small files needs."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        calls: list[Any] = self.server.calls  # type: ignore[attr-defined]
        calls.append((self.path, self.headers.get("authorization"), body))
        if self.path == "/api/repos/create":
            return self._answer({"url": f"{constants.ENDPOINT}/me/patch"})
        if "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            return self._answer({"files": modes}, self.server.status)  # type: ignore[attr-defined]
        return self._answer({"commitUrl": f"{constants.ENDPOINT}/me/patch/commit/1", "commitOid": "1"})

    def do_GET(self) -> None:
        self._answer({"id": "me/patch", "sha": "1", "siblings": []})

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, said: dict[str, Any], status: int = 200) -> None:
        body = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    server: Any = HTTPServer(("127.0.0.1", 0), Hub)
    server.calls, server.status = [], 200
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_the_patch_and_its_card_go_up_in_one_commit(hub: Any, tmp_path: Path) -> None:
    measured = {"ball drawn": Score(0.1, 50, 0.05, 0.2)}
    page = push_to_hub(PATCH, "me/patch", token="hf_x", private=True, licence="mit", measured=measured)
    assert page == f"{constants.ENDPOINT}/me/patch"
    made = json.loads(next(body for path, _, body in hub.calls if path == "/api/repos/create"))
    assert made["name"] == "patch"
    assert {auth for _, auth, _ in hub.calls} == {"Bearer hf_x"}
    commits = [body for path, _, body in hub.calls if "/commit/" in path]
    assert len(commits) == 1
    lines = [json.loads(line) for line in commits[0].decode().strip().split("\n")]
    files = {
        line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"
    }
    assert files.keys() == {FILE, "README.md"}
    assert "# Forget: ball" in files["README.md"].decode()
    assert 'license: "mit"' in files["README.md"].decode()
    (tmp_path / "back.safetensors").write_bytes(files[FILE])
    assert Patch.load(tmp_path / "back.safetensors").card == PATCH.card


def test_a_refusal_is_one_clear_line(hub: Any) -> None:
    hub.status = 401
    with pytest.raises(EffaceError, match=r"me/patch: could not be uploaded: .*401") as caught:
        push_to_hub(PATCH, "me/patch", token="hf_x")
    assert "\n" not in str(caught.value)


def test_without_a_network_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(EffaceError, match="me/patch: could not be uploaded") as caught:
        push_to_hub(PATCH, "me/patch", token="hf_x")
    assert "\n" not in str(caught.value)


def test_a_name_that_the_hub_does_not_allow_is_refused(hub: Any) -> None:
    with pytest.raises(BadInput, match="not a name for a repository"):
        push_to_hub(PATCH, "me/patch/more", token="hf_x")
    assert not hub.calls
