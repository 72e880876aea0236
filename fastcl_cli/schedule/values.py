"""Readers of a setting's values: from words and numbers to typed values, or a fault with its place.

Each reader takes a `Values` and consumes what it needs; `Values.end` then refuses what is left.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from fractions import Fraction
from typing import Literal, TypeVar

from fastcl_cli import config
from fastcl_cli.schedule import ast
from fastcl_cli.schedule.diagnostics import FaultError, did_you_mean, listed, nearest
from fastcl_cli.schedule.reader import Values
from fastcl_cli.schedule.source import clip
from fastcl_cli.schedule.words import MAX_CHOICES, MAX_CHOICES_OF_A_KIND
from fastcl_cli.units import format_decimal
from fastcl_cli.vit_table import OPTIONS, model_names, vit_shape


def read_method(values: Values) -> config.Method:
    word = values.choice(*config.METHODS)
    return next(method for method in config.METHODS if method == word)


_LIMITS = {
    "embed_dim": (8, 16_384),
    "depth": (1, 200),
    "num_heads": (1, 256),
    "patch_size": (1, 512),
}


def read_model(values: Values) -> config.VitShape:
    name = values.peek()
    if not isinstance(name, ast.Word):
        raise values.wrong("a model's name")
    names = model_names()
    if name.text not in names:
        message = f"`{clip(name.text)}` is not a model that fastcl knows"
        base = name.text.split(".")[0]
        if base in names:
            help = f"write `{base}`: a tag names weights, and pre-training starts from none"
        else:
            match = _model_meant(name.text, names)
            help = f"did you mean `{match}`?" if match else "a timm ViT: vit_small_patch16_224, …"
        raise FaultError("FCS021", name.span, message, help)
    values.next += 1
    options: dict[str, int | float] = {}
    given = values.peek()
    if isinstance(given, ast.Options):
        values.next += 1
        for key, number in given.items:
            options[key.text] = _model_option(key, number, options)
    shape = vit_shape(name.text, options)
    if shape.embed_dim % shape.num_heads:
        message = f"a width of {shape.embed_dim} does not split into {shape.num_heads} heads"
        heads = [n for n in range(1, 257) if shape.embed_dim % n == 0]
        near = sorted(heads, key=lambda n: abs(n - shape.num_heads))[:3]
        help = f"use num_heads={listed([str(n) for n in sorted(near)])}"
        raise FaultError("FCS022", values.setting.span, message, help)
    return shape


def _model_meant(text: str, names: Collection[str]) -> str | None:
    """The model whose name goes on where ``text`` ends, at ImageNet's usual size and patch where
    there is one; else the one that is most like it; None where none is."""
    usual = next((n for n in (f"{text}_224", f"{text}_patch16_224") if n in names), None)
    longer = sorted((n for n in names if n.startswith(f"{text}_")), key=lambda n: (len(n), n))
    return usual or next(iter(longer), None) or nearest(text, names)


def _model_option(key: ast.Word, number: ast.Number, given: dict[str, int | float]) -> int | float:
    if key.text not in OPTIONS:
        message = f"`{clip(key.text)}` is not an option of a model"
        raise FaultError("FCS009", key.span, message, did_you_mean(key.text, OPTIONS, "options"))
    if key.text in given:
        raise FaultError("FCS011", key.span, f"`{key.text}` stands twice", "remove one of them")
    value = number.value
    if key.text == "mlp_ratio":
        if number.percent or not Fraction(1, 8) <= value <= 32:
            help = "a number from 0.125 to 32"
            raise FaultError("FCS010", number.span, f"`mlp_ratio` cannot be {number.text}", help)
        return float(value)
    low, high = _LIMITS[key.text]
    if number.percent or value.denominator != 1 or not low <= value <= high:
        help = f"a whole number from {low} to {high:,}"
        raise FaultError("FCS010", number.span, f"`{key.text}` cannot be {number.text}", help)
    return int(value)


def whole(low: int, high: int) -> Callable[[Values], int]:
    return lambda values: values.whole(low, high)


def real(low: str, high: str, *, above: bool = False) -> Callable[[Values], float]:
    return lambda values: float(values.number(low, high, above=above))


def probabilities(values: Values, count: int) -> tuple[float, ...]:
    return tuple(float(values.number("0", "1")) for _ in range(count))


def read_on_off(values: Values) -> bool:
    return values.choice("on", "off") == "on"


def read_locals(values: Values) -> config.Locals:
    return config.Locals(values.whole(0, 64), values.whole(8, 4096))


def read_data(values: Values) -> str:
    value = values.peek()
    if isinstance(value, ast.Word) and (
        "." in value.text or "_" in value.text or nearest(value.text, ["digits"]) is None
    ):
        message = f"`{clip(value.text)}` is a word, not a path"
        help = f'a path stands in double quotes: {values.name} "{clip(value.text)}";'
        raise FaultError("FCS009", value.span, message, help)
    if isinstance(value, ast.Word):
        return values.choice("digits")
    if not isinstance(value, ast.Text):
        raise values.wrong("a path in double quotes or `digits`")
    if not value.value.strip():
        help = f'{values.name} "train.beton";'
        raise FaultError("FCS009", value.span, "the path is empty", help)
    values.next += 1
    return value.value


def read_lr(values: Values) -> config.LearningRate:
    rate = float(values.number("0", "100", above=True))
    per = values.whole(1, 10**9) if values.keyword("per") else None
    return config.LearningRate(rate, per)


def read_decay(values: Values) -> config.Decay:
    word = values.choice("cosine", "poly", "constant")
    kind: Literal["cosine", "poly", "constant"] = "cosine"
    power = 1.0
    if word == "constant":
        return config.Decay("constant", 1.0, 0.0)
    if word == "poly":
        kind = "poly"
        power = float(values.number("0", "10", above=True))
    to = float(values.number("0", "100")) if values.keyword("to") else 0.0
    return config.Decay(kind, power, to)


def read_duration(values: Values) -> config.Duration:
    value = values.peek()
    if isinstance(value, ast.Number) and value.percent:
        if value.value > 100:
            raise FaultError("FCS010", value.span, f"{value.text} is more than all", "0% to 100%")
        values.next += 1
        return config.Duration(value.value, "percent")
    amount = values.number("0", "1000000000")
    unit = values.choice("epochs", "steps", also="; or a share, as in `10%`")
    if unit == "steps":
        if amount.denominator != 1:
            assert value is not None
            raise FaultError("FCS010", value.span, "steps are whole", "write a whole number")
        return config.Duration(amount, "steps")
    return config.Duration(amount, "epochs")


def read_interval(values: Values) -> config.Duration | None:
    """A duration above 0, or ``none``."""
    if values.keyword("none"):
        return None
    value = values.peek()
    if not isinstance(value, ast.Number):
        raise values.wrong("a number or `none`")
    interval = read_duration(values)
    if interval.value == 0:
        message = f"`{values.name}` cannot be every {value.text}"
        raise FaultError("FCS010", value.span, message, "a number above 0, or `none`")
    return interval


def read_epochs(values: Values) -> float:
    amount = float(values.number("0", "1000000"))
    values.require("epochs")
    return amount


def read_length(values: Values) -> config.Duration:
    amount = values.number("0", "1000000", above=True)
    values.require("epochs")
    return config.Duration(amount, "epochs")


def ramp(high: str) -> Callable[[Values], config.Ramp]:
    """``A`` or ``A -> B``, each in [0, high]."""

    def read(values: Values) -> config.Ramp:
        start = float(values.number("0", high))
        return config.Ramp(start, float(values.number("0", high)) if values.arrow() else start)

    return read


def read_clip(values: Values) -> float | None:
    if values.is_number():
        return float(values.number("0", "1000000", above=True))
    if not values.keyword("none"):
        raise values.wrong("a number or `none`")
    return None


def read_teacher_temperature(values: Values) -> config.TeacherTemperature:
    start = float(values.number("0", "10", above=True))
    if not values.arrow():
        return config.TeacherTemperature(start, start, 0.0)
    end = float(values.number("0", "10", above=True))
    values.require("in")
    return config.TeacherTemperature(start, end, read_epochs(values))


def read_betas(values: Values) -> tuple[float, float]:
    return float(values.number("0", "0.999999")), float(values.number("0", "0.999999"))


def read_head(values: Values) -> tuple[int, ...]:
    sizes = [values.whole(1, 10**6), values.whole(1, 10**6)]
    if values.is_number():
        sizes.append(values.whole(2, 10**7))
    return tuple(sizes)


def read_share(values: Values) -> tuple[float, float]:
    """Least and greatest share of an image's area."""
    first = values.peek()
    low = values.number("0", "1", above=True)
    high = values.number("0", "1", above=True)
    if low > high:
        assert first is not None
        message = f"`{values.name}` goes from {format_decimal(low)} down to {format_decimal(high)}"
        raise FaultError("FCS010", first.span, message, "write the smaller share first")
    return float(low), float(high)


def read_jitter(values: Values) -> config.Jitter:
    brightness, contrast, saturation = (float(values.number("0", "10")) for _ in range(3))
    hue = float(values.number("0", "0.5"))
    probability = float(values.number("0", "1"))
    return config.Jitter(brightness, contrast, saturation, hue, probability)


def read_per_view(values: Values) -> tuple[float, ...]:
    """Probabilities for the first and second global view and, with a third, the local ones."""
    count = 3 if sum(isinstance(v, ast.Number) for v in values.setting.values) > 2 else 2
    return probabilities(values, count)


def words(*allowed: str) -> Callable[[Values], str]:
    choices: Sequence[str] = allowed
    return lambda values: values.choice(*choices)


def read_decode(values: Values) -> int | None:
    if values.is_number():
        return values.whole(8, 4096)
    if not values.keyword("none"):
        raise values.wrong("a whole number or `none`")
    return None


def drop_share(number: ast.Number) -> Fraction:
    """The share of patch tokens to drop, in [0, 1), that ``0.5`` or ``50%`` is.

    Raises:
        FaultError: FCS010 where it is none.
    """
    share = number.value / 100 if number.percent else number.value
    if not 0 <= share < 1:
        help = "a share from 0 to below 1, such as 0.5 or 50%"
        raise FaultError("FCS010", number.span, f"`drop` cannot be {number.text}", help)
    return share


def read_choices(values: Values) -> config.Choices:
    values.require("drop")
    drop = _different(values, _read_drop)
    values.require("patch")
    patch = _different(values, lambda values: values.whole(1, 4096))
    count, most = len(drop) * len(patch), max(len(drop), len(patch))
    if not 2 <= count <= MAX_CHOICES or most > MAX_CHOICES_OF_A_KIND:
        message = f"{len(drop)} x {len(patch)} settings are no choice"
        if count > 1:
            message = f"{len(drop)} x {len(patch)} settings are too many to choose from"
        help = (
            f"from 2 to {MAX_CHOICES}: every drop with every patch, "
            f"at most {MAX_CHOICES_OF_A_KIND} of either"
        )
        raise FaultError("FCS010", values.setting.span, message, help)
    return config.Choices(tuple(sorted(drop)), tuple(sorted(patch)))


def _read_drop(values: Values) -> Fraction:
    value = values.peek()
    if not isinstance(value, ast.Number):
        raise values.wrong("a share to drop")
    values.next += 1
    return drop_share(value)


_T = TypeVar("_T", int, Fraction)


def _different(values: Values, read: Callable[[Values], _T]) -> list[_T]:
    """One number or more, none twice."""
    found: list[_T] = []
    while not found or values.is_number():
        place = values.peek()
        number = read(values)
        if number in found:
            assert isinstance(place, ast.Number)
            message = f"{place.text} stands twice in `{values.name}`"
            raise FaultError("FCS011", place.span, message, "remove one of them")
        found.append(number)
    return found


def read_gradient_error(values: Values) -> int | Literal["auto"] | None:
    if values.is_number():
        steps = values.whole(1, 10**9)
        values.require("steps")
        return steps
    return "auto" if values.choice("auto", "none") == "auto" else None
