"""Every key and value of a TOML text is found where it stands, whatever way it is written."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.positions import KeyPath, Positions

TEXT = '''\
# comment
top = 1
"quoted key" = "x"   # = [ not this
'literal.key' = 'y'
a.b . "c.d" = true
multi = """
[not.a.table]
key = 1
"""
raw = \'\'\'
[[nor.this]] \'\'\'
date = 1979-05-27 07:32:00
array = [
  "one",  # comment with ]
  [2, 3],
  { x = 1, "y z" = { deep = [1, 2] } },
]
inline = { p = 1, q.r = 2 }
empty = []

[table]
key = 1
[ table . "sub table" ]
key = "two\\"quotes]"
[[many]]
name = "first"
[[many.inner]]
v = 1
[[many.inner]]
v = 2
[many.plain]
v = 3
[[many]]
name = "second"
[[many.inner]]
v = 4
'''


@pytest.mark.parametrize(
    ("path", "key", "value"),
    [
        (("top",), (2, 1), (2, 7)),
        (("quoted key",), (3, 1), (3, 16)),
        (("literal.key",), (4, 1), (4, 17)),
        (("a",), (5, 1), (5, 1)),
        (("a", "b"), (5, 3), (5, 3)),
        (("a", "b", "c.d"), (5, 7), (5, 15)),
        (("multi",), (6, 1), (6, 9)),
        (("raw",), (10, 1), (10, 7)),
        (("date",), (12, 1), (12, 8)),
        (("array", 0), (14, 3), (14, 3)),
        (("array", 1, 1), (15, 7), (15, 7)),
        (("array", 2, "x"), (16, 5), (16, 9)),
        (("array", 2, "y z", "deep", 1), (16, 33), (16, 33)),
        (("inline", "p"), (18, 12), (18, 16)),
        (("inline", "q", "r"), (18, 21), (18, 25)),
        (("empty",), (19, 1), (19, 9)),
        (("table",), (21, 1), (21, 1)),
        (("table", "key"), (22, 1), (22, 7)),
        (("table", "sub table", "key"), (24, 1), (24, 7)),
        (("many", 0), (25, 1), (25, 1)),
        (("many", 0, "name"), (26, 1), (26, 8)),
        (("many", 0, "inner", 0, "v"), (28, 1), (28, 5)),
        (("many", 0, "inner", 1, "v"), (30, 1), (30, 5)),
        (("many", 0, "plain", "v"), (32, 1), (32, 5)),
        (("many", 1), (33, 1), (33, 1)),
        (("many", 1, "inner", 0, "v"), (36, 1), (36, 5)),
        (("many", 1, "inner", 0, "not there"), (35, 1), (35, 1)),
        (("nowhere",), (1, 1), (1, 1)),
    ],
)
def test_places(path: KeyPath, key: tuple[int, int], value: tuple[int, int]) -> None:
    tomllib.loads(TEXT)
    positions = Positions(TEXT)
    assert positions.key(path) == key
    assert positions.value(path) == value


def test_line_ends_of_other_systems() -> None:
    positions = Positions('a = 1\r\nb = """\r\nx\r\n"""\r\nc = 2\r\n')
    assert positions.key(("c",)) == (5, 1)


def test_escapes_in_keys() -> None:
    assert Positions('"a\\u0062" = 1').key(("ab",)) == (1, 1)
    assert Positions('x = 1\n"a\\"b" = 1').key(('a"b',)) == (2, 1)


KEYS = st.text("abc", min_size=1, max_size=3) | st.sampled_from(["a b", "x.y", "#", "]", "=", "q'"])
SCALARS = st.integers(0, 99).map(str) | st.sampled_from(
    ["true", '"te]xt"', "'li # t'", '"""m\nl """', "1.5", '"a\\"b"', "''''q'''", '""""q""""', "1979-05-27"]
)


def written(key: str) -> str:
    return key if key.isalnum() else '"' + key + '"'


def values(depth: int = 2) -> st.SearchStrategy[str]:
    if depth == 0:
        return SCALARS
    inner = values(depth - 1)
    arrays = st.lists(inner, max_size=3).map(lambda items: "[ # c ]\n " + ",\n".join(items) + "\n]")
    tables = st.dictionaries(KEYS, inner, max_size=2).map(
        lambda d: "{" + ", ".join(f"{written(k)} = {v}" for k, v in d.items()) + "}"
    )
    return SCALARS | arrays | tables


def leaves(data: object, path: KeyPath = ()) -> list[KeyPath]:
    if isinstance(data, dict):
        return [path, *(leaf for key, value in data.items() for leaf in leaves(value, (*path, key)))]
    if isinstance(data, list):
        return [path, *(leaf for index, value in enumerate(data) for leaf in leaves(value, (*path, index)))]
    return [path]


@settings(deadline=None, max_examples=150)
@given(st.dictionaries(KEYS, values(), min_size=1, max_size=4), st.booleans())
def test_every_value_is_found_where_it_is_written(pairs: dict[str, str], in_array: bool) -> None:
    body = "\n".join(f"{written(key)} = {value}" for key, value in pairs.items())
    text = f"[[t]]\nz = 1\n[[t]]\n{body}\n[[t]]\n" if in_array else body
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return  # a multi-line string inside an inline array may close early: no TOML, no places
    positions = Positions(text)
    lines = text.split("\n")
    for key, value in pairs.items():
        path: KeyPath = ("t", 1, key) if in_array else (key,)
        line, column = positions.value(path)
        assert "\n".join(lines[line - 1 :])[column - 1 :].startswith(value)
    # No item is missing its own place: two items of one array never share one.
    found = [
        positions.value(path) for path in leaves(data) if path and isinstance(path[-1], int) and path[0] != "t"
    ]
    assert len(found) == len(set(found))


@settings(deadline=None)
@given(st.text("ab.=[]{}\"'\n# \\,1", max_size=60))
def test_the_scanner_ends_on_any_text(text: str) -> None:
    positions = Positions(text)
    line, column = positions.key(("a",))
    assert line >= 1
    assert column >= 1
