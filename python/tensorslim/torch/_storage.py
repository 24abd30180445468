"""Slim models in files: safetensors, with the structure of the slim layers in the metadata; and ONNX."""

from __future__ import annotations

import json
import os
from typing import Any, Optional, Union

import torch
from torch import nn

from .._errors import FormatError
from ._compress import _replace, compress_huggingface_model, load_transformer
from ._layers import SlimConv2d, SlimLinear

Path = Union[str, "os.PathLike[str]"]

FILE = "model.safetensors"
_KEY = "tensorslim"
_VERSION = 1


def _structure(model: nn.Module) -> dict[str, Any]:
    """Return what is needed to build the slim layers of a model."""
    layers: dict[str, Any] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, SlimLinear):
            layers[name] = {
                "kind": "linear",
                "in_features": layer.in_features,
                "out_features": layer.out_features,
                "rank": layer.rank,
                "bias": layer.bias is not None,
            }
        elif isinstance(layer, SlimConv2d):
            down = layer.down
            layers[name] = {
                "kind": "conv2d",
                "in_channels": layer.in_channels,
                "out_channels": layer.out_channels,
                "kernel_size": down.kernel_size,
                "rank": layer.rank,
                "stride": down.stride,
                "padding": down.padding,
                "dilation": down.dilation,
                "bias": layer.bias is not None,
                "padding_mode": down.padding_mode,
            }
    return layers


def save_slim(model: nn.Module, path: Path) -> None:
    """Write a model: its state in safetensors, the structure of its slim layers in the metadata.

    Parameters
    ----------
    model : torch.nn.Module
    path : path
        A file, or a folder for a model of transformers, which then gets the configuration, too. Folders are made.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    from safetensors.torch import save_file

    path = os.fspath(path)
    config: Any = getattr(model, "config", None)
    if not path.endswith(".safetensors"):
        os.makedirs(path, exist_ok=True)
        if hasattr(config, "save_pretrained"):
            config.save_pretrained(path)
        path = os.path.join(path, FILE)
    tensors: dict[str, torch.Tensor] = {}
    first: dict[Any, str] = {}
    tied: dict[str, str] = {}
    for name, tensor in model.state_dict().items():
        # A tensor that has two names is written once.
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if tensor.numel() else name
        if place in first:
            tied[name] = first[place]
        else:
            first[place] = name
            tensors[name] = tensor.detach().cpu().contiguous()
    about = {"version": _VERSION, "layers": _structure(model), "tied": tied}
    save_file(tensors, path, {"format": "pt", _KEY: json.dumps(about)})


def load_slim(path: Path, model: Optional[nn.Module] = None) -> nn.Module:
    """Read a model that `save_slim` wrote, with the same bits.

    Parameters
    ----------
    path : path
        The file, or the folder.
    model : torch.nn.Module, optional
        A model of the structure before compression, whose weights do not matter; it is changed. A folder with a
        configuration of transformers needs none.

    Raises
    ------
    FormatError
        For a file of another kind, or one that does not fit the model.
    OSError
        If it cannot be read.
    """
    from safetensors import safe_open

    path = os.fspath(path)
    if os.path.isdir(path):
        if model is None:
            model = load_transformer(path, weights=False)
        path = os.path.join(path, FILE)
    if model is None:
        raise TypeError("a file needs a model of the structure before compression; give one")
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if _KEY not in metadata:
            raise FormatError(f"{path}: has no structure of slim layers in its metadata; save_slim writes one")
        about = json.loads(metadata[_KEY])
        if about.get("version") != _VERSION:
            raise FormatError(f"{path}: is of version {about.get('version')}, and {_VERSION} is known here")
        state = {name: file.get_tensor(name) for name in file.keys()}
    for name, layer in about["layers"].items():
        kind = {"linear": SlimLinear, "conv2d": SlimConv2d}[layer.pop("kind")]
        layer = {key: tuple(value) if isinstance(value, list) else value for key, value in layer.items()}
        _replace(model, name, kind(**layer, dtype=state[f"{name}.down.weight"].dtype))
    state.update({name: state[source] for name, source in about["tied"].items()})
    try:
        # The tensors themselves become the parameters, in their own types.
        found = model.load_state_dict(state, strict=False, assign=True)
    except RuntimeError as error:
        raise FormatError(f"{path}: does not fit the model: {error}") from error
    missing = [name for name in found.missing_keys if name in model.state_dict()]
    if missing or found.unexpected_keys:
        raise FormatError(f"{path}: does not fit the model: missing {missing}, unexpected {found.unexpected_keys}")
    if hasattr(model, "tie_weights"):
        model.tie_weights()
    return model.eval()


def export_onnx(model: nn.Module, example: Any, path: Path, **options: Any) -> None:
    """Write a model in ONNX, with a batch and a sequence of any length.

    Parameters
    ----------
    model : torch.nn.Module
    example : tensor, sequence of arguments, or mapping of named ones
        Inputs of the model. The first two axes of each may have any length afterwards, unless the model fixes it; the
        other axes have the lengths that they have here.
    path : path
        The file to write.
    **options
        Other options of ``torch.onnx.export``.

    Raises
    ------
    ImportError
        Without the packages onnx and onnxscript.
    """
    if isinstance(example, torch.Tensor):
        example = (example,)
    named = dict(example) if hasattr(example, "keys") else None
    inputs = list(named.values()) if named is not None else list(example)
    names = list(named) if named is not None else [f"input_{i}" for i in range(len(inputs))]
    training = model.training
    model.eval()
    try:
        shapes = [
            # AUTO: an axis whose length the model fixes, as the features of a linear layer, stays as it is.
            {axis: torch.export.Dim.AUTO for axis in range(min(x.dim(), 2))}
            for x in inputs
        ]
        torch.onnx.export(
            model,
            () if named is not None else tuple(inputs),
            os.fspath(path),
            kwargs=named,
            input_names=names,
            dynamo=True,
            dynamic_shapes=dict(zip(names, shapes)) if named is not None else tuple(shapes),
            **options,
        )
    finally:
        model.train(training)


class BatchCompressor:
    """Compression of all models in a folder.

    Parameters
    ----------
    **options
        Those of `compress_huggingface_model`.
    """

    def __init__(self, **options: Any) -> None:
        self.options = options

    def compress_directory(self, source: Path, target: Path) -> dict[str, Any]:
        """Compress each folder in `source` that has a ``config.json``, into a folder of the same name in `target`.

        Each gets the model (see `save_slim`), ``slim_report.json``, ``slim_report.md`` and ``slim_report.html``. What
        fails for one model does not stop the others.

        Parameters
        ----------
        source, target : path
            `source` may be such a folder itself.

        Returns
        -------
        dict of str to CompressionReport or Exception
            By the name of the folder.

        Raises
        ------
        FileNotFoundError
            If there is no model in `source`.
        """
        source, target = os.fspath(source), os.fspath(target)
        if os.path.exists(os.path.join(source, "config.json")):
            found = {os.path.basename(os.path.normpath(source)): source}
        else:
            folders = sorted(entry.path for entry in os.scandir(source) if entry.is_dir())
            folders = [folder for folder in folders if os.path.exists(os.path.join(folder, "config.json"))]
            found = {os.path.basename(folder): folder for folder in folders}
        if not found:
            raise FileNotFoundError(f"{source}: has no folder with a config.json")
        results: dict[str, Any] = {}
        for name, folder in found.items():
            try:
                model = compress_huggingface_model(folder, **self.options)
                save_slim(model, os.path.join(target, name))
            except Exception as error:  # the other models go on
                results[name] = error
                continue
            report = model.slim_report
            results[name] = report
            pages = (
                ("json", json.dumps(report.to_dict(), indent=1)),
                ("md", report.to_markdown()),
                ("html", report.to_html()),
            )
            for kind, text in pages:
                with open(os.path.join(target, name, f"slim_report.{kind}"), "w", encoding="utf-8") as file:
                    file.write(text)
        return results
