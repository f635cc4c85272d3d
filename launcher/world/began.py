"""When this process began to be the launcher's: a shell script may have installed packages in it before."""

import time

BEGAN = time.time()
