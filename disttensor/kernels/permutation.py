"""The entries of a pseudo-random permutation, in machine code; what it is, `disttensor.data.permutation` says."""

from __future__ import annotations

import functools

import numpy as np

from disttensor.kernels import machine
from disttensor.kernels.native import NativeCall


def permute(out: np.ndarray, positions: np.ndarray, keys: np.ndarray, bits: int, n: int) -> None:
    """Encrypt each number by a Feistel network until it is below n.

    Parameters
    ----------
    out, positions : int64 array, shape (k,)
        Contiguous.
    keys : uint32 array
        Those of the rounds, an even number.
    bits : int
        Of the network's numbers: the lower half, rounded up, and the upper one are its two halves.
    n : int
        At most 2**63.
    """
    low_bits = (bits + 1) // 2
    words = out, positions, keys, len(keys), low_bits, (1 << low_bits) - 1, (1 << (bits // 2)) - 1, n - 1
    NativeCall(_address(), words, len(out))()


@functools.cache
def _address() -> int:
    return machine.load(_TEXT)["permute"]


# The hash of C. Wellons, "Prospecting for Hash Functions", 2018.
_TEXT = """
define internal i32 @mix(i32 %x, i32 %key) alwaysinline nounwind {
  %a = add i32 %x, %key
  %b = lshr i32 %a, 16
  %c = xor i32 %a, %b
  %d = mul i32 %c, 2146121005
  %e = lshr i32 %d, 15
  %f = xor i32 %d, %e
  %g = mul i32 %f, 2221713035
  %h = lshr i32 %g, 16
  %i = xor i32 %g, %h
  ret i32 %i
}

%words = type { ptr, ptr, ptr, i64, i64, i64, i64, i64 } ; out, positions, keys, rounds, low bits, masks, largest

define void @permute(ptr %arguments, i64 %start, i64 %stop) nounwind {
entry:
  %words = load %words, ptr %arguments
  %out = extractvalue %words %words, 0
  %positions = extractvalue %words %words, 1
  %keys = extractvalue %words %words, 2
  %rounds = extractvalue %words %words, 3
  %low.bits = extractvalue %words %words, 4
  %low.mask64 = extractvalue %words %words, 5
  %high.mask64 = extractvalue %words %words, 6
  %largest = extractvalue %words %words, 7
  %low.mask = trunc i64 %low.mask64 to i32
  %high.mask = trunc i64 %high.mask64 to i32
  br label %each
each:
  %i = phi i64 [%start, %entry], [%i.next, %store]
  %position.at = getelementptr i64, ptr %positions, i64 %i
  %position = load i64, ptr %position.at
  br label %walk
walk:
  %number = phi i64 [%position, %each], [%encrypted, %joined]
  %number32 = trunc i64 %number to i32
  %low.first = and i32 %number32, %low.mask
  %upper = lshr i64 %number, %low.bits
  %high.first = trunc i64 %upper to i32
  br label %round
round:
  %r = phi i64 [0, %walk], [%r.next, %round]
  %low = phi i32 [%low.first, %walk], [%low.next, %round]
  %high = phi i32 [%high.first, %walk], [%high.next, %round]
  %even.at = getelementptr i32, ptr %keys, i64 %r
  %odd.at = getelementptr i32, ptr %even.at, i64 1
  %even = load i32, ptr %even.at
  %odd = load i32, ptr %odd.at
  %of.low = call i32 @mix(i32 %low, i32 %even)
  %to.high = and i32 %of.low, %high.mask
  %high.next = xor i32 %high, %to.high
  %of.high = call i32 @mix(i32 %high.next, i32 %odd)
  %to.low = and i32 %of.high, %low.mask
  %low.next = xor i32 %low, %to.low
  %r.next = add i64 %r, 2
  %more = icmp ult i64 %r.next, %rounds
  br i1 %more, label %round, label %joined
joined:
  %high64 = zext i32 %high.next to i64
  %low64 = zext i32 %low.next to i64
  %shifted = shl i64 %high64, %low.bits
  %encrypted = or i64 %shifted, %low64
  %outside = icmp ugt i64 %encrypted, %largest
  br i1 %outside, label %walk, label %store
store:
  %out.at = getelementptr i64, ptr %out, i64 %i
  store i64 %encrypted, ptr %out.at
  %i.next = add i64 %i, 1
  %any = icmp slt i64 %i.next, %stop
  br i1 %any, label %each, label %end
end:
  ret void
}
"""
