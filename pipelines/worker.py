"""Worker processes on this machine, for several workers and for the portable job server.

Beam starts them and forgets them: when one is killed (out of memory, say) its job waits for ever, and when the launcher
is killed they work on. Here a dead worker fails its job, and workers end within a second of their launcher.
"""

from __future__ import annotations

import os
import shlex
import sys
import threading
import time

from apache_beam.portability import python_urns
from apache_beam.portability.api import beam_fn_api_pb2
from apache_beam.runners.portability.fn_api_runner import worker_handlers
from apache_beam.runners.portability.local_job_service import SubprocessSdkWorker

from pipelines import engine

__all__ = ["COMMAND", "WatchedWorker", "main", "register"]

COMMAND = f"exec {shlex.quote(sys.executable)} -m pipelines.worker"  # exec: the shell must not stand between


class WatchedWorker(worker_handlers.SubprocessSdkWorkerHandler):
    """Beam's handler of a worker process; when the process ends too early, whatever waits for it gets an error."""

    def start_worker(self) -> None:
        self.closing = threading.Event()
        self.lost = False
        self.worker = SubprocessSdkWorker(
            self._worker_command_line, self.control_address, self.provision_info, self.worker_id
        )
        self.worker_thread = threading.Thread(name="run_worker", target=self._run, daemon=True)
        self.worker_thread.start()

    def stop_worker(self) -> None:
        self.worker_thread.join()

    def close(self) -> None:
        self.closing.set()
        # Beam says so to workers that have connected; one that is still starting would serve for ever.
        self.control_conn.push(worker_handlers.BeamFnControlServicer._DONE_MARKER)
        try:
            super().close()
        except Exception:
            if not self.lost:  # the channels of a lost worker cannot be closed in order
                raise

    def _run(self) -> None:
        reason = "it ended by itself"
        try:
            self.worker.run()
        except RuntimeError as error:
            reason = str(error)
        self.lost = not self.closing.is_set()
        text = f"WorkerDied: a worker process was lost ({reason}). Return code -9 or 137 means killed, most often "
        text += "for want of memory: use fewer workers or smaller splits"
        while not self.closing.wait(0.2):  # answers also what is asked of it after its death
            self._answer_all(text)

    def _answer_all(self, error: str) -> None:
        for future in list(self.control_conn._futures_by_id.values()):
            if not future.is_done():
                future.set(beam_fn_api_pb2.InstructionResponse(instruction_id=future.instruction_id, error=error))


def register() -> None:
    """Make FnApiRunner, in this process, watch the worker processes that it starts."""
    worker_handlers.WorkerHandler.register_environment(python_urns.SUBPROCESS_SDK, bytes)(WatchedWorker)


def main() -> None:
    """The worker's side: Beam's worker, which ends with its launcher and leaves error texts to it."""
    from apache_beam.runners.worker import sdk_worker, sdk_worker_main

    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    # Beam prints every traceback to stderr besides sending it to the launcher, which reports it once.
    vars(sdk_worker)["print"] = lambda *args, **kwargs: None
    engine.remember_state_specs()
    with engine.quiet():
        sdk_worker_main.main(sys.argv)


def _end_with(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    main()
