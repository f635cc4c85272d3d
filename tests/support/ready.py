"""Imported last by the server that worlds are forked from: what is done here is done once for all of them."""

import gc

import pytest as pytest  # most functions that a test sends there stand in a file that imports these
import worlds as worlds

from launcher.runs.folder import versions
from launcher.runs.report.page import template

template()
versions()
gc.freeze()  # else each process would look for garbage among all of torch's modules, and copy their pages to do so
