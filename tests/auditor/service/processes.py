"""Processes to be killed: real ones, forked from a process that has imported everything and opened nothing.

`multiprocessing`'s fork server is that process: it has one thread and no connection, so what is forked from it is a
fresh process but for the seconds that imports take.
"""

from __future__ import annotations

import multiprocessing

from tests.auditor.service import killable_server, killable_worker

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload([killable_worker.__name__, killable_server.__name__])


class Killable:
    """A process that says once that it is up."""

    def __init__(self, run, *arguments):
        self._told, told = _forks.Pipe(duplex=False)
        self._process = _forks.Process(target=run, args=(told, *arguments), daemon=True)
        self._process.start()
        told.close()
        self._up = False

    @property
    def pid(self):
        return self._process.pid

    def is_up(self, seconds=0.0):
        """Whether it has said so, after waiting for so long."""
        self._up = self._up or (self._told.poll(seconds) and self._told.recv() == "up")
        return self._up

    def kill(self):
        """`kill -9`; gone when this returns."""
        self._process.kill()
        self._process.join()


def start_worker(url, *, lease, step):
    return Killable(killable_worker.run, url, lease, step)


def start_server(url, blobs, listen):
    return Killable(killable_server.run, url, blobs, listen)
