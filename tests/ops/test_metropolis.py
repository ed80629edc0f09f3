"""Jumps between the modes of a population: the operator against its twin, laws, errors."""

import math

import pytest
import torch
from mlp_networks import UNIT

from fastebm import ChainRNG
from fastebm.chains.local_means import local_means
from fastebm.ops import library, reference
from fastebm.ops.metropolis import population_jump
from fastebm.ops.reference.metropolis import State, drift, log_ratio, window_jump

SEED, STEP, OFFSET, T = 2**63 + 7, 11, 2**33, 3


def state(device="cpu"):
    return ChainRNG(SEED, STEP, OFFSET).state(device)


def on(device, *tensors):
    return [t if t is None else t.to(device) for t in tensors]


def assert_law(cells, law):
    """Chi-square of how often each cell came, of those that can come."""
    count = cells.bincount(minlength=len(law)).double()
    assert len(count) == len(law) and (count[law == 0] == 0).all()
    count, expected = count[law > 0], len(cells) * law[law > 0]
    assert (expected > 5).all()
    statistic, df = ((count - expected) ** 2 / expected).sum().item(), len(count) - 1
    # Wilson and Hilferty: the cube root of chi-square over df is about normal.
    z = ((statistic / df) ** (1 / 3) - 1 + 2 / (9 * df)) / math.sqrt(2 / (9 * df))
    assert abs(z) < 4


def rounding_of_distances(x, y, most):
    """What two squared distances to centres whose elements are at most ``most`` may err by, of x or
    of y, which errs by 4 roundings: D + 3 of the sum, 8 of y."""
    wide = (torch.maximum(x.abs(), y.abs()) + most).square().sum(1)
    return 2 * (x.shape[1] + 11) * UNIT * wide


def modes_of(size, dim):
    """Centres and scales; None both for none."""
    if not size:
        return None, None
    return torch.randn(size, dim), 0.5 + torch.rand(size)


@pytest.mark.parametrize("size, share", [(0, 1.0), (2, 0.0), (7, 0.3), (100, 1.0), (100, 0.5)])
@pytest.mark.parametrize("dim", [1, 2, 3, 5, 10, 33])
@pytest.mark.parametrize("batch", [1, 31, 130])
def test_jumps_are_those_of_the_reference(device, batch, dim, size, share):
    x, (centres, scales) = torch.randn(batch, dim), modes_of(size, dim)
    exact = [v if v is None else v.double() for v in (x, centres, scales)]
    lo = -3 - torch.rand(dim)
    hi = lo + 5 * torch.rand(dim)
    most = 0.0 if centres is None else centres.abs().max()
    for ids in (None, torch.randint(2**56, (batch,))):
        who = torch.arange(batch) + OFFSET if ids is None else ids
        wanted, factors, margin = reference.population_jump(
            *exact, SEED, STEP + T, who, lo.double(), hi.double(), share
        )
        on_there = on(device, x, centres, scales, ids, lo, hi)
        there, (c, d, e) = on_there[:3], on_there[3:]
        options = {"t": T, "sample_ids": c, "lo": d, "hi": e, "uniform_share": share}
        y, factor = (v.cpu() for v in population_jump(*there, state(device), **options))
        uniform = reference.jump_draws(SEED, STEP + T, who, size, share)[2]
        sure = margin > rounding_of_distances(x, wanted, most)
        assert sure.sum() >= 0.97 * batch - 1
        error = 4 * UNIT * (wanted.abs() + most)
        error[uniform] = 4 * UNIT * (lo.abs() + hi.abs()).double()
        assert ((y - wanted).abs() <= error)[sure].all()
        assert torch.equal(factor[sure] == -math.inf, factors[sure] == -math.inf)
        back = sure & (factors > -math.inf)
        error = UNIT * (3 * dim + 4 * factors.abs())
        assert ((factor - factors).abs() <= error)[back].all()
        assert ((y >= lo) & (y <= hi))[uniform].all() and not factor[uniform].any()
        assert torch.equal(there[0].cpu(), x)  # which is left as it was
        row = batch // 2  # alone as among others
        one = {**options, "sample_ids": who[row, None].to(device)}
        own = population_jump(there[0][row : row + 1], *there[1:], state(device), **one)
        assert torch.equal(own[0][0].cpu(), y[row]) and own[1].item() == factor[row]
    if batch == 130 and 0 < share < 1:
        assert 0 < uniform.sum() < batch
        assert dim > 5 or 0 < (factor == -math.inf).sum() < batch


def same(a, b):
    return all(torch.equal(v, w) for v, w in zip(a, b, strict=True))


def test_events_views_and_numbers(device):
    x, (centres, scales) = torch.randn(40, 2, 3, device=device), on(device, *modes_of(9, 6))
    flat, factor = population_jump(x.flatten(1), centres, scales, state(device))
    whole = flat.view(x.shape), factor
    assert same(population_jump(x, centres, scales, state(device)), whole)
    turned = x.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    views = centres.t().contiguous().t(), scales.repeat_interleave(2)[::2]
    assert same(population_jump(turned, *views, state(device)), whole)
    scalars, modes = x[:, 0, 0], (centres[:, :1], scales)
    column, factor = population_jump(scalars[:, None], *modes, state(device))
    assert same(population_jump(scalars, *modes, state(device)), (column[:, 0], factor))
    lo, hi = torch.full((2, 3), -1.0, device=device), torch.full((2, 3), 2.0, device=device)
    numbers, corners = (
        population_jump(x, None, None, state(device), lo=a, hi=b, uniform_share=1.0)
        for a, b in ((-1, 2.0), (lo, hi))
    )
    assert same(numbers, corners)
    options = {"lo": -1.0, "hi": 1.0, "uniform_share": 0.5}
    none, factor = population_jump(x[:0], centres, scales, state(device), **options)
    assert none.shape == (0, 2, 3) and factor.shape == (0,)


def test_same_bits_for_any_number_of_threads(set_threads):
    x, modes = torch.randn(20_001, 7), modes_of(100, 7)
    results = []
    for threads in (1, 2, 3):
        set_threads(threads)
        options = {"lo": -1.0, "hi": 1.0, "uniform_share": 0.3}
        results.append(population_jump(x, *modes, state(), **options))
    assert same(results[0], results[1]) and same(results[0], results[2])


@pytest.mark.parametrize("dim", [1, 2])
def test_a_jump_is_the_inverse_of_its_way_back(dim):
    """Of all windows and places from many points: with the place of the first centre among the
    others, from y back to x, by the inverse factor. So in detailed balance: whatever the law p,
    p(x) q min(1, r) = p(y) q |dy / dx| min(1, 1 / r)."""
    m, n = 5, 200
    centres, scales = torch.randn(9, dim).double(), (0.3 + 2 * torch.rand(9)).double()
    first, place, point = torch.cartesian_prod(*map(torch.arange, (9, m - 1, n))).T
    window = (first[:, None] + torch.arange(m)) % 9
    x = 2 * torch.randn(n, dim).double()[point]
    y, factor, _ = window_jump(x, centres, scales, window, place)
    open_ = factor > -math.inf
    assert 0.2 < open_.double().mean() < 0.9
    near = (centres[window] - x[:, None]).square().sum(2).argmin(1)
    far = place + (place >= near)
    back = near - (near > far).long()
    again, inverse, _ = window_jump(y, centres, scales, window, back)
    torch.testing.assert_close(again[open_], x[open_])
    torch.testing.assert_close(inverse[open_], -factor[open_])
    # The Jacobian, by differences: of the volume that D steps span.
    h = 1e-6 * torch.eye(dim).double()
    ends = [window_jump(x + step, centres, scales, window, place).y for step in h]
    columns = torch.stack([(end - y) / 1e-6 for end in ends], 2)
    same_centre = torch.stack([(end - y).norm(dim=1) < 1e-4 for end in ends]).all(0) & open_
    volume = torch.linalg.det(columns[same_centre]).log()
    torch.testing.assert_close(volume, factor[same_centre], rtol=1e-4, atol=1e-4)


def test_jumps_on_a_lattice_are_in_detailed_balance(device):
    """Points 0 .. 11 and five centres on them, alike in scale: jumps stay on the lattice. Of all
    centres that can be drawn, the matrix of Metropolis' rule balances to the last digit, and the
    operator's own draws from each point have that matrix's proposals."""
    centres = torch.tensor([[0.25], [2.25], [5.25], [6.25], [10.25]])
    ones, size, m = torch.ones(5), 12, 5
    proposals = torch.zeros(size, size, dtype=torch.float64)
    for a in range(size):
        near = (a - centres[:, 0]).abs().argmin()
        for i in (i for i in range(m) if i != near):
            b = a + centres[i, 0] - centres[near, 0]
            if (b - centres[:, 0]).abs().argmin() == i and 0 <= b < size:
                proposals[a, int(b)] += 1 / (m - 1)
    assert torch.equal(proposals, proposals.T) and (proposals > 0).sum() > 30
    p = torch.rand(size, generator=torch.Generator().manual_seed(0)).double().softmax(0)
    flow = p[:, None] * proposals * (p[None] / p[:, None]).clamp(max=1)
    assert (flow - flow.T).abs().max() < 1e-12
    n = 200_000 // size if library.op is torch.ops.fastebm else 600
    a = torch.arange(size).repeat_interleave(n)
    arguments = on(device, a[:, None].float(), centres, ones, state(device))
    y, factor = (v.cpu() for v in population_jump(*arguments))
    taken = (factor > -math.inf) & (y[:, 0] > -0.5) & (y[:, 0] < size - 0.5)
    ends = torch.where(taken, y[:, 0].round().long(), size)
    law = torch.cat([proposals, 1 - proposals.sum(1, keepdim=True)], 1)
    for start in range(size):
        if (law[start] < 1).all():
            assert_law(ends[a == start], law[start])
        else:  # no way leads out
            assert (ends[a == start] == size).all()


def mixture(x):
    """Energy of 1/4 N(-3, 0.5^2) + 3/4 N(2, 1.5^2)."""
    parts = [
        math.log(w / s) - ((x[:, 0] - m) / s).square() / 2
        for w, m, s in ((0.25, -3.0, 0.5), (0.75, 2.0, 1.5))
    ]
    return -torch.logsumexp(torch.stack(parts), 0)


def after_jumps(n, n_jumps, device):
    """Exact samples of the mixture after jumps alone, by local means of a population whose weights
    are 1:1, and the share of jumps that were accepted."""
    g = torch.Generator().manual_seed(1)
    narrow = torch.rand(n, generator=g) < 0.25
    noise = torch.randn(n, generator=g)
    x = torch.where(narrow, -3 + 0.5 * noise, 2 + 1.5 * noise)[:, None].double()
    b = torch.randn(400, 1, generator=g)
    b = torch.where(torch.arange(400)[:, None] < 200, -3 + 0.5 * b, 2 + 1.5 * b).to(device)
    modes, moved = local_means(b, state(device)), 0.0
    for t in range(n_jumps):
        y, factor = population_jump(x.float().to(device), *modes, state(device), t=t)
        y, factor = y.cpu().double(), factor.cpu()
        accept = mixture(x) - mixture(y) + factor > torch.rand(n, generator=g).log()
        x, moved = torch.where(accept[:, None], y, x), moved + accept.double().mean() / n_jumps
    return x, moved


def test_jumps_alone_leave_a_law_as_it_is(device):
    n = 200_000 if library.op is torch.ops.fastebm else 400
    x, moved = after_jumps(n, 6, device)
    assert moved > 0.1
    # Weight of the left half, and the first moments.
    left = 0.25 * normal_cdf(3 / 0.5) + 0.75 * normal_cdf(-2 / 1.5)
    assert abs((x < 0).double().mean() - left) < 4 * math.sqrt(left * (1 - left) / n)
    mean, square = 0.25 * -3 + 0.75 * 2, 0.25 * 9.25 + 0.75 * 6.25
    fourth = 0.25 * fourth_moment(-3, 0.5) + 0.75 * fourth_moment(2, 1.5)
    assert abs(x.mean() - mean) < 4 * math.sqrt((square - mean**2) / n)
    assert abs(x.square().mean() - square) < 4 * math.sqrt((fourth - square**2) / n)


def normal_cdf(z):
    return (1 + math.erf(z / math.sqrt(2))) / 2


def fourth_moment(mean, std):
    return mean**4 + 6 * mean**2 * std**2 + 3 * std**4


def test_draws_are_even(device):
    ids, size = torch.arange(200_000), 20
    window, place, _ = reference.jump_draws(5, 0, ids, size, 0.0)  # which the operator is tied to
    assert torch.equal((window[:, 1:] - window[:, :-1]) % size, torch.ones_like(window[:, 1:]))
    cells = window[:, 0] * 15 + place
    assert_law(cells, torch.full((size * 15,), 1 / (size * 15)).double())


def test_uniform_points_fill_the_box_evenly(device):
    n, share = 200_000 if library.op is torch.ops.fastebm else 20_000, 0.25
    x = torch.full((n, 2), 100.0, device=device)
    far, ones = torch.tensor([[0.0, 0], [0, 1]], device=device), torch.ones(2, device=device)
    options = {"lo": -2.0, "hi": 3.0, "uniform_share": share}
    y = population_jump(x, far, ones, state(device), **options)[0].cpu()
    uniform = y[:, 0] < 50
    assert abs(uniform.double().mean() - share) < 4 * math.sqrt(share * (1 - share) / n)
    cell = ((y[uniform] + 2) / 5 * 8).long()
    assert_law(cell[:, 0] * 8 + cell[:, 1], torch.full((64,), 1 / 64).double())
    # and are as fine as float32 near 1 allows
    assert y[uniform][:, 0].unique().numel() > 0.95 * uniform.sum()


def test_ratio_of_proposals_by_hand():
    """On E = x^2 / 2 in 1-D at T = 1, where the drift is not cut, log r = step (x^2 - y^2) / 4."""
    x, y, step = torch.rand(3, 50, 1, dtype=torch.float64) * 2 - 1
    step = 0.3 + 0.2 * step[:, 0]
    e_x, e_y = (v[:, 0].square() / 2 for v in (x, y))
    start = State(x, e_x, x, torch.zeros(2, 50))
    log_r = log_ratio(start, y, e_y, y, step, (2 * step).sqrt())
    torch.testing.assert_close(log_r, step * (x.square() - y.square())[:, 0] / 4)
    cut = drift(torch.tensor([[3.0, 4.0]]).double(), 1.0, 0.5)
    torch.testing.assert_close(cut.norm(), torch.tensor(0.5 * math.sqrt(2)).double())


@pytest.mark.parametrize(
    "change, match",
    [
        ({"x": torch.zeros(5, 3).double()}, "x must be float32, got Double"),
        ({"x": torch.tensor(1.0)}, r"x must be \(B, \*event\), got a 0-d tensor"),
        (
            {"x": torch.zeros(5, 0), "centres": None, "scales": None},
            r"x must have shape \(B, D\) with D in 1",
        ),
        ({"centres": torch.zeros(4, 2)}, r"centres must have shape \(M, 3\), as samples of x"),
        ({"centres": torch.zeros(4, 3).half()}, "centres must be float32, got Half"),
        ({"centres": torch.zeros(1, 3)}, r"centres must be 2\.\.2\^32 - 1, got 1"),
        ({"centres": None}, "centres and scales must be given together, got scales alone"),
        ({"scales": None}, "centres and scales must be given together, got centres alone"),
        ({"scales": torch.ones(3)}, r"scales must have shape \(4,\), one for each centre"),
        ({"scales": torch.ones(4).double()}, "scales must be float32, got Double"),
        ({"centres": None, "scales": None}, "uniform_share must be 1 without centres, got 0"),
        ({"uniform_share": 1.5}, r"uniform_share must be in \[0, 1\], got 1.5"),
        ({"uniform_share": math.nan}, r"uniform_share must be in \[0, 1\], got nan"),
        ({"uniform_share": 0.5}, "uniform_share must be 0 without lo and hi, got 0.5"),
        ({"uniform_share": 0.5, "lo": 0.0}, "must be finite for uniform_share > 0, got 0 and inf"),
        ({"uniform_share": 0.5, "lo": -3e38, "hi": 3e38}, "hi - lo must be finite for uniform_sh"),
        ({"lo": 1.0, "hi": 0.5}, "lo must be <= hi, got 1 and 0.5 for element 0"),
        ({"lo": math.nan, "hi": 0.5}, "lo must be <= hi, got nan and 0.5"),
        ({"lo": torch.zeros(2)}, r"lo must be a number or of the event's shape \(3,\), got \(2,\)"),
        ({"lo": 0.0, "hi": torch.ones(3).double()}, "hi must be float32, got Double"),
        ({"rng": torch.zeros(3).long()}, "rng must be an int64 tensor of 4 values"),
        ({"t": -1}, r"t must be in 0..2\^32 - 1, got -1"),
        ({"sample_ids": torch.arange(4)}, r"sample_ids must be a contiguous int64 tensor \(5,\)"),
    ],
)
def test_wrong_arguments(change, match, device):
    arguments = {"x": torch.zeros(5, 3), "centres": torch.zeros(4, 3), "scales": torch.ones(4)}
    arguments |= {"rng": state(), **change}
    arguments = {
        k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()
    }
    with pytest.raises(RuntimeError, match=match):
        population_jump(**arguments)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.inf, math.nan])
def test_scales_are_positive(bad):
    scales = torch.tensor([1.0, bad, 1.0])
    with pytest.raises(RuntimeError, match=f"scales must be finite and > 0, got {bad:g} for cent"):
        population_jump(torch.zeros(5, 3), torch.zeros(3, 3), scales, state())


def test_opcheck_and_compile():
    x, (centres, scales), lo = torch.randn(5, 3), modes_of(9, 3), torch.full((3,), -1.0)
    op, ids = library.op.population_jump.default, torch.arange(5)
    torch.library.opcheck(op, (x, centres, scales, state(), 0, ids, lo, -lo, 0.5))
    torch.library.opcheck(op, (x, None, None, state(), 2, None, lo, -lo, 1.0))

    def f(x, rng):
        y, factor = population_jump(x, centres, scales, rng, lo=-1.0, hi=1.0, uniform_share=0.5)
        return y + 1, factor

    assert same(torch.compile(f, fullgraph=True)(x, state()), f(x, state()))
