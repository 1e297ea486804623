"""The compiled engine of the dense CRF: the torch engine's lattice and results, from any thread and process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from tag2mask.file_lock import acquire
from tag2mask.ops import compiled, crf_torch, lattice
from tag2mask.ops import crf as ops
from tag2mask.ops.crf import CRF, dense_crf, engine, preset, unary_from_labels
from tag2mask.ops.crf_labels import select
from tag2mask.types import UserError

needs_numba = pytest.mark.skipif(compiled.trouble() is not None, reason=str(compiled.trouble()))


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Regions with noise: (3, H, W) uint8."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.randint(20, 230, (1, 3, 4, 5), generator=g).float()
    smooth = torch.nn.functional.interpolate(coarse, (height, width))[0]
    return (smooth + torch.randint(-9, 10, (3, height, width), generator=g)).clamp(0, 255).to(torch.uint8)


def noise(height: int, width: int) -> torch.Tensor:
    """Every pixel of a colour of its own."""
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)


def energies(classes: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(100 + seed)
    coarse = torch.randn(1, classes, 5, 6, generator=g)
    return 2 * torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]


@needs_numba
@pytest.mark.parametrize(
    ("image", "sigmas"),
    [
        (picture(37, 300), (20, 20, 5, 5, 5)),  # wider than a tile of pixels
        (noise(60, 70), (3, 3, 1, 1, 1)),  # more vertices than the first hash table and list of keys hold
        (torch.full((3, 30, 40), 90, dtype=torch.uint8), (80, 80, 13, 13, 13)),
        (torch.empty(0, 41, 300, dtype=torch.uint8), (1, 1)),
        (torch.empty(0, 41, 23, dtype=torch.uint8), (3, 3)),
    ],
)
def test_the_lattice_is_the_torch_engines(image, sigmas):
    """Vertices have other numbers; which pixels share them, who is next to whom and all weights are the same."""
    from tag2mask.ops import lattice_loops

    own = lattice_loops.build(image.numpy(), sigmas)
    place = lattice.positions(*image.shape[1:], sigmas[0], torch.device("cpu"))
    truth = lattice.build(torch.cat([place, image.flatten(1).float() / sigmas[-1]]))
    count = len(own.order)
    assert count == truth.neighbours.shape[1] // 2 - 1
    assert np.abs(own.weights - truth.weights.numpy()).max() <= 5e-5
    number = np.full(count + 1, count)  # torch's number of each vertex
    number[own.vertices] = truth.vertices.numpy()
    assert np.array_equal(number[own.vertices], truth.vertices.numpy())
    assert len(set(number.tolist())) == count + 1
    blurred = number[own.order]  # torch's number of each vertex of the blur
    assert sorted(own.order.tolist()) == list(range(count))
    theirs = truth.neighbours.view(len(sigmas) + 1, -1, 2).numpy()[:, blurred]
    assert np.array_equal(number[own.neighbours[0]], theirs[0])  # the first direction reads what the splat left
    assert np.array_equal(np.append(blurred, count)[own.neighbours[1:]], theirs[1:])


@needs_numba
@pytest.mark.parametrize("classes", [1, 2, 3, 5, 6, 9])
@pytest.mark.parametrize("iterations", [0, 1, 3])
def test_both_engines_agree(monkeypatch, classes, iterations):
    image, unary = picture(41, 300), energies(classes, 41, 300)
    check_agreement(monkeypatch, image, unary, CRF((3, 3), (50, 5, 10), iterations))


@needs_numba
@pytest.mark.parametrize("kernels", [((2, 4), None), (None, (40, 10, 6)), (None, None), ((2, 0), (40, 10, 6))])
def test_both_engines_agree_on_single_kernels(monkeypatch, kernels):
    check_agreement(monkeypatch, picture(30, 40), energies(4, 30, 40), CRF(*kernels, 2))


@needs_numba
@pytest.mark.parametrize("image", [noise(40, 50), torch.full((3, 40, 50), 128, dtype=torch.uint8)])
def test_both_engines_agree_on_noise_and_on_a_flat_picture(monkeypatch, image):
    check_agreement(monkeypatch, image, energies(3, 40, 50), preset("clip-es"))


@needs_numba
@pytest.mark.parametrize("prune", [1e-3, 0])
def test_both_engines_agree_on_merged_and_pruned_labels(monkeypatch, prune):
    hard = unary_from_labels(energies(4, 30, 40).argmax(0) * 5, 21)
    check_agreement(monkeypatch, picture(30, 40), hard, preset("irn"), prune)
    unary = energies(6, 30, 40)
    unary[4:] += 25  # far below 1e-3
    unary[3] = unary[2]
    check_agreement(monkeypatch, picture(30, 40), unary, preset("irn"), prune)
    unary[1:] += 25  # one label is left to filter, beside what the others weigh
    check_agreement(monkeypatch, picture(30, 40), unary, preset("irn"), prune)


@needs_numba
def test_both_engines_agree_where_exp_overflows(monkeypatch):
    unary = 30 * energies(3, 20, 30)
    check_agreement(monkeypatch, picture(20, 30), unary, CRF((3, 500), (50, 5, 700), 2), 0)


def check_agreement(monkeypatch, image, unary, crf, prune=1e-3):
    both = []
    for name in ops.ENGINES:
        monkeypatch.setenv("TAG2MASK_CRF", name)
        both.append(dense_crf(image, unary, crf, prune=prune))
    assert (both[0] - both[1]).abs().max() <= 2e-4
    assert (both[0].argmax(0) == both[1].argmax(0)).float().mean() >= 0.9999
    assert torch.allclose(both[0].sum(0), torch.ones(image.shape[1:]), atol=1e-5)


@needs_numba
def test_exp_is_exp():
    from tag2mask.ops.crf_loops import _exp

    x = np.linspace(-86.9, 80, 400_000, dtype=np.float32)
    y = np.append(x, np.float32([-88, -1e4, 0]))
    _exp(y, len(y))
    assert np.abs(y[: len(x)] / np.exp(x.astype(np.float64)) - 1).max() <= 3e-7
    assert y[len(x) :].tolist() == [0, 0, 1]


@needs_numba
def test_threads_change_no_byte():
    from tag2mask.ops import lattice_loops

    work = [(picture(50, 60, seed), energies(2 + seed % 4, 50, 60, seed)) for seed in range(12)]
    alone = [dense_crf(image, unary, preset("clip-es")) for image, unary in work]
    lattice_loops.SPATIAL.clear()
    with ThreadPoolExecutor(6) as pool:
        together = pool.map(lambda each: dense_crf(*each, preset("clip-es")), work)
        assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_one_switch_chooses_the_engine(monkeypatch):
    monkeypatch.delenv("TAG2MASK_CRF", raising=False)
    monkeypatch.setattr(ops, "trouble", lambda: None)
    assert engine() == "loops"
    assert engine("cuda") == "torch"
    monkeypatch.setenv("TAG2MASK_CRF", "torch")
    assert engine() == "torch"
    monkeypatch.setenv("TAG2MASK_CRF", "fast")
    with pytest.raises(UserError, match="TAG2MASK_CRF=fast: expected loops or torch"):
        engine()
    monkeypatch.setattr(ops, "trouble", lambda: "numba is missing")
    monkeypatch.setenv("TAG2MASK_CRF", "loops")
    with pytest.raises(UserError, match="TAG2MASK_CRF=loops: numba is missing"):
        engine()
    monkeypatch.setenv("TAG2MASK_CRF", "")
    assert engine() == "torch"


def test_a_numba_that_does_not_import_is_no_engine(tmp_path, monkeypatch):
    (tmp_path / "numba.py").write_text("raise ImportError('Numba needs NumPy 1.0 or less')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "numba"]:
        monkeypatch.delitem(sys.modules, name)
    why = compiled.trouble.__wrapped__()
    assert "Numba needs NumPy 1.0 or less" in why
    assert "tag2mask[fast]" in why


@needs_numba
@pytest.mark.parametrize(
    ("njit", "why"),
    [
        (lambda **_: lambda function: 1 / 0, "does not compile a loop (division by zero); run: pip install"),
        (lambda **_: lambda function: lambda number: number, "is wrong (1 + 1 gave 1)"),
    ],
)
def test_a_numba_that_does_not_compile_is_no_engine(monkeypatch, njit, why):
    monkeypatch.setattr("numba.njit", njit)
    assert why in compiled.trouble.__wrapped__()


def test_without_numba_it_is_the_torch_engine(monkeypatch):
    image, unary = picture(20, 30), energies(3, 20, 30)
    monkeypatch.delenv("TAG2MASK_CRF", raising=False)
    monkeypatch.setattr(ops, "trouble", lambda: "numba is missing")
    monkeypatch.setitem(sys.modules, "tag2mask.ops.crf_loops", None)  # importing it would fail
    truth = crf_torch.mean_field([image], [select(unary.flatten(1), 1e-3)], preset("irn"))[0]
    assert torch.equal(dense_crf(image, unary, preset("irn")).flatten(1), truth)


@needs_numba
def test_keys_that_do_not_fit_go_to_the_torch_engine(monkeypatch):
    """A hundredth of a grey level: all colours would span more cells than 62 bits number; this picture's do not."""
    from tag2mask.ops import lattice_loops

    image, unary = picture(20, 30) // 64, energies(3, 20, 30)
    crf = CRF(None, (0.05, 0.01, 3), 1)
    with pytest.raises(OverflowError, match="62-bit"):
        lattice_loops.build(image.numpy(), (0.05, 0.05, 0.01, 0.01, 0.01))
    found = dense_crf(image, unary, crf)
    monkeypatch.setenv("TAG2MASK_CRF", "torch")
    assert torch.equal(found, dense_crf(image, unary, crf))


COMPILE = """
import hashlib, sys
import numpy as np
from tag2mask.ops import crf, lattice
assert "numba" not in sys.modules, "numba is loaded before it is needed"
from tag2mask.ops import crf_loops, lattice_loops
values = np.random.default_rng(0).random((4, 8), np.float32)
order, neighbours = np.arange(3, dtype=np.uint32), np.full((2, 3, 2), 3, np.uint32)
lattice_loops.blur(values, values.copy(), values.copy(), order, neighbours)
crf_loops._exp(values[0], 8)
kept = all(f.stats.cache_hits for f in (lattice_loops.blur, crf_loops._exp))
print(hashlib.sha256(values.tobytes()).hexdigest(), "kept" if kept else "compiled")
"""

FORK = """
import os, hashlib
import torch
from tag2mask.ops import crf

def digest():
    g = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, 20, 30), generator=g, dtype=torch.uint8)
    q = crf.dense_crf(image, torch.randn(2, 20, 30, generator=g), crf.preset("irn"))
    return hashlib.sha256(q.numpy().tobytes()).hexdigest()

print(digest(), flush=True)
for _ in range(2):
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)  # as a worker of a data loader does
        print(digest(), flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


def start(script: str, **environment: str) -> subprocess.Popen[str]:
    env = {**os.environ, "TAG2MASK_CRF": "loops", "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(
        [sys.executable, "-c", script], env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def said(process: subprocess.Popen[str]) -> list[str]:
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out.split()


@needs_numba
def test_processes_share_what_one_compiled(tmp_path):
    """Two at once begin with nothing on disk; the next finds it there; all give the same bytes."""
    at_once = [start(COMPILE, NUMBA_CACHE_DIR=str(tmp_path)) for _ in range(2)]
    digests = {said(process)[0] for process in at_once}
    digest, what = said(start(COMPILE, NUMBA_CACHE_DIR=str(tmp_path)))
    assert what == "kept"
    assert digests == {digest}
    assert [each.name.startswith("tag2mask-") for each in tmp_path.iterdir()] == [True]


def test_what_is_damaged_is_thrown_away_and_made_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(compiled, "_cache", lambda: tmp_path)
    monkeypatch.setattr(compiled, "_begun", set())
    folder = tmp_path / "ops_1"
    folder.mkdir()
    kept = [folder / "blur-1.py311.nbi", folder / "blur-1.py311.1.nbc"]
    for file in kept:
        file.write_bytes(b"half")

    def run():
        if kept[0].exists():
            raise EOFError("ran out of input")
        with (tmp_path / "lock").open("w") as lock, pytest.raises(OSError):  # noqa: PT011
            acquire(lock.fileno(), wait=False)  # nobody else compiles meanwhile
        return "made"

    assert compiled.first_alone(4, run) == "made"
    assert not any(file.exists() for file in kept)
    kept[0].write_bytes(b"half")
    with pytest.raises(EOFError):  # what fails later is no matter of the cache
        compiled.first_alone(4, run)
    assert kept[0].exists()

    def no_locks(descriptor, wait):
        raise OSError(95, "not supported")

    monkeypatch.setattr(compiled, "acquire", no_locks)
    assert compiled.first_alone(8, lambda: "made") == "made"

    def too_large():
        raise OverflowError

    with pytest.raises(OverflowError):
        compiled.first_alone(1, too_large)
    assert kept[0].exists()


@needs_numba
def test_numba_that_compiles_nothing_is_trouble(monkeypatch):
    from numba import config

    monkeypatch.setattr(config, "DISABLE_JIT", 1)
    assert "NUMBA_DISABLE_JIT is set" in compiled.trouble.__wrapped__()


@needs_numba
def test_where_no_folder_can_be_written_it_compiles_anew():
    assert said(start(COMPILE, NUMBA_CACHE_DIR=os.devnull + "/below"))[1] == "compiled"


@needs_numba
def test_forked_workers_give_the_same_bytes():
    digests = said(start(FORK))
    assert len(digests) == 3
    assert len(set(digests)) == 1


def test_where_machine_code_is_kept(tmp_path, monkeypatch):
    package = tmp_path / "package"
    package.mkdir()
    for path in Path(compiled.__file__).parent.glob("*.py"):
        shutil.copy(path, package)
    monkeypatch.setattr(compiled, "__file__", str(package / "compiled.py"))
    monkeypatch.setattr(compiled, "_user_cache", lambda: tmp_path / "home" / "cache")
    find = compiled._cache.__wrapped__
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    first = find()
    assert first.parent == package / "__pycache__"
    (package / "row_loops.py").write_text("another")
    assert find() != first  # what was compiled of other functions is not taken
    shutil.rmtree(package / "__pycache__")
    (package / "__pycache__").write_text("a folder cannot be made here")
    assert find().parent == tmp_path / "home" / "cache"
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(compiled, "_user_cache", lambda: tmp_path / "file" / "cache")
    assert find() is None
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "chosen"))
    assert find().parent == tmp_path / "chosen"
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file" / "chosen"))
    assert find() is None  # the user's choice is not overruled
