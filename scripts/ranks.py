"""Runs a command as the ranks of one launch on this host, as torchrun does; for scripts that need nothing but Python."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import time


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def run_ranks(command: list[str], ranks: int, log: pathlib.Path, seconds: float) -> str:
    """Runs the command as a launcher does; returns why it failed, or an empty string."""
    port = str(free_port())
    environment = dict(os.environ, NCCL_NVLS_ENABLE="0")  # multicast in the switch gives other bits every time
    processes = []
    with contextlib.ExitStack() as files:
        for rank in range(ranks):
            if ranks > 1:
                environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
                environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            output = files.enter_context(open(f"{log}.{rank}.txt", "wb"))
            processes.append(
                subprocess.Popen(
                    command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
                )
            )
        end = time.monotonic() + seconds
        failed_at = None
        try:
            while any(process.poll() is None for process in processes):
                now = time.monotonic()
                if failed_at is None and any(process.poll() for process in processes):
                    failed_at = now  # the others say why, too, or hang
                if now > end or (failed_at is not None and now > failed_at + 45):
                    break
                time.sleep(0.1)
        finally:
            for process in processes:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if all(process.returncode == 0 for process in processes):
        return ""
    if failed_at is None:
        return f"took more than {seconds:.0f} s"
    errors = []
    for rank in range(ranks):
        text = pathlib.Path(f"{log}.{rank}.txt").read_text(errors="replace")
        errors += [line for line in text.splitlines() if line.startswith("lighthouse: ")]
    return errors[0].removeprefix("lighthouse: ")[:200] if errors else "ended with an error"
