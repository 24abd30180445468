"""Compression of whole models: which layers, with which ranks."""

from __future__ import annotations

import fnmatch
import os
import re
import time
from typing import Any, Callable, Iterable, Mapping, Optional, Sequence, Union

import torch
from torch import nn

from .._calibration import Calibration
from .._factor import Factors, factor
from .._rank import Layer, allocate, rank_saves_memory, uniform
from ._collect import Collected, collect
from ._layers import is_convertible, matrix_of, rule_of, slim_from_factors
from ._report import CompressionReport, LayerReport

Patterns = Union[None, str, Sequence[str], Callable[[str, nn.Module], bool]]

_ATTENTION = re.compile(
    r"(^|[._])(self_?attn|attn|\w*attention|q_proj|k_proj|v_proj|o_proj|q_lin|k_lin|v_lin|out_lin)(\.|$)", re.I
)
_EMBEDDING = re.compile(r"embed", re.I)
_HEAD = re.compile(
    r"(^|\.)(\w*lm_head|classifier|score|pooler|cls|qa_outputs|vocab_\w+|head|decoder)$|(^|\.)(cls|pooler)\.", re.I
)
_BLOCK = re.compile(r"(^|\.)\d+\.")


def is_attention(name: str) -> bool:
    """Return whether a name is that of a layer of attention."""
    return _ATTENTION.search(name) is not None


def is_embedding(name: str) -> bool:
    """Return whether a name is that of an embedding, or of a layer in one."""
    return _EMBEDDING.search(name) is not None


def is_head(name: str) -> bool:
    """Return whether a name is that of a layer from which the model's answer comes: a head, a classifier, a pooler."""
    return _HEAD.search(name) is not None


def is_feed_forward(name: str) -> bool:
    """Return whether a name is that of a feed-forward layer: in a numbered block, and neither of the others."""
    return _BLOCK.search(name) is not None and not (is_attention(name) or is_embedding(name) or is_head(name))


def _matches(patterns: Patterns, name: str, layer: nn.Module, default: bool) -> bool:
    if patterns is None:
        return default
    if callable(patterns):
        return bool(patterns(name, layer))
    patterns = [patterns] if isinstance(patterns, str) else patterns
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _tied(model: nn.Module) -> set[str]:
    """Return the names of the modules whose weight another module has, too."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        weight = getattr(module, "_parameters", {}).get("weight")
        if weight is not None:
            owners.setdefault(id(weight), []).append(name)
    return {name for names in owners.values() if len(names) > 1 for name in names}


def choose_layers(model: nn.Module, include: Patterns = None, exclude: Patterns = None) -> dict[str, nn.Module]:
    """Return the layers that `compress_model` would convert, by name.

    They are of a kind that can be converted, no weight of theirs is tied to another module's, `include` takes them
    (by default all but heads and embeddings), and `exclude` does not.
    """
    tied, chosen = _tied(model), {}
    for name, layer in model.named_modules():
        if not is_convertible(layer) or name in tied:
            continue
        default = not (is_head(name) or is_embedding(name))
        if _matches(include, name, layer, default) and not _matches(exclude, name, layer, False):
            chosen[name] = layer
    return chosen


def _size(model: nn.Module) -> tuple[int, int]:
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() * p.element_size() for p in parameters)


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, layer)


def _statistics(model: nn.Module, layers: Mapping[str, nn.Module], calibration: Any, output_metric: Any) -> Collected:
    """Return the statistics by layer: those that were given, or those of batches sent through the model."""
    if calibration is None:
        return Collected()
    if isinstance(calibration, Collected):
        return calibration
    if isinstance(calibration, Mapping) and all(isinstance(c, Calibration) for c in calibration.values()):
        return Collected(dict(calibration))
    gradients = output_metric is not None
    return collect(model, layers, calibration, output_gradients=gradients, cotangents=2, output_metric=output_metric)


def _weights(statistics: Collected, name: str) -> dict[str, Any]:
    """Return what weights the error of a layer: the options of `factor`."""
    weights = {
        "calibration": statistics.inputs.get(name),
        "output_calibration": statistics.output_gradients.get(name),
    }
    return {option: c for option, c in weights.items() if c is not None and c.samples > 0}


def _scales(statistics: Collected) -> dict[str, float]:
    """Return what the loss of each layer counts: the mean square of the gradients of its outputs."""
    return {
        name: float(outputs.gram().trace()) / (outputs.features * outputs.samples)
        for name, outputs in statistics.output_gradients.items()
        if outputs.samples > 0
    }


def _limit(budget: Union[int, float], whole: int) -> int:
    """Return a budget as a count of numbers: an int is one, a float is a share of the chosen layers' numbers."""
    if isinstance(budget, float):
        if not 0 < budget <= 1:
            raise ValueError(f"budget = {budget} is not allowed; give a share above 0 and at most 1, or a count as int")
        return int(budget * whole)
    return budget


def _shared_factors(
    layers: Mapping[str, nn.Module],
    statistics: Collected,
    scales: Mapping[str, float],
    budget: Union[int, float],
    options: dict[str, Any],
) -> dict[str, Optional[Factors]]:
    """Return the factors of each layer under a budget, None for one that stays whole.

    With output gradients of all layers, or a scale of each, their losses have one unit, and their sum is the least.
    Without, no unit is common to layers, and all are reduced alike.
    """
    given, all_factors, whole = [], {}, 0
    summed = all(name in scales or "output_calibration" in _weights(statistics, name) for name in layers)
    for name, layer in layers.items():
        matrix = matrix_of(layer)
        m, n = matrix.shape
        whole += m * n
        # Ranks that save nothing need not be looked at; those that are chosen are cut from these factors.
        most = max(m * n // (m + n + 1), 1)
        factors = factor(matrix, min(most, m, n), **_weights(statistics, name), **options)
        seen = factors.report["activation"] or factors.report
        given.append(Layer((m, n), seen["spectrum"], float(seen["norm"]) ** 2, weight=scales.get(name, 1.0)))
        all_factors[name] = factors
    found = (allocate if summed else uniform)(given, _limit(budget, whole))
    chosen = zip(all_factors.items(), found.ranks)
    return {name: None if rank is None else factors.truncate(rank) for (name, factors), rank in chosen}


def compress_model(
    model: nn.Module,
    *,
    ratio: Optional[float] = None,
    budget: Union[None, int, float] = None,
    quality: Optional[float] = None,
    rank: Optional[int] = None,
    include: Patterns = None,
    exclude: Patterns = None,
    calibration: Any = None,
    quality_threshold: Optional[float] = None,
    output_metric: Optional[Callable[[Any], torch.Tensor]] = None,
    output_weights: str = "full",
    **options: Any,
) -> nn.Module:
    """Replace layers of a model by pairs of thin ones, in place.

    Give exactly one of `ratio`, `budget`, `quality` and `rank`. Layers that cannot gain are kept.

    Parameters
    ----------
    model : torch.nn.Module
        It is changed; copy it before, if the original is needed.
    ratio : float
        Each layer gets `ratio` times fewer numbers.
    budget : int or float
        All chosen layers together get at most so many numbers (int), or that share of what they have (float, at most
        1). With output gradients it goes where the model's output loses least; without, all layers shrink alike.
    quality : float
        The cosine that the outputs of each layer keep on the calibration, or its weight without one.
    rank : int
        The rank of all layers.
    include, exclude : patterns or callable, optional
        Shell patterns of names, or ``f(name, layer) -> bool``. See `choose_layers`.
    calibration : iterable of batches, mapping of names to Calibration, or Collected, optional
        What the layers will see: batches are sent through the model; see `collect`.
    quality_threshold : float, optional
        A layer whose cosine is below it gets the rank that reaches it, or is kept.
    output_metric : callable, optional
        What counts of the model's output; see `collect`. With it, errors are weighted by random gradients of it as
        well (one more pass, backward, over the batches): the model's output keeps most of what matters.
    output_weights : str
        What output gradients do: ``"full"`` weights the errors of each layer by their moments; ``"scalar"`` leaves the
        factors to the inputs, and gives a budget the mean square of each layer's gradients.
    **options
        Other options of `tensorslim.factor`: ``seed``, ``method``, ``precision``, ...

    Returns
    -------
    torch.nn.Module
        The same model. Its ``slim_report`` is a `CompressionReport`.

    Raises
    ------
    TypeError
        Unless there is one rule.
    ValueError
        If no layer is chosen.
    tensorslim.Error
        Those of `tensorslim.factor` and `tensorslim.allocate`.
    """
    if sum(rule is not None for rule in (ratio, budget, quality, rank)) != 1:
        raise TypeError("give one of ratio, budget, quality and rank")
    if output_weights not in ("full", "scalar"):
        raise ValueError(f"output_weights = {output_weights!r} is not allowed; give 'full' or 'scalar'")
    layers = choose_layers(model, include, exclude)
    if not layers:
        raise ValueError("no layer is chosen: none can be converted, or include and exclude leave none")
    report = CompressionReport()
    report.params_before, report.bytes_before = _size(model)
    start = time.perf_counter()
    statistics = _statistics(model, layers, calibration, output_metric)
    report.collect_seconds = time.perf_counter() - start
    unseen = [name for name in layers if name in statistics.inputs and statistics.inputs[name].samples == 0]
    if unseen:
        report.notes.append(f"no calibration sample reached {', '.join(unseen)}: factored without")

    scales: dict[str, float] = {}
    if output_weights == "scalar":
        scales = _scales(statistics)
        statistics = Collected(statistics.inputs)
    start = time.perf_counter()
    shared = None if budget is None else _shared_factors(layers, statistics, scales, budget, options)
    for name, layer in layers.items():
        weights = _weights(statistics, name)
        if shared is None:
            made: Any = rule_of(rank, ratio, quality, weights or None)
        else:
            made = shared[name]
        _compress_layer(model, name, layer, made, weights, quality_threshold, options, report)
    report.factor_seconds = time.perf_counter() - start
    report.params_after, report.bytes_after = _size(model)
    model.slim_report = report
    return model


def _compress_layer(
    model: nn.Module,
    name: str,
    layer: nn.Module,
    made: Union[None, Factors, dict[str, Any]],
    weights: dict[str, Any],
    threshold: Optional[float],
    options: dict[str, Any],
    report: CompressionReport,
) -> None:
    """Replace one layer by factors, or by those of a rule, or keep it; and report that."""
    matrix = matrix_of(layer)
    m, n = matrix.shape

    def keep(reason: str) -> None:
        report.layers.append(LayerReport(name, "kept", (m, n), None, m * n, m * n, reason=reason))

    if made is None:
        return keep("worth its size")
    k = made.get("rank") if isinstance(made, dict) else made.rank
    if k is not None and not rank_saves_memory(m, n, k):
        return keep(f"rank {k} saves nothing")
    try:
        factors = factor(matrix, **made, **weights, **options) if isinstance(made, dict) else made
        if threshold is not None and _cosine(factors) < threshold:
            factors = factor(matrix, **rule_of(None, None, threshold, weights or None), **weights, **options)
    except ValueError as error:
        # A ratio that even rank 1 does not reach, NaN in a weight: one layer must not end the work on the others.
        return keep(str(error))
    found = factors.report
    slim = slim_from_factors(layer, factors)
    after = sum(part.weight.numel() for part in (slim.up, slim.down))
    if after >= m * n:
        return keep(f"rank {factors.rank} saves nothing")
    _replace(model, name, slim)
    seen = found["activation"]
    report.layers.append(
        LayerReport(
            name,
            "factored",
            (m, n),
            factors.rank,
            m * n,
            after,
            found["relative_error"],
            None if seen is None else seen["relative_error"],
            None if seen is None else seen["cosine"],
        )  # fmt: skip
    )
    report.notes += [f"{name}: {note}" for note in found["notes"]]


def _cosine(factors: Factors) -> float:
    """Return the cosine between outputs before and after, or between weights without calibration."""
    seen = factors.report["activation"]
    return seen["cosine"] if seen is not None else max(0.0, 1.0 - factors.relative_error**2) ** 0.5


class TransformerSlim:
    """Compression of transformers: which parts to keep, and how much the others shrink.

    Parameters
    ----------
    preserve_attention : bool
        Keep the layers of attention.
    preserve_embeddings : bool
        Keep embeddings and heads. (Embeddings that are looked up are kept in any case.)
    ffn_rank : int, optional
        The rank of the feed-forward layers. Without it give `ratio`, `budget` or `quality`, as to `compress_model`.
    **options
        Other options of `compress_model`.
    """

    def __init__(
        self,
        preserve_attention: bool = True,
        preserve_embeddings: bool = True,
        ffn_rank: Optional[int] = None,
        **options: Any,
    ) -> None:
        self.preserve_attention = preserve_attention
        self.preserve_embeddings = preserve_embeddings
        self.options = {**options, **({} if ffn_rank is None else {"rank": ffn_rank})}

    def takes(self, name: str, _layer: Optional[nn.Module] = None) -> bool:
        """Return whether the layer of this name is to be compressed."""
        if is_attention(name):
            return not self.preserve_attention
        if is_embedding(name) or is_head(name):
            return not self.preserve_embeddings
        return is_feed_forward(name)

    def compress(self, model: nn.Module, calibration: Any = None) -> nn.Module:
        """Compress a model in place; see `compress_model`."""
        return compress_model(model, include=self.takes, calibration=calibration, **self.options)


def compress_huggingface_model(
    model: Union[nn.Module, str, os.PathLike[str]],
    *,
    ratio: Optional[float] = None,
    budget: Union[None, int, float] = None,
    quality: Optional[float] = None,
    calibration: Any = None,
    compression_ratio: Optional[float] = None,
    quality_threshold: Optional[float] = None,
    layers: str = "feed-forward",
    tokenizer: Any = None,
    **options: Any,
) -> nn.Module:
    """Compress a model of the package transformers.

    Parameters
    ----------
    model : torch.nn.Module or path
        A model, which is changed, or a folder with its configuration and weights. Nothing is downloaded.
    ratio, budget, quality
        As for `compress_model`.
    calibration : iterable of batches, or of texts, optional
        As for `compress_model`; texts need a `tokenizer`, which for a folder is read from it.
    compression_ratio : float, optional
        The share of the numbers that is kept: 0.5 is ``ratio=2``.
    quality_threshold : float, optional
        The least cosine of each layer; alone, it is the same as `quality`.
    layers : {"feed-forward", "all"}
        The layers that are compressed: those outside of attention, or these, too. Embeddings, heads and tied weights
        are kept.
    tokenizer : optional
        Makes batches of texts.
    **options
        Other options of `compress_model`.

    Returns
    -------
    torch.nn.Module
        The model, with a ``slim_report``.

    Raises
    ------
    TypeError, ValueError, tensorslim.Error
        Those of `compress_model`; OSError for a folder without a model.
    """
    if isinstance(model, (str, os.PathLike)):
        folder = os.fspath(model)
        model = load_transformer(folder)
        if tokenizer is None and _are_texts(calibration):
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if compression_ratio is not None:
        if ratio is not None or not 0 < compression_ratio <= 1:
            raise ValueError("compression_ratio is a share above 0 and at most 1, and goes without ratio")
        ratio = 1 / compression_ratio
    if quality_threshold is not None and ratio is None and budget is None and quality is None:
        quality, quality_threshold = quality_threshold, None
    if layers not in ("feed-forward", "all"):
        raise ValueError(f"layers = {layers!r} is not allowed; give 'feed-forward' or 'all'")
    policy = TransformerSlim(preserve_attention=layers == "feed-forward")
    if _are_texts(calibration):
        if tokenizer is None:
            raise TypeError("a calibration of texts needs a tokenizer")
        calibration = batches_of(calibration, tokenizer)
    return compress_model(
        model,
        ratio=ratio,
        budget=budget,
        quality=quality,
        calibration=calibration,
        quality_threshold=quality_threshold,
        include=options.pop("include", policy.takes),
        **options,
    )


def _are_texts(calibration: Any) -> bool:
    return isinstance(calibration, (list, tuple)) and len(calibration) > 0 and isinstance(calibration[0], str)


def batches_of(texts: Sequence[str], tokenizer: Any, size: int = 32) -> Iterable[Any]:
    """Yield batches of texts as a tokenizer makes them, padded to the longest of each batch."""
    for first in range(0, len(texts), size):
        yield tokenizer(list(texts[first : first + size]), padding=True, truncation=True, return_tensors="pt")


def load_transformer(folder: str, weights: bool = True) -> nn.Module:
    """Make the model that a folder's ``config.json`` describes, with its weights or without, from local files alone."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    kinds = [getattr(transformers, name, None) for name in (config.architectures or [])]
    kind = next((kind for kind in kinds if kind is not None), None)
    if weights:
        return (kind or transformers.AutoModel).from_pretrained(folder, local_files_only=True)
    return transformers.AutoModel.from_config(config) if kind is None else kind(config)
