"""Small files that would unpack into more than fits: refused by the sizes that they declare."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from metatrain.core import InputError
from metatrain.data import archives, arrays, columns, row_files


def npz(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


def npy(array: Any, shape: tuple[int, ...] | None = None) -> bytes:
    """The bytes of an array; with `shape` its header says another one."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": array.dtype.str, "fortran_order": False, "shape": shape or array.shape}
    )
    return file.getvalue() + array.tobytes()


def test_arrays_are_what_was_saved(tmp_path: Path) -> None:
    x = np.arange(6.0).reshape(2, 3).T
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", x=x, y=np.array([[1], [2], [3]]))
        found, targets = arrays.read(tmp_path / "a.npz")
        assert (found == x).all()
        assert targets == [1, 2, 3]


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ({"x.npy": npy(np.zeros(2), (10**15,))}, "x has 16 bytes, and 8,000,000,000,000,000 by"),
        ({"x.npy": npy(np.zeros(2), (1,))}, "x has 16 bytes, and 8 by its header"),
        ({"x.npy": bytes(1 << 25)}, r"in x.npy \(it has 33,554,432 bytes, and at most"),
        ({f"{i}.npy": b"" for i in range(1001)}, "it has 1,001 arrays, and at most 1,000"),
        (
            {"x.npy": npy(np.zeros(1)), "y.npy": npy(np.zeros(10**7 + 1, np.uint8))},
            "10,000,001 targets, expected at most 10,000,000",
        ),
        ({"x.npy": npy(np.zeros(10**6 + 1, np.uint8))}, "1,000,001 examples, expected at most"),
        ({"x.npy": b"\x93NUMPY\x07\x00"}, "cannot be read as NPZ"),
        ({"z.npy": npy(np.zeros(1))}, "has no array x"),
        ({"x.npy": npy(np.zeros(2), (-2, -1))}, "x has a negative size in its shape"),
        ({"x.npy": npy(np.zeros(2, complex))}, "x holds complex numbers"),
        ({"x.npy": npy(np.zeros(1)).replace(b"<f8", b"<zz")}, r"cannot be read as NPZ .{9,200}\)"),
    ],
)
def test_an_array_is_as_large_as_its_header_says_and_bounded(
    members: dict[str, bytes], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrays, "MOST_BYTES", 1 << 24)
    with pytest.raises(InputError, match=sentence):
        arrays.read(npz(tmp_path / "a.npz", members))


def test_a_header_is_not_repeated_in_full(tmp_path: Path) -> None:
    header = f"{{'descr': '{'q' * 9000}', 'fortran_order': False, 'shape': (1,)}}\n".encode()
    data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    with pytest.raises(InputError, match="cannot be read as NPZ") as refused:
        arrays.read(npz(tmp_path / "a.npz", {"x.npy": data}))
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_member_that_unpacks_without_a_bound_is_refused(method: int, tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", {"x.npy": bytes(1 << 20)}, method)
    with pytest.raises(InputError, match=r"x\.npy .it is not compressed by deflate"):
        arrays.read(path)


def test_a_member_that_holds_more_than_it_declares_is_refused(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", {"x.npy": bytes(1 << 20)})
    data = path.read_bytes()
    path.write_bytes(data.replace((1 << 20).to_bytes(4, "little"), (1 << 10).to_bytes(4, "little")))
    with pytest.raises(InputError, match=r"a\.npz is damaged in x.npy"):
        arrays.read(path)


def test_a_large_array_that_is_not_compressed_is_read_in_parts(tmp_path: Path) -> None:
    x = np.zeros((1, archives.MOST_AT_ONCE + 1), np.uint8)
    np.savez(tmp_path / "a.npz", x=x)
    assert arrays.read(tmp_path / "a.npz")[0].nbytes == x.nbytes


def opened(path: Path) -> row_files.File:
    return row_files.opened(str(path), row_files.stamp(str(path)), "group")


def test_a_text_that_a_parquet_file_holds_once_for_all_rows_is_not_unpacked(tmp_path: Path) -> None:
    text = pa.array(["x" * 1_000_000]).dictionary_encode().dictionary
    rows = pa.DictionaryArray.from_arrays(pa.array(np.zeros(5_000, np.int32)), text)
    table = pa.table({"group": rows, "few": ["a"] * 5_000, "price": [1.0] * 5_000})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 1_100_000
    file = opened(tmp_path / "a.parquet")
    assert columns.names(file, "few")[0] == ["a"]
    assert columns.numbers(file, "price").sum() == 5_000
    with pytest.raises(InputError, match=r"'group' of .* unpacks to 5,000,000,000 bytes"):
        columns.names(file, "group")


def test_rows_and_columns_and_unpacked_sizes_are_bounded_by_what_a_file_declares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet.write_table(pa.table({"x": pa.array(np.zeros(10_000_001, bool))}), tmp_path / "rows")
    assert (tmp_path / "rows").stat().st_size < 200_000
    with pytest.raises(InputError, match="has 10,000,001 rows, expected at most 10,000,000"):
        opened(tmp_path / "rows")
    (tmp_path / "columns").write_text(f'"a\n{"," * 10}b",{"," * 10_000}\n1\n')
    with pytest.raises(InputError, match="has 10,002 columns, expected at most"):
        opened(tmp_path / "columns")
    parquet.write_table(pa.table({"x": np.arange(1000.0)}), tmp_path / "unpacked")
    monkeypatch.setattr(row_files, "MOST_UNPACKED", 7999)
    with pytest.raises(InputError, match=r"unpacked unpacks to 9,... bytes, expected at most"):
        opened(tmp_path / "unpacked")


def test_lists_and_tensors_in_a_parquet_file_are_not_read(tmp_path: Path) -> None:
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ones((2, 1000)))
    wide = pa.array([b"1", b"2"], pa.binary(1))
    table = pa.table({"x": [[1.0], [2.0]], "wide": wide, "tensors": tensors})
    parquet.write_table(table, tmp_path / "a")
    for name in table.column_names:
        for read in (columns.names, columns.numbers):
            with pytest.raises(InputError, match=f"'{name}' of .* holds .* values"):
                read(opened(tmp_path / "a"), name)


def test_a_column_has_as_many_rows_as_its_file_says() -> None:
    short = row_files.File(
        "a", (0, 0), "", 3, {"x": pa.float64()}, lambda _: pa.chunked_array([[1.0]])
    )
    with pytest.raises(InputError, match="column 'x' has 1 of 3 rows"):
        columns.numbers(short, "x")
