"""CSR layers: linear layers that hold only the weights that are left, and putting them in place of dense ones."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from incop.errors import InputError, quoted
from incop.layers import is_conv1d


class CSRLinear(nn.Module):
    """A linear layer y = x Wᵀ + b whose W is kept as CSR: computed as (b 1ᵀ + W xᵀ)ᵀ, which is fastest on a CPU.

    For inference; gradients do not flow to W.

    Args:
        weight: W as a sparse CSR tensor, (outputs, inputs).
        bias: b, (outputs,), or None.

    Example:
        >>> import torch
        >>> from incop.export import CSRLinear
        >>> layer = CSRLinear.of(torch.eye(3), torch.ones(3))
        >>> layer(torch.zeros(2, 5, 3)).shape
        torch.Size([2, 5, 3])
    """

    weight: Tensor
    bias: nn.Parameter | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.register_buffer("weight", weight)
        own = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)
        self.register_parameter("bias", own)

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None) -> CSRLinear:
        """Make the layer of a dense W, whose zeros are left out.

        Args:
            weight: (outputs, inputs).
            bias: (outputs,), or None.
        """
        with _without_beta_warning():
            found = weight.detach().to_sparse_csr()
        # 32 bits: MKL takes no others, and torch would turn 64 into them at every call
        return cls(
            checked_csr(found.crow_indices().int(), found.col_indices().int(), found.values(), weight.shape), bias
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return y, (…, outputs), for x, (…, inputs)."""
        rows = x.reshape(-1, self.in_features)
        if rows.shape[0] == 0:
            return x.new_zeros((*x.shape[:-1], self.out_features))
        if rows.shape[0] == 1:  # matrix times vector: half the time of a matrix of one column
            y = torch.mv(self.weight, rows[0]) if self.bias is None else torch.addmv(self.bias, self.weight, rows[0])
        elif self.bias is None:
            y = (self.weight @ rows.T).T.contiguous()  # as nn.Linear's are: whoever takes a view of it may go on
        else:
            b_ON = self.bias[:, None].expand(-1, rows.shape[0])
            y = torch.addmm(b_ON, self.weight, rows.T).T.contiguous()
        return y.view(*x.shape[:-1], self.out_features)

    def __deepcopy__(self, memo: dict[int, Any]) -> CSRLinear:
        """Copy; torch cannot copy a sparse tensor by itself."""
        made = CSRLinear(self.weight.clone(), self.bias).train(self.training)
        memo[id(self)] = made
        return made

    def extra_repr(self) -> str:
        """Say the sizes."""
        left = self.weight.values().numel()
        return f"in_features={self.in_features}, out_features={self.out_features}, weights={left}"


@contextmanager
def _without_beta_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta", category=UserWarning)
        yield


def checked_csr(crow: Tensor, col: Tensor, values: Tensor, shape: Iterable[int]) -> Tensor:
    """Return the sparse tensor of CSR's three parts, which may be a stranger's."""
    with _without_beta_warning():  # checked: a wrong index would read memory that is not the tensor's
        return torch.sparse_csr_tensor(crow, col, values, size=tuple(shape), check_invariants=True)


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the linear layers that a CSRLinear can stand in for, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if (isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward) or is_conv1d(module)
        if isinstance(module._parameters.get("weight"), Tensor) and module.weight.numel()  # no parametrization
    }


def sparse_layer(module: nn.Module) -> CSRLinear:
    """Return the CSR layer of a linear one; transformers' `Conv1D` is turned."""
    weight = module.weight.T if is_conv1d(module) else module.weight
    return CSRLinear.of(weight, module.bias)  # type: ignore[arg-type]


def replaced(model: nn.Module, names: Iterable[str]) -> nn.Module:
    """Return a copy in which these layers are CSR."""
    model = copy.deepcopy(model)
    linear = linear_layers(model)
    for name in names:
        if name not in linear:
            raise InputError(f"{quoted(name)} is no linear layer of this {type(model).__name__}")
    return put(model, {name: sparse_layer(linear[name]) for name in names})


def put(model: nn.Module, layers: dict[str, CSRLinear]) -> nn.Module:
    """Put CSR layers in place of a model's own, everywhere it holds them, and return it (or the layer, where it is all)."""
    instead = {id(model.get_submodule(name)): layer for name, layer in layers.items()}
    if id(model) in instead:
        return instead[id(model)].eval()
    for holder in list(model.modules()):
        for own, child in list(holder._modules.items()):  # named_children would give a module that is held twice once
            if id(child) in instead:
                setattr(holder, own, instead[id(child)].eval())
        if isinstance(holder, nn.TransformerEncoderLayer) and any(isinstance(m, CSRLinear) for m in holder.children()):
            holder.activation_relu_or_gelu = 0  # torch's fused path would read the dense weights past the modules
    return model
