"""Features of time series: absolute hours for the encoder's learnable periods, and the gaps.

All of them look backwards only: a point's features do not change when later points come.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

ORIGIN = '2000-01-03T00:00'  # a Monday: whole days and weeks from it are those of the calendar
SECONDS = 3600.0


def series_features(timestamps: Sequence[Any], origin: str = ORIGIN) -> dict[str, np.ndarray]:
    """Timestamps to features of the kind 'temporal'.

    Args:
      timestamps: T points in time, in order: what numpy reads as datetime64 (ISO strings without a
        zone, `datetime`, datetime64), or numbers, which are seconds since 1970.
      origin: where hours are counted from. float32 hours resolve a minute 25 years from it; take an
        origin near the data for finer series.

    Returns:
      `positions [T]` int32; `times [T]` float32, hours since the origin; `values [T, 1]` float32,
      log(1 + hours since the point before), 0 for the first. Stack rows to [B, T].

    Raises:
      ValueError: for timestamps that go backwards or cannot be read.

    Example:
      >>> found = series_features(['2000-01-03T06:00', '2000-01-04T06:00'])
      >>> found['times'].tolist(), found['values'].shape
      ([6.0, 30.0], (2, 1))
    """
    seconds = _seconds(timestamps)
    gaps = np.diff(seconds, prepend=seconds[:1])
    if (gaps < 0).any():
        at = int(np.argmax(gaps < 0))
        raise ValueError(f'timestamps must be in order; number {at} lies before the one before it')
    start = _seconds([origin])[0]
    return {
        'positions': np.arange(len(seconds), dtype=np.int32),
        'times': ((seconds - start) / SECONDS).astype(np.float32),
        'values': np.log1p(gaps / SECONDS).astype(np.float32)[:, None],
    }


def _seconds(timestamps: Sequence[Any]) -> np.ndarray:
    """Seconds since 1970, float64: exact to the microsecond for centuries."""
    given = np.asarray(timestamps)
    if given.ndim != 1:
        raise ValueError(f'timestamps are one sequence [T], got shape {given.shape}')
    if given.dtype.kind in 'iuf':
        seconds = given.astype(np.float64)
    else:
        points = given.astype('datetime64[us]')
        seconds = np.where(np.isnat(points), np.nan, points.astype(np.int64) / 1e6)
    if not np.isfinite(seconds).all():
        raise ValueError('timestamps must all be points in time; some are missing (NaT, NaN)')
    return seconds
