"""Libraries are imported at their first use in a training process, and then do what they do without this."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest


def run(code: str) -> str:
    """Run a program in a process of its own, with imports put off, and return what it prints."""
    start = "import sys\nfrom lorakit.core import deferred_imports\ndeferred_imports.defer_imports()\n"
    command = [sys.executable, "-c", start + textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def test_a_named_import_loads_nothing_and_the_first_use_loads_the_module_once():
    assert run(
        """
            import scipy.stats as stats
            from scipy import integrate
            from scipy.optimize import linear_sum_assignment
            names = ("scipy.stats", "scipy.integrate", "scipy.optimize")
            print([deferred_imports.is_loaded(name) for name in names])
            print(linear_sum_assignment([[4, 1], [2, 3]])[1].tolist(), round(stats.norm.cdf(0.0), 3))
            import scipy.stats.distributions as distributions
            print(distributions.norm is stats.norm, stats is sys.modules["scipy.stats"])
            print([deferred_imports.is_loaded(name) for name in names])
            """
    ).splitlines() == ["[False, False, False]", "[1, 0] 0.5", "True True", "[True, True, True]"]


def test_an_optimizer_of_bitsandbytes_does_without_the_compiler():
    assert (
        run(
            """
            import bitsandbytes, torch
            layer = torch.nn.Linear(8, 8)
            optimizer = bitsandbytes.optim.AdamW8bit(layer.parameters(), min_8bit_size=1)
            layer(torch.ones(1, 8)).sum().backward()
            optimizer.step()
            print(layer.bias.abs().sum() > 0, [name in sys.modules for name in ("sympy", "torch._inductor")])
            print(deferred_imports.is_loaded("torch._dynamo"))
            """
        )
        == "tensor(True) [False, False]\nFalse"
    )


@pytest.mark.parametrize("first", ["import torch", "import diffusers.models.attention"])
def test_the_compiler_learns_what_was_marked_before_it_was_loaded(first):
    printed = run(
        f"""
        {first}
        import torch
        from torch._dynamo import allow_in_graph
        @allow_in_graph
        def opaque(x):
            return x.numpy() is not None and x + 1
        torch.optim.SGD([torch.nn.Parameter(torch.ones(2))])  # calls a function that is never compiled
        print(deferred_imports.is_loaded("torch._dynamo"))
        import torch._dynamo.config as config
        import torch._dynamo.trace_rules as rules
        assert config is torch._dynamo.config and config.__spec__.name == config.__name__
        print(deferred_imports.is_loaded("torch._dynamo"), id(opaque) in rules._allowed_callable_ids)
        method = torch.optim.Optimizer.add_param_group.__wrapped__
        print(getattr(method, "__dynamo_disable")._torchdynamo_disable)
        compiled = torch.compile(lambda x: x * 2, backend="eager")
        print(compiled(torch.ones(2)).tolist())
        """
    )
    assert printed.splitlines() == ["False", "True True", "True", "[2.0, 2.0]"]


def test_a_process_without_deferred_imports_is_left_alone():
    code = "import sys; old = list(sys.meta_path); import lorakit.training.start; print(old == sys.meta_path)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
