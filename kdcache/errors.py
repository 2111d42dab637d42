"""Define every error that kdcache raises on purpose.

KDCacheError
  ConfigError(ValueError)          a setting is outside its range           exit status 2
  DatasetError                     the images or the beton are not usable   exit status 1
  TeacherError                     the teacher is missing or does not fit   exit status 1
  WeightsError                     a file of weights is not usable          exit status 1
  CacheMismatchError(ValueError)   a file was made from other inputs        exit status 1
  CacheIncompleteError             a build has not finished                 exit status 1
  CacheCorruptError                stored bytes are missing or damaged      exit status 1
  TrainingError                    training cannot continue                 exit status 1

A message names the value, the rule and the remedy, in one line.
"""


class KDCacheError(Exception):
    """Base class of all errors below."""


class ConfigError(KDCacheError, ValueError):
    """A setting is outside its range."""


class DatasetError(KDCacheError):
    """The images or the beton are not usable."""


class TeacherError(KDCacheError):
    """The teacher is missing, cannot be used, or does not fit the data."""


class WeightsError(KDCacheError):
    """A file of weights is damaged, or does not fit the model."""


class CacheMismatchError(KDCacheError, ValueError):
    """A file was made from other inputs than those it is used with."""


class CacheIncompleteError(KDCacheError):
    """A build has not finished; the same command continues it."""


class CacheCorruptError(KDCacheError):
    """Stored bytes are missing or differ from their checksum."""


class TrainingError(KDCacheError):
    """Training cannot continue."""
