"""Compression of PyTorch models on the functions of `tensorslim`: layers by pairs of thin ones.

* `SlimLinear`, `SlimConv2d`, `convert_layer_to_slim`: layers.
* `compress_model`, `choose_layers`, `TransformerSlim`, `compress_huggingface_model`, `BatchCompressor`: models.
* `collect`, `Collected`: statistics of a model's layers.
* `CompressionReport`, `LayerReport`: what was done, as data, Markdown and HTML.
* `save_slim`, `load_slim`, `export_onnx`: files.
"""

from ._collect import Collected, collect
from ._compress import TransformerSlim, choose_layers, compress_huggingface_model, compress_model
from ._layers import SlimConv2d, SlimLinear, convert_layer_to_slim
from ._report import CompressionReport, LayerReport
from ._storage import BatchCompressor, export_onnx, load_slim, save_slim

__all__ = [
    "BatchCompressor",
    "Collected",
    "CompressionReport",
    "LayerReport",
    "SlimConv2d",
    "SlimLinear",
    "TransformerSlim",
    "choose_layers",
    "collect",
    "compress_huggingface_model",
    "compress_model",
    "convert_layer_to_slim",
    "export_onnx",
    "load_slim",
    "save_slim",
]
