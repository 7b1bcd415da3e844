"""Imports of libraries put off until they are used, so that a training starts in a fraction of the time.

diffusers and transformers import packages for features that few trainings use, and torch's compiler, which
is half of torch. In lorakit's own processes such a module is loaded at the first access to one of its
attributes. A few decorators of the compiler are used by every training; they do nothing while nothing is
compiled, so what they were called for is noted, and done when the compiler is loaded.
"""

from __future__ import annotations

import functools
import importlib
import importlib.abc
import importlib.machinery
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_COMPILER = "torch._dynamo"
DEFERRED = (
    _COMPILER,
    "bitsandbytes",
    "scipy.integrate",
    "scipy.optimize",
    "scipy.stats",
    "torch._dynamo._trace_wrapped_higher_order_op",
    "torch.distributed.tensor._decompositions",
    "torch.fx.experimental.symbolic_shapes",
    "torchvision.datasets",
    "torchvision.models",
    "torchvision.ops",
    "torchvision.ops.boxes",
)
"""Modules that are loaded at their first use."""
_NAMES = {
    "scipy.optimize": ("linear_sum_assignment",),
    "torch._dynamo._trace_wrapped_higher_order_op": ("TransformGetItemToIndex",),
    "torch.distributed.tensor._decompositions": ("DecompShardingStrategy",),
    "torch.fx.experimental.symbolic_shapes": (
        "expect_true",
        "free_unbacked_symbols",
        "guard_or_false",
        "guard_or_true",
        "has_free_unbacked_symbols",
        "is_nested_int",
        "statically_known_true",
    ),
    "torchvision.ops.boxes": ("box_iou",),
}
"""Functions and classes that libraries import by name; a call or an attribute of one is the first use."""
COMPILES_AT_IMPORT = ("bitsandbytes.backends.default.ops",)
"""Modules that call `torch.compile`, which loads the compiler, while they are imported."""
_ABOUT_UNKNOWN_VALUES = ("expect_true", "guard_or_false", "guard_or_true", "statically_known_true")
"""Functions that return a known truth value as it is: only a compiler has others."""
_CONSTRUCTED_AT_IMPORT = ("DecompShardingStrategy",)
"""Classes of which a library makes an object while it is imported."""
_MARKS = ("allow_in_graph", "assume_constant_result")
"""Decorators of the compiler that return the function itself."""
_ASKED_BY_IMPORTS = {"__version__", "__all__", "__getattr__"}
_DISABLED = "__dynamo_disable"  # under which torch keeps the function that is not compiled
_lock = threading.RLock()


def defer_imports() -> None:
    """Put off the imports of this process. For processes of lorakit, not for those of a user's program."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def is_loaded(name: str) -> bool:
    """Return True if a module is imported, and has not only been named in an import."""
    module = sys.modules.get(name)
    return module is not None and not isinstance(module, _DeferredModule)


class _DeferredModule(ModuleType):
    """A module before it is loaded; afterwards its class is that of other modules."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name not in _ASKED_BY_IMPORTS:
            raise AttributeError(name)
        _load(self)
        return getattr(self, name)


def _load(module: ModuleType) -> None:
    with _lock:
        if not isinstance(module, _DeferredModule):
            return
        loader = module.__spec__.loader if module.__spec__ else None
        assert isinstance(loader, _DeferringLoader)
        parent = sys.modules.get(module.__name__.rpartition(".")[0])
        if isinstance(parent, _DeferredModule):
            _load(parent)
        if isinstance(module, _DeferredModule):  # its parent does not use it
            loader.load(module)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules named above as Python does, and changes when they are loaded."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a module with another loader; None for all other modules."""
        parent = sys.modules.get(name.rpartition(".")[0])
        if isinstance(parent, _DeferredModule) and name not in DEFERRED:
            _load(parent)
            if name in sys.modules:  # its parent has imported it just now
                module = sys.modules[name]
                loaded = ModuleSpec(name, _LoadedAlready(module))
                vars(module)["__spec__"] = loaded  # which Python asks, and would load the module again
                return loaded
        if name not in DEFERRED and name not in COMPILES_AT_IMPORT:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = (_DeferringLoader if name in DEFERRED else _WithoutCompiler)(spec.loader)
        return spec


class _Loader(importlib.abc.Loader):
    """A loader around that of a module."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Create the module as its own loader does."""
        created: ModuleType | None = self._loader.create_module(spec)
        return created

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)  # source, resources and the like


class _DeferringLoader(_Loader):
    """Creates a module without loading it."""

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Create a module that is loaded at its first use."""
        return _DeferredModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Only add what libraries import of it by name."""
        for name in _NAMES.get(module.__name__, ()):
            vars(module)[name] = _DeferredName(module, name)
        self._notes = _CompilerNotes() if module.__name__ == _COMPILER else None
        if self._notes:
            vars(module).update(self._notes.names())

    def load(self, module: ModuleType) -> None:
        """Load the module."""
        module.__class__ = ModuleType
        try:
            self._loader.exec_module(module)
        except BaseException:
            module.__class__ = _DeferredModule
            raise
        if self._notes:
            self._notes.apply(module)


class _DeferredName:
    """A function or class of a module that is loaded when it is called or asked for an attribute."""

    def __init__(self, module: ModuleType, name: str) -> None:
        self._module, self._name = module, name

    def _real(self) -> Any:
        _load(self._module)
        return getattr(self._module, self._name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._name in _ABOUT_UNKNOWN_VALUES and args and type(args[0]) is bool:
            return args[0]
        if self._name == "is_nested_int" and args and type(args[0]) is int:
            return False
        if self._name in _CONSTRUCTED_AT_IMPORT:
            return _DeferredObject(lambda: self._real()(*args, **kwargs))
        return self._real()(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._real(), name)


class _DeferredObject:
    """An object that is constructed when it is asked for an attribute."""

    def __init__(self, construct: Callable[[], Any]) -> None:
        self._construct = functools.cache(construct)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._construct(), name)


class _CompilerNotes:
    """Calls of the decorators of a compiler that is not loaded yet."""

    def __init__(self) -> None:
        self._marked: list[tuple[str, Any]] = []
        self._disabled: list[tuple[Any, tuple[Any, ...], Mapping[str, Any], Any]] = []

    def names(self) -> dict[str, Any]:
        """Return the decorators that note their calls, and the class of a compiled module: there is none."""
        marks = {name: functools.partial(self._mark, name) for name in _MARKS}
        return {**marks, "disable": self._disable, "eval_frame": _NoCompiledModules()}

    def _mark(self, name: str, function: Any) -> Any:
        self._marked.append((name, function))
        return function

    def _disable(self, function: Any = None, *args: Any, **options: Any) -> Any:
        if function is None:
            return lambda function: self._disable(function, *args, **options)

        @functools.wraps(function)
        def call(*call_args: Any, **call_options: Any) -> Any:
            return function(*call_args, **call_options)

        self._disabled.append((function, args, options, call))
        return call

    def apply(self, compiler: Any) -> None:
        """Tell the compiler, which is loaded now; torch keeps the result of `disable` at its function."""
        for name, function in self._marked:
            getattr(compiler, name)(function)
        for function, args, options, call in self._disabled:
            if getattr(function, _DISABLED, None) is call:
                setattr(function, _DISABLED, compiler.disable(function, *args, **options))


class _NoCompiledModules:
    """`torch._dynamo.eval_frame` as far as libraries ask it whether a module is compiled."""

    class OptimizedModule:
        """No module is an instance of it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(f"{_COMPILER}.eval_frame"), name)


class _WithoutCompiler(_Loader):
    """A loader during whose work `torch.compile` only notes what has to be compiled."""

    def exec_module(self, module: ModuleType) -> None:
        """Load the module."""
        import torch

        torch_compile = torch.compile
        setattr(torch, "compile", functools.partial(_compile_later, torch_compile))  # noqa: B010
        try:
            self._loader.exec_module(module)
        finally:
            setattr(torch, "compile", torch_compile)  # noqa: B010


def _compile_later(
    torch_compile: Callable[..., Any], function: Callable[..., Any], **options: Any
) -> Callable[..., Any]:
    """Return a function that is compiled at its first call."""

    @functools.cache
    def compiled() -> Callable[..., Any]:
        result: Callable[..., Any] = torch_compile(function, **options)
        return result

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return compiled()(*args, **kwargs)

    return call


class _LoadedAlready(importlib.abc.Loader):
    """Returns a module that was loaded while it was searched."""

    def __init__(self, module: ModuleType) -> None:
        self._module, self._spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the module."""
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        """Keep the module's own spec."""
        vars(module)["__spec__"] = self._spec  # modules of settings refuse new attributes
