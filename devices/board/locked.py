"""Become another program that has a folder to itself. Arguments: the folder, the program's words.

Whoever held the folder before is waited for: an installation whose connection was lost lives on for
a while. The lock goes with the program.
"""

import fcntl
import os
import sys

fd = os.open(sys.argv[1], os.O_RDONLY)
fcntl.flock(fd, fcntl.LOCK_EX)
os.set_inheritable(fd, True)
os.execvp(sys.argv[2], sys.argv[2:])
