"""An inference server in small: threads take images from a queue and share one plan. One line is not torch's own."""

import queue
import threading
from concurrent.futures import Future

import torch
from torch import Tensor

import jitconv


class Server:
    """submit(image) gives a Future of the class; `threads` of them compute, each with memory of its own."""

    def __init__(self, model: torch.nn.Module, example: Tensor, threads: int = 2) -> None:
        self.forward = jitconv.plan(model.eval(), example)  # the line: torch's is … = model.eval()
        self.waiting: queue.Queue[tuple[Tensor, Future[int]] | None] = queue.Queue()
        self.threads = [threading.Thread(target=self.work) for _ in range(threads)]
        for thread in self.threads:
            thread.start()

    def submit(self, image: Tensor) -> "Future[int]":
        future: Future[int] = Future()
        self.waiting.put((image, future))
        return future

    def work(self) -> None:
        while (item := self.waiting.get()) is not None:
            image, future = item
            future.set_result(int(self.forward(image[None]).argmax()))

    def stop(self) -> None:
        for _ in self.threads:
            self.waiting.put(None)
        for thread in self.threads:
            thread.join()


def main(images: int = 500) -> float:
    """Return the share of images whose class is the one that the model gives alone."""
    torch.manual_seed(0)
    model, batch = jitconv.SimpleConvNet().eval(), torch.randn(images, 1, 28, 28)
    server = Server(model, batch[:1])
    answers = [future.result() for future in [server.submit(image) for image in batch]]
    server.stop()
    with torch.no_grad():
        alone = model(batch).argmax(1).tolist()
    return sum(a == b for a, b in zip(answers, alone, strict=True)) / images


if __name__ == "__main__":
    print(f"{main():.1%} of the answers are the model's")
