"""Patterns in files (one .npz, no pickle, checked before memory is taken) and as SciPy matrices."""

from __future__ import annotations

import io
import json
import os
import zipfile

import numpy as np

from sparseattn.index_ops.algebra import as_blocks
from sparseattn.index_ops.pairs import pairs
from sparseattn.structure import BlockCSR, Order, Ranges

FORMAT = "sparseattn pattern"
VERSION = 1
ARRAYS = {
    "Ranges": ("starts", "stops", "heads"),
    "BlockCSR": ("indptr", "indices", "mask_ids", "masks", "heads"),
}
UNREADABLE = (zipfile.BadZipFile, KeyError, TypeError, IndexError, EOFError, OverflowError, NotImplementedError,
              RuntimeError)
TEXT_LIMIT = 1 << 22  # bytes of the description


def save(pattern, path):
    """Write a pattern: a JSON description and one array a member, uncompressed."""
    arrays, parts = {}, []
    for number, part in enumerate(pattern.parts):
        kind = type(part).__name__
        size = part.block_size
        record = {"kind": kind, "block_size": size and list(size), "arrays": []}
        for name in ARRAYS[kind]:
            if getattr(part, name) is not None:
                arrays[f"{number}.{name}"] = getattr(part, name)
                record["arrays"].append(name)
        for name in ("q_order", "k_order"):
            record[name] = _describe_order(getattr(part, name), f"{number}.{name}", arrays)
        parts.append(record)
    text = json.dumps({"format": FORMAT, "version": VERSION, "shape": list(pattern.shape), "batch": pattern.batch,
                       "n_heads": pattern.n_heads, "parts": parts})
    with open(path, "wb") as file:
        np.savez(file, pattern=np.array(text), **arrays)


def _describe_order(order, name, arrays):
    if order is None:
        return None
    if order.is_affine:
        return {"grid": list(order.grid), "digits": [list(d) for d in order.digits], "origin": list(order.origin)}
    arrays[name] = order.tokens
    return {"list": name, "n_tokens": order.n_tokens}


def load(path):
    """Read a pattern and verify all of it."""
    from sparseattn.pattern.core import Pattern

    name = os.fspath(path)
    try:
        with zipfile.ZipFile(path) as archive:
            record = _description(archive)
            parts = [_read_part(archive, number, part, record["shape"]) for number, part in enumerate(record["parts"])]
            shape = tuple(int(n) for n in record["shape"])
            pattern = Pattern(tuple(parts), shape, int(record["batch"]), int(record["n_heads"]))
    except UNREADABLE as error:
        raise ValueError(f"{name} is not a readable pattern file ({type(error).__name__}: {error}); save it again with "
                         f"Pattern.save") from None
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    try:
        return pattern.check()
    except (ValueError, IndexError, TypeError, OverflowError) as error:
        raise ValueError(f"{name} holds a broken pattern: {error}") from None


def _description(archive):
    text = str(_member(archive, "pattern", text=True))
    record = json.loads(text)
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ValueError("not a pattern file; expected one written by Pattern.save")
    if record["version"] != VERSION:
        raise ValueError(f"written in format {record['version']!r}, and this version reads format {VERSION}; update "
                         "sparseattn")
    if len(record["shape"]) != 2 or any(not isinstance(n, int) or not 0 <= n < 2**31 for n in record["shape"]):
        raise ValueError(f"shape is {record['shape']!r}; expected two numbers of tokens")
    if any(not isinstance(record[n], int) or not 1 <= record[n] < 2**31 for n in ("batch", "n_heads")):
        raise ValueError("batch and n_heads must be whole numbers from 1")
    return record


def _member(archive, name, text=False):
    """One array; its declared size is compared with the bytes that are there before any memory is taken."""
    info = archive.getinfo(name + ".npy")
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
        raise ValueError(f"{name} is compressed; a pattern file is not")
    with archive.open(info) as file:
        head = io.BytesIO(file.read(min(info.file_size, 1 << 16)))
    version = np.lib.format.read_magic(head)
    reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    shape, fortran, dtype = reader(head)
    if dtype.hasobject or dtype.kind not in ("U" if text else "iu") or (fortran and len(shape) > 1):
        raise ValueError(f"{name} has dtype {dtype}; expected plain integers in C order")
    size = dtype.itemsize
    for n in shape:
        size *= n
    if size != info.file_size - head.tell() or (text and size > TEXT_LIMIT):
        raise ValueError(f"{name} claims {size} bytes and has {info.file_size - head.tell()}")
    with archive.open(info) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _read_part(archive, number, record, shape):
    kind = record["kind"]
    if kind not in ARRAYS:
        raise ValueError(f"part {number} is of kind {kind!r}; expected {' or '.join(ARRAYS)}")
    fields = {name: _member(archive, f"{number}.{name}") for name in record["arrays"] if name in ARRAYS[kind]}
    for name, n_tokens in zip(("q_order", "k_order"), shape):
        fields[name] = _read_order(archive, record[name], n_tokens)
    size = record["block_size"]
    if size is not None and (len(size) != 2 or any(not isinstance(b, int) or not 1 <= b <= 4096 for b in size)):
        raise ValueError(f"part {number} has block size {size!r}; expected two sides from 1 to 4096")
    return {"Ranges": Ranges, "BlockCSR": BlockCSR}[kind](shape=tuple(shape), block_size=size and tuple(size), **fields)


def _read_order(archive, record, n_tokens):
    if record is None:
        return None
    if "list" in record:
        return Order(int(record["n_tokens"]), _member(archive, record["list"]))
    order = Order.affine(record["grid"], record["digits"], record["origin"])
    slots = 1
    for _, size, _ in order.digits:
        slots *= size
    if not 0 <= slots <= 64 * max(n_tokens, 1 << 10) or len(order.origin) != len(order.grid):
        raise ValueError(f"an order of {slots} slots for {n_tokens} tokens is not one that a pattern has")
    return order


def to_scipy(pattern):
    """The pairs as a scipy.sparse.csr_array of bool."""
    import scipy.sparse

    if pattern.batch > 1 or pattern.n_heads > 1:
        raise ValueError(f"the pattern has {pattern.batch} batch items and {pattern.n_heads} heads, a SciPy matrix "
                         "one of each; slice it first, as in pattern[0, 0].to_scipy()")
    rows, cols = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for part in pattern.parts:
        for _, _, q, k in pairs(as_blocks(part)):
            rows.append(q)
            cols.append(k)
    rows, cols = np.concatenate(rows), np.concatenate(cols)
    return scipy.sparse.coo_array((np.ones(rows.size, bool), (rows, cols)), shape=pattern.shape).tocsr()
