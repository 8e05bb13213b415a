"""An encoder that travels between processes; it waits as long as it is told, so that it can be killed at work."""

from __future__ import annotations

import time

from m3_integrations.testing import HashEncoder


class Plain(HashEncoder):
    def __init__(self, seed=0, wait=0.0):
        super().__init__(seed=seed)
        self.wait = wait

    def __reduce__(self):
        return Plain, (self.seed, self.wait)

    def __repr__(self):
        return f"Plain({self.seed})"

    def encode_passages(self, texts, modes=None, *, show_progress=False):
        time.sleep(self.wait)
        return super().encode_passages(texts, modes)
