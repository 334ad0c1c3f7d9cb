"""Objects of JSON and YAML files as pydantic models; a problem is one line: where, which key, what it must be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from alhvr_trainer.errors import InputError, cut, shown


class Entries(BaseModel):
    """Keys of an object; the description of each key completes the message "it must be ..."."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


AnyEntries = TypeVar("AnyEntries", bound=Entries)


def must(accepts: Callable[[Any], object]) -> AfterValidator:
    """For ``Annotated[str, must(is_name)]``: the value is one that the function accepts."""

    def check(value: Any) -> Any:
        assert accepts(value)
        return value

    return AfterValidator(check)


def validated(kind: type[AnyEntries], content: Any, where: str) -> AnyEntries:
    """The content of a file, checked.

    Args:
        kind: its keys.
        content: as read.
        where: what messages call it.

    Raises:
        InputError: it is not an object, a key is unknown or missing, or a value is not what it must be.

    Example:
        >>> from pydantic import Field
        >>> class Run(Entries):
        ...     seed: int = Field(description="a whole number")
        >>> validated(Run, {"seed": "x"}, "run.json")
        Traceback (most recent call last):
        alhvr_trainer.bundle.scripts.input_error.InputError: run.json: "seed" is 'x'; it must be a whole number
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:
            raise InputError(f"{where} must be an object, found {shown(content)}") from error
        key = str(first["loc"][0])
        if first["type"] == "extra_forbidden":
            known = ", ".join(kind.model_fields)
            raise InputError(f"{where}: unknown key {cut(key)}; valid keys: {known}") from error
        found = f"is {shown(content[key])}" if key in content else "is missing"
        raise InputError(f'{where}: "{key}" {found}; it must be {kind.model_fields[key].description}') from error
