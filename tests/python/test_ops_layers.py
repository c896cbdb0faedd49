"""RMSNorm, rotary embedding, gated activation, compensated output, linear + cross-entropy against the plain formulas."""

import pytest
import torch
import uniattn

import formulas


def draw(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def angles(tokens, half, dtype=torch.float64):
    angle = draw(tokens, half, seed=9)
    return angle.cos().to(dtype), angle.sin().to(dtype)


DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
LABELS = torch.tensor([3, -100, 0, 6, -100, 2, 2])


def rotate(m):
    def run(x):
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        return m.rotary(x, *(t.to(x.device) for t in angles(len(x), x.shape[2] // 2, dtype)))

    return run


def cross_entropy(m, softcap=0.0):
    return lambda h, w: m.linear_cross_entropy(h, w, LABELS.to(h.device), softcap)


CASES = {
    "rms_norm": (lambda m: lambda x, w: m.rms_norm(x, w, 1e-5), [(2, 5, 24), (24,)]),
    "rms_norm one row": (lambda m: lambda x, w: m.rms_norm(x, w, 1e-5), [(3,), (3,)]),
    "rms_norm unit_offset": (lambda m: lambda x, w: m.rms_norm(x, w, 1e-6, True), [(5, 67), (67,)]),
    "rms_norm wide": (lambda m: lambda x, w: m.rms_norm(x, w, 1e-5), [(600, 136), (136,)]),
    "rotary": (rotate, [(5, 3, 18)]),
    "rotary wide": (rotate, [(5, 3, 64)]),
    "linear": (lambda m: lambda x, w: m.linear(x, w), [(2, 3, 8), (5, 8)]),
    "linear large": (lambda m: lambda x, w: m.linear(x, w), [(70, 64), (80, 64)]),
    "silu": (lambda m: lambda g, u: m.gated_activation(g, u, "silu"), [(4, 35), (4, 35)]),
    "gelu_tanh": (lambda m: lambda g, u: m.gated_activation(g, u, "gelu_tanh"), [(2, 3, 16), (2, 3, 16)]),
    "cross_entropy": (cross_entropy, [(7, 16), (8, 16)]),
    "cross_entropy odd vocabulary": (cross_entropy, [(7, 16), (1031, 16)]),
    "cross_entropy softcap": (lambda m: cross_entropy(m, 2.0), [(7, 16), (8, 16)]),
}


def outputs_and_gradients(function, inputs):
    inputs = [x.detach().requires_grad_() for x in inputs]
    out = function(*inputs)
    return out, *torch.autograd.grad(out, inputs, draw(*out.shape, dtype=out.dtype, seed=77).to(out.device))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", CASES)
def test_equals_the_formula(case, device):
    make, shapes = CASES[case]
    inputs = [draw(*shape, seed=i).to(device) for i, shape in enumerate(shapes)]
    actual = outputs_and_gradients(make(uniattn), inputs)
    expected = outputs_and_gradients(make(formulas), inputs)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-11)
    if sum(x.numel() for x in inputs) < 1000:
        assert torch.autograd.gradcheck(make(uniattn), [x.requires_grad_() for x in inputs])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", CASES)
def test_low_precision_error_is_at_most_twice_the_formulas(case, dtype, device):
    make, shapes = CASES[case]
    inputs = [draw(*shape, seed=i, dtype=dtype).to(device) for i, shape in enumerate(shapes)]
    actual = outputs_and_gradients(make(uniattn), inputs)
    plain = outputs_and_gradients(make(formulas), inputs)
    exact = outputs_and_gradients(make(formulas), [x.double() for x in inputs])
    for a, p, e in zip(actual, plain, exact, strict=True):
        allowed = 2 * (p.double() - e).abs().max() + 2 * torch.finfo(dtype).eps * e.abs().max()
        assert (a.double() - e).abs().max() <= allowed


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", CASES)
def test_results_repeat_to_the_bit_and_strides_do_not_matter(case, device):
    make, shapes = CASES[case]
    inputs = [draw(*shape, seed=i, dtype=torch.float32).to(device) for i, shape in enumerate(shapes)]
    strided = [x.repeat_interleave(2, dim=-1)[..., ::2] for x in inputs]
    results = outputs_and_gradients(make(uniattn), inputs)
    again = outputs_and_gradients(make(uniattn), inputs)
    assert all(torch.equal(a, b) for a, b in zip(results, again, strict=True))
    for a, b in zip(results, outputs_and_gradients(make(uniattn), strided), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("chunk", [1, 3, 1024])
def test_cross_entropy_does_not_depend_on_the_chunk(chunk):
    hidden, weight = draw(7, 16), draw(8, 16, seed=1)
    loss = uniattn.linear_cross_entropy(hidden, weight, LABELS, chunk=chunk)
    torch.testing.assert_close(loss, formulas.linear_cross_entropy(hidden, weight, LABELS), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("device", DEVICES)
def test_cross_entropy_without_supervised_tokens_is_zero(device):
    hidden, weight = (x.float().to(device).requires_grad_() for x in (draw(3, 4), draw(5, 4, seed=1)))
    loss = uniattn.linear_cross_entropy(hidden, weight, torch.full((3,), -100, device=device))
    loss.sum().backward()
    assert loss.count_nonzero() == hidden.grad.count_nonzero() == weight.grad.count_nonzero() == 0


@pytest.mark.parametrize("device", DEVICES)
def test_no_tokens_are_nothing_to_do(device):
    weight = torch.ones(16, device=device, requires_grad=True)
    norm = uniattn.rms_norm(torch.empty(0, 16, device=device), weight, 1e-5)
    empty = torch.empty(0, 2, 16, device=device)
    rotated = uniattn.rotary(empty, *(t.float().to(device) for t in angles(0, 8)))
    assert norm.shape == uniattn.gated_activation(norm, norm).shape == (0, 16) and rotated.shape == empty.shape
    assert torch.autograd.grad(norm.sum(), weight)[0].count_nonzero() == 0


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("label", [9, -1, -101])
def test_labels_outside_the_vocabulary_are_refused(label, device):
    hidden, weight = draw(3, 4).float().to(device), draw(9, 4).float().to(device)
    with pytest.raises(ValueError, match=rf"labels must be -100 \(ignored\) or in \[0, 9\), got {label}"):
        uniattn.linear_cross_entropy(hidden, weight, torch.tensor([1, label, 2], device=device))


def test_gradients_that_fit_no_forward_pass_are_refused():
    ops, x, weight = torch.ops.uniattn, draw(5, 4), draw(4)
    with pytest.raises(ValueError, match=r"rstd must be Double \[5\] for x \[5, 4\] of Double, got Double \[6\]"):
        ops.rms_norm_backward(x, x, weight, draw(6), False)
    labels, rows = torch.zeros(5, dtype=torch.int64), draw(5)
    for grad, lse, name in ((draw(4), rows, "grad"), (rows, rows.float(), "lse"), (rows, draw(5, 1), "lse")):
        with pytest.raises(ValueError, match=rf"{name} must be Double \[5\] for hidden \[5, 4\] of Double"):
            ops.linear_cross_entropy_backward(grad, x, draw(9, 4), labels, lse, 0.0, 1024)


def test_autocast():
    x, weight = draw(7, 16, dtype=torch.float32), draw(16, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert uniattn.rms_norm(x.bfloat16(), weight, 1e-5).dtype == torch.bfloat16
        assert uniattn.rms_norm(x, weight, 1e-5).dtype == torch.float32
        assert uniattn.gated_activation(x, x).dtype == torch.bfloat16
        assert uniattn.compensated_output(x, x, x, x).dtype == torch.bfloat16
        assert uniattn.linear_cross_entropy(x, x, LABELS).dtype == torch.float32


def test_linear_has_second_derivatives():
    x, weight = draw(3, 4).requires_grad_(), draw(5, 4, seed=1).requires_grad_()
    assert torch.autograd.gradgradcheck(uniattn.linear, [x, weight])


@pytest.mark.parametrize("rows, depth, width", [(32, 300, 40), (37, 1025, 8), (130, 256, 264), (64, 600, 41)])
def test_products_in_float64(rows, depth, width):
    """The sums of the calibration: more than one strip and block of depth, what is left over of them, any strides."""
    x, weight = draw(rows, depth), draw(width, depth, seed=1)
    exact = torch.from_numpy((x.numpy().astype("longdouble") @ weight.numpy().T.astype("longdouble")).astype("float64"))
    close = {"rtol": 0, "atol": 1e-13 * depth**0.5}
    torch.testing.assert_close(uniattn.linear(x, weight), exact, **close)
    torch.testing.assert_close(uniattn.linear(x.t().contiguous().t(), weight.t().contiguous().t()), exact, **close)


def test_compensated_output():
    o, w_o, x, w_c = draw(7, 6), draw(4, 6, seed=1), draw(7, 4, seed=2), draw(4, 4, seed=3)
    torch.testing.assert_close(uniattn.compensated_output(o, w_o, x, w_c), o @ w_o.T + x @ w_c.T)
    assert torch.autograd.gradcheck(uniattn.compensated_output, [t.requires_grad_() for t in (o, w_o, x, w_c)])


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: uniattn.rms_norm(draw(4, 8), draw(7), 1e-5), r"weight must be \[D\].*got \[7\]"),
        (lambda: uniattn.rms_norm(draw(4, 8), draw(8).float(), 1e-5), "weight is Float but x is Double"),
        (lambda: uniattn.rotary(draw(4, 2, 7), *angles(4, 3)), "even head_dim"),
        (lambda: uniattn.rotary(draw(4, 2, 8), *angles(4, 8)), r"cos must be \[tokens, head_dim / 2\]"),
        (lambda: uniattn.rotary(draw(4, 2, 8), draw(4, 4).requires_grad_(), draw(4, 4)), "constants"),
        (lambda: uniattn.gated_activation(draw(4, 8), draw(4, 7)), "up must have the shape of gate"),
        (lambda: uniattn.gated_activation(draw(4), draw(4), "relu"), "activation must be 'silu' or 'gelu_tanh', got 'relu'"),
        (lambda: uniattn.linear_cross_entropy(draw(6, 4), draw(9, 4), LABELS), r"labels must be int64 \[tokens\] = \[6\]"),
        (lambda: uniattn.linear_cross_entropy(draw(7, 4), draw(9, 5), LABELS), r"weight must be \[vocab, D\]"),
        (lambda: uniattn.linear_cross_entropy(draw(7, 4), draw(9, 4), LABELS, chunk=0), "chunk must be positive"),
        (lambda: uniattn.linear(draw(7, 4), draw(9, 5)), r"weight must be \[D, F\]"),
        (lambda: uniattn.compensated_output(draw(7, 4), draw(9, 5), draw(7, 9), draw(9, 9)), r"w_o must be \[D, F\]"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises((ValueError, RuntimeError), match=message):
        call()
