"""XLA's foreign function interface as numba sees it: the call frame and the thread pool.

The structures are those of XLA FFI 0.3, ``xla/ffi/api/c_api.h``, read as 64-bit words.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from homeostat.kernels.addresses import call, fetch_add, instruction, words
from homeostat.kernels.strips import WORTH_WAKING

API_MAJOR, API_MINOR = 0, 3
EXECUTE = 3
# Words of a call frame: the API, the context, the stage; the size of the structure of arguments,
# their number and addresses; the same of the results.
FRAME_WORDS = 15
API, CONTEXT, STAGE = 2, 3, 4
ARGUMENTS_SIZE, ARGUMENTS_NUMBER, ARGUMENTS, RESULTS_SIZE, RESULTS = 5, 7, 9, 10, 14
# Words of the API's structure: its functions.
ERROR_DESTROY, SCHEDULE, NUM_THREADS = 8, 17, 18
# Words of a job, which threads share: the next part to take, the parts done, the threads that may
# still look at it, and the number of parts. What follows is the task's own.
NEXT, DONE, HOLDERS, PARTS, OWN = 0, 1, 2, 3, 4

_WORD = ir.IntType(64)


def _library(name: str, result: Any) -> Callable[[Any, Any], Any]:
    def generate(builder: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(result, [_WORD])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)

    return generate


@intrinsic
def _malloc(context: Any, size: Any) -> Any:
    return instruction(types.intp(types.intp), _library("malloc", _WORD))


@intrinsic
def _free(context: Any, address: Any) -> Any:
    # What comes back is nothing, whatever the register holds.
    return instruction(types.intp(types.intp), _library("free", _WORD))


@njit
def data_of(address):
    """Return the address of a buffer's data."""
    return words(address, 4)[3]


@njit
def elements_of(address):
    """Return the number of a buffer's elements."""
    fields = words(address, 6)
    size = 1
    for dimension in words(fields[5], fields[4]):
        size *= dimension
    return size


@njit
def is_run(frame):
    """Return whether XLA asks for a run; where it asks for the API's version, tell it ours."""
    extension = frame[1]
    if extension != 0:
        metadata = words(words(extension, 4)[3], 4)
        metadata[3] = API_MAJOR + (API_MINOR << 32)
        return False
    readable = frame[0] >= 8 * FRAME_WORDS
    readable = readable and frame[ARGUMENTS_SIZE] == 40 and frame[RESULTS_SIZE] == 40
    return readable and (frame[STAGE] & 0xFFFFFFFF) == EXECUTE


@njit
def new_job(parts, own):
    """Return the address of a job of so many parts, with so many words of the task's own."""
    address = _malloc(8 * (OWN + own))
    job = words(address, OWN)
    job[NEXT], job[DONE], job[HOLDERS], job[PARTS] = 0, 0, 1, parts
    return address


@njit
def take(address):
    """Return the number of a part that no thread has taken, or -1 where none is left."""
    part = fetch_add(address + 8 * NEXT, 1)
    return part if part < words(address, OWN)[PARTS] else -1


@njit
def finish(address):
    """Say that a part is done."""
    fetch_add(address + 8 * DONE, 1)


@njit
def leave(address):
    """Let go of a job; the last to do so frees it."""
    if fetch_add(address + 8 * HOLDERS, -1) == 1:
        _free(address)


@njit
def run(frame, task, address):
    """Run a job's parts on XLA's threads and on this one, and return when all are done.

    Args:
        frame: the call frame.
        task: address of a C function that takes parts of the job until none is left, and then
            leaves it. It may come so late that nothing is left but the job itself.
        address: the job's, held for the caller, who leaves it.
    """
    parts = words(address, OWN)[PARTS]
    error, helpers = 0, 0
    if parts > 1:
        api = words(frame[API], NUM_THREADS + 1)
        threads = np.ones(1, np.int64)
        error = _request(api[NUM_THREADS], frame[CONTEXT], threads.ctypes.data, 0)
        helpers = min(threads[0], parts // WORTH_WAKING) - 1
        for _ in range(helpers):
            if error == 0:
                fetch_add(address + 8 * HOLDERS, 1)
                error = _request(api[SCHEDULE], frame[CONTEXT], task, address)
                if error != 0:
                    leave(address)
        if error != 0:
            # No pool, or none that takes tasks: this thread does what is left.
            _request(api[ERROR_DESTROY], error, 0, 0)
    fetch_add(address + 8 * HOLDERS, 1)
    call(task, address, 0, 0, 0)
    while fetch_add(address + 8 * DONE, 0) < parts:
        pass


@njit
def _request(function, first, second, third):
    """Call a function of the API: its argument is a structure of size, extension and arguments."""
    request = np.empty(5, np.int64)
    request[0] = 24 + 8 * (second != 0) + 8 * (third != 0)
    request[1], request[2], request[3], request[4] = 0, first, second, third
    answer = call(function, request.ctypes.data, 0, 0, 0)
    # Its last use: numba frees an array behind it.
    request[0] = 0
    return answer
