"""The form of a JSON value that a file should hold, and what to say of one that has another."""

from typing import Any

from bignas_jax.errors import FileError

# A form is a type (int, float, str or bool; a float may be written as an integer), None for null, a dictionary of the
# names that an object must have and their forms, a list with the form of all entries, or a tuple of possible forms.
Form = Any

_WORDS = {int: "an integer", float: "a number", str: "a string", bool: "true or false", None: "null"}


def check_form(value: Any, form: Form, where: str = "") -> None:
    """Refuses a value of another form. Objects may have more names.

    Args:
      value: as `files.read_json` gives it.
      form: what it should be.
      where: the value's place in its file, for the message.
    Raises:
      FileError: the first place where the value has another form.
    """
    if isinstance(form, tuple):
        if not any(_is(value, one) for one in form):
            raise FileError(_found(value, form, where))
        check_form(value, next(one for one in form if _is(value, one)), where)
    elif not _is(value, form):
        raise FileError(_found(value, form, where))
    elif isinstance(form, dict):
        for name, inner in form.items():
            place = f"{where}.{name}" if where else name
            if name not in value:
                raise FileError(f"{place}: found nothing, expected {_words(inner)}")
            check_form(value[name], inner, place)
    elif isinstance(form, list):
        for number, entry in enumerate(value):
            check_form(entry, form[0], f"{where}[{number}]")


def _is(value: Any, form: Form) -> bool:
    """Whether a value is of the outermost kind of a form."""
    if isinstance(form, dict | list):
        return isinstance(value, type(form))
    if form is None or value is None:
        return value is form
    if isinstance(value, bool):
        return form is bool
    return isinstance(value, int | float if form is float else form)


def _found(value: Any, form: Form, where: str) -> str:
    return f"{where}: found {value!r}, expected {_words(form)}".removeprefix(": ")


def _words(form: Form) -> str:
    if isinstance(form, tuple):
        return " or ".join(map(_words, form))
    return "an object" if isinstance(form, dict) else "a list" if isinstance(form, list) else _WORDS[form]
