"""Make the public functions of the package: `kdcache.train(...)` is the command `kdcache train`.

A command's options dataclass gives the function its keyword arguments and their documentation, so
each option is described once. The command's module is imported when the function is first called.
"""

from __future__ import annotations

import ast
import inspect
import numbers
import re
import textwrap
from collections.abc import Callable
from dataclasses import fields
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, get_type_hints

from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

from kdcache.errors import ConfigError, in_python
from kdcache.options import CommonOptions, default_workspace

_P = ParamSpec("_P")
_O = TypeVar("_O")
_R = TypeVar("_R")


def keyword_function(options: Callable[_P, _O], run: Callable[[_O], _R]) -> Callable[_P, _R]:
    """Return `run` as a function of the options' own arguments, for the type of `public`."""
    return lambda *args, **kwargs: run(options(*args, **kwargs))


def public(
    name: str, options: type[CommonOptions], place: str, command_place: str
) -> Callable[..., Any]:
    """Return the public function of a command.

    Args:
        name: name of the function.
        options: dataclass of its arguments.
        place: "module:function" of the function that takes these options.
        command_place: that of the command line, whose errors `place` raises too.
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
    returns, raises = _outcome(place)
    if place != command_place:
        raises = "\n".join(filter(None, (raises, _outcome(command_place)[1])))
    function.__doc__ = _documentation(options, returns, raises)
    signature = _shown_signature(options, returns)
    function.__signature__ = signature  # type: ignore[attr-defined]
    shown = signature.parameters.values()
    function.__annotations__ = {one.name: one.annotation for one in shown}
    # An expression, which typing.get_type_hints evaluates: the type may load heavy libraries.
    function.__annotations__["return"] = f"_load({place.partition(':')[0] + ':' + returns!r})"
    return function


def _outcome(place: str) -> tuple[str, str]:
    """Return the type that a function returns and the `Raises` of its docstring, as texts.

    They are read from the source, because importing the module would load heavy libraries.
    """
    module, _, name = place.partition(":")
    spec = find_spec(module)
    assert spec is not None  # noqa: S101  (the module is one of the package)
    assert spec.origin is not None  # noqa: S101
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    functions = (node for node in tree.body if isinstance(node, ast.FunctionDef))
    found = next(node for node in functions if node.name == name)
    assert found.returns is not None  # noqa: S101  (mypy requires it)
    _, _, raises = (ast.get_docstring(found) or "").partition("Raises:\n")
    return ast.unparse(found.returns), raises


def _load(place: str) -> Callable[[CommonOptions], Any]:
    module, _, attribute = place.partition(":")
    run: Callable[[CommonOptions], Any] = getattr(import_module(module), attribute)
    return run


def _checked(options: type[CommonOptions], given: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments as the command line gives them, and check their types.

    Raises:
        ConfigError: if a value has another type, or is none of the allowed words.
    """
    hints = get_type_hints(options)
    return {name: _checked_value(name, value, hints[name]) for name, value in given.items()}


def _checked_value(name: str, value: Any, hint: Any) -> Any:
    if name == "workspace" and value == "":
        raise ConfigError(parameter=name, value=value, rule="the path of a folder")
    if name == "workspace" and isinstance(value, str):
        value = Path(value)
    elif isinstance(value, Path) and name != "workspace":
        value = str(value)  # it may as well be a name or a URL
    elif isinstance(value, (list, tuple)):
        value = tuple(str(item) if isinstance(item, Path) else item for item in value)
    if isinstance(value, numbers.Number) and hasattr(value, "item"):
        value = value.item()  # a number of numpy
    # bool is an int for Python, but nobody means epochs=True.
    fits = not isinstance(value, bool) or hint is bool
    try:
        check_type(value, hint, collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
    except TypeCheckError:
        fits = False
    if not fits:
        rule = f"{_type_name(hint)}, not {type(value).__name__}"
        raise ConfigError(parameter=name, value=value, rule=rule, remedy=_how_to_pass(value, hint))
    return value


def _how_to_pass(value: object, hint: Any) -> str | None:
    """Return what to pass instead of an object of this library or a function, if it is one."""
    if "str" not in _type_name(hint):
        return None
    if callable(value):
        return "Pass it as module:name"
    if not type(value).__module__.startswith("kdcache."):
        return None
    path = getattr(value, "path", None) or getattr(getattr(value, "report", None), "path", None)
    if path is not None:
        return f"Pass its path, {path}"
    if hasattr(value, "save"):
        return "Save it, and pass the path of its file"
    return f"Pass its text, {value}" if hasattr(value, "parse") else None


def _type_name(hint: Any) -> str:
    """Return a type as it stands in the signature, without module names."""
    return inspect.formatannotation(hint).replace("pathlib.", "").replace("typing.", "")


def _documentation(options: type[CommonOptions], returns: str, raises: str) -> str:
    """Return the docstring: what the command does, each argument, the result and the errors."""
    docs = field_docs(options)
    lines = [_help_in_python(inspect.cleandoc(options.__doc__ or "")), "", "Args:"]
    for one in fields(options):
        text = f"{one.name}: {_help_in_python(docs[one.name])}"
        lines += textwrap.wrap(text, 92, initial_indent="    ", subsequent_indent="        ")
    lines += ["", "Returns:", f"    {returns}"]
    if raises:
        lines += ["", "Raises:", in_python(raises)]
    return "\n".join(lines)


def _help_in_python(text: str) -> str:
    """Return a help text with the arguments of a call from Python."""
    text = text.replace("Repeat it for several", "Give a list for several")
    text = re.sub(r"Repeat it for (an ensemble|each)", r"Give a list for \1", text)
    return in_python(re.sub(r"(?<!=)\bSOURCE\b", "source", text))


def _shown_signature(options: type[CommonOptions], returns: str) -> inspect.Signature:
    hints = get_type_hints(options)
    parameters = []
    for parameter in inspect.signature(options).parameters.values():
        default = parameter.default
        if parameter.name == "workspace":  # depends on the environment
            default = default_workspace()
        parameters.append(parameter.replace(annotation=hints[parameter.name], default=default))
    return inspect.Signature(parameters, return_annotation=returns)


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
