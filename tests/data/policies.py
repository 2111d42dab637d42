"""Any policy that may be written down, for property tests."""

from __future__ import annotations

from hypothesis import strategies as st

from kdcache.data.policy import Policy


def _finite(low, high, *, exclude_min=True):
    return st.floats(low, high, allow_nan=False, exclude_min=exclude_min)


def _ranges(numbers):
    return st.tuples(numbers, numbers).map(sorted).map(tuple)


@st.composite
def policies(draw):
    """Draw a policy, half of them with changes of pixels."""
    kind = draw(st.sampled_from(["clean", "pad-crop", "rrc"]))
    if kind == "clean":
        return Policy(kind)
    options = {"flip": draw(st.booleans())}
    if draw(st.booleans()):
        factors = _ranges(_finite(0, 10, exclude_min=False))
        for name in ("brightness", "contrast", "saturation"):
            options[name] = draw(factors)
        options["erase"] = draw(_finite(0, 1))
        options["erase_scale"] = draw(_ranges(_finite(0, 1)))
        options["erase_ratio"] = draw(_ranges(_finite(0.01, 100)))
    if kind == "pad-crop":
        return Policy(kind, padding=draw(st.integers(0, 40)), **options)
    scale, ratio = draw(_ranges(_finite(0, 1))), draw(_ranges(_finite(0.01, 100)))
    return Policy(kind, scale=scale, ratio=ratio, **options)
