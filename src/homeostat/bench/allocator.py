"""What glibc's allocator is told before a process starts."""

from __future__ import annotations

# Otherwise whole tensors are fetched from the system anew, by whichever call comes next.
KEEP_MEMORY = {
    "MALLOC_TRIM_THRESHOLD_": "4000000000",
    "MALLOC_MMAP_THRESHOLD_": "4000000000",
    "MALLOC_TOP_PAD_": "268435456",
}
