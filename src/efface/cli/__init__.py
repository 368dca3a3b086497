"""The command line: parse, call, print. One command, one file; nothing heavy is imported before it is needed.

Exit codes: 0 done, 1 failed, 2 wrong use (one line on stderr), 3 refused by a guard.
"""

from efface.cli._main import main as main  # in a file of its own: here, cli.list would stand in for the built-in list
