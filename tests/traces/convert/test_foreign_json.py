"""JSON is read in pieces, wherever these end."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokencake.traces.convert import foreign_json
from tokencake.traces.convert.foreign_json import json_objects
from tokencake.traces.errors import TraceError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.lists(st.dictionaries(st.text(max_size=5), VALUES, max_size=4), max_size=5)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("json") / "values"


def in_pieces(path: Path, piece_bytes: int) -> list[object]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(foreign_json, "CHUNK_BYTES", piece_bytes)
        return [entry.values for entry in json_objects(path)]


@given(
    objects=OBJECTS,
    indent=st.sampled_from([None, 0, 3]),
    escaped=st.booleans(),
    in_list=st.booleans(),
    piece_bytes=st.integers(1, 60),
)
def test_pieces_make_the_same_values(
    scratch: Path, objects: list[object], indent: int | None, escaped: bool, in_list: bool, piece_bytes: int
) -> None:
    whole = [objects] if in_list else objects
    texts = [json.dumps(value, indent=indent, ensure_ascii=escaped) for value in whole]
    scratch.write_text("\n".join(texts), encoding="utf-8", newline="")
    assert in_pieces(scratch, piece_bytes) == objects


@given(objects=OBJECTS, in_list=st.booleans(), piece_bytes=st.integers(1, 60), at=st.floats(0, 1), more=st.binary())
def test_damage_is_told_in_one_line(
    scratch: Path, objects: list[object], in_list: bool, piece_bytes: int, at: float, more: bytes
) -> None:
    text = (json.dumps(objects) if in_list else "\n".join(map(json.dumps, objects))).encode()
    cut = round(at * len(text))
    scratch.write_bytes(text[:cut] + more + text[cut + len(more) :])
    message = str(scratch)
    try:
        in_pieces(scratch, piece_bytes)
    except TraceError as error:
        message = str(error)
    assert message.startswith(str(scratch))
    assert "\n" not in message


def test_lines_and_elements_are_named(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text('\n{"a": 1}\n\n{"a":\n 2} {"a": 3}\n', encoding="utf-8")
    assert [entry.where for entry in json_objects(path)] == [f"{path}:2", f"{path}:4", f"{path}:5"]
    assert next(json_objects(path, file_is_first=True)).where == str(path)
    path.write_text('[{"a": 1},\n {"a": 2}]', encoding="utf-8")
    assert [entry.where for entry in json_objects(path)] == [f"{path}: [0]", f"{path}: [1]"]


def test_where_json_breaks_off_is_named(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text('{"a": 1}\n{"a": [1,\n  2; 3]}\n', encoding="utf-8")
    with pytest.raises(TraceError, match=r":2: expected JSON, but Expecting ',' delimiter: line 3 column 4$"):
        list(json_objects(path))


@pytest.mark.parametrize("piece_bytes", [7, 6000, 100_000])
def test_a_number_that_is_too_long_is_told_with_its_length(tmp_path: Path, piece_bytes: int) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"a": 1}\n{"a": "' + "8" * 5000 + '",\n "b": ' + "9" * 5000 + "}\n")
    with pytest.raises(TraceError) as refused:
        in_pieces(path, piece_bytes)
    said = "expected numbers of at most 4300 digits, got one of 5000: line 3"
    assert str(refused.value) == f"{path}:2: {said}"
