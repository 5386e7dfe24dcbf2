"""Fourier transforms of real or complex signals (complex numbers are a last axis of 2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..builder import Value
from ..node import Node, integers
from ..registry import Registry


def dft(x: Tensor, length: Any, axes: Any, inverse: bool, one_sided: bool) -> Tensor:
    """The discrete Fourier transform along an axis of ``(..., 1)`` real or ``(..., 2)`` complex numbers."""
    axis = integers(axes)[0] % x.dim()
    size = x.shape[axis] if length is None else integers(length)[0]
    if inverse and one_sided:
        real: Tensor = torch.fft.irfft(
            torch.view_as_complex(x.contiguous()), size if length is not None else None, axis
        )
        return real.unsqueeze(-1)
    values = torch.view_as_complex(x.contiguous()) if x.shape[-1] == 2 else x.squeeze(-1)
    if inverse:
        out = torch.fft.ifft(values, size, axis)
    elif one_sided and not values.is_complex():
        out = torch.fft.rfft(values, size, axis)
    else:
        out = torch.fft.fft(values, size, axis)
        out = out.narrow(axis, 0, size // 2 + 1) if one_sided else out
    return torch.view_as_real(out)


def _dft(node: Node) -> Value:
    axis = node.attr("axis", 1) if node.version < 20 else node.shape_argument(2) if node.has(2) else -2
    inverse, one_sided = bool(node.attr("inverse", 0)), bool(node.attr("onesided", 0))
    return node.emit(dft, node[0], node.shape_argument(1), axis, inverse, one_sided)


def stft(signal: Tensor, step: Any, window: Tensor | None, length: Any, one_sided: bool) -> Tensor:
    """The Fourier transforms of the frames of ``(batch, length, 1)``: ``(batch, frames, bins, 2)``."""
    size = integers(length)[0] if length is not None else window.shape[0]  # type: ignore[union-attr]
    values = torch.view_as_complex(signal.contiguous()) if signal.shape[-1] == 2 else signal.squeeze(-1)
    frames = values.unfold(1, size, integers(step)[0])
    frames = frames if window is None else frames * window
    if one_sided and not frames.is_complex():
        return torch.view_as_real(torch.fft.rfft(frames))
    out = torch.fft.fft(frames)
    return torch.view_as_real(out.narrow(-1, 0, size // 2 + 1) if one_sided else out)


def _stft(node: Node) -> Value:
    one_sided = bool(node.attr("onesided", 1))
    return node.emit(stft, node[0], node.shape_argument(1), node.get(2), node.shape_argument(3), one_sided)


def register(registry: Registry) -> None:
    """Adds the family to *registry*."""
    registry.add("DFT", _dft, 17)
    registry.add("STFT", _stft, 17)
