"""The adapter file: safetensors with the trained LAuReL tensors of a model and what they belong to.

It holds ``<site>.w``, ``<site>.A`` ... (:meth:`SiteSpec.parameter_shapes`) and, as metadata, the format version, the
config, what each site is, and fingerprints of the base graph.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import SiteSpec
from ..errors import AdapterError, ConfigError, UnknownVariantError
from ..foreign_names import foreign_text
from ..formula import resolve
from ..opset.schema import tensor_name

FORMAT = "1"
"""Version of the file's metadata; another one is refused."""

SAVED = "modules_to_save/"
"""What the names of parameters begin with that belong to the adapter and to no site."""

Array = NDArray[Any]

_KINDS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}
_DTYPES = {kind: dtype for dtype, kind in _KINDS.items()}
_HEADER = 1 << 23
"""Longest header in bytes that is read, a twelfth of what the format allows: 2000 sites need half a megabyte."""
_LISTED = 8
"""How many names an error lists of each sort."""


@dataclass(frozen=True)
class Adapter:
    """The trained tensors of all sites of one model.

    Attributes:
        specs: site to what it is.
        tensors: ``<site>.<name>`` to value; bfloat16 as float32.
        base: kind to fingerprint of the base: ``weights`` (:mod:`laurel_graph.fingerprint`), or ``onnx`` and ``torch``
            in files of older versions; empty if unknown.
        config: the config's JSON form, or "".
        saved: parameters of the model that were trained and belong to the adapter (a new head): name to element type
            and value.
    """

    specs: dict[str, SiteSpec]
    tensors: dict[str, Array]
    base: dict[str, str]
    config: str = ""
    saved: dict[str, tuple[str, Array]] = field(default_factory=dict)

    def parameters(self, site: str) -> dict[str, Array]:
        """Returns the trained tensors of one site by name."""
        return {name: self.tensors[f"{site}.{name}"] for name in self.specs[site].parameter_shapes()}

    def resolved(self) -> dict[str, Array]:
        """Returns the tensors of an ONNX file, ``laurel.<site>.<name>`` to value, in float64."""
        found: dict[str, Array] = {}
        for site, spec in self.specs.items():
            exact = {name: np.asarray(value, np.float64) for name, value in self.parameters(site).items()}
            found.update((tensor_name(site, name), value) for name, value in resolve(spec, exact).items())
        return found


def to_bytes(adapter: Adapter) -> bytes:
    """Returns the file of *adapter*.

    Raises:
        AdapterError: a value is not finite, or overflows in its element type.
    """
    metadata = {
        "format": FORMAT,
        "config": adapter.config,
        "sites": _pack(adapter.specs),
        "base": _compact(adapter.base),
    }
    if adapter.saved:
        metadata["saved"] = _compact(list(adapter.saved))
    header: dict[str, Any] = {"__metadata__": metadata}
    data: list[bytes] = []
    end = 0
    for full, dtype, value in _all_tensors(adapter):
        stored = rounded(value, dtype)
        check_finite("the adapter", {full: stored})
        data.append(_tensor_bytes(stored, dtype))
        start, end = end, end + len(data[-1])
        header[full] = {"dtype": _KINDS[dtype], "shape": list(value.shape), "data_offsets": [start, end]}
    text = _compact(header).encode()
    text += b" " * (-len(text) % 8)
    return b"".join((len(text).to_bytes(8, "little"), text, *data))


def _all_tensors(adapter: Adapter) -> Iterator[tuple[str, str, Array]]:
    """Yields name in the file, element type and value."""
    for site, spec in adapter.specs.items():
        for name, value in adapter.parameters(site).items():
            yield f"{site}.{name}", spec.dtype, value
    for name, (dtype, value) in adapter.saved.items():
        yield f"{SAVED}{name}", dtype, value


def read_adapter(path: str | Path) -> Adapter:
    """Reads an adapter file.

    Raises:
        AdapterError: missing, no safetensors file, no adapter, of another format version, its tensors are not those
            that its own metadata names, or a value is not finite.
    """
    import safetensors

    path = Path(path)
    try:
        header = _read_header(path)
        metadata = header.get("__metadata__")
        if not isinstance(metadata, dict) or "sites" not in metadata:
            raise AdapterError(f"{path} is no LAuReL adapter: expected a file that save_adapter wrote.")
        entries: Any = safetensors.deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    except OSError as error:
        raise AdapterError(f"the adapter {path} cannot be read: {error.strerror or error}.") from None
    except (safetensors.SafetensorError, ValueError, RecursionError) as error:
        raise AdapterError(f"{path} is no safetensors file, or is damaged: {foreign_text(error)}.") from None
    if metadata.get("format") != FORMAT:
        raise AdapterError(f"{path} has format {metadata.get('format')!r}; this version reads {FORMAT!r}.")
    specs, base, own = _read_metadata(path, metadata)
    kinds = {name: entry["dtype"] for name, entry in entries}
    values = {name: _array(path, name, entry) for name, entry in entries}
    saved = {f"{SAVED}{name}" for name in own}
    tensors = {name: values[name] for name in header if name in values and name not in saved}
    check_names(f"adapter {path} and its own metadata", shapes_of(specs), {n: v.shape for n, v in tensors.items()})
    if gone := sorted(saved - values.keys()):
        raise AdapterError(f"adapter {path} lacks what its own metadata names: {listed(gone)}.")
    for site, spec in specs.items():
        for name in spec.parameter_shapes():
            if kinds[f"{site}.{name}"] != _KINDS.get(spec.dtype):
                found = _DTYPES[kinds[f"{site}.{name}"]]
                raise AdapterError(f"adapter {path}: {site}.{name} is {found}, its own metadata says {spec.dtype}.")
    check_finite(f"adapter {path}", values)
    heads = {name: (_DTYPES[kinds[f"{SAVED}{name}"]], values[f"{SAVED}{name}"]) for name in own}
    return Adapter(specs, tensors, base, metadata.get("config", ""), heads)


def _read_header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file, before the tensors are read.

    Raises:
        ValueError: it is longer than the file, or than any adapter's, no JSON object, or has a name twice.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(_HEADER, path.stat().st_size - 8):
            raise ValueError(
                f"its header takes {length} bytes, the file has {path.stat().st_size}; expected at most {_HEADER}"
            )
        header = json.loads(file.read(length), object_pairs_hook=_once)
    if not isinstance(header, dict):
        raise ValueError(f"its header is a JSON {type(header).__name__}, expected an object")
    return header


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands twice in its header")
    return found


def _read_metadata(path: Path, metadata: Mapping[str, Any]) -> tuple[dict[str, SiteSpec], dict[str, str], list[str]]:
    """What the adapter's sites are, the fingerprints of its base, and the parameters that are saved with it."""
    try:
        specs = _unpack(metadata["sites"])
        base = json.loads(metadata.get("base") or "{}")
        if not isinstance(base, dict) or not all(isinstance(text, str) for text in base.values()):
            raise ValueError("its base is no mapping of names to texts")
        saved = json.loads(metadata.get("saved") or "[]")
        if not isinstance(saved, list) or not all(isinstance(name, str) for name in saved):
            raise ValueError("its saved parameters are no list of names")
        if unknown := [spec.dtype for spec in specs.values() if spec.dtype not in _KINDS]:
            raise ValueError(f"element type {unknown[0]!r}; expected one of {', '.join(_KINDS)}")
    except UnknownVariantError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, ConfigError) as error:
        raise AdapterError(f"the metadata of {path} is damaged: {foreign_text(error)}.") from error
    return specs, base, saved


def check_finite(what: str, tensors: Mapping[str, Array]) -> None:
    """Raises AdapterError that names the tensors which hold NaN or infinity."""
    faults = [
        f"{name} ({value[~np.isfinite(value)].flat[0]})"
        for name, value in ((name, np.asarray(value)) for name, value in tensors.items())
        if not np.isfinite(value).all()
    ]
    if faults:
        raise AdapterError(f"{what} holds values that are not finite: {listed(faults)}; train it again, or further.")


def rounded(value: Array, dtype: str) -> Array:
    """Returns *value* in an element type; bfloat16 as float32, what overflows as infinity."""
    if dtype == "bfloat16":
        from ..onnx_model.tensors import round_to_bfloat16

        return round_to_bfloat16(value)
    with np.errstate(over="ignore"):
        return np.asarray(value).astype(dtype)


def check_names(what: str, expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> None:
    """Raises AdapterError that lists the tensors which are missing, extra or of another shape."""
    faults = []
    if missing := [name for name in expected if name not in found]:
        faults.append(f"missing: {listed(missing)}")
    if extra := [name for name in found if name not in expected]:
        faults.append(f"extra: {listed(extra)}")
    wrong = [
        f"{n} has shape {tuple(found[n])}, expected {s}"
        for n, s in expected.items()
        if n in found and tuple(found[n]) != s
    ]
    if wrong:
        faults.append(f"of another shape: {listed(wrong)}")
    if faults:
        raise AdapterError(
            f"{what} do not fit; tensors {'; '.join(faults)}. Transform the model with the adapter's config."
        )


def shapes_of(specs: Mapping[str, SiteSpec]) -> dict[str, tuple[int, ...]]:
    """Returns ``<site>.<name>`` to shape of all trained tensors of *specs*."""
    return {f"{site}.{name}": shape for site, spec in specs.items() for name, shape in spec.parameter_shapes().items()}


def listed(names: Iterable[str]) -> str:
    """Returns the first names and how many more there are."""
    names = list(names)
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _pack(specs: Mapping[str, SiteSpec]) -> str:
    """The specs as JSON: what all have in common once, then what differs by site."""
    rows = [spec.to_dict() for spec in specs.values()]
    common = {k: v for k, v in rows[0].items() if k != "site" and all(row.get(k) == v for row in rows)}
    sites = {row.pop("site"): {k: v for k, v in row.items() if k not in common} for row in rows}
    return _compact({"common": common, "sites": sites})


def _unpack(text: str) -> dict[str, SiteSpec]:
    data = json.loads(text)
    return {site: SiteSpec.from_dict({**data["common"], **own, "site": site}) for site, own in data["sites"].items()}


def _tensor_bytes(value: Array, dtype: str) -> bytes:
    """The little-endian bytes of a value that :func:`rounded` gave."""
    if dtype == "bfloat16":
        return (np.ascontiguousarray(value).view(np.uint32) >> 16).astype("<u2").tobytes()
    return np.ascontiguousarray(value, np.dtype(dtype).newbyteorder("<")).tobytes()


def _array(path: Path, name: str, entry: Mapping[str, Any]) -> Array:
    dtype, shape = _DTYPES.get(entry["dtype"], ""), tuple(entry["shape"])
    if dtype == "bfloat16":
        bits = np.frombuffer(entry["data"], "<u2").astype(np.uint32) << 16
        return bits.view(np.float32).reshape(shape)
    if not dtype:
        raise AdapterError(
            f"adapter {path}: {name} has element type {entry['dtype']}; expected one of {', '.join(_DTYPES)}."
        )
    return np.frombuffer(entry["data"], np.dtype(dtype).newbyteorder("<")).reshape(shape)
