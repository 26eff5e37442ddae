"""Random numbers by counter: word i of a stream is a function of (seed, stream, i) and of nothing else.

A stream has no state, so nothing that a program draws can change what it draws later: evaluating, resuming and
splitting work over processes leave every stream as it was, and each word costs the same. The words
come from SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), in which output i is a bijective mixing of
`key + (i + 1) * gamma`; integer arithmetic makes them the same on every device.
"""

from __future__ import annotations

import torch
from torch import Tensor

_GAMMA = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_MASK = (1 << 64) - 1
_GAMMA_INVERSE = pow(_GAMMA, -1, 1 << 64)

# The streams of one seed of samples. Their numbers are part of the meaning of a seed: never change them.
STREAMS = {'train': 0, 'test': 1, 'other': 2, 'shuffle': 3, 'dropout': 4, 'floors': 5, 'mask': 6, 'noise': 7}


def _signed(x: int) -> int:
    """The int64 with the same 64 bits as the unsigned x."""
    x &= _MASK
    return x - (1 << 64) if x >> 63 else x


def _mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * _MIX_1) & _MASK
    z = ((z ^ (z >> 27)) * _MIX_2) & _MASK
    return z ^ (z >> 31)


def stream_key(seed: int, stream: str, *indices: int) -> int:
    """The key of a stream: a signed 64-bit integer mixed from the seed, the stream's name and optional indices.

    Raises ValueError for a stream that is not in STREAMS.
    """
    if stream not in STREAMS:
        raise ValueError(f'stream={stream!r} is unknown: use one of {", ".join(STREAMS)}')
    key = _mix(seed & _MASK)
    for index in (STREAMS[stream], *indices):
        key = _mix((key + (index + 1) * _GAMMA) & _MASK)
    return _signed(key)


def random_words(key: int | Tensor, counters: Tensor) -> Tensor:
    """Uniform 64-bit words (int64, shaped as `counters`): word `i` of the stream with that key for each counter `i`."""
    if isinstance(key, Tensor):
        # The same words: key = (key / gamma) gamma mod 2^64. A compiler that works out the counters of a graph by
        # itself would multiply them by gamma in whole numbers that have no 64 bits.
        z = (counters + (key * _signed(_GAMMA_INVERSE) + 1)) * _signed(_GAMMA)
    else:
        z = counters * _signed(_GAMMA)
        z += _signed(key + _GAMMA)
    z = _xor_shift(z, 30).mul_(_signed(_MIX_1))
    z = _xor_shift(z, 27).mul_(_signed(_MIX_2))
    return _xor_shift(z, 31)


def uniform(words: Tensor) -> Tensor:
    """Numbers in [0, 1), float64, of uniform words: multiples of 2^-53."""
    return ((words >> 11) & (2**53 - 1)).double() * 2.0**-53


def _xor_shift(z: Tensor, bits: int) -> Tensor:
    # torch shifts int64 arithmetically: the mask clears the copies of the sign bit.
    shifted = z >> bits
    shifted &= (1 << (64 - bits)) - 1
    return z.bitwise_xor_(shifted)


def seeded_generator(seed: int) -> torch.Generator:
    """A generator on the CPU that `seed` alone seeds. Raises ValueError for a seed outside 0..2^32 - 1.

    torch's generator on the CPU uses only the lowest 32 bits of a seed: larger seeds would repeat smaller ones.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f'seed={seed} is out of range: use a whole number from 0 to 2^32 - 1')
    return torch.Generator().manual_seed(seed)


def random_permutation(key: int, size: int) -> Tensor:
    """A uniform random permutation of 0..size-1 (int64): the order that sorts `size` words of the stream."""
    return torch.argsort(random_words(key, torch.arange(size)), stable=True)
