"""Slow and obvious: outputs that the test captures itself, correlations by np.corrcoef, read-outs by least squares."""

import copy

import numpy as np
import torch


def outputs(model, x, names):
    """Outputs of the named layers, averaged over space, (n, M) float64 each; by hooks of the test's own."""
    found, was = {}, copy.deepcopy(model).eval()
    for name in names:
        was.get_submodule(name).register_forward_hook(
            lambda m, a, out, name=name: found.__setitem__(name, out.detach().double().numpy().copy())
        )
    with torch.no_grad():
        was(x)
    return {name: out.reshape(*out.shape[:2], -1).mean(2) if out.ndim > 2 else out for name, out in found.items()}


def lives(a):
    """Which columns vary by more than rounding."""
    return a.std(0) > 1e-9 * np.abs(a).max()


def rho(a, b):
    """Correlations of the columns of two arrays; 0 where one does not vary."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.corrcoef(a.T, b.T)[: a.shape[1], a.shape[1] :]
    return np.where(lives(a)[:, None] & lives(b), found, 0.0)


def standardised(a):
    return (a - a.mean(0)) / np.where(lives(a), a.std(0), np.inf)


def r2(a, b):
    """R² of the best affine read-out of each column of b from a, by least squares."""
    a, b = a - a.mean(0), b - b.mean(0)
    rest = b - a @ np.linalg.lstsq(a, b, rcond=None)[0]
    return 1 - (rest**2).sum(0) / (b**2).sum(0)


def with_correlations(matrix, n=400, seed=0):
    """Draw n samples whose sample correlations are exactly those of a matrix, with mean 0 and variance 1."""
    raw = np.random.default_rng(seed).standard_normal((n, len(matrix)))
    raw -= raw.mean(0)
    white = raw @ np.linalg.inv(np.linalg.cholesky(raw.T @ raw / n).T)
    values, vectors = np.linalg.eigh(np.asarray(matrix, dtype=float))
    return white @ (vectors * np.sqrt(np.clip(values, 0, None))).T
