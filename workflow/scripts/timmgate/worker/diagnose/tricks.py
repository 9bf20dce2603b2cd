"""Parts of the compiler that are taken out in a way that torch has no setting for."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from unittest import mock

import torch


@contextmanager
def captured_anew() -> Iterator[None]:
    """No program that was captured runs a second time: whatever the guards say, they do not hold."""
    from torch._dynamo import guards

    original = guards.CheckFunctionManager.__init__

    def never_again(self, *args, **kwargs):
        original(self, *args, **kwargs)
        self.guard_manager.root.add_lambda_guard(lambda _: False, ["captured anew in each call"], None)

    limits = {
        name: 10**9 for name in ("recompile_limit", "accumulated_recompile_limit") if hasattr(torch._dynamo.config, name)
    }
    with torch._dynamo.config.patch(limits), mock.patch.object(guards.CheckFunctionManager, "__init__", never_again):
        yield


@contextmanager
def unguarded() -> Iterator[None]:
    """The program that was captured first always runs."""
    compile_ = torch.compile

    def without_guards(*args, **kwargs):
        return compile_(*args, options={"guard_filter_fn": lambda guards: [False] * len(guards)}, **kwargs)

    with mock.patch.object(torch, "compile", without_guards):
        yield


TRICKS: dict[str | None, Callable[[], AbstractContextManager[None]]] = {
    None: nullcontext,
    "captured_anew": captured_anew,
    "unguarded": unguarded,
}
"""By name. Loops are interpreted by `applications`, which counts them."""
