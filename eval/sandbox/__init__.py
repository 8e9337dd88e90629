"""Runs programs that nobody has read: no network, no files of the host, an unprivileged user, limits on all it could use up.

isolation    the command line of bubblewrap
seccomp      the filter of system calls
cgroup       memory and processes counted for a whole job
process      `Sandbox` and `Job`: starting, limiting and ending a program and everything it started
probe        programs that try to get out; `Sandbox.open` refuses to work unless all are stopped
"""

from .process import Ended, Job, Limits, Sandbox, SandboxError

__all__ = ["Ended", "Job", "Limits", "Sandbox", "SandboxError"]
