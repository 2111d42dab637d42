"""Define every error that kdcache raises on purpose.

KDCacheError
  ConfigError(ValueError)          a setting is outside its range           exit status 2
  DatasetError                     the images or the beton are not usable   exit status 1
  TeacherError                     the teacher is missing or does not fit   exit status 1
  WeightsError                     a file of weights is not usable          exit status 1
  MissingFileError(FileNotFoundError)  a file is not where it should be     exit status 1
  CacheMismatchError(ValueError)   a file was made from other inputs        exit status 1
  CacheIncompleteError             a build has not finished                 exit status 1
  CacheCorruptError                stored bytes are missing or damaged      exit status 1
  TrainingError                    training cannot continue                 exit status 1

A message names the value, the rule and the remedy, in one line. Texts name options as a shell does
(`--keep 0.7`). `str(error)` words them for Python (`keep=0.7`); the command line prints
`error.in_shell()`.
"""

from __future__ import annotations

import re
from os import PathLike

__all__ = [
    "CacheCorruptError",
    "CacheIncompleteError",
    "CacheMismatchError",
    "ConfigError",
    "DatasetError",
    "KDCacheError",
    "MissingFileError",
    "TeacherError",
    "TrainingError",
    "WeightsError",
]

MAX_SHOWN = 200
"""Maximum length of an object in a message, in characters; texts and paths are never cut."""

FLAGS = frozenset(
    {
        *(
            "allow_mixed",
            "compact_labels",
            "compile",
            "dry_run",
            "features",
            "kd",
            "overwrite",
            "repair",
            "reshape",
        ),
        *("resume", "retry", "standardise", "tensorboard"),
    }
)
"""Options that a shell gives without a value."""

_MENTION = re.compile(
    r"""
    (?P<command>\b(?:kdcache\ [a-z]|pip\ |apt-get\ |torchrun\ |srun\ |ulimit\ )
        .*?(?=;\ |\.\ |,?\ or\ |\)|$))
    | (?<![\w-])--(?P<no>no-)?(?P<option>[a-z][a-z-]*[a-z])
        (?: \ (?P<given>\d+(?:\.\d+)?\b | [A-Z]{2,}\b | [\w.-]*[:/][\w.:/-]+)
          | \ is\ (?!given|not|missing)(?P<value>[^,\s]+)(?=[,\ ]))?
    """,
    re.VERBOSE,
)
"""A command, which stays as it is, or an option with its value."""


class KDCacheError(Exception):
    """Base class of all errors below.

    Give either a text, or a parameter with its value and the rule that it breaks or the problem
    that it meets.

    Attributes:
        parameter: name of the argument in Python, such as `min_per_class`; None if the error is not
            about an argument.
        value: what was given for it; None if nothing was.
        rule: what was expected, such as "a number in (0, 1]".
        problem: what is wrong, where no rule says it, such as "torch finds no CUDA device".
        remedy: what to do.
    """

    def __init__(
        self,
        text: str = "",
        *,
        parameter: str | None = None,
        value: object = None,
        rule: str | None = None,
        problem: str | None = None,
        remedy: str | None = None,
    ) -> None:
        super().__init__(text)
        self.text = text
        self.parameter = parameter
        self.value = value
        self.rule = rule
        self.problem = problem
        self.remedy = remedy
        self.args = (str(self),)  # what repr() shows; without a text it would be empty

    def __str__(self) -> str:
        """Return the message with the names of arguments in Python."""
        if self.text or self.parameter is None:
            return in_python(self._line(self.text))
        shown = " is not given, " if self.value is None else f"={_shown(self.value)}: "
        return in_python(self._line(f"{self.parameter}{shown}{self._complaint}"))

    def in_shell(self) -> str:
        """Return the message with the names of options on the command line."""
        if self.text or self.parameter is None:
            return self._line(self.text)
        option = f"--{self.parameter.replace('_', '-')}"
        shown = " is not given, " if self.value is None else f" {_shown(self.value)}: "
        return self._line(f"{option}{shown}{self._complaint}")

    @property
    def _complaint(self) -> str:
        return f"expected {self.rule}" if self.problem is None else self.problem

    def _line(self, text: str) -> str:
        return f"{text}. {self.remedy}" if self.remedy else text


def shell_line(error: BaseException) -> str:
    """Return the message of any error in one line, as the command line prints it."""
    text = error.in_shell() if isinstance(error, KDCacheError) else str(error)
    return " ".join(text.split())


def python_line(error: BaseException) -> str:
    """Return the message of any error in one line, with arguments as Python or TOML names them."""
    return " ".join(str(error).split())


def in_python(text: str) -> str:
    """Return a text with the options that it mentions as arguments of a call from Python.

    Commands stay as they are, so that they can be pasted into a shell.
    """

    def replace(found: re.Match[str]) -> str:
        if found["command"]:
            return found[0]
        name = found["option"].replace("-", "_")
        if found["no"]:
            return f"{name}=False"
        value = found["given"] or found["value"] or ("True" if name in FLAGS else None)
        return f"{name}={value}" if value else name

    return _MENTION.sub(replace, text)


def _shown(value: object) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    if not isinstance(value, (str, tuple, PathLike)):
        # A message is one line, but any object can be given for an argument from Python.
        text = " ".join(text.split())
        text = text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]} ..."
    return text or "''"


class ConfigError(KDCacheError, ValueError):
    """A setting is outside its range."""


class DatasetError(KDCacheError):
    """The images or the beton are not usable."""


class TeacherError(KDCacheError):
    """The teacher is missing, cannot be used, or does not fit the data."""


class WeightsError(KDCacheError):
    """A file of weights is damaged, or does not fit the model."""


class MissingFileError(KDCacheError, FileNotFoundError):
    """A file of kdcache is not where it should be."""


class CacheMismatchError(KDCacheError, ValueError):
    """A file was made from other inputs than those it is used with."""


class CacheIncompleteError(KDCacheError):
    """A build has not finished; the same command continues it."""


class CacheCorruptError(KDCacheError):
    """Stored bytes are missing or differ from their checksum."""


class TrainingError(KDCacheError):
    """Training cannot continue."""


def __dir__() -> list[str]:
    """Return the errors, for tab completion."""
    return __all__
