"""A vision-language checkpoint in this process: which weights it holds, and loading it once for all cells."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from harness.errors import ConfigError, Skipped

LARGE = 64 * 2**20  # bytes; a larger file enters the hash by its size, its first and its last MiB
KEPT = 2  # models that stay loaded: a critic and a judge may differ
_READ = (".json", ".jinja", ".safetensors", ".txt", ".model", ".tiktoken")  # what loading may read
_loaded: OrderedDict[tuple[str, ...], Loaded] = OrderedDict()


@dataclass(frozen=True)
class Loaded:
    """A model ready to generate. vocabulary: width of its logits. words: entries of its tokenizer (often fewer)."""

    model: Any
    processor: Any
    compiler: Any  # xgrammar's GrammarCompiler, which keeps what it has compiled
    stops: tuple[int, ...]
    vocabulary: int
    words: int
    device: str


def weights_identity(path: str, revision: str) -> dict[str, str]:
    """What tells one checkpoint from another: a folder's content hash, or a hub id and its resolved commit.

    The hash goes over names and contents of the configuration, tokenizer and weight files in the folder; of a file
    over 64 MiB only its size and its first and last MiB are read, so that two large files which differ in the middle
    alone are taken for one.

    Raises:
        Skipped: there is neither such a folder nor, in the cache or on the hub, such a model.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        files = sorted(file for file in folder.iterdir() if file.is_file() and file.suffix in _READ)
        if not any(file.name == "config.json" for file in files):
            raise Skipped(f"{folder} holds no config.json, so it is no model folder; save one with save_pretrained")
        states = tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files)
        return {"model": f"sha256:{_content(states)}"}
    if path.startswith(("/", ".", "~")) or path.count("/") > 1:
        raise Skipped(f"there is no model folder {folder}; give path=<folder> or path=<hub id such as org/name>")
    return {"model": path, "revision": _commit(path, revision)}


@lru_cache(maxsize=64)
def _content(states: tuple[tuple[str, int, int], ...]) -> str:
    """Keyed by sizes and times as well, so that a folder written anew is read anew."""
    digest = hashlib.sha256()
    for name, size, _ in states:
        digest.update(f"{Path(name).name}\0{size}\0".encode())
        with open(name, "rb") as file:
            if size > LARGE:
                digest.update(file.read(2**20))
                file.seek(-(2**20), 2)
            for block in iter(lambda: file.read(2**20), b""):
                digest.update(block)
    return digest.hexdigest()


@lru_cache(maxsize=64)
def _commit(model: str, revision: str) -> str:
    """The commit that a hub revision points to now, or, without a network, pointed to when it was fetched."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(model, "config.json", revision=revision)).parent.name
    except Exception as error:  # the hub's client raises many kinds: no network, no such model, no permission
        raise Skipped(
            f"the model '{model}' (revision '{revision}') is neither in the cache nor reachable on the hub "
            f"({type(error).__name__}); download it first, or give path=<folder>"
        ) from error


def choose_device(device: str) -> str:
    """`auto` is cuda where there is one.

    Raises:
        Skipped: cuda was asked for and there is none.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise Skipped(f"device={device}, but this machine has no CUDA device that torch can use; device=cpu works")
    return device


def load(path: str, revision: str, device: str, dtype: str) -> Loaded:
    """Load a checkpoint, or return it from this process's cache of the last two.

    Raises:
        Skipped: it is missing, or holds no safetensors weights. ConfigError: it is no chat model for images and text.
    """
    import torch

    identity = weights_identity(path, revision)
    place = choose_device(device)
    key = (path, *identity.values(), place, dtype)
    if key in _loaded:
        _loaded.move_to_end(key)
        return _loaded[key]
    while len(_loaded) >= KEPT:
        _loaded.popitem(last=False)
    folder = Path(path).expanduser()
    source, commit = (str(folder), None) if folder.is_dir() else (path, identity["revision"])
    try:
        loaded = _open(source, commit, place, dtype)
    except torch.OutOfMemoryError:  # perhaps there is room for one, not for two
        unload()
        loaded = _open(source, commit, place, dtype)
    _loaded[key] = loaded
    return loaded


def unload() -> None:
    """Forget every loaded model and give its memory back."""
    import gc

    import torch

    _loaded.clear()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _open(source: str, revision: str | None, device: str, dtype: str) -> Loaded:
    import transformers

    library: Any = transformers  # its classes come by lazy import and carry no types
    logging = library.utils.logging
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    known: dict[str, Any] = {"trust_remote_code": False}
    if revision is not None:
        known["revision"] = revision
    try:
        processor = library.AutoProcessor.from_pretrained(source, **known)
        model = library.AutoModelForImageTextToText.from_pretrained(source, use_safetensors=True, dtype=dtype, **known)
    except OSError as error:
        raise Skipped(
            f"cannot load '{source}': {_first(error)}; it needs safetensors weights and a processor"
        ) from error
    except (ValueError, ImportError, AttributeError) as error:
        raise ConfigError(
            f"'{source}' is no model for images and text that transformers can load without code from the checkpoint: "
            f"{_first(error)}"
        ) from error
    finally:
        if bars:
            logging.enable_progress_bar()
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None or not (getattr(processor, "chat_template", None) or tokenizer.chat_template):
        raise ConfigError(f"'{source}' has no chat template; take an instruction-tuned checkpoint")
    tokenizer.padding_side = "left"  # generation goes on at the right end of every prompt of a batch
    given = model.generation_config
    stops = _numbers(given.eos_token_id) or _numbers(tokenizer.eos_token_id)
    pad = next(iter(_numbers(tokenizer.pad_token_id) or _numbers(given.pad_token_id) or stops), None)
    if not stops or pad is None:
        raise ConfigError(f"'{source}' names no end-of-text token, so no answer would end")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    # A checkpoint's own sampling settings (a repetition penalty, say) would read the padding: none of them is used.
    model.generation_config = library.GenerationConfig(eos_token_id=list(stops), pad_token_id=pad)
    model.to(device).eval()
    head = model.get_output_embeddings()
    vocabulary = int(getattr(head, "out_features", None) or model.config.get_text_config().vocab_size)
    return Loaded(model, processor, _compiler(tokenizer, vocabulary, stops), stops, vocabulary, len(tokenizer), device)


def _compiler(tokenizer: Any, vocabulary: int, stops: tuple[int, ...]) -> Any:
    import xgrammar

    facts = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=vocabulary, stop_token_ids=list(stops))
    return xgrammar.GrammarCompiler(facts, max_threads=1)


def _numbers(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(int(item) for item in value) if isinstance(value, list | tuple) else (int(value),)


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
