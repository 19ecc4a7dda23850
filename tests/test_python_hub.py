"""Models by name and folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import regraft
from comparing import assert_close
from small import numbers, seeded

transformers = pytest.importorskip("transformers")
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"

pytestmark = pytest.mark.usefixtures("one_thread")


def bert() -> nn.Module:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=64, **sizes))


def test_a_folder_and_engines_beside_it(tmp_path: Path) -> None:
    model, ids = seeded(bert), torch.arange(6)[None]
    model.save_pretrained(tmp_path / "bert")
    mutable = regraft.from_pretrained(tmp_path / "bert")
    assert isinstance(mutable, regraft.MutableModule) and type(mutable).__name__ == type(model).__name__
    with torch.no_grad():
        wanted = model(input_ids=ids).logits
        assert_close([mutable(input_ids=ids).logits.numpy()], [wanted.numpy()])
        regraft.save(mutable, tmp_path / "bert" / "regraft")
        again = regraft.from_pretrained(tmp_path / "bert")
        assert_close([again(input_ids=ids).logits.numpy()], [wanted.numpy()])
    assert again.recompiles == 0 and "compile" not in again.explain().totals
    plain = regraft.from_pretrained(tmp_path / "bert", task="feature-extraction", fallback=True)
    assert type(plain).__name__ == "BertModel"
    (tmp_path / "bert" / "regraft" / "mutable.json").write_text("{}")
    with pytest.warns(regraft.CacheWarning, match="compiled again.* Save it again"):
        regraft.from_pretrained(tmp_path / "bert")


def test_engines_go_to_the_hub_without_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    pushed: dict[str, object] = {}

    def upload_folder(api: object, *, folder_path: str, path_in_repo: str, **options: object) -> str:
        shutil.copytree(folder_path, tmp_path / "bert" / path_in_repo)
        pushed.update(options)
        return "https://hub/commit"

    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload_folder)
    model, ids = seeded(bert), torch.arange(6)[None]
    model.save_pretrained(tmp_path / "bert")
    mutable = regraft.from_pretrained(tmp_path / "bert")
    with pytest.raises(regraft.EngineFileError, match=r"no engines to push: .* call it once"):
        regraft.push_to_hub(mutable, "owner/bert")
    with torch.no_grad():
        wanted = mutable(input_ids=ids).logits
        assert regraft.push_to_hub(mutable, "owner/bert", revision="engines") == "https://hub/commit"
        assert pushed["repo_id"] == "owner/bert" and pushed["revision"] == "engines"
        (engine,) = (tmp_path / "bert" / "regraft").rglob("*.rgf")
        assert regraft.load(engine).is_bound is False
        # The one that finds them has weights of its own.
        seeded(bert, 1).save_pretrained(tmp_path / "bert")
        again = regraft.from_pretrained(tmp_path / "bert")
        found = again(input_ids=ids).logits
        assert_close([found.numpy()], [seeded(bert, 1)(input_ids=ids).logits.numpy()])
        assert not torch.equal(found, wanted) and "compile" not in again.explain().totals

    def fails(api: object, **options: object) -> str:
        raise OSError("401 Unauthorized")

    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", fails)
    with pytest.raises(regraft.EngineFileError, match="the Hub does not take the engines: 401 Unauthorized"):
        regraft.push_to_hub(mutable, "owner/bert")


def test_components_of_diffusers(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    sizes = {"block_out_channels": (8,), "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 8}
    vae = seeded(lambda: diffusers.AutoencoderKL(**sizes))
    vae.save_pretrained(tmp_path / "vae")
    mutable, z = regraft.from_pretrained(tmp_path / "vae"), numbers(1, 4, 8, 8)
    with torch.no_grad():
        assert_close([mutable.decode(z).sample.numpy()], [vae.decode(z).sample.numpy()])


def test_what_is_no_model_says_why(tmp_path: Path) -> None:
    for setting, words in (
        ({"task": "guessing"}, "task: expected one of text-generation"),
        ({"task": None}, "transformers has no class Nothing\n  help: give model_class= or task="),
    ):
        (tmp_path / "config.json").write_text('{"architectures": ["Nothing"]}')
        with pytest.raises(regraft.CompileError, match=words):
            regraft.from_pretrained(tmp_path, **setting)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(regraft.WeightsError, match="no configuration of a model, or a damaged one"):
        regraft.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_text(POINTER)
    with pytest.raises(
        regraft.WeightsError, match=r"model\.safetensors points to weights .*\n  help: .*git lfs pull"
    ):
        regraft.from_pretrained(tmp_path)
    with pytest.raises(regraft.WeightsError, match="is not in the cache"):
        regraft.from_pretrained("nobody/has-this-model", offline=True)
