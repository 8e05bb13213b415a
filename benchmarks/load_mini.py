"""Time to load m3-mini after torch and transformers are imported, and peak memory.

python benchmarks/load_mini.py
"""

from __future__ import annotations

import resource
import sys
import time
import warnings

from m3_integrations import M3Encoder
from m3_integrations.errors import TextsTruncated


def main() -> None:
    warnings.simplefilter("ignore", TextsTruncated)
    peak = peak_memory()
    start = time.perf_counter()
    encoder = M3Encoder.from_pretrained()
    print(f"{encoder!r}: loaded in {time.perf_counter() - start:.2f} s")
    print(f"peak memory {peak:.0f} MB after imports, {peak_memory():.0f} MB after loading")
    encoder.encode_passages(["The quick brown fox jumps over the lazy dog. " * 40] * 32)
    print(f"{peak_memory():.0f} MB after encoding 32 texts of {encoder.max_length} tokens at the default budget")


def peak_memory() -> float:
    """Peak memory in MB; ru_maxrss is in bytes on macOS, in kilobytes elsewhere."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


if __name__ == "__main__":
    main()
