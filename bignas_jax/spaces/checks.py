"""Checks of the fields of spaces, whose messages begin with the name of the field, and the rounding of widths."""

from typing import Any

LARGEST = 100_000  # channels, pixels or what else a choice counts: what comes after is counted up to it
DEEPEST = 1000  # blocks of a stage


def check_choices(field: str, choices: Any, expected: str, allowed, kinds: type | tuple = int) -> None:
    """Checks a tuple of choices.

    Args:
      field: the field's name.
      choices: the value found.
      expected: what each choice must be, for the message.
      allowed: function of a choice that says whether it may be there.
      kinds: the type of a choice, or some types.
    Raises:
      ValueError: it is no tuple of such choices, or they do not ascend.
    """
    ok = isinstance(choices, tuple) and choices and all(
        isinstance(c, kinds) and not isinstance(c, bool) and allowed(c) and c <= LARGEST for c in choices)
    if not ok or list(choices) != sorted(set(choices)):
        raise ValueError(f"{field}: found {choices!r}, expected a tuple of {expected}, up to {LARGEST:,}, ascending, "
                         "no repeats")


def check_flag(field: str, value: Any) -> None:
    """Raises ValueError if the value is not a boolean."""
    if not isinstance(value, bool):
        raise ValueError(f"{field}: found {value!r}, expected True or False")


def check_stride(field: str, value: Any) -> None:
    """Raises ValueError if the value is not 1 or 2."""
    if isinstance(value, bool) or value not in (1, 2):
        raise ValueError(f"{field}: found {value!r}, expected 1 or 2")


def is_width(value: int) -> bool:
    """Whether it is a number of channels as families round them."""
    return value >= 8 and value % 8 == 0


def is_odd(value: int) -> bool:
    """Whether it is a positive odd number."""
    return value >= 1 and value % 2 == 1


ByBlock = tuple[int, ...] | tuple[tuple[int, ...], ...]


def check_by_block(field: str, choices: Any, blocks: int, expected: str, allowed, kinds: type | tuple = int) -> None:
    """Checks the choices of a stage, or of each of its blocks, as `check_choices` does."""
    if not (isinstance(choices, tuple) and choices and all(isinstance(c, tuple) for c in choices)):
        check_choices(field, choices, expected, allowed, kinds)
        return
    if len(choices) != blocks:
        raise ValueError(f"{field}: found choices of {len(choices)} blocks, expected {blocks}, the largest depth")
    for number, own in enumerate(choices):
        check_choices(f"{field}[{number}]", own, expected, allowed, kinds)


def make_divisible(value: float, divisor: int = 8) -> int:
    """`value` rounded half up to a multiple of `divisor`; the result is at least `divisor` and at least 0.9 `value`.

    The MobileNet family rounds channel counts in this way (Sandler et al., 2018, reference code).
    """
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded
