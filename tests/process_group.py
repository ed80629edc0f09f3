"""Processes of a gloo group that tests run functions in."""

import fcntl
import multiprocessing
import os
import pickle
import tempfile
import time
import traceback
from datetime import timedelta

import torch
import torch.distributed as dist

# One server, which has imported everything, forks them all.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["fastebm", "process_group"])


def run(n, work, *args, seconds=120):
    """What ``work(*args)`` returns on each of ``n`` ranks; a string, the traceback, where it
    raises. An AssertionError where a rank has not ended in time."""
    with tempfile.TemporaryDirectory() as folder:
        pipes = [CONTEXT.Pipe(duplex=False) for _ in range(n)]
        ranks = [
            CONTEXT.Process(target=_rank, args=(r, n, folder, pipes[r][1], work, args), daemon=True)
            for r in range(n)
        ]
        for process, (_, theirs) in zip(ranks, pipes, strict=True):
            process.start()
            theirs.close()
        until, found = time.monotonic() + seconds, []
        try:
            for r, (ours, _) in enumerate(pipes):
                assert ours.poll(max(0, until - time.monotonic())), f"rank {r} has not ended"
                try:
                    found.append(pickle.loads(ours.recv_bytes()))
                except EOFError:
                    found.append("died")
            return found
        finally:
            for process in ranks:
                process.kill()
                process.join()


def results(n, work, *args, **options):
    """``run``, where no rank may raise."""
    found = run(n, work, *args, **options)
    errors = [f"rank {r}: {x}" for r, x in enumerate(found) if isinstance(x, str)]
    assert not errors, "\n".join(errors)
    return found


def once(tmp_path_factory, name, make):
    """What ``make(folder)`` returns, made by the first worker of pytest that asks for it: of a
    fixture that takes both cores. The folder is one for all workers."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / name
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = folder / "made.pickle"
        if not made.exists():
            made.write_bytes(pickle.dumps(make(folder)))
        return pickle.loads(made.read_bytes())


def _rank(rank, n, folder, pipe, work, args):
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", n)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=n, timeout=timedelta(seconds=60)
    )
    try:
        # By value: what torch shares would go with this process.
        pipe.send_bytes(pickle.dumps(work(*args)))
    except BaseException:
        pipe.send_bytes(pickle.dumps(traceback.format_exc()))
    finally:
        # A thread of gloo may ask for Python's lock while DDP's end holds it and waits for it.
        time.sleep(0.1)
        dist.destroy_process_group()
