"""Gaussian filtering in d dimensions on the permutohedral lattice, in plain torch.

The lattice is that of A. Adams, J. Baek and M. A. Davis, "Fast High-Dimensional Filtering Using the
Permutohedral Lattice" (2010): points are spread over the d + 1 vertices of the simplex around them
(splat), vertices are blurred along the d + 1 lattice directions, and points read the result back (slice).
Two things differ from the usual implementations. Vertices are found by sorting integer keys instead of by
a hash table, and every pass is one ``embedding_bag`` (a weighted gather), so that the same few lines run
threaded on the CPU and on CUDA, with a fixed order of summation.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor


class _Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


L = TypeVar("L", bound=_Sized)

_PIECE = 256  # longest sum that one bag makes: see Lattice.pieces


@dataclass(frozen=True)
class Lattice:
    """A filter over N points: V lattice vertices, and how points and vertices exchange values.

    Row V of every vertex array is the missing neighbour: it has no points and is always zero.

    vertices, weights: (N, d + 1); the simplex around each point and its barycentric weights, times the
        normalisation n_i = 1 / sqrt((K 1)_i) of the point.
    points, shares: (N (d + 1),); the same pairs ordered by vertex: whom a vertex collects from, and how much.
    starts: where the run of each vertex begins in ``points``; where a vertex has thousands of points (a flat
        picture), its run is cut into bags of at most ``_PIECE`` and ``pieces`` says which bags belong to a vertex.
    neighbours: (d + 1, 2 (V + 1)); the next and the previous vertex of each along each direction.
    """

    vertices: Tensor
    weights: Tensor
    points: Tensor
    shares: Tensor
    starts: Tensor
    pieces: Tensor | None
    neighbours: Tensor

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        return sum(array.nbytes for array in vars(self).values() if array is not None)

    def __call__(self, values: Tensor) -> Tensor:
        """Filter ``values`` (N, A) with n K n, where K is the Gaussian exp(-|f_i - f_j|² / 2), self included."""
        x = _bags(values, self.points, self.starts, self.shares)  # (V + 1 or bags, A)
        if self.pieces is not None:
            x = _bags(x, _arange(len(x), x.device), self.pieces, None)  # (V + 1, A)
        # Blur with [1/2, 1, 1/2]; vertices that are missing are not made, they count as zero.
        starts = _arange(len(x) + 1, x.device, 2)
        for neighbours in self.neighbours:
            if x.shape[1] == 1:  # a bag costs more than its two numbers
                pairs = x[:, 0].index_select(0, neighbours)
                both = (pairs[0::2] + pairs[1::2])[:, None]
            else:
                both = _bags(x, neighbours, starts)  # (V + 1, A)
            x = torch.add(x, both, alpha=0.5, out=both)
        n, corners = self.vertices.shape
        return _bags(x, self.vertices.flatten(), _arange(n + 1, x.device, corners), self.weights.flatten())  # (N, A)


def build(features: Tensor, image: Tensor | None = None) -> Lattice:
    """The normalised Gaussian filter over points with the given features.

    Args:
        features: (d, N) float32, already divided by their standard deviations. Their order decides how
            points on a border between simplices are rounded, and the order of the blur.
        image: (N,) int64; points of different images share no vertex. None = one image.

    Returns:
        The filter n K n with n_i = 1 / sqrt((K 1)_i), Krähenbühl and Koltun's symmetric normalisation.

    Raises:
        ValueError: if the features span too wide a range for 62-bit keys.
    """
    d, n = features.shape
    device = features.device
    quotients, ranks, weights = _simplices(features)  # (d, N), (d + 1, N), (d + 1, N)
    keys = _Keys.of(quotients, 1 if image is None else int(image.max()) + 1)

    # Pixels of one simplex share its d + 1 vertices, so vertex keys are made for distinct simplices only.
    code = keys.pack(quotients)  # (N,)
    if image is not None:
        code += image * keys.span
    simplex = code.clone()
    for rank in ranks[:-1]:  # the last rank follows from the others
        simplex.mul_(d + 1).add_(rank)
    sorted_simplex, order = torch.sort(simplex, stable=True)
    first, group = _groups(sorted_simplex)
    s = len(first)
    one = order.index_select(0, first)  # (S,) a pixel of each simplex
    counts = torch.diff(first, append=first.new_tensor([n])).to(torch.int32)  # (S,)

    # Vertices of remainder k have a key below those of remainder k + 1 in the same image.
    corner = keys.corners(
        code.index_select(0, one), ranks.index_select(1, one), None if image is None else image[one]
    )  # (d + 1, S)
    sorted_corner, entry = torch.sort(corner.flatten(), stable=True)
    head, slot = _groups(sorted_corner)
    vertex_of = torch.empty_like(slot).scatter_(0, entry, slot).view(d + 1, s)
    group_of = torch.empty_like(group).scatter_(0, order, group)  # (N,) the simplex of each pixel
    vertices = vertex_of.T.contiguous().index_select(0, group_of)  # (N, d + 1)

    # Pixels of each vertex: the entries (k, s) of a vertex lie together; expand each to the pixels of s.
    k = torch.arange(d + 1, device=device).repeat_interleave(s).index_select(0, entry)  # quicker than entry // s
    s_of = entry - k * s
    times = counts.index_select(0, s_of)
    begin = torch.cumsum(times, 0)  # int64
    begin -= times
    which = torch.repeat_interleave(times, output_size=n * (d + 1))  # (N (d + 1),) int32
    shift = (first.index_select(0, s_of) - begin).to(torch.int32)
    place = shift.index_select(0, which).add_(_arange(n * (d + 1), device))
    points = order.to(torch.int32).index_select(0, place)
    place = (k * n).to(torch.int32).index_select(0, which).add_(points)
    shares = weights.flatten().index_select(0, place)
    starts = torch.cat([begin.index_select(0, head), begin.new_full((2,), n * (d + 1))])  # (V + 2,)
    starts, pieces = _split(starts)

    near = keys.neighbours(sorted_corner.index_select(0, head))
    lattice = Lattice(vertices, weights.T.contiguous(), points, shares, starts, pieces, near)
    norm = torch.rsqrt(lattice(torch.ones(n, 1, device=device)) + 1e-20)[:, 0]  # (N,)
    lattice.weights.mul_(norm[:, None])
    shares.mul_(norm.index_select(0, points))
    return lattice


class LatticeCache(Generic[L]):
    """The lattices made last, by what they were made of. Those over position alone serve every picture of a size.

    Holds at most ``count`` lattices and ``nbytes`` bytes; the one used longest ago goes first.
    """

    def __init__(self, make: Callable[..., L], count: int = 8, nbytes: int = 512 * 2**20) -> None:
        self.make, self.count, self.nbytes = make, count, nbytes
        self._kept: OrderedDict[tuple[Any, ...], L] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def clear(self) -> None:
        """Forget every lattice."""
        with self._lock:
            self._kept.clear()

    def get(self, *key: Any) -> L:
        """What ``make`` makes of ``key``."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        lattice = self.make(*key)
        with self._lock:
            if lattice.nbytes <= self.nbytes:
                self._kept[key] = lattice
            while len(self._kept) > self.count or sum(x.nbytes for x in self._kept.values()) > self.nbytes:
                self._kept.popitem(last=False)
        return lattice


def positions(height: int, width: int, sxy: float, device: torch.device) -> Tensor:
    """Features (x, y) / sxy of every pixel in raster order: (2, H W) float32."""
    x = torch.arange(width, dtype=torch.float32, device=device).expand(height, width)
    y = torch.arange(height, dtype=torch.float32, device=device)[:, None].expand(height, width)
    return torch.stack([x.flatten(), y.flatten()]).div_(sxy)


def over_position(height: int, width: int, sxy: float, device: torch.device) -> Lattice:
    """The lattice of features (x, y) / sxy on a picture of ``height`` x ``width`` pixels."""
    return build(positions(height, width, sxy, device))


SPATIAL = LatticeCache(over_position)


def stack(lattices: Sequence[Lattice]) -> Lattice:
    """One lattice that filters several pictures, one after another, each by its own lattice."""
    if len(lattices) == 1:
        return lattices[0]
    device = lattices[0].weights.device
    corners = lattices[0].vertices.shape[1]
    sizes = [x.neighbours.shape[1] // 2 - 1 for x in lattices]  # V of each
    total = sum(sizes)
    vertices, points, starts, neighbours = [], [], [], []
    v0 = n0 = 0
    for lattice, v in zip(lattices, sizes, strict=True):
        vertices.append(lattice.vertices + v0)
        points.append(lattice.points + n0)
        runs = (
            lattice.starts
            if lattice.pieces is None
            else lattice.starts[lattice.pieces.clamp(max=len(lattice.starts) - 1)]
        )
        starts.append(runs[:v] + n0 * corners)
        near = lattice.neighbours.view(corners, -1, 2)[:, :v]
        neighbours.append(torch.where(near == v, total, near + v0))  # all share one missing neighbour
        v0, n0 = v0 + v, n0 + len(lattice.vertices)
    missing = torch.full((corners, 1, 2), total, dtype=torch.int32, device=device)
    end = starts[0].new_full((2,), n0 * corners)
    cut, pieces = _split(torch.cat([*starts, end]).long())
    return Lattice(
        torch.cat(vertices),
        torch.cat([x.weights for x in lattices]),
        torch.cat(points),
        torch.cat([x.shares for x in lattices]),
        cut,
        pieces,
        torch.cat([*neighbours, missing], dim=1).flatten(1),
    )


@dataclass(frozen=True)
class _Keys:
    """Integer keys of lattice vertices.

    A vertex of remainder k has d + 1 coordinates (d + 1) q_i + k that sum to zero, so (q_0 .. q_{d-1}, k) name
    it. Its key is (image (d + 1) + k) span + sum_i (q_i - low_i) stride_i, below ``count``.
    """

    low: tuple[int, ...]
    strides: tuple[int, ...]
    span: int
    count: int

    @classmethod
    def of(cls, quotients: Tensor, images: int) -> _Keys:
        """Keys that hold every vertex around ``quotients`` (d, N), and the neighbours of those."""
        d = len(quotients)
        low = quotients.amin(dim=1).long().tolist()
        high = quotients.amax(dim=1).long().tolist()
        strides, span = [], 1
        for a, b in zip(low, high, strict=True):
            strides.append(span)
            span *= b - a + 4  # a corner is up to 1 below, its neighbour 1 below that or 1 above
        if images * span * (d + 1) ** d >= 2**62:
            cells = f"{span:.1e} cells in {d} dimensions"
            raise ValueError(f"lattice: got {cells}, expected to fit 62-bit keys; use a larger sigma")
        return cls(tuple(a - 2 for a in low), tuple(strides), span, images * (d + 1) * span)

    @property
    def dtype(self) -> torch.dtype:
        """Of vertex keys: half the bytes to sort and to look up, where a key and its neighbours' fit."""
        return torch.int32 if self.count + self.span < 2**31 else torch.int64

    def pack(self, quotients: Tensor) -> Tensor:
        """(d, N) quotients -> (N,) int64, sum_i (q_i - low_i) stride_i."""
        code = torch.zeros(quotients.shape[1], dtype=torch.int64, device=quotients.device)
        for q, low, stride in zip(quotients, self.low, self.strides, strict=True):
            code.add_((q - low).long(), alpha=stride)
        return code

    def corners(self, code: Tensor, ranks: Tensor, image: Tensor | None) -> Tensor:
        """Keys of the d + 1 vertices of simplices: codes (S,), ranks (d + 1, S) -> (d + 1, S) of ``dtype``."""
        d = len(self.strides)
        code = code.to(self.dtype)
        # From vertex k - 1 to vertex k every coordinate grows by 1, but the one of rank d + 1 - k falls by d:
        # its quotient falls by 1. The last coordinate has no digit.
        digits = torch.tensor([*self.strides, 0], dtype=self.dtype, device=code.device)[:, None].expand(
            d + 1, len(code)
        )
        drop = torch.empty_like(digits, memory_format=torch.contiguous_format).scatter_(0, ranks.long(), digits)
        keys = torch.empty_like(drop)
        keys[0] = code if image is None else code + image * (d * self.span)
        for k in range(1, d + 1):
            torch.sub(keys[k - 1], drop[d + 1 - k], out=keys[k]).add_(self.span)
        return keys

    def neighbours(self, keys: Tensor) -> Tensor:
        """Sorted vertex keys (V,) -> (d + 1, 2 (V + 1)) int32: next and previous; V where there is none."""
        d, v = len(self.strides), len(keys)
        own = torch.arange(v + 1, dtype=torch.int32, device=keys.device)
        find = _Finder(keys)
        # The next vertex along direction j: all coordinates + 1, coordinate j - d. Remainder d wraps to 0.
        wrap = keys // self.span % (d + 1) == d
        step = keys + torch.where(wrap, sum(self.strides) - d * self.span, self.span)
        table = torch.empty(d + 1, v + 1, 2, dtype=torch.int32, device=keys.device)
        for j, stride in enumerate([*self.strides, 0]):
            following = F.pad(find(step - stride), (0, 1), value=v)  # (V + 1,)
            previous = torch.full_like(own, v).scatter_(0, following.long(), own)
            previous[v] = v  # wherever those without a next one wrote
            torch.stack([following, previous], dim=1, out=table[j])
        return table.flatten(1)


class _Finder:
    """Where given values are in sorted unique keys: a hash table with one entry a slot, and for the rest a search."""

    def __init__(self, keys: Tensor) -> None:
        self.keys = F.pad(keys, (0, 1), value=-1)  # (V + 1,), no value is negative
        self.size = len(keys)
        self.bits = (4 * self.size).bit_length()
        slots = self._slots(keys).long()
        own = torch.arange(self.size, dtype=torch.int32, device=keys.device)
        self.table = torch.full((2**self.bits,), self.size, dtype=torch.int32, device=keys.device)
        self.table.scatter_(0, slots, own)  # of several keys in a slot any one stays; the answers are the same
        lost = self.table.index_select(0, slots) != own
        self.crowded = torch.zeros_like(self.table, dtype=torch.bool).index_fill_(0, slots[lost], True)

    def _slots(self, values: Tensor) -> Tensor:
        # The low bits alone: they scatter keys as evenly as multiplicative hashing did on photographs, and as keys
        # come in order, the table is read almost in order.
        return values.bitwise_and((1 << self.bits) - 1)

    def __call__(self, values: Tensor) -> Tensor:
        """(M,) int64 -> (M,) int32: the place of each value in the keys, their number where it is none of them."""
        slots = self._slots(values)
        place = self.table.index_select(0, slots)
        missed = self.keys.index_select(0, place) != values
        place.masked_fill_(missed, self.size)
        again = missed.logical_and_(self.crowded.index_select(0, slots)).nonzero()[:, 0]
        wanted = values.index_select(0, again)
        at = torch.searchsorted(self.keys[:-1], wanted)
        at = torch.where(self.keys.index_select(0, at) == wanted, at, self.size)
        return place.index_copy_(0, again, at.to(torch.int32))


def _simplices(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The simplex around each point.

    Args:
        features: (d, N) float32.

    Returns:
        Quotients (d, N) float32: coordinates of the simplex's remainder-0 vertex, divided by d + 1, without
        the last. Ranks (d + 1, N) int8: position of each coordinate when the residuals are sorted downwards.
        Barycentric weights (d + 1, N) float32 of the vertices of remainder 0 .. d.
    """
    d, n = features.shape
    # Embed in the plane of R^(d+1) whose coordinates sum to zero; the scale makes d + 1 blurs with
    # [1/2, 1, 1/2] a Gaussian of unit variance.
    elevated = features.new_empty(d + 1, n)
    rest = torch.zeros_like(features[0])
    for i in range(d, 0, -1):
        scaled = features[i - 1] * ((d + 1) * math.sqrt(2 / 3) / math.sqrt(i * (i + 1)))
        torch.sub(rest, scaled, alpha=i, out=elevated[i])
        rest = rest + scaled
    elevated[0] = rest

    quotient = torch.round(elevated / (d + 1))  # (d + 1, N), halves go to even
    excess = quotient.sum(dim=0).to(torch.int8)
    residual = torch.sub(elevated, quotient, alpha=d + 1)
    rank = torch.arange(d + 1, dtype=torch.int8, device=features.device)[:, None].repeat(1, n)
    for i in range(d):
        for j in range(i + 1, d + 1):  # of equal residuals the first ranks first
            less = (residual[i] < residual[j]).view(torch.int8)
            rank[i] += less
            rank[j] -= less
    # Rounding may leave the plane by ``excess`` steps; the coordinates that were rounded most go back.
    rank += excess
    below, above = rank < 0, rank > d
    rank += below.to(torch.int8).sub_(above.to(torch.int8)).mul_(d + 1)
    quotient += below.float().sub_(above.float())

    ascending = list(torch.sub(elevated, quotient, alpha=d + 1).div_(d + 1))
    for end in range(d, 0, -1):  # a sorting network: far quicker than sort() along a dimension this short
        for i in range(end):
            a, b = ascending[i], ascending[i + 1]
            ascending[i], ascending[i + 1] = torch.minimum(a, b), torch.maximum(a, b)
    weights = [1 + ascending[0] - ascending[d]] + [ascending[k] - ascending[k - 1] for k in range(1, d + 1)]
    return quotient[:d], rank, torch.stack(weights)


def _groups(ordered: Tensor) -> tuple[Tensor, Tensor]:
    """Runs of equal values in sorted (N,): where each begins (G,), and the run of every entry (N,)."""
    new = torch.ones_like(ordered, dtype=torch.bool)
    torch.ne(ordered[1:], ordered[:-1], out=new[1:])
    return new.nonzero()[:, 0], torch.cumsum(new, 0, dtype=torch.int32).sub_(1)


def _split(starts: Tensor) -> tuple[Tensor, Tensor | None]:
    """Cut runs longer than ``_PIECE``: (V + 2,) int64 run starts -> bag starts, and the bags of each run or None.

    One bag is summed by one thread, on CUDA too: a flat picture, whose pixels share a few vertices, would
    otherwise wait for a single one.
    """
    lengths = torch.diff(starts)
    if int(lengths.max()) <= _PIECE:
        return starts.to(torch.int32), None
    bags = lengths.add(_PIECE - 1).div(_PIECE, rounding_mode="floor").clamp_(min=1)  # (V + 1,)
    pieces = torch.cat([bags.new_zeros(1), torch.cumsum(bags, 0)])  # (V + 2,)
    run = torch.repeat_interleave(bags)
    within = torch.arange(len(run), device=starts.device) - pieces[run]
    cut = torch.cat([starts[run] + within * _PIECE, starts[-1:]])
    return cut.to(torch.int32), pieces.to(torch.int32)


def _arange(count: int, device: torch.device, step: int = 1) -> Tensor:
    return torch.arange(0, count * step, step, dtype=torch.int32, device=device)


def _bags(values: Tensor, indices: Tensor, starts: Tensor, weights: Tensor | None = None) -> Tensor:
    """Weighted sums of rows: row b is sum over i in [starts[b], starts[b + 1]) of weights[i] values[indices[i]]."""
    return torch.embedding_bag(values, indices, starts, False, 0, False, weights, True)[0]
