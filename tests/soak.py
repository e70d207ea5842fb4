"""What a process holds after many calls: `python -m tests.soak --calls 100000`.

Layers are trained, plans called with changing batches, new models planned and dropped; threads and forked processes
come and go. Prints memory, open files and threads at every tenth of the calls. Exits with 1 where memory has grown,
since the second tenth, by more than GROWTH and CAPTURE for each graph; or files or threads are more than then.
"""

import argparse
import gc
import multiprocessing
import sys
import threading
import time

import psutil
import torch
from torch import Tensor, nn

import jitconv
from jitconv import functional as F

GROWTH = 8  # MiB: what the allocator may leave unused between blocks
CAPTURE = 0.1  # MiB: torch.export keeps much of what it traced; 0.07 was measured, a plan's own arrays go with it
PLANNED, THREADED, FORKED = 5000, 250, 500  # calls between two new models, between threads, between processes


def network() -> nn.Module:
    layers = nn.Conv2d(3, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(144, 10)
    return nn.Sequential(*layers).eval()


class Soak:
    """A model with its plan, layers that are trained, and one call of them after the other."""

    def __init__(self) -> None:
        self.captures = 0
        self._new_model()

    def _new_model(self) -> None:
        self.model, self.images = network(), torch.randn(8, 3, 12, 12)
        self.plan = jitconv.plan(self.model, self.images)
        with torch.no_grad():
            self.wanted = self.model(self.images)

    def call(self, number: int) -> None:
        """One call of something, by its number; AssertionError where its result is not right."""
        if number % PLANNED == PLANNED // 10:
            self._new_model()
            self.captures += 8  # each of its batches is planned when it comes
        elif number % FORKED == FORKED // 2:
            self._in_a_process()
        elif number % THREADED == THREADED - 2:
            self._in_threads()
        elif number % 2:
            self._step(self.images[: 1 + number // 2 % 8])
        else:
            self._planned(1 + number // 2 % 8)

    def _planned(self, batch: int) -> None:
        error = (self.plan(self.images[:batch]) - self.wanted[:batch]).abs().max()
        assert error < 1e-4, f"an error of {error}"

    def _step(self, images: Tensor) -> None:
        """New weights each time: what is packed of them has to go with them."""
        weight, last = torch.randn(16, 3, 3, 3, requires_grad=True), torch.randn(10, 400, requires_grad=True)
        out = F.max_pool2d(F.relu(F.conv2d(images, weight)), 2)
        F.cross_entropy(F.linear(out.flatten(1), last), torch.arange(len(images))).backward()
        assert weight.grad is not None
        assert last.grad is not None

    def _in_threads(self) -> None:
        failed: list[BaseException] = []

        def several() -> None:
            try:
                for batch in (1, 4, 8):
                    self._planned(batch)
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=several) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failed:
            raise failed[0]

    def _in_a_process(self) -> None:
        process = multiprocessing.get_context("fork").Process(target=self._planned, args=(4,))
        process.start()
        process.join(60)
        assert process.exitcode == 0, f"the process ended with {process.exitcode}"
        process.close()


def held() -> tuple[float, int, int]:
    """Resident memory in MiB, open files, threads."""
    gc.collect()
    process = psutil.Process()
    files = process.num_fds() if hasattr(process, "num_fds") else process.num_handles()
    return process.memory_info().rss / 2**20, files, process.num_threads()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=2, help="torch's")
    options = parser.parse_args(arguments)
    calls = options.calls
    if calls < 10:
        parser.error(f"calls must be at least 10, got {calls}")
    torch.set_num_threads(options.threads)
    soak, start, rows = Soak(), time.monotonic(), []
    for number in range(calls):
        soak.call(number)
        if (number + 1) % (calls // 10) == 0:
            rows.append(held())
            memory, files, threads = rows[-1]
            spent = time.monotonic() - start
            print(
                f"{number + 1:8} calls {memory:8.1f} MiB {files:4} files {threads:4} threads {spent:6.0f} s", flush=True
            )
    growth, allowed = rows[-1][0] - rows[1][0], GROWTH + CAPTURE * soak.captures
    print(f"memory grew by {growth:.1f} MiB since the second tenth, {allowed:.1f} are allowed")
    more = [name for i, name in ((1, "files"), (2, "threads")) if rows[-1][i] > rows[1][i]]
    if more:
        print(f"more {' and '.join(more)} than at the second tenth")
    sys.exit(bool(more) or growth > allowed)


if __name__ == "__main__":
    main()
