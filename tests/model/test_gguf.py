"""``--model`` takes a GGUF file: weights, configuration and tokenizer come out of it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from layersearch.config.data import DataConfig
from layersearch.config.recipe import load_recipe
from layersearch.data import open_source
from layersearch.data.gguf_file import opened
from layersearch.errors import LayersearchError
from layersearch.model.pretrained import fingerprint, load_config, load_pretrained
from layersearch.model.pretrained_recipe import recipe_for, with_tokenizer
from tests.helpers import gguf_models

TOKENS = torch.arange(40)[None]
pytestmark = pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="needs the extra gguf")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    model, tokenizer = gguf_models.save(path)
    return path, model, tokenizer


def test_load_pretrained_gguf_gives_the_written_model(saved) -> None:
    path, model, _ = saved
    decoder = load_pretrained(str(path), tokens=40)
    with torch.no_grad():
        torch.testing.assert_close(decoder.logits(TOKENS), model(TOKENS).logits, rtol=1e-4, atol=1e-4)
    assert str(decoder.schedule) == "full*3"


def test_load_pretrained_gguf_can_be_saved_as_plain_floats(saved, tmp_path: Path) -> None:
    decoder = load_pretrained(str(saved[0]))
    decoder.model.save_pretrained(tmp_path)
    again = load_pretrained(str(tmp_path))
    assert {parameter.dtype for parameter in again.parameters()} == {torch.float32}
    assert "quantization_config" not in (tmp_path / "config.json").read_text()
    with torch.no_grad():
        torch.testing.assert_close(again.logits(TOKENS), decoder.logits(TOKENS))


def test_load_pretrained_bfloat16_halves_the_weights(saved) -> None:
    decoder = load_pretrained(str(saved[0]), dtype="bfloat16")
    assert {parameter.dtype for parameter in decoder.parameters()} == {torch.bfloat16}


def test_load_config_gguf_ignores_other_models_beside_it(saved, tmp_path: Path) -> None:
    path, _, tokenizer = saved
    (tmp_path / "tiny.gguf").write_bytes(path.read_bytes())
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "tokenizer.json").write_text("{}")
    assert load_config(str(tmp_path / "tiny.gguf")).vocab_size == tokenizer.get_vocab_size()
    data = with_tokenizer(DataConfig(source="text", files=(str(path),)), str(tmp_path / "tiny.gguf"))
    assert data.tokenizer == str(tmp_path / "tiny.gguf")


def test_open_source_gguf_tokenizer_gives_the_written_tokens(saved, tmp_path: Path) -> None:
    path, _, tokenizer = saved
    text = "".join(gguf_models.TEXTS)
    (tmp_path / "text.txt").write_text(text)
    data = with_tokenizer(DataConfig(source="text", files=(str(tmp_path / "text.txt"),)), str(path))
    source = open_source(data, 16, tmp_path / "cache")
    assert source.vocab_size == tokenizer.get_vocab_size()
    cut = text[: len(text) - len(text) // 10]
    assert source._train.tolist() == [*tokenizer.encode(cut).ids, tokenizer.token_to_id("<|endoftext|>")]


def test_fingerprint_gguf_one_byte_changed_gives_another(saved, tmp_path: Path) -> None:
    content = bytearray(saved[0].read_bytes())
    other = tmp_path / "other.gguf"
    other.write_bytes(content)
    assert fingerprint(str(other)) == fingerprint(str(saved[0]))
    content[-1] ^= 1
    other.write_bytes(content)
    assert fingerprint(str(other)) != fingerprint(str(saved[0]))


def test_recipe_for_gguf_takes_its_size_and_tokenizer(saved) -> None:
    recipe = recipe_for(load_recipe("pretrained", ["training.seq_len=32"]), str(saved[0]))
    assert (recipe.model.n_layers, recipe.model.d_model, recipe.model.n_kv_heads) == (3, 32, 2)
    assert recipe.pretrained == str(saved[0])


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.99])
def test_load_config_gguf_cut_off_is_refused_in_one_line(saved, tmp_path: Path, share: float) -> None:
    content = saved[0].read_bytes()
    (tmp_path / "cut.gguf").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(LayersearchError, match=r"--model .*cut\.gguf is cut off or damaged \(.*\); download it again"):
        load_pretrained(str(tmp_path / "cut.gguf"))


def test_load_config_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("no model")
    with pytest.raises(LayersearchError, match="is no GGUF file"):
        load_config(str(tmp_path / "text.gguf"))


def test_load_config_missing_gguf_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LayersearchError, match=r"no\.gguf cannot be read \(No such file"):
        load_config(str(tmp_path / "no.gguf"))


def test_load_config_gguf_of_unknown_architecture_is_refused_by_name(tmp_path: Path) -> None:
    gguf_models.save(tmp_path / "odd.gguf", architecture="rwkv6")
    with pytest.raises(LayersearchError, match=r"of a kind that transformers does not read \(.*rwkv6"):
        load_config(str(tmp_path / "odd.gguf"))


def test_load_config_folder_of_gguf_files_asks_for_one_of_them(saved) -> None:
    with pytest.raises(LayersearchError, match=r"holds GGUF files: name one of them, .*tiny\.gguf"):
        load_config(str(saved[0].parent))


def test_opened_package_that_does_not_load_is_not_called_a_damaged_file(saved) -> None:
    said = r"a package does not load \(no torch\); pip install --force-reinstall"
    with pytest.raises(LayersearchError, match=said), opened(f"--model {saved[0]}"):
        raise ImportError("no torch")


def test_load_config_without_the_package_says_how_to_install_it(
    saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "gguf" else find(name, *rest))
    (tmp_path / "new.gguf").write_bytes(saved[0].read_bytes())  # one that was not read before
    with pytest.raises(LayersearchError, match=r'pip install "layersearch\[gguf\]"'):
        load_config(str(tmp_path / "new.gguf"))
