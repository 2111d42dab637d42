"""A selection method of your own, used by name: `--method own_method:every_second`.

A method is a function `method(group, quota, context) -> kept`. A group holds the samples that share
one quota, sorted by score: a class, or all samples with `--balance none`. The method returns as
many of its sample ids as the quota says.
"""

import tempfile

import numpy as np
import numpy.typing as npt

import kdcache as kd


def every_second(
    group: kd.Group, quota: int, _context: kd.SelectionContext
) -> npt.NDArray[np.int64]:
    """Keep samples at even steps of the difficulty order, from the easiest to the hardest."""
    steps = np.linspace(0, len(group) - 1, quota).round().astype(int)
    kept: npt.NDArray[np.int64] = group.sample_ids[steps]
    return kept


def main() -> None:
    """Select a quarter of the digits with it."""
    with tempfile.TemporaryDirectory() as workspace:
        kd.pack("digits", workspace=workspace)
        kd.train_teacher(workspace, model="resnet8", epochs=1)
        kd.build_logits(workspace, teacher="resnet8", views=0)
        subset = kd.select(workspace, method="own_method:every_second", keep=0.25)
        print(subset.report)


if __name__ == "__main__":
    main()
