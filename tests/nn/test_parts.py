"""Each part of a binary conv against its paper's formula, written out slowly in NumPy: values and gradients."""

from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from binarize.config import ConvConfig
from binarize.errors import UsageError
from binarize.nn import (
    ActivationBases,
    BinaryConv2d,
    BoxScale,
    ChannelGate,
    ChannelInteraction,
    LearnedScale,
    SignActivation,
    SignWeight,
    SpatialScale,
    TernaryActivation,
    WeightBases,
)
from binarize.nn.binary_conv import conv_geometry


def sign(values):
    return np.where(np.asarray(values) > 0, 1.0, -1.0)


def gradient_of_weight(part_config, weight, out_gradient):
    """The latent weight's gradient when the effective weight `scale * sign(W)` gets `out_gradient`.

    The conv is 1x1 and the inputs are unit vectors (one channel +1 above the threshold, and the conv's other
    channels made silent by a float replacement), so that the output *is* the effective weight.
    """
    o, n = weight.shape
    conv = BinaryConv2d(n, o, 1, bias=False, parts=part_config)
    conv.weight.data = torch.from_numpy(weight).float().view(o, n, 1, 1)
    conv.binarize_input = torch.nn.Identity()
    x = torch.eye(n).view(n, n, 1, 1)
    (conv(x).view(n, o).T * torch.from_numpy(out_gradient).float()).sum().backward()
    return conv.weight.grad.view(o, n).numpy()


W = np.array([[0.5, -0.25, 1.5, -0.1], [-2.0, 0.3, 0.7, 0.2]])
G = np.array([[1.0, -2.0, 3.0, 0.5], [0.25, 1.0, -1.0, 2.0]])
INSIDE = np.abs(W) <= 1
ALPHA = np.abs(W).mean(1, keepdims=True)


def test_magnitude_aware_gradient_is_alpha_times_the_clipped_one():
    got = gradient_of_weight(ConvConfig(weight_gradient="magnitude"), W, G)
    np.testing.assert_allclose(got, ALPHA * G * INSIDE, rtol=1e-5)


def test_released_bireal_gradient_leaves_alpha_out():
    got = gradient_of_weight(ConvConfig(weight_gradient="clip"), W, G)
    np.testing.assert_allclose(got, G * INSIDE, rtol=1e-5)


def test_identity_gradient():
    got = gradient_of_weight(ConvConfig(weight_gradient="identity"), W, G)
    np.testing.assert_allclose(got, G, rtol=1e-5)


def test_without_a_scale_the_estimators_pass_what_they_get():
    for gradient in ("magnitude", "clip"):
        got = gradient_of_weight(ConvConfig(weight_gradient=gradient, scale="none"), W, G)
        np.testing.assert_allclose(got, G * INSIDE, rtol=1e-5)


def test_xnor_gradient_has_the_cross_terms_of_alpha():
    expected = np.zeros_like(W)
    for o in range(2):
        for i in range(4):
            through_sign = ALPHA[o, 0] * G[o, i] * INSIDE[o, i]
            through_alpha = sign(W)[o, i] / 4 * sum(G[o, j] * sign(W)[o, j] for j in range(4))
            expected[o, i] = through_sign + through_alpha
    got = gradient_of_weight(ConvConfig(weight_gradient="exact"), W, G)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_centred_weights_lose_their_mean_over_input_channels_and_are_clamped():
    weight = torch.randn(3, 5, 2, 2) * 2
    centred = np.clip(weight.numpy() - weight.numpy().mean(1, keepdims=True), -1, 1)
    part = SignWeight(centred=True)
    np.testing.assert_allclose(part.latent(weight).numpy(), centred, rtol=1e-5, atol=1e-6)
    assert np.array_equal(part(weight).numpy(), sign(part.latent(weight).numpy()))
    depthwise = torch.randn(3, 1, 2, 2)
    assert part.latent(depthwise) is depthwise  # the mean of one channel is itself


def test_learned_scale_starts_at_the_mean_and_has_an_ordinary_gradient():
    conv = BinaryConv2d(4, 2, 1, bias=False, parts=ConvConfig(scale="learned"))
    assert isinstance(conv.weight_scale, LearnedScale)
    np.testing.assert_allclose(conv.weight_scale.factor.detach(), conv.weight.detach().abs().mean((1, 2, 3)), rtol=1e-6)
    conv(torch.randn(3, 4, 2, 2)).sum().backward()
    assert conv.weight_scale.factor.grad.abs().sum() > 0


@pytest.mark.parametrize("bound", [1.0, 1.3])
def test_clip_stops_at_its_bound(bound):
    x = torch.tensor([-1.35, -1.2, 0.0, 1.2, 1.35], requires_grad=True)
    SignActivation("clip", bound)(x).sum().backward()
    assert x.grad.tolist() == [float(abs(v) <= bound) for v in x.tolist()]


def test_ternary_values_planes_and_gradient():
    part = TernaryActivation(0.4).eval()
    part.mean_abs.fill_(0.5)
    z = torch.tensor([-1.5, -0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3, 1.0], requires_grad=True)
    out = part(z)
    assert out.tolist() == [-1, -1, -1, 0, 0, 0, 0, 1, 1]  # strict: delta itself is 0 above, -1 below
    ((offsets, weight),) = part.planes()
    rebuilt = weight * sum(sign(z.detach().numpy() - offset) for offset in offsets) / 2
    assert np.array_equal(rebuilt, out.detach().numpy())
    out.sum().backward()
    assert z.grad.tolist() == [0, 1, 1, 1, 1, 1, 1, 1, 0]


def test_ternary_delta_follows_the_mean_magnitude():
    part = TernaryActivation(0.4, momentum=0.5)
    z = torch.full((1, 1, 2, 2), 3.0)
    part.observe(z)
    assert float(part.mean_abs) == 3.0
    part.train()(torch.full((1, 1, 2, 2), -1.0))
    assert float(part.mean_abs) == 2.0
    part.eval()(z)
    assert float(part.mean_abs) == 2.0


@pytest.mark.parametrize("bases", [1, 2, 3, 5])
def test_activation_bases(bases):
    part = ActivationBases(bases)
    part.shift.data += 0.1 * torch.randn(bases)
    part.factor.data += 0.1 * torch.randn(bases)
    v, beta = part.shift.detach().numpy(), part.factor.detach().numpy()
    z = torch.randn(40, requires_grad=True)
    values = z.detach().numpy()
    planes = [sign(values + v[n] - 0.5) for n in range(bases)]
    out = part(z)
    np.testing.assert_allclose(out.detach().numpy(), sum(b * p for b, p in zip(beta, planes, strict=True)), atol=1e-6)
    upstream = torch.randn(40)
    (out * upstream).sum().backward()
    windows = [(values + v[n] >= 0) & (values + v[n] <= 1) for n in range(bases)]
    np.testing.assert_allclose(
        z.grad.numpy(), upstream.numpy() * sum(b * w for b, w in zip(beta, windows, strict=True)), atol=1e-6
    )
    for n in range(bases):
        np.testing.assert_allclose(part.factor.grad[n], (upstream.numpy() * planes[n]).sum(), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            part.shift.grad[n], (upstream.numpy() * beta[n] * windows[n]).sum(), rtol=1e-4, atol=1e-5
        )


def test_one_activation_base_starts_as_sign():
    z = torch.randn(20)
    assert torch.equal(ActivationBases(1)(z), torch.where(z > 0, 1.0, -1.0))


@pytest.mark.parametrize("bases", [1, 2, 3, 5])
def test_calibrated_activation_bases_spread_over_the_largest_deviation_met(bases):
    """Thresholds `2 / sqrt(N + 1)` deviations apart around 0; what each adds when crossed is their distance."""
    part = ActivationBases(bases)
    batches = [spread * torch.randn(4, 3, 5, 5) + mean for spread, mean in [(0.5, 0.3), (2.5, -1.0), (1.2, 0.0)]]
    for batch in batches:
        part.observe(batch)
    deviation = 0.0
    for batch in batches:
        values = batch.numpy().astype(float).ravel()
        deviation = max(deviation, (((values - values.mean()) ** 2).sum() / (len(values) - 1)) ** 0.5)
    distance = 2 / (bases + 1) ** 0.5 * deviation
    places = [distance * (n - (bases - 1) / 2) for n in range(bases)]
    beta = distance / 2 if bases > 1 else 1.0
    assert [offset for plane in part.planes() for offset in plane.offsets] == pytest.approx(places, abs=1e-5)

    z = (3 * torch.randn(200)).requires_grad_()
    out = part(z)
    upstream = torch.randn(200)
    (out * upstream).sum().backward()
    values, g = z.detach().numpy(), upstream.numpy()
    planes = [sign(values - place) for place in places]
    insides = [np.abs(values - place) <= 0.5 for place in places]
    np.testing.assert_allclose(out.detach().numpy(), sum(beta * plane for plane in planes), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(z.grad.numpy(), g * sum(beta * inside for inside in insides), rtol=1e-5, atol=1e-6)
    for n in range(bases):
        np.testing.assert_allclose(part.shift.grad[n], (g * beta * insides[n]).sum(), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(part.factor.grad[n], (g * planes[n]).sum(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spread", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_weight_bases_are_the_least_squares_fit(count, spread):
    weight = (spread * (torch.randn(4, 6, 3, 3) + 0.2)).requires_grad_()
    part = WeightBases(count)
    shifts = [0.0] if count == 1 else [-1 + 2 * m / (count - 1) for m in range(count)]
    expected = np.zeros((4, 54))
    alphas = np.zeros((count, 4))
    for o, row in enumerate(weight.detach().double().flatten(1).numpy()):
        basis = np.stack([sign(row - row.mean() + u * row.std()) for u in shifts], axis=1)
        alphas[:, o] = np.linalg.lstsq(basis, row, rcond=None)[0]
        expected[o] = basis @ alphas[:, o]
    out = part(weight)
    np.testing.assert_allclose(out.detach().flatten(1).numpy(), expected, atol=1e-4 * spread)
    upstream = torch.randn_like(out)
    (out * upstream).sum().backward()
    np.testing.assert_allclose(
        weight.grad.numpy(), upstream.numpy() * alphas.sum(0)[:, None, None, None], rtol=1e-3, atol=1e-4 * spread
    )
    rebuilt = sum(alpha.view(-1, 1, 1, 1) * torch.where(latent > 0, 1.0, -1.0) for latent, alpha in part.bases(weight))
    torch.testing.assert_close(rebuilt, out.detach())


def test_weight_bases_survive_filters_whose_bases_coincide():
    weight = torch.ones(2, 1, 1, 1)
    assert torch.isfinite(WeightBases(3)(weight)).all()


def test_more_bases_fit_better():
    weight, x = torch.randn(8, 16, 3, 3), torch.randn(2, 16, 6, 6)
    exact = F.conv2d(x, weight, padding=1)

    def similarity(m, n):
        parts = ConvConfig(activations="bases", weights="bases", activation_bases=n, weight_bases=m)
        conv = BinaryConv2d(16, 8, 3, padding=1, bias=False, parts=parts)
        conv.weight.data.copy_(weight)
        return torch.cosine_similarity(conv(x).flatten(), exact.flatten(), dim=0)

    assert similarity(1, 1) < similarity(3, 1) < similarity(3, 3) < similarity(5, 5)


def test_gate():
    gate = ChannelGate(16, 4, reduction=8)
    x, out = torch.randn(3, 16, 5, 5), torch.randn(3, 4, 2, 2)
    w1, w2 = gate.squeeze.weight.detach().numpy(), gate.excite.weight.detach().numpy()
    hidden = np.maximum(x.numpy().mean((2, 3)) @ w1.T, 0)
    factor = 1 / (1 + np.exp(-(hidden @ w2.T)))
    np.testing.assert_allclose(
        gate(out, x).detach().numpy(), out.numpy() * factor[:, :, None, None], rtol=1e-4, atol=1e-6
    )
    assert w1.shape == (2, 16) and gate.squeeze.bias is None
    even = ChannelGate(16, 4, reduction=8, start="even")
    torch.testing.assert_close(even(out, x), out / 2)
    even(out, x).square().sum().backward()
    assert even.excite.weight.grad.abs().max() > 0, "it learns from there"


@pytest.mark.parametrize("dilation", [1, 2])
def test_box_scale(dilation):
    """A window that a pooling has, and one that only a conv has."""
    conv = torch.nn.Conv2d(3, 2, (3, 2), (2, 1), (1, 0), (1, dilation))
    assert conv_geometry(conv).is_pooling == (dilation == 1)
    x = torch.randn(1, 3, 7, 6)
    out = torch.ones_like(conv(x))
    magnitude = np.zeros((9, 6))  # padded by one row on each side
    magnitude[1:8] = np.abs(x[0].numpy()).mean(0)
    expected = np.zeros(out.shape[2:])
    for i in range(expected.shape[0]):
        for j in range(expected.shape[1]):
            taps = [magnitude[2 * i + a, j + dilation * b] for a in range(3) for b in range(2)]
            expected[i, j] = sum(taps) / 6
    got = BoxScale(conv_geometry(conv))(out, x)
    for channel in got[0].numpy():
        np.testing.assert_allclose(channel, expected, rtol=1e-5)


def test_spatial_scale_is_an_outer_product():
    part = SpatialScale(2, 3)
    part.rows.data.copy_(torch.tensor([[1.0], [2.0]]))
    part.columns.data.copy_(torch.tensor([[1.0, 3.0, 5.0]]))
    assert part(torch.ones(1, 4, 2, 3), torch.empty(0))[0, 0].tolist() == [[1, 3, 5], [2, 6, 10]]
    with pytest.raises(UsageError, match="made for maps of 2 x 3, and this one has 2 x 4"):
        part(torch.ones(1, 4, 2, 4), torch.empty(0))
    with pytest.raises(UsageError, match="size"):
        BinaryConv2d(3, 3, 3, parts=ConvConfig(scale="spatial"))


def test_interactions_equal_the_released_sequential_code():
    part = ChannelInteraction(6, 576, 5)
    assert (part.limit, part.step) == (200, 100)
    part.source[:3] = torch.tensor([0, 1, 0])
    part.target[:3] = torch.tensor([3, 4, 4])
    part.sign[:3] = torch.tensor([1, -1, 1])
    acc = torch.randint(-300, 300, (2, 6, 4, 4)).float().requires_grad_()
    expected = acc.detach().numpy().copy()
    for x, y, s in [(0, 3, 1), (1, 4, -1), (0, 4, 1)]:
        expected[:, y] += s * 100 * ((expected[:, x] >= 200).astype(float) - (expected[:, x] <= -200))
    out = part(acc)
    assert np.array_equal(out.detach().numpy(), expected)
    assert not np.array_equal(expected, acc.detach().numpy())
    out.sum().backward()
    assert torch.equal(acc.grad, torch.ones_like(acc))


def of_fan_in(constant, fan_in):
    """The released code's constant, made for 64 x 3 x 3 terms, at another fan-in: the nearest integer, at least 1."""
    return max(1, int(Fraction(constant * fan_in, 64 * 3 * 3) + Fraction(1, 2)))


@pytest.mark.parametrize(
    ("channels", "kernel", "groups", "fan_in"),
    [
        (1, 1, 1, 1),
        (16, 1, 1, 16),
        (64, 1, 1, 64),
        (64, 1, 2, 32),
        (16, 3, 1, 144),
        (64, 3, 1, 576),
        (8, 3, 4, 18),
        (4, 3, 4, 9),
        (12, (1, 3), 2, 18),
    ],
)
def test_interactions_of_a_conv_have_their_limit_and_step_from_its_fan_in(channels, kernel, groups, fan_in):
    """Maps of the kernel's size, so that an output is one accumulator; a source's passes through all of its values."""
    parts = ConvConfig(interactions=4, activation_gradient="clip", scale="none")
    conv = BinaryConv2d(channels, 4, kernel, groups=groups, bias=False, parts=parts)
    limit, step = of_fan_in(200, fan_in), of_fan_in(100, fan_in)
    assert (conv.interaction.limit, conv.interaction.step) == (limit, step)
    edges = [(0, 3, 1), (1, 3, -1), (0, 2, -1)]
    for slot, (source, target, s) in enumerate(edges):
        conv.interaction.source[slot], conv.interaction.target[slot] = source, target
        conv.interaction.sign[slot] = s
    rng = np.random.default_rng(0)
    weight = rng.normal(size=conv.weight.shape).astype(np.float32)
    conv.weight.data.copy_(torch.from_numpy(weight))

    group_in, group_out = channels // groups, 4 // groups
    seen = [slice(o // group_out * group_in, (o // group_out + 1) * group_in) for o in range(4)]
    signs = sign(rng.normal(size=(2 * (fan_in + 1), channels, *weight.shape[2:])))
    for n in range(len(signs)):
        source, wrong = n % 2, n // 2
        terms = sign(weight[source]).ravel()
        terms[rng.permutation(fan_in)[:wrong]] *= -1
        signs[n, seen[source]] = terms.reshape(weight.shape[1:])
    values = (signs * rng.uniform(0.1, 1.5, signs.shape)).astype(np.float32)
    x = torch.from_numpy(values).requires_grad_()
    out = conv(x)
    upstream = rng.normal(size=(len(signs), 4)).astype(np.float32)
    (out[:, :, 0, 0] * torch.from_numpy(upstream)).sum().backward()

    acc = np.stack([(signs[:, seen[o]] * sign(weight[o])).sum((1, 2, 3)) for o in range(4)], axis=1)
    assert {-fan_in, fan_in} <= set(acc[:, 0]) & set(acc[:, 1])
    expected = acc.copy()
    for source, target, s in edges:
        for n in range(len(acc)):
            if expected[n, source] >= limit:
                expected[n, target] += s * step
            if expected[n, source] <= -limit:
                expected[n, target] -= s * step
    assert np.array_equal(out[:, :, 0, 0].detach().numpy(), expected)
    of_signs, of_weight = np.zeros(values.shape), np.zeros(weight.shape)
    for o in range(4):  # each accumulator's own, as if no other had corrected it
        of_signs[:, seen[o]] += upstream[:, o, None, None, None] * sign(weight[o])
        of_weight[o] = (upstream[:, o, None, None, None] * signs[:, seen[o]]).sum(0)
    np.testing.assert_allclose(x.grad.numpy(), of_signs * (np.abs(values) <= 1), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(conv.weight.grad.numpy(), of_weight * (np.abs(weight) <= 1), rtol=1e-4, atol=1e-3)


def test_interactions_need_integers():
    with pytest.raises(UsageError, match="integer"):
        BinaryConv2d(4, 4, 3, parts=ConvConfig(interactions=4, activations="ternary"))


def test_early_stages_use_tanh_and_latent_weights():
    conv = BinaryConv2d(3, 2, 1, bias=False)
    x = torch.randn(1, 3, 4, 4)
    conv.activation_bits = 32
    signs = torch.where(conv.weight > 0, 1.0, -1.0)
    scale = conv.weight.abs().mean((1, 2, 3)).view(1, -1, 1, 1)
    torch.testing.assert_close(conv(x), F.conv2d(torch.tanh(x), signs) * scale)
    conv.weight_bits = 32
    torch.testing.assert_close(conv(x), F.conv2d(torch.tanh(x), conv.weight))
