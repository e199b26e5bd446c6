"""Patterns in files: what is written is read, and what is damaged or hostile is refused before it costs anything."""

import io
import json
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import given
from strategies import any_pattern

from sparseattn import Pattern, patterns


@given(pattern=any_pattern())
def test_round_trip(pattern, tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "pattern.npz"
    pattern.save(path)
    assert Pattern.load(path) == pattern


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "pattern.npz"
    random = patterns.bigbird(300, block_size=32, n_heads=2)
    (random & patterns.causal(300) | patterns.strided(300, stride=7)).save(path)
    return path


def rewrite(path, change):
    """Rewrite the members of a file: change(name, bytes) gives new bytes, or None to drop it."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            new = change(name, content)
            if new is not None:
                archive.writestr(name, new)


def array_bytes(x):
    file = io.BytesIO()
    np.lib.format.write_array(file, x, allow_pickle=True)
    return file.getvalue()


def described(change):
    """A rewrite of the description by `change(dict)`."""
    def rewritten(name, content):
        if name != "pattern.npy":
            return content
        record = json.loads(str(np.load(io.BytesIO(content))))
        change(record)
        return array_bytes(np.array(json.dumps(record)))

    return rewritten


def test_a_file_is_plain_npz(saved):
    with np.load(saved, allow_pickle=False) as file:
        assert json.loads(str(file["pattern"]))["version"] == 1
        assert all(file[name].dtype.kind in "iuU" for name in file.files)


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.9, 0.999])
def test_a_cut_file_is_refused(saved, keep):
    whole = saved.read_bytes()
    saved.write_bytes(whole[: int(keep * len(whole)) if keep < 1 else keep])
    with pytest.raises(ValueError, match="not a readable pattern file"):
        Pattern.load(saved)


def test_flipped_bytes_never_give_a_broken_pattern(saved):
    whole, rng, refused = saved.read_bytes(), np.random.default_rng(0), 0
    for at in rng.integers(0, len(whole), 60):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << int(rng.integers(8))
        saved.write_bytes(damaged)
        try:
            Pattern.load(saved).check()
        except ValueError:
            refused += 1
    assert refused > 40


def test_a_missing_member_is_refused(saved):
    rewrite(saved, lambda name, content: None if name.endswith("indices.npy") else content)
    with pytest.raises(ValueError, match=r"not a readable pattern file \(KeyError"):
        Pattern.load(saved)


def test_another_version_is_refused(saved):
    rewrite(saved, described(lambda record: record.update(version=2)))
    with pytest.raises(ValueError, match="written in format 2, and this version reads format 1; update sparseattn"):
        Pattern.load(saved)


def test_something_else_is_refused(tmp_path):
    np.savez(tmp_path / "other.npz", a=np.arange(3))
    with pytest.raises(ValueError, match="not a readable pattern file"):
        Pattern.load(tmp_path / "other.npz")
    with pytest.raises(FileNotFoundError):
        Pattern.load(tmp_path / "nothing.npz")


def test_pickles_are_refused(saved):
    hostile = array_bytes(np.array([{"a": 1}], object))
    rewrite(saved, lambda name, content: hostile if name.endswith("indices.npy") else content)
    with pytest.raises(ValueError, match="expected plain integers"):
        Pattern.load(saved)


def test_a_claim_of_terabytes_takes_no_memory(saved):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<i4", "fortran_order": False, "shape": (1 << 40,)})
    rewrite(saved, lambda name, content: header.getvalue() if name.endswith("indices.npy") else content)
    tracemalloc.start()
    with pytest.raises(ValueError, match="claims 4398046511104 bytes and has 0"):
        Pattern.load(saved)
    assert tracemalloc.get_traced_memory()[1] < 10 << 20
    tracemalloc.stop()


def test_a_compressed_bomb_is_refused(saved):
    with zipfile.ZipFile(saved) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(saved, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(ValueError, match="is compressed; a pattern file is not"):
        Pattern.load(saved)


def test_an_order_of_absurd_length_is_refused(saved):
    def change(record):
        for part in record["parts"]:
            for name in ("q_order", "k_order"):
                if part[name] and "digits" in part[name]:
                    part[name]["digits"] = [[0, 1 << 30, 1], [0, 1 << 30, 1]]

    rewrite(saved, described(change))
    with pytest.raises(ValueError, match="is not one that a pattern has"):
        Pattern.load(saved)


def test_values_out_of_range_are_refused(saved):
    def change(name, content):
        if not name.endswith("indices.npy"):
            return content
        x = np.load(io.BytesIO(content))
        return array_bytes(np.full_like(x, 10**6))

    rewrite(saved, change)
    with pytest.raises(ValueError, match=r"holds a broken pattern: part . of the pattern: indices leave"):
        Pattern.load(saved)
