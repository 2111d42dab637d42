"""Make the public functions of the package: `kdcache.train(...)` is the command `kdcache train`.

A command's options dataclass gives the function its keyword arguments and their documentation, so
each option is described once. The command's module is imported when the function is first called.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, get_args, get_type_hints

from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

from kdcache.errors import ConfigError, in_python
from kdcache.options import CommonOptions, default_workspace

_P = ParamSpec("_P")
_O = TypeVar("_O")
_R = TypeVar("_R")


def keyword_function(options: Callable[_P, _O], run: Callable[[_O], _R]) -> Callable[_P, _R]:
    """Return `run` as a function of the options' own arguments; states the type of `public`."""
    return lambda *args, **kwargs: run(options(*args, **kwargs))


def public(name: str, options: type[CommonOptions], place: str) -> Callable[..., Any]:
    """Return the public function of a command.

    Args:
        name: name of the function.
        options: dataclass of its arguments.
        place: "module:function" of the function that takes these options.
    """
    signature = inspect.signature(options)

    def function(*args: object, **kwargs: object) -> Any:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise TypeError(f"kdcache.{name}(): {error}") from None
        return _load(place)(options(**_checked(options, given)))

    function.__name__ = function.__qualname__ = name
    function.__module__ = "kdcache"
    function.__doc__ = _documentation(options)
    function.__signature__ = _shown_signature(options)  # type: ignore[attr-defined]
    return function


def _load(place: str) -> Callable[[CommonOptions], Any]:
    module, _, attribute = place.partition(":")
    run: Callable[[CommonOptions], Any] = getattr(import_module(module), attribute)
    return run


def _checked(options: type[CommonOptions], given: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments, with paths for texts; check their types, as the command line does.

    Raises:
        ConfigError: if a value has another type, or is none of the allowed words.
    """
    hints = get_type_hints(options)
    return {name: _checked_value(name, value, hints[name]) for name, value in given.items()}


def _checked_value(name: str, value: Any, hint: Any) -> Any:
    if isinstance(value, str) and Path in (hint, *get_args(hint)):
        value = Path(value)
    elif isinstance(value, list) and tuple[str, ...] in (hint, *get_args(hint)):
        value = tuple(value)
    # bool is an int for Python, but nobody means epochs=True.
    fits = not isinstance(value, bool) or hint is bool
    try:
        check_type(value, hint, collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
    except TypeCheckError:
        fits = False
    if not fits:
        raise ConfigError(parameter=name, value=value, rule=_type_name(hint))
    return value


def _type_name(hint: Any) -> str:
    """Return a type as it stands in the signature, without module names."""
    return inspect.formatannotation(hint).replace("pathlib.", "").replace("typing.", "")


def _documentation(options: type[CommonOptions]) -> str:
    """Return the docstring: what the command does, and each argument."""
    docs = field_docs(options)
    lines = [in_python(inspect.cleandoc(options.__doc__ or "")), "", "Args:"]
    for one in fields(options):
        text = f"{one.name}: {in_python(docs[one.name])}"
        lines += textwrap.wrap(text, 92, initial_indent="    ", subsequent_indent="        ")
    return "\n".join(lines)


def _shown_signature(options: type[CommonOptions]) -> inspect.Signature:
    hints = get_type_hints(options)
    parameters = []
    for parameter in inspect.signature(options).parameters.values():
        default = parameter.default
        if parameter.name == "workspace":  # depends on the environment
            default = default_workspace()
        parameters.append(parameter.replace(annotation=hints[parameter.name], default=default))
    return inspect.Signature(parameters)


def field_docs(kind: type) -> dict[str, str]:
    """Return the docstring below each field of a dataclass and of its bases, in one line each."""
    found: dict[str, str] = {}
    for cls in reversed(kind.__mro__[:-1]):
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        assert isinstance(node, ast.ClassDef)  # noqa: S101  (it is the source of a class)
        for field_node, doc in zip(node.body, node.body[1:], strict=False):
            if (
                isinstance(field_node, ast.AnnAssign)
                and isinstance(field_node.target, ast.Name)
                and isinstance(doc, ast.Expr)
                and isinstance(doc.value, ast.Constant)
            ):
                found[field_node.target.id] = " ".join(str(doc.value.value).split())
    return found
