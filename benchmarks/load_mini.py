"""How long m3-mini takes to load once torch and transformers are imported, and the memory at its highest.

python benchmarks/load_mini.py
"""

from __future__ import annotations

import resource
import sys
import time
import warnings

from m3_integrations import M3Encoder
from m3_integrations.core.errors import TextsTruncated


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
    """MB; on macOS ru_maxrss counts bytes, elsewhere kilobytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


if __name__ == "__main__":
    main()
