"""Ranks that begin at once: mpirun starts a small program, for which one forks that has imported all.

    python warm_ranks.py serve SOCKET [RUN]   # the one that forks; RUN: a run's folder to warm up with
    mpirun -n 4 python -IS warm_ranks.py SOCKET train RUN.toml   # each as `python -m isthmus` would be

What it takes to import MPI, NumPy and Numba is most of a short run. A rank here has the environment of
the program that mpirun has started, which ends as the rank does, killed by the same signal too. It is
`isthmus`, whole, but for the report's page, whose pictures take longer than all else of a short run.
"""

import array
import contextlib
import json
import os
import select
import signal
import socket
import sys


def main():
    if sys.argv[1] == "serve":
        serve(*sys.argv[2:])
    else:
        be_a_rank(sys.argv[1], sys.argv[2:])


def be_a_rank(path, arguments):
    """Have the server fork a process in the place of this one; end as that does."""
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(path)
        told = json.dumps([arguments, dict(os.environ), os.getcwd()]).encode()
        streams = array.array("i", [0, 1, 2]).tobytes()
        header = len(told).to_bytes(8, "big")
        server.sendmsg([header], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
        server.sendall(told)
        ended = b""
        while len(ended) < 8 and (more := server.recv(8 - len(ended))):
            ended += more
    status = int.from_bytes(ended, "big") if len(ended) == 8 else int(signal.SIGKILL)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.WEXITSTATUS(status))


def serve(path, run=None):
    """Import what a run needs, without starting MPI, and fork for whoever calls, for ever.

    run: the folder of a run, which is played again and reported, so that all kernels are loaded.
    """
    import mpi4py

    mpi4py.rc.initialize = False
    import isthmus.cli.main
    import isthmus.jobs.train
    import isthmus.jobs.verifying
    import isthmus.pages.report

    isthmus.pages.report.write_report = lambda folder: "none"  # most of what a short run computes
    if run is not None:
        isthmus.jobs.verifying.verify_steps(run)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen(64)
        print("ready", flush=True)
        while True:
            caller, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                stand_by(caller)
            caller.close()
            reap()


def reap():
    """Forget children that have ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def stand_by(caller):
    """Fork the rank, wait for it, and tell how it has ended; where the caller ends, end the rank."""
    header, streams, *_ = socket.recv_fds(caller, 8, 3)
    text = b""
    while len(text) < int.from_bytes(header, "big"):
        text += caller.recv(1 << 20)
    rank = os.fork()
    if rank == 0:
        caller.close()
        run(*json.loads(text), streams)
    for stream in streams:
        os.close(stream)
    ended = os.pidfd_open(rank)
    if ended not in select.select([caller, ended], [], [])[0]:
        os.kill(rank, signal.SIGKILL)
    _, status = os.waitpid(rank, 0)
    with contextlib.suppress(OSError):
        caller.sendall(status.to_bytes(8, "big"))
    os._exit(0)


def run(arguments, environment, folder, streams):
    """Be the rank: `isthmus ARGUMENTS` in the caller's place."""
    code = 1
    try:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        sys.stdin = open(0)  # noqa: SIM115
        sys.stdout, sys.stderr = open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        sys.argv = ["isthmus", *arguments]
        from mpi4py import MPI

        from isthmus.cli.main import main as isthmus
        from isthmus.mpirun import Loss

        ranks = "OMPI_COMM_WORLD_RANK" in environment or "--site" in arguments
        if ranks:
            MPI.Init_thread(MPI.THREAD_MULTIPLE)
        try:
            isthmus()
        except SystemExit as end:
            code = end.code or 0
        sys.stdout.flush()
        sys.stderr.flush()
        if ranks and not Loss.leaves_at_once and code == 0:
            MPI.Finalize()
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
