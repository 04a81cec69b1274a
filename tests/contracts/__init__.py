"""Contracts: what everything of a kind must keep, run over each of that kind."""

import pytest

pytest.register_assert_rewrite("contracts.trainers")
