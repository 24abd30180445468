"""What compression did to a model, by layer: as data, Markdown and HTML."""

from __future__ import annotations

import html
from dataclasses import asdict, dataclass, field
from typing import Any, Optional


@dataclass
class LayerReport:
    """One layer before and after.

    Attributes
    ----------
    name : str
        The name in ``model.named_modules()``.
    action : str
        ``"factored"`` or ``"kept"``.
    shape : (int, int)
        Outputs and inputs of the weight as a matrix.
    rank : int or None
        The rank of the factors.
    params_before, params_after : int
        The numbers of the weight and of what replaces it, without the bias.
    weight_error : float
        ``||W - W'|| / ||W||``, as certified; 0 for a layer that was kept.
    output_error, cosine : float or None
        The relative error and the cosine of the outputs on the calibration; None without one.
    reason : str
        Why a layer was kept.
    """

    name: str
    action: str
    shape: tuple[int, int]
    rank: Optional[int]
    params_before: int
    params_after: int
    weight_error: float = 0.0
    output_error: Optional[float] = None
    cosine: Optional[float] = None
    reason: str = ""


@dataclass
class CompressionReport:
    """What compression did to a model.

    Attributes
    ----------
    layers : list of LayerReport
        Those that were chosen, in the order of the model.
    params_before, params_after : int
        The numbers of the whole model; tied ones count once.
    bytes_before, bytes_after : int
        Their bytes.
    factor_seconds, collect_seconds : float
        The time of the factorizations, and that of sending the calibration through the model.
    notes : list of str
        What was out of the ordinary.
    """

    layers: list[LayerReport] = field(default_factory=list)
    params_before: int = 0
    params_after: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    factor_seconds: float = 0.0
    collect_seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """The numbers of the whole model before over those after."""
        return self.params_before / max(self.params_after, 1)

    @property
    def layer_ratio(self) -> float:
        """The numbers of the chosen layers' weights before over those after."""
        after = sum(layer.params_after for layer in self.layers)
        return sum(layer.params_before for layer in self.layers) / max(after, 1)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, which ``json.dumps`` takes."""
        return {**asdict(self), "ratio": self.ratio, "layer_ratio": self.layer_ratio}

    def _table(self) -> tuple[list[str], list[list[str]]]:
        head = ["layer", "shape", "rank", "numbers before", "after", "weight error", "output error", "cosine", "note"]

        def number(x: Optional[float]) -> str:
            return "" if x is None else f"{x:.4f}"

        rows = [
            [
                layer.name,
                f"{layer.shape[0]} x {layer.shape[1]}",
                "whole" if layer.rank is None else str(layer.rank),
                str(layer.params_before),
                str(layer.params_after),
                number(layer.weight_error),
                number(layer.output_error),
                number(layer.cosine),
                layer.reason,
            ]
            for layer in self.layers
        ]
        return head, rows

    def _summary(self) -> str:
        return (
            f"Whole model: {self.params_before} numbers before, {self.params_after} after ({self.ratio:.2f} times "
            f"fewer), {self.bytes_before / 2**20:.1f} MiB before, {self.bytes_after / 2**20:.1f} MiB after. "
            f"Chosen layers: {self.layer_ratio:.2f} times fewer."
        )

    def to_markdown(self) -> str:
        """Return a summary and a table by layer in Markdown."""
        head, rows = self._table()
        lines = [self._summary(), "", f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
        lines += [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
        lines += ["", *(f"* {note}" for note in self.notes)] if self.notes else []
        return "\n".join(lines) + "\n"

    def to_html(self) -> str:
        """Return a page with a summary and a table by layer."""
        head, rows = self._table()

        def line(tag: str, cells: list[str]) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        body = "\n".join([line("th", head), *(line("td", row) for row in rows)])
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
        return (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Compression report</title>'
            "<style>body{font-family:sans-serif}td,th{padding:2px 8px;text-align:left;border-bottom:1px solid #ccc}"
            f"</style></head><body>\n<p>{html.escape(self._summary())}</p>\n<table>\n{body}\n</table>\n"
            f"<ul>{notes}</ul>\n</body></html>\n"
        )

    def __str__(self) -> str:
        return self.to_markdown()
