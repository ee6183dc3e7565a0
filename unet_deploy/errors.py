"""Every error a user can act on; imports nothing of ours.

::

    UnetDeployError
    ├── UsageError (ValueError)                          exit 2
    │   ├── TileNotLegalError        tile-not-legal
    │   ├── UnknownNameError         unknown-name
    │   └── ConfigurationError       configuration
    ├── InputDataError                                   exit 3
    │   ├── VolumeNotFoundError      volume-not-found      (FileNotFoundError)
    │   ├── NotAVolumeError          not-a-volume          (ValueError)
    │   ├── SeveralImagesError       several-images        (ValueError)
    │   ├── UnsupportedMetadataError unsupported-metadata  (ValueError)
    │   ├── UnsupportedAxesError     unsupported-axes      (ValueError)
    │   ├── UnsupportedDtypeError    unsupported-dtype     (TypeError)
    │   ├── UnsupportedCodecError    unsupported-codec     (ValueError)
    │   ├── UnboundedMetadataError   unbounded-metadata    (ValueError)
    │   ├── ReadError                read-failed           (OSError)
    │   ├── ChannelError             channel               (ValueError)
    │   ├── ValueRangeError          value-range           (ValueError)
    │   ├── OutputExistsError        output-exists         (FileExistsError)
    │   ├── OutputPathError          output-path           (ValueError)
    │   ├── OutputBusyError          output-busy           (OSError)
    │   ├── JournalError             journal               (ValueError)
    │   ├── NoSpaceError             no-space              (OSError)
    │   ├── TrainingDataError        training-data         (ValueError)
    │   └── ShapeMismatchError       shape-mismatch        (ValueError)
    ├── ModelError                                       exit 4
    │   ├── ModelNotFoundError       model-not-found       (FileNotFoundError)
    │   ├── NotAnArtifactError       not-an-artifact       (ValueError)
    │   ├── UnsafeModelError         unsafe-model          (ValueError)
    │   ├── CardError                card                  (ValueError)
    │   ├── CheckpointError          checkpoint            (ValueError)
    │   ├── AdoptionError            adoption              (ValueError)
    │   ├── TestTensorError          test-tensor
    │   └── ParityError              parity
    ├── RequirementError                                 exit 5
    │   ├── MissingDependencyError   missing-dependency    (ModuleNotFoundError)
    │   ├── DeviceError              device
    │   │   └── DeviceMemoryError    device-memory         (MemoryError)
    │   └── SchedulerError           scheduler             (ConnectionError)
    ├── PartialResultError           partial-result      exit 6
    └── InterruptedRunError          interrupted         exit 130

An exception that is none of these is our bug: the command line exits 70 and says how to report it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, ClassVar, Self


class UnetDeployError(Exception):
    """Root of all errors a user can act on.

    Parameters
    ----------
    headline
        What came and what was expected, in one line.
    *details
        Where each came from; one line each.
    fix
        What to do, if possible the very words to type.
    """

    code: ClassVar[str] = "unet-deploy"
    exit_code: ClassVar[int] = 70

    def __init__(self, headline: str, *details: str, fix: str) -> None:
        self.headline = headline
        self.details = details
        self.fix = fix
        super().__init__(headline)

    def __str__(self) -> str:
        return "\n".join([self.headline, *(f"  {line}" for line in self.details), f"  fix: {self.fix}"])

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception.__reduce__ would call cls(*args) and lose the keyword; Dask pickles errors.
        return _rebuild, (type(self), self.headline, self.details, self.fix)

    @classmethod
    def of_unknown_name(cls, kind: str, came: str, known: Iterable[str]) -> Self:
        """Say that `came` is no `kind`, which ones exist, and the nearest."""
        names = sorted(known)
        close = difflib.get_close_matches(came, names, n=1)
        return cls(
            f"unknown {kind}: {came!r}",
            f"known: {', '.join(names) or '(none)'}",
            fix=f"did you mean {close[0]!r}?" if close else f"use one of the known {kind} names",
        )


def _rebuild(cls: type[UnetDeployError], headline: str, details: tuple[str, ...], fix: str) -> UnetDeployError:
    return cls(headline, *details, fix=fix)


class UsageError(UnetDeployError, ValueError):
    """A flag or argument that cannot be meant."""

    code = "usage"
    exit_code = 2


class TileNotLegalError(UsageError):
    """A tile side that the network's pooling cannot halve evenly."""

    code = "tile-not-legal"


class UnknownNameError(UsageError):
    """A name that is not one of ours; the message says the nearest."""

    code = "unknown-name"


class ConfigurationError(UsageError):
    """One or more settings are wrong; the message lists all of them."""

    code = "configuration"


class InputDataError(UnetDeployError):
    """The data given, or the place for the result, cannot be used."""

    code = "input-data"
    exit_code = 3


class VolumeNotFoundError(InputDataError, FileNotFoundError):
    """There is nothing at the path."""

    code = "volume-not-found"


class NotAVolumeError(InputDataError, ValueError):
    """Something is at the path, but no Zarr array or OME-Zarr image."""

    code = "not-a-volume"


class SeveralImagesError(InputDataError, ValueError):
    """The group holds several images and none was chosen."""

    code = "several-images"


class UnsupportedMetadataError(InputDataError, ValueError):
    """Metadata that this version cannot honour; ignoring it would be wrong."""

    code = "unsupported-metadata"


class UnsupportedAxesError(InputDataError, ValueError):
    """Axes that cannot be read as a subset of t, c, z, y, x."""

    code = "unsupported-axes"


class UnsupportedDtypeError(InputDataError, TypeError):
    """A data type the runtime does not read."""

    code = "unsupported-dtype"


class UnsupportedCodecError(InputDataError, ValueError):
    """A codec outside the allow-list."""

    code = "unsupported-codec"


class UnboundedMetadataError(InputDataError, ValueError):
    """Metadata that asks for more memory than any real volume needs."""

    code = "unbounded-metadata"


class ReadError(InputDataError, OSError):
    """A chunk could not be read or decoded."""

    code = "read-failed"


class ChannelError(InputDataError, ValueError):
    """The volume's channels and the model's do not match."""

    code = "channel"


class ValueRangeError(InputDataError, ValueError):
    """Values outside the range they must lie in: grey values of another range than trained on, labels below 0."""

    code = "value-range"


class OutputExistsError(InputDataError, FileExistsError):
    """Something already stands where the result should go."""

    code = "output-exists"


class OutputPathError(InputDataError, ValueError):
    """The result cannot be written at that place."""

    code = "output-path"


class OutputBusyError(InputDataError, OSError):
    """Another run writes to the output."""

    code = "output-busy"


class JournalError(InputDataError, ValueError):
    """An unfinished output cannot be continued: its journal is damaged, or of another run."""

    code = "journal"


class NoSpaceError(InputDataError, OSError):
    """The disk cannot hold the result."""

    code = "no-space"


class TrainingDataError(InputDataError, ValueError):
    """Images and labels that cannot be trained on."""

    code = "training-data"


class ShapeMismatchError(InputDataError, ValueError):
    """A prediction and its truth do not cover the same pixels."""

    code = "shape-mismatch"


class ModelError(UnetDeployError):
    """The model cannot be used."""

    code = "model"
    exit_code = 4


class ModelNotFoundError(ModelError, FileNotFoundError):
    """There is no model file at the path."""

    code = "model-not-found"


class NotAnArtifactError(ModelError, ValueError):
    """The file is no ONNX artifact written by `unet-deploy export`."""

    code = "not-an-artifact"


class UnsafeModelError(ModelError, ValueError):
    """The file holds something a segmentation network has no need of."""

    code = "unsafe-model"


class CardError(ModelError, ValueError):
    """The model card is missing something, or says what this version does not know."""

    code = "card"


class CheckpointError(ModelError, ValueError):
    """The training checkpoint cannot be loaded."""

    code = "checkpoint"


class AdoptionError(ModelError, ValueError):
    """Another program's network cannot be made one that streams; the message names what stands in the way."""

    code = "adoption"


class TestTensorError(ModelError):
    """The engine does not reproduce the card's test tensor on this device."""

    __test__ = False  # not a pytest class
    code = "test-tensor"


class ParityError(ModelError):
    """An exported file does not compute what its parent computes."""

    code = "parity"


class RequirementError(UnetDeployError):
    """Something that was asked for is not on this machine."""

    code = "requirement"
    exit_code = 5


class MissingDependencyError(RequirementError, ModuleNotFoundError):
    """An optional package is not installed."""

    code = "missing-dependency"

    @classmethod
    def of_extra(cls, module: str, *, extra: str, purpose: str) -> Self:
        """Name the extra of ours that brings `module`."""
        return cls(
            f"{purpose} needs the package {module!r}, which is not installed",
            f"it comes with the extra '{extra}'",
            fix=f"pip install 'unet-deploy[{extra}]'",
        )


class DeviceError(RequirementError):
    """The device asked for cannot be used."""

    code = "device"


class DeviceMemoryError(DeviceError, MemoryError):
    """The device has no memory left for a batch; a smaller one may fit."""

    code = "device-memory"


class SchedulerError(RequirementError, ConnectionError):
    """The Dask scheduler asked for cannot be reached."""

    code = "scheduler"


class PartialResultError(UnetDeployError):
    """The run ended, but some blocks failed; the output says which."""

    code = "partial-result"
    exit_code = 6
    result: Any = None
    """What there is of it: a `runtime.SegmentationResult`, where it is of one volume."""


class InterruptedRunError(UnetDeployError):
    """The user broke off a run that can be continued; the message says how."""

    code = "interrupted"
    exit_code = 130
