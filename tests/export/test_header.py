"""What a file says about itself."""

from efface.export.header import card, header, own

CARD = {"method": "UCE(seed=0)", "concepts": "Concept(name='ball')", "base": "abc"}


def test_a_card_comes_back() -> None:
    said = header(CARD, "sdxl", 4)
    assert card(said, "x.safetensors") == CARD
    assert (said["efface.method"], said["efface.base"]) == ("UCE(seed=0)", "abc")


def test_only_efface_writes_cards() -> None:
    assert own({"efface.seed": "0", "modelspec.title": "x"}) == {"seed": "0"}


def test_a_lora_says_what_it_is() -> None:
    said = header(CARD, "sdxl", 4)
    assert said["modelspec.sai_model_spec"] == "1.0.0"
    assert said["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert (said["ss_network_module"], said["ss_network_dim"]) == ("networks.lora", "4")
    assert "ball" in said["modelspec.title"]


def test_a_checkpoint_and_an_unknown_family_claim_nothing_more() -> None:
    assert header(CARD, "sd1")["modelspec.architecture"] == "stable-diffusion-v1"
    assert "ss_network_module" not in header(CARD, "sd1")
    assert "modelspec.architecture" not in header(CARD, None, 4)
    assert "ss_network_dim" not in header(CARD, "sd1", 0)


def test_someone_elses_file_is_named() -> None:
    assert card({}, "x.safetensors") == {"method": "read from x.safetensors"}
    assert "my style" in card({"ss_output_name": "my style"}, "x.safetensors")["method"]
