"""Kernels for frozen weights agree with torch's own product, and each row's result is its own."""

from __future__ import annotations

import pytest
import torch

from automl.packed.kernels import KERNELS, OUTPUT_KERNELS, Rounded, choose_kernel, choose_precision, works

CPU = torch.device("cpu")
# bfloat16 keeps 8 bits of each factor and of the result.
TOLERANCE = {"torch-fp32": 1e-5, "onednn-fp32": 1e-5, "torch-bf16": 1e-5, "torch-bf16h": 3e-2, "onednn-bf16h": 3e-2}


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def names() -> list[str]:
    return [name for name in KERNELS if works(name)]


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("table", [KERNELS, OUTPUT_KERNELS], ids=["inner", "output"])
@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no bias"])
def test_kernels_agree_with_the_plain_product(name: str, table: dict, has_bias: bool) -> None:  # type: ignore[type-arg]
    weight, bias, x, g = drawn(40, 24), drawn(40) if has_bias else None, drawn(16, 24), drawn(16, 40)
    kernel = table[name](weight, bias)
    y, dx = kernel.forward(x), kernel.backward(g)

    assert (y.dtype, dx.dtype) == (torch.float32, torch.float32)
    scale = TOLERANCE[name] * 24**0.5
    torch.testing.assert_close(y, torch.nn.functional.linear(x, weight, bias), atol=scale, rtol=TOLERANCE[name])
    torch.testing.assert_close(dx, g @ weight, atol=2 * scale, rtol=TOLERANCE[name])


@pytest.mark.parametrize("name", ["onednn-fp32", "onednn-bf16h"])
@pytest.mark.parametrize("shape", [(384, 384), (1536, 384), (384, 1536), (192, 576), (32, 64)])
def test_a_row_does_not_depend_on_the_rows_beside_it(name: str, shape: tuple[int, int]) -> None:
    if not works(name):
        pytest.skip(f"{name} does not work on this CPU")
    kernel, x = KERNELS[name](drawn(*shape), None), drawn(600, shape[1])
    together = kernel.forward(x)

    for rows in (8, 24, 96, 136, 512):
        for start in (0, 8, 80):
            own, shared = kernel.forward(x[start : start + rows]), together[start : start + rows]
            if name == "onednn-fp32":
                assert torch.equal(own, shared)
            else:  # with AMX long sums are added up in blocks, whose number depends on that of the rows
                torch.testing.assert_close(own, shared, rtol=2**-7, atol=1e-3 * float(shared.abs().max()))


def test_the_lm_head_is_not_rounded_on_the_way_forward() -> None:
    weight, x = drawn(40, 24), drawn(16, 24)
    for name in names():
        torch.testing.assert_close(OUTPUT_KERNELS[name](weight, None).forward(x), x @ weight.t(), atol=1e-4, rtol=1e-5)


def test_rounded_factors_leave_sums_in_float32_and_torch_as_it_was() -> None:
    weight, x, g = drawn(512, 256), drawn(64, 256), drawn(64, 512)
    backend = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # made at import
    before, kernel = backend.fp32_precision, Rounded(weight, None)
    y, dx = kernel.forward(x), kernel.backward(g)
    assert backend.fp32_precision == before
    assert (y.dtype, dx.dtype) == (torch.float32, torch.float32)
    if torch.equal(y, x @ weight.t()):
        pytest.skip("this CPU does not know bfloat16")
    halves = x.bfloat16().float(), weight.bfloat16().float(), g.bfloat16().float()
    torch.testing.assert_close(y, halves[0] @ halves[1].t(), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(dx, halves[2] @ halves[1], atol=1e-4, rtol=1e-5)
    with pytest.raises(RuntimeError, match=r"shape|size"):
        kernel.forward(drawn(64, 255))
    assert backend.fp32_precision == before


def test_precision_auto_is_one_of_the_two_and_leaves_torch_as_it_was() -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    assert choose_precision(CPU) in ("fp32", "bf16h")
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ValueError, match="precision 'fp8': the packed trainer knows fp32, bf16h and bf16"):
        choose_kernel("fp8", CPU)
