"""Statistics of what goes through the layers of a model: their inputs, and the gradients of their outputs."""

from __future__ import annotations

import contextlib
import inspect
from dataclasses import dataclass, field
from typing import Any, Callable, Iterable, Iterator, Mapping, Optional

import torch
from torch import nn

from .._calibration import Calibration
from ._layers import is_transposed


@dataclass
class Collected:
    """What `collect` returns.

    Attributes
    ----------
    inputs : dict of str to Calibration
        By the name of the layer: the statistics of its inputs.
    output_gradients : dict of str to Calibration
        By the name of the layer: those of random gradients at its outputs; empty unless asked for.
    """

    inputs: dict[str, Calibration] = field(default_factory=dict)
    output_gradients: dict[str, Calibration] = field(default_factory=dict)


def run_batch(model: nn.Module, batch: Any) -> Any:
    """Call a model on a batch: a tensor, a sequence of arguments, or a mapping of named ones."""
    if isinstance(batch, Mapping) or hasattr(batch, "keys"):
        return model(**{name: batch[name] for name in batch.keys()})
    if isinstance(batch, (tuple, list)):
        return model(*batch)
    return model(batch)


def _to(batch: Any, device: Any) -> Any:
    if isinstance(batch, torch.Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping) or hasattr(batch, "keys"):
        return {name: _to(batch[name], device) for name in batch.keys()}
    if isinstance(batch, (tuple, list)):
        return type(batch)(_to(item, device) for item in batch)
    return batch


def main_output(output: Any) -> torch.Tensor:
    """Return the tensor of a model's output that counts: the logits or the last hidden state, or the first tensor."""
    for name in ("logits", "last_hidden_state"):
        found = getattr(output, name, None)
        if isinstance(found, torch.Tensor):
            return found
    if isinstance(output, torch.Tensor):
        return output
    values = output.values() if isinstance(output, Mapping) else output
    return next(value for value in values if isinstance(value, torch.Tensor))


def _mask_of(batch: Any) -> Optional[torch.Tensor]:
    """Return which tokens of a batch are no padding, if it says so."""
    if isinstance(batch, Mapping) or hasattr(batch, "keys"):
        mask = batch["attention_mask"] if "attention_mask" in batch.keys() else None
        return mask.bool() if isinstance(mask, torch.Tensor) and mask.dim() == 2 else None
    return None


def _rows(x: torch.Tensor, mask: Optional[torch.Tensor]) -> torch.Tensor:
    """Return the samples of (..., n) as rows, without those of padding."""
    x = x.detach()
    if mask is not None and x.dim() == 3 and x.shape[:2] == mask.shape:
        return x[mask].cpu()
    return x.reshape(-1, x.shape[-1]).cpu()


def _patches(x: torch.Tensor, conv: nn.Conv2d) -> Iterator[torch.Tensor]:
    """Yield the patches that a convolution multiplies with its filters, as rows, image by image."""
    x = x.detach()
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        x = nn.functional.pad(x, conv._reversed_padding_repeated_twice, mode=mode)
        padding: Any = 0
    else:
        padding = conv.padding
    for image in x.split(1):
        patches = nn.functional.unfold(image, conv.kernel_size, conv.dilation, padding, conv.stride)
        yield patches[0].T.cpu()


def inputs_of(layer: nn.Module) -> int:
    """Return the number of inputs of a layer's weight as a matrix."""
    weight = layer.weight
    return weight.shape[0] if is_transposed(layer) else weight[0].numel()


def outputs_of(layer: nn.Module) -> int:
    """Return the number of outputs of a layer's weight as a matrix."""
    return layer.weight.shape[1] if is_transposed(layer) else layer.weight.shape[0]


@contextlib.contextmanager
def _kept_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode for a while."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode


def collect(
    model: nn.Module,
    layers: Iterable[str],
    batches: Iterable[Any],
    *,
    accumulation: str = "f32",
    output_gradients: bool = False,
    cotangents: int = 1,
    output_metric: Optional[Callable[[Any], torch.Tensor]] = None,
    seed: int = 0,
) -> Collected:
    """Send batches through a model, and collect statistics of its layers.

    Tokens that ``attention_mask`` calls padding are left out. The model is in evaluation mode meanwhile.

    Parameters
    ----------
    model : torch.nn.Module
    layers : names of layers
        As in ``model.named_modules()``.
    batches : iterable
        Each a tensor, a sequence of arguments, or a mapping of named arguments.
    accumulation : {"f32", "f64"}
        The arithmetic of blocks; see `Calibration`.
    output_gradients : bool
        Collect also the gradients at the layers' outputs of random combinations of the model's outputs: what a change
        of an output does to what the model says.
    cotangents : int
        The number of random combinations for each batch.
    output_metric : callable, optional
        Takes the model's output, or that and the batch, and returns the tensor that counts; by default the logits, the
        last hidden state, or the first tensor.
    seed : int
        The seed of the random combinations, whose factors are 1 and -1.

    Returns
    -------
    Collected

    Raises
    ------
    KeyError
        For a name that is not a layer's.
    NotFiniteError
        For inputs with NaN or infinities.
    """
    modules = dict(model.named_modules())
    chosen = {name: modules[name] for name in layers}
    collected = Collected(
        {name: Calibration(inputs_of(layer), accumulation=accumulation) for name, layer in chosen.items()}
    )
    if output_gradients:
        for name, layer in chosen.items():
            collected.output_gradients[name] = Calibration(outputs_of(layer), accumulation=accumulation)
    mask: Optional[torch.Tensor] = None
    outputs: dict[str, list[torch.Tensor]] = {name: [] for name in chosen}

    def see(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, args: Any, output: torch.Tensor) -> None:
            if isinstance(layer, nn.Conv2d):
                for patches in _patches(args[0], layer):
                    collected.inputs[name].update(patches)
            else:
                collected.inputs[name].update(_rows(args[0], mask))
            if output_gradients:
                outputs[name].append(output)

        return hook

    parameter = next(model.parameters(), None)
    device = "cpu" if parameter is None else parameter.device
    generator = torch.Generator().manual_seed(seed)
    metric: Callable[..., torch.Tensor] = output_metric or main_output
    takes_batch = len(inspect.signature(metric).parameters) > 1
    hooks = [layer.register_forward_hook(see(name)) for name, layer in chosen.items()]
    frozen = [layer.weight for layer in chosen.values() if not layer.weight.requires_grad] if output_gradients else []
    try:
        for weight in frozen:
            weight.requires_grad_(True)
        with _kept_mode(model), torch.set_grad_enabled(output_gradients):
            for batch in batches:
                batch = _to(batch, device)
                mask = _mask_of(batch)
                result = run_batch(model, batch)
                if output_gradients:
                    counts = metric(result, batch) if takes_batch else metric(result)
                    _take_gradients(counts, outputs, collected, mask, cotangents, generator)
    finally:
        for hook in hooks:
            hook.remove()
        for weight in frozen:
            weight.requires_grad_(False)
    return collected


def _take_gradients(
    result: torch.Tensor,
    outputs: dict[str, list[torch.Tensor]],
    collected: Collected,
    mask: Optional[torch.Tensor],
    cotangents: int,
    generator: torch.Generator,
) -> None:
    """Feed the gradients at the outputs of the layers, for random signs at the output of the model."""
    seen = [(name, output) for name, all_of_it in outputs.items() for output in all_of_it if output.requires_grad]
    for i in range(cotangents):
        signs = torch.randint(0, 2, result.shape, generator=generator).to(result) * 2 - 1
        if mask is not None and result.dim() == 3 and result.shape[:2] == mask.shape:
            signs = signs * mask[..., None].to(signs)
        gradients = torch.autograd.grad(
            result, [output for _, output in seen], signs, retain_graph=i + 1 < cotangents, allow_unused=True
        )
        for (name, output), gradient in zip(seen, gradients):
            if gradient is None:
                continue
            if output.dim() == 4:
                gradient = gradient.movedim(1, -1)
            collected.output_gradients[name].update(_rows(gradient, mask))
    for all_of_it in outputs.values():
        all_of_it.clear()
