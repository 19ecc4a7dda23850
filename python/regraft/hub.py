"""Models of transformers and diffusers by their name on the Hugging Face Hub, or from their folder."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from regraft.checks import listed, warn
from regraft.errors import CacheWarning, CompileError, EngineFileError, WeightsError
from regraft.mutable import MutableModule

__all__ = ["from_pretrained", "push_to_hub"]

# Where engines lie that were saved beside a model.
_ENGINES = "regraft"
_POINTER = b"version https://git-lfs.github.com/spec/"
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".onnx", ".pt2")
_TASKS = {
    "text-generation": "AutoModelForCausalLM",
    "text2text-generation": "AutoModelForSeq2SeqLM",
    "fill-mask": "AutoModelForMaskedLM",
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "feature-extraction": "AutoModel",
    "image-classification": "AutoModelForImageClassification",
    "automatic-speech-recognition": "AutoModelForSpeechSeq2Seq",
}


def from_pretrained(
    name_or_folder: str | Path,
    *,
    task: str | None = None,
    model_class: type[nn.Module] | None = None,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    offline: bool = False,
    **settings: Any,
) -> Any:
    """A model of transformers or diffusers that runs compiled: a :class:`MutableModule`, or a pipeline
    whose components are mutable modules.

    Names are looked up on the Hugging Face Hub, through its cache. No code from a repository is run.
    Engines that ``regraft.save(model, folder / "regraft")`` wrote beside the model are reused.

    Args:
        name_or_folder: a folder of ``save_pretrained``, or a name on the Hub.
        task: what the model is for, such as ``"text-generation"``; by default what its configuration says.
        model_class: its class, instead.
        dtype: of weights and arithmetic; by default that of the files' configuration.
        revision: branch, tag or commit on the Hub.
        offline: take what is in the cache, without a connection.
        settings: what :class:`MutableModule` takes.

    Raises:
        WeightsError: when the folder has no model, cannot be fetched, or holds pointers of Git LFS
            instead of weights.
        CompileError: when the library or the class is not known.

    Example:
        >>> model = regraft.from_pretrained("HuggingFaceTB/SmolLM2-135M")  # doctest: +SKIP
        >>> model.generate(**tokenizer("Hello", return_tensors="pt"))  # doctest: +SKIP

    """
    folder = Path(name_or_folder)
    if not folder.is_dir():
        folder = _downloaded(str(name_or_folder), revision, offline)
    _refuse_pointers(folder)
    options: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
    if (folder / "model_index.json").is_file() and model_class is None:
        return _pipeline(folder, options, settings)
    found = model_class or _class_of(folder, task)
    model: Any = found
    made = model.from_pretrained(str(folder), local_files_only=True, **options).eval()
    return _with_engines(made, folder, settings)


def push_to_hub(
    model: nn.Module,
    repository: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    message: str = "Engines of Regraft, without weights",
) -> str:
    """Uploads the engines of a mutable module to a model on the Hugging Face Hub, without weights:
    :func:`from_pretrained` binds them to the model's.

    Args:
        model: a mutable module that was called, so that there are engines.
        repository: its name on the Hub, as ``owner/model``.
        revision: the branch; by default the main one.
        token: of an account that may write there; by default that of this machine.
        message: of the commit.

    Returns:
        The address of the commit.

    Raises:
        EngineFileError: when there are no engines, or the Hub does not take them.

    Example:
        >>> regraft.push_to_hub(model, "owner/model")  # doctest: +SKIP

    """
    if not isinstance(model, MutableModule) or not model._regraft_state.entries:
        raise EngineFileError(
            f"{repository}: there are no engines to push: give a mutable module, and call it once"
        )
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise EngineFileError(
            f"{repository}: huggingface_hub cannot be imported to reach the Hub: install it"
        ) from error
    with tempfile.TemporaryDirectory(prefix="regraft-") as folder:
        engines = Path(folder) / _ENGINES
        MutableModule.save(model, engines, strip=True)
        try:
            made = HfApi(token=token).upload_folder(
                repo_id=repository,
                folder_path=str(engines),
                path_in_repo=_ENGINES,
                revision=revision,
                commit_message=message,
            )
        except Exception as error:
            first = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise EngineFileError(f"{repository}: the Hub does not take the engines: {first}") from error
    return str(getattr(made, "commit_url", made))


def _downloaded(name: str, revision: str | None, offline: bool) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise WeightsError(
            f"{name}: no such folder, and huggingface_hub cannot be imported to look for it on the Hub: "
            f"install it"
        ) from error
    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=offline))
    except Exception as error:
        what = "is not in the cache" if offline else "cannot be had from the Hub"
        first = str(error).strip().splitlines()
        raise WeightsError(
            f"{name}: no such folder, and it {what}: {first[0] if first else type(error).__name__}\n"
            "  help: give the folder of a model, or a name as owner/model"
        ) from error


def _refuse_pointers(folder: Path) -> None:
    """Checks that weights are there, which a clone without Git LFS only points to."""
    pointers = []
    for file in sorted(folder.rglob("*")):
        if file.suffix in _WEIGHTS and file.is_file() and file.stat().st_size < 1024:
            with open(file, "rb") as start:
                if start.read(len(_POINTER)) == _POINTER:
                    pointers.append(str(file.relative_to(folder)))
    if pointers:
        raise WeightsError(
            f"{folder}: {listed(pointers)} points to weights that are not there\n"
            "  help: run `git lfs install` and `git lfs pull` in the folder"
        )


def _class_of(folder: Path, task: str | None) -> type[nn.Module]:
    """The class of the model in a folder, among those of the libraries."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise WeightsError(f"{folder}: no configuration of a model, or a damaged one: {error}") from error
    if task is not None and task not in _TASKS:
        raise CompileError(f"task: expected one of {', '.join(_TASKS)}, found {task!r}")
    library, name = "transformers", next(iter(config.get("architectures") or ()), "AutoModel")
    if "_class_name" in config:
        library, name = "diffusers", config["_class_name"]
    elif task is not None:
        name = _TASKS[task]
    try:
        module = __import__(library)
    except ImportError as error:
        raise CompileError(f"{folder}: its model is one of {library}, which cannot be imported") from error
    found = getattr(module, str(name), None)
    if not isinstance(found, type) or not hasattr(found, "from_pretrained"):
        raise CompileError(f"{folder}: {library} has no class {name}\n  help: give model_class= or task=")
    return found


def _pipeline(folder: Path, options: dict[str, Any], settings: dict[str, Any]) -> Any:
    from regraft.pipelines import wrap

    try:
        from diffusers import DiffusionPipeline
    except ImportError as error:
        raise CompileError(f"{folder}: a pipeline of diffusers, which cannot be imported") from error
    pipe = DiffusionPipeline.from_pretrained(str(folder), local_files_only=True, **options)
    wrap(pipe, **settings)
    return pipe


def _with_engines(model: nn.Module, folder: Path, settings: dict[str, Any]) -> MutableModule:
    """The model with the engines beside it, where there are some that fit."""
    engines = folder / _ENGINES
    if (engines / "mutable.json").is_file() and not settings:
        try:
            return MutableModule.load(engines, model)
        except EngineFileError as error:
            warn(
                CacheWarning, f"{engines}: it is compiled again: {error}. Save it again, or remove the folder"
            )
    return MutableModule(model, **settings)
