"""Gradients of attention in half precision on a CPU, by matrix products.

The kernel of torch (`scaled_dot_product_attention`, "flash attention for CPU") is fast forwards. Backwards it
takes two to twenty times as long in bfloat16 as in float32, since it uses no bf16 instructions there, so that
a training in bf16 would be slower than one in fp32. Here the same gradients are five matrix products, for as
many heads at once as fit a buffer of fixed size; of many scores with narrow heads, where products are slow,
they are computed in float32.
"""

from __future__ import annotations

import functools
import math

import torch

MAX_SCORES = 2**20
"""Scores that are computed at once, except those of one head: 2 MiB, which a core's cache holds."""
_MAX_HEAD_SCORES = 2**24  # longer inputs are left to the kernel, which keeps no scores in memory
_NARROW_HEAD, _NARROW_SCORES = 32, 2**18  # products of narrower heads are slow where there are more scores
_SCORE_BYTES = 4 * 2  # scores, weights, and the gradients of both, in half precision
MAX_WORKSPACE = _SCORE_BYTES * MAX_SCORES
OPERATOR = "_scaled_dot_product_flash_attention_for_cpu_backward"
_HALF = (torch.bfloat16, torch.float16)
_Gradients = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@functools.cache
def use_matrix_products() -> torch.library.Library:
    """Compute these gradients by matrix products in this process from now on; others are computed as before.

    Returns the registration, which is valid for as long as it is kept.
    """
    kernel = torch.library.get_kernel(f"aten::{OPERATOR}", "CPU")

    def backward(
        keys: torch.DispatchKeySet,
        grad_out: torch.Tensor,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        out: torch.Tensor,
        logsumexp: torch.Tensor,
        dropout_p: float,
        is_causal: bool,
        *,
        attn_mask: torch.Tensor | None = None,
        scale: float | None = None,
    ) -> _Gradients:
        per_head, is_half = query.shape[2] * key.shape[2], query.dtype in _HALF
        is_plain = not (dropout_p or is_causal) and query.shape[:2] == key.shape[:2]
        is_wide = _is_wide(query, key)
        if is_half and is_plain and is_wide and per_head <= _MAX_HEAD_SCORES:
            return attention_gradients(grad_out, query, key, value, attn_mask, scale)
        tensors = [grad_out, query, key, value, out]
        if is_half and not is_wide:
            tensors = [tensor.float() for tensor in tensors]
            attn_mask = None if attn_mask is None else attn_mask.float()
        gradients: _Gradients = kernel.call_boxed(
            keys, *tensors, logsumexp, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
        )
        return gradients if gradients[0].dtype == query.dtype else _cast(gradients, query.dtype)

    library = torch.library.Library("aten", "IMPL")
    library.impl(OPERATOR, backward, "CPU", with_keyset=True)
    return library


def _is_wide(query: torch.Tensor, key: torch.Tensor) -> bool:
    return query.shape[3] >= _NARROW_HEAD or query.shape[2] * key.shape[2] <= _NARROW_SCORES


def workspace_bytes(query: torch.Tensor, key: torch.Tensor) -> tuple[int, int]:
    """Return the bytes of temporary tensors beside the results, for the planner: those that grow with the
    batch, and those that do not once they are `MAX_WORKSPACE` bytes, which only half precision has.
    """
    if not _is_wide(query, key):  # inputs and results in float32
        return 8 * 4 * max(query.numel(), key.numel()) * (query.dtype in _HALF), 0
    per_head = query.shape[2] * key.shape[2]
    if per_head > _MAX_HEAD_SCORES:
        return 0, 0
    return 0, _SCORE_BYTES * min(query.shape[0] * query.shape[1] * per_head, max(per_head, MAX_SCORES))


def _cast(gradients: _Gradients, dtype: torch.dtype) -> _Gradients:
    query, key, value = (gradient.to(dtype) for gradient in gradients)
    return query, key, value


def attention_gradients(
    grad_out: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    scale: float | None = None,
) -> _Gradients:
    """Return the gradients of softmax(scale Q K^T + mask) V by Q, K and V, given the one by the result.

    `query` and `grad_out` are (B, heads, N, D), `key` and `value` (B, heads, M, D), `mask` broadcasts to
    (B, heads, N, M).
    """
    batch, heads, length, width = query.shape
    scale = 1 / math.sqrt(width) if scale is None else scale
    if mask is not None:
        mask = mask.expand(batch, heads, length, key.shape[2])
    gradients = tuple(_empty_as_projected(tensor) for tensor in (query, key, value))
    per_head = length * key.shape[2]
    some_heads = max(1, min(heads, MAX_SCORES // per_head))
    some_items = max(1, MAX_SCORES // (per_head * heads)) if some_heads == heads else 1
    for item in range(0, batch, some_items):
        for head in range(0, heads, some_heads):
            part = (slice(item, item + some_items), slice(head, head + some_heads))
            part_mask = None if mask is None else mask[part]
            computed = _gradients_at_once(
                grad_out[part], query[part], key[part], value[part], part_mask, scale
            )
            for target, values in zip(gradients, computed, strict=True):
                target[part] = values
    return gradients  # type: ignore[return-value]


def _empty_as_projected(tensor: torch.Tensor) -> torch.Tensor:
    """Return an empty tensor (B, heads, N, D) whose heads lie side by side, as layers return them."""
    return torch.empty_like(tensor.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)


def _gradients_at_once(
    grad_out: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
) -> _Gradients:
    query = query * scale
    scores = query @ key.transpose(-2, -1)
    if mask is not None:
        scores += mask
    weights = torch.softmax(scores, -1)
    grad_weights = grad_out @ value.transpose(-2, -1)
    grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
    # a product copies a transposed factor: so the small ones are transposed, not the weights
    grad_value = (grad_out.transpose(-2, -1) @ weights).transpose(-2, -1)
    grad_key = (query.transpose(-2, -1) @ grad_scores).transpose(-2, -1)
    return (grad_scores @ key) * scale, grad_key, grad_value
