"""Data sets: their laws, splits and files, and the one-line errors."""

import io
import math
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from fastebm.app.config import ConfigError
from fastebm.app.data import NAMES, DataError, load
from fastebm.app.features import train_classifier


@pytest.mark.parametrize("name", NAMES)
def test_named_sets_are_float32_in_their_box_and_seeded(name):
    a, b, other = load(name, 200, seed=3), load(name, 200, seed=3), load(name, 200, seed=4)
    assert a.train.dtype == torch.float32 and len(a.train) == 200
    lo, hi = a.clamp
    for x in (a.train, a.test):
        assert lo <= x.min() and x.max() <= hi
    assert torch.equal(a.train, b.train) and torch.equal(a.test, b.test)
    assert a.fingerprint() == b.fingerprint() != other.fingerprint()


def test_digits_are_split_without_overlap_and_scaled():
    digits = load("digits")
    assert digits.event_shape == (1, 8, 8) and digits.is_image
    assert len(digits.train) + len(digits.test) == 1797 and len(digits.test) == 359
    assert digits.train.min() == 0 and digits.train.max() == 1
    everything = torch.cat([digits.train, digits.test]).flatten(1)
    assert len(everything.unique(dim=0)) == 1797  # all digits differ, so none is in both parts


@pytest.mark.parametrize("name", ["ring", "25gaussians", "rings", "moons", "gaussian"])
def test_density_integrates_to_one_and_fits_the_samples(name):
    data = load(name, 5000)
    lo, hi = data.clamp
    side = lo + (hi - lo) * (torch.arange(150) + 0.5) / 150
    points = torch.cartesian_prod(side, side)
    log_density = data.log_prob(points)
    p = log_density.exp() * ((hi - lo) / 150) ** 2
    assert p.sum().item() == pytest.approx(1, abs=1e-4)
    # Gibbs: the mean of -log p over samples is the entropy, up to 5 standard errors
    log_p = data.log_prob(data.train)
    entropy = -(p * log_density).sum()
    assert abs(-log_p.mean() - entropy) < 5 * log_p.std() / math.sqrt(len(log_p)) + 1e-3


def test_ring_has_its_geometry():
    data = load("ring8", 5000)
    assert data.name == "ring" and data.n_modes == len(data.centres) == 8 and data.std == 0.15
    assert torch.allclose(data.centres.norm(dim=1), torch.tensor(2.0))
    distance = torch.cdist(data.train, data.centres).min(1).values
    # in 2-D the squared distance to the centre has mean 2 std^2 and standard deviation 2 std^2
    assert abs(distance.square().mean().item() - 0.045) < 5 * 0.045 / math.sqrt(5000)


def test_gaussian_dimension():
    assert load("gaussian", 100, dim=10).event_shape == (10,)
    assert load("gaussian", 100).event_shape == (2,)


def test_unknown_density():
    with pytest.raises(DataError, match="not known"):
        load("digits").log_prob(torch.zeros(1, 64))


@pytest.mark.parametrize("writer", ["npy", "npz", "pt"])
def test_files(tmp_path, writer):
    x = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    path = tmp_path / f"x.{writer}"
    if writer == "pt":
        torch.save(torch.from_numpy(x), path)
    else:
        np.save(path, x) if writer == "npy" else np.savez(path, anything=x)
    data = load(str(path))
    assert data.event_shape == (3,) and len(data.train) == 40 and len(data.test) == 10
    rows = torch.cat([data.train, data.test])
    assert torch.equal(rows.sort(0).values, torch.from_numpy(x).sort(0).values)
    assert data.clamp[0] < x.min() and data.clamp[1] > x.max()


def test_own_test_part_and_uint8_pictures(tmp_path):
    path = tmp_path / "pictures.npz"
    x = np.arange(50 * 4 * 4 * 3, dtype=np.uint8).reshape(50, 4, 4, 3)
    np.savez(path, x_train=x, x_test=x[:45], y_train=np.zeros(50))
    data = load(str(path))
    assert data.event_shape == (3, 4, 4) and data.clamp == (0.0, 1.0)
    assert len(data.train) == 50 and len(data.test) == 45
    q = torch.from_numpy(x[:45]).permute(0, 3, 1, 2)
    assert torch.allclose(data.test, (q + 0.5) / 256) and data.bin_width == 1 / 256
    np.save(tmp_path / "grey.npy", x[..., 0])
    assert load(str(tmp_path / "grey.npy")).event_shape == (1, 4, 4)


BAD_FILES = {
    "one axis": np.zeros(10),
    "five axes": np.zeros((50, 1, 2, 2, 2)),
    "too few": np.zeros((39, 2)),
    "empty": np.zeros((50, 0)),
    "not finite": np.full((50, 2), np.nan),
    "too large": np.full((50, 2), 1e300),  # not finite in float32
    "text": np.array([["a", "b"]] * 50),
    "complex": np.ones((50, 2), dtype=complex),
    "constant": np.ones((50, 2)),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_arrays_are_one_line(tmp_path, case):
    path = tmp_path / "bad.npy"
    np.save(path, BAD_FILES[case])
    with pytest.raises(DataError) as error:
        load(str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", ["npy", "npz", "pt"])
@pytest.mark.parametrize("content", [b"", b"not an array at all", b"PK\x03\x04cut short"])
def test_unreadable_files_are_one_line(tmp_path, suffix, content):
    path = tmp_path / f"bad.{suffix}"
    path.write_bytes(content)
    with pytest.raises(DataError, match="cannot be read") as error:
        load(str(path))
    assert "\n" not in str(error.value)


def test_pickles_are_not_executed(tmp_path):
    np.save(tmp_path / "o.npy", np.array([[object()]] * 50), allow_pickle=True)
    torch.save({"x": object()}, tmp_path / "o.pt")
    for name, why in (("o.npy", "is of dtype object"), ("o.pt", "holds more than tensors")):
        with pytest.raises(DataError, match=why):
            load(str(tmp_path / name))


def test_other_bad_requests(tmp_path):
    np.savez(tmp_path / "two.npz", a=np.zeros((49, 2)), b=np.zeros((49, 2)))
    x = np.random.default_rng(0).normal(size=(49, 2))
    np.savez(tmp_path / "odd.npz", x_train=x, x_test=x[:, :1].repeat(3, 1))
    torch.save([1, 2], tmp_path / "list.pt")
    for name, options, wanted in [
        ("nope", {}, "unknown data 'nope'"),
        (str(tmp_path / "absent.npy"), {}, "no such file"),
        (str(tmp_path), {}, "unknown data"),
        (str(tmp_path / "two.npz"), {}, "holds a, b"),
        (str(tmp_path / "odd.npz"), {}, "x_test"),
        (str(tmp_path / "list.pt"), {}, "is of type list, not a tensor"),
        ("ring", {"dim": 3}, "gaussian' only"),
        ("gaussian", {"dim": 0}, "dim must be"),
        ("ring", {"samples": 2}, "samples must be"),
        ("digits", {"samples": 5000}, "has only 1438"),
    ]:
        with pytest.raises(DataError, match=wanted):
            load(name, **options)


X = torch.linspace(-1, 1, 128).reshape(64, 2)
UNUSED = {
    "text": np.array(["cat"] * 64),
    "objects": np.array([{}] * 64, dtype=object),
    "complex": np.ones(64, complex),
    "dates": np.zeros(64, "M8[s]"),
    "too large": np.full(64, 2**62),
    "not finite": np.full(64, np.nan),
    "one short": np.zeros(63),
}


@pytest.mark.parametrize("case", UNUSED)
def test_classes_that_cannot_be_used_matter_only_to_who_needs_them(tmp_path, case):
    pictures = np.random.default_rng(0).integers(0, 256, (64, 4, 4), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", x_train=pictures, y_train=UNUSED[case])
    data = load(str(tmp_path / "x.npz"))
    assert len(data.train) == 52 and data.labels is None
    with pytest.raises(ConfigError, match="needs pictures with labels, .* y_train "):
        train_classifier(data)


@pytest.mark.parametrize("dtype", ["int64", "uint8", "float32", "bfloat16", "float64"])
def test_classes_of_any_number_type(tmp_path, dtype):
    y = torch.arange(64) % 3
    labels = y.to(getattr(torch, dtype)).requires_grad_("float" in dtype)
    torch.save({"x_train": X, "x_test": X, "y_train": labels}, tmp_path / "x.pt")
    data = load(str(tmp_path / "x.pt"))
    rows = (data.train[:, None] == X).all(2).long().argmax(1)
    assert data.labels.dtype == torch.int64 and torch.equal(data.labels, y[rows])


@pytest.mark.parametrize("kind", ["gradient", "parameter", "expanded"])
def test_tensors_of_a_network_are_data_too(tmp_path, kind):
    x = X.clone().requires_grad_() if kind == "gradient" else nn.Parameter(X.clone())
    x = torch.rand(64, 1, 4, 4).expand(64, 3, 4, 4) if kind == "expanded" else x
    torch.save(x, tmp_path / "x.pt")
    data = load(str(tmp_path / "x.pt"))
    rows = torch.cat([data.train, data.test])
    assert type(rows) is torch.Tensor and not rows.requires_grad and len(data.train) == 52
    assert torch.equal(rows.flatten(1).sort(0).values, x.detach().flatten(1).sort(0).values)


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, of its beta and old types
@pytest.mark.parametrize(
    "wanted, make",
    [
        ("sparse_csr tensor", X.to_sparse_csr),
        ("sparse_coo tensor", X.to_sparse),
        ("meta tensor", lambda: X.to("meta")),
        ("nested tensor", lambda: torch.nested.nested_tensor([X, X])),
        ("quantised tensor", lambda: torch.quantize_per_tensor(X, 0.1, 0, torch.quint8)),
        ("dtype complex64", lambda: X.to(torch.complex64)),
        ("dtype float8_e4m3fn", lambda: X.to(torch.float8_e4m3fn)),
        ("from -3e.38 to 3e.38, whose squares", lambda: X * 3e38),
        ("whose squares", lambda: X * 1e-30),
        ("needs 1.86e.04 GiB", lambda: torch.zeros(1, 1).expand(10**6, 10**6)),
    ],
)
def test_other_tensors_are_one_line(tmp_path, wanted, make):
    torch.save(make(), tmp_path / "x.pt")
    with pytest.raises(DataError, match=wanted) as error:
        load(str(tmp_path / "x.pt"))
    assert "\n" not in str(error.value)


def npy(array, shape=None, length=None):
    """An array as a .npy file has it, with another shape in its header, or cut short."""
    file, array = io.BytesIO(), np.asarray(array)
    header = {"descr": array.dtype.str, "fortran_order": False, "shape": shape or array.shape}
    np.lib.format.write_array_header_1_0(file, header)
    return (file.getvalue() + array.tobytes())[:length]


def test_arrays_that_are_not_used_are_not_unpacked(tmp_path, monkeypatch):
    """Nor need they be whole: of another array the header is read, and no more."""
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("other.npy", npy(np.zeros(10**7)))
        archive.writestr("bad.npy", b"no array")
        archive.writestr("readme.txt", b"text")
        archive.writestr("x.npy", npy(X.numpy()))
    read, sizes = np.lib.format.read_array, []

    def counted(*args, **kwargs):
        array = read(*args, **kwargs)
        sizes.append(array.size)
        return array

    monkeypatch.setattr(np.lib.format, "read_array", counted)
    assert len(load(str(tmp_path / "x.npz")).train) == 52 and sizes == [128]
    load_file, mapped = torch.load, []
    monkeypatch.setattr(
        torch, "load", lambda *args, **kw: mapped.append(kw["mmap"]) or load_file(*args, **kw)
    )
    torch.save({"x": X, "other": torch.zeros(10**6)}, tmp_path / "x.pt")
    assert len(load(str(tmp_path / "x.pt")).train) == 52 and mapped == [True]


def test_sizes_that_nothing_stands_behind_are_refused(tmp_path):
    torch.save(X, tmp_path / "good.pt")
    with (
        zipfile.ZipFile(tmp_path / "good.pt") as good,
        zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in good.namelist():
            packed.writestr(name, good.read(name))
    tera = npy(X.numpy(), shape=(10**6, 10**6))
    (tmp_path / "tera.npy").write_bytes(tera)
    (tmp_path / "short.npy").write_bytes(npy(X.numpy(), length=-4))
    (tmp_path / "below.npy").write_bytes(npy(X.numpy(), shape=(-64, -2)))
    with zipfile.ZipFile(tmp_path / "tera.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", tera)
    for name, wanted in [
        ("packed.pt", "compresses nothing"),
        ("tera.npy", "should have 4000000000000 bytes .*, has 512"),
        ("tera.npz", "x should have 4000000000000 bytes .*, has 512"),
        ("short.npy", "should have 512 bytes .*, has 508"),
        ("below.npy", "should have"),
    ]:
        with pytest.raises(DataError, match=wanted):
            load(str(tmp_path / name))
    for options in ({"samples": 10**9}, {"samples": 10**6, "dim": 100}):
        with pytest.raises(DataError, match="are more than 67108864 values"):
            load("gaussian", **options)
