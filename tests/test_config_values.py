from pathlib import Path
from typing import Any, Literal

import pytest

from ray_fer.argument_text import Plain
from ray_fer.config_values import merged, parse_yaml, typed


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[s3://a/b, 007,/c d]", ["s3://a/b", "007", "/c d"]),
        (
            "[a: b, #c, *.d, !e, &f, %g, @h, `i, {j, [k]",
            ["a: b", "#c", "*.d", "!e", "&f", "%g", "@h", "`i", "{j", "[k"],
        ),
        ("[x{1,2}.jpg, [ab]*.png]", ["x{1,2}.jpg", "[ab]*.png"]),
        ("['a,b', \"c\\td\", ' e ', 'it''s', it's]", ["a,b", "c\td", " e ", "it's", "it's"]),
        ("[ ]", []),
        ("[a,]", ["a"]),
        ("[a,,b]", ["a", "", "b"]),
        ("a,b", "a,b"),
        ("[a", "[a"),
        ("[" * 5000, "[" * 5000),
    ],
)
def test_lists_in_an_argument(text: str, parts: Any) -> None:
    assert typed(list[str], Plain(text)) == parts


def test_brackets_are_text_where_a_field_takes_text() -> None:
    assert typed(str, Plain("[a, b]")) == "[a, b]"
    assert typed(dict[str, int] | None, Plain("{a: 01, b: 2}")) == {"a": 1, "b": 2}
    assert typed(str | dict[str, Any], Plain("{a:b}")) == "{a:b}"


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        (int, "010", 10),
        (int | None, "null", None),
        (float, "1e-3", 0.001),
        (float, "1_0", 10.0),
        (bool, "no", "no"),  # pydantic knows what it means
        (int, "0x10", "0x10"),
        (Literal[1, 255], "255", 255),
        (Literal["auto", "cpu"], "auto", "auto"),
        (tuple[int, str], "[1, 02]", [1, "02"]),
        (tuple[float, ...], "[.5, 1]", [0.5, 1]),
        (Any, "007", "007"),
        (list, "[007]", ["007"]),
        (dict, "{a: 007}", {"a": "007"}),
        (Path, "007", "007"),
    ],
)
def test_text_is_read_by_the_type_of_its_field(annotation: Any, text: str, value: Any) -> None:
    found = typed(annotation, Plain(text))
    assert (found, type(found) is Plain) == (value, annotation is Any)


def test_yaml_keeps_what_is_written() -> None:
    found = parse_yaml(
        "a: 2024-11-28\nb: '007'\nc: ~\nd: [1.10, null, no]\n0: &x\n  e: |\n    f\n2: {<<: *x, g: h}\ni: ${y}"
    )
    assert found == {"a": "2024-11-28", "b": "007", "c": None, "d": ["1.10", None, "no"], "0": {"e": "f\n"}} | {
        "2": {"e": "f\n", "g": "h"},
        "i": "${y}",
    }
    assert (type(found["a"]), type(found["b"]), type(found["0"]["e"])) == (Plain, str, str)


def test_mappings_are_merged_and_lists_replaced() -> None:
    base = {"a": {"b": 1, "c": [1, 2]}, "d": 3}
    assert merged(base, {"a": {"c": [4]}, "e": {"f": 5}}) == {"a": {"b": 1, "c": [4]}, "d": 3, "e": {"f": 5}}
    assert merged({"a": {"b": 1}}, {"a": 2}) == {"a": 2}
