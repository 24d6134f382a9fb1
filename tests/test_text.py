"""Messages that quote what files hold, and the form of JSON."""

import pytest

from bignas_jax.errors import FileError
from bignas_jax.files import DEEPEST, parse_json
from bignas_jax.forms import check_form
from bignas_jax.text import LONGEST, aligned, one_line, shown


def test_a_message_is_one_printable_line_of_bounded_length():
    assert one_line("a\n b\tc") == "a b c"
    assert one_line("\x1b[31mred\x00\u202e\udcff") == r"\x1b[31mred\x00\u202e\udcff"
    long = one_line("begin " + "x" * 10**6 + " end")
    assert long.startswith("begin x") and long.endswith("x end") and " ... " in long and len(long) < LONGEST + 10
    assert shown("ant\nbee") == r"ant\nbee"
    assert "\x1b" not in aligned(["name"], [["\x1b[31m"]]) and aligned(["a"], [["b\n"]]).count("\n") == 2


@pytest.mark.parametrize("text, words", [
    ('{"a": 1, "a": 2}', "found 'a' twice in an object"),
    ('{"a": NaN}', "found the number NaN, expected a finite one"),
    ("1e999", "found the number 1e999"),
    ("9" * 5000, "expected one of 64 bits"),
    (str(2**63), "expected one of 64 bits"),
    ("[" * (DEEPEST + 2) + "]" * (DEEPEST + 2), "too many levels"),
    ("[" * 10**6, "levels"),
    (b"\xff", "not valid JSON"),
    ("", "not valid JSON"),
])  # fmt: skip
def test_json_that_is_none_is_refused(text, words):
    with pytest.raises(FileError, match=words):
        parse_json(text)


def test_json_that_is_json_is_read():
    assert parse_json('{"a": [1, -0.5, null, true, "\\u00e9"]}') == {"a": [1, -0.5, None, True, "é"]}
    assert parse_json(str(2**63 - 1)) == 2**63 - 1
    assert parse_json(b"\xef\xbb\xbf[]") == []


FORM = {"n": int, "x": (float, None), "rows": [{"name": str}], "ok": bool}
GOOD = {"n": 1, "x": 2, "rows": [{"name": "a", "more": 1}], "ok": True}


def test_a_value_of_the_form_is_taken():
    check_form(GOOD, FORM)
    check_form(GOOD | {"x": None, "rows": []}, FORM)


@pytest.mark.parametrize("change, words", [
    ({"n": True}, "n: found True, expected an integer"),
    ({"n": 1.0}, "n: found 1.0, expected an integer"),
    ({"n": None}, "n: found None, expected an integer"),
    ({"x": "1"}, "x: found '1', expected a number or null"),
    ({"ok": 1}, "ok: found 1, expected true or false"),
    ({"rows": {}}, "rows: found {}, expected a list"),
    ({"rows": [{"name": "a"}, {}]}, r"rows\[1\].name: found nothing, expected a string"),
])  # fmt: skip
def test_another_form_is_named_with_its_place(change, words):
    with pytest.raises(FileError, match=f"^{words}$"):
        check_form(GOOD | change, FORM)
