"""When the ranks of a host begin to have one copy of what an optimizer was built for."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from disttensor.tensor import Variable


def sharing(build: Callable[..., None]) -> Callable[..., None]:
    """A method `build` of an optimizer at whose end, if no other calls it, `share_variables` is called."""

    @functools.wraps(build)
    def shares(self: Any, variables: Sequence[Variable]) -> None:
        is_outermost, self._is_building = not self._is_building, True
        try:
            build(self, variables)
        finally:
            self._is_building = not is_outermost
        if is_outermost:
            self.share_variables()

    return shares
